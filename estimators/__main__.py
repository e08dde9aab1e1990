"""Command line: ``observers benchmark [PLANT]`` and ``observers certify MODEL``, or ``python -m estimators ...``."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import torch

from estimators.pipeline import as_scenario, certify_model, compare, find_plant, read_data
from estimators.report import check_writable, format_table, write_results

EXIT_CODES = {"proved": 0, "refuted": 1, "sampled": 2, "inconclusive": 2}
UNUSABLE = 3


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(
        prog="observers",
        description="Observer design for python-control plants: contracting R2DN observers beside EKF and UKF.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "benchmark",
        help="tune EKF and UKF, train an observer on the same data, compare and certify",
        description="Tune EKF and UKF, train an R2DN observer on the same data, compare them and certify the observer.",
    )
    bench.add_argument(
        "plant",
        nargs="?",
        default="pendulum",
        metavar="PLANT",
        help="catalogue name, or module:factory of your own (default: pendulum)",
    )
    bench.add_argument(
        "--data",
        metavar="FILE",
        help="trajectories with true states: netCDF of this toolkit, or CSV with columns 'time' and the plant's labels",
    )
    bench.add_argument(
        "--out", metavar="DIR", default="results", help="folder for model, estimates and figures (default: results)"
    )
    bench.add_argument("--dt", type=float, help="sample time, for a bare continuous system of your own")
    bench.add_argument("--seed", type=int, default=0, help="seed of data and training (default: 0)")
    bench.add_argument("--updates", type=_count, default=2500, help="rollout updates of the training (default: 2500)")
    check = commands.add_parser(
        "certify",
        help="prove that an observer in a file is contracting",
        description="Prove that an observer in a file is contracting: rate, metric, gains of noise; with data of its "
        "plant also an error tube. Exit code 0: proved, 1: refuted, 2: inconclusive, 3: input that cannot be used.",
    )
    check.add_argument(
        "model",
        metavar="MODEL",
        help="file of an R2DNObserver, as benchmark and observer.save write; or module:factory of anything else that "
        "estimators.certify takes",
    )
    check.add_argument("--plant", metavar="PLANT", help="catalogue name or module:factory; needed with --data")
    check.add_argument("--data", metavar="FILE", help="trajectories with true states, netCDF or CSV: adds the tube")
    check.add_argument("--dt", type=float, help="sample time, for a bare continuous system of your own")
    check.add_argument(
        "--probability", type=float, default=0.99, help="with which a trajectory stays in the tube (default: 0.99)"
    )
    check.add_argument("--json", metavar="FILE", help="write the report there too; - for standard output, alone")
    return top


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    # matrices this small gain nothing from a second thread, and lose minutes where another process needs the core
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.showwarning = lambda message, category, *rest, **kw: print(f"note: {message}", file=sys.stderr)
    run, unusable = (_benchmark, 2) if options.command == "benchmark" else (_certify, UNUSABLE)
    try:
        return run(options)
    except (ValueError, TypeError, FloatingPointError) as error:
        print(f"observers: {error}", file=sys.stderr)
        return unusable


def _benchmark(options) -> int:
    began, out = time.perf_counter(), Path(options.out)
    check_writable(out)
    setting = as_scenario(find_plant(options.plant), options.dt, print, given_data=bool(options.data))
    data = read_data(options.data, setting.model) if options.data else None
    checkpoint = out / f"{setting.model.name}_checkpoint.safetensors"
    result = compare(setting, data, seed=options.seed, updates=options.updates, checkpoint=checkpoint)
    print(f"\n{format_table(result.table, result.certificates)}\n\n{result.certificate}\n")
    for path in write_results(result, out):
        print(f"wrote {path}")
    print(f"done in {time.perf_counter() - began:.0f} s")
    return 0


def _certify(options) -> int:
    say = (lambda text: None) if options.json == "-" else print
    if options.data and not options.plant:
        raise ValueError("--data needs --plant: the tube is about the plant's states")
    certificate, bound = certify_model(
        options.model, options.plant, options.data, dt=options.dt, probability=options.probability, say=say
    )
    report = {"model": options.model, "certificate": certificate.to_dict()}
    say(certificate)
    if bound is not None:
        report["error_tube"] = bound.to_dict()
        say(bound)
    if options.json:
        text = json.dumps(report, indent=2)
        if options.json == "-":
            print(text)
        else:
            try:
                Path(options.json).write_text(text + "\n")
            except OSError as error:
                raise ValueError(f"cannot write {options.json}: {error}") from error
    return EXIT_CODES[certificate.verdict]


if __name__ == "__main__":
    sys.exit(main())
