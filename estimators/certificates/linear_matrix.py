"""Contraction, Lipschitz bound and gains of an R2DN, REN or linear observer (mathematics.md, 3-5)."""

import numpy as np

from estimators.certificates.dissipation import Inequality, Term
from estimators.certificates.gains import Response
from estimators.certificates.loops import Loop, array
from estimators.certificates.result import Certificate
from estimators.certificates.rigorous import positive_definite_margin
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.ren import RENMatrices


def certify_matrices(matrices: R2DNMatrices | RENMatrices) -> Certificate:
    """Check explicit matrices against the inequality of their designed metric, rate and Lipschitz bound or supply.

    See :func:`estimators.certify`.
    """
    loop, supply = Loop.of(matrices), supply_of(matrices)
    check_premises(matrices, loop, supply)
    rate, evidence = matrices.contraction_rate, {"designed rate": matrices.contraction_rate}
    if loop.multiplier is None:
        evidence["network Lipschitz bound"] = loop.slope
    claim = f"contraction LMI at rate {rate:g} in the designed metric"
    if supply is None:
        inequality = loop.contraction()
    else:
        inequality = with_supply(loop, supply)
        if matrices.lipschitz is not None:
            evidence["Lipschitz bound"] = matrices.lipschitz
            claim = f"contraction at rate {rate:g} and Lipschitz bound {matrices.lipschitz:g}, designed metric"
        else:
            evidence |= {f"supply {name}": value for name, value in zip("QSR", supply, strict=True)}
            claim = f"contraction at rate {rate:g} and dissipation with supply rate (Q, S, R), designed metric"
    return prove(claim, inequality, array(matrices.metric), rate, evidence)


def prove(claim: str, inequality: Inequality, P: np.ndarray, rate: float, evidence: dict) -> Certificate:
    """Prove an inequality and find the smallest rate its metric allows."""
    here = inequality.with_metric(P)
    verdict, margin, direction = here.prove(rate)
    bound = here.smallest_rate(rate) if verdict == "proved" else rate
    if direction is not None:
        evidence["direction"] = direction
    return Certificate(claim, verdict, float(bound), margin, here.P, evidence=evidence)


def with_supply(loop: Loop, supply) -> Inequality:
    """Inequality of dissipation with the supply rate y'Qy + 2 u'Sy + u'Ru."""
    into, v, y = loop.rows(True)
    nx, nv, nu, _ = loop.sizes
    u, (Q, S, R) = np.eye(nu, nx + nv + nu, nx + nv), supply
    return Inequality(into, (*loop.slopes(v), Term(1.0, y, Q), Term(2.0, u, S, y), Term(1.0, u, R)))


def supply_of(matrices):
    """Q, S, R in floats, or None; a Lipschitz bound is Q = -I/gamma, S = 0, R = gamma I."""
    gamma = matrices.lipschitz
    if gamma is not None:
        if not 0 < gamma < np.inf:
            raise ValueError(f"the matrices cannot be certified: lipschitz must be positive and finite, got {gamma!r}")
        nu, ny = matrices.B2.shape[1], len(matrices.C2)
        return -np.eye(ny) / gamma, np.zeros((nu, ny)), gamma * np.eye(nu)
    if isinstance(matrices, RENMatrices) and matrices.supply is not None:
        return tuple(map(array, matrices.supply))
    return None


def check_premises(matrices, loop, supply):
    """Refuse matrices for which the inequality would not mean what is claimed."""
    wrong = None
    if matrices.metric is None:
        wrong = "there is no metric"
    elif not 0 < matrices.contraction_rate <= 1:
        wrong = f"contraction_rate must be in (0, 1], got {matrices.contraction_rate!r}"
    elif np.triu(loop.D11).any():
        wrong = "D11 must be strictly lower triangular"
    elif loop.multiplier is not None and bool((loop.multiplier <= 0).any()):
        wrong = "multiplier must be positive"
    elif matrices.identity_output and not (
        np.array_equal(loop.C2, np.eye(len(loop.A))) and not loop.D21.any() and not loop.D22.any()
    ):
        wrong = "identity_output is set, but C2 is not I or D21 and D22 are not 0"
    elif supply is not None:
        Q, _, R = supply
        # negative semidefinite Q, or the inequality says nothing about contraction
        if not (np.array_equal(Q, Q.T) and np.array_equal(R, R.T) and positive_definite_margin(-Q, 0 * Q) > 0):
            wrong = "the supply rate needs symmetric Q and R, and Q negative definite"
    if wrong:
        raise ValueError(f"the matrices cannot be certified: {wrong}")


def unit_of(P: np.ndarray) -> np.ndarray:
    """Sizes of the states in which a metric is well scaled."""
    return 1 / np.sqrt(np.diag(P))


def gains_of(loop: Loop, P: np.ndarray, inputs: list, outputs: list) -> np.ndarray:
    """Proved bounds of the gain from each of some inputs to each of some outputs, (outputs, inputs)."""
    response, unit = Response(loop), unit_of(P)
    return np.array([[response.bound([j], [i], unit) for j in inputs] for i in outputs])
