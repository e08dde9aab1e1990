"""How far estimators that were told the truth are from the best there is, which a particle filter approaches.

Trained on nominal data, the filters told its noise, on 20 seeds of it; where the filters are at the limit there is
nothing to win. "EKF, Q = R = I" was told nothing. The row of a quarter of the particles tells how far they have
converged.

Run: python -m tests.benchmarks.limits [PLANT ...]      (a plant takes five to fifteen minutes on one core)
"""

import sys
import time

import numpy as np

import estimators as est
import plants
from estimators.sources import STEPS
from tests.benchmarks.accuracy import LEFT_OUT
from tests.benchmarks.robustness import LOST, SEEDS, estimators_of

TRAJECTORIES, PARTICLES = 16, 8000


def ratios(setting, found):
    """RMSE over the particle filter's, mean over states (seed, estimator, kind, phase); lost trajectories."""
    limit, fewer = (f"{count} particles" for count in (PARTICLES, PARTICLES // 4))
    particles = {
        name: est.ParticleFilter(setting.model, setting.noise, particles=count)
        for name, count in ((limit, PARTICLES), (fewer, PARTICLES // 4))
    }
    table = est.monte_carlo(
        {**found, **particles},
        setting,
        {"nominal": plants.CONDITIONS["nominal"]},
        seeds=SEEDS,
        trajectories=TRAJECTORIES,
        steps=STEPS,
        progress=False,
    ).isel(condition=0)
    lost = table["diverged"].sum("seed")
    rmse = table["rmse"].where(lost <= LOST * SEEDS * TRAJECTORIES)
    ratio = np.exp(np.log(rmse / rmse.sel(estimator=limit)).mean("state", skipna=False))
    return ratio.drop_sel(estimator=limit), lost


def main(names):
    """Print a row for each plant and estimator."""
    columns = [(kind, phase) for kind in ("filtered", "predicted") for phase in ("transient", "steady")]
    print("RMSE over that of a particle filter, mean over states (standard error over seeds); nan: lost")
    print(f"| plant | estimator | {' | '.join(f'{kind}, {phase}' for kind, phase in columns)} | lost |")
    print("|---" * (3 + len(columns)) + "|")
    for name in names or [n for n in plants.SCENARIOS if n not in LEFT_OUT]:
        setting = plants.scenario(name)
        began = time.perf_counter()
        compared, filters, _ = estimators_of(setting, mixture=False)
        seconds = time.perf_counter() - began
        compared["R2DN+KF"] = est.ExogenousKalmanFilter(setting.model, setting.noise, compared["R2DN"])
        ones = np.ones(setting.model.nstates), np.ones(setting.model.noutputs)
        filters["EKF, Q = R = I"] = est.ExtendedKalmanFilter(setting.model, plants.GaussianNoise(*ones))
        ratio, lost = ratios(setting, {**compared, **filters})
        for who in ratio["estimator"].values:
            cells = []
            for kind, phase in columns:
                part = ratio.sel(estimator=who, kind=kind, phase=phase)
                mean, error = part.mean(skipna=False), part.std(ddof=1, skipna=False) / np.sqrt(SEEDS)
                cells.append(f"{float(mean):.3f} ({float(error):.3f})")
            print(f"| {name} | {who} | {' | '.join(cells)} | {int(lost.sel(estimator=who))} |", flush=True)
        print(f"  {name}: from the plant to both trained estimators in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
