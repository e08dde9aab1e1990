"""Positive definiteness and norms with every rounding error of float64 accounted for.

Nothing here changes the rounding mode: errors are bounded beforehand from the absolute values
of the operands (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3), and Cholesky
by Rump's criterion (BIT 46, 2006).
"""

import numpy as np

UNIT = np.finfo(np.float64).eps / 2
TINY = np.finfo(np.float64).tiny
SAFETY = 1 + 1e-6
"""Covers the rounding of the bounds themselves, which are sums of non-negative terms."""


def gamma(operations: int) -> float:
    """Relative error bound n u / (1 - n u) of a chain of n operations."""
    return operations * UNIT / (1 - operations * UNIT)


def product(*factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float product of matrices, and a bound on the absolute error of each entry."""
    value, size = factors[0], np.abs(factors[0])
    for factor in factors[1:]:
        value, size = value @ factor, size @ np.abs(factor)
    operations = sum(f.shape[0] for f in factors[1:]) + len(factors)
    return value, SAFETY * (gamma(operations) * size + operations * TINY)


def norm_bound(matrix: np.ndarray) -> float:
    """Upper bound of the spectral norm."""
    size = np.abs(matrix)
    if not size.size:
        return 0.0
    by_sums = np.sqrt(size.sum(axis=0).max()) * np.sqrt(size.sum(axis=1).max())
    return float(SAFETY * min(by_sums, np.linalg.norm(matrix)))


def positive_definite_margin(value: np.ndarray, error: np.ndarray) -> float:
    """Prove that a symmetric matrix known up to rounding is positive definite.

    Parameters
    ----------
    value : numpy.ndarray
        (n, n) float64; the lower triangle is used.
    error : numpy.ndarray
        (n, n), bound on the entries of the unknown difference to the true matrix.

    Returns
    -------
    float
        A lower bound, positive, of the smallest eigenvalue of the true matrix scaled to unit
        diagonal (by powers of two, exactly, so up to a factor 2); -1 where no proof was found.
    """
    diagonal = np.diag(value)
    if not np.isfinite(value).all() or not np.isfinite(error).all() or np.any(diagonal <= 0):
        return -1.0
    scale = 2.0 ** -np.round(np.log2(diagonal) / 2)
    value, error = value * scale[:, None] * scale, error * scale[:, None] * scale
    n = len(value)
    bounded = gamma(n + 1)
    cholesky = SAFETY * bounded / (1 - bounded) * np.trace(value) + 4 * n * (n + float(diagonal.max()) + 1) * TINY
    needed = SAFETY * (norm_bound(error) + cholesky + 2 * UNIT * np.diag(value).max())
    symmetric = np.tril(value) + np.tril(value, -1).T
    guess = np.linalg.eigvalsh(symmetric)[0]
    for share in (0.9, 0.5, 0.0):  # the larger the shift that Cholesky survives, the larger the proved margin
        shift = max(share * guess, 0.0) + needed
        try:
            np.linalg.cholesky(symmetric - shift * np.eye(n))
        except np.linalg.LinAlgError:
            continue
        return float((shift - needed) / SAFETY) if shift > needed else TINY
    return -1.0


def positive_definite_each(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Prove many small symmetric matrices positive definite, as :func:`positive_definite_margin` proves one.

    Parameters
    ----------
    values, errors : numpy.ndarray
        (count, n, n).

    Returns
    -------
    numpy.ndarray
        (count,) of bool: True where proved.
    """
    diagonal = np.einsum("kii->ki", values)
    proved = np.isfinite(values).all((1, 2)) & np.isfinite(errors).all((1, 2)) & (diagonal > 0).all(1)
    index = np.flatnonzero(proved)
    scale = 2.0 ** -np.round(np.log2(diagonal[index]) / 2)
    both = scale[:, :, None] * scale[:, None, :]
    value, error, n = values[index] * both, errors[index] * both, values.shape[1]
    value = np.tril(value) + np.swapaxes(np.tril(value, -1), 1, 2)
    size = np.einsum("kii->ki", value)
    bounded = gamma(n + 1)
    cholesky = SAFETY * bounded / (1 - bounded) * size.sum(1) + 4 * n * (n + diagonal[index].max(1) + 1) * TINY
    needed = SAFETY * (np.sqrt(np.square(error).sum((1, 2))) * SAFETY + cholesky + 2 * UNIT * size.max(1))
    clear = np.linalg.eigvalsh(value)[:, 0] > 1.01 * needed + 1e-14 * n
    proved[index[~clear]] = False
    shifted = value[clear] - needed[clear, None, None] * np.eye(n)
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        for place, matrix in zip(index[clear], shifted, strict=True):
            try:
                np.linalg.cholesky(matrix)
            except np.linalg.LinAlgError:
                proved[place] = False
    return proved
