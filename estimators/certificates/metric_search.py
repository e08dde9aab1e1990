"""Common metrics, and gains, for many Jacobians: semidefinite programmes over those that count."""

import numpy as np

from estimators.certificates.semidefinite import positive, solve

SMALLEST = 1e-5
"""Least eigenvalue of a metric whose largest is 1, in scaled states: a worse conditioned one is of no use."""


def rates_in(P: np.ndarray, jacobians: np.ndarray) -> np.ndarray:
    """Smallest rate of each Jacobian in a metric: its norm there."""
    root = np.linalg.cholesky(P).T
    return np.linalg.norm(root @ jacobians @ np.linalg.inv(root), 2, axis=(1, 2))


def common_metric(jacobians: np.ndarray, rate: float, bases: np.ndarray | None = None) -> np.ndarray | None:
    """Most interior metric with A'PA < rate^2 P for all of many Jacobians, or None.

    A semidefinite programme over those that count, found by adding the most violated ones.

    Parameters
    ----------
    jacobians : numpy.ndarray
        (count, n, n).
    rate : float
        In (0, 1].
    bases : numpy.ndarray, optional
        (count, n, k), columns spanning the directions in which each inequality has to hold, zero where there are
        fewer than k. Default: all.
    """
    import cvxpy as cp

    n = jacobians.shape[1]
    bases = np.broadcast_to(np.eye(n), jacobians.shape) if bases is None else bases
    turned = np.swapaxes(bases, 1, 2)
    absent = np.eye(bases.shape[2]) * ~bases.any(1)[:, None, :]  # counts for nothing in an eigenvalue's minimum
    active = list(np.argsort(np.linalg.norm(jacobians, 2, axis=(1, 2)))[-8:])
    for _ in range(12):
        P, t = cp.Variable((n, n), symmetric=True), cp.Variable()
        constraints = [
            positive(N.T @ (rate**2 * P - A.T @ P @ A - t * np.eye(n)) @ N)
            for A, N in zip(jacobians[active], bases[active], strict=True)
        ]
        limits = [positive(np.eye(n) - P), positive(P, SMALLEST)]
        if not solve(cp.Problem(cp.Maximize(t), [*constraints, *limits])) or t.value < 1e-8:
            return None
        value = (P.value + P.value.T) / 2
        matrices = rate**2 * value - np.swapaxes(jacobians, 1, 2) @ value @ jacobians
        slack = np.linalg.eigvalsh(turned @ matrices @ bases + absent)[:, 0]
        if slack.min() > 0.3 * t.value:
            return value
        active += [i for i in np.argsort(slack)[:8] if i not in active]
    return value if slack.min() > 0 else None


def smallest_common_rate(jacobians: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Smallest rate, to 1 % of its distance from 1, for which Jacobians have a common metric, and that metric."""
    low = float(np.abs(np.linalg.eigvals(jacobians)).max())
    found = bisect(lambda rate: common_metric(jacobians, rate), low) if low < 1 else None
    if found is None:
        return None
    high, P = found
    wider = min(high + 0.1 * (1 - high), 1.0)  # a metric less at the edge, which the rest of the region forgives more
    found = common_metric(jacobians, wider)
    P = P if found is None else found
    return float(rates_in(P, jacobians).max()), P


def bisect(solution, low: float = 0.0) -> tuple[float, object] | None:
    """Smallest rate in (low, 1], to 1 % of its distance from 1, with a solution, and that; None where there is none."""
    high, best = 1.0, solution(1.0)
    if best is None:
        return None
    while high - low > 0.01 * (1 - low):
        middle = (low + high) / 2
        found = solution(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, found
    return high, best


def constant_gain(jacobians: np.ndarray, outputs: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray] | None:
    """One gain L and metric P with |A - L C|_P < rate for all of many pairs (A, C), or None.

    Parameters
    ----------
    jacobians, outputs : numpy.ndarray
        (count, n, n) and (count, ny, n).
    rate : float
        In (0, 1].
    """
    import cvxpy as cp

    _, ny, n = outputs.shape
    active = list(np.argsort(np.linalg.norm(jacobians, 2, axis=(1, 2)))[-8:])
    for _ in range(12):
        P, Y, t = cp.Variable((n, n), symmetric=True), cp.Variable((n, ny)), cp.Variable()
        limits = [positive(np.eye(n) - P), positive(P, SMALLEST)]
        for A, C in zip(jacobians[active], outputs[active], strict=True):
            following = P @ A - Y @ C
            limits.append(positive(cp.bmat([[rate**2 * P - t * np.eye(n), following.T], [following, P]])))
        if not solve(cp.Problem(cp.Maximize(t), limits)) or t.value < 1e-8:
            return None
        metric = (P.value + P.value.T) / 2
        gain = np.linalg.solve(metric, Y.value)
        rates = rates_in(metric, jacobians - gain @ outputs)
        if rates.max() <= rate:
            return gain, metric
        active += [i for i in np.argsort(rates)[-8:] if i not in active]
    return None
