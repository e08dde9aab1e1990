"""Real failures of other libraries, with right values from independent paths.

The paths are exact rational or 60-digit recursions and closed forms.
"""

from typing import ClassVar

import control as ct
import numpy as np
import pytest
import scipy.linalg
import torch

import estimators as est
import plants
from estimators.metrics import errors
from tests.tolerances import FIELD_CASE

FILTERS = [
    est.KalmanFilter,
    est.ExtendedKalmanFilter,
    est.IteratedExtendedKalmanFilter,
    est.UnscentedKalmanFilter,
    est.CubatureKalmanFilter,
]


def linear(F, H, dt=1.0, B=None, D=None, **settings):
    n, m = np.atleast_2d(F).shape[0], np.atleast_2d(H).shape[0]
    if B is None:  # python-control 0.10 cannot build a StateSpace without inputs: an input that does nothing
        B, D = np.zeros((n, 1)), np.zeros((m, 1))
    return plants.discretize(ct.ss(F, B, H, D, dt), **settings)


def run(estimator, x0, P0, measurements, predict_first=True, u=None):
    """Predict, then correct, at every measurement; means and covariances after each correction."""
    state, means, covariances = estimator.init(x0, P0), [], []
    for k, y in enumerate(measurements):
        now = [0.0] if u is None else [u[k]]
        if predict_first:
            state = estimator.predict(state, now)
        state = estimator.correct(state, np.atleast_1d(y), now)
        means.append(state.mean.numpy())
        covariances.append(state.cov.numpy())
    return np.array(means), np.array(covariances)


class TestO1SigmaPointsAfterProcessNoise:
    F, Q, H = [[1, 1], [0, 1]], [[0.125, 0.25], [0.25, 0.5]], [[1, 0]]
    X: ClassVar = [4.0041036304363, 0.930951938137464]
    P: ClassVar = [[0.723896418895864, 0.408686407755016], [0.408686407755016, 0.639944747974298]]

    @pytest.mark.parametrize(
        "make",
        [
            lambda m, **k: est.KalmanFilter(m, **k),
            lambda m, **k: est.ExtendedKalmanFilter(m, **k),
            lambda m, **k: est.UnscentedKalmanFilter(m, alpha=0.1, beta=2, kappa=1, **k),
            lambda m, **k: est.UnscentedKalmanFilter(m, alpha=1.0, **k),
        ],
    )
    def test_all_filters_agree_with_the_exact_kalman_filter(self, make):
        means, covariances = run(make(linear(self.F, self.H), Q=self.Q, R=[[1]]), [0, 0], [10, 4], [1.2, 1.9, 3.4, 3.9])
        np.testing.assert_allclose(means[-1], self.X, rtol=FIELD_CASE)
        np.testing.assert_allclose(covariances[-1], self.P, rtol=FIELD_CASE)

    def test_tiny_alpha_costs_digits_not_correctness(self):
        ukf = est.UnscentedKalmanFilter(linear(self.F, self.H), Q=self.Q, R=[[1]], alpha=1e-3, beta=2, kappa=1)
        means, covariances = run(ukf, [0, 0], [10, 4], [1.2, 1.9, 3.4, 3.9])
        np.testing.assert_allclose(means[-1], self.X, rtol=1e-5)  # the field case's own allowance for alpha = 1e-3
        np.testing.assert_allclose(covariances[-1], self.P, rtol=1e-5)


@pytest.mark.parametrize("filter_class", FILTERS)
def test_o2_heading_wraps(filter_class):
    model = plants.discretize(
        ct.ss([[1, 0.1], [0, 1]], [[0], [0]], [[1, 0]], 0, 0.1, states=["heading", "rate"], outputs=["compass"]),
        angle_states=["heading"],
        angle_outputs=["compass"],
    )
    rad = np.pi / 180
    estimator = filter_class(model, Q=np.diag([0.01, 0.1]) * rad**2, R=[[9 * rad**2]])
    means, covariances = run(
        estimator, np.array([173, 20]) * rad, np.array([4, 25]) * rad**2, np.array([-178, -174, 179]) * rad
    )
    right = [[177.248868778, 21.3197586727], [-178.770732117, 23.5247371698], [-177.66278949, 21.5474825926]]
    np.testing.assert_allclose(means / rad, right, rtol=FIELD_CASE)
    assert covariances[-1][0, 0] / rad**2 == pytest.approx(2.44465550051, rel=FIELD_CASE)


def test_o2_angular_error_is_the_short_way_round():
    model = plants.discretize(ct.ss([[1]], [[0]], [[1]], 0, 0.1, states=["heading"]), angle_states=["heading"])
    rad = np.pi / 180
    error = errors(model, np.array([[-179.9], [179.9]]) * rad, np.array([[179.9], [-179.9]]) * rad)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.00349066, rel=1e-5)  # six digits are given


class TestO3MissingChannel:
    Y = np.array([[0.6, 1.1], [1.1, np.nan], [np.nan, np.nan], [np.nan, 0.9], [2.4, 1.2]])

    @pytest.mark.parametrize("filter_class", FILTERS)
    def test_the_other_channel_is_used_with_its_share_of_R(self, filter_class):
        estimator = filter_class(linear([[1, 0.5], [0, 1]], np.eye(2)), Q=[0.02, 0.05], R=[[0.4, 0.1], [0.1, 0.3]])
        means, covariances = run(estimator, [0, 1], np.eye(2), self.Y)
        right = [
            [0.57851675903932, 1.0790973871734],
            [1.1083359846311, 1.0748774187066],
            [1.6457746939844, 1.0748774187066],
            [2.0858483125961, 0.98258799771433],
            [2.4793331244108, 1.0333116240577],
        ]
        np.testing.assert_allclose(means, right, rtol=FIELD_CASE)
        np.testing.assert_allclose(
            covariances[1], [[0.215427051762, 0.0934373149483], [0.0934373149483, 0.235240314137]], rtol=FIELD_CASE
        )
        np.testing.assert_allclose(
            covariances[4], [[0.255713316019, 0.0801478388334], [0.0801478388334, 0.110637067525]], rtol=FIELD_CASE
        )

    def test_the_observer_holds_the_last_value(self, trained_pair):
        observer, data = trained_pair
        _, u, y = plants.to_tensors(data)
        gappy, held = y.clone(), y.clone()
        gappy[:, 5:9] = torch.nan
        held[:, 5:9] = y[:, 4:5]
        x0 = data["initial_mean"].values * np.ones((len(y), 1))
        assert torch.isfinite(observer.estimate_sequence(observer.init(x0), u, gappy).predicted).all()
        # trained without gaps; while the start-up lasts, its filters correct nothing where nothing was measured
        start = observer.init(x0)._replace(startup=None)
        one, two = (observer.estimate_sequence(start, u, z) for z in (gappy, held))
        torch.testing.assert_close(one.predicted, two.predicted, rtol=0, atol=0)


class TestO4VaguePriorGoodSensor:
    @pytest.mark.parametrize("filter_class", FILTERS)
    def test_covariance_keeps_its_digits(self, filter_class):
        estimator = filter_class(linear([[1, 0.1], [0, 1]], [[1, 0]]), Q=[1e-4, 1e-4], R=[[1e-6]])
        means, covariances = run(estimator, [0, 0], [1e15, 1e15], [1.0, 1.1, 1.2, 1.3])
        np.testing.assert_allclose(means, [[1.0, 0.0990099009901], [1.1, 1.0], [1.2, 1.0], [1.3, 1.0]], rtol=FIELD_CASE)
        np.testing.assert_array_equal(covariances, covariances.transpose(0, 2, 1))
        assert covariances[1][1, 1] == pytest.approx(0.0103, rel=0.01)  # Joseph's form gives 0.156 here
        np.testing.assert_allclose(
            covariances[3], [[9.93537914e-7, 3.376517966e-6], [3.376517966e-6, 0.003510607811]], rtol=0.01
        )
        scaled = [np.linalg.eigvalsh(c / np.sqrt(np.outer(np.diag(c), np.diag(c))))[0] for c in covariances]
        assert min(scaled) >= -1e-15


class TestO5TimeBase:
    A, B, C = [[1, 0.1], [0, 0.9]], [[0], [1]], [[1, 0]]

    def ten_steps(self, model):
        x = torch.ones(2, dtype=torch.float64)
        for _ in range(10):
            x = model.step(x, [0.0])
        return x.numpy()

    def test_discrete_plant_steps(self):
        np.testing.assert_allclose(
            self.ten_steps(plants.discretize(ct.ss(self.A, self.B, self.C, 0, 0.1))),
            [1.6513215599, 0.3486784401],
            rtol=1e-9,
        )

    def test_continuous_plant_is_sampled_exactly(self):
        np.testing.assert_allclose(
            self.ten_steps(plants.discretize(ct.ss(self.A, self.B, self.C, 0), 0.1)),
            [2.976960545761, 2.459603111157],
            rtol=1e-9,
        )

    def test_true_takes_the_callers_sample_time(self):
        model = plants.discretize(ct.ss(self.A, self.B, self.C, 0, True), 0.1)
        np.testing.assert_allclose(self.ten_steps(model), [1.6513215599, 0.3486784401], rtol=1e-9)
        assert model.dt == 0.1
        assert "discrete" in repr(model)

    def test_none_asks(self):
        with pytest.raises(ValueError, match="does not say its sample time"):
            plants.discretize(ct.ss(self.A, self.B, self.C, 0, None))
        with pytest.warns(UserWarning, match="dt=None"):
            plants.discretize(ct.ss(self.A, self.B, self.C, 0, None), 0.1)

    def test_conflicting_sample_time_is_refused(self):
        with pytest.raises(ValueError, match=r"conflict with dt=0\.05"):
            plants.discretize(ct.ss(self.A, self.B, self.C, 0, 0.1), 0.05)
        with pytest.raises(ValueError, match="is continuous"):
            plants.discretize(ct.ss(self.A, self.B, self.C, 0))

    def test_ekf_uses_A_itself(self):
        A, *_ = plants.discretize(ct.ss(self.A, self.B, self.C, 0, 0.1)).linearize([1, 1], [0])
        np.testing.assert_array_equal(A, self.A)


def test_o6_short_pulse_is_seen_with_zero_order_hold():
    system = ct.nlsys(
        lambda t, x, u, p: [x[1], -x[0] - x[1] + u[0]], lambda t, x, u, p: [x[0]], inputs=1, outputs=1, states=2
    )
    model, x, y = plants.discretize(system, 0.1, substeps=4), torch.zeros(2, dtype=torch.float64), []
    for k in range(101):
        y.append(x[0].item())
        x = model.step(x, [1.0 if k == 50 else 0.0])
    assert y[60] == pytest.approx(0.0526075932, rel=FIELD_CASE)
    assert y[70] == pytest.approx(0.0432446244, rel=FIELD_CASE)
    assert max(y) == pytest.approx(0.0545626161, rel=FIELD_CASE)


def test_o7_predictor_and_filter_gain_of_a_singular_unstable_plant():
    A, C, Q, R = [[1.2, 1], [0, 0]], [[1, 0]], [[0.2, 0.05], [0.05, 0.1]], [[0.5]]
    steady = est.steady_state(A, C, Q, R)
    np.testing.assert_allclose(steady.prior_cov, [[0.784499761677734, 0.05], [0.05, 0.1]], rtol=FIELD_CASE)
    np.testing.assert_allclose(steady.filter_gain[:, 0], [0.610743407731792, 0.0389256592268208], rtol=FIELD_CASE)
    np.testing.assert_allclose(steady.predictor_gain[:, 0], [0.771817748504971, 0], rtol=FIELD_CASE, atol=1e-12)
    posterior = [[0.305371703865896, 0.0194628296134104], [0.0194628296134104, 0.098053717038659]]
    np.testing.assert_allclose(steady.posterior_cov, posterior, rtol=FIELD_CASE)
    _, covariances = run(est.KalmanFilter(linear(A, C), Q=Q, R=R), [0, 0], np.eye(2), np.zeros(200))
    np.testing.assert_allclose(covariances[-1], posterior, rtol=FIELD_CASE)


class TestO8NoInputs:
    @pytest.fixture
    def model(self):
        system = ct.nlsys(
            lambda t, x, u, p: [x[1], -x[0]],
            lambda t, x, u, p: [x[0]],
            inputs=0,
            outputs=1,
            states=2,
            name="oscillator",
        )
        return plants.discretize(system, 0.1, substeps=4)

    def test_simulation_filter_and_storage(self, model, tmp_path):
        data = plants.simulate(model, trajectories=3, steps=21, seed=0, initial_mean=[1, 0], initial_cov=[0, 0])
        np.testing.assert_allclose(data["x"].values[:, 20], [[-0.4161468365, -0.9092974268]] * 3, rtol=FIELD_CASE)
        assert data["u"].shape == (3, 21, 0)
        plants.save_dataset(data, tmp_path / "free.nc")
        plants.validate(plants.load_dataset(tmp_path / "free.nc"), model, states=True)
        for filter_class in FILTERS[1:]:
            estimate = est.run(filter_class(model, Q=[0.01, 0.01], R=[[0.1]]), data, P0=[1, 1])
            assert np.isfinite(estimate["filtered"]).all()

    def test_steady_kalman_filter(self, model):
        A, _, C, _ = (m.numpy() for m in model.linearize([0.3, 0.2]))
        np.testing.assert_allclose(A, [[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]], rtol=FIELD_CASE)
        steady = est.steady_state(A, C, 0.01 * np.eye(2), [[0.1]])
        np.testing.assert_allclose(
            steady.prior_cov, [[0.046393785507, 0.027847663753], [0.027847663753, 0.129648999157]], rtol=FIELD_CASE
        )
        np.testing.assert_allclose(steady.filter_gain[:, 0], [0.316910894448, 0.190224357248], rtol=FIELD_CASE)

    def test_observer_trains_saves_and_loads(self, model, tmp_path):
        data = plants.simulate(
            model, trajectories=12, steps=30, seed=0, noise=plants.GaussianNoise([1e-3, 1e-3], [[0.01]])
        )
        observer = est.R2DNObserver(model, nfeedback=4, hidden=(8,))
        observer.fit(data, updates=2, one_step_updates=2, horizon=10, progress=False)
        observer.save(tmp_path / "free.safetensors")
        again = est.load(tmp_path / "free.safetensors", model)
        np.testing.assert_array_equal(est.run(observer, data)["predicted"], est.run(again, data)["predicted"])


class TestO9Integers:
    @pytest.mark.parametrize("filter_class", FILTERS)
    def test_integer_start_covariances_and_measurements(self, filter_class):
        estimator = filter_class(
            linear([[1, 0.1], [0, 1]], np.array([[1, 0]])), Q=np.diag([1e-3, 1e-2]), R=np.array([[1]])
        )
        means, covariances = run(estimator, np.array([1, 2]), np.array([[1, 0], [0, 1]]), np.array([1, 1, 2]))
        np.testing.assert_allclose(means[-1], [1.55759070445494, 2.0484977254834], rtol=FIELD_CASE)
        np.testing.assert_allclose(
            covariances[-1],
            [[0.272429231730665, 0.144506197625744], [0.144506197625744, 0.981514746106738]],
            rtol=FIELD_CASE,
        )

    def test_simulation_from_an_integer_start(self):
        system = ct.nlsys(
            lambda t, x, u, p: [x[0] + 0.1 * x[1], 0.9 * x[1] + 0.1 * u[0]],
            lambda t, x, u, p: [x[0]],
            inputs=1,
            outputs=1,
            states=2,
            dt=1,
        )
        data = plants.simulate(
            plants.discretize(system),
            trajectories=1,
            steps=6,
            seed=0,
            initial_mean=np.array([1, 2]),
            initial_cov=np.array([0, 0]),
            inputs=np.ones((6, 1), dtype=int),
        )
        np.testing.assert_allclose(data["x"].values[0, 5], [1.90951, 1.59049], rtol=FIELD_CASE)
        assert data["x"].dtype == np.float64

    def test_linearisation_at_an_integer_point(self):
        # the Jacobian of the differential equation shows in the first-order term of the step
        pendulum = ct.nlsys(lambda t, x, u, p: [x[1], -9.81 * np.sin(x[0])], None, inputs=0, outputs=2, states=2)
        A, *_ = plants.discretize(pendulum, 1e-6).linearize(np.array([1, 0]))
        assert A[1, 0].item() / 1e-6 == pytest.approx(-5.300365620566, rel=FIELD_CASE)


class TestO12StatesOfVeryDifferentSize:
    A, C, Q, R = [[0.9, 2e-16], [-1e14, 0.95]], [[1e9, 0]], [1e-20, 1e10], [[0.04]]

    def test_gains_covariance_and_error_decay(self):
        steady = est.steady_state(self.A, self.C, self.Q, self.R)
        np.testing.assert_allclose(
            steady.prior_cov,
            [[2.885481179331e-20, 1.561823253368e-05], [1.561823253368e-05, 5.381004989970e10]],
            rtol=FIELD_CASE,
        )
        np.testing.assert_allclose(steady.filter_gain[:, 0], [4.190674702579e-10, 2.268284833973e5], rtol=FIELD_CASE)
        np.testing.assert_allclose(steady.predictor_gain[:, 0], [4.225264199116e-10, 1.735803122016e5], rtol=FIELD_CASE)
        closed = np.array(self.A) - steady.predictor_gain @ np.array(self.C)
        np.testing.assert_allclose(
            np.sort(np.linalg.eigvals(closed)), [0.680506654049, 0.746966926040], rtol=FIELD_CASE
        )
        error = np.array([5e-9, -5e6])
        for steps, right in (
            (10, [-8.874440102816e-10, -1.445774341153e6]),
            (20, [-7.264903746905e-11, -1.032159025976e5]),
            (40, [-2.520339590776e-13, -3.420220819269e2]),
        ):
            np.testing.assert_allclose(
                np.linalg.matrix_power(closed, steps) @ error, right, rtol=1e-5
            )  # gains are given to 13 digits, amplified by cancellation

    @pytest.mark.parametrize("filter_class", FILTERS)
    def test_filter_reaches_the_gain(self, filter_class):
        estimator = filter_class(linear(self.A, self.C), Q=self.Q, R=self.R)
        state = estimator.init([0, 0], self.Q)
        for _ in range(200):
            state = estimator.predict(estimator.correct(state, [0.0], [0.0]), [0.0])
        np.testing.assert_allclose(
            state.cov,
            [[2.885481179331e-20, 1.561823253368e-05], [1.561823253368e-05, 5.381004989970e10]],
            rtol=FIELD_CASE,
        )
        moved = estimator.correct(state, [1.0], [0.0]).mean - state.mean
        np.testing.assert_allclose(moved, [4.190674702579e-10, 2.268284833973e5], rtol=FIELD_CASE)

    def test_jacobian_by_any_route_is_scaled(self):
        def update(t, x, u, params):
            if x[0] > 1e9:  # never, but it cannot be traced
                return [0.0, 0.0]
            return [0.9 * x[0] + 2e-16 * x[1], -1e14 * x[0] + 0.95 * x[1]]

        system = ct.nlsys(
            update, lambda t, x, u, p: [1e9 * x[0]], inputs=0, outputs=1, states=["small", "large"], dt=1, name="scaled"
        )
        with pytest.warns(UserWarning, match="central differences"):
            model = plants.discretize(system, operating_region={"small": (-5e-9, 5e-9), "large": (-5e6, 5e6)})
        A, *_ = model.linearize([1e-9, 1e6])
        np.testing.assert_allclose(A, self.A, rtol=FIELD_CASE)

    def test_trained_observer_tracks_both_states(self):
        model = linear(self.A, self.C)
        noise = plants.GaussianNoise(self.Q, self.R)
        prior = np.sqrt(np.diag(est.steady_state(self.A, self.C, self.Q, self.R).prior_cov))
        settings = dict(
            steps=100, noise=noise, inputs=np.zeros((100, 1)), initial_mean=[0, 0], initial_cov=(5 * prior) ** 2
        )
        train, test = (plants.simulate(model, trajectories=n, seed=s, **settings) for n, s in ((256, 0), (128, 1)))
        observer = est.R2DNObserver(model, nfeedback=4, hidden=(8,))
        observer.fit(train, updates=60, one_step_updates=40, horizon=60, progress=False)
        ratio = (
            est.benchmark({"R2DN": observer}, test, transient=30.0)["rmse"]
            .sel(kind="predicted", phase="steady")
            .values[0]
            / prior
        )
        assert ratio.max() < 1.15  # a few updates only: near the optimum in both states, 15 orders of magnitude apart
        assert ratio.max() / ratio.min() < 1.15


def test_o13_perfect_sensor():
    right_x = [[0.05, 0.0049455984174085], [0.2, 1.3640994056878], [0.33, 1.3319045387845]]
    for filter_class in FILTERS:
        estimator = filter_class(linear([[1, 0.1], [0, 1]], [[1, 0]]), Q=[1e-3, 1e-2], R=[[0.0]])
        means, covariances = run(estimator, [0, 0], [1, 1], [0.05, 0.20, 0.33])
        np.testing.assert_allclose(means, right_x, rtol=FIELD_CASE)
        np.testing.assert_allclose(
            covariances[:, 1, 1], [1.00010880317, 0.10090999002, 0.060226467091], rtol=FIELD_CASE
        )
        np.testing.assert_allclose(covariances[:, 0], 0, atol=1e-15)


class TestO14Feedthrough:
    @pytest.mark.parametrize("filter_class", FILTERS)
    def test_innovation_uses_the_input_of_the_same_instant(self, filter_class):
        model = linear([[0.8]], [[1]], B=[[1]], D=[[2]])
        steady = est.steady_state([[0.8]], [[1]], [[0.1]], [[0.2]])
        np.testing.assert_allclose(
            [steady.prior_cov[0, 0], steady.filter_gain[0, 0], steady.predictor_gain[0, 0], steady.posterior_cov[0, 0]],
            [0.15611263138792414, 0.4383799327181573, 0.3507039461745258, 0.08767598654363147],
            rtol=FIELD_CASE,
        )
        estimator = filter_class(model, Q=[[0.1]], R=[[0.2]])
        u, y = [1, 0, -1, 2, 1, 1], [2, 1, -1.2, 3.64, 3.712, 4.3696]
        state, after = estimator.init([3.0], steady.prior_cov), []
        for uk, yk in zip(u, y, strict=True):
            state, estimate = estimator.step(state, [uk], [yk])
            after.append(estimate.filtered.item())
        np.testing.assert_allclose(
            after,
            [1.684860201846, 1.757001039937, 1.140117579985, -0.207186513476, 1.780658496467, 2.400447991524],
            rtol=FIELD_CASE,
        )

    def test_observer_start_uses_it_too(self):
        model = linear([[0.8]], [[1]], B=[[1]], D=[[2]])
        data = plants.simulate(model, trajectories=64, steps=100, seed=0, noise=plants.GaussianNoise([[0.1]], [[0.2]]))
        observer = est.R2DNObserver(model, nfeedback=4, hidden=(8,))
        observer.initialise(data)
        steady = est.benchmark({"R2DN": observer}, data, transient=40.0)
        ratio = steady["rmse"].sel(phase="steady").values[0, :, 0] / steady["optimum"].values[:, 0]
        np.testing.assert_allclose(ratio, 1.0, atol=0.05)  # 3840 samples: sampling error of an RMSE about 2 %


def test_steady_state_agrees_with_scipy_on_a_well_scaled_plant():
    # guards the change of units inside steady_state
    A, C, Q, R = np.array([[0.9, 0.2], [-0.1, 0.95]]), np.array([[1.0, 0]]), 0.01 * np.eye(2), np.array([[0.04]])
    np.testing.assert_allclose(
        est.steady_state(A, C, Q, R).prior_cov, scipy.linalg.solve_discrete_are(A.T, C.T, Q, R), rtol=1e-9
    )
