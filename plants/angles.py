"""Differences of angles modulo a turn."""

import math

import numpy as np
import torch

from plants.arrays import array_namespace


def wrap(values: torch.Tensor | np.ndarray, is_angle: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Bring the declared angles of a vector into [-pi, pi), leave the rest alone.

    Parameters
    ----------
    values : torch.Tensor or numpy.ndarray
        (..., n), radians where angles.
    is_angle : torch.Tensor or numpy.ndarray
        (n,) bool, of the same kind.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Same shape; `values` itself where nothing is an angle.
    """
    if not bool(is_angle.any()):
        return values
    xp = array_namespace(values)
    return xp.where(is_angle, xp.remainder(values + math.pi, 2 * math.pi) - math.pi, values)
