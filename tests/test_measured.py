"""Measured pendulums: the yardsticks are difference quotients and filters of the data sets' own source notes."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import savgol_filter

import estimators as est
import plants
from tests.benchmarks.measured import FOLDER, RUNS, compare, difference_quotient, load_run

pytestmark = pytest.mark.slow

# rate RMSE in rad/s, shoulder and elbow: difference quotient, EKF, UKF with acceleration noise of density 5
YARDSTICK = {
    "143339": ((0.143, 0.283), (0.074, 0.138), (0.074, 0.138)),
    "143524": ((0.116, 0.174), (0.057, 0.087), (0.058, 0.090)),
}


@pytest.fixture(scope="module", params=[RUNS[::-1]], ids=lambda pair: f"test on {pair[1]}")
def found(request):
    model = plants.scenario("measured_double_pendulum").model
    train, test = (load_run(model, run) for run in request.param)
    return YARDSTICK[request.param[1]], difference_quotient(model, test), compare(model, train, test)


def test_reference_and_difference_quotient_are_those_of_the_source(found):
    yardstick, quotient, _ = found
    np.testing.assert_allclose(quotient, yardstick[0], rtol=0.01)


def test_filters_are_within_a_tenth_of_the_yardstick(found):
    yardstick, _, rmse = found
    np.testing.assert_allclose(rmse["EKF"][1], yardstick[1], rtol=0.1)
    np.testing.assert_allclose(rmse["UKF"][1], yardstick[2], rtol=0.1)


def test_tuning_on_the_other_run_improves_the_filters(found):
    *_, rmse = found
    for name in ("EKF", "UKF"):
        assert (rmse[f"{name} tuned"][1] < rmse[name][1]).all()


def test_observer_trained_on_the_other_run_beats_the_difference_quotient(found):
    _, quotient, rmse = found
    for kind in rmse["R2DN"]:
        assert (kind < quotient).all()


def test_single_pendulum_past_whole_turns():
    """20 s of swing-up, angle to -15.7 rad: EKF against the difference quotient."""
    model = plants.scenario("measured_pendulum").model
    table = pd.read_csv(FOLDER.parent / "dfki_simple_pendulum" / "energy_shaping_data_measured.csv")
    angle = table["position"].to_numpy()
    rate = savgol_filter(angle, 15, 3, deriv=1, delta=model.dt)
    data = plants.from_arrays(
        model,
        y=angle[:, None],
        u=table[["torque"]].to_numpy(),
        x=np.stack([angle, rate], axis=1),
        initial_mean=[angle[0], rate[0]],
        initial_cov=[1e-2, 1.0],
    )
    estimate = est.run(est.ExtendedKalmanFilter(model, plants.scenario("measured_pendulum").noise), data)
    error = est.metrics.errors(model, estimate["filtered"], data["x"])[0, 100:-50, 1]
    quotient = np.diff(angle, prepend=angle[0]) / model.dt - rate
    assert np.sqrt(np.mean(quotient[100:-50] ** 2)) == pytest.approx(0.499, rel=0.1)
    assert np.sqrt(np.mean(error**2)) < 0.262 * 1.1
