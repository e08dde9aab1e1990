"""Consistency tests, gating, and sensors by name."""

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants

KINDS = [
    est.ExtendedKalmanFilter,
    est.IteratedExtendedKalmanFilter,
    est.UnscentedKalmanFilter,
    est.CubatureKalmanFilter,
]


def wrong(noise, process=1.0, measurement=1.0):
    return plants.GaussianNoise(process * noise.process_cov, measurement * noise.measurement_cov)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plant", ["mass_spring_damper", "pendulum", "quadruple_tank"])
def test_a_right_filter_is_consistent_and_a_wrong_one_is_found_out(kind, plant):
    setting = plants.scenario(plant)
    data = setting.simulate(100, 60, seed=6)  # one seed in a hundred leaves the 99 % bands by chance, 5 does
    data["y"][3, 10:20, 0] = np.nan
    right = est.consistency(kind(setting.model, setting.noise), data)
    assert right.attrs["innovations_consistent"] and right.attrs["innovations_white"]
    assert right.attrs["nees_inside"] > 0.95 and abs(right.attrs["nees_per_state"] - 1) < 0.05
    for factor in (0.25, 4.0):
        found = est.consistency(kind(setting.model, wrong(setting.noise, measurement=factor)), data)
        assert not found.attrs["innovations_consistent"]
        assert (found.attrs["nis_per_channel"] > 1) == (factor < 1)
    # a filter that trusts its model far too much lags behind, and its innovations are no longer white
    stiff = est.consistency(kind(setting.model, wrong(setting.noise, process=0.01)), data)
    assert not stiff.attrs["innovations_white"] and stiff.attrs["nees_inside"] < 0.5


def test_the_level_is_kept_over_many_repetitions():
    """A consistent filter leaves the 90 % bands about once in ten; 60 repetitions, binomial bounds at 1e-4."""
    model = plants.discretize(ct.ss([[0.8]], [[0.0]], [[1.0]], [[0.0]], 1.0))
    noise, inside, white = plants.GaussianNoise([0.3], [0.5]), 0, 0
    for seed in range(60):
        data = plants.simulate(
            model, trajectories=10, steps=30, noise=noise, seed=seed, initial_mean=[0.0], initial_cov=[1.0]
        )
        found = est.consistency(est.KalmanFilter(model, noise), data, level=0.9)
        inside += found.attrs["innovations_consistent"]
        white += found.attrs["innovations_white"]
    assert 43 <= inside <= 60 and 43 <= white <= 60


def test_whiteness_does_not_depend_on_the_scale_of_the_covariances():
    setting = plants.scenario("pendulum")
    data = setting.simulate(100, 60, seed=6)
    P0 = data["initial_cov"].values
    for factor in (1 / 9, 9.0):
        scaled = est.ExtendedKalmanFilter(setting.model, wrong(setting.noise, factor, factor))
        found = est.consistency(scaled, data, P0=factor * P0)
        assert found.attrs["innovations_white"] and not found.attrs["innovations_consistent"]


def test_a_sensor_of_its_own_rate_is_judged_where_it_was_measured():
    setting = plants.scenario("quadruple_tank")
    data = setting.simulate(50, 60, seed=0)
    data["y"][:, np.arange(60) % 4 != 0, 1] = np.nan
    found = est.consistency(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
    assert found.attrs["innovations_consistent"] and found.attrs["innovations_white"]
    assert np.isfinite(found["autocorrelation"]).all()  # lags are counted in measurements of the sensor itself
    # an error that stays from one fix to the next, four samples later, is found
    rng, stays = np.random.default_rng(0), np.zeros((50, 15))
    for k in range(1, 15):
        stays[:, k] = 0.9 * stays[:, k - 1] + 0.5 * rng.standard_normal(50)
    coloured = data.copy(deep=True)
    coloured["y"][:, ::4, 1] += stays
    judged = est.consistency(est.ExtendedKalmanFilter(setting.model, setting.noise), coloured)
    assert not judged.attrs["innovations_white"]
    assert judged.attrs["nis_per_output"][1] > 1.5 > 1.1 > judged.attrs["nis_per_output"][0]
    figure = est.plot_consistency(found)
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match=r"must come from estimators\.consistency"):
        est.plot_consistency(data)


def test_works_without_true_states_and_survives_netcdf(tmp_path):
    setting = plants.scenario("pendulum")
    data = setting.simulate(5, 20, seed=0).drop_vars("x")
    found = est.consistency(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
    assert "nees" not in found and found["nis"].shape == (5, 20)
    found.to_netcdf(tmp_path / "consistency.nc", engine="h5netcdf")


def test_an_innovation_is_positive_where_the_measurement_is_above_what_was_expected():
    model = plants.discretize(ct.ss([[1.0]], [[0.0]], [[1.0]], [[0.0]], 1.0))
    for kind in KINDS:
        found = kind(model, Q=[0.1], R=[3.0])
        state = found.init([1.0], [1.0])
        for y in (2.0, -2.0):
            expected = (y - 1.0) / 2.0  # deviation of the innovation: sqrt(1 + 3)
            assert found.innovation(state, [y], [0.0]).item() == pytest.approx(expected)
            assert found.step(state, [0.0], [y])[1].innovation.item() == pytest.approx(expected)


class TestGate:
    def test_leaves_out_what_lies_beyond_the_quantile_and_nothing_else(self):
        model = plants.discretize(ct.ss([[1.0]], [[0.0]], [[1.0]], [[0.0]], 1.0))
        gated, plain = (est.KalmanFilter(model, Q=[0.1], R=[1.0], gate=g) for g in (0.99, None))
        state, edge = plain.init([0.0], [1.0]), 2.5758293 * np.sqrt(2)  # normal quantile of 0.995, variance P + R
        inside, outside = (gated.correct(state, [factor * edge], [0.0]) for factor in (0.999, 1.001))
        torch.testing.assert_close(inside.mean, plain.correct(state, [0.999 * edge], [0.0]).mean)
        assert torch.equal(outside.mean, state.mean) and torch.equal(outside.factor, state.factor)
        assert gated.correct_with_likelihood(state, [1.001 * edge], [0.0])[1] == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_helps_where_one_measurement_in_ten_is_an_outlier(self, kind):
        setting = plants.scenario("van_der_pol")
        noise = plants.OutlierNoise(
            setting.noise.process_cov, setting.noise.measurement_cov, probability=0.1, scale=10.0
        )
        data = setting.simulate(100, 80, noise=noise, seed=1)
        error = [
            est.run(kind(setting.model, setting.noise, gate=gate), data)["filtered"].values[:, 30:]
            - data["x"].values[:, 30:]
            for gate in (None, 0.999)
        ]
        plain, gated = (np.sqrt(np.mean(np.square(e), axis=(0, 1))) for e in error)
        assert (gated < 0.7 * plain).all()

    def test_a_missing_channel_does_not_count(self):
        setting = plants.scenario("quadruple_tank")
        gated = est.ExtendedKalmanFilter(setting.model, setting.noise, gate=0.9)
        plain = est.ExtendedKalmanFilter(setting.model, setting.noise)
        state, u = gated.init([10.0, 11.0, 2.0, 1.5], 1e-6), [0.0] * setting.model.ninputs
        expected = setting.model.output(state.mean, torch.zeros(2, dtype=torch.float64)).numpy()
        deviation = np.sqrt(setting.noise.measurement_cov[0, 0])
        # beyond 90 % of one channel (1.645 deviations), within 90 % of two (2.146)
        both, one = expected + np.array([1.9 * deviation, 0.0]), [expected[0] + 1.9 * deviation, np.nan]
        assert torch.equal(gated.correct(state, both, u).mean, plain.correct(state, both, u).mean)
        assert torch.equal(gated.correct(state, one, u).mean, state.mean)

    def test_tuning_looks_at_every_measurement(self):
        setting = plants.scenario("pendulum")
        data = setting.simulate(16, 60, seed=0)
        found = [
            est.ExtendedKalmanFilter(setting.model, wrong(setting.noise, measurement=0.2), gate=g).tune(data)
            for g in (None, 0.9)
        ]
        np.testing.assert_allclose(found[0].noise.measurement_cov, found[1].noise.measurement_cov)

    def test_bad_input(self):
        setting = plants.scenario("pendulum")
        for gate in (0, 1, 1.5, "high", True):
            with pytest.raises(ValueError, match="gate must be a probability"):
                est.UnscentedKalmanFilter(setting.model, setting.noise, gate=gate)


class TestSensors:
    @pytest.mark.parametrize("kind", KINDS)
    def test_channels_by_name_are_those_channels(self, kind):
        setting = plants.scenario("quadruple_tank")
        estimator, labels = kind(setting.model, setting.noise), setting.model.output_labels
        state = estimator.init(setting.simulate(1, 2, seed=0)["x"].values[0, 0], 1.0)
        u = [0.0] * setting.model.ninputs
        right = estimator.correct(state, [np.nan, 5.0], u)
        found = estimator.correct(state, [5.0], u, sensor=labels[1])
        assert torch.equal(found.mean, right.mean) and torch.equal(found.factor, right.factor)
        swapped = estimator.correct(state, [5.0, 4.0], u, sensor=[labels[1], labels[0]])
        assert torch.equal(swapped.mean, estimator.correct(state, [4.0, 5.0], u).mean)

    def test_independent_sensors_may_come_one_after_the_other(self):
        setting = plants.scenario("quadruple_tank")
        estimator, (one, two) = est.ExtendedKalmanFilter(setting.model, setting.noise), setting.model.output_labels
        state, u = estimator.init([10.0, 11.0, 2.0, 1.5], 1.0), [0.0] * setting.model.ninputs
        together = estimator.correct(state, [5.0, 4.0], u)
        after = estimator.correct(estimator.correct(state, [5.0], u, sensor=one), [4.0], u, sensor=two)
        torch.testing.assert_close(after.mean, together.mean, rtol=1e-9, atol=1e-9)  # linear outputs
        torch.testing.assert_close(after.cov, together.cov, rtol=1e-9, atol=1e-9)

    def test_bad_input(self):
        setting = plants.scenario("quadruple_tank")
        estimator = est.ExtendedKalmanFilter(setting.model, setting.noise)
        state, u, (one, two) = estimator.init([1.0] * 4, 1.0), [0.0] * 2, setting.model.output_labels
        with pytest.raises(ValueError, match=r"sensor must name different outputs of .* got \['gps'\]"):
            estimator.correct(state, [1.0], u, sensor="gps")
        with pytest.raises(ValueError, match="sensor must name different outputs"):
            estimator.correct(state, [1.0, 1.0], u, sensor=[one, one])
        with pytest.raises(ValueError, match=r"y must have shape \(\.\.\., 2\)"):
            estimator.correct(state, [1.0], u, sensor=[one, two])


def test_bad_input():
    setting = plants.scenario("pendulum")
    data = setting.simulate(2, 5, seed=0)
    with pytest.raises(TypeError, match="consistency takes a Gaussian filter"):
        est.consistency(est.ParticleFilter(setting.model, setting.noise), data)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        est.consistency(est.ExtendedKalmanFilter(setting.model, setting.noise), data, level=99)
