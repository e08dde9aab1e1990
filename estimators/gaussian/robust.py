"""Correction with a measurement whose noise has heavy tails."""

import math
from collections.abc import Callable

import torch

from estimators.gaussian.update import Correction

ITERATIONS = 300


def student_correction(
    weigh: Callable, first: Correction, noise: torch.Tensor, measured: torch.Tensor, degrees_of_freedom: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Correct under Student's t noise: v given w is normal with covariance R / w, w has a gamma distribution.

    Variational fixed point (Agamennoni, Nieto and Nebot, IEEE TSP 2012): w = (nu + n) / (nu + E[r' R^-1 r]), with r the
    residual after the correction and n the measured channels. With S = T T' the innovation's covariance under weight w
    and N N' = R, E = |N' T^-T T^-1 e|^2 / w^2 + n / w - |T^-1 N|^2 / w^2 without an inverse of R.

    Parameters
    ----------
    weigh : callable
        Noise factor to Correction.
    first : Correction
        With weight 1.
    noise : torch.Tensor
        N, (..., ny, ny).
    measured : torch.Tensor
        (..., ny) bool.
    degrees_of_freedom : float
        nu.

    Returns
    -------
    mean, factor, log_likelihood : torch.Tensor
        The last under a t distribution of the innovation with the scale S of weight 1.
    """
    nu, n = degrees_of_freedom, first.channels.to(first.mean.dtype)
    rows = noise * measured[..., None]
    found, weight = first, torch.ones_like(first.log_likelihood)
    for _ in range(ITERATIONS):
        W = torch.linalg.solve_triangular(found.root, rows.expand(*found.root.shape[:-1], rows.shape[-1]), upper=False)
        residual = (W.mT @ found.whitened[..., None]).square().sum((-2, -1)) / weight.square()
        expected = residual + n / weight - W.square().sum((-2, -1)) / weight.square()
        before, weight = weight, (nu + n) / (nu + expected)
        found = weigh(noise / weight.sqrt()[..., None, None])
        if bool(((weight - before).abs() <= 1e-9 * weight).all()):
            break
    squared, half = first.whitened.square().sum(-1), (nu + n) / 2
    log_likelihood = (
        torch.lgamma(half)
        - math.lgamma(nu / 2)
        - n / 2 * math.log(nu * math.pi)
        - first.root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        - half * torch.log1p(squared / nu)
    )
    return found.mean, found.factor, log_likelihood
