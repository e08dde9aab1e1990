"""Error tubes: hold on fresh trajectories, mean what they say, and are not vacuous."""

import control as ct
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import estimators as est
import plants
from estimators.certificates.adversary import worst_errors
from estimators.certificates.residual_bound import enclosed_residuals
from estimators.certificates.residuals import measure
from estimators.certificates.tracker import Embedding, Tracker
from estimators.metrics import errors


@pytest.fixture(scope="module")
def tracked(trained_pair):
    observer, _ = trained_pair
    data = plants.scenario("pendulum").simulate(300, 80, seed=20)
    return observer, data, est.certify_error(observer, observer.model, data, probability=0.9)


def wrong_starts(data, start_error, seed):
    """Starts anywhere in the box of allowed errors, every fourth at a corner."""
    rng = np.random.default_rng(seed)
    x = data["x"].values[:, 0]
    share = rng.uniform(-1, 1, x.shape)
    share[::4] = np.sign(share[::4])
    return x + share * start_error


def test_fresh_trajectories_stay_inside_as_often_as_promised(tracked):
    observer, data, bound = tracked
    fresh = plants.scenario("pendulum").simulate(1000, 80, seed=21)
    outside = bound.violations(observer, fresh, wrong_starts(fresh, bound.evidence["start_error"], 0))
    # 10 % are allowed; 150 calibration trajectories leave the true share a standard deviation of 2.4 %
    assert outside.mean() <= 0.10 + 3 * 0.026
    known = est.certify_error(observer, observer.model, data, probability=0.9, start_error=[0.0, 0.0])
    from_truth = known.violations(observer, fresh, fresh["x"].values[:, 0])
    assert 0.10 - 3 * 0.026 < from_truth.mean() <= 0.10 + 3 * 0.026  # nor is the tube wider than it has to be


def test_what_a_start_adds_dies_at_a_certified_rate(tracked):
    observer, data, _ = tracked
    exact, near, twice = (
        est.certify_error(observer, observer.model, data, probability=0.9, start_error=e).half_width.sel(
            kind="filtered"
        )
        for e in ([0.0, 0.0], [0.5, 1.0], [1.0, 2.0])
    )
    added = (near - exact).values
    # start-up signals come in too, and are gone before this
    assert (added > 0).all() and (np.diff(added[20:], axis=0) < 0).all()
    assert (added[-1] / added[-41] <= est.certify(observer).bound ** 40 * 1.5).all()
    np.testing.assert_allclose((twice - exact).values, 2 * added, rtol=1e-9)


def test_a_higher_probability_takes_a_wider_tube_and_more_trajectories(tracked):
    observer, data, bound = tracked
    wider = est.certify_error(observer, observer.model, data, probability=0.98)
    assert (wider.half_width > bound.half_width).all()
    with pytest.raises(ValueError, match="takes 1998 trajectories, the dataset has 300"):
        est.certify_error(observer, observer.model, data, probability=0.999)


def test_another_plant_than_the_observers_own_gets_a_wider_tube(tracked):
    observer, _, bound = tracked
    setting = plants.scenario("pendulum")
    other = plants.discretize(
        plants.pendulum(gravity=18.0),
        0.05,
        operating_region=setting.operating_region,
        angle_states=["theta"],
        angle_outputs=["angle"],
    )
    data = plants.simulate(other, trajectories=300, steps=80, noise=setting.noise, seed=3, inputs=setting.excitation)
    here = {"kind": "filtered", "state": "omega"}
    wider = est.certify_error(observer, other, data, probability=0.9).steady.sel(here)
    assert float(wider) > 1.1 * float(bound.steady.sel(here))


def test_starts_on_another_turn_are_allowed_for(trained_pair):
    """Near half a turn a small start error and a little noise put two runs a whole turn apart."""
    observer, _ = trained_pair
    data = plants.scenario("pendulum").simulate(120, 60, seed=9)
    first = [
        est.certify_error(observer, observer.model, data, probability=0.9, start_error=[e, 0.0]).half_width.values[
            1, 0, 0
        ]
        for e in (0.5, 3.0)
    ]
    # the predicted estimate at the start is the start itself
    assert first[0] < 1.5 and first[1] >= 2 * np.pi
    x0 = data["x"].values[:, 0]
    for sign in (-1, 1):  # exactly there
        start = x0 + np.array([sign * 3.0, 0.1])
        bound = est.certify_error(observer, observer.model, data, probability=0.9, start_error=[3.0, 0.1])
        assert bound.violations(observer, data, start).mean() <= 0.15


def test_trajectories_of_a_linear_observer_are_a_sample_too():
    setting = plants.scenario("mass_spring_damper")
    observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
    data = setting.simulate(100, 60, seed=0)
    bound = est.certify_error(observer, setting.model, data, measurement_bound=[0.6], probability=0.9)
    assert bound.verdict == "sampled"  # the disturbances are drawn, not bounded
    bound = est.certify_error(
        observer, setting.model, data, measurement_bound=[0.6], disturbance_bound=[0.1, 1.0], probability=0.9
    )
    assert bound.verdict == "proved"


class TestBoundedNoise:
    def test_linear_observer_is_proved_and_near_its_worst_case(self):
        """The l1 norm of the impulse response is what noise can do at most; the ellipsoid may not be below it."""
        setting = plants.scenario("mass_spring_damper")
        model = setting.model
        observer = est.LuenbergerObserver.from_noise(model, setting.noise)
        noise, disturbance = np.array([0.6]), np.array([0.03, 0.3])
        bound = est.certify_error(
            observer, model, {}, measurement_bound=noise, disturbance_bound=disturbance, start_error=[0.1, 0.1]
        )
        assert bound.verdict == "proved" and bound.probability == 1
        A, _, C, _ = model.matrices
        K = observer.gain.numpy()
        closed, power = A - A @ K @ C, np.eye(2)
        worst = np.zeros(2)
        for _ in range(400):
            worst += np.abs(power @ A @ K) @ noise + np.abs(power) @ disturbance
            power = closed @ power
        found = bound.steady.sel(kind="predicted").values
        assert (found >= worst).all()
        assert (found <= 2.5 * worst).all()

    def test_no_noise_within_the_bound_leaves_the_tube(self, trained_pair):
        observer, _ = trained_pair
        setting = plants.scenario("pendulum")
        quiet = plants.BoundedNoise(setting.noise.process_cov, setting.noise.measurement_cov)
        data = setting.simulate(200, 80, seed=5, noise=quiet)
        limit = quiet.measurement_bound
        settings = {"measurement_bound": limit, "probability": 0.9, "start_error": [0.5, 0.5]}
        bound = est.certify_error(observer, observer.model, data, **settings)
        fresh = setting.simulate(300, 80, seed=6, noise=quiet)
        # bang-bang noise instead of the drawn one
        rng = np.random.default_rng(0)
        clean = observer.model.output(fresh["x"].values, fresh["u"].values).numpy()
        loud = fresh.assign(y=(fresh["y"].dims, clean + limit * rng.choice([-1.0, 1.0], clean.shape)))
        outside = bound.violations(observer, loud, wrong_starts(loud, [0.5, 0.5], 1))
        assert outside.mean() <= 0.1
        worst = worst_errors(Tracker.of(observer), observer, observer.model, fresh, limit)
        assert (bound.steady.values > worst).all()
        assert (bound.evidence["steady half-width over that"] < 15).all()

    def test_the_worst_noise_found_is_the_largest_there_is_for_a_linear_observer(self):
        setting = plants.scenario("mass_spring_damper")
        observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
        data = plants.simulate(setting.model, trajectories=4, steps=200, seed=0)  # no noise of its own
        found = worst_errors(Tracker.of(observer), observer, setting.model, data, np.array([0.6]))
        A, _, C, _ = setting.model.matrices
        K = observer.gain.numpy()
        closed, power, worst = A - A @ K @ C, np.eye(2), np.zeros(2)
        for _ in range(400):
            worst += 0.6 * np.abs(power @ A @ K)[:, 0]
            power = closed @ power
        np.testing.assert_allclose(found[1], worst, rtol=1e-6)

    def test_over_a_region(self, trained_pair):
        observer, _ = trained_pair
        model, region = observer.model, {"theta": (-0.6, 0.6), "omega": (-1, 1), "torque": (-1, 1)}
        small = [0.001, 0.01]
        bound = est.certify_error(observer, model, region, measurement_bound=[0.1], disturbance_bound=small)
        assert bound.verdict == "sampled" and "points of the region" in bound.statement
        larger = est.certify_error(observer, model, region, measurement_bound=[1.0], disturbance_bound=small)
        assert (larger.steady > bound.steady).all()

    def test_enclosed_residuals_prove_the_tube_over_a_region(self, trained_pair):
        observer, _ = trained_pair
        model, region = observer.model, {"theta": (-0.4, 0.4), "omega": (-0.5, 0.5), "torque": (-0.5, 0.5)}
        settings = {"measurement_bound": [0.1], "disturbance_bound": [0.001, 0.01], "start_error": [0.1, 0.1]}
        sampled = est.certify_error(observer, model, region, **settings)
        proved = est.certify_error(observer, model, region, residual="enclosed", **settings)
        assert proved.verdict == "proved" and proved.probability == 1 and "residual is enclosed" in proved.statement
        assert (proved.steady < 1.5 * sampled.steady).all()
        # runs that stay in the region stay in the tube, with noise and disturbance at their bounds
        rng, count = np.random.default_rng(0), 2000
        x = rng.uniform([-0.1, -0.2], [0.1, 0.2], (count, 2))
        state, inside = observer.init(x + rng.uniform(-0.1, 0.1, x.shape)), np.ones(count, bool)
        width = proved.half_width.sel(kind="filtered").values
        for k in range(60):
            u = rng.uniform(-0.5, 0.5, (count, 1))
            y = model.output(x, u).numpy() + 0.1 * rng.choice([-1, 1], (count, 1))
            state, estimate = observer.step(state, u, y)
            assert (np.abs(errors(model, estimate.filtered, x)) <= width[k])[inside].all()
            x = model.step(x, u).numpy() + np.array([0.001, 0.01]) * rng.choice([-1, 1], x.shape)
            inside &= (np.abs(x) <= [0.4, 0.5]).all(1)
        assert inside.mean() > 0.2

    def test_enclosures_are_above_every_sample(self, trained_pair):
        observer, _ = trained_pair
        model, tracker = observer.model, Tracker.of(observer)
        lower, upper = np.array([-0.5, -1.0, -0.5]), np.array([0.3, 0.5, 1.0])
        identity = Embedding(observer.nstates, observer.coordinates)
        state, readout, _ = enclosed_residuals(tracker, observer, model, identity, lower, upper, np.zeros(1))
        x, u = np.split(np.random.default_rng(1).uniform(lower, upper, (100_000, 3)), [2], axis=1)
        x[:4], u[:4] = [[-0.5, -1.0], [0.3, 0.5], [-0.5, 0.5], [0.3, -1.0]], 1.0
        points = torch.from_numpy(x)[:, None], torch.from_numpy(u)[:, None]
        found = measure(tracker, observer, model, identity, *points, torch.zeros_like(points[0]), np.zeros(2))
        largest = np.abs(found.state).max((0, 1)), found.readout.max((1, 2))
        assert (largest[0] <= state).all() and (largest[1] <= readout).all()
        assert (largest[0] > 0.8 * state).all() and (largest[1] > 0.8 * readout).all()  # nor far above


def test_plot_and_text(tracked):
    observer, data, bound = tracked
    figure = est.plot_tube(bound, est.run(observer, data), data, trajectory=1)
    assert len(figure.axes) == 4
    plt.close(figure)
    text = str(bound)
    assert "SAMPLED" in text and "steady half-width, filtered" in text and "conformal" in text
    assert bound.to_dict()["half_width"]["dims"] == ["kind", "time", "state"]
    with pytest.raises(ValueError, match="kind must be one of"):
        est.plot_tube(bound, est.run(observer, data), data, kind="smoothed")
    long = plants.scenario("pendulum").simulate(2, 90, seed=0)
    with pytest.raises(ValueError, match="90 time steps, the tube 80"):
        est.plot_tube(bound, est.run(observer, long), long)


class TestBadInput:
    def test_observer_and_plant_of_different_kind(self, trained_pair):
        observer, data = trained_pair
        other = plants.scenario("van_der_pol")
        with pytest.raises(ValueError, match="differ in state_labels"):
            est.certify_error(observer, other.model, other.simulate(4, 20, seed=0))
        slower = plants.discretize(plants.pendulum(), 0.1, angle_states=["theta"], angle_outputs=["angle"])
        with pytest.raises(ValueError, match=r"differ in dt: 0\.05"):
            est.certify_error(observer, slower, data)
        with pytest.raises(TypeError, match="StateSpaceModel"):
            est.certify_error(observer, plants.pendulum(), data)
        with pytest.raises(ValueError, match="x"):
            est.certify_error(observer, observer.model, data.drop_vars("x"))

    def test_other_angles_or_a_plant_that_changes_with_time(self, trained_pair):
        observer, data = trained_pair
        with pytest.raises(ValueError, match="differ in angle_states"):
            est.certify_error(observer, plants.discretize(plants.pendulum(), 0.05), data)
        with pytest.raises(ValueError, match="noise included"):
            est.certify_error(
                observer, observer.model, {"theta": (2.7, 3.1)}, measurement_bound=[0.1], residual="enclosed"
            )
        system = plants.mass_spring_damper()
        drifting = ct.nlsys(
            lambda t, x, u, p: system.updfcn(t, x, u, p) + np.tanh(t),
            system.outfcn,
            states=system.state_labels,
            inputs=system.input_labels,
            outputs=system.output_labels,
            params=system.params,
        )
        setting = plants.scenario("mass_spring_damper")
        steady = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
        model = plants.discretize(drifting, setting.dt)
        with pytest.raises(ValueError, match="depends on time"):
            est.certify_error(steady, model, setting.simulate(4, 20, seed=0))

    def test_estimators_without_a_certificate(self, trained_pair):
        _, data = trained_pair
        setting = plants.scenario("pendulum")
        with pytest.raises(TypeError, match="a filter has no certificate"):
            est.certify_error(est.ExtendedKalmanFilter(setting.model, setting.noise), setting.model, data)
        divergent = est.LuenbergerObserver(plants.scenario("mass_spring_damper").model, [[-5.0], [0.0]])
        with pytest.raises(ValueError, match="not proved to be contracting"):
            est.certify_error(divergent, divergent.model, data)
        nonlinear = est.LuenbergerObserver(setting.model, [[0.1], [0.1]])
        with pytest.raises(TypeError, match="not linear"):
            est.certify_error(nonlinear, setting.model, data)

    def test_bounds(self, trained_pair):
        observer, data = trained_pair
        model = observer.model
        with pytest.raises(ValueError, match="start_error must be 2 numbers"):
            est.certify_error(observer, model, data, start_error=[1.0])
        with pytest.raises(ValueError, match="measurement_bound must be 1 numbers"):
            est.certify_error(observer, model, data, measurement_bound=[-0.1])
        with pytest.raises(ValueError, match="probability must be between"):
            est.certify_error(observer, model, data, probability=1.0)
        with pytest.raises(ValueError, match="measurement_bound is needed"):
            est.certify_error(observer, model, {"theta": (-1, 1)})
        with pytest.raises(ValueError, match="lower < upper"):
            est.certify_error(observer, model, {"theta": (1, -1)}, measurement_bound=[0.1])
        with pytest.raises(ValueError, match="residual must be 'sampled' or 'enclosed'"):
            est.certify_error(observer, model, {}, measurement_bound=[0.1], residual="guessed")
        with pytest.raises(ValueError, match="trajectories are samples"):
            est.certify_error(observer, model, data, measurement_bound=[0.1], residual="enclosed")
        with pytest.raises(ValueError, match="within half a turn"):
            est.certify_error(observer, model, {"theta": (-4, 4)}, measurement_bound=[0.1], residual="enclosed")
        with pytest.raises(TypeError, match="where must be a Dataset or a region"):
            est.certify_error(observer, model, [1, 2], measurement_bound=[0.1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mass_spring_damper", "van_der_pol"])  # the other two take six minutes
def test_ten_thousand_fresh_trajectories_with_the_default_training(name, capsys):
    """Default training; both kinds of tube; figures of the README are printed."""
    from tests.benchmarks.tubes import compare

    result = compare(name)
    with capsys.disabled():
        print("\n" + result.row())
    # 1 % is promised; 1000 calibration trajectories leave the true share a standard deviation of 0.3 %
    assert result.outside <= 10_000 * (0.01 + 3 * 0.0033)
    assert result.outside_bounded == 0
    assert (result.steady_over_largest <= 10).all()
    assert (result.bounded_over_worst <= 10.5).all()
