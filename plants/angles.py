"""Differences of angles modulo a turn."""

import math

import torch


def wrap(values: torch.Tensor, is_angle: torch.Tensor) -> torch.Tensor:
    """Bring the declared angles of a vector into [-pi, pi), leave the rest alone.

    Parameters
    ----------
    values : torch.Tensor
        (..., n), radians where angles.
    is_angle : torch.Tensor
        (n,) bool.

    Returns
    -------
    torch.Tensor
        Same shape; `values` itself where nothing is an angle.
    """
    if not bool(is_angle.any()):
        return values
    return torch.where(is_angle, torch.remainder(values + math.pi, 2 * math.pi) - math.pi, values)
