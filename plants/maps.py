"""One plant function as a batched torch map, by the best route that agrees with the original."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from plants.tracing import trace

ROUTES = ("linear", "autodiff", "traced", "finite difference")
PROBE_TIME = 0.7
VALUE_TOLERANCE = 1e-10
JACOBIAN_TOLERANCE = 1e-5  # of the central differences it is compared with


@dataclass(frozen=True)
class PlantMap:
    """``(x (batch, nx), u (batch, nu), t) -> (batch, n)`` on float64 tensors.

    Attributes
    ----------
    function : callable
        The map.
    route : str
        One of ``ROUTES``; tells how derivatives are obtained.
    vectorised : bool
        False when the original has to be called column by column.
    """

    function: Callable
    route: str
    vectorised: bool = True


def as_columns(result, size: int, batch: int | None) -> np.ndarray:
    """Stack what a plant function returned into (size, batch), or (size,) for ``batch=None``."""
    if isinstance(result, list | tuple):
        result = [np.asarray(item, dtype=float) for item in result]
        shape = () if batch is None else (batch,)
        result = np.stack(
            [np.broadcast_to(np.squeeze(item) if item.ndim > len(shape) else item, shape) for item in result]
        )
    result = np.asarray(result, dtype=float)
    if result.ndim == (0 if batch is None else 1) and size == 1:
        result = result[None]
    return result


class PlantFunctionError(ValueError):
    """The user's update or output function raised, or returned something of the wrong length."""


def evaluate_columns(function: Callable, size: int, name: str, t: float, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Call the original one point at a time: the truth every route is compared with.

    Parameters
    ----------
    function : callable
        ``function(t, x, u)`` for 1-d arrays.
    size : int
        Length it must return.
    name : str
        Named in errors.
    t : float
        Time.
    x, u : numpy.ndarray
        (batch, nx) and (batch, nu).

    Returns
    -------
    numpy.ndarray
        (batch, size).
    """
    values = np.empty((len(x), size))
    for i, (xi, ui) in enumerate(zip(x, u, strict=True)):
        try:
            value = as_columns(function(t, xi.copy(), ui.copy()), size, None)
        except Exception as error:
            raise PlantFunctionError(
                f"{name} raised {type(error).__name__}: {error} (at t={t}, x={xi}, u={ui})"
            ) from error
        if value.shape != (size,):
            raise PlantFunctionError(
                f"{name} returned an array of shape {value.shape}, needed ({size},) (at t={t}, x={xi}, u={ui})"
            )
        values[i] = value
    return values


def central_differences(
    function: Callable, x: np.ndarray, u: np.ndarray, x_width: np.ndarray, u_width: np.ndarray
) -> np.ndarray:
    """Differentiate ``function(x, u)`` by central differences, step scaled to each state and input.

    Parameters
    ----------
    function : callable
        Batched, (batch, nx), (batch, nu) -> (batch, n), NumPy in and out.
    x, u : numpy.ndarray
        Points, (batch, nx) and (batch, nu).
    x_width, u_width : numpy.ndarray
        Typical size of each state and input, (nx,) and (nu,).

    Returns
    -------
    numpy.ndarray
        (batch, n, nx + nu).
    """
    z, width = np.concatenate([x, u], axis=1), np.concatenate([x_width, u_width])
    nx, nz = x.shape[1], x.shape[1] + u.shape[1]
    step = np.finfo(float).eps ** (1 / 3) * width
    points = np.concatenate([z + sign * step[i] * np.eye(nz)[i] for sign in (1, -1) for i in range(nz)])
    values = function(points[:, :nx], points[:, nx:]).reshape(2, nz, len(x), -1)
    taken = points.reshape(2, nz, len(x), nz)  # the step as rounded
    taken = np.stack([taken[0, i, :, i] - taken[1, i, :, i] for i in range(nz)])[..., None]
    return np.moveaxis((values[0] - values[1]) / taken, 0, -1)


def row_jacobian(function: Callable, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and Jacobian of a batched map with one forward and one backward pass; differentiable again if x or u is.

    Row i is the gradient of output i, taken on its own copy of the points, so that all rows
    come out of a single reverse pass.

    Parameters
    ----------
    function : callable
        (batch, nx), (batch, nu) -> (batch, n), differentiable.
    x, u : torch.Tensor
        (batch, nx) and (batch, nu).

    Returns
    -------
    value : torch.Tensor
        (batch, n).
    jacobian : torch.Tensor
        (batch, n, nx + nu).
    """
    onward = torch.is_grad_enabled() and (x.requires_grad or u.requires_grad)
    with torch.no_grad():
        n = function(x[:1], u[:1]).shape[1]
    with torch.enable_grad():
        xs, us = (z.repeat(n, 1) if onward else z.detach().repeat(n, 1) for z in (x, u))
        xs, us = (z if z.requires_grad else z.requires_grad_() for z in (xs, us))
        values = function(xs, us).reshape(n, len(x), n)
        picked = values.diagonal(dim1=0, dim2=2)
        grads = (None, None)
        if picked.requires_grad:
            grads = torch.autograd.grad(picked.sum(), (xs, us), allow_unused=True, create_graph=onward)
    rows = [torch.zeros_like(z) if g is None else g for g, z in zip(grads, (xs, us), strict=True)]
    return values[0] if onward else values[0].detach(), torch.cat(rows, dim=1).reshape(n, len(x), -1).transpose(0, 1)


def _autodiff(function, size):
    def call(x, u, t):
        result = function(t, x.T, u.T)
        if isinstance(result, list | tuple):
            rows = [torch.as_tensor(r, dtype=x.dtype) for r in result]
            result = torch.stack([r.expand(len(x)) for r in rows])
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"returned {type(result).__name__} for tensors")
        return (result[None] if result.ndim == 1 and size == 1 else result).T

    return call


def _traced(function, nx, nu):
    graph = torch.func.vmap(trace(function, nx, nu), in_dims=(None, 0, 0))
    return lambda x, u, t: graph(torch.as_tensor(t, dtype=torch.float64), x, u).reshape(len(x), -1)


def _numpy(function, size, name, vectorised):
    def call(x, u, t):
        if x.requires_grad or u.requires_grad:
            raise TypeError(
                f"{name} could not be differentiated automatically: use linearize(), which takes central differences"
            )
        xs, us = x.numpy(), u.numpy()
        if not vectorised:
            return torch.from_numpy(evaluate_columns(function, size, name, t, xs, us))
        return torch.from_numpy(np.ascontiguousarray(as_columns(function(t, xs.T, us.T), size, len(xs)).T))

    return call


def build_map(function: Callable, size: int, name: str, region) -> PlantMap:
    """Find the best route for a plant function: autodiff, traced, or finite difference.

    Each candidate is compared with column-by-column calls of the original, values and
    Jacobians, at random points of `region`; one that disagrees is dropped.

    Parameters
    ----------
    function : callable
        ``function(t, x, u)`` as python-control users write it, parameters bound.
    size : int
        Length of what it returns.
    name : str
        For messages, for example ``"update function of 'pendulum'"``.
    region : OperatingRegion
        Where to probe.

    Returns
    -------
    PlantMap

    Raises
    ------
    PlantFunctionError
        The function raises or returns the wrong length.
    ValueError
        It returns NaN or infinity everywhere tried.

    Warns
    -----
    UserWarning
        Neither torch route works; names the reason.
    """
    nx, nu = len(region.state_lower), len(region.input_lower)
    batch = next(b for b in range(7, 30) if b not in (nx, nu, size))
    x, u = region.sample(batch, seed=0)
    width = region.state_width, region.input_width

    def original(xs, us):
        return evaluate_columns(function, size, name, PROBE_TIME, xs, us)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        truth = original(x, u)
        slope = central_differences(original, x, u, *width)
    usable = np.isfinite(truth).all(axis=1) & np.isfinite(slope).all(axis=(1, 2))
    if not usable.any():
        raise ValueError(
            f"{name} is not finite at any of {batch} random points of the operating region: "
            "give operating_region= where the plant lives"
        )
    if not usable.all():
        warnings.warn(
            f"{name} is not finite at {np.sum(~usable)} of {batch} random points of the operating region: "
            "give operating_region= where the plant lives",
            UserWarning,
            stacklevel=4,
        )
    x, u, truth, slope = x[usable], u[usable], truth[usable], slope[usable]
    if len(x) in (nx, nu, size):  # keep the batch length different from every other length
        x, u, truth, slope = (np.concatenate([a, a[:1]]) for a in (x, u, truth, slope))
    scale = np.abs(truth).max() + np.finfo(float).tiny
    slope_scale = np.abs(slope * np.concatenate(width)).max() + scale * 1e-6 + np.finfo(float).tiny

    def values_agree(value):
        return value.shape == truth.shape and np.abs(value - truth).max() <= VALUE_TOLERANCE * scale

    def attempt(make):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                call = make()
                value, jacobian = row_jacobian(
                    lambda a, b: call(a, b, PROBE_TIME), torch.from_numpy(x), torch.from_numpy(u)
                )
            # any failure here only means that the route does not apply; the reason is kept and told
            except Exception as error:
                return (
                    None,
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
                )
        if not values_agree(value.numpy()):
            return None, "its values differ from the function's own"
        if np.abs((jacobian.numpy() - slope) * np.concatenate(width)).max() > JACOBIAN_TOLERANCE * slope_scale:
            return None, "its Jacobian differs from central differences of the function"
        return call, ""

    call, _ = attempt(lambda: _autodiff(function, size))
    if call is not None:
        return PlantMap(call, "autodiff")
    call, reason = attempt(lambda: _traced(function, nx, nu))
    if call is not None:
        return PlantMap(call, "traced")

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            vectorised = values_agree(as_columns(function(PROBE_TIME, x.T.copy(), u.T.copy()), size, len(x)).T)
        except Exception:  # a function that cannot take (nx, batch) arrays is called column by column
            vectorised = False
    warnings.warn(
        f"{name} could not be traced to a differentiable graph ({reason}); Jacobians come from central differences"
        + ("" if vectorised else " and the function is called one column at a time"),
        UserWarning,
        stacklevel=4,
    )
    return PlantMap(_numpy(function, size, name, vectorised), "finite difference", vectorised)
