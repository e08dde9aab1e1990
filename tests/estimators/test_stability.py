"""A very long run of an ill-conditioned plant: nothing drifts, no covariance loses its sign or its symmetry.

    python -m tests.estimators.test_stability [steps]

runs every filter in both precisions for so many steps, a million by default (float32 about half an hour, on tensors).
"""

import sys
from functools import partial

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants

A, C = np.array([[0.9, 2e-16], [-1e14, 0.95]]), np.array([[1e9, 0.0]])
Q, R = np.diag([1e-20, 1e10]), np.array([[0.04]])
"""Field case O12: states of 1e-9 beside 1e6, covariances thirty orders of magnitude apart."""
KINDS = {
    "KF": est.KalmanFilter,
    "EKF": est.ExtendedKalmanFilter,
    "UKF": est.UnscentedKalmanFilter,
    "UKF, alpha 0.01": partial(est.UnscentedKalmanFilter, alpha=0.01),
}


def walk(kind, dtype, steps):
    """Filter a random record; return the worst of what must stay small.

    Returns
    -------
    asymmetry, smallest eigenvalue of the correlation, relative error of the covariance at the end, and error of the
    mean at the end over its deviation, against the stationary filter in extended precision.
    """
    system = ct.ss(A, np.zeros((2, 1)), C, np.zeros((1, 1)), 1.0)
    model = plants.discretize(system, operating_region={"x[0]": (-5e-9, 5e-9), "x[1]": (-5e6, 5e6)})
    estimator, steady = KINDS[kind](model, Q=Q, R=R, dtype=dtype), est.steady_state(A, C, Q, R)
    rng = np.random.default_rng(0)
    L = steady.predictor_gain[:, 0].astype(np.longdouble)
    plant = A.astype(np.longdouble)
    truth, reference = np.zeros(2), np.zeros(2, dtype=np.longdouble)
    state = estimator.init(truth, 1e6 * steady.prior_cov)
    asymmetry, smallest = 0.0, 1.0
    deviation = np.sqrt(np.diag(steady.prior_cov))
    for _ in range(steps // 1000):
        noise = rng.standard_normal((1000, 3)) * np.array([1e-10, 1e5, 0.2])
        for w0, w1, v in noise.tolist():
            y = 1e9 * truth[0] + v
            state, estimate = estimator.step(state, [0.0], [y])
            if dtype == torch.float64:
                reference = plant @ reference + L * (y - 1e9 * reference[0])
            else:  # what float32 sees of the measurement
                reference = plant @ reference + L * (np.float32(y) - 1e9 * reference[0])
            truth = A @ truth + (w0, w1)
        for cov in (estimate.predicted_cov, estimate.filtered_cov, state.cov):
            P = cov.double().numpy()
            asymmetry = max(asymmetry, np.abs(P - P.T).max())
            unit = np.sqrt(np.diag(P))
            smallest = min(smallest, np.linalg.eigvalsh(P / np.outer(unit, unit))[0])
    unit = np.outer(deviation, deviation)
    covariance = np.abs((state.cov.double().numpy() - steady.prior_cov) / unit).max()
    mean = np.abs((state.mean.double().numpy() - reference.astype(float)) / deviation).max()
    return asymmetry, smallest, covariance, mean


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float64, 150_000), (torch.float32, 5_000)], ids=["64", "32"])
def test_nothing_drifts(kind, dtype, steps):
    asymmetry, smallest, covariance, mean = walk(kind, dtype, steps)
    rounding = torch.finfo(dtype).eps
    assert asymmetry == 0.0
    assert smallest > 0.0
    # a few hundred roundings a step, forgotten by a factor 0.75 a step; alpha = 0.01 takes differences of numbers
    # that agree to 1e-2 of a deviation
    slack = 100.0 if "alpha" in kind else 1.0
    assert covariance < slack * 200 * rounding
    assert mean < slack * 1000 * rounding


if __name__ == "__main__":
    for kind in sorted(KINDS):
        for dtype in (torch.float64, torch.float32):
            found = walk(kind, dtype, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
            print(f"{kind:16} {dtype!s:14} asymmetry {found[0]:.1e}, smallest eigenvalue {found[1]:.2g}, covariance "
                  f"{found[2]:.1e}, mean {found[3]:.1e}", flush=True)  # fmt: skip
