"""Kalman filter along another estimator's trajectory."""

import numpy as np
import pytest
import torch

import estimators as est
import plants
from tests.tolerances import ROUNDING


@pytest.fixture(scope="module")
def car():
    setting = plants.scenario("bicycle")
    observer = est.R2DNObserver(setting.model)
    observer.initialise(setting.simulate(200, 100, seed=0))
    return setting, observer


class Told:
    """A reference that knows what it is told, here the truth."""

    def __init__(self, model, x):
        self.model, self.x = model, x

    def init(self, x0, P0=None):
        return 0

    def step(self, state, u, y):
        return state + 1, est.Estimate(self.x[..., state, :], self.x[..., state, :])

    def estimate_sequence(self, state, u, y):
        return est.Estimate(self.x, self.x)


def rmse(estimator, data):
    found = est.run(estimator, data)
    return np.sqrt(np.square(est.metrics.errors(estimator.model, found["filtered"], data["x"])).mean((0, 1)))


def test_of_a_linear_plant_it_is_the_kalman_filter_whatever_the_reference():
    setting = plants.scenario("mass_spring_damper")
    data = setting.simulate(4, 40, seed=0)
    data["y"][1, 7] = np.nan
    far = torch.from_numpy(np.random.default_rng(0).normal(size=data["x"].shape))
    found = est.run(est.ExogenousKalmanFilter(setting.model, setting.noise, Told(setting.model, far)), data)
    truth = est.run(est.KalmanFilter(setting.model, setting.noise), data)
    for name in truth.data_vars:
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-9, atol=100 * ROUNDING)


def test_along_the_truth_of_a_nonlinear_plant_its_covariance_is_right():
    """NEES of 400 runs of a filter linearised at the truth: chi-square to first order, however nonlinear the plant."""
    setting = plants.scenario("pendulum")
    data = setting.simulate(400, 60, seed=1)
    truth = torch.from_numpy(data["x"].values)
    honest = est.consistency(est.ExogenousKalmanFilter(setting.model, setting.noise, Told(setting.model, truth)), data)
    late = honest["nees"].values[:, 30:].mean()
    assert late / 2 == pytest.approx(1, abs=0.08)  # 400 runs, about 5 independent times: standard error 0.02
    assert honest.attrs["innovations_white"]


def test_untrained_observer_is_as_good_a_reference_as_the_truth(car):
    """Where the observer's own errors are 1.3 to 3 times the EKF's, the filter along it has the EKF's."""
    setting, observer = car
    data = setting.simulate(200, 150, seed=1)
    own, ekf = rmse(observer, data), rmse(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
    along = rmse(est.ExogenousKalmanFilter(setting.model, setting.noise, observer), data)
    assert (own > 1.2 * ekf).all()
    assert (along < 1.01 * ekf).all()


def test_an_angle_started_on_another_turn_is_the_same_angle(car):
    setting, observer = car
    data = setting.simulate(3, 40, seed=2)
    along = est.ExogenousKalmanFilter(setting.model, setting.noise, observer)
    x0 = data["initial_mean"].values
    turned = x0 + 2 * np.pi * setting.model.state_is_angle.numpy()
    one, other = (est.run(along, data, x0=start) for start in (x0, turned))
    np.testing.assert_allclose(one["filtered"], other["filtered"], atol=1e-9)


def test_forgetting_is_what_two_runs_along_one_reference_do(car):
    setting, observer = car
    data = setting.simulate(2, 60, seed=3)
    along = est.ExogenousKalmanFilter(setting.model, setting.noise, observer)
    bound = along.forgetting(data).numpy()
    _, u, y = plants.to_tensors(data)
    start = along.init(torch.from_numpy(data["initial_mean"].values).expand(2, -1), data["initial_cov"].values)
    away = torch.tensor([3.0, -2.0, 0.1, 1.0], dtype=torch.float64)
    other = start._replace(belief=start.belief._replace(mean=start.belief.mean + away))
    one, two = (along.estimate_sequence(state, u, y) for state in (start, other))
    apart = (two.predicted - one.predicted)[..., None]
    size = (apart.mT @ torch.linalg.solve(one.predicted_cov, apart))[..., 0, 0].sqrt().numpy()
    assert (size <= bound * size[:, :1] * (1 + 1e-6)).all()
    assert bound[:, 0] == pytest.approx(1)
    assert bound[:, -1].max() < 0.1


def test_certificate_names_what_is_proved_of_the_reference(car):
    setting, observer = car
    certificate = est.certify(
        est.ExogenousKalmanFilter(setting.model, setting.noise, observer), setting.simulate(8, 120, seed=4)
    )
    assert certificate.verdict == "sampled"
    assert "proved" in certificate.evidence["reference"]
    assert "left of a difference along the reference" in certificate.evidence


def test_any_estimator_may_be_the_reference():
    setting = plants.scenario("pendulum")
    data = setting.simulate(3, 20, seed=0)
    constant = est.LuenbergerObserver.from_poles(setting.model, [0.5, 0.6])  # predicts only
    for reference in (constant, est.ExtendedKalmanFilter(setting.model, setting.noise)):
        along = est.ExogenousKalmanFilter(setting.model, setting.noise, reference)
        assert np.isfinite(est.run(along, data)["filtered"]).all()
        twice = est.ExogenousKalmanFilter(setting.model, setting.noise, along)
        assert np.isfinite(est.run(twice, data)["filtered"]).all()


def test_bad_input_is_named(car):
    setting, observer = car
    other = plants.scenario("pendulum")
    with pytest.raises(ValueError, match="reference estimates the states"):
        est.ExogenousKalmanFilter(other.model, other.noise, observer)
    with pytest.raises(TypeError, match="reference must be an observer or a filter, got int"):
        est.ExogenousKalmanFilter(setting.model, setting.noise, 3)
    along = est.ExogenousKalmanFilter(setting.model, setting.noise, observer)
    with pytest.raises(ValueError, match="P0 is missing"):
        along.init([0.0, 0.0, 0.0, 8.0])
    data = setting.simulate(2, 10, seed=0)
    with pytest.raises(ValueError, match="dataset does not tell where"):
        along.forgetting(data.drop_vars("initial_mean"))
    with pytest.raises(ValueError, match="a region"):
        est.certify(along, region={"east": (0, 1)})
