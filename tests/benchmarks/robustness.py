"""R2DN, EKF, UKF, a Kalman filter along the R2DN, and the better filter corrected by one; standard errors over seeds.

All are trained or tuned on the same data: nominal, or with --mixture equal parts of every condition.

Run: python -m tests.benchmarks.robustness [--mixture] [NAME ...]   (a plant takes four to six minutes on one core)
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
LEARNED = "R2DN", "R2DN+KF", "filter+R2DN"
LOST = 0.05
"""An estimator that loses more of its trajectories is not compared: its error is that on the easy ones."""
TUNED = 8
"""Every so many trajectories are enough for a filter's few numbers: they are known to a percent from 512."""


def estimators_of(setting, mixture):
    """Trained and tuned estimators by name, and the seconds that the training took."""
    model = setting.model
    datasets, noise = prepare(setting, None, 0, lambda text: None, mixture)
    train, validation = datasets["train"], datasets["validation"]
    filters = {"EKF": est.ExtendedKalmanFilter(model, noise), "UKF": est.UnscentedKalmanFilter(model, noise)}
    for filter in filters.values():
        filter.tune(train.isel(trajectory=slice(None, None, TUNED)))
    observer, began = est.R2DNObserver(model), time.process_time()
    observer.fit(train, validation, progress=False)
    seconds = time.process_time() - began
    along = est.ExogenousKalmanFilter(model, filters["EKF"].noise, observer)
    (corrected,) = correct_better(filters, datasets, say=lambda text: None).values()
    return {"R2DN": observer, "R2DN+KF": along, "filter+R2DN": corrected, **filters}, seconds


def row(name, table):
    """One line for each condition: ratio to the better filter, geometric mean over the states, and its largest."""
    lost = table["diverged"].sum("seed")
    most = LOST * table.attrs["trajectories"] * table.sizes["seed"]
    rmse = table["rmse"].sel(kind="filtered")
    ratio = rmse / rmse.sel(estimator=["EKF", "UKF"]).min("estimator")
    for condition in table["condition"].values:
        cells = []
        for who in LEARNED:
            if lost.sel(condition=condition, estimator=[who, "EKF", "UKF"]).max() > most:
                cells += ["not compared"] * 2
                continue
            for phase in ("transient", "steady"):
                part = ratio.sel(condition=condition, estimator=who, phase=phase)
                mean = np.exp(np.log(part).mean("state"))
                error = float(mean.std("seed", ddof=1)) / np.sqrt(len(mean))
                largest = float(part.mean("seed").max())
                cells.append(f"{float(mean.mean()):.3f} ({error:.3f}), {largest:.2f}")
        counts = "/".join(str(int(count)) for count in lost.sel(condition=condition).values)
        print(f"| {name} | {condition} | {' | '.join(cells)} | {counts} |", flush=True)


def main(arguments):
    """Print a row for each plant and condition, filtered estimates."""
    mixture, names = "--mixture" in arguments, [a for a in arguments if a != "--mixture"]
    print("mean over states (standard error), largest state; RMSE over the better of EKF and UKF; below 1: ahead")
    print(f"| plant | condition | {' | '.join(f'{who} transient | steady' for who in LEARNED)} | lost |")
    print("|---" * (3 + 2 * len(LEARNED)) + "|")
    for name in names or [n for n in plants.SCENARIOS if n not in LEFT_OUT]:
        setting = plants.scenario(name)
        found, seconds = estimators_of(setting, mixture)
        table = est.monte_carlo(
            found, setting, plants.conditions_for(setting), seeds=SEEDS, steps=STEPS, progress=False
        )
        row(name, table)
        print(f"  {name}: observer trained in {seconds:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
