"""Data from a model: all trajectories at once, seeded."""

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr

from plants import signals
from plants.arrays import as_covariance, as_tensor, covariance_factor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise
from plants.schema import from_arrays


class DivergedError(ValueError):
    """A trajectory of a plant left the finite numbers."""


def simulate(
    model: StateSpaceModel,
    *,
    trajectories: int,
    steps: int,
    seed: int,
    noise: GaussianNoise | None = None,
    inputs: Callable | np.ndarray | None = None,
    initial_mean=None,
    initial_cov=None,
) -> xr.Dataset:
    """Simulate trajectories of a plant with noise, all in one batch.

    x_{k+1} = f(x_k, u_k + n_k) + w_k and y_k = h(x_k, u_k + n_k) + v_k for k = 0 ... steps-1; ``u`` in the
    dataset is without the noise n.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    trajectories, steps : int
        Sizes of the dataset.
    seed : int
        Seed of starts, inputs and noise; the same seed gives the same data.
    noise : GaussianNoise, optional
        Or one of its variants. None: no noise.
    inputs : callable or array_like, optional
        A signal (:mod:`plants.signals`), stretched to the operating region's input box, or the
        inputs themselves, (steps, ninputs) or (trajectories, steps, ninputs). Default: random steps
        held for ten samples.
    initial_mean, initial_cov : array_like, optional
        Starts are drawn from this normal distribution, (nstates,) and (nstates, nstates) or
        variances. A mean for each trajectory, (trajectories, nstates), is not told in the dataset. Default: centre of
        the operating region, standard deviation a sixth of its width.

    Returns
    -------
    xarray.Dataset
        ``x``, ``u``, ``y`` and what an estimator may be told: ``initial_mean``, ``initial_cov``,
        ``process_cov``, ``measurement_cov``.

    Raises
    ------
    ValueError
        Sizes do not fit, or a trajectory leaves the finite numbers (it is named; a DivergedError).
    """
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"model must be a StateSpaceModel as discretize returns, got {type(model).__name__}")
    if noise is not None and not isinstance(noise, GaussianNoise):
        raise TypeError(f"noise must be a GaussianNoise or one of its variants, got {type(noise).__name__}")
    for name, value in (("trajectories", trajectories), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    region = model.operating_region
    mean = as_tensor(region.state_centre if initial_mean is None else initial_mean, "initial_mean", model.nstates)
    if mean.shape not in ((model.nstates,), (trajectories, model.nstates)):
        raise ValueError(
            f"initial_mean must have shape ({model.nstates},) or ({trajectories}, {model.nstates}), "
            f"got {tuple(mean.shape)}"
        )
    covariance = as_covariance(
        (region.state_width / 6) ** 2 if initial_cov is None else initial_cov, "initial_cov", model.nstates
    )
    if noise is not None:
        noise.check_sizes(model)
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((trajectories, model.nstates)) @ covariance_factor(covariance).T
    u = draw_inputs(model, trajectories, steps, inputs, rng)
    w = torch.from_numpy(noise.process(rng, steps, trajectories)) if noise else None
    v = torch.from_numpy(noise.measurement(rng, steps, trajectories)) if noise else 0.0
    applied = u + torch.as_tensor(noise.input(rng, steps, trajectories), dtype=torch.float64) if noise else u

    x = torch.empty(steps, trajectories, model.nstates, dtype=torch.float64)
    x[0] = mean + torch.from_numpy(start)
    for k in range(steps - 1):
        x[k + 1] = model.step(x[k], applied[k], k * model.dt)
        if w is not None:
            x[k + 1] += w[k]
        if not bool(torch.isfinite(x[k + 1]).all()):
            which = int((~torch.isfinite(x[k + 1])).any(dim=1).nonzero()[0])
            raise DivergedError(
                f"trajectory {which} of {model.name!r}, which started at x={x[0, which].tolist()}, is not finite after "
                f"time step {k}: from x={x[k, which].tolist()}, u={applied[k, which].tolist()}; does the plant live in "
                "its operating_region, and does it need more substeps outside?"
            )
    times = (torch.arange(steps, dtype=torch.float64) * model.dt).tolist()
    y = torch.stack([model.output(x[k], applied[k], times[k]) for k in range(steps)]) + v
    return from_arrays(
        model,
        y=y.transpose(0, 1),
        u=u.transpose(0, 1),
        x=x.transpose(0, 1),
        initial_mean=mean if mean.ndim == 1 else None,
        initial_cov=covariance if mean.ndim == 1 else None,
        noise=noise,
        attrs={"seed": seed},
    )


def draw_inputs(model: StateSpaceModel, trajectories: int, steps: int, inputs, rng) -> torch.Tensor:
    """Draw the inputs of `simulate`, (steps, trajectories, ninputs)."""
    shape = (steps, trajectories, model.ninputs)
    if not model.ninputs:
        return torch.zeros(shape, dtype=torch.float64)
    if inputs is None:
        inputs = signals.steps(10 * model.dt)
    if callable(inputs):
        drawn = np.asarray(inputs(np.arange(steps) * model.dt, trajectories * model.ninputs, rng), dtype=float)
        if drawn.shape != (steps, trajectories * model.ninputs):
            raise ValueError(f"the signal returned shape {drawn.shape}, needed {(steps, trajectories * model.ninputs)}")
        region = model.operating_region
        return torch.from_numpy(region.input_centre + region.input_width / 2 * drawn.reshape(shape))
    u = as_tensor(inputs, "inputs", model.ninputs)
    if u.shape not in ((steps, model.ninputs), (trajectories, steps, model.ninputs)):
        raise ValueError(
            f"inputs must have shape ({steps}, {model.ninputs}) or ({trajectories}, {steps}, {model.ninputs}), "
            f"got {tuple(u.shape)}"
        )
    return (u[:, None] if u.ndim == 2 else u.transpose(0, 1)).expand(shape)
