"""Measured double pendulum: train on one run, test on the other; RMSE of the two joint rates.

Run: python -m tests.benchmarks.measured
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import savgol_filter

import estimators as est
import plants
from plants.catalog.measured_double_pendulum import encoder_noise

FOLDER = Path(__file__).parents[1] / "data" / "dfki_double_pendulum"
RUNS = ("143339", "143524")
SCORED = slice(250, -50)
START = np.diag([1e-4, 1e-4, 1e-2, 1e-2])


def load_run(model, run):
    """One measured run, samples taken as equidistant; reference states are smoothed angles and their derivative."""
    table = pd.read_csv(FOLDER / f"20230629-{run}_trajectory.csv")
    y = table[["pos_meas1", "pos_meas2"]].to_numpy()
    angles, rates = (savgol_filter(y, 31, 3, deriv=d, delta=model.dt, axis=0) for d in (0, 1))
    x = np.concatenate([angles, rates], axis=1)
    return plants.from_arrays(
        model, y=y, u=table[["tau_meas1", "tau_meas2"]].to_numpy(), x=x, initial_mean=x[0], initial_cov=START
    )


def rate_rmse(estimate, data):
    """RMSE of the two rates after 0.5 s, rad/s."""
    return np.sqrt(np.square(np.asarray(estimate)[..., 2:] - data["x"].values[..., 2:])[:, SCORED].mean(axis=(0, 1)))


def difference_quotient(model, data):
    """RMSE of the backward difference of the measured angles."""
    rates = np.diff(data["y"].values, axis=1, prepend=data["y"].values[:, :1]) / model.dt
    return np.sqrt(np.square(rates - data["x"].values[..., 2:])[:, SCORED].mean(axis=(0, 1)))


def train_observer(model, data, seed=0):
    """R2DN from one run only: pieces of 200 samples from wrong starts, a fifth for validation."""
    pieces = plants.cut(data, 200)
    order = np.random.default_rng(seed).permutation(pieces.sizes["trajectory"])
    train, validation = plants.split(pieces.isel(trajectory=order), (len(order) - 5, 5))
    observer = est.R2DNObserver(model, seed=seed)
    observer.fit(train, validation, updates=1500, seed=seed, progress=False)
    return observer


def compare(model, train, test, tuned=True):
    """Rate RMSE {estimator: (predicted, filtered)} on `test` after training and tuning on `train`."""
    density = encoder_noise(model.dt)
    estimators = {"EKF": est.ExtendedKalmanFilter(model, density), "UKF": est.UnscentedKalmanFilter(model, density)}
    if tuned:
        for name in list(estimators):
            estimators[f"{name} tuned"] = type(estimators[name])(model, density)
            estimators[f"{name} tuned"].tune(plants.cut(train, 250), P0=START)
        estimators["R2DN"] = train_observer(model, train)
        noise = estimators["EKF tuned"].noise
        estimators["R2DN+KF"] = est.ExogenousKalmanFilter(model, noise, estimators["R2DN"])
    found = {}
    for name, estimator in estimators.items():
        estimate = est.run(estimator, test)
        found[name] = rate_rmse(estimate["predicted"], test), rate_rmse(estimate["filtered"], test)
    return found


def main():
    """Print both directions."""
    model = plants.scenario("measured_double_pendulum").model
    runs = {run: load_run(model, run) for run in RUNS}
    for train, test in (RUNS, RUNS[::-1]):
        print(
            f"train on {train}, test on {test}: rate RMSE shoulder/elbow [rad/s]; rms of the rates",
            rate_rmse(0 * runs[test]["x"], runs[test]).round(3),
        )
        print("  difference quotient    ", difference_quotient(model, runs[test]).round(4))
        for name, (predicted, filtered) in compare(model, runs[train], runs[test]).items():
            print(f"  {name:10s} predicted {predicted.round(4)}  filtered {filtered.round(4)}", flush=True)


if __name__ == "__main__":
    main()
