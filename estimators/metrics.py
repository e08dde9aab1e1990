"""Measures of an estimate against the truth; angles modulo a turn."""

import numpy as np
import torch

from plants.angles import wrap
from plants.model import StateSpaceModel


def errors(model: StateSpaceModel, estimate, truth) -> np.ndarray:
    """Estimate minus truth, angle states wrapped to [-pi, pi).

    Parameters
    ----------
    model : StateSpaceModel
        Declares the angles.
    estimate, truth : array_like
        (..., nstates).

    Returns
    -------
    numpy.ndarray
        (..., nstates).
    """
    difference = torch.as_tensor(np.asarray(estimate, dtype=float) - np.asarray(truth, dtype=float))
    return wrap(difference, model.state_is_angle).numpy()


def rmse(error: np.ndarray) -> np.ndarray:
    """Root mean square of (trajectory, time, state) errors, per state, (nstates,)."""
    return np.sqrt(np.mean(np.square(error), axis=(0, 1)))


def nrmse(error: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """RMSE over the root mean square of the true state, per state: sqrt(mean e^2 / mean x^2)."""
    return rmse(error) / np.maximum(np.sqrt(np.mean(np.square(truth), axis=(0, 1))), np.finfo(float).tiny)


def nees(error: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Normalised estimation error squared e' P^-1 e, (trajectory, time); its mean is nstates when P is right.

    Parameters
    ----------
    error : numpy.ndarray
        (trajectory, time, nstates).
    covariance : numpy.ndarray
        (trajectory, time, nstates, nstates).

    Returns
    -------
    numpy.ndarray
        (trajectory, time).
    """
    deviation = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    deviation = np.where(deviation > 0, deviation, 1.0)
    whitened = error / deviation
    correlation = covariance / (deviation[..., :, None] * deviation[..., None, :])
    return np.einsum("...i,...i", whitened, np.linalg.solve(correlation, whitened[..., None])[..., 0])


def settling_time(error: np.ndarray, times: np.ndarray, steady: np.ndarray, factor: float = 1.5) -> float:
    """Time after which the error stays settled.

    The RMS over trajectories, each state relative to its steady RMSE, averaged over states, must
    stay below `factor` (a start that is never wrong settles at once).

    Parameters
    ----------
    error : numpy.ndarray
        (trajectory, time, nstates).
    times : numpy.ndarray
        (time,).
    steady : numpy.ndarray
        (nstates,), RMSE in steady state.
    factor : float
        What counts as settled.

    Returns
    -------
    float
        In the unit of `times`; NaN where it does not settle.
    """
    size = np.mean(np.sqrt(np.mean(np.square(error), axis=0)) / np.maximum(steady, np.finfo(float).tiny), axis=1)
    if not np.isfinite(size).all():
        return float("nan")
    outside = np.flatnonzero(size > factor)
    if len(outside) == 0:
        return 0.0
    return float(times[outside[-1] + 1] - times[0]) if outside[-1] + 1 < len(times) else float("nan")
