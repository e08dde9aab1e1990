"""Rigorous Lipschitz bounds of feedforward networks, for the floats as stored."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from estimators.certificates.rigorous import SAFETY, norm_bound, positive_definite_margin, product
from estimators.networks.lipschitz import SandwichMatrices

ROUND_UP = 1 + 4 * np.finfo(float).eps


def spectral_norm_bound(matrix: np.ndarray) -> float:
    """Upper bound of the largest singular value, proved; above it by some 1e-9 of its size.

    A singular value decomposition is only the guess: g^2 I - W'W > 0 is then proved for a g slightly larger.
    """
    gram, error = product(matrix.T, matrix) if matrix.shape[0] >= matrix.shape[1] else product(matrix, matrix.T)
    guess = np.linalg.norm(matrix, 2) if matrix.size else 0.0
    for excess in (1e-12, 1e-9, 1e-6):
        g = guess * (1 + excess)
        value = g * g * np.eye(len(gram)) - gram
        rounding = 4 * np.finfo(float).eps * (g * g * np.eye(len(gram)) + np.abs(gram))
        if guess > 0 and positive_definite_margin(value, error + rounding) > 0:
            return float(g * ROUND_UP)
    return norm_bound(matrix)


def lipschitz_bound(weights: Sequence[np.ndarray]) -> float:
    """Bound the Lipschitz constant of W_L sigma(... sigma(W_1 x + b_1) ...) in the Euclidean norm.

    For monotone activations with slope in [0, 1], half of each layer is the identity and the
    other half is 1-Lipschitz, hence (Combettes and Pesquet, SIAM J. Math. Data Sci. 2020)

        bound = 2^-(L-1) sum over ways to cut the chain into pieces of the product of the pieces' norms,

    which is never above the product of the layers' norms. Norms are proved, rounding included.

    Parameters
    ----------
    weights : sequence of numpy.ndarray
        W_1, ..., W_L, (out, in) each.

    Returns
    -------
    float
        Never below the true constant.

    Raises
    ------
    ValueError
        No matrices, shapes that do not chain, or values that are not finite.
    """
    chain = [np.asarray(w, dtype=float) for w in weights]
    if not chain or any(w.ndim != 2 or not np.isfinite(w).all() for w in chain):
        raise ValueError("weights must be at least one finite matrix (out, in)")
    if any(a.shape[0] != b.shape[1] for a, b in pairwise(chain)):
        raise ValueError(f"weights do not chain: shapes {[w.shape for w in chain]}")
    # powers of two, so that neither a tiny nor a huge layer leaves the range of floats
    scales = [int(np.frexp(np.abs(w).max(initial=0.0))[1]) for w in chain]
    chain = [np.ldexp(w, -e) for w, e in zip(chain, scales, strict=True)]
    sums = [1.0]
    for k in range(len(chain)):
        total = 0.0
        for j in range(k + 1):
            piece, error = product(*chain[j : k + 1][::-1]) if j < k else (chain[k], np.zeros_like(chain[k]))
            total += sums[j] * (spectral_norm_bound(piece) + norm_bound(error))
        sums.append(total * SAFETY_SUM)
    bound = np.ldexp(sums[-1] / 2 ** (len(chain) - 1), sum(scales))
    return float(np.nextafter(bound, np.inf)) if sums[-1] else 0.0


SAFETY_SUM = 1 + 1e-14
"""Covers the rounding of a few additions and products of positive numbers."""


def network_bound(layers: Sequence[SandwichMatrices], linear_output: bool) -> float:
    """Rigorous upper bound of the Lipschitz constant of sandwich layers as stored.

    A layer sqrt(2) A' Psi sigma(sqrt(2) Psi^-1 B h + b) has slope A'(2J)B with 0 <= J <= I diagonal, and
    2 a'J b <= |a + b|^2 / 2 <= lambda_max(A A' + B B') for a = A y, b = B x of unit x, y. By
    construction that is 1; in stored floats it is bounded here, layer by layer.
    """
    bound = 1.0
    for index, layer in enumerate(layers):
        A_T, B = layer.A_T.detach().cpu().double().numpy(), layer.B.detach().cpu().double().numpy()
        linear = linear_output and index == len(layers) - 1
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
        bound *= ROUND_UP * (np.sqrt(1 + guess) if linear else 1 + guess)
    return float(bound)
