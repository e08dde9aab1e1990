"""R2DN, a Kalman filter along it, the better of EKF and UKF corrected by one, and gated, over EKF and UKF without gate.

Trained on nominal data, or with --mixture on equal parts of every condition; the filters are then tuned on nominal data
and on the mixture, and the best of all four, under each condition and in each phase and state, is what counts.

Run: python -m tests.benchmarks.robustness [--mixture] [NAME ...]   (a plant takes eight to ten minutes on one core)
"""

import sys
import time

import numpy as np

import estimators as est
import plants
from estimators.pipeline import correct_better, tune_filters
from estimators.sources import COUNTS, STEPS, prepare
from tests.benchmarks.accuracy import LEFT_OUT

SEEDS = 20
COMPARED = "R2DN", "R2DN+KF", "filter+R2DN", "gated"
GATE = 0.999
LOST = 0.05
"""An estimator that loses more of its trajectories is not compared: its error is that on the easy ones."""
TUNED = 8
"""Every so many trajectories are enough for a filter's few numbers: they are known to a percent from 512."""


def estimators_of(setting, mixture):
    """Trained and tuned estimators by name, and the seconds that the training took."""
    model = setting.model
    datasets, noise = prepare(setting, None, 0, silent, mixture)
    train, validation = datasets["train"], datasets["validation"]
    nominal = setting.simulate(COUNTS["train"] // TUNED, STEPS, seed=0)
    filters = tune_filters(model, noise, nominal, say=silent)
    observer, began = est.R2DNObserver(model), time.process_time()
    observer.fit(train, validation, progress=False)
    seconds = time.process_time() - began
    (corrected,) = correct_better(filters, datasets, say=silent).values()
    if mixture:
        filters |= tune_filters(model, noise, train.isel(trajectory=slice(None, None, TUNED)), ", mixture", silent)
    compared = {
        "R2DN": observer,
        "R2DN+KF": est.ExogenousKalmanFilter(model, filters["EKF"].noise, observer),
        "filter+R2DN": corrected,
        "gated": type(corrected.filter)(model, corrected.filter.noise, gate=GATE),
    }
    return compared, filters, seconds


def silent(text):
    """Say nothing."""


def row(name, table, filters):
    """One line for each condition: ratio to the best filter, geometric mean over the states, and its largest."""
    lost = table["diverged"].sum("seed")
    most = LOST * table.attrs["trajectories"] * table.sizes["seed"]
    rmse = table["rmse"].sel(kind="filtered")
    keeps = lost <= most
    ratio = rmse / rmse.where(keeps).sel(estimator=filters).min("estimator")
    for condition in table["condition"].values:
        cells = []
        for who in COMPARED:
            own = ratio.sel(condition=condition, estimator=who)
            # not where the plant runs away either, or no filter keeps it
            if not keeps.sel(condition=condition, estimator=who) or not np.isfinite(own).all():
                cells += ["not compared"] * 2
                continue
            for phase in ("transient", "steady"):
                part = own.sel(phase=phase)
                mean = np.exp(np.log(part).mean("state"))
                error = float(mean.std("seed", ddof=1)) / np.sqrt(len(mean))
                largest = float(part.mean("seed").max())
                cells.append(f"{float(mean.mean()):.3f} ({error:.3f}), {largest:.2f}")
        counts = "/".join(str(int(count)) for count in lost.sel(condition=condition).values)
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
        print(f"  {name}: observer trained in {seconds:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
