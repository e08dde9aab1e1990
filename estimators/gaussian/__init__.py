"""Gaussian filters: Kalman, extended and unscented, in square-root form."""

from estimators.gaussian.ekf import ExtendedKalmanFilter, IteratedExtendedKalmanFilter
from estimators.gaussian.exogenous import ExogenousKalmanFilter
from estimators.gaussian.kalman import KalmanFilter, SteadyState, steady_state
from estimators.gaussian.state import GaussianState
from estimators.gaussian.tuning import TuneResult
from estimators.gaussian.ukf import CubatureKalmanFilter, UnscentedKalmanFilter

__all__ = [
    "CubatureKalmanFilter",
    "ExogenousKalmanFilter",
    "ExtendedKalmanFilter",
    "GaussianState",
    "IteratedExtendedKalmanFilter",
    "KalmanFilter",
    "SteadyState",
    "TuneResult",
    "UnscentedKalmanFilter",
    "steady_state",
]
