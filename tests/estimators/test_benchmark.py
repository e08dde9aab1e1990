import numpy as np
import pytest
import torch
import xarray as xr

import estimators as est
import plants
from estimators.metrics import nees, nrmse, rmse, settling_time
from estimators.report import format_table
from plants.angles import wrap


class Fixed:
    """An estimator that is off by known amounts; stands for a user's own class behind the protocol."""

    def __init__(self, model, truth, predicted_off, filtered_off=None):
        self.model, self.truth, self.predicted_off, self.filtered_off = (
            model,
            torch.as_tensor(truth),
            predicted_off,
            filtered_off,
        )

    def init(self, x0, P0=None):
        return 0

    def step(self, state, u, y):
        filtered = None if self.filtered_off is None else self.truth[0, state] + self.filtered_off
        return state + 1, est.Estimate(self.truth[0, state] + self.predicted_off, filtered)

    def estimate_sequence(self, state, u, y):
        return est.Estimate(
            self.truth + self.predicted_off, None if self.filtered_off is None else self.truth + self.filtered_off
        )


@pytest.fixture(scope="module")
def setting():
    return plants.scenario("pendulum")


@pytest.fixture(scope="module")
def data(setting):
    return setting.simulate(20, 60, seed=0)


def test_predicted_is_compared_with_predicted_and_filtered_with_filtered(setting, data):
    x = data["x"].values
    table = est.benchmark(
        {"both": Fixed(setting.model, x, 0.3, 0.1), "predicted only": Fixed(setting.model, x, 0.2)}, data
    )
    one = table["rmse"].sel(estimator="both", phase="steady")
    np.testing.assert_allclose(one.sel(kind="predicted"), 0.3)
    np.testing.assert_allclose(one.sel(kind="filtered"), 0.1)
    assert np.isnan(table["rmse"].sel(estimator="predicted only", kind="filtered")).all()
    summary = table.est.summary()
    assert ("filtered", "theta", "predicted only") not in summary.index or np.isnan(
        summary.loc[("filtered", "theta", "predicted only"), "steady RMSE"]
    )
    assert summary.loc[("predicted", "omega", "both"), "to best"] == pytest.approx(1.5)
    assert isinstance(Fixed(setting.model, x, 0), est.Estimator)


def test_errors_of_angles_are_taken_the_short_way(setting, data):
    table = est.benchmark(
        {
            "a turn off": Fixed(
                setting.model, data["x"].values, torch.tensor([2 * np.pi + 0.1, 0.0], dtype=torch.float64)
            )
        },
        data,
    )
    np.testing.assert_allclose(table["rmse"].sel(kind="predicted", state="theta"), 0.1, rtol=1e-9)


def test_transient_and_steady_state_are_scored_apart(setting, data):
    off = torch.zeros(60, 2)
    off[:20] = 1.0
    table = est.benchmark({"late": Fixed(setting.model, data["x"].values, off)}, data, transient=20 * 0.05)
    np.testing.assert_allclose(table["rmse"].sel(kind="predicted", phase="transient"), 1.0)
    np.testing.assert_allclose(table["rmse"].sel(kind="predicted", phase="steady"), 0.0, atol=1e-12)


def test_ratio_to_the_kalman_optimum_is_one_for_the_kalman_filter():
    setting = plants.scenario("mass_spring_damper")
    table = est.benchmark(
        {"KF": est.KalmanFilter(setting.model, setting.noise)}, setting.simulate(200, 300, seed=0), transient=10.0
    )
    ratio = table["rmse"].sel(estimator="KF", phase="steady") / table["optimum"]
    np.testing.assert_allclose(ratio, 1.0, atol=0.03)  # 40 000 correlated samples
    assert "optimum" in format_table(table)
    assert table["step_time"].item() > 0


def test_metrics_by_hand():
    error = np.array([[[3.0, 0.0], [4.0, 1.0]]])
    np.testing.assert_allclose(rmse(error), [np.sqrt(12.5), np.sqrt(0.5)])
    np.testing.assert_allclose(nrmse(error, np.full((1, 2, 2), 2.0)), [np.sqrt(12.5) / 2, np.sqrt(0.5) / 2])
    covariance = np.broadcast_to(np.diag([4.0, 1e-18]), (1, 2, 2, 2))
    np.testing.assert_allclose(nees(error * [1, 1e-9], covariance), [[9 / 4, 4 + 1]])
    decay = np.exp(-np.arange(50) / 5.0)[None, :, None]
    assert settling_time(decay, np.arange(50) * 0.1, np.array([0.1])) == pytest.approx(
        1.0
    )  # exp(-k/5) < 0.15 from k = 10 on
    assert np.isnan(settling_time(decay[:, ::-1], np.arange(50) * 0.1, np.array([0.1])))
    assert settling_time(0 * decay, np.arange(50) * 0.1, np.array([0.1])) == 0


def test_wrap():
    values = torch.tensor([[3.5, 3.5], [-np.pi, 1.0], [np.pi, -9.0]], dtype=torch.float64)
    torch.testing.assert_close(
        wrap(values, torch.tensor([True, False]))[:, 0],
        torch.tensor([3.5 - 2 * np.pi, -np.pi, -np.pi], dtype=torch.float64),
    )
    assert wrap(values, torch.tensor([False, False])) is values


def test_table_and_figures(setting, data, trained_pair):
    observer, _ = trained_pair
    table = est.benchmark({"R2DN": observer, "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise)}, data)
    text = format_table(table)
    for word in (
        "predicted (x(k) from y up to k-1)",
        "filtered (x(k) from y up to k)",
        "theta RMSE",
        "settles after [s]",
        "NEES",
    ):
        assert word in text
    for figure in (est.plot_estimates(table, data, setting.model), est.plot_error_decay(table, data, setting.model)):
        assert figure.axes[0].get_lines()


def test_a_failing_estimator_has_an_empty_row_and_the_others_their_numbers(setting, data):
    class Broken(Fixed):
        def estimate_sequence(self, state, u, y):
            raise ValueError("no luck today")

    truth = data["x"].values
    both = {"good": Fixed(setting.model, truth, 0.1), "broken": Broken(setting.model, truth, 0.1)}
    with pytest.warns(UserWarning, match="broken failed and has no numbers: no luck today"):
        table = est.benchmark(both, data)
    assert np.isnan(table["rmse"].sel(estimator="broken")).all()
    assert np.isfinite(table["rmse"].sel(estimator="good", kind="predicted")).all()
    assert table.attrs["failures"] == "broken: no luck today"
    assert "broken" in format_table(table)
    with pytest.raises(ValueError, match="no luck today"):
        est.benchmark({"broken": both["broken"]}, data)


class TestBadInput:
    def test_estimators_and_data(self, setting, data):
        with pytest.raises(ValueError, match="estimators is empty"):
            est.benchmark({}, data)
        other = plants.scenario("van_der_pol")
        with pytest.raises(ValueError, match="'UKF' is for the plant 'van_der_pol'"):
            est.benchmark(
                {
                    "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise),
                    "UKF": est.UnscentedKalmanFilter(other.model, other.noise),
                },
                data,
            )
        ekf = {"EKF": est.ExtendedKalmanFilter(setting.model, setting.noise)}
        with pytest.raises(ValueError, match="transient must lie between"):
            est.benchmark(ekf, data, transient=3.0)
        with pytest.raises(ValueError, match="true states"):
            est.benchmark(ekf, data.drop_vars("x"))
        with pytest.raises(ValueError, match="not a benchmark"):
            xr.Dataset().est.summary()

    def test_start(self, setting, data):
        ekf = est.ExtendedKalmanFilter(setting.model, setting.noise)
        with pytest.raises(ValueError, match="x0 is missing"):
            est.run(ekf, data.drop_vars("initial_mean"))
        with pytest.raises(ValueError, match=r"x0 must have shape \(2,\) or \(20, 2\)"):
            est.run(ekf, data, x0=np.zeros((3, 2)))
