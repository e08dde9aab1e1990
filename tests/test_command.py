import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import estimators as est
import plants
from estimators import pipeline
from estimators.__main__ import main


@pytest.fixture
def small(monkeypatch):
    """The same job on less data."""
    monkeypatch.setattr(pipeline, "COUNTS", {"train": 64, "validation": 16, "test": 16})
    monkeypatch.setattr(pipeline, "STEPS", 60)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it


@pytest.fixture
def my_plant(tmp_path, monkeypatch):
    (tmp_path / "my_plants.py").write_text(
        textwrap.dedent("""
        import control as ct
        import numpy as np

        def duffing():
            def update(t, x, u, params):
                return np.array([x[1], x[0] - x[0] ** 3 - 0.3 * x[1] + u[0]])
            return ct.nlsys(update, lambda t, x, u, params: x[0], states=2, inputs=1, outputs=1, name="duffing")

        def nothing():
            return 42

        def broken():
            raise RuntimeError("no such luck")
    """)
    )
    (tmp_path / "failing.py").write_text("1 / 0")
    (tmp_path / "other.csv").write_text("time,y\n0,1\n0.05,2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_catalogue_plant(small, tmp_path, capsys):
    assert main(["benchmark", "mass_spring_damper", "--out", str(tmp_path / "out"), "--updates", "20"]) == 0
    said = capsys.readouterr().out
    for word in ("dt = 0.1", "EKF tuned", "R2DN trained", "optimum", "PROVED", "correctness residual", "wrote"):
        assert word in said
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [
        f"mass_spring_damper_{n}"
        for n in (
            "checkpoint.safetensors",
            "error_decay.png",
            "estimates.nc",
            "observer.safetensors",
            "states.png",
            "training.png",
        )
    ]
    estimates = xr.load_dataset(tmp_path / "out" / "mass_spring_damper_estimates.nc", engine="h5netcdf")
    assert set(estimates["estimator"].values) == {"R2DN", "EKF", "UKF"}
    assert np.isfinite(estimates["x_hat"]).all()
    assert (
        est.load(
            tmp_path / "out" / "mass_spring_damper_observer.safetensors", plants.scenario("mass_spring_damper").model
        ).contraction_rate
        == 0.99
    )


def test_a_users_own_plant_with_stated_defaults(small, my_plant, capsys):
    assert main(["benchmark", "my_plants:duffing", "--dt", "0.05", "--updates", "5"]) == 0
    said = capsys.readouterr().out
    assert "Jacobians: traced" in said
    assert "defaults for a bare system" in said
    assert (my_plant / "results" / "duffing_observer.safetensors").exists()


def test_a_users_own_data(small, tmp_path, capsys):
    setting = plants.scenario("pendulum")
    plants.save_dataset(setting.simulate(20, 60, seed=5), tmp_path / "data.nc")
    assert (
        main(["benchmark", "pendulum", "--data", str(tmp_path / "data.nc"), "--out", str(tmp_path), "--updates", "5"])
        == 0
    )
    assert "data: given, 14 train, 2 validation, 4 test pieces of 60 samples" in capsys.readouterr().out
    one = setting.simulate(1, 600, seed=6)
    table = pd.DataFrame(
        {
            "time": one["time"],
            "angle": one["y"].values[0, :, 0],
            "torque": one["u"].values[0, :, 0],
            "theta": one["x"].values[0, :, 0],
            "omega": one["x"].values[0, :, 1],
        }
    )
    table.to_csv(tmp_path / "data.csv", index=False)
    assert (
        main(["benchmark", "pendulum", "--data", str(tmp_path / "data.csv"), "--out", str(tmp_path), "--updates", "5"])
        == 0
    )
    assert "7 train, 1 validation, 2 test pieces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pendulun"], "unknown plant 'pendulun': use one of"),
        (["absent_module:plant"], "cannot import 'absent_module'"),
        (["my_plants:duffin"], "has no function 'duffin'"),
        (["my_plants:nothing"], "must return a python-control system"),
        (["my_plants:broken"], "raised RuntimeError: no such luck"),
        (["my_plants:duffing"], "give dt= to discretize"),
        (["pendulum", "--dt", "0.1"], "comes with its own sample time"),
        (["pendulum", "--data", "other.csv"], "has no columns for ['angle', 'torque']"),
        (["my_plants:duffing", "--data", "absent.nc", "--dt", "0.1"], "cannot read absent.nc"),
        (["failing:plant"], "cannot import 'failing'"),
        (["pendulum", "--data", "absent.nc"], "cannot read absent.nc"),
        (["pendulum", "--data", "my_plants.py"], "cannot read my_plants.py"),
        (["pendulum", "--out", "my_plants.py"], "cannot write to the folder"),
    ],
)
def test_input_that_cannot_be_used_ends_with_a_clear_message(small, my_plant, capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
