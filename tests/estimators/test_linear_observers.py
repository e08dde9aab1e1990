"""Luenberger observers, moving-horizon estimation, observability: against closed forms and the Kalman filter."""

import control as ct
import numpy as np
import pytest
import scipy.optimize
import torch

import estimators as est
import plants
from tests.tolerances import EQUAL_FILTERS


def linear():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2, 2))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    model = plants.discretize(ct.ss(A, rng.normal(size=(2, 1)), [[1.0, 0.3]], [[0.2]], 1.0))
    return model, plants.GaussianNoise([0.1, 0.2], [0.3])


class TestLuenberger:
    def test_from_noise_is_the_kalman_filter_once_that_is_stationary(self):
        model, noise = linear()
        data = plants.simulate(model, trajectories=3, steps=120, noise=noise, seed=0)
        found = est.run(est.LuenbergerObserver.from_noise(model, noise), data)
        right = est.run(est.KalmanFilter(model, noise), data)
        for kind in ("predicted", "filtered"):
            np.testing.assert_allclose(found[kind][:, 80:], right[kind][:, 80:], atol=EQUAL_FILTERS)

    def test_the_error_decays_with_the_poles_that_were_placed(self):
        model, _ = linear()
        observer = est.LuenbergerObserver.from_poles(model, [0.5, 0.4])
        data = plants.simulate(model, trajectories=1, steps=12, seed=0)
        start = data["x"].values[0, 0] + [1.0, -2.0]
        error = est.run(observer, data, x0=start)["predicted"].values[0] - data["x"].values[0]
        A, _, C, _ = model.matrices
        closed = A - observer.gain.numpy() @ C
        np.testing.assert_allclose(np.sort(np.linalg.eigvals(closed).real), [0.4, 0.5], atol=1e-9)
        expected = np.array([np.linalg.matrix_power(closed, k) @ [1.0, -2.0] for k in range(12)])
        np.testing.assert_allclose(error, expected, atol=1e-10)
        assert observer.step(observer.init([0.0, 0.0]), [0.0], [1.0])[1].filtered is None

    def test_poles_with_the_same_real_part_are_placed(self):
        rng = np.random.default_rng(1)
        A = 0.5 * rng.normal(size=(4, 4))
        model = plants.discretize(ct.ss(A, np.zeros((4, 1)), rng.normal(size=(2, 4)), np.zeros((2, 1)), 1.0))
        poles = np.array([0.5 + 0.3j, 0.5 - 0.3j, 0.5 + 0.1j, 0.5 - 0.1j])
        closed = A - est.LuenbergerObserver.from_poles(model, poles).gain.numpy() @ model.matrices[2]
        np.testing.assert_allclose(np.poly(closed), np.poly(poles), atol=1e-8)

    def test_units_do_not_matter_to_the_placement(self):
        """Field case O12: states of 1e-9 beside 1e6."""
        region = {"x[0]": (-5e-9, 5e-9), "x[1]": (-5e6, 5e6)}
        system = ct.ss([[0.9, 2e-16], [-1e14, 0.95]], [[0], [0]], [[1e9, 0]], 0, 1.0)
        model = plants.discretize(system, operating_region=region)
        observer = est.LuenbergerObserver.from_poles(model, [0.680506654049, 0.746966926040])
        right = [4.225264199116e-10, 1.735803122016e5]  # the predictor gain of the field case
        np.testing.assert_allclose(observer.gain[:, 0], right, rtol=1e-6)

    def test_a_missing_channel_changes_nothing_and_angles_wrap(self):
        setting = plants.scenario("pendulum")
        observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
        state = observer.init([3.1, 0.0])
        _, without = observer.step(state, [0.0], [np.nan])
        torch.testing.assert_close(without.filtered, without.predicted)
        _, across = observer.step(state, [0.0], [-3.1])
        assert abs(across.filtered[0]) > 3.0  # the short way, 0.08 rad

    def test_bad_input(self):
        model, noise = linear()
        with pytest.raises(ValueError, match=r"gain must be \(2, 1\)"):
            est.LuenbergerObserver(model, [[1.0, 2.0]])
        with pytest.raises(ValueError, match="form must be"):
            est.LuenbergerObserver(model, [[1.0], [2.0]], form="both")
        with pytest.raises(ValueError, match="inside the unit circle"):
            est.LuenbergerObserver.from_poles(model, [0.5, 1.1])
        with pytest.raises(TypeError, match="model must be a StateSpaceModel"):
            est.LuenbergerObserver(None, [[1.0]])
        hidden = plants.discretize(ct.ss([[0.9, 0], [0, 0.8]], [[0], [0]], [[1, 0]], 0, 1.0))
        with pytest.raises(ValueError, match="is the plant observable"):
            est.LuenbergerObserver.from_poles(hidden, [0.5, 0.4])
        undetectable = plants.discretize(ct.ss([[1.1, 0], [0, 0.5]], [[0], [0]], [[0, 1]], 0, 1.0))
        with pytest.raises(ValueError, match="Riccati"):
            est.LuenbergerObserver.from_noise(undetectable, noise)


class TestMovingHorizon:
    def test_is_the_kalman_filter_of_a_linear_plant(self):
        model, noise = linear()
        data = plants.simulate(model, trajectories=2, steps=15, noise=noise, seed=1)
        data["y"][0, 3, 0] = np.nan
        right = est.run(est.KalmanFilter(model, noise), data, x0=[0, 0], P0=[1, 1])
        found = est.run(est.MovingHorizonEstimator(model, noise, horizon=5), data, x0=[0, 0], P0=[1, 1])
        for kind in ("predicted", "filtered"):
            np.testing.assert_allclose(found[kind], right[kind], atol=1e-8)

    def test_a_growing_window_is_the_most_likely_trajectory(self):
        """Before the window is full: against a direct minimisation over the whole record."""
        setting = plants.scenario("van_der_pol")
        model, noise = setting.model, setting.noise
        data = setting.simulate(1, 6, seed=0)
        found = est.run(est.MovingHorizonEstimator(model, noise, horizon=10), data)["filtered"].values[0, -1]
        _, u, y = plants.to_tensors(data)
        mean, P0 = data["initial_mean"].values, data["initial_cov"].values
        roots = [np.linalg.inv(np.linalg.cholesky(c)) for c in (P0, noise.process_cov, noise.measurement_cov)]

        def residuals(z):
            x = torch.from_numpy(z.reshape(6, 2))
            ahead = (x[1:] - model.step(x[:-1], u[0, :-1])).numpy()
            out = (y[0] - model.output(x, u[0])).numpy()
            return np.concatenate([roots[0] @ (z[:2] - mean), np.ravel(ahead @ roots[1].T), np.ravel(out @ roots[2].T)])

        best = scipy.optimize.least_squares(residuals, data["x"].values.ravel(), xtol=1e-12, ftol=1e-14)
        np.testing.assert_allclose(found, best.x[-2:], atol=1e-6)

    def test_bounds_keep_the_estimate_inside_and_help_where_they_are_true(self):
        """A level that cannot be negative, near empty."""
        system = ct.nlsys(
            lambda t, x, u, p: [0.9 * x[0] + 0.1 * x[1] + 0.05, 0.8 * x[1] + 0.02],
            lambda t, x, u, p: [x[0]],
            states=["a", "b"], inputs=0, outputs=1, dt=1.0,
        )  # fmt: skip
        model = plants.discretize(system)
        noise = plants.GaussianNoise([1e-3, 1e-3], [0.5])
        data = plants.simulate(model, trajectories=10, steps=15, noise=noise, seed=0, initial_mean=[0.3, 0.1],
                               initial_cov=[1e-3, 1e-3])  # fmt: skip
        start = {"x0": [0.3, 0.1], "P0": [0.5, 0.5]}
        free, kept = (
            est.run(est.MovingHorizonEstimator(model, noise, horizon=4, bounds=b), data, **start)["filtered"].values
            for b in (None, {"a": (0, None), "b": (0, None)})
        )
        truth = data["x"].values
        assert free.min() < 0 <= kept.min()
        assert np.square(kept - truth).mean() < np.square(free - truth).mean()

    def test_bad_input(self):
        model, noise = linear()
        with pytest.raises(ValueError, match="horizon must be a positive integer"):
            est.MovingHorizonEstimator(model, noise, horizon=0)
        with pytest.raises(ValueError, match="process_cov must be positive definite"):
            est.MovingHorizonEstimator(model, plants.GaussianNoise([0.1, 0.0], [0.3]))
        with pytest.raises(ValueError, match="P0 must be positive definite"):
            est.MovingHorizonEstimator(model, noise).init([0.0, 0.0], [1.0, 0.0])


class TestObservability:
    def test_equals_the_gramian_of_a_linear_plant(self):
        model, _ = linear()
        A, _, C, _ = model.matrices
        found = est.observability(model, steps=20, state_scale=[1.0, 1.0], output_scale=[1.0])
        rows = [C @ np.linalg.matrix_power(A, k) for k in range(20)]
        right = sum(r.T @ r for r in rows) / 20
        np.testing.assert_allclose(found.gramian, right, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.singular_values**2, np.linalg.eigvalsh(right)[::-1], rtol=1e-8)
        assert found.rank == 2 and not found.unobservable

    def test_o12_units_do_not_hide_a_state(self):
        region = {"x[0]": (-5e-9, 5e-9), "x[1]": (-5e6, 5e6)}
        system = ct.ss([[0.9, 2e-16], [-1e14, 0.95]], [[0], [0]], [[1e9, 0]], 0, 1.0)
        assert np.linalg.matrix_rank(ct.obsv(system.A, system.C)) == 1  # the trap
        found = est.observability(plants.discretize(system, operating_region=region))
        assert found.rank == 2 and found.singular_values[1] > 0.1 * found.singular_values[0]

    def test_names_what_cannot_be_seen(self):
        system = ct.ss(
            [[0.9, 0, 0], [0, 0.8, 0.1], [0, 0, 0.7]], np.zeros((3, 1)), [[1, 0, 0]], 0, 1.0, states=["a", "b", "c"]
        )
        found = est.observability(plants.discretize(system))
        assert found.rank == 1
        assert set(found.unobservable) == {"b", "c"}
        assert found.unobservable["b"] == pytest.approx(1.0)

    def test_depends_on_where_a_nonlinear_plant_is(self):
        """y = x^2 shows nothing of x at 0, to first order."""
        system = ct.nlsys(lambda t, x, u, p: [x[0]], lambda t, x, u, p: [x[0] ** 2], states=1, inputs=0, outputs=1,
                          dt=1.0)  # fmt: skip
        model = plants.discretize(system)
        scales = {"steps": 3, "output_scale": [1.0]}
        assert est.observability(model, [1.0], **scales).singular_values[0] == pytest.approx(2.0)
        assert est.observability(model, [0.0], **scales).singular_values[0] < 1e-12

    def test_bad_input(self):
        model, _ = linear()
        with pytest.raises(ValueError, match="steps must be a positive integer"):
            est.observability(model, steps=0)
        with pytest.raises(ValueError, match="perturbation must be positive"):
            est.observability(model, perturbation=0)
        with pytest.raises(ValueError, match="state_scale must be positive"):
            est.observability(model, state_scale=[1.0, 0.0])
        with pytest.raises(ValueError, match="output_scale must be positive"):
            est.observability(model, output_scale=[0.0])
        with pytest.raises(ValueError, match=r"u \(1,\) or \(50, 1\)"):
            est.observability(model, u=np.zeros((3, 1)))
