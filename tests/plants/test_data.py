import control as ct
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import plants
from plants import signals
from plants.arrays import as_covariance, covariance_factor

MODEL = plants.scenario("pendulum").model
NOISE = plants.scenario("pendulum").noise


def simulate(**changed):
    return plants.simulate(MODEL, **{"trajectories": 4, "steps": 20, "seed": 0, "noise": NOISE, **changed})


def test_same_seed_same_data_other_seed_other_data():
    xr.testing.assert_identical(simulate(), simulate())
    assert not np.allclose(simulate()["x"], simulate(seed=1)["x"])


def test_trajectories_follow_the_model_and_noise_has_the_stated_covariance():
    data = simulate(trajectories=4000, steps=3)
    x, u, y = plants.to_tensors(data)
    w = (x[:, 1] - MODEL.step(x[:, 0], u[:, 0])).numpy()
    v = (y[:, 0] - MODEL.output(x[:, 0], u[:, 0])).numpy()
    # sampling error of a variance over 4000 draws is 2.2 %; five of these
    np.testing.assert_allclose(w.T @ w / len(w), NOISE.process_cov, rtol=0.11, atol=0.11 * 0.005 * 0.1)
    np.testing.assert_allclose(v.T @ v / len(v), NOISE.measurement_cov, rtol=0.11)
    np.testing.assert_allclose(x[:, 0].numpy().std(axis=0), np.sqrt(np.diag(data["initial_cov"])), rtol=0.06)


def test_outliers_and_bias():
    rng = np.random.default_rng(0)
    draw = plants.OutlierNoise([1.0], [1.0], probability=0.1, scale=10).measurement(rng, 20000)
    assert np.mean(np.abs(draw) > 4) == pytest.approx(0.1 * 0.6892, rel=0.15)  # P(|10 n| > 4) = 0.689
    assert plants.BiasedNoise([1.0], [1e-6], bias=[2.0]).measurement(rng, 100).mean() == pytest.approx(2, abs=1e-2)


def test_netcdf_round_trip(tmp_path):
    data = simulate()
    plants.save_dataset(data, tmp_path / "a.nc")
    again = plants.load_dataset(tmp_path / "a.nc")
    xr.testing.assert_equal(data, again)
    plants.validate(again, MODEL, states=True)


def test_csv_with_missing_samples(tmp_path):
    time = np.arange(10) * 0.05
    table = pd.DataFrame({"t": time, "volts": 0.0, "phi": np.sin(time)})
    table.loc[3, "phi"] = np.nan
    table.to_csv(tmp_path / "a.csv", index=False)
    columns = dict(time="t", outputs={"angle": "phi"}, inputs={"torque": "volts"})
    data = plants.from_csv(tmp_path / "a.csv", MODEL, **columns)
    assert np.isnan(data["y"].values[0, 3, 0])
    assert np.isfinite(data["y"].values[0, 4:]).all()
    table["t"] *= 1.5
    table.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match="resample=True"):
        plants.from_csv(tmp_path / "b.csv", MODEL, **columns)
    resampled = plants.from_csv(tmp_path / "b.csv", MODEL, resample=True, **columns)
    assert resampled.sizes["time"] == 14


def test_from_arrays_takes_one_trajectory_or_many():
    one = plants.from_arrays(MODEL, y=np.zeros((5, 1)), u=np.zeros((5, 1)))
    many = plants.from_arrays(MODEL, y=np.zeros((3, 5, 1)), u=np.zeros((3, 5, 1)))
    assert (one.sizes["trajectory"], many.sizes["trajectory"]) == (1, 3)


def test_cut_and_split_keep_samples_in_order():
    data = simulate(steps=21)
    pieces = plants.cut(data, 10)
    assert pieces.sizes["trajectory"] == 8
    np.testing.assert_array_equal(pieces["x"].values[4:], data["x"].values[:, 10:20])
    first, second = plants.split(pieces, (5, 3))
    np.testing.assert_array_equal(np.concatenate([first["y"], second["y"]]), pieces["y"])
    assert "initial_mean" not in pieces  # it is about the start of the whole, not of the pieces
    assert "initial_mean" in plants.cut(data, 21)


@pytest.mark.parametrize(
    "signal",
    [
        signals.steps(1.0),
        signals.prbs(0.5),
        signals.random_walk(0.2),
        signals.multisine(0.1, 2.0),
        signals.chirp(0.1, 2.0),
    ],
)
def test_signals_stay_within_one_and_differ_by_input(signal):
    values = signal(np.arange(200) * 0.05, 3, np.random.default_rng(0))
    assert values.shape == (200, 3)
    assert np.abs(values).max() <= 1 + 1e-12
    assert np.ptp(values, axis=0).min() > 0.2
    assert not np.allclose(values[:, 0], values[:, 1])


def test_inputs_fill_the_operating_region():
    u = simulate(trajectories=200, steps=100)["u"].values
    region = MODEL.operating_region
    assert u.min() >= region.input_lower[0]
    assert u.max() <= region.input_upper[0]
    assert np.ptp(u) > 0.95 * region.input_width[0]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**32 - 1), st.floats(-9, 9))
def test_covariance_factor_reproduces_singular_and_badly_scaled_matrices(n, rank, seed, exponent):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, min(rank, n))) * 10.0 ** rng.uniform(-abs(exponent), abs(exponent), (n, 1))
    matrix = as_covariance(root @ root.T, "P", n)
    factor = covariance_factor(matrix)
    unit = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
    np.testing.assert_allclose(
        factor @ factor.T / np.outer(unit, unit), matrix / np.outer(unit, unit), atol=1e-9
    )  # clipping of negative eigenvalues at rounding level


class TestBadInput:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([[1, 2], [0, 1]], "must be symmetric"),
            ([[1, 2], [2, 1]], "positive semidefinite"),
            ([1.0, np.nan], "must be finite"),
            (np.ones((3, 2, 2)), "matrix, got shape"),
            ([[1e-18, 2.0], [2.0, 1e18]], "positive semidefinite"),
        ],
    )
    def test_covariances(self, value, message):
        with pytest.raises(ValueError, match=message):
            plants.GaussianNoise(value, [[1.0]])

    def test_noise_of_another_plant(self):
        with pytest.raises(ValueError, match=r"process_cov must be \(2, 2\) for the plant's 2 states"):
            simulate(noise=plants.GaussianNoise([1.0, 1, 1], [1.0]))

    def test_states_with_nan_and_missing_inputs(self):
        x = np.zeros((5, 2))
        x[2, 1] = np.nan
        with pytest.raises(ValueError, match=r"x must be finite, got nan at index \[2, 1\]"):
            plants.from_arrays(MODEL, y=np.zeros((5, 1)), u=np.zeros((5, 1)), x=x)
        with pytest.raises(ValueError, match="u is missing"):
            plants.from_arrays(MODEL, y=np.zeros((5, 1)))
        with pytest.raises(ValueError, match="does not go with y"):
            plants.from_arrays(MODEL, y=np.zeros((5, 1)), u=np.zeros((4, 1)))

    def test_dataset_of_another_plant(self):
        with pytest.raises(ValueError, match=r"labels of the dataset .* are not those of the plant 'van_der_pol'"):
            plants.validate(simulate(), plants.scenario("van_der_pol").model)
        other = plants.discretize(plants.pendulum(), 0.1)
        with pytest.raises(ValueError, match=r"sampled at dt=0.05, the plant 'pendulum' at dt=0.1"):
            plants.validate(simulate(), other)
        with pytest.raises(ValueError, match="true states are needed"):
            plants.validate(simulate().drop_vars("x"), MODEL, states=True)
        with pytest.raises(TypeError, match=r"xarray\.Dataset"):
            plants.validate(np.zeros(3), MODEL)

    def test_foreign_files(self, tmp_path):
        (tmp_path / "junk.nc").write_text("not netcdf")
        with pytest.raises(ValueError, match="cannot read"):
            plants.load_dataset(tmp_path / "junk.nc")
        xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
        with pytest.raises(ValueError, match="not a trajectory dataset"):
            plants.load_dataset(tmp_path / "other.nc")
        with pytest.raises(ValueError, match="cannot read"):
            plants.from_csv(tmp_path / "absent.csv", MODEL, time="t", outputs={})
        with pytest.raises(ValueError, match="cannot write"):
            plants.save_dataset(simulate(), tmp_path / "no" / "such" / "folder.nc")

    def test_a_trajectory_that_blows_up_is_named(self):
        system = ct.nlsys(
            lambda t, x, u, p: [x[0] ** 3], lambda t, x, u, p: [x[0]], inputs=0, outputs=1, states=1, dt=1
        )
        with pytest.raises(ValueError, match=r"trajectory 0 .* is not finite after time step"):
            plants.simulate(
                plants.discretize(system), trajectories=2, steps=40, seed=0, initial_mean=[5.0], initial_cov=[0.0]
            )

    def test_wrong_types_are_named(self):
        with pytest.raises(TypeError, match="model must be a StateSpaceModel"):
            plants.simulate(plants.pendulum(), trajectories=1, steps=2, seed=0)
        with pytest.raises(TypeError, match="noise must be a GaussianNoise"):
            simulate(noise=([1, 1], [1]))
        with pytest.raises(TypeError, match="outputs must be a mapping"):
            plants.from_csv("a.csv", MODEL, time="t", outputs=["angle"])

    def test_counts(self):
        with pytest.raises(ValueError, match="trajectories must be a positive integer"):
            simulate(trajectories=0)


def test_tensors_keep_shape_and_dtype():
    x, u, y = plants.to_tensors(simulate())
    assert (x.shape, u.shape, y.shape) == ((4, 20, 2), (4, 20, 1), (4, 20, 1))
    assert {a.dtype for a in (x, u, y)} == {torch.float64}


def test_resampling_keeps_slow_sensors_and_gaps_as_they_are(tmp_path):
    """A fast sensor with jitter, one ten times slower, and a second without any record: nothing is made up."""
    import control as ct

    system = ct.nlsys(lambda t, x, u, p: [u[0]], lambda t, x, u, p: [x[0], x[0]], states=1, inputs=["u"],
                      outputs=["fast", "slow"], name="two rates")  # fmt: skip
    model, rng = plants.discretize(system, 0.1), np.random.default_rng(0)
    times = np.arange(0, 10, 0.1) + rng.uniform(-0.02, 0.02, 100)
    times[0] = 0.0
    table = pd.DataFrame({"t": times, "fast": np.sin(times), "slow": np.nan, "u": np.floor(times)})
    table.loc[::10, "slow"] = 100.0 + np.arange(10)
    table = table.drop(index=range(41, 51))
    table.to_csv(tmp_path / "log.csv", index=False)
    data = plants.from_csv(
        tmp_path / "log.csv",
        model,
        time="t",
        outputs={"fast": "fast", "slow": "slow"},
        inputs={"u": "u"},
        resample=True,
    )
    fast, slow = data["y"].values[0].T
    assert np.isnan(fast[43:49]).all() and np.isfinite(fast[:40]).all()
    np.testing.assert_allclose(fast[:40], np.sin(0.1 * np.arange(40)), atol=2e-3)
    found = slow[np.isfinite(slow)]
    np.testing.assert_array_equal(np.unique(found), [100, 101, 102, 103, 104, 106, 107, 108, 109])
    assert np.isfinite(data["u"]).all() and data["u"].values[0, 45, 0] == 4.0


def test_columns_of_a_table_are_matched_by_name():
    setting = plants.scenario("quadruple_tank")
    y = pd.DataFrame({"level2": [2.0, 2.5], "level1": [1.0, 1.5]})
    u = pd.DataFrame({"v1": [3.0, 3.0], "v2": [4.0, 4.0]})
    data = plants.from_arrays(setting.model, y=y, u=u)
    np.testing.assert_array_equal(data["y"].sel(output="level1")[0], [1.0, 1.5])
    with pytest.raises(ValueError, match=r"y must have the columns \['level1', 'level2'\]"):
        plants.from_arrays(setting.model, y=y.rename(columns={"level1": "h"}), u=u)
    with pytest.raises(TypeError, match="are not matched here"):
        setting.model.output([1, 2, 3, 4], pd.Series({"v1": 3.0, "v2": 3.0}))


def test_bounded_noise_is_gaussian_without_its_tails():
    noise = plants.BoundedNoise([0.04, 1.0], [[1.0, 0.5], [0.5, 1.0]], bound=2.0)
    rng = np.random.default_rng(0)
    w, v = noise.process(rng, 200_000), noise.measurement(rng, 200_000)
    assert (np.abs(w).max(0) <= noise.process_bound).all() and (np.abs(w).max(0) > 0.99 * noise.process_bound).all()
    assert (np.abs(v).max(0) <= noise.measurement_bound).all()
    # variance of a normal distribution truncated at two deviations
    assert np.var(w[:, 1]) == pytest.approx(0.7737, abs=0.01)
    np.testing.assert_allclose(noise.process_bound, [0.4, 2.0])
    with pytest.raises(ValueError, match="bound must be positive"):
        plants.BoundedNoise([1.0], [1.0], bound=0.0)
