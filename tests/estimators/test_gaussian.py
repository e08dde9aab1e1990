import warnings

import control as ct
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from filterpy.kalman import KalmanFilter as FilterpyKalmanFilter

import estimators as est
import plants
from tests.small_plants import SMALL
from tests.tolerances import EQUAL_FILTERS, ROUNDING

FILTERS = [
    est.KalmanFilter,
    est.ExtendedKalmanFilter,
    est.UnscentedKalmanFilter,
    est.IteratedExtendedKalmanFilter,
    est.CubatureKalmanFilter,
]


def random_linear(seed, nx=3, nu=2, ny=2):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(nx, nx))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    B, C, D = rng.normal(size=(nx, nu)), rng.normal(size=(ny, nx)), rng.normal(size=(ny, nu))
    q, r = rng.normal(size=(nx, nx)), rng.normal(size=(ny, ny))
    return A, B, C, D, q @ q.T, r @ r.T + 0.1 * np.eye(ny)


@pytest.mark.parametrize("seed", range(5))
def test_filters_agree_with_filterpy_on_a_linear_plant(seed):
    A, B, C, D, Q, R = random_linear(seed)
    model = plants.discretize(ct.ss(A, B, C, D, 1.0))
    data = plants.simulate(model, trajectories=1, steps=50, seed=seed, noise=plants.GaussianNoise(Q, R))
    _, u, y = plants.to_tensors(data)
    oracle = FilterpyKalmanFilter(dim_x=3, dim_z=2, dim_u=2)
    oracle.F, oracle.B, oracle.H, oracle.Q, oracle.R, oracle.P, oracle.x = (
        A,
        B,
        C,
        Q,
        R,
        2.0 * np.eye(3),
        np.zeros((3, 1)),
    )
    right = []
    for uk, yk in zip(u[0].numpy(), y[0].numpy(), strict=True):
        predicted = oracle.x[:, 0].copy(), oracle.P.copy()
        oracle.update((yk - D @ uk)[:, None])  # filterpy has no feedthrough: it is taken off the measurement
        right.append((*predicted, oracle.x[:, 0].copy(), oracle.P.copy()))
        oracle.predict(uk[:, None])
    for filter_class in FILTERS:
        estimate = est.run(filter_class(model, Q=Q, R=R), data, x0=np.zeros(3), P0=2.0 * np.eye(3))
        for name, values in zip(
            ("predicted", "predicted_cov", "filtered", "filtered_cov"), zip(*right, strict=True), strict=True
        ):
            np.testing.assert_allclose(estimate[name].values[0], values, rtol=EQUAL_FILTERS, atol=EQUAL_FILTERS)


@pytest.mark.parametrize("filter_class", FILTERS[1:])
def test_batch_equals_loop_and_step_changes_nothing(filter_class):
    setting = plants.scenario("pendulum")
    estimator, data = filter_class(setting.model, setting.noise), setting.simulate(5, 15, seed=0)
    together = est.run(estimator, data)
    for i in range(5):
        alone = est.run(estimator, data.isel(trajectory=[i]))
        np.testing.assert_allclose(
            together["filtered"].values[i], alone["filtered"].values[0], rtol=1e-10, atol=1e-12
        )  # batched LAPACK may order sums differently
    state = estimator.init([0.1, 0.2], [1, 1])
    before = [part.clone() for part in state[:2]]
    estimator.step(state, [0.5], [0.3])
    for part, copy in zip(state[:2], before, strict=True):
        torch.testing.assert_close(part, copy, rtol=0, atol=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000), st.floats(-6, 6))
def test_covariance_stays_symmetric_positive_semidefinite(nx, ny, seed, exponent):
    A, B, C, D, Q, R = random_linear(seed, nx, 1, ny)
    scale = 10.0 ** np.random.default_rng(seed).uniform(-abs(exponent), abs(exponent), nx)
    model = plants.discretize(ct.ss(A * scale[:, None] / scale, B * scale[:, None], C / scale, D, 1.0))
    for filter_class in FILTERS:
        estimator = filter_class(model, Q=Q * np.outer(scale, scale), R=R)
        state = estimator.init(np.zeros(nx), 1e3 * scale**2)
        for _ in range(20):
            state, estimate = estimator.step(state, [0.0], np.zeros(ny))
            for cov in (estimate.predicted_cov, estimate.filtered_cov):
                torch.testing.assert_close(cov, cov.mT, rtol=0, atol=0)
                unit = cov.diagonal().clamp_min(1e-300).sqrt()
                assert torch.linalg.eigvalsh(cov / torch.outer(unit, unit))[0] > -1e-12


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("filter_class", FILTERS[1:])
def test_filters_are_consistent_where_model_and_noise_are_right_and_only_there(name, filter_class):
    """NEES within the 99 % band of a mean over trajectories, at each time after 20 samples; outside with R wrong by 4x.

    Before that a linearisation has to live with the spread of the start: measured, the extended filters of the two
    plants with Coulomb friction and a sensor far sharper than the start are inconsistent there, by 1.2 to 1.5.
    """
    setting = plants.scenario(name)
    data = setting.simulate(200, 100, seed=3)

    def settled(noise):
        found = est.consistency(filter_class(setting.model, noise), data)
        low, high = found.attrs["nees_band"]
        values = found["nees"].values[:, 20:].mean(0) / setting.model.nstates
        return values.mean(), np.mean((low <= values) & (values <= high))

    mean, inside = settled(setting.noise)
    assert abs(mean - 1) < 0.1 and inside > 0.9
    for factor in (0.25, 4.0):
        mean, inside = settled(plants.GaussianNoise(setting.noise.process_cov, factor * setting.noise.measurement_cov))
        assert abs(mean - 1) > 0.1 and inside < 0.7


def test_missing_input_and_measurement_only_predict():
    setting = plants.scenario("van_der_pol")
    ekf = est.ExtendedKalmanFilter(setting.model, setting.noise)
    state = ekf.init([1.0, 0.5], [0.1, 0.1])
    after, estimate = ekf.step(state, None, [np.nan])
    torch.testing.assert_close(estimate.filtered, state.mean, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(after.mean, setting.model.step(state.mean), rtol=ROUNDING, atol=ROUNDING)


class TestBadInput:
    MODEL, NOISE = plants.scenario("pendulum").model, plants.scenario("pendulum").noise

    def test_noise_is_given_once_and_fits(self):
        with pytest.raises(ValueError, match="either noise="):
            est.ExtendedKalmanFilter(self.MODEL)
        with pytest.raises(ValueError, match="either noise="):
            est.ExtendedKalmanFilter(self.MODEL, self.NOISE, Q=[1, 1], R=[1])
        with pytest.raises(ValueError, match=r"Q must be a scalar"):
            est.ExtendedKalmanFilter(
                self.MODEL, Q=np.ones((10, 2, 2)), R=[1]
            )  # a sequence is refused, not truncated (O10)
        with pytest.raises(ValueError, match="R must be positive semidefinite"):
            est.ExtendedKalmanFilter(self.MODEL, Q=[1, 1], R=[[-1.0]])
        with pytest.raises(TypeError, match="StateSpaceModel"):
            est.ExtendedKalmanFilter(plants.pendulum(), self.NOISE)

    def test_start(self):
        ekf = est.ExtendedKalmanFilter(self.MODEL, self.NOISE)
        with pytest.raises(ValueError, match="P0 is missing"):
            ekf.init([0, 0])
        with pytest.raises(ValueError, match=r"x0 must have shape \(\.\.\., 2\)"):
            ekf.init([0, 0, 0], [1, 1])
        with pytest.raises(ValueError, match="x0 must be finite"):
            ekf.init([0, np.nan], [1, 1])

    def test_samples(self):
        ekf = est.ExtendedKalmanFilter(self.MODEL, self.NOISE)
        state = ekf.init([0, 0], [1, 1])
        with pytest.raises(ValueError, match=r"y must have shape \(\.\.\., 1\)"):
            ekf.step(state, [0], [0, 0])
        with pytest.raises(ValueError, match="u is missing"):
            ekf.step(state, None, [0])
        with pytest.raises(ValueError, match="u must be finite"):
            ekf.step(state, [np.nan], [0])
        with pytest.raises(ValueError, match="infinite"):
            ekf.step(state, [0], [np.inf])

    def test_linear_filter_of_a_nonlinear_plant(self):
        with pytest.raises(TypeError, match="not linear"):
            est.KalmanFilter(self.MODEL, self.NOISE)

    def test_singular_innovation_is_named(self):
        model = plants.discretize(ct.ss([[1.0]], [[0]], [[1]], 0, 1.0))
        kf = est.KalmanFilter(model, Q=[[0.0]], R=[[0.0]])
        state = kf.correct(kf.init([0.0], [1.0]), [1.0], [0.0])
        with pytest.raises(ValueError, match="innovation covariance is singular"):
            kf.correct(state, [1.0], [0.0])

    def test_undetectable_plant(self):
        with pytest.raises(ValueError, match="Riccati"):
            est.steady_state([[1.1, 0], [0, 0.5]], [[0, 1]], np.eye(2), [[1.0]])

    def test_divergence_is_reported(self):
        system = ct.nlsys(
            lambda t, x, u, p: [x[0] + x[0] ** 3],
            lambda t, x, u, p: [0 * x[0]],
            inputs=0,
            outputs=1,
            states=1,
            dt=1,
            name="escaping",
        )
        model = plants.discretize(system)
        data = plants.from_arrays(model, y=np.zeros((2, 30, 1)))
        with pytest.warns(UserWarning, match=r"diverged on 2 of 2 trajectories, first on trajectory 0 at time step"):
            est.run(est.ExtendedKalmanFilter(model, Q=[1.0], R=[1.0]), data, x0=[2.0], P0=[1.0])

    def test_sigma_point_parameters(self):
        for wrong, message in (({"alpha": 0}, "alpha"), ({"beta": -0.5}, "beta"), ({"kappa": -2}, "kappa")):
            with pytest.raises(ValueError, match=message):
                est.UnscentedKalmanFilter(self.MODEL, self.NOISE, **wrong)
