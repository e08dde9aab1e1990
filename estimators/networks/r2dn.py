"""Contracting R2DN: an LTI system in feedback with a 1-Lipschitz network (arXiv 2504.01250)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from estimators.networks.lipschitz import ACTIVATIONS, EPS, LipschitzNetwork, SandwichMatrices, frobenius_norm
from estimators.networks.rollout import Rollout


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
        Layers of phi.
    metric : torch.Tensor
        P, (nx, nx): distances contract in |.|_P at the rate.
    contraction_rate : float
        Alpha.
    activation : str
        Of phi.
    linear_output : bool
        Whether the last layer of phi is linear.
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
    metric: torch.Tensor
    contraction_rate: float
    activation: str
    linear_output: bool

    def step(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step as defined: x (..., nx), u (..., nu) to the next state and the output y (..., ny)."""
        h, sigma = x @ self.C1.mT + u @ self.D12.mT + self.bv, ACTIVATIONS[self.activation]
        for index, layer in enumerate(self.network):
            if self.linear_output and index == len(self.network) - 1:
                h = h @ layer.B.mT + layer.b
            else:
                h = sigma(h @ layer.inward.mT + layer.b) @ layer.outward.mT
        return (
            x @ self.A.mT + h @ self.B1.mT + u @ self.B2.mT + self.bx,
            x @ self.C2.mT + h @ self.D21.mT + u @ self.D22.mT + self.by,
        )

    def collapse(self) -> "CollapsedR2DN":
        """Multiply neighbouring factors into one matrix a layer (mathematics.md, 7)."""
        layers = self.network
        hidden = layers[:-1] if self.linear_output else layers
        last = layers[-1] if self.linear_output else None
        if not isinstance(hidden, Sequence) or isinstance(hidden, str):
            raise TypeError(f"hidden must be a sequence of widths, got {hidden!r}")
        if not hidden:
            raise ValueError(
                "a network with a single linear layer has nothing to roll out: give hidden at least one width"
            )
        inward = hidden[0].inward
        weights = [inward @ self.C1] + [b.inward @ a.outward for a, b in pairwise(hidden)]
        out = last.B @ hidden[-1].outward if last else hidden[-1].outward
        shift = last.b if last else torch.zeros_like(self.bv)
        return CollapsedR2DN(
            self.activation,
            self.A,
            self.B1 @ out,
            self.B2,
            self.bx + self.B1 @ shift,
            tuple(weights),
            inward @ self.D12,
            inward @ self.bv + hidden[0].b,
            tuple(layer.b for layer in hidden[1:]),
            self.C2,
            self.D21 @ out,
            self.D22,
            self.by + self.D21 @ shift,
        )


class CollapsedR2DN(NamedTuple):
    """The same system with one matrix a layer; see :mod:`estimators.networks.rollout`."""

    activation: str
    A: torch.Tensor
    F: torch.Tensor
    B2: torch.Tensor
    bx: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    input_weight: torch.Tensor
    input_bias: torch.Tensor
    biases: tuple[torch.Tensor, ...]
    C2: torch.Tensor
    output_weight: torch.Tensor
    D22: torch.Tensor
    by: torch.Tensor

    def step(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: x (..., nx), u (..., nu) to the next state and the output y (..., ny)."""
        sigma = ACTIVATIONS[self.activation]
        h = sigma(x @ self.weights[0].mT + u @ self.input_weight.mT + self.input_bias)
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            h = sigma(h @ weight.mT + bias)
        return (
            x @ self.A.mT + h @ self.F.mT + u @ self.B2.mT + self.bx,
            x @ self.C2.mT + h @ self.output_weight.mT + u @ self.D22.mT + self.by,
        )

    def rollout(
        self, x0: torch.Tensor, u: torch.Tensor, shift: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Roll out time-first.

        x0 (batch, nx), u (time, batch, nu) to states (time + 1, batch, nx) and outputs (time, batch, ny);
        `shift` (time, batch, nx) is added to the next state.
        """
        # inputs are few and times many: one product for all times before the loop, one after it
        c = u @ self.input_weight.mT + self.input_bias
        d = u @ self.B2.mT + self.bx
        if shift is not None:
            d = d + shift
        states, h = Rollout.apply(self.activation, x0.contiguous(), c, d, self.A, self.F, *self.weights, *self.biases)
        return states, states[:-1] @ self.C2.mT + h @ self.output_weight.mT + u @ self.D22.mT + self.by


class R2DN(nn.Module):
    """Contracting recurrent network, stable for every value of its parameters.

    Any two runs with the same input approach each other: |x_t - x'_t|_P <= rate^t |x_0 - x'_0|_P.

    Parameters
    ----------
    ninputs, nstates, noutputs : int
        Sizes.
    nfeedback : int
        Width nv of the signals v and w around the network.
    hidden : sequence of int
        Widths of the hidden layers, at least one.
    contraction_rate : float
        In (0, 1].
    activation : {'relu', 'tanh'}
        Monotone with slope in [0, 1].
    linear_output : bool
        True: the network's last layer is linear. False: published convention.
    generator : torch.Generator, optional
        For the random start (LeCun normal, zero biases, D22 = 0).
    dtype : torch.dtype
        Of the parameters.

    Raises
    ------
    ValueError
        A size, rate or activation out of range; named.
    """

    def __init__(
        self,
        ninputs: int,
        nstates: int,
        noutputs: int,
        *,
        nfeedback: int,
        hidden: Sequence[int],
        contraction_rate: float = 1.0,
        activation: str = "relu",
        linear_output: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        for name, value in (
            ("ninputs", ninputs),
            ("nstates", nstates),
            ("noutputs", noutputs),
            ("nfeedback", nfeedback),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not hidden:
            raise ValueError("hidden must have at least one width, got none")
        if not 0 < contraction_rate <= 1:
            raise ValueError(f"contraction_rate must be in (0, 1], got {contraction_rate!r}")
        self.ninputs, self.nstates, self.noutputs = ninputs, nstates, noutputs
        self.contraction_rate = float(contraction_rate)
        self.network = LipschitzNetwork(
            (nfeedback, *hidden, nfeedback),
            activation=activation,
            linear_output=linear_output,
            generator=generator,
            dtype=dtype,
        )

        def lecun(rows, columns):
            return nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=dtype) / math.sqrt(columns))

        def zeros(*shape):
            return nn.Parameter(torch.zeros(*shape, dtype=dtype))

        self.X, self.Y = lecun(2 * nstates, 2 * nstates), lecun(nstates, nstates)
        self.p = nn.Parameter(frobenius_norm(self.X.detach()).reshape(1))
        self.B1, self.B2, self.bx = lecun(nstates, nfeedback), lecun(nstates, ninputs), zeros(nstates)
        self.C1, self.D12, self.bv = lecun(nfeedback, nstates), lecun(nfeedback, ninputs), zeros(nfeedback)
        self.C2, self.D21, self.D22, self.by = (
            lecun(noutputs, nstates),
            lecun(noutputs, nfeedback),
            zeros(noutputs, ninputs),
            zeros(noutputs),
        )

    def explicit(self, dtype: torch.dtype | None = None) -> R2DNMatrices:
        """Map the free parameters to matrices (mathematics.md, 3), in `dtype` arithmetic.

        float64 is needed for a certificate: formed in float32, the matrices can violate the
        inequality that the exact ones satisfy.
        """
        par = {name: value.to(dtype or value.dtype) for name, value in self.named_parameters(recurse=False)}
        X, B1, C1, nx = par["X"], par["B1"], par["C1"], self.nstates
        H = par["p"] ** 2 * (X.mT @ X) / frobenius_norm(X) ** 2 + torch.block_diag(C1.mT @ C1, B1 @ B1.mT)
        H = H + EPS * torch.eye(2 * nx, dtype=H.dtype, device=H.device)
        H11, H21, H22 = H[:nx, :nx], H[nx:, :nx], H[nx:, nx:]
        E = (H11 + H22 / self.contraction_rate**2 + par["Y"] - par["Y"].mT) / 2
        solved = torch.linalg.solve(E, torch.cat([H21, B1], dim=1))
        metric = E.mT @ torch.linalg.solve(H22, E)
        return R2DNMatrices(
            A=solved[:, :nx],
            B1=solved[:, nx:],
            B2=par["B2"],
            bx=par["bx"],
            C1=C1,
            D12=par["D12"],
            bv=par["bv"],
            C2=par["C2"],
            D21=par["D21"],
            D22=par["D22"],
            by=par["by"],
            network=self.network.explicit(dtype),
            metric=(metric + metric.mT) / 2,
            contraction_rate=self.contraction_rate,
            activation=self.network.activation,
            linear_output=self.network.linear_output,
        )

    def forward(self, u: torch.Tensor, x0: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences.

        Parameters
        ----------
        u : torch.Tensor
            (batch, time, ninputs).
        x0 : torch.Tensor, optional
            (batch, nstates), default zero.

        Returns
        -------
        y : torch.Tensor
            (batch, time, noutputs).
        x_last : torch.Tensor
            (batch, nstates), the state after the last input.
        """
        if u.ndim != 3 or u.shape[-1] != self.ninputs:
            raise ValueError(f"u must have shape (batch, time, {self.ninputs}), got {tuple(u.shape)}")
        if x0 is None:
            x0 = u.new_zeros(len(u), self.nstates)
        states, y = self.explicit().collapse().rollout(x0, u.transpose(0, 1).contiguous())
        return y.transpose(0, 1), states[-1]
