"""Explicit form of an R2DN: named matrices, the step as defined, and the collapsed form that runs fast."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch

from estimators.networks.activations import ACTIVATIONS
from estimators.networks.lipschitz import SandwichMatrices
from estimators.networks.rollout import Recursion, rollout


class R2DNMatrices(NamedTuple):
    """Explicit form: v = C1 x + D12 u + bv, w = phi(v), x+ = A x + B1 w + B2 u + bx, y = C2 x + D21 w + D22 u + by.

    Attributes
    ----------
    A, B1, B2, bx : torch.Tensor
        (nx, nx), (nx, nv), (nx, nu), (nx,).
    C1, D12, bv : torch.Tensor
        (nv, nx), (nv, nu), (nv,).
    C2, D21, D22, by : torch.Tensor
        (ny, nx), (ny, nv), (ny, nu), (ny,).
    network : tuple of SandwichMatrices
        Layers of phi; empty where nv = 0.
    metric : torch.Tensor or None
        P, (nx, nx): distances contract in |.|_P at the rate.
    contraction_rate : float
        Alpha.
    lipschitz : float or None
        Bound gamma of the gain from u to y, or None where there is none.
    activation : str
        Of phi.
    linear_output : bool
        Whether the last layer of phi is linear.
    identity_output : bool
        Whether y = x by construction.
    """

    A: torch.Tensor
    B1: torch.Tensor
    B2: torch.Tensor
    bx: torch.Tensor
    C1: torch.Tensor
    D12: torch.Tensor
    bv: torch.Tensor
    C2: torch.Tensor
    D21: torch.Tensor
    D22: torch.Tensor
    by: torch.Tensor
    network: tuple[SandwichMatrices, ...]
    metric: torch.Tensor | None
    contraction_rate: float
    lipschitz: float | None
    activation: str
    linear_output: bool
    identity_output: bool

    def step(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step as defined: x (..., nx), u (..., nu) to the next state and the output y (..., ny)."""
        h, sigma = x @ self.C1.mT + u @ self.D12.mT + self.bv, ACTIVATIONS[self.activation].function
        for index, layer in enumerate(self.network):
            if self.linear_output and index == len(self.network) - 1:
                h = h @ layer.B.mT + layer.b
            else:
                h = sigma(h @ layer.inward.mT + layer.b) @ layer.outward.mT
        following = x @ self.A.mT + h @ self.B1.mT + u @ self.B2.mT + self.bx
        if self.identity_output:
            return following, x
        return following, x @ self.C2.mT + h @ self.D21.mT + u @ self.D22.mT + self.by

    def rollout(self, x0: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Roll out time-first: x0 (batch, nx), u (time, batch, nu) to all states and outputs."""
        return rollout(self.collapse(), x0, u, states=True)

    def collapse(self) -> Recursion:
        """Multiply neighbouring factors into one matrix a layer (mathematics.md, 7)."""
        M = torch.cat([self.A, self.B2, self.bx[:, None]], 1)
        N = None if self.identity_output else torch.cat([self.C2, self.D22, self.by[:, None]], 1)
        into = torch.cat([self.C1, self.D12, self.bv[:, None]], 1)
        hidden, last = (self.network[:-1], self.network[-1:]) if self.linear_output else (self.network, ())
        one = into.new_zeros(1, into.shape[1])
        one[:, -1] = 1
        if not hidden:  # phi is affine, or absent, and so is the whole system
            w = last[0].B @ into + last[0].b[:, None] * one if last else into
            M, N = M + self.B1 @ w, None if N is None else N + self.D21 @ w
            return Recursion(self.activation, M, N, None, None, ())
        # scalings after the products: one of each matrix instead of one of each factor
        first, root = hidden[0], math.sqrt(2)
        layers = [(root / first.psi)[:, None] * (first.B @ into) + first.b[:, None] * one]
        for before, layer in pairwise(hidden):
            layers += [(2 / layer.psi)[:, None] * before.psi * (layer.B @ before.A_T), layer.b]
        F, J = self.B1, None if N is None else self.D21
        if last:
            shift = last[0].b[:, None] * one
            M, N = M + F @ shift, None if N is None else N + J @ shift
            F, J = F @ last[0].B, None if N is None else J @ last[0].B
        outward = hidden[-1].outward
        F, J = F @ outward, None if N is None else J @ outward
        return Recursion(self.activation, M, N, F, J, tuple(layers))
