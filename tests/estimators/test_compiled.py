"""Two speeds, one filter: straight-line code on floats and arrays, and tensors, give the same numbers."""

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants
from tests.small_plants import SMALL
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


@pytest.mark.parametrize("plant", sorted(SMALL))
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


def discrete(update, output=None, states=2, inputs=0, outputs=2, **settings):
    return plants.discretize(
        ct.nlsys(update, output, states=states, inputs=inputs, outputs=outputs, dt=1.0), **settings
    )


@pytest.mark.parametrize(
    "update",
    [
        lambda t, x, u, p: [x[1], -x[0] - 2 * (1.0 * (x[0] > 0) + 1.0 * (x[1] > 0))],
        lambda t, x, u, p: [x[1], np.where(np.logical_not(t > 0.5), 1.0, 0.0) + 0.5 * x[0]],
        lambda t, x, u, p: [x[1], np.where(t > 0.5, 1.0 / t, 5.0) + 0.5 * x[0]],
        lambda t, x, u, p: [x[0] + 0.1 * x[1], x[1] - 0.1 * np.linalg.norm(x[1]) * x[1]],
        lambda t, x, u, p: [0.9 * x[0] * (x[0] > 0) + float(x[1] > 0), x[1]],
        lambda t, x, u, p: [np.copysign(x[0], 0.0 * x[1]), x[1]],
    ],
    ids=["comparisons as numbers", "logic of time", "division by time", "norm at rest", "float of truth", "copysign"],
)
def test_awkward_plants_agree_with_tensors_alone_and_in_a_batch(update):
    model = discrete(update)
    noise = plants.GaussianNoise([0.1, 0.1], [0.1, 0.1])
    y = np.random.default_rng(0).normal(size=(150, 4, 2))
    data = plants.from_arrays(model, y=y)
    for start in ([0.5, 0.5], [0.0, 0.0]):
        fast, slow = est.ExtendedKalmanFilter(model, noise), on_tensors(est.ExtendedKalmanFilter(model, noise))
        found, right = (est.run(f, data, x0=start, P0=[0.1, 0.1]) for f in (fast, slow))
        alone = est.run(fast, data.isel(trajectory=[0]), x0=start, P0=[0.1, 0.1])
        for name in right.data_vars:
            assert np.isfinite(right[name]).all()
            np.testing.assert_allclose(found[name], right[name], rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(alone[name][0], right[name][0], rtol=1e-10, atol=1e-10)


def test_a_plant_whose_truths_numpy_adds_by_logic_is_not_recorded():
    """True + True is True for NumPy, 2 for a float: left to the function itself."""
    model = discrete(lambda t, x, u, p: [x[1], (x[0] > 0.8) + (x[1] > 0.8) - 0.1 * x[0]])
    assert model.recorded is None
    np.testing.assert_allclose(model.step([0.9, 0.9]), [0.9, 1 - 0.09])


def test_a_factor_that_is_not_triangular_is_a_factor_all_the_same():
    model = discrete(lambda t, x, u, p: [x[0] + 0.1 * x[1], 0.9 * x[1]], lambda t, x, u, p: [x[0]], outputs=1)
    estimator = est.ExtendedKalmanFilter(model, Q=[0.1, 0.1], R=[0.1])
    P = np.array([[1, 0.8], [0.8, 2]])
    values, vectors = np.linalg.eigh(P)
    symmetric = torch.from_numpy(vectors * np.sqrt(values) @ vectors.T)
    right = estimator.correct(estimator.init([0.0, 0.0], P), [1.0])
    found = estimator.correct(estimator.init([0.0, 0.0], P)._replace(factor=symmetric), [1.0])
    torch.testing.assert_close(found.cov, right.cov)
    data = plants.from_arrays(model, y=np.ones((60, 3, 1)))
    _, u, y = plants.to_tensors(data)
    one, two = (
        estimator.estimate_sequence(estimator.init(np.zeros((60, 2)), P)._replace(factor=f.expand(60, 2, 2)), u, y)
        for f in (symmetric, torch.linalg.cholesky(torch.from_numpy(P)))
    )
    torch.testing.assert_close(one.filtered_cov, two.filtered_cov)


def test_settings_changed_after_use_and_overridden_arithmetic_count():
    setting = plants.scenario("pendulum")

    class Larger(est.ExtendedKalmanFilter):
        def _predict(self, state, u, process, model):
            following = super()._predict(state, u, process, model)
            return following._replace(factor=2 * following.factor)

    plain, later = (est.ExtendedKalmanFilter(setting.model, setting.noise) for _ in range(2))
    larger = Larger(setting.model, setting.noise)
    state = plain.init([0.1, 0.2], [0.1, 0.1])
    first = later.step(state, [0.0], [0.1])[0]
    torch.testing.assert_close(first.cov, plain.step(state, [0.0], [0.1])[0].cov)
    later.inflation = 4.0
    torch.testing.assert_close(later.step(state, [0.0], [0.1])[0].cov, first.cov * 4.0**setting.model.dt)
    torch.testing.assert_close(larger.step(state, [0.0], [0.1])[0].cov, 4 * first.cov)


def test_gradients_by_a_measurement_and_an_input_are_kept():
    setting = plants.scenario("pendulum")
    estimator = est.ExtendedKalmanFilter(setting.model, setting.noise)
    y, u = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.1))
    following, _ = estimator.step(estimator.init([0.1, 0.2], [0.1, 0.1]), u, y)
    slopes = torch.autograd.grad(following.mean.sum(), (y, u))
    assert all(float(s.abs()) > 0 for s in slopes)


def test_a_gate_does_not_hide_a_singular_innovation():
    model = discrete(lambda t, x, u, p: [x[0]], states=1, outputs=1)
    estimator = est.ExtendedKalmanFilter(model, Q=[0.0], R=[0.0], gate=0.99)
    with pytest.raises(ValueError, match="innovation covariance is singular"):
        estimator.step(estimator.init([0.0], [0.0]), None, [1.0])
    with pytest.raises(ValueError, match="at time step 0: the innovation covariance is singular"):
        est.run(estimator, plants.from_arrays(model, y=np.ones((60, 3, 1))), x0=[0.0], P0=[0.0])


def test_covariances_that_die_out_stay_finite():
    """A damped mode without noise beside one with: after hundreds of steps its factor is beyond the smallest square."""
    model = plants.discretize(ct.ss([[0.5, 0, 0], [1, 1, 0], [0, 0, 0.9]], np.zeros((3, 1)), [[0, 1, 1]], 0, 1.0))
    estimator = est.KalmanFilter(model, Q=[0, 0, 0.01], R=[0.1])
    data = plants.from_arrays(model, y=np.zeros((1, 1500, 1)), u=np.zeros((1, 1500, 1)))
    found = est.run(estimator, data, x0=[0, 0, 0], P0=[1, 1, 1])
    assert np.isfinite(found["filtered_cov"]).all()
    right = est.steady_state([[0.9]], [[1]], [[0.01]], [[0.1]]).posterior_cov[0, 0]
    assert found["filtered_cov"][0, -1, 2, 2] == pytest.approx(right, rel=0.05)


def test_steps_of_ever_new_length_make_no_code():
    setting = plants.scenario("pendulum")
    estimator = est.ExtendedKalmanFilter(setting.model, setting.noise)
    state = estimator.init([0.1, 0.2], [0.1, 0.1])
    for dt in np.random.default_rng(0).uniform(0.01, 0.1, 200).tolist():
        estimator.predict(state, [0.0], dt=dt)
    assert len(estimator._programs) <= 70 and not any(not isinstance(p, int) for p in estimator._programs.values())
    for _ in range(5):
        estimator.predict(state, [0.0], dt=0.0125)
    assert any(not isinstance(p, int) for p in estimator._programs.values())


@pytest.mark.parametrize("varying", [False, True])
def test_batches_of_any_shape_agree_with_tensors(varying):
    """Beliefs, records and covariances whose leading dimensions broadcast against each other."""
    setting = plants.scenario("pendulum")
    data = setting.simulate(30, 6, seed=0)
    _, u, y = plants.to_tensors(data)
    fast = est.ExtendedKalmanFilter(setting.model, setting.noise)
    slow = on_tensors(est.ExtendedKalmanFilter(setting.model, setting.noise))
    scale, settings = 1 + np.arange(3.0), {}
    if varying:
        growing = scale[:, None] * (1 + np.arange(6.0))
        settings["R"] = growing[:, None, :, None, None] * setting.noise.measurement_cov
        settings["Q"] = scale[:, None, None, None, None] * np.tile(setting.noise.process_cov, (6, 1, 1))
    else:
        process = torch.from_numpy(scale)[:, None, None, None] * fast._process_factor
        fast, slow = (f.with_factors(process, f._noise_factor) for f in (fast, slow))
        on_tensors(slow)
    state = fast.init(torch.zeros(30, 2), [1.0, 1.0])
    found, right = (f.estimate_sequence(state, u, y, **settings) for f in (fast, slow))
    assert found.filtered.shape == (3, 30, 6, 2)
    for one, two in zip(found, right, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    single = fast.estimate_sequence(fast.init(torch.zeros(1, 2), [1.0, 1.0]), u[:1], y[:1], **settings)
    torch.testing.assert_close(single.filtered[:, 0], right.filtered[:, 0], rtol=1e-10, atol=1e-10)
