"""Dissipation inequalities: one form for contraction, gains and invariant sets, proved or solved for its metric.

With z = (x, w, ...) the signals of an instant, F z the next state and alpha a rate, the claim is

    alpha^2 x'Px - (F z)'P(F z) + s(z) > 0  for every z != 0,

where s, a sum of quadratic terms, holds what is known of the other signals (slopes of a network: subtracted where
non-negative) and what is to be shown (a gain, a level set).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.linalg

from estimators.certificates.rigorous import SAFETY, norm_bound, positive_definite_margin, product

EPS = np.finfo(float).eps
SLACKS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""How far a metric from the Riccati equation is pushed into the interior, in units of each signal: largest first."""


class Term(NamedTuple):
    """A quadratic term c (L z)'W(R z).

    Attributes
    ----------
    coefficient : float
        c.
    left : numpy.ndarray
        L, (k, nz).
    weight : numpy.ndarray or None
        W, (k, m); None is the identity. Symmetric where `right` is None.
    right : numpy.ndarray or None
        R, (m, nz); None is L.
    error : numpy.ndarray or None
        Bound on the error of L, where `right` is None.
    """

    coefficient: float
    left: np.ndarray
    weight: np.ndarray | None = None
    right: np.ndarray | None = None
    error: np.ndarray | None = None


class Verdict(NamedTuple):
    """Outcome of a proof.

    Attributes
    ----------
    verdict : str
        ``'proved'``, ``'refuted'`` or ``'inconclusive'``.
    margin : float
        Lower bound of the smallest eigenvalue, scaled to unit diagonal; where not proved its float value.
    direction : numpy.ndarray or None
        Eigenvector of the smallest eigenvalue where not proved.
    """

    verdict: str
    margin: float
    direction: np.ndarray | None = None


def add_terms(terms, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric matrix of a sum of terms, in floats, and a bound on the absolute error of each entry."""
    total, error = np.zeros((size, size)), np.zeros((size, size))
    for coefficient, left, weight, right, uncertain in terms:
        right = left if right is None else right
        factors = (left.T, right) if weight is None else (left.T, weight, right)
        value, more = product(*factors)
        if uncertain is not None:
            more = more + _perturbed(left, weight, uncertain)
        # halving and transposing are exact; the coefficient and two sums round
        value, more = coefficient * (value + value.T) / 2, abs(coefficient) * (more + more.T) / 2
        total = total + value
        error = SAFETY * (error + more + 2 * EPS * (np.abs(total) + np.abs(value)))
    return total, error


def _perturbed(factor, weight, error):
    """Bound on (L + E)'W(L + E) - L'W L for |E| <= error."""
    weighted = error if weight is None else np.abs(weight) @ error
    cross = np.abs(factor).T @ weighted
    return SAFETY * (cross + cross.T + error.T @ weighted)


@dataclass(frozen=True, eq=False)
class Inequality:
    """The inequality but for its metric P and rate.

    Parameters
    ----------
    into : numpy.ndarray
        F, (nx, nz).
    terms : tuple of Term
        Of s.
    error : numpy.ndarray or None
        Bound on the error of F, (nx, nz).
    """

    into: np.ndarray
    terms: tuple[Term, ...]
    error: np.ndarray | None = None

    @cached_property
    def supply(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix of s and the bound of its error."""
        return add_terms(self.terms, self.into.shape[1])

    def with_metric(self, P: np.ndarray) -> "InMetric":
        """Fix the metric, (nx, nx); its lower triangle counts."""
        return InMetric(self, np.tril(P) + np.tril(P, -1).T)

    def metrics(self, rate: float, unit: np.ndarray) -> Iterator[np.ndarray]:
        """Metrics that satisfy the inequality up to rounding, most interior first; none where there are none.

        Minimal solutions of the Riccati equation (Schur complement of the inequality set to zero), for terms made
        larger by a slack. Exact in what it can find: by the bounded real lemma there is a metric if and only if the
        equation has a stabilising solution.

        Parameters
        ----------
        rate : float
            Alpha.
        unit : numpy.ndarray
            (nz,), sizes of the signals; slack and conditioning are meant in these.
        """
        nx = len(self.into)
        into = self.into * unit / unit[:nx, None] / rate
        supply = self.supply[0] * unit * unit[:, None]
        sizes = np.concatenate([np.ones(nx), np.abs(np.diag(supply))[nx:]])
        for slack in SLACKS:
            weight = -supply + slack * np.diag(sizes)
            try:
                P = (
                    scipy.linalg.solve_discrete_are(
                        into[:, :nx], into[:, nx:], weight[:nx, :nx], weight[nx:, nx:], s=weight[:nx, nx:]
                    )
                    if len(unit) > nx
                    else scipy.linalg.solve_discrete_lyapunov(into.T, weight)
                )
            except (np.linalg.LinAlgError, ValueError):  # no stabilising solution
                continue
            P = (P + P.T) / 2 / rate**2 / unit[:nx] / unit[:nx, None]
            if np.isfinite(P).all() and self.with_metric(P).holds(rate):
                yield P


@dataclass(frozen=True, eq=False)
class InMetric:
    """An inequality in a metric."""

    inequality: Inequality
    P: np.ndarray

    @cached_property
    def without_rate(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix of s(z) - (F z)'P(F z), and the bound of its error."""
        into = self.inequality.into
        following, error = product(into.T, self.P, into)
        following, error = (following + following.T) / 2, (error + error.T) / 2
        if self.inequality.error is not None:
            error = error + _perturbed(into, self.P, self.inequality.error)
        supply, more = self.inequality.supply
        value = supply - following
        return value, SAFETY * (error + more + 2 * EPS * (np.abs(supply) + np.abs(following)))

    def at(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Matrix of the inequality at a rate, and the bound of its error."""
        value, error = (part.copy() for part in self.without_rate)
        nx = len(self.P)
        added = rate * rate * self.P
        value[:nx, :nx] += added
        error[:nx, :nx] += 4 * EPS * (np.abs(value[:nx, :nx]) + np.abs(added))
        return value, SAFETY * error

    def holds(self, rate: float) -> bool:
        """Whether the inequality holds in floats: a guess, not a proof."""
        return _smallest(self.at(rate)[0]) > 0 and _smallest(self.P) > 0

    def prove(self, rate: float) -> Verdict:
        """Prove P > 0 and the inequality, or say what fails."""
        value, error = self.at(rate)
        if positive_definite_margin(self.P, np.zeros_like(self.P)) > 0:
            margin = positive_definite_margin(value, error)
            if margin > 0:
                return Verdict("proved", margin)
        unit = np.sqrt(np.maximum(np.abs(np.diag(value)), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(value / np.outer(unit, unit))
        certain = SAFETY * norm_bound(error / np.outer(unit, unit)) + 1e-13 * len(unit)
        indefinite = np.linalg.eigvalsh(self.P)[0] < -1e-12 * np.abs(self.P).max()
        verdict = "refuted" if values[0] < -certain or indefinite else "inconclusive"
        return Verdict(verdict, float(values[0]), vectors[:, 0] / unit)

    def smallest_rate(self, designed: float) -> float:
        """Smallest rate that this metric is proved for, at most `designed`, which must be proved."""
        nx, without = len(self.P), self.without_rate[0]
        inner, cross = without[nx:, nx:], without[:nx, nx:]
        needed = cross @ np.linalg.solve(inner, cross.T) - without[:nx, :nx]
        root = np.linalg.cholesky(self.P)
        whitened = np.linalg.solve(root, np.linalg.solve(root, needed).T)
        smallest = np.sqrt(max(np.linalg.eigvalsh((whitened + whitened.T) / 2)[-1], 0.0))
        for excess in (1e-9, 1e-7, 1e-5):
            if smallest + excess < designed and self.prove(smallest + excess).verdict == "proved":
                return float(smallest + excess)
        return designed


def _smallest(matrix):
    diagonal = np.diag(matrix)
    if not np.isfinite(matrix).all() or (diagonal <= 0).any():
        return -1.0
    unit = 1 / np.sqrt(diagonal)
    return np.linalg.eigvalsh(matrix * unit * unit[:, None])[0]
