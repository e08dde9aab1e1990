"""Starting points other than random: long memory, a given linear observer, any contracting explicit model."""

import numpy as np
import scipy.linalg
import torch

from estimators.networks.lipschitz import EPS, Sandwich, SandwichMatrices, frobenius_norm
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.r2dn import R2DN
from estimators.networks.recurrent import SHRINK
from estimators.networks.ren import REN

FEEDBACK_SHARE = 0.3
"""Share of the metric that a linear start leaves to the network's input weight C1."""


def long_memory(network: R2DN | REN, generator: torch.Generator | None = None) -> None:
    """Set the parameters, in place, to the published long-memory start (mathematics.md, 3).

    A is near the identity, and there is no feedback.

    Parameters
    ----------
    network : R2DN or REN
        Contracting, without a Lipschitz bound or supply rate.
    generator : torch.Generator, optional
        Of the random part.

    Raises
    ------
    ValueError
        The network has a Lipschitz bound or a supply rate, for which the start is not defined.
    """
    _only_contracting(network, "long_memory")
    nx, double = network.nstates, torch.float64
    # a pole too close to 1 would leave the inequality to rounding
    decay = 0.05 * torch.rand(nx, generator=generator, dtype=double).clamp_min(1e-4)
    A = torch.eye(nx, dtype=double) - torch.diag(decay)
    identity = torch.eye(nx, dtype=double)
    with torch.no_grad():
        if isinstance(network, REN):
            nv = network.nfeedback
            D11 = torch.tril(torch.randn(nv, nv, generator=generator, dtype=double) / max(nv, 1) ** 0.5, -1)
            smallest = float(torch.linalg.eigvalsh(D11 + D11.mT)[-1]) / 2 if nv else 0.0
            W = 2 * (smallest + 1e-4) * torch.eye(nv, dtype=double) - D11 - D11.mT
            H = torch.block_diag(identity, W, identity)
            H[-nx:, :nx], H[:nx, -nx:] = A, A.mT
            network.Y1.copy_(identity)
        else:
            network.B1.zero_()
            network.C1.zero_()
            network.Y.copy_(identity)
            H = torch.cat([torch.cat([identity, A.mT], 1), torch.cat([A, identity], 1)])
        _set_X(network, H)


def from_explicit(network: R2DN, matrices: R2DNMatrices) -> None:
    """Set the parameters, in place, so that `network` is a given explicit model; the inverse of ``explicit``.

    Parameters
    ----------
    network : R2DN
        Of the same sizes, activation and kind of output.
    matrices : R2DNMatrices
        Their `metric` must satisfy the inequality of the network's contraction rate and Lipschitz bound, whichever the
        matrices were designed for.

    Raises
    ------
    TypeError
        The network is not an R2DN.
    ValueError
        Sizes or kinds differ, there is no metric, the inequality fails, or a layer is not 1-Lipschitz as
        a sandwich layer is. The network is as it was.
    """
    _require_r2dn(network, "from_explicit")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        _from_explicit(network, matrices)
    except ValueError:
        network.load_state_dict(before)
        raise


def _from_explicit(network, matrices):
    for name in ("activation", "linear_output", "identity_output"):
        if getattr(network, name) != getattr(matrices, name):
            raise ValueError(f"{name} is {getattr(network, name)!r} here and {getattr(matrices, name)!r} in matrices")
    own = network.explicit()
    shapes = [[tuple(t.shape) for t in m[:11]] + [tuple(layer.B.shape) for layer in m.network] for m in (own, matrices)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"matrices have shapes {shapes[1]}, the network needs {shapes[0]}")
    if matrices.metric is None:
        raise ValueError("matrices have no metric, from which the parameters are formed")
    m = R2DNMatrices(*(t.detach().double() if isinstance(t, torch.Tensor) else t for t in matrices))
    Q, square = m.metric, network.contraction_rate**2
    values = {name: getattr(m, name) for name in ("bx", "C1", "D12", "bv", "C2", "D21", "D22", "by", "B2")}
    B, extra = square * Q @ m.B1, None
    values["B1"] = B
    with torch.no_grad():
        if network.lipschitz is not None:
            g = network.lipschitz
            D12, D21, D22 = m.D12 / g**0.5, m.D21 / g**0.5, m.D22 / g
            values["B2"] = square * Q @ m.B2 / g**0.5
            C = torch.cat([m.C1, m.C2 / g**0.5])
            if not network.identity_output:
                values["C2"] = C[len(m.C1) :]
            try:
                values |= _free_feedthrough(D12 / SHRINK, D21 / SHRINK, D22 / SHRINK)
                extra = network._coupling(torch.cat([B, values["B2"]], 1), C, D12, D21, D22)
            except torch.linalg.LinAlgError as error:
                raise ValueError(f"the feedthrough of matrices exceeds the network's Lipschitz bound {g:g}") from error
        H = torch.cat(
            [torch.cat([square * Q, square * m.A.mT @ Q], 1), torch.cat([square * Q @ m.A, square**2 * Q], 1)]
        )
        for name, value in values.items():
            if hasattr(network, name):
                getattr(network, name).copy_(value)
        network.Y.zero_()
        _set_X(network, H, extra)
        for layer, given in zip(network.network.layers if m.network else (), m.network, strict=True):
            _set_layer(layer, given)


def from_linear(network: R2DN, A: np.ndarray, B2: np.ndarray, bx: np.ndarray) -> None:
    """Set the parameters, in place, so that the network is x+ = A x + B2 u + bx (mathematics.md, 6).

    The feedback path starts with B1 = 0 and a random C1 of norm 1, so that gradients reach every
    layer.

    Parameters
    ----------
    network : R2DN
        Changed in place; outputs are left as they are.
    A : numpy.ndarray
        (nx, nx), spectral radius below the network's contraction rate.
    B2, bx : numpy.ndarray
        (nx, nu) and (nx,).

    Raises
    ------
    TypeError
        The network is not an R2DN.
    ValueError
        Wrong shapes; A does not contract at the network's rate, or the network has a Lipschitz bound.
    """
    _require_r2dn(network, "from_linear")
    _only_contracting(network, "from_linear")
    nx, given = network.nstates, {"A": A, "B2": B2, "bx": bx}
    for (name, value), shape in zip(given.items(), ((nx, nx), (nx, network.ninputs), (nx,)), strict=True):
        given[name] = np.asarray(value, dtype=float)
        if given[name].shape != shape or not np.isfinite(given[name]).all():
            raise ValueError(f"{name} must be finite with shape {shape}, got shape {given[name].shape}")
    A, B2, bx = given.values()
    alpha = network.contraction_rate
    radius = np.abs(np.linalg.eigvals(A)).max()
    if radius >= alpha:
        raise ValueError(
            f"the linear observer contracts at {radius:.4g} a step, "
            f"slower than the contraction rate {alpha:g} asked for"
        )
    P = scipy.linalg.solve_discrete_lyapunov((A / alpha).T, np.eye(len(A)))
    free = np.block([[P, A.T @ P], [P @ A, alpha**2 * P]]) / alpha**2
    smallest = np.linalg.eigvalsh(free)[0]
    H = torch.from_numpy(free / (FEEDBACK_SHARE * smallest))  # any multiple of P is as good a metric
    with torch.no_grad():
        network.B1.zero_()
        network.Y.zero_()
        if network.nfeedback:
            network.C1.div_(torch.linalg.matrix_norm(network.C1, 2))
        network.B2.copy_(torch.from_numpy(B2))
        network.bx.copy_(torch.from_numpy(bx))
        _set_X(network, H)


def _require_r2dn(network, what):
    if not isinstance(network, R2DN):
        raise TypeError(f"{what} is a start of an R2DN, got {type(network).__name__}")


def _only_contracting(network, what):
    if network.lipschitz is not None or getattr(network, "supply", None) is not None:
        raise ValueError(f"{what} is a start of contracting networks: this one has a Lipschitz bound or supply rate")


def _set_X(network: R2DN | REN, H: torch.Tensor, extra: torch.Tensor | None = None) -> None:
    """Choose X and p so that the parameterisation gives H; `extra` is what else it adds to the free part."""
    if extra is None and isinstance(network, R2DN):
        C1, B1 = network.C1.detach().double(), network.B1.detach().double()
        extra = torch.block_diag(C1.mT @ C1, B1 @ B1.mT)
    H = H - EPS * torch.eye(len(H), dtype=torch.float64) - (0 if extra is None else extra.to(H.device))
    factor, info = torch.linalg.cholesky_ex((H + H.mT) / 2)
    if int(info):
        raise ValueError("the contraction inequality does not hold in the given metric at the network's rate and bound")
    network.X.copy_(factor.mT)
    network.p.copy_(frobenius_norm(factor).reshape(1))


def _free_feedthrough(D12, D21, D22):
    """Parameters D12, D21, D22 of a feedthrough in scaled signals: the inverse of ``R2DN._feedthrough``."""

    def upper(gram):  # T with T'T = I - gram
        return torch.linalg.cholesky(torch.eye(len(gram), dtype=gram.dtype) - gram).mT

    def free(D):  # W with D = W R^-1, R = T^-1
        return torch.linalg.solve_triangular(upper(D.mT @ D), D, upper=True, left=False)

    right, left = upper(D12.mT @ D12), upper(D21 @ D21.mT).mT
    K = torch.linalg.solve_triangular(
        right, torch.linalg.solve_triangular(left, D22, upper=False), upper=True, left=False
    )
    return {"D12": free(D12), "D21": free(D21.mT).mT, "D22": free(K)}


def _set_layer(layer: Sandwich, given: SandwichMatrices) -> None:
    """Invert the Cayley transform."""
    A_T, B = given.A_T.detach().double(), given.B.detach().double()
    if (A_T.mT @ A_T + B @ B.mT - torch.eye(len(B), dtype=torch.float64)).abs().max() > 1e-5:
        raise ValueError("a layer of matrices does not satisfy A A' + B B' = I, as sandwich layers do")
    identity = torch.eye(len(given.b), dtype=torch.float64)
    plus = 2 * torch.linalg.inv(identity + A_T)
    V = -B.mT @ plus / 2
    Z = plus - identity
    W = torch.cat([(Z - V.mT @ V) / 2, V])
    layer.XY.copy_(W)
    layer.a.copy_(frobenius_norm(W).reshape(1))
    layer.b.copy_(given.b)
    if layer.d is not None:
        layer.d.copy_(torch.log(given.psi))
