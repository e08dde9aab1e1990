"""Kalman filter and its steady state, for linear plants."""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from estimators.gaussian.ekf import ExtendedKalmanFilter
from plants.arrays import as_covariance
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class KalmanFilter(ExtendedKalmanFilter):
    """Kalman filter of a linear plant; the same arithmetic as the EKF, whose Jacobians are then constant.

    Parameters
    ----------
    model : StateSpaceModel
        A linear plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    **settings
        As for :class:`~estimators.ExtendedKalmanFilter`.

    Raises
    ------
    TypeError
        The plant is not linear.
    """

    def __init__(self, model: StateSpaceModel, noise: GaussianNoise | None = None, **settings):
        super().__init__(model, noise, **settings)
        if model.matrices is None:
            raise TypeError(f"{model.name!r} is not linear: use ExtendedKalmanFilter or UnscentedKalmanFilter")


class SteadyState(NamedTuple):
    """Stationary Kalman filter of x+ = A x + w, y = C x + v.

    Attributes
    ----------
    prior_cov : numpy.ndarray
        Covariance of the predicted estimate, (nx, nx).
    posterior_cov : numpy.ndarray
        Covariance of the filtered estimate, (nx, nx).
    filter_gain : numpy.ndarray
        K in x_filtered = x_predicted + K (y - C x_predicted), (nx, ny).
    predictor_gain : numpy.ndarray
        L = A K in x_predicted+ = A x_predicted + L (y - C x_predicted), (nx, ny).
    """

    prior_cov: np.ndarray
    posterior_cov: np.ndarray
    filter_gain: np.ndarray
    predictor_gain: np.ndarray


def steady_state(A, C, Q, R, rate: float = 1.0) -> SteadyState:
    """Solve the filter Riccati equation, in coordinates in which it is well scaled.

    Parameters
    ----------
    A, C : array_like
        (nx, nx) and (ny, nx).
    Q, R : array_like
        Covariances, (nx, nx) and (ny, ny).
    rate : float
        Prescribed degree of stability (Anderson and Moore): the gains are those of A / rate, so
        that the eigenvalues of A - L C lie inside a circle of radius `rate`. 1 is the optimum.

    Returns
    -------
    SteadyState

    Raises
    ------
    ValueError
        No stabilising solution: (A, C) is not detectable, or (A, Q) leaves a mode on the circle.
    """
    A, C = np.atleast_2d(np.asarray(A, dtype=float)), np.atleast_2d(np.asarray(C, dtype=float))
    Q, R = as_covariance(Q, "Q", len(A)), as_covariance(R, "R", len(C))
    unit = natural_units(A, Q)
    y_unit = np.sqrt(np.maximum(np.diag(R), 1e-300))
    As, Cs = A / rate * unit / unit[:, None], C * unit / y_unit[:, None]
    Qs, Rs = Q / np.outer(unit, unit), R / np.outer(y_unit, y_unit)
    try:
        prior = scipy.linalg.solve_discrete_are(As.T, Cs.T, Qs, Rs)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "the Riccati equation has no stabilising solution (is the state observable, is every mode excited by Q?): "
            f"{error}"
        ) from error
    innovation = Cs @ prior @ Cs.T + Rs
    gain = np.linalg.solve(innovation, Cs @ prior).T
    posterior = prior - gain @ innovation @ gain.T
    scale = np.outer(unit, unit)
    K = gain * unit[:, None] / y_unit
    return SteadyState(prior * scale, (posterior + posterior.T) / 2 * scale, K, A @ K)


def natural_units(A: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Typical size of each state: deviation by Q where there is one, else balanced through A."""
    deviation = np.sqrt(np.diag(Q))
    if np.all(deviation > 0):
        return deviation
    _, (balance, _) = scipy.linalg.matrix_balance(A, permute=False, separate=True)
    return balance
