"""Recurrent equilibrium network (Revay, Wang and Manchester, IEEE TAC 2023): the R2DN's predecessor and yardstick."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn

from estimators.networks.activations import ACTIVATIONS, check_activation
from estimators.networks.equilibrium import Substitution
from estimators.networks.lipschitz import EPS, frobenius_norm, gram
from estimators.networks.recurrent import SHRINK, Recurrent, check_bound, check_rate, check_sizes, metric_of
from estimators.networks.streaming import SubstitutionStream

RELATIVE = 2.0**-14
"""Regularisation of H relative to its size where a supply rate can make it nearly singular."""


class RENMatrices(NamedTuple):
    """Explicit form: w = sigma(D11 w + C1 x + D12 u + bv), x+ = A x + B1 w + B2 u + bx, y = C2 x + D21 w + D22 u + by.

    Attributes
    ----------
    A, B1, B2, bx : torch.Tensor
        (nx, nx), (nx, nv), (nx, nu), (nx,).
    C1, D11, D12, bv : torch.Tensor
        (nv, nx), (nv, nv) strictly lower triangular, (nv, nu), (nv,).
    C2, D21, D22, by : torch.Tensor
        (ny, nx), (ny, nv), (ny, nu), (ny,).
    metric : torch.Tensor or None
        P, (nx, nx).
    multiplier : torch.Tensor
        Diagonal of Lambda, (nv,): P and Lambda satisfy the contraction inequality.
    contraction_rate : float
        Alpha.
    supply : tuple of torch.Tensor or None
        Q, S, R of the dissipation inequality.
    lipschitz : float or None
        The bound gamma, where the supply is that of one.
    activation : str
        Sigma.
    identity_output : bool
        Whether y = x by construction.
    """

    A: torch.Tensor
    B1: torch.Tensor
    B2: torch.Tensor
    bx: torch.Tensor
    C1: torch.Tensor
    D11: torch.Tensor
    D12: torch.Tensor
    bv: torch.Tensor
    C2: torch.Tensor
    D21: torch.Tensor
    D22: torch.Tensor
    by: torch.Tensor
    metric: torch.Tensor | None
    multiplier: torch.Tensor
    contraction_rate: float
    supply: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    lipschitz: float | None
    activation: str
    identity_output: bool

    def step(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step as defined: x (..., nx), u (..., nu) to the next state and the output y (..., ny)."""
        sigma, v = ACTIVATIONS[self.activation].function, x @ self.C1.mT + u @ self.D12.mT + self.bv
        w = v[..., :0]
        for i in range(len(self.bv)):
            w = torch.cat([w, sigma(v[..., i] + w @ self.D11[i, :i])[..., None]], dim=-1)
        following = x @ self.A.mT + w @ self.B1.mT + u @ self.B2.mT + self.bx
        if self.identity_output:
            return following, x
        return following, x @ self.C2.mT + w @ self.D21.mT + u @ self.D22.mT + self.by

    def rollout(self, x0: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Roll out time-first: x0 (batch, nx), u (time, batch, nu) to all states and outputs."""
        solve, x = Substitution(self.D11, self.activation), x0
        c, d = u @ self.D12.mT + self.bv, u @ self.B2.mT + self.bx
        At, B1t, states, signals = self.A.mT, self.B1.mT, [x0], []
        for ct, dt in zip(c.unbind(0), d.unbind(0), strict=True):
            w = solve(torch.addmm(ct.mT, self.C1, x.mT)).mT
            x = torch.addmm(torch.addmm(dt, x, At), w, B1t)
            states.append(x)
            signals.append(w)
        states = torch.stack(states)
        if self.identity_output:
            return states, states[:-1]
        y = states[:-1] @ self.C2.mT + torch.stack(signals) @ self.D21.mT + u @ self.D22.mT + self.by
        return states, y


class REN(Recurrent):
    """Recurrent equilibrium network: contracting, Lipschitz-bounded or dissipative for every value of its parameters.

    Parameters
    ----------
    ninputs, nstates, noutputs : int
        Sizes.
    nfeedback : int
        Width nv of the equilibrium layer; 0 for a linear system.
    contraction_rate : float
        In (0, 1].
    lipschitz : float, optional
        Bound gamma of the gain from u to y.
    supply : tuple of array_like, optional
        (Q, S, R) of shapes (ny, ny), (nu, ny), (nu, nu): any two runs from the same state keep
        sum [dy' Q dy + 2 du' S dy + du' R du] >= 0. Q negative definite, R - S Q^-1 S' positive
        definite. Instead of `lipschitz`, which is Q = -I/gamma, S = 0, R = gamma I.
    identity_output : bool
        The output is the state itself; not with `supply`.
    published : bool
        How a supply rate or bound enters. True: as published, where H may come so near to singular, and D22 so near
        to the bound, that the inequality is lost in rounding. False: both keep a little away.
    activation : {'relu', 'leaky_relu', 'elu', 'tanh', 'sigmoid', 'softplus'}
        Monotone with slope in [0, 1].
    generator : torch.Generator, optional
        For the random start.
    dtype : torch.dtype
        Of the parameters.
    device : torch.device or str
        Where they live.

    Raises
    ------
    ValueError
        A size, rate, bound, supply rate or activation out of range; named.
    """

    def __init__(
        self,
        ninputs: int,
        nstates: int,
        noutputs: int,
        *,
        nfeedback: int,
        contraction_rate: float = 1.0,
        lipschitz: float | None = None,
        supply=None,
        identity_output: bool = False,
        published: bool = False,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(ninputs, nstates, noutputs, identity_output, dtype)
        nfeedback = check_sizes(nfeedback=nfeedback, least=0)
        check_activation(activation)
        self.nfeedback, self.contraction_rate, self.activation = nfeedback, check_rate(contraction_rate), activation
        self.lipschitz = check_bound(lipschitz)
        if supply is not None and (lipschitz is not None or identity_output):
            raise ValueError("supply cannot be combined with lipschitz or identity_output: give one of them")
        if lipschitz is not None:
            g = self.lipschitz
            supply = (-np.eye(noutputs) / g, np.zeros((ninputs, noutputs)), g * np.eye(ninputs))
        # constants of the design, not of the state: they stay in float64 whatever the parameters do
        self.published, self.supply = published, None if supply is None else self._check_supply(supply)

        def lecun(rows, columns):
            scale = math.sqrt(max(columns, 1))
            return nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=dtype) / scale)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(*shape, dtype=dtype))

        nx, nu, ny, nv = nstates, ninputs, noutputs, nfeedback
        self.X, self.Y1 = lecun(2 * nx + nv, 2 * nx + nv), lecun(nx, nx)
        self.p = nn.Parameter(frobenius_norm(self.X.detach()).reshape(1))
        self.B2, self.bx, self.D12, self.bv = lecun(nx, nu), zeros(nx), lecun(nv, nu), zeros(nv)
        if not identity_output:
            self.C2, self.D21, self.by = lecun(ny, nx), lecun(ny, nv), zeros(ny)
            if self.supply is not None:
                small = min(nu, ny)
                self.X3, self.Y3 = nn.Parameter(torch.eye(small, dtype=dtype)), lecun(small, small)
                self.Z3 = lecun(abs(ny - nu), small)
            else:
                self.D22 = zeros(ny, nu)
        self.to(device)

    def _check_supply(self, supply):
        ny, nu = self.noutputs, self.ninputs
        try:
            Q, S, R = (np.array(a, dtype=float) for a in supply)
        except (TypeError, ValueError) as error:
            raise ValueError(f"supply must be three arrays (Q, S, R), got {supply!r}") from error
        for name, value, shape in (("Q", Q, (ny, ny)), ("S", S, (nu, ny)), ("R", R, (nu, nu))):
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} of supply must be finite with shape {shape}, got shape {value.shape}")
        for name, value in (("Q", Q), ("R", R)):
            if not np.array_equal(value, value.T):
                raise ValueError(f"{name} of supply must be symmetric")
        if np.linalg.eigvalsh(Q)[-1] >= 0:
            raise ValueError("Q of supply must be negative definite")
        if np.linalg.eigvalsh(R - S @ np.linalg.solve(Q, S.T))[0] <= 0:
            raise ValueError("supply must have R - S Q^-1 S' positive definite")
        return Q, S, R

    def _matrices(self, dtype: torch.dtype, metric: bool) -> RENMatrices:
        par = {name: value.to(dtype) for name, value in self.named_parameters()}
        nx, nv, X, alpha = self.nstates, self.nfeedback, par["X"], self.contraction_rate
        new = X.new_zeros
        if self.identity_output:
            C2, D21, by = torch.eye(nx, dtype=dtype, device=X.device), new(nx, nv), new(nx)
        else:
            C2, D21, by = par["C2"], par["D21"], par["by"]
        supply = None
        H = gram(X, par["p"])
        if self.supply is not None:
            Q, S, R = supply = tuple(torch.from_numpy(m).to(X.device, dtype) for m in self.supply)
            if self.identity_output:
                D22, inverse = new(nx, self.ninputs), torch.linalg.inv(R)
            else:
                D22, inverse = self._feedthrough(par, Q, S, R)
            into = D22.mT @ Q + S
            q = torch.cat([C2, D21, new(len(C2), nx)], 1)
            r = torch.cat([into @ C2, into @ D21 - par["D12"].mT, par["B2"].mT], 1)
            H = H + r.mT @ inverse @ r - q.mT @ Q @ q
            if not self.published:
                H = H + RELATIVE * torch.diagonal(H).mean() * torch.eye(len(H), dtype=dtype, device=X.device)
        else:
            D22 = new(nx, self.ninputs) if self.identity_output else par["D22"]
        a, b = nx, nx + nv
        P, H22 = H[b:, b:], H[a:b, a:b]
        E = (H[:a, :a] + P / alpha**2 + par["Y1"] - par["Y1"].mT) / 2
        solved = torch.linalg.solve(E, torch.cat([H[b:, :b], par["B2"]], 1))
        multiplier = torch.diagonal(H22) / 2
        scaled = (1 / multiplier)[:, None]
        return RENMatrices(
            A=solved[:, :nx],
            B1=solved[:, nx:b],
            B2=solved[:, b:],
            bx=par["bx"],
            C1=-scaled * H[a:b, :a],
            D11=-scaled * torch.tril(H22, -1),
            D12=scaled * par["D12"],
            bv=par["bv"],
            C2=C2,
            D21=D21,
            D22=D22,
            by=by,
            metric=metric_of(E, P) if metric else None,
            multiplier=multiplier,
            contraction_rate=alpha,
            supply=supply,
            lipschitz=self.lipschitz,
            activation=self.activation,
            identity_output=self.identity_output,
        )

    def _feedthrough(self, par, Q, S, R):
        """Every D22 with R' = R + S D22 + D22' S' + D22' Q D22 > 0, and the inverse of R'.

        D22 = -Q^-1 S' + L_Q^-1 N L_R with N a contraction, and R' = L_R' (I - N'N) L_R.
        """
        X3, Y3, Z3 = par["X3"], par["Y3"], par["Z3"]
        identity = torch.eye(len(X3), dtype=X3.dtype, device=X3.device)
        M = X3.mT @ X3 + Y3 - Y3.mT + Z3.mT @ Z3 + EPS * identity
        inverse = torch.linalg.inv(identity + M)
        N = 2 * inverse - identity  # (I-M)(I+M)^-1
        tall = self.noutputs >= self.ninputs
        N = torch.cat([N, -2 * Z3 @ inverse]) if tall else torch.cat([N, -2 * inverse @ Z3.mT], 1)
        if not self.published:
            N = SHRINK * N
        L_Q = torch.linalg.cholesky(-Q).mT
        L_R = torch.linalg.cholesky(R - S @ torch.linalg.solve(Q, S.mT)).mT
        excess = L_R.mT @ (torch.eye(self.ninputs, dtype=N.dtype, device=N.device) - N.mT @ N) @ L_R
        D22 = -torch.linalg.solve(Q, S.mT) + torch.linalg.solve_triangular(L_Q, N @ L_R, upper=True)
        return D22, torch.linalg.inv(excess)

    def streaming(self) -> Callable:
        """Step function of NumPy arrays; see :meth:`Recurrent.streaming`."""
        with torch.no_grad():
            return SubstitutionStream(self._matrices(torch.float64, metric=False)).step

    def forward(
        self, u: torch.Tensor, x0: torch.Tensor | None = None, *, checkpoint: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences; see :meth:`Recurrent.forward`."""
        x0, matrices = self._start(u, x0), self._matrices(self.X.dtype, metric=False)

        def run(x0, u):
            states, y = matrices.rollout(x0, u)
            return y.transpose(0, 1), states[-1]

        u = u.transpose(0, 1)
        if checkpoint and torch.is_grad_enabled():
            return _in_segments(run, x0, u)
        return run(x0, u)


def _in_segments(run, x0, u):
    """Backward pass with one more forward pass, a segment of about sqrt(time) instants at a time."""
    outputs, x = [], x0
    for part in u.split(max(1, math.isqrt(len(u)))):
        y, x = torch.utils.checkpoint.checkpoint(run, x, part, use_reentrant=False)
        outputs.append(y)
    return torch.cat(outputs, dim=1), x
