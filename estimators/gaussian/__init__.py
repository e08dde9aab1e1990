"""Gaussian filters: Kalman, extended and unscented, in square-root form."""

from estimators.gaussian.ekf import ExtendedKalmanFilter
from estimators.gaussian.filter import GaussianState
from estimators.gaussian.kalman import KalmanFilter, SteadyState, steady_state
from estimators.gaussian.tuning import TuneResult
from estimators.gaussian.ukf import UnscentedKalmanFilter

__all__ = [
    "ExtendedKalmanFilter",
    "GaussianState",
    "KalmanFilter",
    "SteadyState",
    "TuneResult",
    "UnscentedKalmanFilter",
    "steady_state",
]
