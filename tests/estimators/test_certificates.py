from fractions import Fraction

import numpy as np
import pytest
import torch

import estimators as est
from estimators.certificates.feedforward import network_bound
from estimators.certificates.rigorous import norm_bound, positive_definite_margin, product


def random_matrices(seed, rate=1.0, nx=3, nv=4, dtype=torch.float32):
    built = est.R2DN(
        2,
        nx,
        2,
        nfeedback=nv,
        hidden=(5, 6),
        contraction_rate=rate,
        generator=torch.Generator().manual_seed(seed),
        dtype=dtype,
    )
    with torch.no_grad():
        return built.explicit(torch.float64)


@pytest.mark.parametrize("rate", [1.0, 0.9, 0.3])
def test_random_observers_are_proved_at_their_rate_or_better(rate):
    for seed in range(30):
        certificate = est.certify(random_matrices(seed, rate))
        assert certificate.verdict == "proved"
        assert 0 < certificate.bound <= rate
        assert certificate.margin > 0


def test_trained_observer_is_proved_and_reports_its_correctness(trained_pair):
    observer, data = trained_pair
    certificate = est.certify(observer, data)
    assert certificate.verdict == "proved"
    residual = certificate.evidence["correctness residual (RMS per state)"]
    assert (residual < data["x"].values.std(axis=(0, 1))).all()
    assert "PROVED" in str(certificate)


@pytest.mark.parametrize("name", ["A", "B1", "C1"])
def test_scaling_one_matrix_until_the_inequality_fails_is_refuted(trained_pair, name):
    good, factor = trained_pair[0].explicit(), 1.0

    def scaled(by):
        return good._replace(**{name: by * getattr(good, name)})

    while est.certify(scaled(factor)).verdict == "proved":
        factor *= 1.2
        assert factor < 1e6
    refuted = est.certify(scaled(1.2 * factor))
    assert refuted.verdict == "refuted"
    # the direction found violates the inequality, as evaluated here from its definition
    A, B1, C1, P = (getattr(scaled(1.2 * factor), n).numpy() for n in ("A", "B1", "C1", "metric"))
    nx = len(A)
    dx, dw = refuted.evidence["direction"][:nx], refuted.evidence["direction"][nx:]
    after = A @ dx + B1 @ dw
    growth = after @ P @ after - good.contraction_rate**2 * dx @ P @ dx + np.square(C1 @ dx).sum() - dw @ dw
    assert growth > 0


def test_never_proved_beyond_the_boundary():
    """Bisect the factor on A at which the exact eigenvalue changes sign; a little beyond, no proof."""
    for seed in range(20):
        good = random_matrices(seed, 0.9)

        def holds(factor, good=good):
            A, B1, C1, P = (getattr(good, n).numpy() for n in ("A", "B1", "C1", "metric"))
            A = factor * A
            M = np.block(
                [[A.T @ P @ A - 0.81 * P + C1.T @ C1, A.T @ P @ B1], [B1.T @ P @ A, B1.T @ P @ B1 - np.eye(4)]]
            )
            return np.linalg.eigvalsh(M)[-1] < 0

        low, high = 1.0, 100.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        assert est.certify(good._replace(A=1.0001 * high * good.A)).verdict != "proved"
        assert est.certify(good._replace(A=0.999 * low * good.A)).verdict == "proved"


def test_margin_is_confirmed_in_exact_arithmetic():
    """Sylvester's criterion on the exact rational value of the floats."""
    certificate = est.certify(matrices := random_matrices(1, 0.8, nx=2, nv=2))
    rational = {
        n: [[Fraction(float(v)) for v in row] for row in getattr(matrices, n).numpy()]
        for n in ("A", "B1", "C1", "metric")
    }

    def times(a, b):
        return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]

    def transpose(a):
        return [list(row) for row in zip(*a, strict=True)]

    A, B1, C1, P = rational.values()
    P = [[P[max(i, j)][min(i, j)] for j in range(2)] for i in range(2)]
    rate, ell = Fraction(certificate.bound), Fraction(certificate.evidence["network Lipschitz bound"])
    at = transpose(A)
    top, cross, low = times(times(at, P), A), times(times(at, P), B1), times(times(transpose(B1), P), B1)
    cc = times(transpose(C1), C1)
    matrix = [
        [rate**2 * P[i][j] - top[i][j] - ell**2 * cc[i][j] for j in range(2)] + [-cross[i][j] for j in range(2)]
        for i in range(2)
    ]
    matrix += [
        [-cross[j][i] for j in range(2)] + [(1 if i == j else 0) - low[i][j] for j in range(2)] for i in range(2)
    ]
    for k in range(4):  # exact elimination: all pivots positive
        assert matrix[k][k] > 0
        for i in range(k + 1, 4):
            ratio = matrix[i][k] / matrix[k][k]
            matrix[i] = [a - ratio * b for a, b in zip(matrix[i], matrix[k], strict=True)]


def test_network_bound_is_never_below_the_true_constant():
    for seed in range(10):
        matrices = random_matrices(seed)
        bound = network_bound(matrices.network, True)
        assert 1 - 1e-12 <= bound <= 1 + 1e-9
        # scaling B by 1.01 raises the layer's slope; the bound must notice (O11: fails loudly after certification)
        layer = matrices.network[0]
        louder = matrices._replace(network=(layer._replace(B=1.01 * layer.B), *matrices.network[1:]))
        assert network_bound(louder.network, True) > 1.001


def test_scaled_network_weight_spoils_the_certificate():
    matrices = random_matrices(0)
    layers = tuple(layer._replace(B=20 * layer.B) for layer in matrices.network)
    assert est.certify(matrices._replace(network=layers)).verdict != "proved"


def test_positive_definite_margin_is_a_lower_bound_and_refuses_the_indefinite():
    rng = np.random.default_rng(0)
    for _ in range(50):
        root = rng.normal(size=(6, 6)) * 10.0 ** rng.uniform(-3, 3, (6, 1))
        matrix = root @ root.T
        unit = 2.0 ** -np.round(np.log2(np.diag(matrix)) / 2)
        smallest = np.linalg.eigvalsh(matrix * unit[:, None] * unit)[0]
        margin = positive_definite_margin(matrix, np.zeros((6, 6)))
        assert margin <= smallest + 1e-14
        if smallest > 1e-10:
            assert margin > 0
        assert (
            positive_definite_margin(matrix - (smallest + 1e-9) / np.outer(unit, unit) * np.eye(6), np.zeros((6, 6)))
            == -1
        )
    assert (
        positive_definite_margin(np.eye(2), np.full((2, 2), 0.6)) == -1
    )  # the unknown error could be larger than the margin


def test_product_bound_covers_the_exact_error():
    rng = np.random.default_rng(1)
    a, b, c = (rng.normal(size=s) * 10.0 ** rng.uniform(-6, 6, s) for s in ((3, 4), (4, 4), (4, 2)))
    value, error = product(a, b, c)
    exact = [
        [
            sum(Fraction(a[i, k]) * Fraction(b[k, m]) * Fraction(c[m, j]) for k in range(4) for m in range(4))
            for j in range(2)
        ]
        for i in range(3)
    ]
    for i in range(3):
        for j in range(2):
            assert abs(exact[i][j] - Fraction(value[i, j])) <= Fraction(error[i, j])
    assert norm_bound(a) >= np.linalg.norm(a, 2)


def test_bad_input():
    with pytest.raises(TypeError, match="certify takes an R2DNObserver"):
        est.certify("observer")
    good = random_matrices(0)
    with pytest.raises(ValueError, match="not finite"):
        est.certify(good._replace(A=good.A * torch.nan))
    indefinite = est.certify(good._replace(metric=-good.metric))
    assert indefinite.verdict == "refuted"
    with pytest.raises(ValueError, match="verdict must be one of"):
        est.Certificate("claim", "certain", 1.0, 0.0, np.eye(1))
