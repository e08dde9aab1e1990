"""Error tubes of observers with the default training: violations on 10 000 fresh trajectories, and how wide they are.

python -m tests.benchmarks.tubes [PLANT ...]
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

import estimators as est
import plants
from estimators.metrics import errors

PLANTS = ("mass_spring_damper", "pendulum", "van_der_pol", "quadruple_tank")
FRESH, STEPS = 10_000, 200


@dataclass
class Result:
    """Of one plant; ratios are (kind, state), filtered first."""

    name: str
    outside: int
    outside_bounded: int
    steady_over_largest: np.ndarray
    bounded_over_largest: np.ndarray
    bounded_over_worst: np.ndarray
    rate: float
    refined: float
    seconds: tuple

    def row(self):
        """Return a row of the README's table."""

        def span(a):
            return f"{a.min():.2g} to {a.max():.2g}"

        cells = (
            self.name,
            f"{self.rate:.4f}",
            f"{self.refined:.4f}",
            str(self.outside),
            span(self.steady_over_largest),
            str(self.outside_bounded),
            span(self.bounded_over_worst),
            span(self.bounded_over_largest),
        )
        return f"| {' | '.join(cells)} |"


def starts(data, error, seed):
    """Observer starts anywhere in the box of allowed errors."""
    rng = np.random.default_rng(seed)
    return data["x"].values[:, 0] + error * rng.uniform(-1, 1, (data.sizes["trajectory"], data.sizes["state"]))


def largest(observer, data):
    """Largest settled error from true starts, (kind, state)."""
    found = est.run(observer, data, x0=data["x"].values[:, 0])
    last = slice(STEPS - STEPS // 4, None)
    return np.array(
        [
            np.abs(errors(observer.model, found[kind].values, data["x"].values))[:, last].max((0, 1))
            for kind in ("filtered", "predicted")
        ]
    )


def compare(name, updates=2500, rate=0.99, fresh=FRESH):
    """Train, bound and count."""
    setting = plants.scenario(name)
    model = setting.model
    # no larger than the plant: the semidefinite programmes of bounded noise take minutes for the default size
    observer = est.R2DNObserver(model, contraction_rate=rate, nstates=model.nstates, nfeedback=16, hidden=(48, 48))
    history = observer.fit(
        setting.simulate(4096, STEPS, seed=0), setting.simulate(256, STEPS, seed=1), updates=updates, progress=False
    )
    began = time.perf_counter()
    calibration = setting.simulate(2000, STEPS, seed=11)
    bound = est.certify_error(observer, model, calibration)
    seconds = [time.perf_counter() - began]
    data = setting.simulate(fresh, STEPS, seed=12)
    outside = bound.violations(observer, data, starts(data, bound.evidence["start_error"], 0)).sum()
    limited = plants.BoundedNoise(setting.noise.process_cov, setting.noise.measurement_cov)  # at three deviations
    began = time.perf_counter()
    some = setting.simulate(800, STEPS, seed=13, noise=limited)
    worst = est.certify_error(observer, model, some, measurement_bound=limited.measurement_bound)
    seconds.append(time.perf_counter() - began)
    calm = setting.simulate(fresh, STEPS, seed=14, noise=limited)
    outside_bounded = worst.violations(observer, calm, starts(calm, worst.evidence["start_error"], 1)).sum()
    return Result(
        name,
        int(outside),
        int(outside_bounded),
        bound.steady.transpose("kind", "state").values / largest(observer, data),
        worst.steady.transpose("kind", "state").values / largest(observer, calm),
        worst.evidence["steady half-width over that"],
        est.certify(observer).bound,
        history.refined_rate,
        tuple(seconds),
    )


def main(names):
    """Print a table."""
    print(
        "| plant | rate in the designed metric | refined | outside of 10 000 | half-width / largest error | bounded "
        "noise: outside | / largest error with noise against it | / largest error with random noise |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names or PLANTS:
        result = compare(name)
        print(result.row(), flush=True)
        print(f"  took {result.seconds[0]:.1f} and {result.seconds[1]:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
