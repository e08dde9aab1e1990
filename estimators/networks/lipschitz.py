"""Networks with a prescribed Lipschitz bound, from sandwich layers (Wang and Manchester, ICML 2023)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import torch
from torch import nn

from estimators.networks.activations import ACTIVATIONS, check_activation

EPS = torch.finfo(torch.float32).eps
"""Regularisation of norms and of H, as in the published implementation, in every dtype."""


class SandwichMatrices(NamedTuple):
    """Explicit form of one layer: sqrt(2) A' Psi sigma(sqrt(2) Psi^-1 B h + b), or B h + b where linear.

    Attributes
    ----------
    A_T : torch.Tensor
        A', (n, n), with A A' + B B' = I.
    B : torch.Tensor
        (n, m).
    psi : torch.Tensor
        Diagonal of Psi, (n,).
    b : torch.Tensor
        (n,).
    """

    A_T: torch.Tensor
    B: torch.Tensor
    psi: torch.Tensor
    b: torch.Tensor

    @property
    def inward(self) -> torch.Tensor:
        """sqrt(2) Psi^-1 B."""
        return math.sqrt(2) * self.B / self.psi[:, None]

    @property
    def outward(self) -> torch.Tensor:
        """sqrt(2) A' Psi."""
        return math.sqrt(2) * self.A_T * self.psi


def frobenius_norm(matrix: torch.Tensor) -> torch.Tensor:
    """Frobenius norm, sqrt(sum of squares + EPS), differentiable at zero."""
    flat = matrix.reshape(-1)
    return torch.sqrt(flat.dot(flat) + EPS)


def gram(X: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Positive definite p^2 X'X / |X|^2 + EPS I, the free part of H ('polar' form)."""
    identity = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    return p**2 * (X.mT @ X) / frobenius_norm(X) ** 2 + EPS * identity


class Sandwich(nn.Module):
    """Free parameters of one 1-Lipschitz layer.

    Parameters
    ----------
    inputs, outputs : int
        Sizes m and n.
    generator : torch.Generator, optional
        For the random start.
    dtype : torch.dtype
        Of the parameters.
    linear : bool
        A layer h -> B h + b, which has no Psi.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        linear: bool = False,
    ):
        super().__init__()
        xy = torch.randn(inputs + outputs, outputs, generator=generator, dtype=dtype) / math.sqrt(max(outputs, 1))
        self.XY = nn.Parameter(xy)
        self.a = nn.Parameter(frobenius_norm(xy).reshape(1))
        self.register_parameter("d", None if linear else nn.Parameter(torch.zeros(outputs, dtype=dtype)))
        self.b = nn.Parameter(torch.zeros(outputs, dtype=dtype))

    def explicit(self, dtype: torch.dtype = torch.float64) -> SandwichMatrices:
        """Map the free parameters to matrices (Cayley transform), in `dtype` arithmetic."""
        XY, a, b = (p.to(dtype) for p in (self.XY, self.a, self.b))
        psi = torch.ones_like(b) if self.d is None else torch.exp(torch.clamp(self.d.to(b.dtype), -20, 20))
        n = XY.shape[1]
        W = a * XY / frobenius_norm(XY)
        U, V = W[:n], W[n:]
        Z = U - U.mT + V.mT @ V
        identity = torch.eye(n, dtype=XY.dtype, device=XY.device)
        # one inverse serves A' = (I+Z)^-1 (I-Z) = 2 (I+Z)^-1 - I and B' = -2 V (I+Z)^-1; since Z + Z' >= 0
        # its norm is at most 1, and it is as accurate as two solutions
        inverse = torch.linalg.inv(identity + Z)
        return SandwichMatrices(2 * inverse - identity, -2 * (V @ inverse).mT, psi, b)


class LipschitzNetwork(nn.Module):
    """Feedforward network with a prescribed Lipschitz bound (LBDN).

    Parameters
    ----------
    sizes : sequence of int
        Widths, input first, output last; at least two.
    bound : float
        Lipschitz constant in the Euclidean norm.
    activation : {'relu', 'leaky_relu', 'elu', 'tanh', 'sigmoid', 'softplus'}
        Of the hidden layers.
    linear_output : bool
        True: the last layer is h -> B h + b. False: it keeps the activation, as the published
        implementation does.
    generator : torch.Generator, optional
        For the random start.
    dtype : torch.dtype
        Of the parameters.

    Raises
    ------
    ValueError
        Sizes, bound or activation out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bound: float = 1.0,
        *,
        activation: str = "relu",
        linear_output: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in sizes):
            raise ValueError(f"sizes must be at least two positive integers, got {sizes!r}")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound!r}")
        check_activation(activation)
        self.sizes, self.bound, self.activation, self.linear_output = (
            tuple(int(n) for n in sizes),
            float(bound),
            activation,
            linear_output,
        )
        last = len(sizes) - 2
        self.layers = nn.ModuleList(
            Sandwich(m, n, generator, dtype, linear=linear_output and i == last)
            for i, (m, n) in enumerate(pairwise(sizes))
        )

    def explicit(self, dtype: torch.dtype = torch.float64) -> tuple[SandwichMatrices, ...]:
        """Matrices of every layer, from a map in `dtype` arithmetic."""
        return tuple(layer.explicit(dtype) for layer in self.layers)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Evaluate: u (..., sizes[0]) to (..., sizes[-1])."""
        sigma, gain = ACTIVATIONS[self.activation].function, math.sqrt(self.bound)
        h = gain * u
        for index, layer in enumerate(self.explicit(u.dtype)):
            if self.linear_output and index == len(self.layers) - 1:
                h = h @ layer.B.mT + layer.b
            else:
                h = sigma(h @ layer.inward.mT + layer.b) @ layer.outward.mT
        return gain * h
