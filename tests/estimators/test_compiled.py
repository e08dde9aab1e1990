"""Two speeds, one filter: straight-line code on floats and arrays, and tensors, give the same numbers."""

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants
from tests.tolerances import TWO_SPEEDS

KINDS = {
    "EKF": est.ExtendedKalmanFilter,
    "UKF": est.UnscentedKalmanFilter,
    "UKF, Merwe": lambda *a, **k: est.UnscentedKalmanFilter(*a, alpha=0.5, beta=2.0, kappa=1.0, **k),
    "CKF": est.CubatureKalmanFilter,
}


def on_tensors(estimator):
    """Make the same filter without straight-line code."""
    estimator._rules = lambda: None
    return estimator


@pytest.mark.parametrize("plant", sorted(plants.SCENARIOS))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("gate", [None, 0.95])
def test_batch_one_trajectory_and_tensors_agree(plant, kind, gate):
    setting = plants.scenario(plant)
    data = setting.simulate(120, 25, seed=1)
    data["y"][1, 4:9, 0] = np.nan
    data["y"][2, 7] = np.nan
    fast, slow = (KINDS[kind](setting.model, setting.noise, gate=gate) for _ in range(2))
    found, truth = est.run(fast, data), est.run(on_tensors(slow), data)
    assert any(fast._programs.values()), "this plant is small enough for straight-line code"
    alone = est.run(KINDS[kind](setting.model, setting.noise, gate=gate), data.isel(trajectory=[1]))
    _, u, y = plants.to_tensors(data)
    state, steps = fast.init(data["initial_mean"].values, data["initial_cov"].values), []
    for k in range(25):
        state, estimate = fast.step(state, u[1, k], y[1, k])
        steps.append(estimate)
    for name in truth.data_vars:
        scale = np.abs(truth[name].values).max()
        np.testing.assert_allclose(found[name], truth[name], rtol=0, atol=TWO_SPEEDS * scale)
        np.testing.assert_allclose(alone[name][0], truth[name][1], rtol=0, atol=TWO_SPEEDS * scale)
        streamed = torch.stack([getattr(estimate, name) for estimate in steps])
        np.testing.assert_allclose(streamed, truth[name][1], rtol=0, atol=TWO_SPEEDS * scale)


def test_predict_and_correct_of_one_trajectory_agree_too():
    setting = plants.scenario("quadruple_tank")
    fast = est.ExtendedKalmanFilter(setting.model, setting.noise)
    slow = on_tensors(est.ExtendedKalmanFilter(setting.model, setting.noise))
    one = two = fast.init(setting.model.operating_region.state_centre, [1.0] * 4)
    u = setting.model.operating_region.input_centre
    for k, (y, settings) in enumerate(
        (
            ([12.0, 13.0], {}),
            ([12.5, np.nan], {}),
            ([13.0], {"sensor": "level2"}),
            ([12.0, 12.0], {"R": [[0.3, 0.1], [0.1, 0.2]]}),
        )
    ):
        one, two = fast.correct(one, y, u, **settings), slow.correct(two, y, u, **settings)
        more = {"dt": 1.0 + k} if k != 2 else {"Q": 0.01 * np.ones((4, 4))}
        one, two = fast.predict(one, u, **more), slow.predict(two, u, **more)
        torch.testing.assert_close(one.mean, two.mean, rtol=TWO_SPEEDS, atol=TWO_SPEEDS)
        torch.testing.assert_close(one.cov, two.cov, rtol=TWO_SPEEDS, atol=TWO_SPEEDS)


@pytest.mark.parametrize("kind", ["EKF", "UKF"])
def test_a_filter_is_differentiable(kind):
    """Likelihood of a record by the deviations of the noise and by the start, against central differences."""
    setting = plants.scenario("pendulum")
    data = setting.simulate(3, 20, seed=0)
    _, u, y = plants.to_tensors(data)
    estimator = KINDS[kind](setting.model, setting.noise)
    mean, cov = data["initial_mean"].values, data["initial_cov"].values

    def likelihood(point):
        trial = estimator.with_factors(
            point[:2].exp()[:, None] * estimator._process_factor, point[2:3].exp()[:, None] * estimator._noise_factor
        )
        state = estimator.init(np.tile(mean, (3, 1)), cov)
        return trial.estimate_sequence(state._replace(mean=state.mean + point[3:]), u, y).log_likelihood.sum()

    point = torch.tensor([0.1, -0.2, 0.1, 0.05, -0.1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(likelihood(point), point)
    with torch.no_grad():
        moves = 1e-5 * torch.eye(5, dtype=torch.float64)
        differences = [(likelihood(point + m) - likelihood(point - m)).item() / 2e-5 for m in moves]
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-6)


def test_a_filter_with_another_correction_is_not_replaced():
    """A subclass that changes the arithmetic must get its own arithmetic."""

    class Doubting(est.ExtendedKalmanFilter):
        def _correct(self, state, u, y, noise):
            return super()._correct(state, u, y, 2 * noise)

    setting = plants.scenario("pendulum")
    data = setting.simulate(2, 10, seed=0)
    found = est.run(Doubting(setting.model, setting.noise), data)
    right = est.run(
        est.ExtendedKalmanFilter(setting.model, Q=setting.noise.process_cov, R=4 * setting.noise.measurement_cov), data
    )
    np.testing.assert_allclose(found["filtered"], right["filtered"], rtol=1e-9, atol=1e-12)


def test_a_plant_of_many_states_goes_through_tensors():
    n = 30
    system = ct.ss(0.9 * np.eye(n), np.ones((n, 1)), np.eye(n)[:2], np.zeros((2, 1)), 1.0)
    model = plants.discretize(system)
    noise = plants.GaussianNoise(0.1 * np.eye(n), np.eye(2))
    estimator = est.KalmanFilter(model, noise)
    data = plants.simulate(model, trajectories=2, steps=5, noise=noise, seed=0)
    assert np.isfinite(est.run(estimator, data)["filtered"]).all()
    assert not any(estimator._programs.values())
