"""Identification: models see what they may, baselines are what they are called."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.exact_linear import second_order
from tutorials.studies import identification as study
from tutorials.studies.identification_data import F16_PERIOD, F16_TRAINED, Record, f16, measured_rate, pendulum, tanks


def record_of(u, y, **changes):
    test = {"test": (u[:1], y[:1], np.ones(u.shape[1], bool))}
    return replace(Record("made", "-", 1.0, u, y, 50, 0, (u[0], y[0]), test, {}), **changes)


@pytest.fixture(scope="module")
def linear_record():
    return record_of(*second_order(count=4, steps=400))


def test_subspace_model_reproduces_a_linear_plant(linear_record):
    network, _ = study.subspace(linear_record)
    model = study.Simulator(network, linear_record)
    assert study.rmse(model, linear_record.tests["test"]) < 1e-2 * linear_record.train_y.std()  # means are of samples


def test_r2dn_can_begin_as_a_linear_model(linear_record):
    record, sizes = replace(linear_record, lag=4), {"nx": 6, "nv": 6, "hidden": (8,)}
    linear, started = (
        study.Simulator(study.make_network(kind, record, sizes, 0), record)
        for kind in ("linear, trained", "R2DN from linear")
    )
    torch.nn.init.normal_(linear.start.weight)
    study.start_from(started, linear)
    u, y, _ = record.tests["test"]
    right = linear.simulate(u, y)
    np.testing.assert_allclose(started.simulate(u, y), right, atol=1e-3 * np.abs(right).max())  # float32


@pytest.mark.parametrize("name", study.SIZES)
def test_models_have_equally_many_parameters(name):
    u, y = np.zeros((1, 300, 2)) + np.arange(300)[:, None], np.zeros((1, 300, 1)) + np.arange(300)[:, None]
    counts = [
        study.count(study.make_network(kind, record_of(u, y), study.SIZES[name], 0)) for kind in ("R2DN", "REN", "LSTM")
    ]
    assert max(counts) / min(counts) < 1.05  # one unit of an LSTM more or less


def test_simulation_sees_only_the_first_outputs(linear_record):
    record = replace(linear_record, lag=4)
    model = study.Simulator(study.LSTM(1, 1, 200), record)
    torch.nn.init.normal_(model.start.weight)
    u, y, _ = record.tests["test"]
    before = model.simulate(u, y)
    changed = y.copy()
    changed[:, 4:] = 7.0
    np.testing.assert_array_equal(model.simulate(u, changed), before)
    changed[:, 3] = 7.0
    assert np.abs(model.simulate(u, changed) - before).max() > 1e-3


def test_training_carries_the_state_over_segments(linear_record):
    model = study.Simulator(
        study.make_network("REN", linear_record, {"nx": 4, "nv": 5, "hidden": (5,)}, 0), linear_record
    )
    parts = [loss.item() for loss in study.losses(model, linear_record)(0)]
    u, y = model.scaled(linear_record.train_u, linear_record.train_y)
    with torch.no_grad():
        error = (model.network(u)[0] - y).square()
    assert len(parts) == 2
    assert parts[0] == pytest.approx(float(error[:, 50:306].mean()), rel=1e-4)
    assert parts[1] == pytest.approx(float(error[:, 306:].mean()), rel=1e-4)


def test_f16_tests_are_on_inputs_that_training_never_scores(tmp_path):
    rng = np.random.default_rng(0)
    period = rng.standard_normal((F16_PERIOD, 3))
    np.savetxt(tmp_path / "f-16.txt", np.tile(period, (4, 1)), delimiter=",")
    record = f16(tmp_path / "f-16.txt")
    trained = record.train_u[:, record.burn :].reshape(-1, 2)
    ((u, _, scored),) = record.tests.values()
    seen = {row.tobytes() for row in trained}
    assert not any(row.tobytes() in seen for row in u[0][scored])
    assert scored.sum() == 3 * (F16_PERIOD - F16_TRAINED)
    assert len(trained) == 6 * F16_TRAINED // 2


def test_data_that_do_not_ship_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="--data"):
        study.load_record("tanks", None, False)
    with pytest.raises(ValueError, match="record must be one of"):
        study.load_record("wiener", None, False)
    np.savetxt(tmp_path / "f-16.txt", np.zeros((10, 3)), delimiter=",")
    with pytest.raises(ValueError, match="32768 rows"):
        f16(tmp_path / "f-16.txt")


def test_tanks_are_read_as_the_benchmark_has_them(tmp_path):
    rows = np.arange(1024)
    lines = [
        '"uEst","uVal","yEst","yVal","Ts",',
        *(f"{k},{k + 1},{k + 2},{k + 3},{4 if k == 0 else ''}," for k in rows),
    ]
    (tmp_path / "dataBenchmark.csv").write_text("\n".join(lines))
    record = tanks(tmp_path / "dataBenchmark.csv")
    assert record.train_u[0, 0, 0] == 0
    assert record.train_y[-1, -1, 0] == 1025
    u, y, scored = record.tests["validation set"]
    assert (u[0, 0, 0], y[0, 0, 0], scored.all()) == (1, 3, True)


def test_pendulum_stays_below_the_top():
    record = pendulum(reduced=True)
    for _, y, _ in record.tests.values():
        assert np.abs(y).max() < np.pi


def test_measured_rate_has_the_yardsticks_of_its_source():
    others = list(measured_rate().others.values())
    # SOURCE.md, on the whole record: difference 0.499, motor 0.480, EKF 0.262; here the last 8 s only
    np.testing.assert_allclose(others, (0.499, 0.480, 0.262), rtol=0.1)
