"""States kept within bounds."""

import math
from collections.abc import Mapping

import numpy as np
import scipy.optimize
import torch

from plants.model import StateSpaceModel


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
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"bounds of {label!r} must be (lower, upper), None where there is none, got {pair!r}")
        low, high = (missing if b is None else float(b) for b, missing in zip(pair, (-math.inf, math.inf), strict=True))
        if not low < high:
            raise ValueError(f"bounds of {label!r} must be (lower, upper) with lower < upper, got {pair!r}")
        lower[labels.index(label)], upper[labels.index(label)] = low, high
    return lower, upper


def project(mean: torch.Tensor, factor: torch.Tensor, bounds) -> torch.Tensor:
    """Return the likeliest state within bounds: argmin (z - mean)' P^-1 (z - mean), lower <= z <= upper.

    With z = mean + S w and P = S S' it is the shortest w with G w >= h, solved exactly as nonnegative least squares
    (Lawson and Hanson, Solving Least Squares Problems, ch. 23): P is never inverted and may be singular. Only the
    trajectories that leave their bounds are looked at, one by one.

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
    outside = ((mean < lower) | (mean > upper)).any(-1)
    if not bool(outside.any()):
        return mean
    found = mean.clone()
    found[outside] = torch.stack(
        [
            _nearest(m.double().numpy(), S.double().numpy(), lower.double().numpy(), upper.double().numpy())
            for m, S in zip(mean[outside], factor.expand(*mean.shape, mean.shape[-1])[outside], strict=True)
        ]
    ).to(mean.dtype)
    return torch.minimum(torch.maximum(found, lower), upper)


def _nearest(m, S, lower, upper):
    sides = [(i, 1.0, lower[i] - m[i]) for i in range(len(m)) if lower[i] > -math.inf]
    sides += [(i, -1.0, m[i] - upper[i]) for i in range(len(m)) if upper[i] < math.inf]
    deviation = np.linalg.norm(S, axis=1)
    # a state that is known exactly cannot be moved by the others
    sides = [(i, sign / deviation[i], h / deviation[i]) for i, sign, h in sides if deviation[i] > 0]
    G, h = np.array([scale * S[i] for i, scale, _ in sides]), np.array([h for *_, h in sides])
    E = np.vstack([G.T, h])
    target = np.append(np.zeros(len(m)), 1.0)
    multipliers, _ = scipy.optimize.nnls(E, target)
    residual = E @ multipliers - target
    return torch.from_numpy(m + S @ (-residual[:-1] / residual[-1]))
