"""Accuracy of the trained observer beside tuned EKF and UKF, plant by plant: the figures the README quotes.

Run: python -m tests.benchmarks.accuracy [NAME ...]   (a case takes two to five minutes on one core)
"""

import sys
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr

import estimators as est
import plants
from estimators.pipeline import train_observer, tune_filters
from estimators.report import format_table
from estimators.sources import STEPS, prepare


def outliers(setting):
    """The same plant with one measurement in ten an outlier of tenfold standard deviation."""
    noise = setting.noise
    return replace(
        setting, noise=plants.OutlierNoise(noise.process_cov, noise.measurement_cov, probability=0.1, scale=10.0)
    )


def _nominal(name):
    return lambda: plants.scenario(name)


# without those that have tests of their own on measured data, and one too large for tuned filters
LEFT_OUT = ("measured_pendulum", "measured_double_pendulum", "reaction_diffusion")
CASES = {name: _nominal(name) for name in plants.SCENARIOS if name not in LEFT_OUT} | {
    "van_der_pol with outliers": lambda: outliers(plants.scenario("van_der_pol")),
    "quadruple_tank with outliers": lambda: outliers(plants.scenario("quadruple_tank")),
}


class Case(NamedTuple):
    """What a case gave."""

    model: plants.StateSpaceModel
    datasets: dict
    observer: est.R2DNObserver
    table: xr.Dataset
    certificate: est.Certificate


def trained(setting):
    """Tuned filters and a trained observer with their scores and the observer's certificate."""
    model = setting.model
    datasets, noise = prepare(setting, None, 0, print)
    filters = tune_filters(model, noise, datasets["tuning"])
    observer, _ = train_observer(model, datasets, seed=0, updates=2500, checkpoint=None, progress=False, say=print)
    table = est.benchmark({"R2DN": observer, **filters}, datasets["test"])
    return Case(model, datasets, observer, table, est.certify(observer, datasets["test"]))


def from_random_start():
    """The linear plant again, from the published random initialisation: mean squared error over the Riccati optimum."""
    setting = plants.scenario("mass_spring_damper")
    train, validation, test = (setting.simulate(n, STEPS, seed) for seed, n in enumerate((4096, 256, 512)))
    observer = est.R2DNObserver(setting.model, initialisation="random")
    history = observer.fit(train, validation, updates=3000, one_step_updates=1000, progress=False)
    table = est.benchmark({"R2DN": observer}, test)
    return mean_square_ratio(table, "R2DN"), history


def mean_square_ratio(table, name):
    """Stationary mean squared error over the trace of the predicted Riccati covariance."""
    steady = table["rmse"].sel(estimator=name, kind="predicted", phase="steady").values
    return float(np.sum(steady**2) / np.sum(table["optimum"].sel(kind="predicted").values ** 2))


def summary_row(name, result):
    """One line of the README's table: R2DN over the better filter, smallest and largest over the states."""
    rmse = result.table["rmse"]
    ratio = rmse.sel(estimator="R2DN") / rmse.sel(estimator=["EKF", "UKF"]).min("estimator")

    def span(**chosen):
        values = ratio.sel(**chosen).values
        return f"{values.min():.3f} to {values.max():.3f}"

    columns = [span(kind=kind, phase=phase) for phase in ("steady", "transient") for kind in ("predicted", "filtered")]
    return f"| {name} | {' | '.join(columns)} | {result.certificate.bound:.4f}, {result.certificate.verdict} |"


def beside_gated(result, noise):
    """R2DN over an EKF that knows the noise without outliers and leaves out what lies beyond its 99.9 % quantile."""
    nominal = plants.GaussianNoise(noise.process_cov, noise.measurement_cov)
    gated = est.ExtendedKalmanFilter(result.model, nominal, gate=0.999)
    data = result.datasets["test"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*diverged")  # told below
        own = est.benchmark({"gated": gated}, data)
    kept = np.isfinite(own["x_hat"]).all(("estimator", "kind", "time", "state")).values
    first, truth = round(own.attrs["transient"] / result.model.dt), data["x"].values[kept]

    def rmse(table, name, kind, part):
        estimate = table["x_hat"].sel(estimator=name, kind=kind).values[kept]
        return est.metrics.rmse(est.metrics.errors(result.model, estimate, truth)[:, part])

    rows = [
        f"  {phase} {kind}: {np.round(rmse(result.table, 'R2DN', kind, part) / rmse(own, 'gated', kind, part), 3)}"
        for phase, part in (("steady", slice(first, None)), ("transient", slice(0, first)))
        for kind in ("predicted", "filtered")
    ]
    lost = f"on the {kept.sum()} of {len(kept)} trajectories that it does not lose"
    return "\n".join([f"R2DN over an EKF with gate=0.999, per state, {lost}:", *rows])


def main(names):
    """Print every case's table and certificate, and the summary."""
    rows = []
    for name in names or [*CASES, "mass_spring_damper from random"]:
        print(f"\n=== {name}", flush=True)
        if name == "mass_spring_damper from random":
            ratio, history = from_random_start()
            print(f"mean squared error over Riccati optimum: {ratio:.4f} (trained {history.wall_time:.0f} s)")
            continue
        setting = CASES[name]()
        result = trained(setting)
        rows.append(summary_row(name, result))
        print(format_table(result.table), "", result.certificate, sep="\n")
        if isinstance(setting.noise, plants.OutlierNoise):
            print(beside_gated(result, setting.noise))
        if "optimum" in result.table:
            print(f"mean squared error over Riccati optimum: {mean_square_ratio(result.table, 'R2DN'):.4f}")
    print("\nR2DN over the better of tuned EKF and UKF, RMSE, range over the states")
    print("| case | steady predicted | steady filtered | transient predicted | transient filtered | certified rate |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
