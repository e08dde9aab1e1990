"""Contraction of an R2DN from the linear matrix inequality of mathematics.md, section 3."""

import numpy as np
import xarray as xr

from estimators.certificates.result import Certificate
from estimators.certificates.rigorous import SAFETY, norm_bound, positive_definite_margin, product
from estimators.metrics import errors
from estimators.networks.matrices import R2DNMatrices
from estimators.observer import R2DNObserver
from plants.schema import to_tensors, validate


def certify(subject: R2DNObserver | R2DNMatrices, dataset: xr.Dataset | None = None) -> Certificate:
    """Check that an observer is contracting, for the parameters it runs with.

    With P the designed metric, alpha the rate and ell the Lipschitz bound of the network as stored,

        [alpha^2 P - A'PA - ell^2 C1'C1    -A'P B1   ]
        [-B1'PA                            I - B1'P B1]  > 0  and  P > 0

    imply |z_t - z'_t|_P <= alpha^t |z_0 - z'_0|_P for any two runs on the same inputs and
    measurements. The matrices are the float64 ones the observer steps with; the rounding of the
    check is bounded, that of the observer's own arithmetic is not part of the claim. The smallest
    rate that this P allows is found and proved too, and is the certificate's bound.

    Contraction alone is not tracking: with `dataset` the certificate's evidence holds the correctness
    residual, how far one step from the true state misses the model's next state.

    Parameters
    ----------
    subject : R2DNObserver or R2DNMatrices
        A trained observer, or explicit matrices with their metric and rate.
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
        Something else than an observer or explicit matrices.
    ValueError
        Matrices that are not finite, or an observer without data.
    """
    if isinstance(subject, R2DNObserver):
        matrices, scale = subject.explicit(), subject.coordinates.state_scale.numpy()
    elif isinstance(subject, R2DNMatrices):
        matrices, scale = subject, np.ones(len(subject.A))
    else:
        raise TypeError(f"certify takes an R2DNObserver or R2DNMatrices, got {type(subject).__name__}")
    A, B1, C1, P = (getattr(matrices, name).detach().cpu().double().numpy() for name in ("A", "B1", "C1", "metric"))
    if not all(np.isfinite(m).all() for m in (A, B1, C1, P)):
        raise ValueError("the observer's matrices hold values that are not finite")
    P = np.tril(P) + np.tril(P, -1).T
    ell = network_bound(matrices)
    designed = matrices.contraction_rate
    evidence = {"designed rate": designed, "network Lipschitz bound": ell}
    value, error = _inequality(A, B1, C1, P, ell, designed)
    metric_margin = positive_definite_margin(P, np.zeros_like(P))
    margin = positive_definite_margin(value, error) if metric_margin > 0 else -1.0
    bound, verdict = designed, "proved"
    if margin > 0:
        for rate in _smallest_rates(A, B1, C1, P, ell, designed):
            tight = positive_definite_margin(*_inequality(A, B1, C1, P, ell, rate))
            if tight > 0:
                bound = rate
                break
    else:
        unit = np.sqrt(np.maximum(np.abs(np.diag(value)), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(value / np.outer(unit, unit))
        margin = float(values[0])
        certain = SAFETY * norm_bound(error / np.outer(unit, unit)) + 1e-13 * len(unit)
        verdict = (
            "refuted" if margin < -certain or np.linalg.eigvalsh(P)[0] < -1e-12 * np.abs(P).max() else "inconclusive"
        )
        direction = vectors[:, 0] / unit
        evidence["direction"] = direction
    if dataset is not None and isinstance(subject, R2DNObserver):
        evidence["correctness residual (RMS per state)"] = correctness_residual(subject, dataset)
    return Certificate(
        f"contraction LMI at rate {designed:g} in the designed metric",
        verdict,
        float(bound),
        float(margin),
        P / np.outer(scale, scale),
        evidence=evidence,
    )


def _inequality(A, B1, C1, P, ell, rate):
    """Float value of the matrix that has to be positive definite, and a bound on its error."""
    terms = {
        "APA": product(A.T, P, A),
        "CC": product(ell * C1.T, ell * C1),
        "APB": product(A.T, P, B1),
        "BPB": product(B1.T, P, B1),
    }
    (apa, e1), (cc, e2), (apb, e3), (bpb, e4) = terms.values()
    scaled = rate * rate * P
    identity = np.eye(B1.shape[1])
    value = np.block([[scaled - apa - cc, -apb], [-apb.T, identity - bpb]])
    error = np.block([[e1 + e2, e3], [e3.T, e4]])
    # the sums, the scaling by rate^2 and ell C1 round a few times more
    size = np.block([[np.abs(scaled) + np.abs(apa) + np.abs(cc), np.abs(apb)], [np.abs(apb.T), identity + np.abs(bpb)]])
    return value, SAFETY * (error + 8 * np.finfo(float).eps * size)


def _smallest_rates(A, B1, C1, P, ell, designed):
    """Candidates for the smallest rate in the metric P, best first; a Schur complement and one eigenvalue problem."""
    inner = np.eye(B1.shape[1]) - B1.T @ P @ B1
    apb = A.T @ P @ B1
    needed = A.T @ P @ A + ell**2 * C1.T @ C1 + apb @ np.linalg.solve(inner, apb.T)
    root = np.linalg.cholesky(P)
    whitened = np.linalg.solve(root, np.linalg.solve(root, needed).T)
    smallest = np.sqrt(max(np.linalg.eigvalsh((whitened + whitened.T) / 2)[-1], 0.0))
    return [rate for excess in (1e-9, 1e-7, 1e-5) if (rate := smallest + excess) < designed]


def network_bound(matrices: R2DNMatrices) -> float:
    """Rigorous upper bound of the network's Lipschitz constant for its stored layers.

    A layer sqrt(2) A' Psi sigma(sqrt(2) Psi^-1 B h + b) has slope A'(2J)B with 0 <= J <= I diagonal, and
    2 a'J b <= |a + b|^2 / 2 <= lambda_max(A A' + B B') for a = A y, b = B x of unit x, y. By
    construction that is 1; in stored floats it is bounded here, layer by layer.
    """
    bound = 1.0
    for index, layer in enumerate(matrices.network):
        A_T, B = layer.A_T.detach().double().numpy(), layer.B.detach().double().numpy()
        linear = matrices.linear_output and index == len(matrices.network) - 1
        gram, error = product(B, B.T)
        if not linear:
            other, more = product(A_T.T, A_T)
            gram, error = gram + other, error + more + 2 * np.finfo(float).eps * np.abs(gram)
        excess = gram - np.eye(len(gram))
        largest = np.linalg.eigvalsh((excess + excess.T) / 2)[-1]
        # eigvalsh is a guess; the deviation from the guess is proved by a shifted Cholesky
        guess = max(largest, 0.0) + 1e-12 * len(gram)
        if (
            positive_definite_margin(
                (1 + guess) * np.eye(len(gram)) - gram,
                error + 4 * np.finfo(float).eps * (np.eye(len(gram)) + np.abs(gram)),
            )
            <= 0
        ):
            guess = SAFETY * norm_bound(np.abs(excess) + error)
        bound *= SAFETY_ONE * (np.sqrt(1 + guess) if linear else 1 + guess)
    return float(bound)


SAFETY_ONE = 1 + 4 * np.finfo(float).eps


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
