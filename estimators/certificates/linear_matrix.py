"""Contraction and Lipschitz bound of an R2DN or REN from its linear matrix inequality (mathematics.md, 3-5)."""

import numpy as np
import xarray as xr

from estimators.certificates.feedforward import network_bound
from estimators.certificates.result import Certificate
from estimators.certificates.rigorous import SAFETY, norm_bound, positive_definite_margin, product
from estimators.metrics import errors
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.recurrent import Recurrent
from estimators.networks.ren import RENMatrices
from estimators.observer import R2DNObserver
from plants.schema import to_tensors, validate


def certify(
    subject: R2DNObserver | Recurrent | R2DNMatrices | RENMatrices, dataset: xr.Dataset | None = None
) -> Certificate:
    """Check that an observer or a recurrent network is contracting, and keeps its Lipschitz bound if it has one.

    With z = (x, w, u) the signals, P the designed metric and alpha the rate, the inequality is

        alpha^2 x'Px - x+'P x+  - (what the network's slopes allow)  [+ supply]  > 0  for z != 0,  and P > 0.

    For an R2DN the slopes give ell^2 v'v - w'w >= 0 with ell the Lipschitz bound of the network as stored, for a
    REN 2 w' Lambda (v - w) >= 0. Without supply it implies |x_t - x'_t|_P <= alpha^t |x_0 - x'_0|_P for
    any two runs on the same inputs and measurements; the supply gamma |u|^2 - |y|^2 / gamma adds the bound gamma
    on the gain from u to y. The matrices are the float64 ones the observer steps with; the rounding of the
    check is bounded, that of the observer's own arithmetic is not part of the claim. The smallest
    rate that this P allows is found and proved too, and is the certificate's bound.

    Contraction alone is not tracking: with `dataset` the certificate's evidence holds the correctness
    residual, how far one step from the true state misses the model's next state.

    Parameters
    ----------
    subject : R2DNObserver, R2DN, REN, R2DNMatrices or RENMatrices
        A trained observer, a network, or explicit matrices with their metric and rate.
    dataset : xarray.Dataset, optional
        Trajectories with true states, for the correctness residual; an observer only.

    Returns
    -------
    Certificate
        ``'proved'``, ``'refuted'`` (the inequality fails by more than rounding; ``evidence`` holds the
        eigenvector as ``direction``) or ``'inconclusive'``.

    Raises
    ------
    TypeError
        Something else than an observer, a network or explicit matrices.
    ValueError
        Matrices that are not finite or not what the claim presupposes (a rate in (0, 1], Q <= 0 ...), or an
        observer without data.
    """
    scale = 1.0
    if isinstance(subject, R2DNObserver):
        matrices, scale = subject.explicit(), subject.coordinates.state_scale.numpy()
    elif isinstance(subject, Recurrent):
        matrices = subject.explicit()
    elif isinstance(subject, R2DNMatrices | RENMatrices):
        matrices = subject
    else:
        raise TypeError(
            f"certify takes an R2DNObserver, R2DN, REN, R2DNMatrices or RENMatrices, got {type(subject).__name__}"
        )
    designed, evidence = matrices.contraction_rate, {"designed rate": matrices.contraction_rate}
    claim = f"contraction LMI at rate {designed:g} in the designed metric"
    P, following, rest, error = _inequality(matrices, evidence)
    nx = len(P)
    if "Lipschitz bound" in evidence:
        claim = f"contraction at rate {designed:g} and Lipschitz bound {evidence['Lipschitz bound']:g}, designed metric"

    elif "supply Q" in evidence:
        claim = f"contraction at rate {designed:g} and dissipation with supply rate (Q, S, R), designed metric"

    def at(rate):
        value = rest - following
        value[:nx, :nx] += rate * rate * P
        size = np.abs(rest) + np.abs(following)
        size[:nx, :nx] += rate * rate * np.abs(P)
        return value, SAFETY * (error + 8 * np.finfo(float).eps * size)

    value, uncertain = at(designed)
    metric_margin = positive_definite_margin(P, np.zeros_like(P))
    margin = positive_definite_margin(value, uncertain) if metric_margin > 0 else -1.0
    bound, verdict = designed, "proved"
    if margin > 0:
        for rate in _smallest_rates(P, rest - following, designed):
            if positive_definite_margin(*at(rate)) > 0:
                bound = rate
                break
    else:
        unit = np.sqrt(np.maximum(np.abs(np.diag(value)), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(value / np.outer(unit, unit))
        margin = float(values[0])
        certain = SAFETY * norm_bound(uncertain / np.outer(unit, unit)) + 1e-13 * len(unit)
        verdict = (
            "refuted" if margin < -certain or np.linalg.eigvalsh(P)[0] < -1e-12 * np.abs(P).max() else "inconclusive"
        )
        direction = vectors[:, 0] / unit
        evidence["direction"] = direction
    if dataset is not None and isinstance(subject, R2DNObserver):
        evidence["correctness residual (RMS per state)"] = correctness_residual(subject, dataset)
    return Certificate(
        claim, verdict, float(bound), float(margin), P / (scale * np.reshape(scale, (-1, 1))), evidence=evidence
    )


def _array(tensor):
    return tensor.detach().cpu().double().numpy()


def _inequality(matrices, evidence):
    """Parts of the matrix that has to be positive definite: P, [A B]'P[A B], the rest, and a bound on their error.

    Signals are (x, w), and u where there is a supply rate.
    """
    names = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22", "metric")
    A, B1, B2, C1, D12, C2, D21, D22, P = (_array(getattr(matrices, name)) for name in names)
    is_ren = isinstance(matrices, RENMatrices)
    D11 = _array(matrices.D11) if is_ren else np.zeros((len(C1), len(C1)))
    if not all(np.isfinite(m).all() for m in (A, B1, B2, C1, D11, D12, C2, D21, D22, P)):
        raise ValueError("the matrices hold values that are not finite")
    nx, nv, nu = len(A), len(C1), B2.shape[1]
    supply = _supply(matrices, evidence)
    _check_premises(matrices, D11, supply)
    into, v, y = np.hstack([A, B1, B2]), np.hstack([C1, D11, D12]), np.hstack([C2, D21, D22])
    if supply is None:
        into, v, nu = into[:, : nx + nv], v[:, : nx + nv], 0
    P = np.tril(P) + np.tril(P, -1).T
    following, error = product(into.T, P, into)
    rest, w = np.zeros_like(following), slice(nx, nx + nv)
    parts = []
    if is_ren:
        cross = _array(matrices.multiplier)[:, None] * (np.eye(nv, nx + nv + nu, nx) - v)
        whole = np.zeros_like(rest)
        whole[w] = cross
        parts.append((whole + whole.T, 4 * np.finfo(float).eps * (np.abs(whole) + np.abs(whole.T))))
    else:
        ell = network_bound(matrices)
        evidence["network Lipschitz bound"] = ell
        gain, more = product(ell * v.T, ell * v)
        whole = -gain
        whole[w, w] += np.eye(nv)
        parts.append((whole, more + 8 * np.finfo(float).eps * (np.abs(gain) + np.abs(whole))))
    if supply is not None:
        Q, S, R = supply
        whole, more = product(y.T, Q, y)
        low = np.zeros_like(rest)
        low[nx + nv :], less = product(S, y)
        lower = np.zeros_like(rest)
        lower[nx + nv :] = less
        block = np.zeros_like(rest)
        block[nx + nv :, nx + nv :] = R
        size = np.abs(whole) + np.abs(low) + np.abs(low.T) + np.abs(block)
        parts.append((whole + low + low.T + block, more + lower + lower.T + 8 * np.finfo(float).eps * size))
    for value, more in parts:
        rest, error = rest + value, error + more + 2 * np.finfo(float).eps * (np.abs(rest) + np.abs(value))
    return P, following, rest, error


def _supply(matrices, evidence):
    """Q, S, R in floats, or None; a Lipschitz bound is Q = -I/gamma, S = 0, R = gamma I."""
    gamma = matrices.lipschitz
    if gamma is not None:
        if not 0 < gamma < np.inf:
            raise ValueError(f"the matrices cannot be certified: lipschitz must be positive and finite, got {gamma!r}")
        evidence["Lipschitz bound"] = gamma
        nu, ny = matrices.B2.shape[1], len(matrices.C2)
        return -np.eye(ny) / gamma, np.zeros((nu, ny)), gamma * np.eye(nu)
    if isinstance(matrices, RENMatrices) and matrices.supply is not None:
        supply = tuple(map(_array, matrices.supply))
        evidence |= {f"supply {name}": value for name, value in zip("QSR", supply, strict=True)}
        return supply
    return None


def _check_premises(matrices, D11, supply):
    """Refuse matrices for which the inequality would not mean what is claimed."""
    wrong = None
    if not 0 < matrices.contraction_rate <= 1:
        wrong = f"contraction_rate must be in (0, 1], got {matrices.contraction_rate!r}"
    elif np.triu(D11).any():
        wrong = "D11 must be strictly lower triangular"
    elif isinstance(matrices, RENMatrices) and bool((matrices.multiplier <= 0).any()):
        wrong = "multiplier must be positive"
    elif matrices.identity_output and not (
        np.array_equal(_array(matrices.C2), np.eye(len(matrices.A)))
        and not any(_array(m).any() for m in (matrices.D21, matrices.D22))
    ):
        wrong = "identity_output is set, but C2 is not I or D21 and D22 are not 0"
    elif supply is not None:
        Q, _, R = supply
        # negative semidefinite Q, or the inequality says nothing about contraction
        if not (np.array_equal(Q, Q.T) and np.array_equal(R, R.T) and positive_definite_margin(-Q, 0 * Q) > 0):
            wrong = "the supply rate needs symmetric Q and R, and Q negative definite"
    if wrong:
        raise ValueError(f"the matrices cannot be certified: {wrong}")


def _smallest_rates(P, without, designed):
    """Candidates for the smallest rate in the metric P, best first; a Schur complement and one eigenvalue problem."""
    nx = len(P)
    inner, cross = without[nx:, nx:], without[:nx, nx:]
    needed = cross @ np.linalg.solve(inner, cross.T) - without[:nx, :nx]
    root = np.linalg.cholesky(P)
    whitened = np.linalg.solve(root, np.linalg.solve(root, needed).T)
    smallest = np.sqrt(max(np.linalg.eigvalsh((whitened + whitened.T) / 2)[-1], 0.0))
    return [rate for excess in (1e-9, 1e-7, 1e-5) if (rate := smallest + excess) < designed]


def correctness_residual(observer: R2DNObserver, dataset: xr.Dataset) -> np.ndarray:
    """RMS over data of the observer's step from the true state minus the model's, per state, in the plant's units.

    The measurement is the noise-free one, y = h(x, u), and the start-up signal has faded: a correct observer has
    residual zero.
    """
    validate(dataset, observer.model, states=True)
    x, u, _ = to_tensors(dataset)
    x, u = x.flatten(0, 1), u.flatten(0, 1)
    state = observer.init(x)._replace(startup=0.0)
    state, _ = observer.step(state, u, observer.model.output(x, u))
    predicted = observer.coordinates.to_plant(state.predicted)
    return np.sqrt(np.mean(np.square(errors(observer.model, predicted, observer.model.step(x, u))), axis=0))
