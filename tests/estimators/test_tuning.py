"""Maximum likelihood: what was simulated is found again, within its own standard errors."""

import control as ct
import numpy as np
import pytest

import estimators as est
import plants

COVS = plants.GaussianNoise([0.05**2, 0.1**2], [0.2**2, 0.1**2])


def linear():
    return plants.discretize(ct.ss([[1, 0.1], [-0.2, 0.9]], [[0], [0.1]], np.eye(2), np.zeros((2, 1)), 0.1))


def wrong_by(noise, process, measurement):
    return plants.GaussianNoise(process * noise.process_cov, measurement * noise.measurement_cov)


@pytest.mark.parametrize("kind", [est.KalmanFilter, est.UnscentedKalmanFilter])
@pytest.mark.parametrize("guess", [(9, 1 / 9), (1e4, 1e-4), (1e-4, 1e4)], ids=["near", "far", "far the other way"])
def test_finds_the_noise_of_a_linear_plant_within_two_standard_errors(kind, guess):
    model = linear()
    data = plants.simulate(model, trajectories=64, steps=150, noise=COVS, seed=3, initial_cov=[0.1, 0.1])
    estimator = kind(model, wrong_by(COVS, *guess))
    result = estimator.tune(data)
    truth = np.sqrt(np.r_[np.diag(COVS.process_cov), np.diag(COVS.measurement_cov)])
    assert (np.abs(result.table["estimate"] - truth) < 2 * result.table["standard_error"]).all()
    assert (result.table["standard_error"] < 0.1 * truth).all()
    assert result.log_likelihood > result.log_likelihood_before
    assert estimator.noise is result.noise


@pytest.mark.parametrize("kind", [est.ExtendedKalmanFilter, est.UnscentedKalmanFilter])
def test_finds_the_noise_of_a_pendulum(kind):
    """The angle's own process noise (0.005) hides behind the sensor's 0.2; the others are determined."""
    setting = plants.scenario("pendulum")
    data = setting.simulate(64, 150, seed=4)
    estimator = kind(setting.model, wrong_by(setting.noise, 9, 1 / 9))
    table = estimator.tune(data).table
    for name, truth in (("process std omega", 0.1), ("measurement std angle", 0.2)):
        row = table.loc[name]
        assert abs(row["estimate"] - truth) < 2 * row["standard_error"] < 0.3 * truth


def test_standard_errors_cover():
    """Over 30 records of a linear plant 2 standard errors hold the truth in about 95 %; binomial bounds at 1e-3."""
    model, inside = linear(), []
    truth = np.sqrt(np.r_[np.diag(COVS.process_cov), np.diag(COVS.measurement_cov)])
    for seed in range(30):
        data = plants.simulate(model, trajectories=8, steps=100, noise=COVS, seed=seed, initial_cov=[0.1, 0.1])
        table = est.KalmanFilter(model, COVS).tune(data).table
        inside.extend(np.abs(table["estimate"] - truth) < 2 * table["standard_error"])
    assert 0.88 <= np.mean(inside) <= 1.0


def test_finds_parameters_and_start_together_with_the_noise():
    setting = plants.scenario("pendulum")
    data = setting.simulate(64, 100, seed=4)
    estimator = est.ExtendedKalmanFilter(setting.model, wrong_by(setting.noise, 4, 0.25))
    result = estimator.tune(data, parameters={"b": 0.1, "m": 1.5}, start=True)
    truth = {
        "b": 0.3,
        "m": 1.0,
        "measurement std angle": 0.2,
        "initial mean theta": 0.0,
        "initial mean omega": 0.0,
        "initial std theta": np.sqrt(data["initial_cov"].values[0, 0]),
        "initial std omega": np.sqrt(data["initial_cov"].values[1, 1]),
    }
    for name, value in truth.items():
        row = result.table.loc[name]
        # seven intervals at once: three standard errors
        assert abs(row["estimate"] - value) < 3 * row["standard_error"], (name, row)
    assert setting.model.system.params["m"] == 1.0  # the plant that was given is not changed
    assert estimator.model is result.model
    assert result.model.system.params["m"] == pytest.approx(result.table.loc["m", "estimate"])
    assert result.model.angle_states == ("theta",)
    found = est.run(estimator, data, x0=result.initial_mean, P0=result.initial_cov)
    assert np.isfinite(found["filtered"]).all()


def test_what_the_data_do_not_determine_is_said():
    def update(t, x, u, params):
        return [-params["a"] * params["b"] * x[0] + u[0]]  # only the product shows

    system = ct.nlsys(update, None, states=1, inputs=1, outputs=1, params={"a": 1.0, "b": 2.0}, name="twice")
    model = plants.discretize(system, 0.1)
    noise = plants.GaussianNoise([0.01**2], [0.05**2])
    data = plants.simulate(model, trajectories=16, steps=60, noise=noise, seed=0)
    with pytest.warns(UserWarning, match=r"the data do not determine \['a', 'b'\]"):
        result = est.ExtendedKalmanFilter(model, noise).tune(data, parameters={"a": 1.2, "b": 1.2})
    product = result.table.loc["a", "estimate"] * result.table.loc["b", "estimate"]
    assert product == pytest.approx(2.0, rel=0.05)
    assert np.isnan(result.table.loc[["a", "b"], "standard_error"]).all()


def test_the_whole_of_a_long_record_of_a_time_varying_plant_is_used():
    """Without true states, as a measured record is; 600 samples, the plant's rate swings with time."""

    def update(t, x, u, params):
        return [-params["k"] * (1 + 0.9 * np.sin(t)) * x[0] + u[0]]

    system = ct.nlsys(update, None, states=1, inputs=1, outputs=1, params={"k": 1.0})
    model, noise = plants.discretize(system, 0.05), plants.GaussianNoise([1e-4], [1e-2])
    data = plants.simulate(model, trajectories=10, steps=600, noise=noise, seed=0).drop_vars("x")
    table = est.ExtendedKalmanFilter(model, noise).tune(data, parameters={"k": 3.0}).table
    for name, truth in (("k", 1.0), ("process std x[0]", 0.01), ("measurement std y[0]", 0.1)):
        assert abs(table.loc[name, "estimate"] - truth) < 2.5 * table.loc[name, "standard_error"] < 0.2 * truth


@pytest.mark.parametrize("guess", [0.0, 1e-3, 1e3])
def test_finds_a_parameter_from_a_guess_far_off(guess):
    def update(t, x, u, params):
        return [-params["k"] * x[0] + u[0]]

    system = ct.nlsys(update, None, states=1, inputs=1, outputs=1, params={"k": 1.0})
    model, noise = plants.discretize(system, 0.05), plants.GaussianNoise([1e-4], [1e-2])
    data = plants.simulate(model, trajectories=20, steps=150, noise=noise, seed=0)
    row = est.ExtendedKalmanFilter(model, noise).tune(data, parameters={"k": guess}).table.loc["k"]
    assert abs(row["estimate"] - 1.0) < 2.5 * row["standard_error"] < 0.2


def test_noise_that_is_not_determined_is_bounded_not_dismissed():
    """A hidden decaying state hardly shows in the output: its noise must not come out as nothing."""
    model = plants.discretize(
        ct.ss([[0.5, 0.0], [0.002, 0.8]], [[0], [1]], [[0, 1]], 0, 1.0, states=["hidden", "seen"])
    )
    noise = plants.GaussianNoise([0.01, 0.01], [0.04])
    data = plants.simulate(model, trajectories=30, steps=100, noise=noise, seed=0, initial_cov=[0.01, 0.01])
    estimator = est.KalmanFilter(model, plants.GaussianNoise([1e-6, 0.01], [0.04]))
    table = estimator.tune(data).table
    assert np.isnan(table.loc["process std hidden", "standard_error"])
    assert table.loc["process std hidden", "estimate"] > 0.05  # 0.1 is the truth, 0.001 was the guess
    assert est.benchmark({"KF": estimator}, data)["nees"].item() < 1.2


def test_bad_input():
    model = linear()
    data = plants.simulate(model, trajectories=4, steps=20, noise=COVS, seed=0)
    with pytest.raises(TypeError, match="StateSpace has no parameters to estimate"):
        est.KalmanFilter(model, COVS).tune(data, parameters={"k": 1.0})
    with pytest.raises(TypeError, match="parameters must be a mapping"):
        est.KalmanFilter(model, COVS).tune(data, parameters=["k"])
    for wrong in ({"trajectories": -1}, {"steps": 0}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            est.KalmanFilter(model, COVS).tune(data, **wrong)
    setting = plants.scenario("pendulum")
    with pytest.raises(ValueError, match="parameter 'mass' changes neither"):
        est.ExtendedKalmanFilter(setting.model, setting.noise).tune(
            setting.simulate(4, 20, seed=0), parameters={"mass": 1.0}
        )


def test_states_and_parameters_are_estimated_together():
    """Joint estimation: an unknown mass as a state, from a wrong start, in every trajectory on its own."""
    setting = plants.scenario("pendulum")
    data = setting.simulate(40, 300, seed=0)
    system = plants.parameters_as_states(setting.system, {"m": 1.0})
    joint = setting.model.with_system(system, {"m": (0.5, 2.0)})
    assert joint.state_labels == ("theta", "omega", "m")
    noise = plants.GaussianNoise([*np.diag(setting.noise.process_cov), 0.0], setting.noise.measurement_cov)
    record = plants.from_arrays(joint, y=data["y"].values, u=data["u"].values)
    for kind in (est.ExtendedKalmanFilter, est.UnscentedKalmanFilter):
        start = {"x0": [*data["initial_mean"].values, 1.4], "P0": [*np.diag(data["initial_cov"].values), 0.4**2]}
        found = est.run(kind(joint, noise), record, **start)
        mass, std = found["filtered"].values[:, -1, 2], np.sqrt(found["filtered_cov"].values[:, -1, 2, 2])
        # 300 samples tell a mass to about 0.13: 0.023 from 9600 in the test above, times sqrt(32)
        assert np.sqrt(np.mean((mass - 1.0) ** 2)) < 0.2
        assert 0.6 < np.mean(((mass - 1.0) / std) ** 2) < 1.6


def test_parameters_as_inputs_and_with_other_values():
    setting = plants.scenario("pendulum")
    as_inputs = setting.model.with_system(plants.parameters_as_inputs(setting.system, {"m": 1.0}), {"m": (0.5, 2.0)})
    fixed = setting.model.with_system(plants.with_parameters(setting.system, {"m": 1.7}))
    np.testing.assert_allclose(as_inputs.step([0.3, 0.1], [0.2, 1.7]), fixed.step([0.3, 0.1], [0.2]), rtol=1e-14)
    inside = ct.interconnect([plants.pendulum()], inputs=["torque"], outputs=["angle"])
    with pytest.raises(TypeError, match="do it to the block before interconnecting"):
        plants.parameters_as_states(inside, {"m": 1.0})


def test_a_parameter_that_matters_only_at_hundreds_of_kelvin_is_found_to_matter():
    def reactor(t, x, u, params):
        rate = params["k0"] * np.exp(-8750 / x[1]) * x[0]
        return [1.0 - x[0] - rate, 350.0 - x[1] + 209.0 * rate + u[0]]

    system = ct.nlsys(reactor, lambda t, x, u, p: [x[1]], states=["c", "T"], inputs=1, outputs=1, params={"k0": 7.2e10})
    assert plants.parameters_as_states(system, {"k0": 7.2e10}).state_labels == ["c", "T", "k0"]
