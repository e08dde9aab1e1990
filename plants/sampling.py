"""From a right-hand side to a map over one sample: integration with a fixed step, exact for linear plants."""

import math
import warnings

import numpy as np
import scipy.linalg
import torch

SUBSTEP_TOLERANCE = 1e-4
"""Largest change of one step, relative to the operating region's width, that halving the
integration step may cause before `check_substeps` warns."""


def _rk4(f, x, u, t, h):
    k1 = f(x, u, t)
    k2 = f(x + (h / 2) * k1, u, t + h / 2)
    k3 = f(x + (h / 2) * k2, u, t + h / 2)
    k4 = f(x + h * k3, u, t + h)
    return x + (h / 6) * (k1 + 2 * (k2 + k3) + k4)


def _euler(f, x, u, t, h):
    return x + h * f(x, u, t)


INTEGRATORS = {"rk4": _rk4, "euler": _euler}


def sampled(rhs, dt, method, substeps):
    """Make the map over one sample of length `dt`, input held, from ``rhs(x, u, t)``."""
    advance, h = INTEGRATORS[method], dt / substeps

    def step(x, u, t):
        for i in range(substeps):
            x = advance(rhs, x, u, t + i * h, h)
        return x

    return step


def sampled_matrices(A: np.ndarray, B: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample x' = A x + B u exactly, input held over `dt`: (A, B) of the difference equation."""
    nx = len(A)
    exponential = scipy.linalg.expm(dt * np.block([[A, B], [np.zeros((B.shape[1], nx + B.shape[1]))]]))
    return exponential[:nx, :nx], exponential[:nx, nx:]


def check_substeps(rhs, dt, method, substeps, region, name):
    """Warn where halving the integration step changes the map, and name a sufficient number of steps."""
    x, u = (torch.from_numpy(a) for a in region.sample(64, seed=1))
    width = torch.from_numpy(region.state_width)
    coarse = sampled(rhs, dt, method, substeps)(x, u, 0.0)

    def change(count, previous):
        fine = sampled(rhs, dt, method, count)(x, u, 0.0)
        relative = ((fine - previous) / width).abs()
        finite = relative[torch.isfinite(relative)]
        return (finite.max().item() if finite.numel() else math.inf), fine

    first, fine = change(2 * substeps, coarse)
    if first <= SUBSTEP_TOLERANCE:
        return
    count, error = 2 * substeps, first
    while error > SUBSTEP_TOLERANCE and count < 1024 * substeps:
        error, fine = change(2 * count, fine)
        count *= 2
    remedy = (
        f"use substeps={count // 2}"
        if error <= SUBSTEP_TOLERANCE
        else "no number of substeps up to 1024 settles it: use a smaller dt or check the plant and operating_region"
    )
    warnings.warn(
        f"integrating {name!r} with substeps={substeps} at dt={dt:g} is coarse: halving the step changes the next "
        f"state by {first:.2g} of the operating region's width (limit {SUBSTEP_TOLERANCE:g}); {remedy}",
        UserWarning,
        stacklevel=3,
    )
