"""Semidefinite programmes, by cvxpy and Clarabel, whose solutions are then proved elsewhere."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from estimators.certificates.dissipation import Inequality, Term, add_terms

INTERIOR = (1e-6, 1e-5, 1e-4, 1e-3)
"""Distances from the boundary, in scaled signals, at which a solution is asked for: it has to survive rounding."""


def solve(problem) -> bool:
    """Solve a cvxpy problem; whether there is a solution to try. Accuracy is for the proof to judge."""
    import cvxpy as cp  # a second and more to import, and needed by few

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the proof will tell
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.SolverError:
            return False
    return problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


def positive(matrix, distance: float = 0.0):
    """Constraint that a symmetric expression exceeds a multiple of the identity."""
    return (matrix + matrix.T) / 2 >> distance * np.eye(matrix.shape[0])


def inequality_matrix(P, rate: float, into: np.ndarray, weighted: Sequence[tuple]) -> object:
    """Affine expression alpha^2 x'Px - (F z)'P(F z) + sum of multipliers times fixed matrices.

    Parameters
    ----------
    P : cvxpy expression
        (nx, nx).
    rate : float
        Alpha.
    into : numpy.ndarray
        F.
    weighted : sequence of (multiplier, numpy.ndarray)
        Each multiplier a cvxpy scalar or a number.
    """
    E = np.eye(*into.shape)
    value = rate**2 * (E.T @ P @ E) - into.T @ P @ into
    for multiplier, matrix in weighted:
        value = value + multiplier * matrix
    return value


def best_conditioned(
    inequality: Inequality, rate: float, slopes: Sequence[Term], unit: np.ndarray
) -> Iterator[tuple[np.ndarray, float]]:
    """Metric of least condition number at a rate, and the scale of `slopes` that goes with it.

    Parameters
    ----------
    inequality : Inequality
        Of contraction; its terms are replaced by `slopes`, scaled by a free multiplier.
    rate : float
        Alpha.
    slopes : sequence of Term
        Of the network; may be empty.
    unit : numpy.ndarray
        (nz,), sizes of the signals, in which the condition number is meant.

    Yields
    ------
    P : numpy.ndarray
        (nx, nx).
    scale : float
        Of the slopes.
    """
    import cvxpy as cp

    nx, nz = inequality.into.shape
    into, fixed = inequality.into * unit / unit[:nx, None], add_terms(slopes, nz)[0] * unit * unit[:, None]
    P, tau, condition = cp.Variable((nx, nx), symmetric=True), cp.Variable(nonneg=True), cp.Variable()
    for distance in INTERIOR:
        value = inequality_matrix(P, rate, into, [(tau, fixed)] if len(slopes) else [])
        problem = cp.Problem(
            cp.Minimize(condition),
            [positive(value, distance), positive(P - np.eye(nx)), positive(condition * np.eye(nx) - P)],
        )
        if solve(problem):
            yield (P.value + P.value.T) / 2 / unit[:nx] / unit[:nx, None], float(tau.value) if len(slopes) else 1.0
