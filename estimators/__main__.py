"""Command line: ``observers list | simulate | train | benchmark | certify | plot``, or ``python -m estimators ...``."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import shtab
import torch

from estimators.pipeline import certify_model, compare, train_observer
from estimators.report import (
    check_writable,
    format_catalogue,
    format_robustness,
    format_table,
    load_estimates,
    write_figures,
    write_results,
)
from estimators.sources import as_scenario, find_plant, prepare, read_data
from plants import CONDITIONS, SCENARIOS, save_dataset

EXIT_CODES = {"proved": 0, "refuted": 1, "sampled": 2, "inconclusive": 2}
UNUSABLE = 3


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(
        prog="observers",
        description="Observer design for python-control plants: contracting R2DN observers beside EKF and UKF.",
    )
    shtab.add_argument_to(top, ["--print-completion"], help="completion for a shell: eval it in your profile")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="plants of the catalogue", description="List the plants of the catalogue.")
    draw = commands.add_parser(
        "simulate",
        help="simulate trajectories of a plant",
        description="Simulate trajectories of a plant, with noise, from random starts, and write netCDF.",
    )
    _add_plant(draw)
    draw.add_argument("--out", metavar="FILE", help="netCDF file (default: PLANT_data.nc)")
    draw.add_argument("--trajectories", type=_positive, default=256, help="how many (default: 256)")
    draw.add_argument("--steps", type=_positive, default=200, help="samples of each (default: 200)")
    draw.add_argument(
        "--condition",
        choices=list(CONDITIONS),
        default="nominal",
        help="what is wrong with the data (default: nominal)",
    )
    draw.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    fit = commands.add_parser(
        "train",
        help="train an observer",
        description="Train an R2DN observer on simulated or given trajectories and write it to a file.",
    )
    _add_plant(fit)
    fit.add_argument("--data", metavar="FILE", help="trajectories with true states, netCDF or CSV; default: simulated")
    fit.add_argument("--out", metavar="FILE", help="safetensors file (default: PLANT_observer.safetensors)")
    fit.add_argument("--seed", type=int, default=0, help="seed of data and training (default: 0)")
    fit.add_argument("--updates", type=_count, default=2500, help="rollout updates (default: 2500)")
    draw = commands.add_parser(
        "plot",
        help="figures from a file of estimates",
        description="Draw states and error decay from the netCDF of estimates that benchmark writes.",
    )
    draw.add_argument("estimates", metavar="FILE", help="PLANT_estimates.nc")
    draw.add_argument(
        "--plant", metavar="PLANT", help="catalogue name or module:factory (default: the one in the file)"
    )
    draw.add_argument("--dt", type=float, help="sample time, for a bare continuous system of your own")
    draw.add_argument("--out", metavar="DIR", help="folder for the figures (default: beside the file)")
    bench = commands.add_parser(
        "benchmark",
        help="tune EKF and UKF, train an observer on the same data, compare and certify",
        description="Tune EKF and UKF, train an R2DN observer on the same data, compare them and certify the observer.",
    )
    _add_plant(bench)
    bench.add_argument(
        "--data",
        metavar="FILE",
        help="trajectories with true states: netCDF of this toolkit, or CSV with columns 'time' and the plant's labels",
    )
    bench.add_argument(
        "--out",
        metavar="DIR",
        default="results",
        help="folder for model, estimates, figures and report (default: results)",
    )
    bench.add_argument(
        "--mixture",
        action="store_true",
        help="train on equal parts of all conditions of the robustness table; filters are tuned on both",
    )
    bench.add_argument("--seed", type=int, default=0, help="seed of data and training (default: 0)")
    bench.add_argument(
        "--updates",
        type=_count,
        default=2500,
        help="rollout updates of the training, and at most so many of the correction's (default: 2500)",
    )
    bench.add_argument(
        "--seeds",
        type=_count,
        default=3,
        help="datasets of each condition of the robustness table; 0: leave it out, as with --data (default: 3)",
    )
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


def _add_plant(command):
    command.add_argument(
        "plant",
        nargs="?",
        default="pendulum",
        metavar="PLANT",
        help="catalogue name, or module:factory of your own (default: pendulum)",
    )
    command.add_argument("--dt", type=float, help="sample time, for a bare continuous system of your own")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


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
    run, unusable = COMMANDS[options.command], UNUSABLE if options.command == "certify" else 2
    try:
        return run(options)
    except (ValueError, TypeError, FloatingPointError) as error:
        print(f"observers: {error}", file=sys.stderr)
        return unusable


def _list(options) -> int:
    print(format_catalogue(SCENARIOS))
    return 0


def _simulate(options) -> int:
    setting = as_scenario(find_plant(options.plant), options.dt, print)
    path = Path(options.out or f"{setting.model.name}_data.nc")
    check_writable(path.parent)
    condition = CONDITIONS[options.condition]
    save_dataset(condition.simulate(setting, options.trajectories, options.steps, options.seed), path)
    print(f"wrote {path}: {options.trajectories} trajectories of {options.steps} samples, {options.condition}")
    return 0


def _train(options) -> int:
    setting = as_scenario(find_plant(options.plant), options.dt, print, given_data=bool(options.data))
    path = Path(options.out or f"{setting.model.name}_observer.safetensors")
    check_writable(path.parent)
    data = read_data(options.data, setting.model) if options.data else None
    datasets, _ = prepare(setting, data, options.seed, print)
    observer, _ = train_observer(
        setting.model,
        datasets,
        seed=options.seed,
        updates=options.updates,
        checkpoint=path.with_suffix(".checkpoint.safetensors"),
        progress=True,
        say=print,
    )
    observer.save(path)
    print(f"wrote {path}")
    return 0


def _plot(options) -> int:
    table = load_estimates(options.estimates)
    model = as_scenario(find_plant(options.plant or table.attrs["plant"]), options.dt, print, given_data=True).model
    folder = Path(options.out or Path(options.estimates).parent)
    check_writable(folder)
    for path in write_figures(table, model, folder):
        print(f"wrote {path}")
    return 0


def _benchmark(options) -> int:
    began, out = time.perf_counter(), Path(options.out)
    if options.mixture and options.data:
        raise ValueError("--mixture is of simulated data: leave out it or --data")
    check_writable(out)
    setting = as_scenario(find_plant(options.plant), options.dt, print, given_data=bool(options.data))
    data = read_data(options.data, setting.model) if options.data else None
    checkpoint = out / f"{setting.model.name}_checkpoint.safetensors"
    result = compare(
        setting,
        data,
        seed=options.seed,
        updates=options.updates,
        mixture=options.mixture,
        robustness_seeds=options.seeds,
        checkpoint=checkpoint,
    )
    print(f"\n{format_table(result.table, result.certificates)}\n")
    if result.robustness is not None:
        print(f"{format_robustness(result.robustness)}\n")
    print(f"{result.certificate}\n")
    settings = {k: "simulated" if k == "data" and v is None else v for k, v in vars(options).items() if k != "command"}
    for path in write_results(result, out, settings):
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


COMMANDS = {
    "list": _list,
    "simulate": _simulate,
    "train": _train,
    "benchmark": _benchmark,
    "certify": _certify,
    "plot": _plot,
}

if __name__ == "__main__":
    sys.exit(main())
