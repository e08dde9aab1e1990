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


def unwrap(values: torch.Tensor, is_angle: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Undo jumps by whole turns along time; NaN samples are passed over.

    Parameters
    ----------
    values : torch.Tensor
        (..., time, n).
    is_angle : torch.Tensor
        (n,) bool.
    previous : torch.Tensor, optional
        (..., n), the unwrapped sample before the first; NaN for none.

    Returns
    -------
    torch.Tensor
        Same shape, continuous in the declared angles.
    """
    if not bool(is_angle.any()):
        return values
    result = values.clone()
    last = torch.full_like(values[..., 0, :], math.nan) if previous is None else previous
    for k in range(values.shape[-2]):
        known = ~torch.isnan(last)
        turned = torch.where(known & is_angle, last + wrap(values[..., k, :] - last, is_angle), values[..., k, :])
        result[..., k, :] = turned
        last = torch.where(torch.isnan(turned), last, turned)
    return result
