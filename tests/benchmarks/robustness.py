"""R2DN, the better of EKF and UKF corrected by one, and that filter gated, over EKF and UKF.

Trained on nominal data, or with --mixture on equal parts of every condition. EKF and UKF are told the true noise of
nominal data; with --mixture two more are told what the better of them was tuned to on the mixture, and the best of all
four, under each condition and in each phase and state, is what the others are compared with.

Run: python -m tests.benchmarks.robustness [--mixture] [NAME ...]   (a plant takes ten to fifteen minutes on one core)
"""

import sys
import time

import numpy as np

import estimators as est
import plants
from estimators.pipeline import correct_better
from estimators.sources import STEPS, prepare
from tests.benchmarks.accuracy import LEFT_OUT

SEEDS = 20
COMPARED = "R2DN", "filter+R2DN", "gated"
GATE, TUNED = 0.999, 256
LOST = 0.05
"""An estimator that loses more of its trajectories is not compared: its error is that on the easy ones."""


def estimators_of(setting, mixture):
    """Trained estimators, plain filters, both by name, and the seconds that the R2DN's training took."""
    model, noise = setting.model, setting.noise
    datasets, _ = prepare(setting, None, 0, print, mixture)
    filters = {"EKF": est.ExtendedKalmanFilter(model, noise), "UKF": est.UnscentedKalmanFilter(model, noise)}
    observer, began = est.R2DNObserver(model), time.process_time()
    observer.fit(datasets["train"], datasets["validation"], progress=False)
    seconds = time.process_time() - began
    (corrected,) = correct_better(filters, datasets).values()
    better = type(corrected.filter)
    compared = {"R2DN": observer, "filter+R2DN": corrected, "gated": better(model, noise, gate=GATE)}
    if mixture:
        tuned = better(model, noise).tune(datasets["train"], trajectories=TUNED).noise
        filters |= {f"{name}, mixture": type(filter)(model, tuned) for name, filter in filters.items()}
    return compared, filters, seconds


def ratios(table, filters):
    """Log of the filtered RMSE over the best filter's (condition, seed, estimator, phase, state); NaN: not compared."""
    lost = table["diverged"].sum("seed")
    rmse = np.log(table["rmse"].sel(kind="filtered"))
    kept = rmse.where(lost <= LOST * table.attrs["trajectories"] * table.sizes["seed"])
    opponents = kept.sel(estimator=filters)
    # the best over all seeds, not on each of them
    best = opponents.mean("seed", skipna=False).fillna(np.inf).argmin("estimator")
    return kept - opponents.isel(estimator=best).drop_vars("estimator")


def row(name, table, filters):
    """One line for each condition: geometric mean over the states, and the largest of them."""
    ratio = ratios(table, filters)
    for condition in table["condition"].values:
        cells = []
        for who in COMPARED:
            own = ratio.sel(condition=condition, estimator=who)
            if not np.isfinite(own).all():  # lost; or no filter keeps the plant, or it runs away
                cells += ["not compared"] * 2
                continue
            for phase in ("transient", "steady"):
                mean = np.exp(own.sel(phase=phase).mean("state"))
                error = float(mean.std("seed", ddof=1)) / np.sqrt(len(mean))
                largest = float(np.exp(own.sel(phase=phase).mean("seed")).max())
                cells.append(f"{float(mean.mean()):.3f} ({error:.3f}), {largest:.2f}")
        counts = "/".join(str(int(count)) for count in table["diverged"].sum("seed").sel(condition=condition).values)
        print(f"| {name} | {condition} | {' | '.join(cells)} | {counts} |", flush=True)


def main(arguments):
    """Print a row for each plant and condition, filtered estimates."""
    mixture, names = "--mixture" in arguments, [a for a in arguments if a != "--mixture"]
    print("mean over states (standard error), largest state; RMSE over the best of the plain filters; below 1: ahead")
    print(f"| plant | condition | {' | '.join(f'{who} transient | steady' for who in COMPARED)} | lost |")
    print("|---" * (3 + 2 * len(COMPARED)) + "|")
    for name in names or [n for n in plants.SCENARIOS if n not in LEFT_OUT]:
        setting = plants.scenario(name)
        compared, filters, seconds = estimators_of(setting, mixture)
        conditions = plants.conditions_for(setting)
        table = est.monte_carlo({**compared, **filters}, setting, conditions, seeds=SEEDS, steps=STEPS, progress=False)
        row(name, table, list(filters))
        if table.attrs["failures"]:
            print(table.attrs["failures"])
        print(f"  {name}: observer trained in {seconds:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
