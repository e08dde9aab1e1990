"""States kept within bounds."""

import math
from collections.abc import Mapping

import torch

from plants.model import StateSpaceModel

SWEEPS = 200


def as_bounds(bounds: Mapping | None, model: StateSpaceModel) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Validate ``{state label: (lower, upper)}`` and return lower and upper bounds, (nstates,) each."""
    if bounds is None:
        return None
    labels = model.state_labels
    if not isinstance(bounds, Mapping) or set(bounds) - set(labels):
        raise ValueError(f"bounds must map states out of {list(labels)} to (lower, upper), got {bounds!r}")
    if set(bounds) & set(model.angle_states):
        raise ValueError(
            f"bounds mean nothing modulo a turn: {sorted(set(bounds) & set(model.angle_states))} are angles"
        )
    lower, upper = torch.full((2, len(labels)), math.inf, dtype=torch.float64) * torch.tensor([[-1.0], [1.0]])
    for label, pair in bounds.items():
        low, high = (missing if b is None else float(b) for b, missing in zip(pair, (-math.inf, math.inf), strict=True))
        if not low < high:
            raise ValueError(f"bounds of {label!r} must be (lower, upper) with lower < upper, got {pair!r}")
        lower[labels.index(label)], upper[labels.index(label)] = low, high
    return lower, upper


def project(mean: torch.Tensor, factor: torch.Tensor, bounds) -> torch.Tensor:
    """Return the likeliest state within bounds: argmin (z - mean)' P^-1 (z - mean), lower <= z <= upper.

    Hildreth's dual ascent, z = mean + P m with one multiplier a state: P is never inverted and may be singular.

    Parameters
    ----------
    mean, factor : torch.Tensor
        (..., nstates) and (..., nstates, nstates), P = factor factor'.
    bounds : tuple of torch.Tensor or None
        Lower and upper bounds, (nstates,).

    Returns
    -------
    torch.Tensor
        (..., nstates).
    """
    if bounds is None:
        return mean
    lower, upper = (b.to(mean.dtype) for b in bounds)
    if bool(((lower <= mean) & (mean <= upper)).all()):
        return mean
    P = factor @ factor.mT
    limited = [i for i in range(len(lower)) if lower[i] > -math.inf or upper[i] < math.inf]
    z, multipliers = mean.clone(), torch.zeros_like(mean)
    deviation = P.diagonal(dim1=-2, dim2=-1).sqrt()
    for _ in range(SWEEPS):
        moved = torch.zeros_like(mean[..., 0])
        for i in limited:
            variance = P[..., i, i]
            free = z[..., i] - variance * multipliers[..., i]
            wanted = (free.clamp(lower[i], upper[i]) - free) / torch.where(variance > 0, variance, 1.0)
            change = torch.where(variance > 0, wanted - multipliers[..., i], torch.zeros_like(free))
            z = z + change[..., None] * P[..., :, i]
            multipliers[..., i] += change
            moved = torch.maximum(moved, change.abs() * deviation[..., i])
        if not bool((moved > 1e-12).any()):
            break
    return torch.minimum(torch.maximum(z, lower), upper)
