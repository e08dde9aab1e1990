"""Robustness over conditions and seeds, here and on Dask workers."""

import os
import signal
import threading
import warnings
from dataclasses import replace

import control as ct
import numpy as np
import pytest
import xarray as xr

import estimators as est
import plants


@pytest.fixture(scope="module")
def setting():
    return plants.scenario("pendulum")


@pytest.fixture(scope="module")
def filters(setting):
    return {
        "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise),
        "UKF": est.UnscentedKalmanFilter(setting.model, setting.noise),
    }


SMALL = {"seeds": 2, "trajectories": 8, "steps": 60, "progress": False}


class TestConditions:
    def test_nominal_is_the_scenario_itself(self, setting):
        one, two = plants.CONDITIONS["nominal"].simulate(setting, 4, 30, 7), setting.simulate(4, 30, 7)
        xr.testing.assert_allclose(one[["x", "u", "y"]], two[["x", "u", "y"]], rtol=0, atol=0)

    @pytest.mark.parametrize("name", plants.CONDITIONS)
    def test_the_same_seed_gives_the_same_data_and_the_nominal_plant_is_told(self, setting, name):
        condition = plants.CONDITIONS[name]
        one, two, other = (condition.simulate(setting, 5, 30, seed) for seed in (1, 1, 2))
        xr.testing.assert_identical(one, two)
        assert not np.array_equal(one["x"], other["x"])
        np.testing.assert_allclose(one["measurement_cov"], setting.noise.measurement_cov)
        nominal = setting.simulate(1, 2, 0)
        np.testing.assert_allclose(one["initial_mean"], nominal["initial_mean"])
        np.testing.assert_allclose(one["initial_cov"], nominal["initial_cov"])
        assert one.sizes["input"] == setting.model.ninputs

    def test_mixture_holds_every_condition_equally_in_random_order(self, setting):
        conditions = {
            name: plants.CONDITIONS[name] for name in ("nominal", "wrong start", "sensor bias", "missing samples")
        }
        data = plants.simulate_mixture(setting, conditions, 41, 30, seed=5)
        plants.validate(data, setting.model, states=True)
        assert data.sizes["trajectory"] == 41
        gaps = np.isnan(data["y"].values).any((1, 2))
        assert gaps.sum() == 11  # the last has what is left over
        assert not gaps[:30].all() and not gaps[-11:].all()
        # a motion of its own for every trajectory, or validation data would hold the twins of training data
        assert len(np.unique(data["x"].values[:, 1], axis=0)) == 41
        xr.testing.assert_identical(data, plants.simulate_mixture(setting, conditions, 41, 30, seed=5))

    def test_mixture_leaves_out_what_the_plant_does_not_survive_and_says_so(self):
        reactor = plants.scenario("stirred_tank_reactor")  # runs away with k0 30 % up and the cooling 30 % down
        conditions = {name: plants.CONDITIONS[name] for name in ("nominal", "parameters 30 %")}
        with pytest.warns(UserWarning, match="condition 'parameters 30 %' is left out: trajectory"):
            data = plants.simulate_mixture(reactor, conditions, 800, 100, seed=0)
        assert data.sizes["trajectory"] == 400

    def test_bad_mixtures_are_named(self, setting):
        with pytest.raises(ValueError, match="at least one for each condition, got 3 for 8 conditions"):
            plants.simulate_mixture(setting, plants.CONDITIONS, 3, 30, seed=0)
        with pytest.raises(ValueError, match="conditions is empty"):
            plants.simulate_mixture(setting, {}, 3, 30, seed=0)
        with pytest.raises(TypeError, match=r"conditions must be a mapping \{name: Condition\}, got list"):
            plants.simulate_mixture(setting, ["nominal"], 8, 30, seed=0)
        with pytest.raises(TypeError, match=r"setting must be a plants\.Scenario, got StateSpaceModel"):
            plants.simulate_mixture(setting.model, plants.CONDITIONS, 8, 30, seed=0)
        with pytest.raises(TypeError, match=r"conditions\['a'\] must be a plants.Condition, got float"):
            plants.simulate_mixture(setting, {"a": 0.1}, 3, 30, seed=0)
        for name, value in (("seed", -1), ("steps", 0), ("trajectories", 8.0)):
            sizes = {"trajectories": 8, "steps": 30, "seed": 0, name: value}
            with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
                plants.simulate_mixture(setting, plants.CONDITIONS, **sizes)
        with pytest.raises(ValueError, match="needed"):  # a mistake is not a plant that runs away
            plants.simulate_mixture(
                replace(setting, excitation=lambda t, n, rng: np.zeros((3, 3))), plants.CONDITIONS, 8, 30, seed=0
            )
        growth = plants.scenario("growth_model")
        assert not any(condition.parameter_error for condition in plants.conditions_for(growth).values())
        assert plants.conditions_for(setting) == plants.CONDITIONS
        with pytest.raises(ValueError, match="stores no parameters"):
            plants.simulate_mixture(growth, plants.CONDITIONS, 80, 30, seed=0)

    def test_plants_whose_parameters_cannot_be_changed(self):
        region = {"y[0]": (-1, 1), "u[0]": (-1, 1)}
        lag = ct.tf([1.0], [1.0, 1.0], name="lag")
        loop = ct.interconnect(
            [ct.ss(-1, 1, 1, 0, name="lag", inputs="u", outputs="y")], inputs="u", outputs="y", name="loop"
        )
        for system in (lag, loop):
            setting = plants.Scenario(
                system, dt=0.1, operating_region=region, noise=plants.GaussianNoise([1e-2], [1e-2])
            )
            conditions = plants.conditions_for(setting)
            assert conditions and not any(condition.parameter_error for condition in conditions.values())

    def test_parameters_are_wrong_by_what_is_asked_for(self, setting):
        """Without noise a trajectory's own plant explains it: each parameter 30 % up or down."""
        quiet = plants.Condition(
            0.3, noise=lambda noise: plants.GaussianNoise(0 * noise.process_cov, 0 * noise.measurement_cov)
        )
        data = quiet.simulate(setting, 3, 20, 0)
        nominal = setting.system.params
        for i in range(3):
            x, u = data["x"].values[i], data["u"].values[i]
            misses = []
            for signs in np.ndindex(2, 2, 2, 2):
                values = {k: v * (1.3 if s else 0.7) for (k, v), s in zip(nominal.items(), signs, strict=True)}
                model = plants.discretize(plants.with_parameters(setting.system, values), setting.dt)
                misses.append(np.abs(model.step(x[:-1], u[:-1]).numpy() - x[1:]).max())
            assert min(misses) < 1e-10

    def test_a_linear_plant_varies_the_entries_of_its_matrices(self):
        data = plants.CONDITIONS["parameters 30 %"].simulate(plants.scenario("mass_spring_damper"), 4, 30, 0)
        assert np.isfinite(data["x"].values).all()
        nominal = plants.scenario("mass_spring_damper").simulate(4, 30, 0)
        assert not np.allclose(data["x"], nominal["x"])

    def test_noise_of_inputs_keeps_its_kind(self):
        setting = plants.scenario("pendulum")
        noise = plants.OutlierNoise([0, 0], [0.04], input_cov=[0.01], probability=1.0, scale=100.0)
        data = plants.Condition(0.1, noise=lambda _: noise).simulate(setting, 50, 20, 0)
        assert np.abs(data["y"].values).max() > 10  # outliers of twenty radians, parameters wrong or not

    def test_gaps_bias_outliers_and_tails_are_as_stated(self, setting):
        def noise_of(name):
            data = plants.CONDITIONS[name].simulate(setting, 400, 100, 3)
            y, x = data["y"].values[..., 0], data["x"].values[..., 0]
            return (np.mod(y - x + np.pi, 2 * np.pi) - np.pi) / 0.2

        assert np.isnan(noise_of("missing samples")).mean() == pytest.approx(0.3, abs=0.01)
        bias = noise_of("sensor bias").mean(1)
        np.testing.assert_allclose(np.abs(bias), 1.0, atol=0.5)  # the mean of a hundred samples has deviation 0.1
        assert 0.4 < (bias > 0).mean() < 0.6
        assert (np.abs(noise_of("outliers")) > 4).mean() == pytest.approx(0.05 * 0.69, abs=0.005)  # P(|10 n| > 4)
        # t with three degrees of freedom, scaled: P(|t| > 4 sqrt(3))
        assert (np.abs(noise_of("heavy tails")) > 4).mean() == pytest.approx(0.0062, abs=0.0015)

    def test_starts_are_anywhere_in_the_region(self, setting):
        first = plants.CONDITIONS["wrong start"].simulate(setting, 2000, 2, 0)["x"].values[:, 0]
        region = setting.model.operating_region
        assert (first >= region.state_lower).all() and (first <= region.state_upper).all()
        np.testing.assert_allclose(first.std(0), region.state_width / np.sqrt(12), rtol=0.05)

    def test_bad_input(self, setting):
        with pytest.raises(ValueError, match=r"missing must be in \[0, 1\), got 1.0"):
            plants.Condition(missing=1.0)
        with pytest.raises(ValueError, match="bias must not be negative"):
            plants.Condition(bias=-1.0)
        bare = ct.nlsys(
            lambda t, x, u, p: [-x[0]], lambda t, x, u, p: [x[0]], states=1, inputs=0, outputs=1, name="bare"
        )
        plain = plants.Scenario(bare, 0.1, {}, plants.GaussianNoise([0.01], [0.01]))
        with pytest.raises(ValueError, match="'bare' stores no parameters that could be wrong"):
            plants.CONDITIONS["parameters 10 %"].simulate(plain, 2, 10, 0)
        with pytest.raises(ValueError, match="degrees_of_freedom must be above 2"):
            plants.StudentNoise([0.1], [0.1], degrees_of_freedom=2.0)


class TestMonteCarlo:
    def test_each_entry_is_the_benchmark_of_its_dataset(self, setting, filters):
        table = est.monte_carlo(filters, setting, {"sensor bias": plants.CONDITIONS["sensor bias"]}, **SMALL)
        data = plants.CONDITIONS["sensor bias"].simulate(setting, 8, 60, 1001)
        own = est.benchmark(filters, data)["rmse"]
        got = table["rmse"].sel(condition="sensor bias", seed=1001)
        xr.testing.assert_allclose(got.drop_vars(["condition", "seed"]), own.transpose(*got.dims), rtol=1e-12)

    def test_table_has_ratios_and_their_standard_errors(self, setting, filters):
        table = est.monte_carlo(filters, setting, {"nominal": plants.Condition()}, **{**SMALL, "seeds": 4})
        summary = table.est.robustness()
        rmse = np.log(table["rmse"].sel(condition="nominal", kind="predicted", phase="steady")).mean("state")
        ratio = (rmse.sel(estimator="EKF") - rmse.sel(estimator="UKF")).values
        row = summary.loc[("nominal", "EKF")]
        assert row["steady"] == pytest.approx(np.exp(ratio.mean()))
        assert row["steady se"] == pytest.approx(np.exp(ratio.mean()) * ratio.std(ddof=1) / 2)

    def test_a_failing_estimator_is_reported_in_its_row_and_the_others_finish(self, setting, filters):
        class Broken(est.ExtendedKalmanFilter):
            def estimate_sequence(self, *arguments, **settings):
                raise ValueError("no luck today")

        both = {**filters, "broken": Broken(setting.model, setting.noise)}
        table = est.monte_carlo(both, setting, {"nominal": plants.Condition()}, **SMALL)
        assert np.isnan(table["rmse"].sel(estimator="broken")).all()
        assert np.isfinite(table["rmse"].sel(estimator=["EKF", "UKF"])).all()
        assert table.attrs["failures"] == "nominal, broken: ValueError: no luck today"
        assert np.isnan(table.est.robustness().loc[("nominal", "broken"), "steady"])

    def test_a_condition_without_data_is_reported(self, filters, setting):
        def impossible(noise):
            raise ValueError("cannot be drawn")

        conditions = {"impossible": plants.Condition(noise=impossible), "nominal": plants.Condition()}
        table = est.monte_carlo(filters, setting, conditions, **SMALL)
        assert table.attrs["failures"] == "impossible, data: cannot be drawn"
        assert np.isfinite(table["rmse"].sel(condition="nominal")).all()

    def test_bad_input(self, setting, filters):
        with pytest.raises(TypeError, match=r"setting must be a plants\.Scenario, got StateSpaceModel"):
            est.monte_carlo(filters, setting.model)
        with pytest.raises(ValueError, match="seeds must be a positive integer, got 0"):
            est.monte_carlo(filters, setting, seeds=0)
        with pytest.raises(TypeError, match=r"conditions\['x'\] must be a plants.Condition, got str"):
            est.monte_carlo(filters, setting, {"x": "nominal"})
        with pytest.raises(ValueError, match="'EKF' is for the plant 'pendulum', not for 'van_der_pol'"):
            est.monte_carlo(filters, plants.scenario("van_der_pol"))
        with pytest.raises(ValueError, match="this dataset is not a Monte Carlo"):
            setting.simulate(1, 2, 0).est.robustness()


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes; what Dask itself warns of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import distributed

        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield cluster, client


@pytest.mark.slow
class TestOnDask:
    def test_numbers_are_those_of_this_process(self, cluster, trained_pair, setting, filters):
        _, client = cluster
        everyone = {"R2DN": trained_pair[0], **filters}
        conditions = {name: plants.CONDITIONS[name] for name in ("nominal", "parameters 30 %", "outliers")}
        here = est.monte_carlo(everyone, setting, conditions, **SMALL)
        there = est.monte_carlo(everyone, setting, conditions, client=client, **SMALL)
        xr.testing.assert_identical(here["rmse"], there["rmse"])
        xr.testing.assert_identical(here["diverged"], there["diverged"])

    def test_a_killed_worker_loses_nothing(self, cluster, setting, filters):
        local, client = cluster
        victim = next(iter(local.workers.values())).pid
        killer = threading.Timer(0.5, os.kill, (victim, signal.SIGKILL))
        killer.start()
        settings = {**SMALL, "seeds": 24, "trajectories": 32}
        there = est.monte_carlo(filters, setting, {"nominal": plants.Condition()}, client=client, **settings)
        killer.join()
        assert local.workers  # the nanny starts another
        here = est.monte_carlo(filters, setting, {"nominal": plants.Condition()}, **settings)
        xr.testing.assert_identical(here["rmse"], there["rmse"])
