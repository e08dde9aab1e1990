"""What every estimator is: a pure step from belief, input and measurement to an estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from plants.arrays import as_tensor
from plants.model import StateSpaceModel


class Estimate(NamedTuple):
    """An estimate at time k; entries that an estimator does not have are None.

    Attributes
    ----------
    predicted : torch.Tensor
        (..., nstates), from measurements up to k-1.
    filtered : torch.Tensor
        (..., nstates), from measurements up to k.
    predicted_cov, filtered_cov : torch.Tensor or None
        (..., nstates, nstates).
    innovation : torch.Tensor or None
        (..., noutputs), whitened: independent with variance 1 if model and noise are right; 0 where not measured.
    log_likelihood : torch.Tensor or None
        (...,), of the measurement at k given those before.
    """

    predicted: torch.Tensor
    filtered: torch.Tensor | None = None
    predicted_cov: torch.Tensor | None = None
    filtered_cov: torch.Tensor | None = None
    innovation: torch.Tensor | None = None
    log_likelihood: torch.Tensor | None = None


@runtime_checkable
class Estimator(Protocol):
    """The protocol of filters and observers; online and offline are one code path."""

    model: StateSpaceModel

    def init(self, x0, P0=None) -> Any:
        """Start from the predicted state `x0` (..., nstates); `P0` is ignored where there is no covariance."""

    def step(self, state, u, y) -> tuple[Any, Estimate]:
        """Use u and y of instant k; return the belief for k+1 and the estimate at k. Changes nothing in place."""

    def estimate_sequence(self, state, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs) to (..., time, nstates)."""


def check_measurement(model: StateSpaceModel, u, y) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate one instant's (or a record's) input and measurement; NaN is allowed in y only."""
    if u is None and model.ninputs:
        raise ValueError(f"u is missing: the plant has the inputs {list(model.input_labels)}")
    y = as_tensor(y, "y", model.noutputs, finite=False)
    if bool(torch.isinf(y).any()):
        raise ValueError("y holds infinite values: use NaN for what was not measured")
    u = y.new_zeros(*y.shape[:-1], 0) if u is None else as_tensor(u, "u", model.ninputs)
    return u, y


def check_record(model: StateSpaceModel, u, y) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate a record, u (..., time, ninputs) and y (..., time, noutputs), and broadcast its batch dimensions."""
    u, y = check_measurement(model, u, y)
    if y.ndim < 2 or u.ndim < 2 or y.shape[-2] == 0 or u.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"a record needs u (..., time, {model.ninputs}) and y (..., time, {model.noutputs}) of the same, non-zero "
            f"length, got {tuple(u.shape)} and {tuple(y.shape)}"
        )
    lead = torch.broadcast_shapes(u.shape[:-2], y.shape[:-2])
    return u.expand(*lead, *u.shape[-2:]), y.expand(*lead, *y.shape[-2:])


def channels_of(sensor, labels) -> list[int]:
    """Return the places of the outputs that a sensor, one label or several, names."""
    names = list(sensor) if isinstance(sensor, list | tuple) else [sensor]
    if any(name not in labels for name in names) or len(set(names)) < len(names):
        raise ValueError(f"sensor must name different outputs of {list(labels)}, got {names}")
    return [labels.index(name) for name in names]


def stack_steps(step: Callable, state, count: int, progress=lambda steps: steps) -> Estimate:
    """Run ``step(state, k) -> (state, estimate)`` over a record and stack the estimates along its time axis.

    Raises
    ------
    ValueError
        As `step` does, with the time step.
    """
    estimates = []
    for k in progress(range(count)):
        try:
            state, estimate = step(state, k)
        except ValueError as error:
            raise ValueError(f"at time step {k}: {error}") from error
        estimates.append(estimate)
    axes = (-2, -2, -3, -3, -2, -1)
    return Estimate(
        *(
            None if parts[0] is None else torch.stack(parts, dim=axis)
            for parts, axis in zip(zip(*estimates, strict=True), axes, strict=True)
        )
    )
