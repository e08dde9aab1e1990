"""The accuracy the project promises, end to end; minutes, hence slow (all cases: tests/benchmarks/accuracy.py)."""

import functools

import numpy as np
import pytest

from tests.benchmarks.accuracy import CASES, from_random_start, mean_square_ratio, trained

pytestmark = pytest.mark.slow


def steady(table):
    """Predicted and filtered steady RMSE, (estimator, kind, state)."""
    return table["rmse"].sel(phase="steady").transpose("estimator", "kind", "state")


@functools.cache
def run(name):
    return trained(CASES[name]())


@pytest.fixture(params=["mass_spring_damper", "pendulum", "van_der_pol"])
def nominal(request):
    return run(request.param)


def test_settled_observer_is_within_a_tenth_of_the_better_filter_in_every_state(nominal):
    found = steady(nominal.table)
    ratio = found.sel(estimator="R2DN").values / found.sel(estimator=["EKF", "UKF"]).values.min(axis=0)
    assert ratio.max() <= 1.1


def test_trained_observer_is_proved_contracting_at_its_rate(nominal):
    assert nominal.certificate.verdict == "proved"
    assert nominal.certificate.bound <= nominal.observer.contraction_rate


def test_filters_are_near_their_own_expectation_after_tuning(nominal):
    assert np.all(np.abs(nominal.table["nees"].sel(estimator=["EKF", "UKF"]).values - 1) < 0.3)


def test_linear_optimum_from_the_kalman_start():
    assert mean_square_ratio(run("mass_spring_damper").table, "R2DN") <= 1.05


def test_linear_optimum_from_the_random_start():
    ratio, _ = from_random_start()
    assert ratio <= 1.10


def test_observer_is_ahead_of_both_filters_where_the_noise_is_not_gaussian():
    found = steady(run("van_der_pol with outliers").table)
    ratio = found.sel(estimator="R2DN").values / found.sel(estimator=["EKF", "UKF"]).values.min(axis=0)
    assert np.exp(np.log(ratio).mean()) < 0.95  # over states and kinds
    assert ratio.max() <= 1.1
