"""What every estimator must do on every plant of the catalogue."""

import numpy as np
import pytest
import torch

import estimators as est
import plants
from tests.small_plants import SMALL
from tests.tolerances import ROUNDING

TRAJECTORIES, STEPS = 3, 12


def make_observer(setting):
    observer = est.R2DNObserver(setting.model, nfeedback=4, hidden=(8,))
    observer.initialise(setting.simulate(8, 60, seed=1))
    return observer


def make_corrected(setting):
    """Correction by a random network, not zero as at the start of a training."""
    corrected = est.LearnedCorrection(
        est.ExtendedKalmanFilter(setting.model, setting.noise), nstates=3, nfeedback=4, hidden=(8,)
    )
    with torch.no_grad():
        corrected.network.C2.fill_(0.1)
        corrected.network.D22.fill_(0.01)
    return corrected


ESTIMATORS = {
    "EKF": lambda setting: est.ExtendedKalmanFilter(setting.model, setting.noise),
    "UKF": lambda setting: est.UnscentedKalmanFilter(setting.model, setting.noise),
    "IEKF": lambda setting: est.IteratedExtendedKalmanFilter(setting.model, setting.noise),
    "CKF": lambda setting: est.CubatureKalmanFilter(setting.model, setting.noise),
    "EnKF": lambda setting: est.EnsembleKalmanFilter(setting.model, setting.noise, particles=40),
    "PF": lambda setting: est.ParticleFilter(setting.model, setting.noise, particles=60),
    "Luenberger": lambda setting: est.LuenbergerObserver.from_noise(setting.model, setting.noise),
    "MHE": lambda setting: est.MovingHorizonEstimator(setting.model, setting.noise, horizon=3),
    "R2DN": make_observer,
    "R2DN+KF": lambda setting: est.ExogenousKalmanFilter(setting.model, setting.noise, make_observer(setting)),
    "EKF+R2DN": make_corrected,
}


@pytest.fixture(scope="module", params=[(e, p) for e in ESTIMATORS for p in SMALL], ids=lambda v: "-".join(v))
def case(request):
    estimator, plant = request.param
    setting = plants.scenario(plant)
    data = setting.simulate(TRAJECTORIES, STEPS, seed=0)
    data["y"][1, 4, 0] = np.nan
    return ESTIMATORS[estimator](setting), data


def start(estimator, data):
    x0 = torch.from_numpy(data["initial_mean"].values).expand(TRAJECTORIES, -1)
    return estimator.init(x0, data["initial_cov"].values)


def tensors_of(state):
    return [part for part in state if isinstance(part, torch.Tensor)]


def test_follows_the_protocol_and_gives_finite_estimates_of_the_right_shape(case):
    estimator, data = case
    assert isinstance(estimator, est.Estimator)
    found = est.run(estimator, data)
    for kind in ("predicted", "filtered"):
        assert found[kind].shape == (TRAJECTORIES, STEPS, estimator.model.nstates)
        assert found[kind].dtype == np.float64
        assert np.isfinite(found[kind]).all()
        assert list(found["state"].values) == list(estimator.model.state_labels)


def test_streaming_is_offline_and_a_step_changes_nothing_in_place(case):
    estimator, data = case
    _, u, y = plants.to_tensors(data)
    offline, state = est.run(estimator, data), start(estimator, data)
    scale = np.maximum(np.abs(offline["predicted"].values).max(axis=(0, 1)), 1e-12)
    for k in range(STEPS):
        before = [part.clone() for part in tensors_of(state)]
        following, estimate = estimator.step(state, u[:, k], y[:, k])
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, tensors_of(state), strict=True))
        for kind in ("predicted", "filtered"):
            difference = getattr(estimate, kind).numpy() - offline[kind].values[:, k]
            assert np.abs(difference / scale).max() < 1e-10  # batched products may be summed in another order
        state = following


def test_runs_are_deterministic(case):
    estimator, data = case
    np.testing.assert_array_equal(est.run(estimator, data)["filtered"], est.run(estimator, data)["filtered"])


def test_one_trajectory_without_a_batch_dimension(case):
    estimator, data = case
    _, u, y = plants.to_tensors(data)
    state = estimator.init(data["initial_mean"].values, data["initial_cov"].values)
    _, estimate = estimator.step(state, u[0, 0], y[0, 0])
    assert estimate.predicted.shape == (estimator.model.nstates,)
    together = start(estimator, data)
    np.testing.assert_allclose(
        estimate.filtered, estimator.step(together, u[:, 0], y[:, 0])[1].filtered[0], rtol=1e-9, atol=ROUNDING
    )


def test_batch_dimensions_broadcast_either_way(case):
    estimator, data = case
    _, u, y = plants.to_tensors(data)
    one = estimator.init(data["initial_mean"].values, data["initial_cov"].values)
    many = start(estimator, data)
    torch.testing.assert_close(
        estimator.estimate_sequence(one, u, y).filtered, estimator.estimate_sequence(many, u, y).filtered
    )
    torch.testing.assert_close(
        estimator.step(many, u[0, 0], y[0, 0])[1].filtered[2], estimator.step(one, u[0, 0], y[0, 0])[1].filtered
    )


def test_lists_integers_and_float32_are_the_same_numbers(case):
    estimator, data = case
    state = estimator.init(data["initial_mean"].values, data["initial_cov"].values)
    nu, ny = estimator.model.ninputs, estimator.model.noutputs
    one = estimator.step(state, [1] * nu, [1] * ny)[1].filtered
    two = estimator.step(state, np.ones(nu, dtype=np.float32), np.ones(ny))[1].filtered
    assert torch.equal(one, two)
    assert one.dtype == torch.float64


def test_wrong_shapes_are_named(case):
    estimator, data = case
    state = start(estimator, data)
    nu, ny = estimator.model.ninputs, estimator.model.noutputs
    with pytest.raises(ValueError, match=r"y must have shape"):
        estimator.step(state, [0] * nu, [0] * (ny + 1))
    with pytest.raises(ValueError, match=r"u must have shape"):
        estimator.step(state, [0] * (nu + 1), [0] * ny)
    with pytest.raises(ValueError, match="same, non-zero length"):
        estimator.estimate_sequence(state, torch.zeros(4, nu), torch.zeros(5, ny))
    with pytest.raises(TypeError, match="state must be the"):
        estimator.step((1, 2), [0] * nu, [0] * ny)
    with pytest.raises(ValueError, match=r"x0 must have shape"):
        estimator.init([0] * (estimator.model.nstates + 1), data["initial_cov"].values)
