"""A filter whose errors an R2DN predicts from its innovations."""

import numpy as np
import pytest
import torch

import estimators as est
import plants

STEPS = 80


def error(estimator, data):
    """RMSE of filtered and predicted estimates, (2, nstates)."""
    found = est.run(estimator, data)
    return np.stack(
        [
            np.sqrt(np.square(est.metrics.errors(estimator.model, found[kind], data["x"])).mean((0, 1)))
            for kind in ("filtered", "predicted")
        ]
    )


def trained(setting, condition, count=400):
    filter = est.KalmanFilter(setting.model, setting.noise)
    corrected = est.LearnedCorrection(filter, nstates=6, nfeedback=8, hidden=(16,))
    history = corrected.fit(condition.simulate(setting, count, STEPS, seed=0), updates=400, progress=False)
    return filter, corrected, history


@pytest.fixture(scope="module")
def setting():
    return plants.scenario("mass_spring_damper")


@pytest.fixture(scope="module")
def for_outliers(setting):
    return trained(setting, plants.CONDITIONS["outliers"])


def test_untrained_it_is_the_filter():
    setting = plants.scenario("pendulum")
    data = setting.simulate(3, 30, seed=0)
    filter = est.ExtendedKalmanFilter(setting.model, setting.noise)
    own, found = est.run(filter, data), est.run(est.LearnedCorrection(filter), data)
    for kind in ("predicted", "filtered"):
        np.testing.assert_allclose(found[kind], own[kind], rtol=0, atol=1e-12)
    assert "filtered_cov" not in found  # of the filter's errors, not of these


def test_it_is_ahead_of_the_best_linear_filter_where_noise_has_outliers(setting, for_outliers):
    filter, corrected, history = for_outliers
    fresh = plants.CONDITIONS["outliers"].simulate(setting, 300, STEPS, seed=1)
    tuned = est.KalmanFilter(setting.model, setting.noise)
    tuned.tune(fresh)  # even on the data of the test
    to_tuned, to_own = error(corrected, fresh) / error(tuned, fresh), error(corrected, fresh) / error(filter, fresh)
    assert (to_tuned[:, 0] < 0.92).all()  # position, which is measured
    assert (to_tuned[:, 1] < 1.02).all()  # its rate is level
    assert (to_own < 0.9).all()
    assert min(history.validation_loss) < 0.8
    assert history.wall_time > 0


def test_it_leaves_an_optimal_filter_alone(setting):
    filter, corrected, history = trained(setting, plants.CONDITIONS["nominal"])
    fresh = setting.simulate(300, STEPS, seed=1)
    # nothing can be won on a linear plant; what 360 trajectories pretend to show costs at most this
    assert (error(corrected, fresh) < 1.01 * error(filter, fresh)).all()
    assert min(history.validation_loss) > 0.98


def test_network_is_proved_contracting_and_forgets(for_outliers, setting):
    _, corrected, _ = for_outliers
    certificate = est.certify(corrected.network)
    assert certificate.verdict == "proved"
    _, u, y = plants.to_tensors(setting.simulate(1, 40, seed=2))
    start = corrected.init(np.zeros(2), np.eye(2))
    other = start._replace(z=start.z + 1.0)
    distance = []
    for k in range(40):
        e = (start.z - other.z).numpy()
        distance.append(np.sqrt(e @ certificate.metric @ e))
        start, _ = corrected.step(start, u[0, k], y[0, k])
        other, _ = corrected.step(other, u[0, k], y[0, k])
    assert (np.array(distance) <= distance[0] * certificate.bound ** np.arange(40) * (1 + 1e-9)).all()


def test_what_is_certified_of_the_whole_is_what_is_of_its_filter():
    """The network's proof is not one of the whole: it is in the evidence."""
    for name, verdict in (("pendulum", "sampled"), ("mass_spring_damper", "proved")):
        setting = plants.scenario(name)
        linear = setting.model.matrices is not None
        filter = (est.KalmanFilter if linear else est.ExtendedKalmanFilter)(setting.model, setting.noise)
        corrected, data = est.LearnedCorrection(filter, nfeedback=4, hidden=(8,)), setting.simulate(4, 60, seed=2)
        whole, own = est.certify(corrected, data), est.certify(filter, data)
        assert (whole.verdict, whole.bound) == (own.verdict, own.bound)
        assert whole.verdict == verdict
        assert "proved" in whole.evidence["network behind the filter"]
    with pytest.raises(ValueError, match="give a dataset"):
        est.certify(
            est.LearnedCorrection(est.ExtendedKalmanFilter(plants.scenario("pendulum").model, Q=np.eye(2), R=[[1]]))
        )


def test_correction_of_an_absurd_measurement_is_bounded(for_outliers, setting):
    filter, corrected, _ = for_outliers
    sizes = []
    for y in (1e6, 1e9):
        state = corrected.init(np.zeros(2), np.eye(2))
        _, estimate = corrected.step(state, [0.0], [y])
        _, own = filter.step(state.belief, [0.0], [y])
        deviation = own.filtered_cov.diagonal().sqrt()
        sizes.append(((estimate.filtered - own.filtered) / deviation).numpy())
    np.testing.assert_allclose(*sizes, rtol=1e-4)  # of 1e9 few digits are left
    assert np.isfinite(sizes).all()


def test_files(tmp_path, for_outliers, setting):
    _, corrected, _ = for_outliers
    path, data = tmp_path / "correction.safetensors", setting.simulate(2, 20, seed=3)
    corrected.save(path)
    again = est.LearnedCorrection.load(path, setting.model)
    np.testing.assert_array_equal(est.run(again, data)["filtered"], est.run(corrected, data)["filtered"])
    with pytest.raises(ValueError, match=r"KalmanFilter.*filter made .*ExtendedKalmanFilter"):
        est.LearnedCorrection.load(path, setting.model, est.ExtendedKalmanFilter)
    with pytest.raises(ValueError, match=r"gate.*None.*filter made .*0\.9"):
        est.LearnedCorrection.load(path, setting.model, lambda *args: est.KalmanFilter(*args, gate=0.9))
    with pytest.raises(ValueError, match="must take the noise it is given"):
        est.LearnedCorrection.load(
            path, setting.model, lambda model, _: est.KalmanFilter(model, Q=np.eye(2), R=[[1.0]])
        )
    for other in (
        setting.model.with_dt(0.05),
        plants.scenario("pendulum").model,
        plants.scenario("falling_body").model,
    ):
        with pytest.raises(ValueError, match="corrects a filter of"):
            est.LearnedCorrection.load(path, other)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read"):
        est.LearnedCorrection.load(path, setting.model)


def test_settings_of_the_filter_are_compared_by_value(tmp_path, setting):
    path, bounds = tmp_path / "correction.safetensors", {setting.model.state_labels[0]: (0.12341, 0.12349)}

    def bounded(**settings):
        return lambda model, noise: est.UnscentedKalmanFilter(model, noise, **settings)

    est.LearnedCorrection(bounded(bounds=bounds, gate=0.99)(setting.model, setting.noise)).save(path)
    est.LearnedCorrection.load(path, setting.model, bounded(bounds=bounds, gate=np.float64(0.99), alpha=1))
    nearly = {setting.model.state_labels[0]: (0.12340, 0.12349)}
    with pytest.raises(ValueError, match="filter made"):
        est.LearnedCorrection.load(path, setting.model, bounded(bounds=nearly, gate=0.99))


def test_files_of_filters_that_need_more_than_noise(tmp_path):
    setting = plants.scenario("pendulum")
    observer, path = est.R2DNObserver(setting.model, nfeedback=4, hidden=(8,)), tmp_path / "correction.safetensors"
    observer.initialise(setting.simulate(12, 30, seed=0))
    est.LearnedCorrection(est.ExogenousKalmanFilter(setting.model, setting.noise, observer)).save(path)
    with pytest.raises(ValueError, match="corrects a ExogenousKalmanFilter: give filter"):
        est.LearnedCorrection.load(path, setting.model)
    found = est.LearnedCorrection.load(path, setting.model, lambda *args: est.ExogenousKalmanFilter(*args, observer))
    np.testing.assert_array_equal(found.filter.noise.process_cov, setting.noise.process_cov)


def test_other_filters_can_be_corrected():
    """A UKF, and a Kalman filter along an observer; angles, gaps, a float32 filter."""
    setting = plants.scenario("pendulum")
    data = plants.CONDITIONS["missing samples"].simulate(setting, 12, 30, seed=0)
    observer = est.R2DNObserver(setting.model, nfeedback=4, hidden=(8,))
    observer.initialise(data)
    for filter in (
        est.UnscentedKalmanFilter(setting.model, setting.noise),
        est.ExtendedKalmanFilter(setting.model, setting.noise, dtype=torch.float32),
        est.ExogenousKalmanFilter(setting.model, setting.noise, observer),
    ):
        corrected = est.LearnedCorrection(filter, nstates=4, nfeedback=4, hidden=(8,))
        corrected.fit(data, updates=4, batch=4, progress=False)
        found = est.run(corrected, data)
        assert found["filtered"].dtype == np.float64
        assert np.isfinite(found["filtered"]).all()


def test_bad_input_is_named(setting):
    model = setting.model
    with pytest.raises(TypeError, match="filter must be a Gaussian filter"):
        est.LearnedCorrection(est.LuenbergerObserver.from_noise(model, setting.noise))
    corrected = est.LearnedCorrection(est.KalmanFilter(model, setting.noise))
    few = setting.simulate(5, 20, seed=0)
    with pytest.raises(ValueError, match="train has 5 trajectories"):
        corrected.fit(few)
    with pytest.raises(ValueError, match="updates must be a positive integer, got 0"):
        corrected.fit(few, few, updates=0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        corrected.fit(few, few, learning_rate=-1.0)
    with pytest.raises(ValueError, match="x0 is missing"):
        corrected.fit(few.drop_vars("initial_mean"), few)
    with pytest.raises(ValueError, match="states"):
        corrected.fit(few.drop_vars("x"), few)
    wild = est.ExtendedKalmanFilter(plants.scenario("growth_model").model, Q=[[1e-30]], R=[[1e-30]])
    far = plants.scenario("growth_model").simulate(12, 20, seed=0)
    with pytest.raises(ValueError, match="diverges on every trajectory"):
        est.LearnedCorrection(wild).fit(far.assign(y=far["y"] * 1e12), updates=1)
    with pytest.raises(ValueError, match="P0 is missing"):
        corrected.init([0.0, 0.0])
