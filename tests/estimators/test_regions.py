"""Certificates over a region, of filters, and of plants before an observer is designed."""

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants
from estimators.certificates.metric_search import common_metric, rates_in


def contracting(x, u, y):
    return np.array(
        [
            0.5 * np.sin(x[0]) + 0.1 * x[1] + u[0],
            0.3 * np.tanh(x[0]) + 0.4 * x[1] + 0.2 * np.clip(x[1], -0.5, 0.5) + 0.3 * y[0],
        ]
    )


def bistable(x, u, y):
    return np.array([x[0] + 0.1 * (x[0] - x[0] ** 3) + 0.01 * (y[0] - x[0])])


BOX = {"x": ([-2, -2], [2, 2]), "u": ([-1], [1]), "y": ([-0.5], [0.5])}


def test_a_users_function_is_proved_by_intervals_and_no_pair_beats_the_rate():
    certificate = est.certify(contracting, region=BOX)
    assert certificate.verdict == "proved" and certificate.bound < 0.95
    rng = np.random.default_rng(0)
    x, z = rng.uniform(-2, 2, (2, 2, 20_000))
    u, y = rng.uniform(-1, 1, (1, 20_000)), rng.uniform(-0.5, 0.5, (1, 20_000))
    root = np.linalg.cholesky(certificate.metric).T
    before = np.linalg.norm(root @ (x - z), axis=0)
    after = np.linalg.norm(root @ (contracting(x, u, y) - contracting(z, u, y)), axis=0)
    assert (after <= certificate.bound * before * (1 + 1e-12)).all()


def test_a_linear_systems_rate_is_its_spectral_radius():
    A = np.array([[0.8, 0.5], [-0.1, 0.6]])
    system = ct.ss(A, np.eye(2, 1), np.eye(2), np.zeros((2, 1)), dt=0.1)
    region = {label: (-1, 1) for label in (*system.state_labels, *system.input_labels)}
    certificate = est.certify(system, region=region)
    radius = np.abs(np.linalg.eigvals(A)).max()
    assert certificate.verdict == "proved"
    assert radius <= certificate.bound < radius + 0.1


def test_two_stable_states_are_refuted_with_runs_that_anyone_can_repeat():
    certificate = est.certify(bistable, region={"x": ([-2], [2]), "y": ([-0.5], [0.5])})
    assert certificate.verdict == "refuted"
    (a,), (b,) = certificate.evidence["two starts"]
    y = np.resize(certificate.evidence["inputs"], certificate.evidence["steps"])
    assert np.unique(y).size == 1
    for k in range(certificate.evidence["steps"]):
        a, b = bistable([a], None, [y[k]])[0], bistable([b], None, [y[k]])[0]
    assert abs(a - b) > 0.5
    assert "do not approach" in str(certificate)


def test_growth_before_decay_is_not_taken_for_no_decay():
    """Two runs part for a thousand steps and more, and still contract: slowly, in an ill-conditioned metric."""
    A = np.array([[0.9995, 0.01], [0.0, 0.9995]])
    system = ct.ss(A, np.zeros((2, 1)), np.eye(2), np.zeros((2, 1)), dt=1.0)
    certificate = est.certify(system, region={"x[0]": (-1, 1), "x[1]": (-1, 1), "u[0]": (-1, 1)})
    assert certificate.verdict != "refuted" or certificate.bound < 0.9995


def test_claims_about_angles_say_that_they_are_not_wrapped():
    setting = plants.scenario("pendulum")
    observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
    certificate = est.certify(observer, region={"angle": (-0.9, 0.9), "theta": (-0.7, 0.7)})
    assert "its angles not wrapped" in certificate.property


def test_neither_proof_nor_counterexample_is_inconclusive():
    setting = plants.scenario("pendulum")
    observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
    certificate = est.certify(observer, region={"angle": (-2.5, 2.5)})
    assert certificate.verdict == "inconclusive" and certificate.metric is None
    smaller = est.certify(observer, region={"angle": (-0.9, 0.9), "theta": (-0.7, 0.7)})
    assert smaller.verdict in ("proved", "sampled") and smaller.bound < 1


def test_without_straight_line_code_samples_are_said_to_be_samples():
    def branching(x, u, y):
        return np.array([0.5 * x[0] if float(x[0]) > 0 else 0.4 * x[0]])

    with pytest.warns(UserWarning, match="central differences"):
        certificate = est.certify(branching, region={"x": ([-1], [1])})
    assert certificate.verdict == "sampled"
    assert "10000 fresh points" in certificate.evidence["samples"] and "0.09%" in certificate.evidence["meaning"]


def test_a_jump_is_never_proved():
    def relay(x, u, y):
        return 0.5 * x + np.where(x > 0.1, 0.3, 0.0)

    with pytest.warns(UserWarning, match="central differences"):
        certificate = est.certify(relay, region={"x": ([-1], [1])})
    assert certificate.verdict == "refuted"


def test_data_have_to_lie_in_the_region():
    setting = plants.scenario("van_der_pol")
    observer = est.LuenbergerObserver.from_poles(setting.model, [0.8, 0.85], x=[2.0, 0.0])
    data = setting.simulate(4, 30, seed=0)
    with pytest.raises(ValueError, match="the data leave the region: x1 goes from"):
        est.certify(observer, data, region={"x1": (-0.1, 0.1), "y": (-9, 9)})


class TestBadInput:
    def test_regions(self):
        model = plants.scenario("pendulum").model
        with pytest.raises(ValueError, match="lower < upper"):
            est.certify(model, region={"theta": (1, 1)})
        with pytest.raises(ValueError, match="names \\['nonsense'\\]"):
            est.certify(model, region={"nonsense": (0, 1)})
        with pytest.raises(TypeError, match="region must be a mapping"):
            est.certify(model, region=[(0, 1)])
        with pytest.raises(ValueError, match="for a function"):
            est.certify(bistable)
        with pytest.raises(ValueError, match="two arrays of one length"):
            est.certify(bistable, region={"x": ([0, 0], [1])})
        with pytest.raises(ValueError, match="is continuous"):
            est.certify(plants.pendulum(), region={})
        with pytest.raises(ValueError, match="are missing"):
            est.certify(ct.ss(0.5, 1, 1, 0, dt=True), region={})

    def test_what_a_region_is_not_for(self, trained_pair):
        with pytest.raises(ValueError, match="region is not for a R2DNObserver"):
            est.certify(trained_pair[0], region={"theta": (0, 1)})
        observer = est.LuenbergerObserver(plants.scenario("pendulum").model, [[0.1], [0.1]])
        with pytest.raises(ValueError, match="measurements \\['angle'\\]"):
            est.certify(observer)

    def test_a_plant_that_changes_late_or_only_in_its_output(self):
        late = ct.nlsys(
            lambda t, x, u, p: [x[0] * np.where(t > 20.0, 1.5, 0.5)], None, states=1, inputs=0, outputs=1, dt=1.0
        )
        with pytest.raises(ValueError, match="depends on time"):
            est.certify(plants.discretize(late))
        seen = ct.nlsys(
            lambda t, x, u, p: [1.1 * x[0]],
            lambda t, x, u, p: [x[0] * np.cos(t)],
            states=1,
            inputs=0,
            outputs=1,
            dt=1.0,
        )
        with pytest.raises(ValueError, match="depends on time"):
            est.certify(est.LuenbergerObserver(plants.discretize(seen), [[0.6]], form="predictor"))

    def test_a_map_that_changes_with_time(self):
        system = ct.nlsys(lambda t, x, u, p: [0.5 * x[0] * np.cos(t)], None, states=1, inputs=0, outputs=1, dt=1.0)
        with pytest.raises(ValueError, match="depends on time"):
            est.certify(plants.discretize(system))

    def test_points_without_a_jacobian(self):
        system = ct.nlsys(lambda t, x, u, p: [0.1 / x[0]], None, states=1, inputs=0, outputs=1, dt=1.0, name="inverse")
        model = plants.discretize(system, operating_region={"x[0]": (1, 2)})
        with pytest.raises(ValueError, match="not finite at"):
            est.certify(model, region={"x[0]": (0.0, 1e-300)})


def test_common_metric_contracts_all_of_its_jacobians():
    rng = np.random.default_rng(0)
    A = 0.3 * rng.standard_normal((500, 3, 3))
    A *= (0.9 / np.maximum(np.linalg.norm(A, 2, axis=(1, 2)), 0.9))[:, None, None]
    P = common_metric(A, 0.95)
    assert rates_in(P, A).max() <= 0.95
    rotation = np.array([[[0.0, 1.2], [-1.2, 0.0]]])
    assert common_metric(rotation, 1.0) is None


class TestFilters:
    def test_a_sound_filter_forgets_every_start_tried(self):
        setting = plants.scenario("pendulum")
        filter_ = est.ExtendedKalmanFilter(setting.model, setting.noise)
        certificate = est.certify(filter_, setting.simulate(24, 150, seed=0))
        assert certificate.verdict == "sampled" and certificate.bound == 1.0
        assert certificate.metric is None and "no certificate" in certificate.evidence["meaning"]

    def test_a_filter_with_two_answers_is_refuted_with_the_start(self):
        """The cosine of the angle does not tell left from right."""
        system = plants.pendulum()
        ambiguous = ct.nlsys(
            system.updfcn,
            lambda t, x, u, params: [plants.array_namespace(x).cos(x[0])],
            states=2,
            inputs=1,
            outputs=1,
            params=system.params,
            name="ambiguous",
        )
        region = {"x[0]": (-2, 2), "x[1]": (-3, 3), "u[0]": (-0.1, 0.1)}
        model = plants.discretize(ambiguous, 0.05, operating_region=region)
        noise = plants.GaussianNoise([1e-6, 1e-6], [1e-4])
        data = plants.simulate(model, trajectories=16, steps=100, noise=noise, seed=0)
        filter_ = est.ExtendedKalmanFilter(model, noise)
        certificate = est.certify(filter_, data)
        assert certificate.verdict == "refuted" and 0 < certificate.bound < 1
        _, wrong = certificate.evidence["two starts"]
        k = certificate.evidence["trajectory"]
        one = est.run(filter_, data.isel(trajectory=[k]), x0=wrong)["filtered"].values[0, -20:]
        right = est.run(filter_, data.isel(trajectory=[k]), x0=data["x"].values[k, 0])["filtered"].values[0, -20:]
        error = np.sqrt(np.mean((right - data["x"].values[k, -20:]) ** 2))
        assert np.sqrt(np.mean((one - right) ** 2)) > 0.1 * error

    def test_without_noise_a_filter_that_finds_back_is_not_refuted(self):
        setting = plants.scenario("van_der_pol")
        quiet = plants.simulate(setting.model, trajectories=8, steps=200, seed=0)
        certificate = est.certify(est.ExtendedKalmanFilter(setting.model, setting.noise), quiet)
        assert certificate.verdict == "sampled" and certificate.bound == 1.0

    def test_without_data_nothing_can_be_said(self):
        setting = plants.scenario("pendulum")
        with pytest.raises(ValueError, match="has no certificate"):
            est.certify(est.UnscentedKalmanFilter(setting.model, setting.noise))
        with pytest.raises(ValueError, match="at least 8"):
            est.certify(est.UnscentedKalmanFilter(setting.model, setting.noise), setting.simulate(4, 5, seed=0))


class TestPlantCheck:
    def test_a_linear_plant_can_be_placed_anywhere(self):
        check = est.check_plant(plants.scenario("mass_spring_damper").model)
        assert check.rank == 2 and not check.needs_lift
        assert check.injection_rate < 0.1 and check.constant_gain_rate < 0.1
        assert "one constant gain does" in str(check)

    def test_the_gain_found_contracts_the_linearisations(self):
        setting = plants.scenario("van_der_pol")
        data = setting.simulate(16, 100, seed=0)
        check = est.check_plant(setting.model, data)
        x = torch.from_numpy(data["x"].values)
        A, _, C, _ = setting.model.linearize(x)
        closed = (A - torch.from_numpy(check.gain) @ C).numpy().reshape(-1, 2, 2)
        assert np.abs(np.linalg.eigvals(closed)).max() < 1.0
        assert check.injection_rate <= check.constant_gain_rate + 0.02

    def test_a_hidden_growing_state_is_seen_as_such(self):
        system = ct.ss([[0.5, 0.0], [0.0, 1.1]], [[1], [1]], [[1, 0]], 0, dt=0.1)
        check = est.check_plant(plants.discretize(system))
        assert check.rank == 1 and list(check.unobservable) == ["x[1]"]
        assert check.needs_lift and "nstates=4" in str(check)

    def test_an_observable_plant_may_still_need_more_states(self):
        """At the upright the sensor shows nothing for an instant, and there the plant expands."""
        system = plants.pendulum()
        cosine = ct.nlsys(
            system.updfcn,
            lambda t, x, u, params: [plants.array_namespace(x).cos(x[0])],
            states=2,
            inputs=1,
            outputs=1,
            params=system.params,
        )
        model = plants.discretize(cosine, 0.05, operating_region={"x[0]": (-4, 4), "x[1]": (-4, 4), "u[0]": (-1, 1)})
        angle = np.linspace(0, np.pi, 60)
        x = np.stack([angle, np.zeros(60)], axis=1)[None]
        data = plants.from_arrays(model, x=x, u=np.zeros((1, 60, 1)), y=np.cos(x[..., :1]))
        check = est.check_plant(model, data)
        assert check.needs_lift and "Give it more states" in str(check)

    def test_bad_input(self):
        with pytest.raises(TypeError, match="StateSpaceModel"):
            est.check_plant(plants.pendulum())


class TestLiftedObservers:
    def test_more_states_than_the_plant(self, tmp_path):
        setting = plants.scenario("pendulum")
        data, test = setting.simulate(64, 60, seed=0), setting.simulate(8, 60, seed=1)
        observer = est.R2DNObserver(setting.model, nstates=5, nfeedback=6, hidden=(12,))
        history = observer.fit(data, updates=40, one_step_updates=20, horizon=30, progress=False)
        assert history.validation_loss[-1] < history.validation_loss[0]
        certificate = est.certify(observer, test)
        assert certificate.verdict == "proved" and certificate.metric.shape == (5, 5)
        observer.save(tmp_path / "lifted")
        loaded = est.load(tmp_path / "lifted", setting.model)
        one, many = est.run(observer, test)["filtered"].values, est.run(loaded, test)["filtered"].values
        np.testing.assert_array_equal(one, many)
        state = observer.init(test["x"].values[0, 0])
        batch = observer.init(test["x"].values[:1, 0])
        assert state.z.shape == (5,) and state.predicted.shape == (2,)
        u, y = test["u"].values[0], test["y"].values[0]
        whole = observer.estimate_sequence(batch, torch.from_numpy(u[None]), torch.from_numpy(y[None])).filtered[0]
        for k in range(20):
            state, estimate = observer.step(state, u[k], y[k])
            batch, same = observer.step(batch, u[k : k + 1], y[k : k + 1])
            torch.testing.assert_close(estimate.filtered, whole[k], rtol=0, atol=1e-12)
            torch.testing.assert_close(same.filtered[0], whole[k], rtol=0, atol=1e-12)

    def test_it_starts_as_the_same_linear_observer(self):
        setting = plants.scenario("van_der_pol")
        data = setting.simulate(64, 60, seed=0)
        same, lifted = (est.R2DNObserver(setting.model, nstates=n) for n in (2, 6))
        for observer in (same, lifted):
            observer.initialise(data)
        a, b = (est.run(observer, data)["filtered"].values for observer in (same, lifted))
        # the random network of the start enters through other random matrices
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.3 * np.sqrt(np.mean((a - data["x"].values) ** 2))

    def test_bad_input(self):
        model = plants.scenario("pendulum").model
        with pytest.raises(ValueError, match="at least the plant's 2"):
            est.R2DNObserver(model, nstates=1)
        with pytest.raises(ValueError, match="nstates must be a positive integer"):
            est.R2DNObserver(model, nstates=2.5)
