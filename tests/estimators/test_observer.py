import copy
import json
import os
import signal

import control as ct
import numpy as np
import pytest
import safetensors.torch
import torch

import estimators as est
import plants

SMALL = {"nfeedback": 4, "hidden": (8,)}
SHORT = {"updates": 20, "one_step_updates": 20, "horizon": 30, "progress": False}


@pytest.fixture(scope="module")
def setting():
    return plants.scenario("pendulum")


@pytest.fixture(scope="module")
def data(setting):
    return setting.simulate(40, 60, seed=0)


def parameters(observer):
    return torch.cat([p.detach().flatten() for p in observer.network.parameters()])


def test_starts_as_the_kalman_filter_of_a_linear_plant():
    setting = plants.scenario("mass_spring_damper")
    data, observer = setting.simulate(64, 300, seed=0), est.R2DNObserver(setting.model)
    observer.initialise(data)
    table = est.benchmark(
        {"R2DN": observer, "KF": est.KalmanFilter(setting.model, setting.noise)}, data, transient=15.0
    )
    for kind in ("predicted", "filtered"):
        one, two = (table["x_hat"].sel(estimator=name, kind=kind).values[:, 150:] for name in ("R2DN", "KF"))
        np.testing.assert_allclose(one, two, atol=2e-3)  # the floor on Q and R in the design, float32 parameters


def test_streaming_equals_offline(trained_pair):
    observer, data = trained_pair
    _, u, y = plants.to_tensors(data)
    y[3, 10:14] = torch.nan
    y[4, 0] = torch.nan
    x0 = torch.zeros(len(y), 2, dtype=torch.float64)
    offline, state = observer.estimate_sequence(observer.init(x0), u, y), observer.init(x0)
    for k in range(y.shape[1]):
        state, estimate = observer.step(state, u[:, k], y[:, k])
        torch.testing.assert_close(estimate.predicted, offline.predicted[:, k], rtol=0, atol=1e-10)
        torch.testing.assert_close(estimate.filtered, offline.filtered[:, k], rtol=0, atol=1e-10)


def test_one_trajectory_in_numpy_equals_the_batch(trained_pair):
    observer, data = trained_pair
    _, u, y = plants.to_tensors(data)
    y[3, 10:14] = torch.nan
    y[4, 0] = torch.nan
    offline = observer.estimate_sequence(observer.init(torch.zeros(len(y), 2, dtype=torch.float64)), u, y)
    for i in (3, 4, 5):
        state = observer.init([0.0, 0.0])
        for k in range(y.shape[1]):
            before = [a.clone() for a in state[:3]]  # the step must not change it
            following, estimate = observer.step(state, u[i, k].numpy(), y[i, k].numpy())
            assert all(
                torch.equal(
                    a,
                    b,
                )
                or bool(torch.isnan(b).any())
                for a, b in zip(before, state[:3], strict=True)
            )
            torch.testing.assert_close(estimate.predicted, offline.predicted[i, k], rtol=0, atol=1e-10)
            torch.testing.assert_close(estimate.filtered, offline.filtered[i, k], rtol=0, atol=1e-10)
            state = following


def test_a_step_can_be_differentiated(trained_pair):
    observer, _ = trained_pair
    y = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    state, _ = observer.step(observer.init([0.0, 0.0]), [0.0], [0.0])
    _, estimate = observer.step(state, [0.0], y)
    (gain,) = torch.autograd.grad(estimate.filtered[0], y)
    assert bool(torch.isfinite(gain).all()) and gain.item() != 0


def test_batch_equals_loop(trained_pair):
    observer, data = trained_pair
    together = est.run(observer, data)["predicted"].values
    for i in (0, 7):
        np.testing.assert_allclose(
            est.run(observer, data.isel(trajectory=[i]))["predicted"].values[0], together[i], atol=1e-12
        )


def test_whole_turns_of_the_angle_make_no_difference(trained_pair):
    observer, data = trained_pair
    _, u, y = plants.to_tensors(data)
    x0 = torch.zeros(len(y), 2, dtype=torch.float64)
    # the same motion past the upper position: the sensor jumps from pi to -pi, the unwrapped one does not
    turning = y + torch.linspace(0, 4 * np.pi, y.shape[1], dtype=torch.float64)[:, None]
    wrapped = torch.remainder(turning + np.pi, 2 * np.pi) - np.pi
    one, two = (observer.estimate_sequence(observer.init(x0), u, z) for z in (turning, wrapped))
    torch.testing.assert_close(one.predicted, two.predicted, rtol=0, atol=1e-9)


def runs_of_two_starts(observer, data, settled):
    """Distances in the certified metric of two runs on the same data, (time, trajectory)."""
    metric = torch.from_numpy(est.certify(observer).metric)
    _, u, y = plants.to_tensors(data)
    y = y.clamp(-2.5, 2.5)  # no turns: the first measurement may choose another turn for either start
    rng = np.random.default_rng(0)
    one, two = (observer.init(rng.normal(size=(len(y), 2))) for _ in range(2))
    if settled:
        one, two = (state._replace(startup=None) for state in (one, two))
    distances, scale = [], torch.ones(observer.nstates, dtype=torch.float64)
    scale[:2] = observer.coordinates.state_scale
    for k in range(u.shape[1]):
        e = (one.z - two.z) * scale
        distances.append(torch.einsum("bi,ij,bj->b", e, metric, e).sqrt())
        one, two = observer.step(one, u[:, k], y[:, k])[0], observer.step(two, u[:, k], y[:, k])[0]
    return torch.stack(distances)


def test_two_starts_approach_each_other_at_the_certified_rate_when_the_start_up_is_over(trained_pair):
    observer, data = trained_pair
    found, rate = runs_of_two_starts(observer, data, settled=True), est.certify(observer).bound
    assert bool((found[1:] <= rate * found[:-1] * (1 + 1e-9)).all())


def test_start_up_ends_and_contraction_step_by_step_sets_in(trained_pair):
    observer, data = trained_pair
    found, rate = runs_of_two_starts(observer, data, settled=False), est.certify(observer).bound
    over = observer.startup.length
    assert 5 < over < 90
    # rounding of two runs that are 1e-12 of their start apart
    assert bool((found[over + 1 :] <= rate * found[over:-1] * (1 + 1e-9) + 1e-12 * found[0]).all())
    assert bool((found[over] < 0.02 * found[0]).all())


def test_training_improves_on_the_linear_start(setting):
    train, test = setting.simulate(512, 100, seed=0), setting.simulate(64, 100, seed=1)
    observer, start = (est.R2DNObserver(setting.model, nfeedback=8, hidden=(16, 16)) for _ in range(2))
    start.initialise(train)
    observer.fit(train, updates=400, one_step_updates=100, horizon=50, progress=False)
    rmse = est.benchmark({"start": start, "trained": observer}, test)["rmse"].sel(kind="predicted")
    assert (rmse.sel(estimator="trained") < rmse.sel(estimator="start")).all()


def test_training_is_reproducible_by_its_seed(setting, data):
    results = []
    for seed in (0, 0, 1):
        observer = est.R2DNObserver(setting.model, **SMALL)
        history = observer.fit(data, seed=seed, **{**SHORT, "updates": 60})
        results.append((parameters(observer), history.train_loss))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] != results[2][1]


def test_units_do_not_matter(setting, data):
    """The same plant in degrees and milli-units gives the same estimates."""
    scale = np.array([180 / np.pi, 1e-3])
    other = ct.nlsys(
        lambda t, x, u, p: [
            x[1] / scale[1] * scale[0],
            (u[0] - 0.3 * x[1] / scale[1] - 9.81 * np.sin(x[0] / scale[0])) * scale[1],
        ],
        lambda t, x, u, p: [x[0] / scale[0]],
        states=["theta", "omega"],
        inputs=["torque"],
        outputs=["angle"],
    )
    model = plants.discretize(other, 0.05, operating_region={"theta": (-120, 120), "omega": (-0.004, 0.004)})
    plain = plants.discretize(plants.pendulum(), 0.05)
    estimates = []
    for one, factor in ((plain, np.ones(2)), (model, scale)):
        given = plants.from_arrays(
            one,
            y=data["y"],
            u=data["u"],
            x=data["x"].values * factor,
            initial_mean=[0, 0],
            initial_cov=data["initial_cov"].values * np.outer(factor, factor),
        )
        observer = est.R2DNObserver(one, **SMALL)
        observer.fit(given, **SHORT)
        estimates.append(est.run(observer, given)["predicted"].values / factor)
    np.testing.assert_allclose(estimates[0], estimates[1], atol=1e-3)  # float32 training amplifies rounding a little


def test_save_and_load_round_trip(trained_pair, tmp_path):
    observer, data = trained_pair
    path = tmp_path / "observer.safetensors"
    observer.save(path)
    again = est.load(path, observer.model)
    np.testing.assert_array_equal(est.run(observer, data)["filtered"], est.run(again, data)["filtered"])
    assert os.listdir(tmp_path) == [path.name]


class TestResumeAndInterruption:
    def test_resumed_training_is_the_uninterrupted_one(self, setting, data, tmp_path, monkeypatch):
        straight = est.R2DNObserver(setting.model, **SMALL)
        whole = straight.fit(data, checkpoint=tmp_path / "a.safetensors", **SHORT)
        first = est.R2DNObserver(setting.model, **SMALL)
        self.interrupt_after(monkeypatch, 24)
        half = first.fit(data, checkpoint=tmp_path / "b.safetensors", **SHORT)
        monkeypatch.undo()
        assert half.interrupted
        second = est.R2DNObserver(setting.model, **SMALL)
        rest = second.fit(data, checkpoint=tmp_path / "b.safetensors", resume=True, **SHORT)
        assert torch.equal(parameters(straight), parameters(second))
        assert rest.updates == whole.updates
        np.testing.assert_array_equal(rest.validation_loss, whole.validation_loss)

    @staticmethod
    def interrupt_after(monkeypatch, updates):
        step, count = torch.optim.Adam.step, iter(range(10**6))

        def stop(self, *args, **kwargs):
            if next(count) == updates:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.Adam, "step", stop)

    def test_ctrl_c_keeps_the_best_and_says_where(self, setting, data, tmp_path, monkeypatch, capsys):
        observer = est.R2DNObserver(setting.model, **SMALL)
        self.interrupt_after(monkeypatch, 30)
        result = observer.fit(data, checkpoint=tmp_path / "c.safetensors", **SHORT)
        assert result.interrupted
        said = capsys.readouterr().out
        assert "interrupted after 30 of 40 updates" in said
        assert "c.safetensors" in said
        stored = safetensors.torch.load_file(tmp_path / "c.safetensors")
        for name, value in observer.network.state_dict().items():
            assert torch.equal(stored[f"best.{name}"], value)


def test_a_start_known_exactly_trains_too(setting):
    data = plants.simulate(setting.model, trajectories=12, steps=40, seed=0, noise=setting.noise, initial_cov=[0, 0])
    history = est.R2DNObserver(setting.model, **SMALL).fit(data, **SHORT)
    assert np.isfinite(history.train_loss).all() and np.isfinite(history.validation_loss).all()


class TestCalibration:
    @pytest.fixture(scope="class")
    @classmethod
    def calibrated(cls, trained_pair):
        observer, _ = trained_pair
        copied = copy.deepcopy(observer)
        copied.calibrate(plants.scenario("pendulum").simulate(4000, 150, seed=40))
        return copied

    def test_covariances_are_honest_on_fresh_data_from_the_start_on(self, calibrated):
        fresh = plants.scenario("pendulum").simulate(4000, 150, seed=41)
        found = est.run(calibrated, fresh)
        for kind in ("predicted", "filtered"):
            error = est.metrics.errors(calibrated.model, found[kind], fresh["x"])
            nees = est.metrics.nees(error, found[f"{kind}_cov"].values).mean(0) / 2
            # errors of this hardly trained observer have heavy tails: 400 trajectories gave 0.7 to 1.6
            assert nees.min() > 0.8 and nees.max() < 1.2
            assert nees[100:].mean() == pytest.approx(1.0, abs=0.1)

    def test_benchmark_tells_the_consistency_of_an_observer_too(self, calibrated):
        table = est.benchmark({"R2DN": calibrated}, plants.scenario("pendulum").simulate(200, 150, seed=42))
        assert table["nees"].values[0] == pytest.approx(1.0, abs=0.15)

    def test_steps_and_records_and_files_agree(self, calibrated, tmp_path):
        data = plants.scenario("pendulum").simulate(1, 120, seed=43)
        calibrated.save(tmp_path / "x.safetensors")
        again = est.load(tmp_path / "x.safetensors", calibrated.model)
        found, state = est.run(calibrated, data), again.init(data["initial_mean"].values)
        for k in range(120):
            state, estimate = again.step(state, data["u"].values[0, k], data["y"].values[0, k])
            np.testing.assert_array_equal(estimate.filtered_cov, found["filtered_cov"].values[0, k])
            np.testing.assert_array_equal(estimate.predicted_cov, found["predicted_cov"].values[0, k])

    def test_too_few_trajectories_are_refused(self, calibrated):
        with pytest.raises(ValueError, match="has 5 trajectories, a covariance of 2 states needs at least 20"):
            calibrated.calibrate(plants.scenario("pendulum").simulate(5, 50, seed=0))


class TestBadInput:
    def test_a_checkpoint_that_cannot_be_written_is_found_out_at_once(self, setting, data, tmp_path):
        with pytest.raises(ValueError, match="cannot write"):
            est.R2DNObserver(setting.model, **SMALL).fit(data, checkpoint=tmp_path / "no" / "folder", **SHORT)

    def test_not_yet_trained(self, setting):
        with pytest.raises(ValueError, match="has not seen data yet"):
            est.R2DNObserver(setting.model).init([0, 0])
        with pytest.raises(ValueError, match="has not seen data yet"):
            est.R2DNObserver(setting.model).save("never.safetensors")

    def test_data(self, setting, data):
        observer = est.R2DNObserver(setting.model, **SMALL)
        with pytest.raises(ValueError, match="true states are needed"):
            observer.fit(data.drop_vars("x"))
        with pytest.raises(ValueError, match="labels of the dataset"):
            observer.fit(plants.scenario("van_der_pol").simulate(3, 5, seed=0))
        broken = data.copy(deep=True)
        broken["x"].values[2, 3, 1] = np.nan
        with pytest.raises(ValueError, match="x must be finite, got nan at trajectory 2, time step 3, state 1"):
            observer.fit(broken)

    def test_an_output_that_was_never_measured_is_named(self, setting, data):
        blind = data.assign(y=data["y"] * np.nan)
        ekf = est.ExtendedKalmanFilter(setting.model, setting.noise)
        for use in (est.R2DNObserver(setting.model, **SMALL).fit, ekf.tune):
            with pytest.raises(ValueError, match=r"no measurement of \['angle'\]"):
                use(blind)

    def test_a_state_that_no_gain_reaches_is_said(self):
        plant = ct.ss([[1.01, 0], [0, 0.5]], [[1], [1]], [[0, 1]], 0, 0.1, name="hidden")
        model = plants.discretize(plant)
        data = plants.simulate(model, trajectories=12, steps=40, seed=0, noise=plants.GaussianNoise([1e-3] * 2, [1e-2]))
        with pytest.raises(ValueError, match=r"no stabilising solution|no gain makes"):
            est.R2DNObserver(model, **SMALL).initialise(data)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"updates": -1}, "updates"),
            ({"horizon": 1}, "horizon"),
            ({"batch": 0}, "batch"),
            ({"learning_rate": 0}, "learning_rate"),
            ({"resume": True}, "nothing to resume"),
        ],
    )
    def test_settings(self, setting, data, wrong, message):
        with pytest.raises(ValueError, match=message):
            est.R2DNObserver(setting.model, **SMALL).fit(data, **wrong)

    def test_construction(self, setting):
        with pytest.raises(ValueError, match="contraction_rate"):
            est.R2DNObserver(setting.model, contraction_rate=0)
        with pytest.raises(ValueError, match="initialisation"):
            est.R2DNObserver(setting.model, initialisation="lucky")
        with pytest.raises(TypeError, match="StateSpaceModel"):
            est.R2DNObserver(plants.pendulum())

    def test_a_rate_slower_than_the_plant_allows_is_said(self, setting, data):
        with pytest.warns(UserWarning, match="slower than the contraction rate 0.5"):
            est.R2DNObserver(setting.model, contraction_rate=0.5).initialise(data)

    def test_files(self, trained_pair, tmp_path):
        observer, _ = trained_pair
        (tmp_path / "junk").write_bytes(b"junk")
        with pytest.raises(ValueError, match="cannot read"):
            est.load(tmp_path / "junk", observer.model)
        with pytest.raises(ValueError, match="cannot read"):
            est.load(tmp_path / "absent", observer.model)
        safetensors.torch.save_file(
            {"a": torch.zeros(1)}, tmp_path / "foreign", metadata={"json": json.dumps({"format": "other"})}
        )
        with pytest.raises(ValueError, match="not a file of this kind"):
            est.load(tmp_path / "foreign", observer.model)
        observer.save(tmp_path / "good")
        with pytest.raises(ValueError, match="sample time"):
            est.load(tmp_path / "good", plants.discretize(plants.pendulum(), 0.1))
        with pytest.raises(ValueError, match="cannot write"):
            observer.save(tmp_path / "no" / "folder")
        tensors = safetensors.torch.load_file(tmp_path / "good")
        with safetensors.safe_open(tmp_path / "good", framework="pt") as file:
            header = file.metadata()
        tensors["network.X"][0, 0] = torch.nan
        safetensors.torch.save_file(tensors, tmp_path / "tampered", metadata=header)
        with pytest.raises(ValueError, match="not finite"):
            est.load(tmp_path / "tampered", observer.model)
        tensors["network.X"][0, 0] = 1.0
        safetensors.torch.save_file(tensors, tmp_path / "tampered", metadata=header)
        with pytest.raises(ValueError, match=r"changed after it was written \(checksum\)"):
            est.load(tmp_path / "tampered", observer.model)
        tensors = safetensors.torch.load_file(tmp_path / "good")
        rate = header | {"json": header["json"].replace('"contraction_rate": 0.99', '"contraction_rate": 0.5')}
        safetensors.torch.save_file(tensors, tmp_path / "tampered", metadata=rate)
        with pytest.raises(ValueError, match="checksum"):
            est.load(tmp_path / "tampered", observer.model)
        del tensors["network.X"]
        safetensors.torch.save_file(tensors, tmp_path / "short", metadata=header)
        with pytest.raises(ValueError, match="damaged"):
            est.load(tmp_path / "short", observer.model)
