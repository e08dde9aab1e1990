"""What the recurrent networks share: sizes, sequences in and out, conversion."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import control
import torch
from torch import nn

SHRINK = 1 - 2.0**-10
"""Norm that a scaled feedthrough stays below: at 1 the inequality would be singular."""


def check_sizes(least: int = 1, **sizes):
    """Return sizes as int, one or a list; a ValueError names the first that is not an integer of at least `least`."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            what = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise ValueError(f"{name} must be {what}, got {value!r}")
    checked = [int(value) for value in sizes.values()]
    return checked[0] if len(checked) == 1 else checked


def check_rate(rate) -> float:
    """Validate a contraction rate."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate <= 1:
        raise ValueError(f"contraction_rate must be in (0, 1], got {rate!r}")
    return float(rate)


def check_bound(bound) -> float | None:
    """Validate a Lipschitz bound; None means there is none."""
    if bound is None:
        return None
    if isinstance(bound, bool) or not isinstance(bound, Real) or not 0 < bound < math.inf:
        raise ValueError(f"lipschitz must be positive and finite, or None, got {bound!r}")
    return float(bound)


def metric_of(E: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """Symmetric E' P^-1 E, the metric in which the state contracts."""
    metric = E.mT @ torch.linalg.solve(P, E)
    return (metric + metric.mT) / 2


class Recurrent(nn.Module, ABC):
    """Base of :class:`R2DN` and :class:`REN`: direct parameters that map to explicit matrices.

    Parameters
    ----------
    ninputs, nstates, noutputs : int
        Sizes.
    identity_output : bool
        The output is the state itself.
    dtype : torch.dtype
        Of the parameters.
    """

    def __init__(self, ninputs: int, nstates: int, noutputs: int, identity_output: bool, dtype: torch.dtype):
        super().__init__()
        ninputs, nstates, noutputs = check_sizes(ninputs=ninputs, nstates=nstates, noutputs=noutputs)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        if identity_output and noutputs != nstates:
            raise ValueError(f"noutputs must equal nstates = {nstates} where identity_output is set, got {noutputs}")
        self.ninputs, self.nstates, self.noutputs = ninputs, nstates, noutputs
        self.identity_output = identity_output

    @abstractmethod
    def _matrices(self, dtype: torch.dtype, metric: bool) -> Any:
        """Explicit matrices, with their metric if asked."""

    def explicit(self, dtype: torch.dtype = torch.float64) -> Any:
        """Map the free parameters to named matrices, differentiably.

        Parameters
        ----------
        dtype : torch.dtype
            Arithmetic of the map. A certificate needs float64, the default whatever the dtype of the
            parameters: matrices formed in float32 can violate the inequality that the exact ones satisfy.

        Returns
        -------
        R2DNMatrices or RENMatrices
        """
        return self._matrices(dtype, metric=True)

    @abstractmethod
    def streaming(self) -> Callable:
        """Step function ``(x, u) -> (x_next, y)`` of NumPy arrays, for one trajectory in a control loop.

        The parameters are mapped once, now, in float64. Threads may share it, but wait for each other.
        """

    def to_control(self, dt: float | bool = True, name: str | None = None) -> control.NonlinearIOSystem:
        """Wrap the network, with its parameters as they are now, as a discrete python-control system.

        Parameters
        ----------
        dt : float or bool
            Sample time; True: unspecified.
        name : str, optional
            Of the system.

        Returns
        -------
        control.NonlinearIOSystem
            States x[i], inputs u[i], outputs y[i].
        """
        step = self.streaming()
        return control.nlsys(
            lambda t, x, u, params: step(x, u)[0],
            lambda t, x, u, params: step(x, u)[1],
            states=self.nstates,
            inputs=self.ninputs,
            outputs=self.noutputs,
            dt=dt,
            name=name,
        )

    def _start(self, u, x0):
        for name, value in (("u", u), ("x0", x0)):
            if not isinstance(value, torch.Tensor) and (name == "u" or value is not None):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if u.ndim != 3 or u.shape[-1] != self.ninputs:
            raise ValueError(f"u must have shape (batch, time, {self.ninputs}), got {tuple(u.shape)}")
        if u.shape[1] == 0:
            raise ValueError("u must have at least one time step, got none")
        parameter = next(self.parameters())
        if u.dtype != parameter.dtype:
            raise TypeError(f"u must have the parameters' dtype {parameter.dtype}, got {u.dtype}")
        if x0 is None:
            return u.new_zeros(len(u), self.nstates)
        if x0.shape != (len(u), self.nstates) or x0.dtype != u.dtype:
            raise ValueError(
                f"x0 must have shape {(len(u), self.nstates)} and dtype {u.dtype}, got {tuple(x0.shape)}, {x0.dtype}"
            )
        return x0

    @abstractmethod
    def forward(
        self, u: torch.Tensor, x0: torch.Tensor | None = None, *, checkpoint: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences, in the arithmetic of the parameters.

        In float32 that is for training: what a certificate says holds for the float64 matrices of
        `explicit` and the steps of `streaming`, to which these outputs are equal up to rounding.

        Parameters
        ----------
        u : torch.Tensor
            (batch, time, ninputs), of the parameters' dtype.
        x0 : torch.Tensor, optional
            (batch, nstates), default zero.
        checkpoint : bool
            Keep less for the backward pass, which then takes one more forward pass.

        Returns
        -------
        y : torch.Tensor
            (batch, time, noutputs).
        x_last : torch.Tensor
            (batch, nstates), the state after the last input.

        Raises
        ------
        ValueError, TypeError
            Shape or dtype of `u` or `x0`.
        """
