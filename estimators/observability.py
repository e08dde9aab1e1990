"""How well the outputs determine the states, whatever the units."""

from typing import NamedTuple

import numpy as np
import torch

from plants.angles import wrap
from plants.arrays import as_tensor
from plants.model import StateSpaceModel


class Observability(NamedTuple):
    """Outcome of :func:`observability`, in states over their scale and outputs over theirs.

    Attributes
    ----------
    gramian : numpy.ndarray
        (nstates, nstates), of the scaled states.
    singular_values : numpy.ndarray
        (nstates,) descending: change of the scaled outputs over the record, root mean square, per unit change of
        the scaled state in each of `directions`.
    directions : numpy.ndarray
        (nstates, nstates), one a column, of the scaled states.
    rank : int
        How many directions the outputs show.
    unobservable : dict
        State label to its share of the unobservable directions, between 0 and 1; those below 1e-3 are left out.
    """

    gramian: np.ndarray
    singular_values: np.ndarray
    directions: np.ndarray
    rank: int
    unobservable: dict


def observability(
    model: StateSpaceModel,
    x0=None,
    u=None,
    *,
    steps: int = 50,
    perturbation: float = 1e-3,
    state_scale=None,
    output_scale=None,
    tolerance: float = 1e-6,
) -> Observability:
    """Empirical observability Gramian along a trajectory.

    Every state is displaced both ways in turn and the outputs are compared: W_ij = mean over k of d_i(k)' d_j(k),
    d_i = (y(x0 + c e_i) - y(x0 - c e_i)) / 2c, with states and outputs in units of their scale (Lall, Marsden and
    Glavaski, IJRNC 2002; Krener and Ide, CDC 2009). Scaled before anything is judged: states of 1e-9 beside 1e6 are not
    taken for unobservable.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    x0 : array_like, optional
        (nstates,). Default: centre of the operating region.
    u : array_like, optional
        (ninputs,), held, or (steps, ninputs). Default: centre of the region.
    steps : int
        Length of the record.
    perturbation : float
        c, in units of the states' scale: small for local observability, 0.1 or so for what a filter will see.
    state_scale : array_like, optional
        (nstates,) typical size. Default: half the width of the operating region.
    output_scale : array_like, optional
        (noutputs,), say the deviation of the noise. Default: the outputs' own largest change.
    tolerance : float
        Singular values below this share of the largest are taken as zero.

    Returns
    -------
    Observability

    Raises
    ------
    ValueError
        Shapes or ranges; a simulation that is not finite.
    """
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    if not 0 < perturbation < np.inf:
        raise ValueError(f"perturbation must be positive, got {perturbation!r}")
    region, nx = model.operating_region, model.nstates
    x0 = as_tensor(region.state_centre if x0 is None else x0, "x0", nx)
    u = as_tensor(region.input_centre if u is None else u, "u", model.ninputs)
    if x0.ndim != 1 or u.shape not in ((model.ninputs,), (steps, model.ninputs)):
        raise ValueError(
            f"x0 must be ({nx},) and u ({model.ninputs},) or ({steps}, {model.ninputs}), got {tuple(x0.shape)} and "
            f"{tuple(u.shape)}"
        )
    scale = as_tensor(region.state_width / 2 if state_scale is None else state_scale, "state_scale", nx)
    if not bool((scale > 0).all()):
        raise ValueError(f"state_scale must be positive, got {scale.tolist()}")
    moves = perturbation * torch.diag(scale)
    x, u, outputs = torch.cat([x0 + moves, x0 - moves]), u.expand(steps, -1), []
    for k in range(steps):
        outputs.append(model.output(x, u[k], k * model.dt))
        x = model.step(x, u[k], k * model.dt)
    y = torch.stack(outputs, dim=1)
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"the outputs of {model.name!r} are not finite from x0 = {x0.tolist()} within {steps} steps")
    slopes = wrap(y[:nx] - y[nx:], model.output_is_angle) / (2 * perturbation)
    largest = slopes.abs().amax((0, 1))
    unit = torch.where(largest > 0, largest, 1.0)
    if output_scale is not None:
        unit = as_tensor(output_scale, "output_scale", model.noutputs)
        if not bool((unit > 0).all()):
            raise ValueError(f"output_scale must be positive, got {unit.tolist()}")
    rows = (slopes / unit).reshape(nx, -1).numpy() / np.sqrt(steps)
    directions, values, _ = np.linalg.svd(rows, full_matrices=True)
    values = np.concatenate([values, np.zeros(nx - len(values))])
    seen = values > tolerance * values[0]
    share = np.square(directions[:, ~seen]).sum(1)
    hidden = {label: float(s) for label, s in zip(model.state_labels, share, strict=True) if s > 1e-3}
    return Observability(rows @ rows.T, values, directions, int(seen.sum()), hidden)
