"""The arithmetic all Gaussian filters share: covariance factors, combined by QR.

A covariance P is carried as a factor S with P = S S', so it is symmetric and positive
semidefinite whatever the rounding, and half the digits of a badly scaled P are not lost.
"""

import math
from typing import NamedTuple

import torch


class Correction(NamedTuple):
    """Outcome of :func:`correct`.

    Attributes
    ----------
    mean : torch.Tensor
        (..., nx).
    factor : torch.Tensor
        (..., nx, nx), lower triangular.
    log_likelihood : torch.Tensor
        (...,), of the measured channels.
    whitened : torch.Tensor
        (..., ny), the innovation through the inverse of its covariance's factor: independent, of variance 1, if
        model and noise are right; 0 in channels that were not measured.
    channels : torch.Tensor
        (...,), how many were measured.
    root : torch.Tensor
        (..., ny, ny) lower triangular factor of the innovation's covariance, positive on the diagonal; the
        identity for what was not measured.
    """

    mean: torch.Tensor
    factor: torch.Tensor
    log_likelihood: torch.Tensor
    whitened: torch.Tensor
    channels: torch.Tensor
    root: torch.Tensor


def triangular_factor(wide: torch.Tensor) -> torch.Tensor:
    """Lower-triangular L with L L' = W W' for a wide W.

    Parameters
    ----------
    wide : torch.Tensor
        (..., n, m), m >= n.

    Returns
    -------
    torch.Tensor
        (..., n, n).
    """
    return _Triangular.apply(wide) if wide.requires_grad and torch.is_grad_enabled() else _lower(wide)


def _lower(wide):
    return torch.linalg.qr(wide.mT, mode="r")[1].mT


class _Triangular(torch.autograd.Function):
    """`triangular_factor` with its derivative, that of a Cholesky factor of W W' (Murray, arXiv 1602.07527).

    torch differentiates a QR decomposition only with its orthogonal part, which is not needed here.
    """

    @staticmethod
    def forward(ctx, wide):
        L = _lower(wide)
        ctx.save_for_backward(wide, L)
        return L

    @staticmethod
    def backward(ctx, gradient):
        wide, L = ctx.saved_tensors
        product = torch.tril(L.mT @ torch.tril(gradient))
        half = product - 0.5 * torch.diag_embed(product.diagonal(dim1=-2, dim2=-1))
        inner = torch.linalg.solve_triangular(L.mT, half, upper=True)
        outer = torch.linalg.solve_triangular(L, inner, upper=False, left=False)
        return (outer + outer.mT) @ wide


def correct(
    mean: torch.Tensor,
    innovation: torch.Tensor,
    output_rows: torch.Tensor,
    state_rows: torch.Tensor,
    noise_factor: torch.Tensor,
) -> Correction:
    """Kalman correction in array form.

    With joint factor [[R^(1/2), Ny], [0, Nx]] of (output, state), where Ny Ny' is the output
    covariance without noise, Nx Nx' the state covariance and Nx Ny' their cross covariance,
    triangularisation gives [[S_y, 0], [K S_y, S+]] (Kailath, Sayed and Hassibi, Linear
    Estimation, ch. 12).

    Parameters
    ----------
    mean : torch.Tensor
        (..., nx) predicted mean.
    innovation : torch.Tensor
        (..., ny) measurement minus prediction; NaN in channels that were not measured.
    output_rows, state_rows : torch.Tensor
        Ny (..., ny, m) and Nx (..., nx, m), m >= nx.
    noise_factor : torch.Tensor
        N with R = N N', (..., ny, any).

    Returns
    -------
    Correction

    Raises
    ------
    ValueError
        The innovation covariance is singular.
    """
    ny, nx = innovation.shape[-1], mean.shape[-1]
    missing = torch.isnan(innovation)
    lead = torch.broadcast_shapes(
        innovation.shape[:-1], output_rows.shape[:-2], noise_factor.shape[:-2], state_rows.shape[:-2]
    )
    noise_rows = noise_factor.expand(*lead, *noise_factor.shape[-2:])
    output_rows = output_rows.expand(*lead, *output_rows.shape[-2:])
    state_rows = state_rows.expand(*lead, *state_rows.shape[-2:])
    if bool(missing.any()):
        # a missing channel becomes an independent unit-variance one with zero innovation: exactly
        # the same as deleting its rows of H and its rows and columns of R
        present = (~missing).to(mean.dtype)[..., None]
        filler = torch.diag_embed(missing.to(mean.dtype)).expand(*lead, ny, ny)
        noise_rows = torch.cat([noise_rows * present, filler], dim=-1)
        output_rows = output_rows * present
        innovation = torch.where(missing, torch.zeros_like(innovation), innovation)
    zeros = state_rows.new_zeros(*lead, nx, noise_rows.shape[-1])
    array = torch.cat([torch.cat([noise_rows, output_rows], dim=-1), torch.cat([zeros, state_rows], dim=-1)], dim=-2)
    joint = triangular_factor(array)
    root, gain_root, factor = joint[..., :ny, :ny], joint[..., ny:, :ny], joint[..., ny:, ny:]
    pivots = root.diagonal(dim1=-2, dim2=-1).abs()
    if bool((pivots == 0).any()):
        where = [int(i) for i in (pivots == 0).any(-1).nonzero()[0]]
        raise ValueError(
            "the innovation covariance is singular"
            + (f" in trajectory {where[0] if len(where) == 1 else where}" if where else "")
            + ": a noise-free measurement (R = 0) repeats what is known exactly; give R a positive variance"
        )
    whitened = torch.linalg.solve_triangular(root, innovation.expand(*lead, ny)[..., None], upper=False)
    count = (~missing).sum(dim=-1)
    constant = 0.5 * math.log(2 * math.pi) * count.to(mean.dtype)
    log_likelihood = -0.5 * whitened.square().sum(dim=(-2, -1)) - pivots.log().sum(dim=-1) - constant
    # a QR decomposition leaves the signs open: positive where the measurement is above what was expected
    sign = torch.sign(root.diagonal(dim1=-2, dim2=-1))
    innovation = whitened[..., 0] * sign
    mean = mean + (gain_root @ whitened)[..., 0]
    return Correction(mean, factor, log_likelihood, innovation, count, root * sign[..., None, :])
