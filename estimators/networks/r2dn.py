"""Contracting and Lipschitz-bounded R2DN: an LTI system in feedback with a 1-Lipschitz network (arXiv 2504.01250)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from estimators.networks.activations import check_activation
from estimators.networks.lipschitz import LipschitzNetwork, frobenius_norm, gram
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.recurrent import SHRINK, Recurrent, check_bound, check_rate, check_sizes, metric_of
from estimators.networks.rollout import Recursion, rollout
from estimators.networks.streaming import Stream


def contraction(free: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Map any matrix to one of norm below 1, D = W R^-1 with R'R = I + W'W upper; every such D is reached.

    Returns D and R, for which I - D'D = (R R')^-1.
    """
    n = free.shape[1]
    R = torch.linalg.cholesky(torch.eye(n, dtype=free.dtype, device=free.device) + free.mT @ free).mT
    return torch.linalg.solve_triangular(R, free, upper=True, left=False), R


class R2DN(Recurrent):
    """Recurrent network that is contracting for every value of its parameters, with a Lipschitz bound if asked.

    Any two runs with the same input approach each other: |x_t - x'_t|_P <= rate^t |x_0 - x'_0|_P
    (mathematics.md, 3). With `lipschitz` = gamma, any two runs from the same state keep
    sum |y - y'|^2 <= gamma^2 sum |u - u'|^2 as well (mathematics.md, 4).

    Parameters
    ----------
    ninputs, nstates, noutputs : int
        Sizes.
    nfeedback : int
        Width nv of the signals v and w around the network; 0 for a linear system.
    hidden : sequence of int
        Widths of the hidden layers; may be empty, which leaves a system without nonlinear part.
    contraction_rate : float
        In (0, 1].
    lipschitz : float, optional
        Bound of the gain from u to y; None: no bound.
    identity_output : bool
        The output is the state itself, y_t = x_t; `noutputs` must equal `nstates`.
    activation : {'relu', 'leaky_relu', 'elu', 'tanh', 'sigmoid', 'softplus'}
        Monotone with slope in [0, 1].
    linear_output : bool
        True: the network's last layer is linear. False: published convention.
    generator : torch.Generator, optional
        For the random start (LeCun normal, zero biases, D22 = 0).
    dtype : torch.dtype
        Of the parameters.
    device : torch.device or str
        Where they live.

    Raises
    ------
    ValueError
        A size, rate, bound or activation out of range; named.
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
        lipschitz: float | None = None,
        identity_output: bool = False,
        activation: str = "relu",
        linear_output: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(ninputs, nstates, noutputs, identity_output, dtype)
        nfeedback = check_sizes(nfeedback=nfeedback, least=0)
        if isinstance(hidden, str) or not hasattr(hidden, "__len__"):
            raise TypeError(f"hidden must be a sequence of widths, got {hidden!r}")
        hidden = [check_sizes(**{f"hidden[{i}]": n}) for i, n in enumerate(hidden)]
        check_activation(activation)
        if hidden and not nfeedback:
            raise ValueError(f"hidden must be empty where nfeedback is 0, got {tuple(hidden)}")
        self.nfeedback, self.contraction_rate = nfeedback, check_rate(contraction_rate)
        self.lipschitz = check_bound(lipschitz)
        self.activation, self.linear_output = activation, linear_output
        self.network = None
        if nfeedback:
            self.network = LipschitzNetwork(
                (nfeedback, *hidden, nfeedback),
                activation=activation,
                linear_output=linear_output,
                generator=generator,
                dtype=dtype,
            )

        def lecun(rows, columns):
            scale = math.sqrt(max(columns, 1))
            return nn.Parameter(torch.randn(rows, columns, generator=generator, dtype=dtype) / scale)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(*shape, dtype=dtype))

        self.X, self.Y = lecun(2 * nstates, 2 * nstates), lecun(nstates, nstates)
        self.p = nn.Parameter(frobenius_norm(self.X.detach()).reshape(1))
        self.B1, self.B2, self.bx = lecun(nstates, nfeedback), lecun(nstates, ninputs), zeros(nstates)
        self.C1, self.D12, self.bv = lecun(nfeedback, nstates), lecun(nfeedback, ninputs), zeros(nfeedback)
        if not identity_output:
            self.C2, self.D21 = lecun(noutputs, nstates), lecun(noutputs, nfeedback)
            self.D22, self.by = zeros(noutputs, ninputs), zeros(noutputs)
        self.to(device)

    def _matrices(self, dtype: torch.dtype, metric: bool) -> R2DNMatrices:
        par = {name: value.to(dtype) for name, value in self.named_parameters(recurse=False)}
        nx, X, B1, B2, C1 = self.nstates, par["X"], par["B1"], par["B2"], par["C1"]
        identity = torch.eye(nx, dtype=dtype, device=X.device)
        if self.identity_output:
            ny = nx
            C2, D21, D22 = identity, X.new_zeros(ny, self.nfeedback), X.new_zeros(ny, self.ninputs)
            by = X.new_zeros(ny)
        else:
            C2, D21, D22, by = par["C2"], par["D21"], par["D22"], par["by"]
        H = gram(X, par["p"])
        if self.lipschitz is None:
            D12, B, H = par["D12"], B1, H + torch.block_diag(C1.mT @ C1, B1 @ B1.mT)
        else:  # everything in scaled signals until the end
            root = math.sqrt(self.lipschitz)
            D12, D21, D22 = self._feedthrough(par)
            C = torch.cat([C1, C2 / root if self.identity_output else C2])
            B = torch.cat([B1, B2], 1)
            H = H + self._coupling(B, C, D12, D21, D22)
        H11, H21, H22 = H[:nx, :nx], H[nx:, :nx], H[nx:, nx:]
        E = (H11 + H22 / self.contraction_rate**2 + par["Y"] - par["Y"].mT) / 2
        solved = torch.linalg.solve(E, torch.cat([H21, B], dim=1))
        A, B1 = solved[:, :nx], solved[:, nx : nx + self.nfeedback]
        if self.lipschitz is not None:
            B2, D12, D21, D22 = root * solved[:, nx + self.nfeedback :], root * D12, root * D21, self.lipschitz * D22
            C2 = C2 if self.identity_output else root * C2
        return R2DNMatrices(
            A=A,
            B1=B1,
            B2=B2,
            bx=par["bx"],
            C1=C1,
            D12=D12,
            bv=par["bv"],
            C2=C2,
            D21=D21,
            D22=D22,
            by=by,
            network=() if self.network is None else self.network.explicit(dtype),
            metric=metric_of(E, H22) if metric else None,
            contraction_rate=self.contraction_rate,
            lipschitz=self.lipschitz,
            activation=self.activation,
            linear_output=self.linear_output,
            identity_output=self.identity_output,
        )

    def _feedthrough(self, par):
        """D12, D21, D22 such that [[0, D12], [D21, D22]] has norm below 1 (Parrott), complete."""
        D12, R = contraction(par["D12"])
        if self.identity_output:
            ny = self.nstates
            return SHRINK * D12, D12.new_zeros(ny, self.nfeedback), D12.new_zeros(ny, self.ninputs)
        transposed, L = contraction(par["D21"].mT)  # I - D21 D21' = (L L')^-1
        D21, (K, _) = transposed.mT, contraction(par["D22"])
        inner = torch.linalg.solve_triangular(L.mT, K, upper=False)
        D22 = torch.linalg.solve_triangular(R, inner, upper=True, left=False)
        return SHRINK * D12, SHRINK * D21, SHRINK * D22

    def _coupling(self, B, C, D12, D21, D22):
        """N M^-1 N' of mathematics.md, 4, through the Schur complement S = I - D D' of M."""
        nx, nv = self.nstates, self.nfeedback
        D = torch.cat([torch.cat([D12.new_zeros(nv, nv), D12], 1), torch.cat([D21, D22], 1)])
        S = torch.eye(len(D), dtype=D.dtype, device=D.device) - D @ D.mT
        factor = torch.linalg.cholesky(S)
        both = torch.linalg.solve_triangular(factor, torch.cat([C, -D @ B.mT], 1), upper=False)
        return both.mT @ both + torch.block_diag(B.new_zeros(nx, nx), B @ B.mT)

    def collapsed(self) -> Recursion:
        """Matrices of a fast rollout, in the dtype of the parameters; differentiable."""
        return self._matrices(self.X.dtype, metric=False).collapse()

    def streaming(self) -> Callable:
        """Step function of NumPy arrays; see :meth:`Recurrent.streaming`."""
        with torch.no_grad():
            return Stream(self._matrices(torch.float64, metric=False).collapse()).step

    def forward(
        self, u: torch.Tensor, x0: torch.Tensor | None = None, *, checkpoint: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences; see :meth:`Recurrent.forward`."""
        x0 = self._start(u, x0)
        x, y = rollout(self.collapsed(), x0, u.transpose(0, 1), checkpoint=checkpoint)
        return y.transpose(0, 1), x
