"""Accuracy of the trained observer beside tuned EKF and UKF, plant by plant: the figures the README quotes.

Run: python -m tests.benchmarks.accuracy [NAME ...]   (all cases take about seven minutes on two cores)
"""

import sys
from dataclasses import replace

import numpy as np

import estimators as est
import plants
from estimators.pipeline import STEPS, compare
from estimators.report import format_table


def outliers(setting):
    """The same plant with one measurement in ten an outlier of tenfold standard deviation."""
    noise = setting.noise
    return replace(
        setting, noise=plants.OutlierNoise(noise.process_cov, noise.measurement_cov, probability=0.1, scale=10.0)
    )


CASES = {
    "mass_spring_damper": lambda: plants.scenario("mass_spring_damper"),
    "pendulum": lambda: plants.scenario("pendulum"),
    "van_der_pol": lambda: plants.scenario("van_der_pol"),
    "quadruple_tank": lambda: plants.scenario("quadruple_tank"),
    "van_der_pol with outliers": lambda: outliers(plants.scenario("van_der_pol")),
    "quadruple_tank with outliers": lambda: outliers(plants.scenario("quadruple_tank")),
}


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


def main(names):
    """Print every case's table and certificate."""
    for name in names or [*CASES, "mass_spring_damper from random"]:
        print(f"\n=== {name}", flush=True)
        if name == "mass_spring_damper from random":
            ratio, history = from_random_start()
            print(f"mean squared error over Riccati optimum: {ratio:.4f} (trained {history.wall_time:.0f} s)")
            continue
        result = compare(CASES[name](), progress=False)
        print(format_table(result.table), "", result.certificate, sep="\n")
        if "optimum" in result.table:
            print(f"mean squared error over Riccati optimum: {mean_square_ratio(result.table, 'R2DN'):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
