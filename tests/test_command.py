import json
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import estimators as est
import plants
from estimators import pipeline, sources
from estimators.__main__ import main


@pytest.fixture
def small(monkeypatch):
    """The same job on less data."""
    monkeypatch.setattr(sources, "COUNTS", {"train": 64, "validation": 16, "test": 16})
    for module in (sources, pipeline):
        monkeypatch.setattr(module, "STEPS", 60)
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
            "correction.safetensors",
            "error_decay.png",
            "estimates.nc",
            "observer.safetensors",
            "report.html",
            "states.png",
            "training.png",
        )
    ]
    estimates = xr.load_dataset(tmp_path / "out" / "mass_spring_damper_estimates.nc", engine="h5netcdf")
    assert set(estimates["estimator"].values) == {"R2DN", "R2DN+KF", "EKF+R2DN", "EKF", "UKF"}
    assert np.isfinite(estimates["x_hat"]).all()
    assert (
        est.load(
            tmp_path / "out" / "mass_spring_damper_observer.safetensors", plants.scenario("mass_spring_damper").model
        ).contraction_rate
        == 0.99
    )


def test_correction_in_the_results_is_the_one_that_was_compared(small, tmp_path, capsys):
    arguments = ["benchmark", "pendulum", "--mixture", "--out", str(tmp_path), "--updates", "5", "--seeds", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "mixture of conditions, 64 train" in said
    for name in ("EKF", "UKF", "EKF, mixture"):
        assert f"{name} tuned" in said
    table = xr.load_dataset(tmp_path / "pendulum_estimates.nc", engine="h5netcdf")
    (name,) = (n for n in table["estimator"].values if n.endswith("F+R2DN"))
    setting = plants.scenario("pendulum")
    found = est.LearnedCorrection.load(tmp_path / "pendulum_correction.safetensors", setting.model)
    again = est.run(found, setting.simulate(16, 60, seed=2))
    np.testing.assert_allclose(
        again["filtered"], table["x_hat"].sel(estimator=name, kind="filtered"), rtol=0, atol=1e-9
    )


def test_a_filter_that_is_lost_is_not_corrected_and_the_rest_goes_on(capsys):
    setting = plants.scenario("growth_model")
    wild = est.ExtendedKalmanFilter(setting.model, Q=[[1e-30]], R=[[1e-30]])
    data = setting.simulate(12, 20, seed=0)
    data = data.assign(y=data["y"] * 1e12)
    datasets = {"train": data, "validation": data}
    assert pipeline.correct_better({"EKF": wild}, datasets, updates=1) == {}
    assert "EKF+R2DN left out: the filter diverges on every trajectory" in capsys.readouterr().out


def test_the_better_filter_is_corrected_the_first_of_level_ones():
    setting = plants.scenario("growth_model")  # whose EKF is far behind
    filters = {
        "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise),
        "UKF": est.UnscentedKalmanFilter(setting.model, setting.noise),
    }
    datasets = {name: setting.simulate(64, 40, seed) for seed, name in enumerate(("train", "validation"))}
    assert list(pipeline.correct_better(filters, datasets, updates=1)) == ["UKF+R2DN"]
    setting = plants.scenario("mass_spring_damper")  # where they are the same
    filters = {name: type(filter)(setting.model, setting.noise) for name, filter in filters.items()}
    datasets = {name: setting.simulate(64, 40, seed) for seed, name in enumerate(("train", "validation"))}
    assert list(pipeline.correct_better(filters, datasets, updates=1)) == ["EKF+R2DN"]


def test_report_stands_alone_and_tells_everything(small, tmp_path, capsys):
    arguments = ["benchmark", "mass_spring_damper", "--out", str(tmp_path), "--updates", "5", "--seeds", "2"]
    assert main(arguments) == 0
    said, page = capsys.readouterr().out, (tmp_path / "mass_spring_damper_report.html").read_text()
    assert "robustness, predicted" in said and "sensor bias" in said
    for word in (
        "Accuracy",
        "Robustness",
        "sensor bias",
        "PROVED",
        "Settings",
        "updates</th><td>5",
        "torch",
        "Versions",
    ):
        assert word in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("https://", "http://").split("<style>")[0] and 'src="/' not in page
    assert not list(tmp_path.glob("*.partial"))


def test_simulated_data_train_an_observer_that_can_be_certified_and_plotted(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulated = ["simulate", "pendulum", "--trajectories", "30", "--steps", "60", "--condition", "outliers"]
    assert main([*simulated, "--out", "runs.nc"]) == 0
    assert main(["train", "pendulum", "--data", "runs.nc", "--updates", "5"]) == 0
    assert "data: given, 21 train" in capsys.readouterr().out
    assert main(["certify", "pendulum_observer.safetensors"]) == 0
    assert main(["benchmark", "pendulum", "--data", "runs.nc", "--updates", "5", "--out", "."]) == 0
    before = (tmp_path / "pendulum_states.png").read_bytes()
    (tmp_path / "pendulum_states.png").unlink()
    assert main(["plot", "pendulum_estimates.nc"]) == 0
    assert (tmp_path / "pendulum_states.png").read_bytes() == before
    assert plants.load_dataset(tmp_path / "runs.nc").sizes["trajectory"] == 30


def test_list_names_the_catalogue(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in plants.SCENARIOS)


def test_completion_is_printed_for_a_shell(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0 and "observers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "absent.nc"], "cannot read absent.nc"),
        (["plot", "runs.nc"], "runs.nc holds no estimates"),
        (["simulate", "pendulum", "--out", "my_plants.py/x.nc"], "cannot write to the folder"),
        (["train", "pendulum", "--data", "absent.nc"], "cannot read absent.nc"),
        (["simulate", "my_plants:duffing"], "give dt= to discretize"),
    ],
)
def test_other_commands_refuse_what_they_cannot_use(small, my_plant, capsys, arguments, message):
    plants.save_dataset(plants.scenario("pendulum").simulate(2, 5, seed=0), "runs.nc")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


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
        (["pendulum", "--mixture", "--data", "other.csv"], "--mixture is of simulated data"),
        (["pendulum", "--data", "absent.nc"], "cannot read absent.nc"),
        (["pendulum", "--data", "my_plants.py"], "cannot read my_plants.py"),
        (["pendulum", "--out", "my_plants.py"], "cannot write to the folder"),
    ],
)
def test_input_that_cannot_be_used_ends_with_a_clear_message(small, my_plant, capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err


class TestCertify:
    ON_DATA = ("certify", "pendulum.safetensors", "--plant", "pendulum", "--data")

    @pytest.fixture
    def saved(self, trained_pair, tmp_path, monkeypatch):
        observer, _ = trained_pair
        observer.save(tmp_path / "pendulum.safetensors")
        plants.save_dataset(plants.scenario("pendulum").simulate(40, 60, seed=3), tmp_path / "runs.nc")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        return tmp_path

    def test_a_file_alone(self, saved, capsys):
        assert main(["certify", "pendulum.safetensors"]) == 0
        said = capsys.readouterr().out
        for word in (
            "observer of 'pendulum', 4 states, dt = 0.05",
            "PROVED",
            "gains of noise",
            "angle -> filtered theta",
        ):
            assert word in said

    def test_with_plant_and_data_as_json(self, saved, trained_pair, capsys):
        command = [
            "certify",
            "pendulum.safetensors",
            "--plant",
            "pendulum",
            "--data",
            "runs.nc",
            "--probability",
            "0.9",
        ]
        assert main([*command, "--json", "report.json"]) == 0
        assert "error tube: SAMPLED" in capsys.readouterr().out
        report = json.loads((saved / "report.json").read_text())
        assert report["certificate"]["bound"] == est.certify(trained_pair[0]).bound
        assert np.array(report["error_tube"]["half_width"]["data"]).shape == (2, 60, 2)
        assert main([*command, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out) == report

    def test_few_trajectories_are_cut(self, saved, capsys):
        command = [
            "certify",
            "pendulum.safetensors",
            "--plant",
            "pendulum",
            "--data",
            "long.nc",
            "--probability",
            "0.8",
        ]
        plants.save_dataset(plants.scenario("pendulum").simulate(1, 4000, seed=4), saved / "long.nc")
        assert main(command) == 0
        assert "cut into 20 pieces of 200 samples" in capsys.readouterr().out

    def test_users_own_subjects_and_exit_codes(self, saved, capsys):
        (saved / "my_observers.py").write_text(
            textwrap.dedent("""
            import control as ct
            import numpy as np
            import plants

            def model(function, bound):
                system = ct.nlsys(lambda t, x, u, p: function(x, u), None, states=1, inputs=1, outputs=1, dt=1.0)
                return plants.discretize(system, operating_region={"x[0]": (-bound, bound), "u[0]": (-0.5, 0.5)})

            def good():
                return model(lambda x, u: 0.5 * np.sin(x) + u, 2)

            def bistable():
                return model(lambda x, u: x + 0.1 * (x - x**3) + 0.01 * (u - x), 2)

            def open_question():
                return model(lambda x, u: 1.2 * x + u, 2)
        """)
        )
        for name, code, word in (
            ("good", 0, "PROVED"),
            ("bistable", 1, "two starts"),
            ("open_question", 2, "INCONCLUSIVE"),
        ):
            assert main(["certify", f"my_observers:{name}"]) == code
            assert word in capsys.readouterr().out

    def test_unusable_input(self, saved, capsys):
        for arguments, message in (
            (["absent"], "cannot read"),
            (["pendulum.safetensors", "--data", "runs.nc"], "--data needs --plant"),
            (["pendulum.safetensors", "--plant", "van_der_pol"], "holds an observer for 'pendulum'"),
            (["pendulum.safetensors", "--plant", "pendulum", "--data", "runs.nc"], "takes 198 trajectories"),
            (["pendulum.safetensors", "--json", "no/such/folder"], "cannot write"),
            (["pendulum:nothing"], "cannot import"),
            (["my_plants:factory", "--plant", "pendulum"], "go with a file"),
        ):
            assert main(["certify", *arguments]) == 3
            assert message in capsys.readouterr().err
        content = bytearray((saved / "pendulum.safetensors").read_bytes())
        content[-3] ^= 1
        (saved / "edited.safetensors").write_bytes(content)
        assert main(["certify", "edited.safetensors"]) == 3
        assert "checksum" in capsys.readouterr().err
