"""The slow, independent route: inequalities in 200-bit ball arithmetic, from the formulas of the papers."""

import flint
import numpy as np

BITS = 200


def ball(matrix):
    """Exact ball matrix of float64 values."""
    matrix = np.atleast_2d(np.asarray(matrix, dtype=float))
    return flint.arb_mat(matrix.shape[0], matrix.shape[1], [flint.arb(float(v)) for v in matrix.ravel()])


def block(rows):
    """Ball matrix from blocks."""
    entries, width = [], sum(b.ncols() for b in rows[0])
    for row in rows:
        tables = [b.tolist() for b in row]
        for k in range(row[0].nrows()):
            entries += [entry for table in tables for entry in table[k]]
    return flint.arb_mat(len(entries) // width, width, entries)


def positive_definite(matrix):
    """Whether a symmetric matrix is positive definite, for certain.

    Congruent to nearly the identity by an approximate inverse factor from floats, and then diagonally dominant in
    balls: two products. Where floats find no factor, or it is not good enough, elimination with positive pivots only.
    """
    n = matrix.nrows()
    middle = np.array([float(v.mid()) for v in matrix.entries()]).reshape(n, n)
    try:
        unit = 1 / np.sqrt(np.diag(middle))
        inverse = ball(np.linalg.inv(np.linalg.cholesky((middle + middle.T) / 2 * unit * unit[:, None])) * unit)
        near = (inverse * matrix * inverse.transpose()).tolist()
        rest = [sum((abs(v) for j, v in enumerate(row) if j != i), flint.arb(0)) for i, row in enumerate(near)]
        if all(row[i] > other for i, (row, other) in enumerate(zip(near, rest, strict=True))):
            return True
    except (np.linalg.LinAlgError, FloatingPointError, RuntimeWarning):
        pass  # not even in floats: elimination says whether that was rounding
    return _pivots_are_positive(matrix)


def _pivots_are_positive(matrix):
    rows = matrix.tolist()
    n = len(rows)
    for k in range(n):
        if not rows[k][k] > 0:
            return False
        for i in range(k + 1, n):
            ratio = rows[i][k] / rows[k][k]
            rows[i] = [a if j <= k else a - ratio * b for j, (a, b) in enumerate(zip(rows[i], rows[k], strict=True))]
    return True


def symmetric(P):
    """What the library takes a metric for: its lower triangle."""
    return np.tril(P) + np.tril(P, -1).T


def contracts(matrices, P, rate, slope):
    """Whether the contraction inequality of an R2DN, with the slope of its network, or of a REN holds."""
    flint.ctx.prec = BITS
    A, B1, C1 = (ball(getattr(matrices, name).detach().double().numpy()) for name in ("A", "B1", "C1"))
    P, square = ball(symmetric(P)), flint.arb(rate) ** 2
    into = block([[A, B1]])
    following = into.transpose() * P * into
    nx, nv = A.nrows(), C1.nrows()
    zero, identity = ball(np.zeros((nx, nv))), ball(np.eye(nv))
    if hasattr(matrices, "multiplier"):
        D11, L = (
            ball(m) for m in (matrices.D11.detach().double().numpy(), np.diag(matrices.multiplier.detach().double()))
        )
        cross = C1.transpose() * L
        inner = L * (identity - D11)
        whole = block([[square * P, -1 * cross], [-1 * cross.transpose(), inner + inner.transpose()]])
    else:
        gain = flint.arb(slope) ** 2 * (C1.transpose() * C1)
        whole = block([[square * P - gain, zero], [zero.transpose(), identity]])
    return positive_definite(P) and positive_definite(whole - following)


def holds(inequality, P, rate):
    """A dissipation inequality from its terms; uncertain matrices are balls."""
    flint.ctx.prec = BITS
    P, nx = ball(symmetric(P)), len(inequality.into)
    into = _uncertain(inequality.into, inequality.error)
    size = inequality.into.shape[1]
    E = ball(np.eye(nx, size))
    total = flint.arb(rate) ** 2 * (E.transpose() * P * E) - into.transpose() * P * into
    for term in inequality.terms:
        left = _uncertain(term.left, term.error)
        right = left if term.right is None else ball(term.right)
        middle = right if term.weight is None else ball(term.weight) * right
        value = left.transpose() * middle
        total = total + flint.arb(term.coefficient) / 2 * (value + value.transpose())
    return positive_definite(P) and positive_definite(total)


def _uncertain(value, error):
    if error is None:
        return ball(value)
    rows, columns = value.shape
    entries = [flint.arb(float(v), float(e)) for v, e in zip(value.ravel(), error.ravel(), strict=True)]
    return flint.arb_mat(rows, columns, entries)


def layers_are_within(layers, linear_output, bound):
    """Whether the product of sqrt(lambda_max(A'A + B B')) ... of stored sandwich layers is below a bound.

    With lambda of each layer found by bisection in ball arithmetic; 1e-12 is granted to the bisection.
    """
    flint.ctx.prec = BITS
    product = flint.arb(1)
    for index, layer in enumerate(layers):
        A_T, B = ball(layer.A_T.detach().double().numpy()), ball(layer.B.detach().double().numpy())
        linear = linear_output and index == len(layers) - 1
        gram = B * B.transpose()
        if not linear:
            gram = gram + A_T.transpose() * A_T
        identity = ball(np.eye(gram.nrows()))
        low, high = 0.0, 4.0**3
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if positive_definite(flint.arb(middle) * identity - gram) else (middle, high)
        product *= flint.arb(high).sqrt() if linear else flint.arb(high)
    return bool(product <= flint.arb(bound) * (1 + flint.arb(1e-12)))
