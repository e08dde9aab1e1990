"""Iterated, cubature, ensemble and particle filters against independent truths."""

import control as ct
import numpy as np
import pytest
import scipy.optimize
import torch

import estimators as est
import plants
from tests.small_plants import SMALL
from tests.tolerances import EQUAL_FILTERS


def linear(seed=0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(2, 2))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    model = plants.discretize(ct.ss(A, rng.normal(size=(2, 1)), [[1.0, 0.3]], [[0.2]], 1.0))
    return model, plants.GaussianNoise([0.1, 0.2], [0.3])


def range_sensor():
    """A point at rest, its distances to two beacons measured."""

    def output(t, x, u, params):
        return [np.sqrt((x[0] - 1) ** 2 + (x[1] + 1) ** 2), np.sqrt((x[0] + 2) ** 2 + x[1] ** 2)]

    system = ct.nlsys(lambda t, x, u, params: [x[0], x[1]], output, states=2, inputs=0, outputs=2, dt=1.0)
    return plants.discretize(system)


class TestIteratedFilter:
    @pytest.mark.parametrize("iterations", [1, 2, 5])
    def test_a_measurement_counts_once_however_many_the_iterations(self, iterations):
        model = plants.discretize(ct.ss([[1.0]], [[0.0]], [[1.0]], [[0.0]], 1.0))
        found = est.IteratedExtendedKalmanFilter(model, Q=[0.0], R=[1.0], iterations=iterations)
        corrected = found.correct(found.init([0.0], [1.0]), [1.0], [0.0])
        np.testing.assert_allclose([corrected.mean.item(), corrected.cov.item()], [0.5, 0.5], rtol=1e-12)

    def test_converges_to_the_maximum_a_posteriori_estimate(self):
        model, P0, R = range_sensor(), np.array([[1.0, 0.3], [0.3, 0.5]]), np.diag([0.01, 0.04])
        rng = np.random.default_rng(0)
        iterated = est.IteratedExtendedKalmanFilter(model, Q=[0, 0], R=R, iterations=50)
        plain = est.ExtendedKalmanFilter(model, Q=[0, 0], R=R)
        further = 0
        for _ in range(10):
            x0 = rng.normal(size=2)
            truth = x0 + np.linalg.cholesky(P0) @ rng.normal(size=2)
            y = model.output(torch.from_numpy(truth), None).numpy() + rng.normal(size=2) * [0.1, 0.2]

            def cost(x, x0=x0, y=y):
                e, v = x - x0, y - model.output(torch.from_numpy(x), None).numpy()
                return e @ np.linalg.solve(P0, e) + v @ np.linalg.solve(R, v)

            found = iterated.correct(iterated.init(x0, P0), y).mean.numpy()
            best = scipy.optimize.minimize(cost, found, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
            np.testing.assert_allclose(found, best.x, atol=1e-6)  # a simplex search knows no better
            further += cost(plain.correct(plain.init(x0, P0), y).mean.numpy()) > cost(found) + 1e-3
        assert further > 5  # the plain EKF does not get there

    def test_batch_equals_loop(self):
        model = range_sensor()
        found = est.IteratedExtendedKalmanFilter(model, Q=[0, 0], R=[0.01, 0.04])
        y = torch.tensor([[2.0, 1.0], [3.0, torch.nan], [0.5, 4.0]], dtype=torch.float64)
        together = found.correct(found.init(torch.zeros(3, 2), [1, 1]), y)
        for i in range(3):
            alone = found.correct(found.init([0.0, 0.0], [1, 1]), y[i])
            torch.testing.assert_close(together.mean[i], alone.mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"alpha": 1.0, "beta": 0.0, "kappa": 0.0}, lambda n: (0.0, 0.0, 1 / (2 * n), np.sqrt(n))),
        (
            {"alpha": 1.0, "beta": 0.0, "kappa": 1.0},
            lambda n: (1 / (n + 1), 1 / (n + 1), 1 / (2 * n + 2), np.sqrt(n + 1)),
        ),
        ({"alpha": 0.5, "beta": 2.0, "kappa": 2.0}, None),
    ],
    ids=["cubature", "julier", "merwe"],
)
def test_sigma_points_give_the_textbook_moments(settings, weights):
    """Against the sums of the textbook, with their possibly negative weights, written out here."""
    setting = plants.scenario("van_der_pol")
    model, n = setting.model, 2
    if weights is None:
        lam = settings["alpha"] ** 2 * (n + settings["kappa"]) - n
        mean0 = lam / (n + lam)
        w = mean0, mean0 + 1 - settings["alpha"] ** 2 + settings["beta"], 1 / (2 * (n + lam)), np.sqrt(n + lam)
    else:
        w = weights(n)
    found = est.UnscentedKalmanFilter(model, setting.noise, **settings)
    m, P, u = np.array([0.5, -1.0]), np.array([[0.3, 0.1], [0.1, 0.6]]), np.zeros(model.ninputs)
    predicted = found.predict(found.init(m, P), u)
    root = np.linalg.cholesky(P)
    # any square root gives the same second order, but not the same points: take the filter's
    root = found.init(m, P).factor.numpy()
    points = np.vstack([m, m + w[3] * root.T, m - w[3] * root.T])
    moved = model.step(torch.from_numpy(points), torch.from_numpy(u)).numpy()
    mean = w[0] * moved[0] + w[2] * moved[1:].sum(0)
    d = moved - mean
    cov = w[1] * np.outer(d[0], d[0]) + w[2] * d[1:].T @ d[1:] + setting.noise.process_cov
    np.testing.assert_allclose(predicted.mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(predicted.cov, cov, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "slack"),
    [
        (lambda model, noise: est.ParticleFilter(model, noise, particles=4000), 0.02),
        (lambda model, noise: est.EnsembleKalmanFilter(model, noise, particles=4000), 0.02),
    ],
    ids=["particle", "ensemble"],
)
def test_samples_approach_the_kalman_filter_on_a_linear_plant(make, slack):
    model, noise = linear()
    data = plants.simulate(model, trajectories=30, steps=25, noise=noise, seed=1)
    data["y"][3, 5:8, 0] = np.nan
    exact = est.run(est.KalmanFilter(model, noise), data, x0=[0, 0], P0=[1, 1])
    found = est.run(make(model, noise), data, x0=[0, 0], P0=[1, 1])
    deviation = np.sqrt(np.einsum("ktii->kti", exact["filtered_cov"].values))
    # a mean of 4000 samples is off by about 1/63 of a deviation, some more after resampling
    for kind in ("predicted", "filtered"):
        assert np.sqrt(np.mean(((found[kind] - exact[kind]).values / deviation) ** 2)) < 0.06
    ratio = found["filtered_cov"].values / exact["filtered_cov"].values
    assert abs(np.mean(ratio[..., 0, 0]) - 1) < slack and abs(np.mean(ratio[..., 1, 1]) - 1) < slack
    # the likelihood of a record of 25 samples
    difference = (found["log_likelihood"] - exact["log_likelihood"]).values
    assert np.sqrt(np.mean(difference.sum(1) ** 2)) < 0.5 and np.abs(difference[3, 5:8]).max() == 0
    assert np.sqrt(np.mean((found["innovation"] - exact["innovation"]).values ** 2)) < 0.06


@pytest.mark.slow
def test_samples_are_honest_or_their_collapse_is_reported():
    """NEES about 1 on every plant; 2000 particles that move blindly never meet the two sharpest sensors of the six."""
    for name in SMALL:
        setting = plants.scenario(name)
        data = setting.simulate(60, 120, seed=3)
        for found, sharp in (
            (est.EnsembleKalmanFilter(setting.model, setting.noise, particles=300), ()),
            (
                est.ParticleFilter(setting.model, setting.noise, particles=2000),
                ("measured_pendulum", "measured_double_pendulum"),
            ),
        ):
            if name in sharp:
                with pytest.warns(UserWarning, match="ParticleFilter diverged"):
                    est.run(found, data)
                continue
            record = est.run(found, data)
            error = est.metrics.errors(setting.model, record["predicted"], data["x"])[:, 20:]
            score = est.metrics.nees(error, record["predicted_cov"].values[:, 20:]).mean() / setting.model.nstates
            assert 0.9 < score < 1.15, (name, type(found).__name__, score)


def test_an_angle_is_averaged_across_the_half_turn():
    def update(t, x, u, params):
        return [x[0]]

    system = ct.nlsys(update, lambda t, x, u, params: [x[0]], states=1, inputs=0, outputs=1, dt=1.0)
    model = plants.discretize(system, angle_states=["x[0]"], angle_outputs=["y[0]"])
    noise = plants.GaussianNoise([1e-4], [0.04])
    for make in (est.ParticleFilter, est.EnsembleKalmanFilter):
        found = make(model, noise, particles=2000)
        _, estimate = found.step(found.init([np.pi - 0.01], [0.09]), None, [-np.pi + 0.05])
        # Kalman: innovation 0.06, gain 0.09 / 0.13
        right = np.pi - 0.01 + 0.06 * 0.09 / 0.13
        assert abs(np.angle(np.exp(1j * (estimate.filtered.item() - right)))) < 0.02
        assert abs(estimate.filtered_cov.item() - 0.09 * 0.04 / 0.13) < 0.004


def test_particles_depend_on_the_seed_and_on_nothing_else():
    setting = plants.scenario("pendulum")
    data = setting.simulate(4, 12, seed=0)
    one = est.run(est.ParticleFilter(setting.model, setting.noise, particles=100, seed=3), data)
    again = est.run(est.ParticleFilter(setting.model, setting.noise, particles=100, seed=3), data)
    other = est.run(est.ParticleFilter(setting.model, setting.noise, particles=100, seed=4), data)
    alone = est.run(est.ParticleFilter(setting.model, setting.noise, particles=100, seed=3), data.isel(trajectory=[2]))
    np.testing.assert_array_equal(one["filtered"], again["filtered"])
    assert np.abs((one["filtered"] - other["filtered"]).values).max() > 1e-3
    np.testing.assert_allclose(one["filtered"].values[2], alone["filtered"].values[0], atol=EQUAL_FILTERS)


def test_bad_input_of_sampled_filters():
    model, noise = linear()
    for make in (est.ParticleFilter, est.EnsembleKalmanFilter):
        with pytest.raises(ValueError, match="particles must be an integer of at least 2"):
            make(model, noise, particles=1)
        with pytest.raises(TypeError, match="noise must be a GaussianNoise"):
            make(model, np.eye(2))
        with pytest.raises(TypeError, match="model must be a StateSpaceModel"):
            make("plant", noise)
        with pytest.raises(ValueError, match="P0 is missing"):
            make(model, noise).init([0, 0])
        with pytest.raises(ValueError, match="process_cov must be"):
            make(model, plants.GaussianNoise([1.0], [1.0]))
    with pytest.raises(ValueError, match="measurement_cov must be positive definite"):
        est.ParticleFilter(model, plants.GaussianNoise([0.1, 0.1], [0.0]))
    with pytest.raises(ValueError, match="inflation must be at least 1"):
        est.EnsembleKalmanFilter(model, noise, inflation=0.9)
    at_once = plants.GaussianNoise([0.1, 0.1], [0.1], input_cov=[1.0])
    with pytest.raises(ValueError, match="moves the states and shows in the outputs"):
        est.ParticleFilter(model, at_once)
    with pytest.raises(ValueError, match="iterations must be a positive integer"):
        est.IteratedExtendedKalmanFilter(model, noise, iterations=0)


class TestSmoother:
    @pytest.mark.parametrize("make", [est.KalmanFilter, est.UnscentedKalmanFilter, est.CubatureKalmanFilter])
    def test_equals_the_posterior_of_all_states_given_all_measurements(self, make):
        """Against one dense least-squares problem over the whole record, with a missing sample."""
        model, noise = linear(3)
        data = plants.simulate(model, trajectories=2, steps=12, noise=noise, seed=2)
        data["y"][1, 4, 0] = np.nan
        found = est.smooth(make(model, noise), data, x0=[0.5, -0.5], P0=[1.0, 2.0])
        A, B, C, D = model.matrices
        _, u, y = (a.numpy() for a in plants.to_tensors(data))
        steps, nx = 12, 2
        for i in range(2):
            information, vector = np.zeros((steps * nx, steps * nx)), np.zeros(steps * nx)

            def add(rows, value, cov, information=information, vector=vector):
                weight = np.linalg.inv(cov)
                information += rows.T @ weight @ rows
                vector += rows.T @ weight @ value

            def at(k, matrix):
                rows = np.zeros((len(matrix), steps * nx))
                rows[:, k * nx : (k + 1) * nx] = matrix
                return rows

            add(at(0, np.eye(2)), np.array([0.5, -0.5]), np.diag([1.0, 2.0]))
            for k in range(steps):
                if not np.isnan(y[i, k, 0]):
                    add(at(k, C), y[i, k] - D @ u[i, k], noise.measurement_cov)
                if k + 1 < steps:
                    add(at(k + 1, np.eye(2)) - at(k, A), B @ u[i, k], noise.process_cov)
            cov = np.linalg.inv(information)
            np.testing.assert_allclose(found["smoothed"].values[i].ravel(), cov @ vector, rtol=1e-8, atol=1e-9)
            for k in range(steps):
                block = cov[k * nx : (k + 1) * nx, k * nx : (k + 1) * nx]
                np.testing.assert_allclose(found["smoothed_cov"].values[i, k], block, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("make", [est.ExtendedKalmanFilter, est.UnscentedKalmanFilter])
    def test_looking_ahead_helps_and_the_covariance_is_honest(self, make):
        setting = plants.scenario("pendulum")
        estimator, data = make(setting.model, setting.noise), setting.simulate(200, 60, seed=4)
        smoothed, filtered = est.smooth(estimator, data), est.run(estimator, data)
        error = smoothed["smoothed"].values - data["x"].values
        error[..., 0] = np.angle(np.exp(1j * error[..., 0]))
        before = filtered["filtered"].values - data["x"].values
        before[..., 0] = np.angle(np.exp(1j * before[..., 0]))
        assert (np.square(error)[:, :-5].mean((0, 1)) < 0.7 * np.square(before)[:, :-5].mean((0, 1))).all()
        np.testing.assert_allclose(smoothed["smoothed"].values[:, -1], filtered["filtered"].values[:, -1], atol=1e-12)
        nees = np.einsum("kti,ktij,ktj->kt", error, np.linalg.inv(smoothed["smoothed_cov"].values), error) / 2
        assert 0.9 < nees.mean() < 1.1

    @pytest.mark.parametrize(
        "settings", [{"inflation": 2.0}, {"bounds": {"h1": (12.5, 13.5)}}], ids=["inflation", "bounds"]
    )
    def test_ends_where_the_filter_ends_and_keeps_its_settings(self, settings):
        setting = plants.scenario("quadruple_tank")
        estimator = est.ExtendedKalmanFilter(setting.model, setting.noise, **settings)
        data = setting.simulate(5, 15, seed=0)
        smoothed, filtered = est.smooth(estimator, data), est.run(estimator, data)
        np.testing.assert_allclose(smoothed["smoothed"][:, -1], filtered["filtered"][:, -1], atol=1e-12)
        np.testing.assert_allclose(smoothed["smoothed_cov"][:, -1], filtered["filtered_cov"][:, -1], atol=1e-12)
        if "bounds" in settings:
            level = smoothed["smoothed"].sel(state="h1")
            assert 12.5 <= level.min() <= level.max() <= 13.5

    def test_bad_input(self):
        model, noise = linear()
        data = plants.simulate(model, trajectories=1, steps=5, noise=noise, seed=0)
        with pytest.raises(TypeError, match="smooth takes a Gaussian filter"):
            est.smooth(est.ParticleFilter(model, noise), data, x0=[0, 0], P0=[1, 1])
        still = plants.discretize(ct.ss([[1.0]], [[0.0]], [[1.0]], [[0.0]], 1.0))
        record = plants.simulate(still, trajectories=1, steps=5, noise=plants.GaussianNoise([0.0], [1.0]), seed=0)
        with pytest.raises(ValueError, match="covariance predicted at time step 1 is singular"):
            est.smooth(est.KalmanFilter(still, Q=[0.0], R=[1.0]), record, x0=[0.0], P0=[0.0])
