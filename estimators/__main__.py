"""Command line: ``python -m estimators benchmark [PLANT] [--data FILE] [--out DIR]``."""

import argparse
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import torch

from estimators.pipeline import as_scenario, compare, find_plant, read_data
from estimators.report import check_writable, format_table, write_results


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
    return top


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for input that cannot be used."""
    options = parser().parse_args(arguments)
    # matrices this small gain nothing from a second thread, and lose minutes where another process needs the core
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.showwarning = lambda message, category, *rest, **kw: print(f"note: {message}", file=sys.stderr)
    began, out = time.perf_counter(), Path(options.out)
    try:
        check_writable(out)
        setting = as_scenario(find_plant(options.plant), options.dt, print, given_data=bool(options.data))
        data = read_data(options.data, setting.model) if options.data else None
        checkpoint = out / f"{setting.model.name}_checkpoint.safetensors"
        result = compare(setting, data, seed=options.seed, updates=options.updates, checkpoint=checkpoint)
        print(f"\n{format_table(result.table)}\n\n{result.certificate}\n")
        for path in write_results(result, out):
            print(f"wrote {path}")
    except (ValueError, TypeError, FloatingPointError) as error:
        print(f"observers: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
