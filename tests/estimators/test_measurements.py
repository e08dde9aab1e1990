"""Measurements as they come: irregular, late, of several sensors, with noise that changes, outliers, bounds."""

import control as ct
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch

import estimators as est
import plants
from tests.tolerances import EQUAL_FILTERS, FIELD_CASE

KINDS = [est.ExtendedKalmanFilter, est.UnscentedKalmanFilter, est.CubatureKalmanFilter]


def walk(dt=1.0):
    return plants.discretize(ct.ss([[1.0]], [[0.0]], [[1.0]], [[0.0]], dt))


class TestO10NoiseThatChanges:
    Q = np.array([0.01, 0.01, 4.0, 0.01, 0.01])  # on the step into measurement k
    Z = (0.1, -0.2, 5.0, 5.2, 5.1)
    X = (0.0502487562189, -0.0345449162856, 4.05699604451, 4.57290385022, 4.73931155656)
    P = (0.502487562189, 0.338837538239, 0.812693307703, 0.451361347642, 0.315706548819)

    @pytest.mark.parametrize("kind", [est.KalmanFilter, *KINDS])
    def test_step_by_step(self, kind):
        estimator = kind(walk(), Q=[1.0], R=[1.0])
        state = estimator.init([0.0], [1.0])
        for q, z, x, p in zip(self.Q, self.Z, self.X, self.P, strict=True):
            state = estimator.correct(estimator.predict(state, [0.0], Q=[[q]]), [z], [0.0])
            assert state.mean.item() == pytest.approx(x, rel=FIELD_CASE)
            assert state.cov.item() == pytest.approx(p, rel=FIELD_CASE)

    @pytest.mark.parametrize("kind", [est.KalmanFilter, *KINDS])
    def test_a_record_takes_a_sequence_with_its_index_convention(self, kind):
        """Q[k] acts from sample k to k+1, so the first sample here is the start, not measured."""
        model, y = walk(), np.array([np.nan, *self.Z])[None, :, None]
        data = plants.from_arrays(model, y=y, u=np.zeros((1, 6, 1)))
        Q = np.array([*self.Q, 1.0])[:, None, None]
        found = est.run(kind(model, Q=[1.0], R=[1.0]), data, x0=[0.0], P0=[1.0], Q=Q)
        np.testing.assert_allclose(found["filtered"][0, 1:, 0], self.X, rtol=FIELD_CASE)
        np.testing.assert_allclose(found["filtered_cov"][0, 1:, 0, 0], self.P, rtol=FIELD_CASE)
        # the same for each of two trajectories, and R the other way: scaled with Q and P0 it changes nothing
        both = plants.from_arrays(model, y=np.repeat(y, 2, 0), u=np.zeros((2, 6, 1)))
        scale = np.array([1.0, 9.0])[:, None, None, None]
        found = est.run(
            kind(model, Q=[1.0], R=[1.0]), both, x0=[0.0], P0=[1.0], Q=scale * Q, R=scale * np.ones((6, 1, 1))
        )
        np.testing.assert_allclose(found["filtered"][0, 1:, 0], self.X, rtol=FIELD_CASE)
        assert np.abs(found["filtered"][1, 1, 0] - self.X[0]) > 1e-3  # P0 was not scaled

    def test_one_belief_meets_several_covariances(self):
        estimator = est.KalmanFilter(walk(), Q=[1.0], R=[1.0])
        state = estimator.init([0.0], [1.0])
        found = estimator.correct(state, [1.0], [0.0], R=np.array([0.1, 0.2, 0.3])[:, None, None])
        np.testing.assert_allclose(found.mean[:, 0], [1 / 1.1, 1 / 1.2, 1 / 1.3])
        found = estimator.predict(state, [0.0], Q=np.array([1.0, 2.0])[:, None, None])
        np.testing.assert_allclose(found.cov[:, 0, 0], [2.0, 3.0])
        y, u = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
        R = np.array([0.1, 0.2])[:, None, None, None] * np.ones((4, 1, 1))
        record = estimator.estimate_sequence(state, u, y, R=R)
        np.testing.assert_allclose(record.filtered[:, 0, 0], [1 / 1.1, 1 / 1.2])

    def test_bad_sequences(self):
        model = walk()
        data = plants.from_arrays(model, y=np.zeros((1, 4, 1)), u=np.zeros((1, 4, 1)))
        estimator = est.KalmanFilter(model, Q=[1.0], R=[1.0])
        with pytest.raises(ValueError, match="Q must hold one matrix for each of 4 time steps"):
            est.run(estimator, data, x0=[0.0], P0=[1.0], Q=np.ones((3, 1, 1)))
        with pytest.raises(ValueError, match=r"R must be positive semidefinite.*in matrix \[2\]"):
            est.run(estimator, data, x0=[0.0], P0=[1.0], R=np.array([1.0, 1.0, -1.0, 1.0])[:, None, None])
        with pytest.raises(ValueError, match="Q must be a scalar"):
            est.KalmanFilter(model, Q=np.ones((5, 1, 1)), R=[1.0])
        with pytest.raises(TypeError, match="are for Gaussian filters"):
            est.run(est.LuenbergerObserver(model, [[0.5]]), data, x0=[0.0], Q=np.ones((4, 1, 1)))

    def test_the_smoother_uses_it_too(self):
        model = walk()
        data = plants.from_arrays(model, y=np.array([0.0, 0.0, 5.0, 5.0])[None, :, None], u=np.zeros((1, 4, 1)))
        jump = np.array([1e-6, 100.0, 1e-6, 1e-6])[:, None, None]  # between samples 1 and 2
        found = est.smooth(est.KalmanFilter(model, Q=[1.0], R=[1.0]), data, x0=[0.0], P0=[1e-3], Q=jump)
        np.testing.assert_allclose(found["smoothed"][0, :, 0], [0, 0, 5, 5], atol=0.1)


class TestIrregularTimes:
    def test_a_linear_plant_is_exact_over_any_step(self):
        model = plants.discretize(ct.ss([[0, 1], [-2, -0.3]], [[0], [1]], [[1, 0]], 0), 0.1)
        estimator = est.KalmanFilter(model, Q=[0.1, 0.2], R=[1.0])
        state = estimator.init([1.0, 0.5], [0.3, 0.2])
        found = estimator.predict(state, [0.7], dt=0.37)
        other = plants.discretize(ct.ss([[0, 1], [-2, -0.3]], [[0], [1]], [[1, 0]], 0), 0.37)
        right = est.KalmanFilter(other, Q=[0.37, 0.74], R=[1.0]).predict(state, [0.7])
        torch.testing.assert_close(found.mean, right.mean)
        torch.testing.assert_close(found.cov, right.cov)
        assert found.time == pytest.approx(0.37)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_long_step_of_a_nonlinear_plant_is_as_accurate_as_a_short_one(self, kind):
        setting = plants.scenario("pendulum")
        estimator = kind(setting.model, setting.noise)
        state = estimator.init([1.0, 0.0], [1e-12, 1e-12])
        found = estimator.predict(state, [0.5], dt=0.43)
        p = setting.system.params

        def rhs(t, x):
            inertia = p["m"] * p["l"] ** 2
            return [x[1], (0.5 - p["b"] * x[1]) / inertia - p["g"] / p["l"] * np.sin(x[0])]

        truth = scipy.integrate.solve_ivp(rhs, (0, 0.43), [1.0, 0.0], rtol=1e-10, atol=1e-12).y[:, -1]
        np.testing.assert_allclose(found.mean, truth, atol=2e-4)  # RK4 with steps of at most 0.05

    def test_noise_of_an_input_is_white_whatever_the_steps(self):
        """An integrator: ten steps of 0.1 gather as much variance as one of 1."""
        model = plants.discretize(ct.ss([[0.0]], [[1.0]], [[1.0]], [[0.0]]), 1.0)
        for kind in (est.KalmanFilter, est.UnscentedKalmanFilter):
            estimator = kind(model, plants.GaussianNoise([0.0], [1.0], input_cov=[1.0]))
            state = estimator.init([0.0], [0.0])
            one = estimator.predict(state, [0.0])
            for _ in range(10):
                state = estimator.predict(state, [0.0], dt=0.1)
            assert one.cov.item() == pytest.approx(1.0) and state.cov.item() == pytest.approx(1.0)

    def test_the_rounding_of_time_stamps_is_no_error(self):
        setting = plants.scenario("pendulum")
        estimator = est.ExtendedKalmanFilter(setting.model, setting.noise)
        state = estimator.init([0.1, 0.0], [1.0, 1.0])
        after = estimator.predict(state, [0.0], dt=0.1 + 0.2 - 0.3)
        torch.testing.assert_close(after.mean, state.mean)

    def test_time_does_not_go_backwards_and_a_discrete_plant_keeps_its_time(self):
        setting = plants.scenario("pendulum")
        estimator = est.ExtendedKalmanFilter(setting.model, setting.noise)
        state = estimator.init([0.0, 0.0], [1.0, 1.0])
        assert estimator.predict(state, [0.0], dt=0) is state
        with pytest.raises(ValueError, match="time does not go backwards"):
            estimator.predict(state, [0.0], dt=-0.1)
        discrete = est.KalmanFilter(walk(), Q=[1.0], R=[1.0])
        with pytest.raises(ValueError, match="is discrete with dt=1"):
            discrete.predict(discrete.init([0.0], [1.0]), [0.0], dt=0.5)

    def test_a_model_over_another_sample_is_the_plant_sampled_anew(self):
        setting = plants.scenario("quadruple_tank")
        region = setting.model.operating_region
        x, u = (torch.from_numpy(a) for a in region.sample(5, seed=0))
        other = plants.discretize(setting.system, 1.7, operating_region=setting.operating_region)
        torch.testing.assert_close(setting.model.with_dt(1.7).step(x, u), other.step(x, u))
        with pytest.raises(ValueError, match="dt must be a positive number"):
            setting.model.with_dt(0.0)


class TestSensors:
    def test_two_sensors_of_their_own_rate_and_covariance_equal_one_vector_sensor(self):
        model = plants.discretize(
            ct.ss([[1, 0.1], [0, 0.95]], [[0], [0.1]], [[1, 0], [0, 1]], 0, 0.1, outputs=["gps", "gyro"])
        )
        joint = est.KalmanFilter(model, Q=[1e-3, 1e-2], R=[0.5, 0.1])
        state = one = joint.init([0.0, 0.0], [1.0, 1.0])
        rng = np.random.default_rng(0)
        for k in range(12):
            gps, gyro = rng.normal(size=2)
            every = k % 3 == 0
            one = joint.correct(one, [gyro], [0.1], sensor="gyro")
            if every:
                one = joint.correct(one, [gps], [0.1], sensor="gps", R=[[0.2]])
            R = np.diag([0.2, 0.1])
            state = joint.correct(state, [gps if every else np.nan, gyro], [0.1], R=R)
            one, state = joint.predict(one, [0.1]), joint.predict(state, [0.1])
            torch.testing.assert_close(one.mean, state.mean, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(one.cov, state.cov, rtol=1e-10, atol=1e-10)
        with pytest.raises(ValueError, match="sensor must name different outputs"):
            joint.correct(one, [0.0], [0.1], sensor="radar")
        scalar = joint.correct(one, 0.3, [0.1], sensor="gps", R=0.2)
        torch.testing.assert_close(scalar.mean, joint.correct(one, [0.3], [0.1], sensor="gps", R=[[0.2]]).mean)
        with pytest.raises(ValueError, match="u must be finite"):
            joint.predict(one, [np.nan])
        with pytest.raises(ValueError, match="R must be a scalar"):
            joint.correct(one, [0.0], [0.1], sensor="gps", R=np.eye(2))

    @pytest.mark.parametrize(
        "make",
        [
            lambda setting: est.ExtendedKalmanFilter(setting.model, setting.noise),
            lambda setting: est.UnscentedKalmanFilter(setting.model, setting.noise),
            lambda setting: est.ParticleFilter(setting.model, setting.noise, particles=50),
            lambda setting: est.LuenbergerObserver.from_noise(setting.model, setting.noise),
        ],
        ids=["EKF", "UKF", "particles", "Luenberger"],
    )
    def test_a_late_measurement_counts_as_if_it_had_been_on_time(self, make):
        setting = plants.scenario("quadruple_tank")
        data = setting.simulate(2, 14, seed=0)
        _, u, y = plants.to_tensors(data)
        estimator = make(setting)
        start = data["initial_mean"].values, data["initial_cov"].values
        replay = est.Replay(estimator, lag=5)
        on_time, late = (replay.init(np.tile(start[0], (2, 1)), start[1]) for _ in range(2))
        for k in range(14):
            on_time, _ = replay.step(on_time, u[:, k], y[:, k])
            seen = y[:, k].clone()
            if k in (6, 9):
                seen[:, 1] = torch.nan
            late, _ = replay.step(late, u[:, k], seen)
            if k == 10:  # both arrive now, the newer first
                late, _ = replay.late(late, y[:, 9, 1:], delay=1, sensor="level2")
                late, _ = replay.late(late, y[:, 6, 1:], delay=4, sensor=["level2"])
        for one, two in zip(on_time.now, late.now, strict=True):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
        assert len(late.past) == 6

    def test_a_caller_may_use_its_arrays_again(self):
        setting = plants.scenario("pendulum")
        y = setting.simulate(1, 8, seed=0)["y"].values[0]
        results = []
        for reuse in (True, False):
            replay = est.Replay(est.ExtendedKalmanFilter(setting.model, setting.noise), lag=5)
            state, buffer = replay.init([0.0, 0.0], [1.0, 1.0]), np.zeros(1)
            for k in range(8):
                buffer[:] = np.nan if k == 4 else y[k]
                state, _ = replay.step(state, [0.0], buffer if reuse else buffer.copy())
            results.append(replay.late(state, y[4], delay=3)[0].now.mean)
        torch.testing.assert_close(*results)

    def test_bad_replay(self):
        setting = plants.scenario("pendulum")
        replay = est.Replay(est.ExtendedKalmanFilter(setting.model, setting.noise), lag=3)
        state = replay.init([0.0, 0.0], [1.0, 1.0])
        for _ in range(5):
            state, _ = replay.step(state, [0.0], [0.1])
        with pytest.raises(ValueError, match="delay must be an integer from 0 to 3"):
            replay.late(state, [0.1], delay=4)
        with pytest.raises(ValueError, match="were measured already"):
            replay.late(state, [0.1], delay=1)
        with pytest.raises(ValueError, match="sensor must name"):
            replay.late(state, [0.1], delay=1, sensor="gps")
        with pytest.raises(ValueError, match="lag must be a positive integer"):
            est.Replay(replay.estimator, lag=0)
        with pytest.raises(TypeError, match="estimator must be a filter"):
            est.Replay(setting.model, lag=2)


class TestNoiseThroughInputs:
    A, B = np.array([[1, 0.1], [-0.2, 0.9]]), np.array([[0.0], [0.5]])

    def model(self):
        return plants.discretize(ct.ss(self.A, self.B, [[1, 0]], 0, 0.1))

    @pytest.mark.parametrize("kind", [est.KalmanFilter, *KINDS])
    def test_equals_additive_noise_on_a_linear_plant(self, kind):
        model = self.model()
        noise = plants.GaussianNoise([1e-4, 1e-4], [0.01], input_cov=[0.3])
        same = plants.GaussianNoise(1e-4 * np.eye(2) + 0.3 * self.B @ self.B.T, [0.01])
        data = plants.simulate(model, trajectories=20, steps=40, noise=noise, seed=0, initial_cov=[0.1, 0.1])
        assert "input_cov" in data
        found, right = est.run(kind(model, noise), data), est.run(est.KalmanFilter(model, same), data)
        np.testing.assert_allclose(found["filtered"], right["filtered"], atol=EQUAL_FILTERS)
        np.testing.assert_allclose(found["filtered_cov"], right["filtered_cov"], atol=EQUAL_FILTERS)
        assert est.consistency(kind(model, noise), data).attrs["innovations_consistent"]
        slow = kind(model, noise)
        slow._rules = lambda: None  # on tensors
        np.testing.assert_allclose(est.run(slow, data)["filtered"], right["filtered"], atol=EQUAL_FILTERS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_multiplicative_sensor_error_is_an_input(self, kind):
        """y = (1 + g) x: the filter that knows of g is consistent, the one that does not is far off."""
        system = ct.nlsys(
            lambda t, x, u, p: [0.9 * x[0] + u[0]], lambda t, x, u, p: [x[0] * (1 + u[1])], states=1, inputs=2,
            outputs=1, dt=1.0,
        )  # fmt: skip
        model, u = plants.discretize(system), np.zeros((60, 2))
        u[:, 0] = 0.5
        noise = plants.GaussianNoise([0.1], [0.01], input_cov=[0, 0.04])
        data = plants.simulate(
            model, trajectories=200, steps=60, noise=noise, seed=0, inputs=u, initial_mean=[5], initial_cov=[0.1]
        )
        assert abs(est.consistency(kind(model, noise), data).attrs["nees_per_state"] - 1) < 0.05
        ignorant = kind(model, plants.GaussianNoise([0.1], [0.01]))
        assert est.consistency(ignorant, data).attrs["nees_per_state"] > 3

    def test_through_G_as_in_control(self):
        G = np.array([[0.005], [0.1]])
        noise = plants.GaussianNoise.from_control(QN=[[2.0]], RN=[[0.3]], G=G)
        np.testing.assert_allclose(noise.process_cov, 2.0 * G @ G.T)
        L, P, _ = ct.dlqe(self.A, G, [[1, 0]], [[2.0]], [[0.3]])
        steady = est.steady_state(self.A, [[1, 0]], noise.process_cov, noise.measurement_cov)
        np.testing.assert_allclose(steady.prior_cov, P, rtol=1e-8)
        np.testing.assert_allclose(np.ravel(steady.predictor_gain), np.ravel(L), rtol=1e-8)
        with pytest.raises(ValueError, match="G must be a matrix"):
            plants.GaussianNoise.from_control([[1.0]], [[1.0]], G=[1.0, 2.0])

    def test_an_input_that_moves_and_shows_at_once_is_refused(self):
        system = ct.ss([[0.9]], [[1.0]], [[1.0]], [[0.5]], 1.0, inputs=["push"])
        with pytest.raises(ValueError, match=r"noise of the inputs \['push'\] moves the states and shows"):
            est.KalmanFilter(plants.discretize(system), plants.GaussianNoise([0.1], [0.1], input_cov=[0.1]))
        with pytest.raises(ValueError, match="input_cov must be"):
            est.KalmanFilter(self.model(), plants.GaussianNoise([0.1, 0.1], [0.1], input_cov=[0.1, 0.2]))


class TestBounds:
    def test_the_projection_is_the_likeliest_state_within_bounds(self):
        """Against scipy's bounded least squares in the metric of the covariance."""
        from estimators.gaussian.bounds import project

        rng = np.random.default_rng(0)
        lower, upper = np.array([0.0, -np.inf, -0.5, -np.inf]), np.array([np.inf, 0.3, 0.5, np.inf])
        factor = rng.normal(size=(40, 4, 4))
        factor[20:, 1] = factor[20:, 0] + 0.05 * factor[20:, 1]  # strongly correlated
        mean = 2 * rng.normal(size=(40, 4))
        bounds = torch.from_numpy(lower), torch.from_numpy(upper)
        found = project(torch.from_numpy(mean), torch.from_numpy(factor), bounds).numpy()
        for m, S, z in zip(mean, factor, found, strict=True):
            W = np.linalg.inv(S)
            best = scipy.optimize.lsq_linear(W, W @ m, bounds=(lower, upper), method="bvls", tol=1e-14)
            assert np.sum((W @ (z - m)) ** 2) <= 2 * best.cost * (1 + 1e-9) + 1e-9
            assert (z >= lower - 1e-12).all() and (z <= upper + 1e-12).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_levels_of_tanks_stay_positive_and_nothing_else_changes(self, kind):
        setting = plants.scenario("quadruple_tank")
        region = {name: (0.0, 22.0) for name in setting.model.state_labels}
        plain, bounded = (kind(setting.model, setting.noise, bounds=b) for b in (None, region))
        y = np.array([-0.5, 0.1])
        state = plain.init([0.1, 0.2, 0.1, 0.1], [0.5, 0.5, 0.3, 0.3])
        free, kept = plain.correct(state, y, [3, 3]), bounded.correct(state, y, [3, 3])
        assert free.mean.min() < 0 <= kept.mean.min()
        torch.testing.assert_close(free.cov, kept.cov)
        data = setting.simulate(5, 20, seed=0)
        np.testing.assert_allclose(est.run(bounded, data)["filtered"], est.run(plain, data)["filtered"], atol=1e-10)

    def test_bad_bounds(self):
        setting = plants.scenario("pendulum")
        for bounds, message in (
            ({"speed": (0, 1)}, "bounds must map states"),
            ({"omega": (1, 1)}, "lower < upper"),
            ({"theta": (0, 1)}, "nothing modulo a turn"),
            ({"omega": 0}, r"must be \(lower, upper\)"),
            ({"omega": (0,)}, r"must be \(lower, upper\)"),
        ):
            with pytest.raises(ValueError, match=message):
                est.ExtendedKalmanFilter(setting.model, setting.noise, bounds=bounds)


class TestHeavyTails:
    def test_the_correction_approximates_the_exact_posterior(self):
        """One state, one measurement, Student's t noise: mean and variance against quadrature."""
        estimator = est.KalmanFilter(walk(), Q=[0.0], R=[0.25], degrees_of_freedom=4.0)
        grid = np.linspace(-8, 8, 4001)
        for y in (0.2, 1.0, 2.5, 6.0):
            found = estimator.correct(estimator.init([0.0], [1.0]), [y], [0.0])
            density = np.exp(-(grid**2) / 2) * (1 + (y - grid) ** 2 / 0.25 / 4) ** (-2.5)
            density /= density.sum()
            mean = (grid * density).sum()
            variance = ((grid - mean) ** 2 * density).sum()
            # a Gaussian in place of what at y = 2.5 has two humps; the Kalman filter says 2.0 and 4.8 at the last two
            assert found.mean.item() == pytest.approx(mean, abs=0.35)
            assert 0.4 * variance < found.cov.item() < 1.3 * variance

    def test_many_degrees_of_freedom_are_gaussian(self):
        setting = plants.scenario("quadruple_tank")
        data = setting.simulate(4, 20, seed=0)
        data["y"][1, 3:5, 0] = np.nan
        gaussian = est.run(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
        tails = est.run(est.ExtendedKalmanFilter(setting.model, setting.noise, degrees_of_freedom=1e9), data)
        for name in gaussian.data_vars:
            np.testing.assert_allclose(tails[name], gaussian[name], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("plant", ["pendulum", "van_der_pol", "quadruple_tank"])
    def test_outliers_hurt_less_and_their_absence_costs_little(self, plant):
        setting = plants.scenario(plant)
        covs = setting.noise.process_cov, setting.noise.measurement_cov
        plain = est.ExtendedKalmanFilter(setting.model, setting.noise)
        robust = est.ExtendedKalmanFilter(setting.model, setting.noise, degrees_of_freedom=4.0)
        for share, limit in ((0.0, 1.1), (0.1, 0.9)):
            data = plants.simulate(
                setting.model, trajectories=100, steps=80, seed=2, noise=plants.OutlierNoise(*covs, probability=share)
            )
            one, two = (
                est.metrics.rmse(est.metrics.errors(setting.model, est.run(f, data)["filtered"], data["x"]))
                for f in (robust, plain)
            )
            assert (one / two).mean() < limit, (plant, share, one / two)


class TestFloat32:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_kept_and_agrees_to_its_digits(self, kind):
        setting = plants.scenario("quadruple_tank")
        data = setting.simulate(3, 30, seed=0)
        double = est.run(kind(setting.model, setting.noise), data)
        single = est.run(kind(setting.model, setting.noise, dtype=torch.float32), data)
        assert all(single[name].dtype == np.float32 for name in ("predicted", "filtered", "filtered_cov", "innovation"))
        np.testing.assert_allclose(single["filtered"], double["filtered"], rtol=1e-4)
        with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float64"):
            kind(setting.model, setting.noise, dtype=torch.float16)


class TestWhatIsSaid:
    def test_a_trajectory_without_measurements_is_named_and_only_predicted(self):
        setting = plants.scenario("pendulum")
        data = setting.simulate(3, 10, seed=0)
        data["y"][1] = np.nan
        with pytest.warns(UserWarning, match=r"trajectories \[1\] hold no measurement"):
            found = est.run(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
        np.testing.assert_array_equal(found["filtered"][1], found["predicted"][1])

    def test_a_singular_innovation_is_named_with_trajectory_and_time_step(self):
        model = walk()
        y = np.zeros((3, 4, 1))
        y[:, 0] = np.nan
        y[0, 1] = y[2, 1] = np.nan  # the second trajectory meets its noise-free measurement twice first
        data = plants.from_arrays(model, y=y, u=np.zeros((3, 4, 1)))
        estimator = est.KalmanFilter(model, Q=[0.0], R=[0.0])
        with pytest.raises(ValueError, match="at time step 2: the innovation covariance is singular in trajectory 1"):
            est.run(estimator, data, x0=[0.0], P0=[1.0])

    def test_a_filter_that_follows_something_else_is_diverged_and_not_returned_as_numbers(self):
        """A wrong model: a drift the filter does not know of, and a covariance that says it is sure."""
        model = walk()
        truth = np.tile(np.arange(120.0), (3, 1))[..., None]
        truth[1] = 0.0
        data = plants.from_arrays(model, y=truth, u=np.zeros((3, 120, 1)))
        sure = est.KalmanFilter(model, Q=[1e-8], R=[0.01])
        with pytest.warns(UserWarning, match="diverged on 2 of 3 trajectories, first on trajectory 0 at time step"):
            found = est.run(sure, data, x0=[0.0], P0=[0.01])
        assert np.isnan(found["filtered"][[0, 2], -1]).all() and np.isfinite(found["filtered"][1]).all()
        assert np.isfinite(found["filtered"][:, 0]).all()
        est.run(est.KalmanFilter(model, Q=[1.0], R=[0.01]), data, x0=[0.0], P0=[0.01])  # one that keeps up

    def test_covariances_that_are_only_too_small_are_no_divergence(self):
        """All of them a hundred times: the same gains, the same estimates."""
        noise = plants.GaussianNoise([0.1], [1.0])
        data = plants.simulate(walk(), trajectories=20, steps=200, noise=noise, seed=0, initial_cov=[1.0])
        small = est.run(est.KalmanFilter(walk(), Q=[0.001], R=[0.01]), data, P0=[0.01])
        right = est.run(est.KalmanFilter(walk(), noise), data, P0=[1.0])
        np.testing.assert_allclose(small["filtered"], right["filtered"], atol=1e-10)

    def test_bad_settings(self):
        setting = plants.scenario("pendulum")
        for wrong, message in (
            ({"degrees_of_freedom": 0}, "degrees_of_freedom must be a positive number"),
            ({"inflation": 0.5}, "inflation must be at least 1"),
            ({"gate": 1.5}, "gate must be a probability"),
            ({"gate": 0.9, "degrees_of_freedom": 4}, "either gate or degrees_of_freedom"),
        ):
            with pytest.raises(ValueError, match=message):
                est.ExtendedKalmanFilter(setting.model, setting.noise, **wrong)
