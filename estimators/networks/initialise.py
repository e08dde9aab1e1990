"""Starting points of an R2DN other than random: long memory, and a given linear observer."""

import numpy as np
import scipy.linalg
import torch

from estimators.networks.lipschitz import EPS, frobenius_norm
from estimators.networks.r2dn import R2DN

FEEDBACK_SHARE = 0.3
"""Share of the metric that a linear start leaves to the network's input weight C1."""


def long_memory(network: R2DN, generator: torch.Generator | None = None) -> None:
    """Set the parameters, in place, to the published long-memory start (mathematics.md, 3).

    A is near the identity, and there is no feedback.
    """
    nx = network.nstates
    A = torch.eye(nx, dtype=torch.float64) - torch.diag(0.05 * torch.rand(nx, generator=generator, dtype=torch.float64))
    identity = torch.eye(nx, dtype=torch.float64)
    H = torch.cat([torch.cat([identity, A.mT], 1), torch.cat([A, identity], 1)])
    with torch.no_grad():
        network.B1.zero_()
        network.C1.zero_()
        network.Y.copy_(identity)
        _set_X(network, H)


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
    ValueError
        A does not contract at the network's rate.
    """
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
        network.C1.div_(torch.linalg.matrix_norm(network.C1, 2))
        network.B2.copy_(torch.from_numpy(B2))
        network.bx.copy_(torch.from_numpy(bx))
        _set_X(network, H)


def _set_X(network: R2DN, H: torch.Tensor) -> None:
    """Choose X and p so that the parameterisation gives H."""
    nx = network.nstates
    C1 = network.C1.detach().double()
    H = H - EPS * torch.eye(2 * nx, dtype=torch.float64)
    H[:nx, :nx] -= C1.mT @ C1
    X = torch.linalg.cholesky(H).mT
    network.X.copy_(X)
    network.p.copy_(frobenius_norm(X).reshape(1))
