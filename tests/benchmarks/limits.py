"""How far EKF and UKF, told the truth, are from what a particle filter reaches: where there is something to win.

python -m tests.benchmarks.limits [PLANT ...]      (about two minutes a plant)
"""

import sys
import warnings

import estimators as est
import plants
from estimators.benchmark import rmse_by_phase
from estimators.run import estimate_batch

PLANTS = ("growth_model", "bearings_only", "range_only", "pendulum_displacement", "duffing", "van_der_pol")
TRAJECTORIES, STEPS, PARTICLES = 128, 200, 2000


def ratios(name):
    """RMSE of EKF and UKF over that of the particle filter, {filter: (kind, phase, state)}."""
    setting = plants.scenario(name)
    model, data = setting.model, setting.simulate(TRAJECTORIES, STEPS, seed=2)
    filters = {
        "EKF": est.ExtendedKalmanFilter(model, setting.noise),
        "UKF": est.UnscentedKalmanFilter(model, setting.noise),
        "particles": est.ParticleFilter(model, setting.noise, particles=PARTICLES),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*diverged")
        found = {who: rmse_by_phase(model, estimate_batch(f, data), data, STEPS // 3)[0] for who, f in filters.items()}
    limit = found.pop("particles")
    return {who: rmse / limit for who, rmse in found.items()}


def main(names):
    """Print a row for each plant and filter, predicted estimates."""
    print("| plant | filter | transient | steady |\n|---|---|---|---|")
    for name in names or PLANTS:
        for who, ratio in ratios(name).items():
            spans = [f"{ratio[0, phase].min():.2f} to {ratio[0, phase].max():.2f}" for phase in (0, 1)]
            print(f"| {name} | {who} | {' | '.join(spans)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
