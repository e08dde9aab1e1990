"""Certificates against an independent route: 200-bit ball arithmetic, other solvers, simulation."""

import copy
import json
import os

import control as ct
import cvxpy as cp
import numpy as np
import pytest
import torch

import estimators as est
import plants
from estimators.certificates import dissipation
from estimators.certificates.loops import Loop
from tests import exact
from tests.benchmarks.certificates import KINDS, make, train


def sizes(count, seed=0):
    """(nx, nv) from 2 to 75, small ones more often."""
    rng = np.random.default_rng(seed)
    return [(int(n), max(2, int(0.8 * n))) for n in np.round(2 * (75 / 2) ** rng.random(count) ** 2)]


def reproved(kind, subject, certificate):
    """Check a certificate by the slow route."""
    if kind == "LBDN":
        return exact.layers_are_within(subject.explicit(), subject.linear_output, certificate.bound / subject.bound)
    if kind in ("R2DN", "REN"):
        slope = certificate.evidence.get("network Lipschitz bound", 1.0)
        return exact.contracts(subject.explicit(), certificate.metric, certificate.bound, slope)
    gain = subject.gain.numpy() if kind == "Luenberger" else None
    if gain is None:
        noise, (A, _, C, _) = subject.noise, subject.model.matrices
        gain = est.steady_state(A, C, noise.process_cov, noise.measurement_cov).filter_gain
    A, _, C, _ = (exact.ball(m) for m in subject.model.matrices)
    closed = A - exact.ball(gain) * C if getattr(subject, "form", "") == "predictor" else A - A * exact.ball(gain) * C
    P = exact.ball(exact.symmetric(certificate.metric))
    square = exact.flint.arb(certificate.bound) ** 2
    return exact.positive_definite(square * P - closed.transpose() * P * closed) and exact.positive_definite(P)


@pytest.mark.parametrize("kind", KINDS)
def test_random_subjects_of_each_kind_are_proved_and_reproved(kind):
    for seed, (nx, nv) in enumerate(sizes(12, seed=1)):
        subject = make(kind, min(nx, 20), min(nv, 16), seed)
        certificate = est.certify(subject)
        assert certificate.verdict == "proved"
        assert reproved(kind, subject, certificate)


RANDOM = int(os.environ.get("PROOFS", "30"))
"""Random subjects of each kind, and a tenth as many trained; PROOFS=200 is what the README quotes."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_and_trained_of_each_kind(kind):
    for seed, (nx, nv) in enumerate(sizes(RANDOM + RANDOM // 10)):
        subject = make(kind, nx, nv, seed)
        if seed >= RANDOM:
            train(kind, subject, seed)
        certificate = est.certify(subject)
        assert certificate.verdict == "proved", (nx, nv, seed)
        assert reproved(kind, subject, certificate), (nx, nv, seed)


def test_every_inequality_behind_an_observers_certificate_is_reproved(trained_pair, monkeypatch):
    """Rates, gains and tubes: whatever was proved in float64 on the way holds in balls."""
    proved, prove = [], dissipation.InMetric.prove

    def recorded(self, rate):
        result = prove(self, rate)
        if result.verdict == "proved":
            proved.append((self.inequality, self.P, rate))
        return result

    monkeypatch.setattr(dissipation.InMetric, "prove", recorded)
    observer, data = trained_pair
    est.certify(observer)
    est.refine(observer)
    est.refine(observer, observer.contraction_rate)
    est.certify_error(observer, observer.model, data, probability=0.9, measurement_bound=[0.6])
    linear = plants.scenario("mass_spring_damper")
    est.certify(est.KalmanFilter(linear.model, linear.noise))
    assert len(proved) > 30
    assert all(exact.holds(*claim) for claim in proved)


def boundary(good, name, certificate_of):
    """Largest factor on one matrix for which the inequality in the designed metric holds, by exact bisection."""
    slope = certificate_of.evidence.get("network Lipschitz bound", 1.0)

    def holds(factor):
        scaled = good._replace(**{name: factor * getattr(good, name)})
        return exact.contracts(scaled, good.metric.detach().double().numpy(), good.contraction_rate, slope)

    low, high = 1.0, 2.0
    while holds(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


@pytest.mark.slow
def test_a_hundred_matrices_just_beyond_the_boundary_are_never_proved():
    verdicts = []
    for seed in range(100):
        kind, name = ("R2DN", "REN")[seed % 2], ("A", "B1", "C1", "A")[seed % 4]
        with torch.no_grad():
            good = make(kind, 2 + seed % 4, 3, seed).explicit()
        low, high = boundary(good, name, est.certify(good))
        beyond = good._replace(**{name: 1.0001 * high * getattr(good, name)})
        verdicts.append(est.certify(beyond).verdict)
        assert est.certify(good._replace(**{name: 0.9999 * low * getattr(good, name)})).verdict == "proved"
    assert len(verdicts) == 100 and not {"proved", "sampled"} & set(verdicts)


def test_smallest_rate_is_that_of_the_semidefinite_programme():
    """The Riccati equation against cvxpy, for matrices of different kinds."""
    for seed in range(4):
        with torch.no_grad():
            matrices = make("R2DN", 3, 4, seed).explicit()
        A, B1, C1 = (getattr(matrices, n).numpy() for n in ("A", "B1", "C1"))

        def feasible(rate, A=A, B1=B1, C1=C1):
            P, t = cp.Variable((3, 3), symmetric=True), cp.Variable()
            M = cp.bmat(
                [
                    [rate**2 * P - A.T @ P @ A - C1.T @ C1, -A.T @ P @ B1],
                    [-B1.T @ P @ A, np.eye(4) - B1.T @ P @ B1],
                ]
            )
            cp.Problem(cp.Maximize(t), [(M + M.T) / 2 >> t * np.eye(7), t <= 1]).solve(solver=cp.CLARABEL)
            return t.value > 0

        found = est.refine(matrices).bound
        assert feasible(found + 1e-4) and not feasible(found - 1e-3)


def test_refined_rate_is_never_worse_and_no_run_beats_it(trained_pair):
    observer, data = trained_pair
    designed, refined = est.certify(observer), est.refine(observer)
    assert refined.verdict == "proved" and refined.bound <= designed.bound <= observer.contraction_rate
    assert designed.evidence["smallest rate in any metric"] == refined.bound
    rng, count = np.random.default_rng(0), 10_000
    starts = rng.uniform(-3, 3, (2, count, 2))
    u, y = (data[name].values[0] for name in ("u", "y"))
    state = observer.init(starts)._replace(startup=None)  # the start-up is over
    scale = torch.ones(observer.nstates, dtype=torch.float64)
    scale[:2] = observer.coordinates.state_scale
    for certificate in (designed, refined):
        now, last = state, None
        P = torch.from_numpy(certificate.metric)
        for k in range(25):
            now, _ = observer.step(now, u[k], y[k])
            e = (now.z[1] - now.z[0]) * scale
            distance = torch.einsum("bi,ij,bj->b", e, P, e).sqrt()
            if last is not None:  # the first sample's turn is free
                assert bool((distance <= certificate.bound * last * (1 + 1e-9) + 1e-12).all())
            last = distance


def test_best_conditioned_metric_has_the_least_condition_number(trained_pair):
    observer, _ = trained_pair
    tight = est.refine(observer, 0.97)
    assert tight.verdict == "proved" and tight.bound == 0.97
    assert tight.overshoot <= min(est.certify(observer).overshoot, est.refine(observer).overshoot) * 1.05
    with pytest.raises(ValueError, match="is below"):
        est.refine(observer, 0.2)
    with pytest.raises(ValueError, match="rate must be in"):
        est.refine(observer, 1.2)


def test_gains_of_a_linear_observer_are_its_h_infinity_norms():
    setting = plants.scenario("mass_spring_damper")
    observer = est.LuenbergerObserver.from_noise(setting.model, setting.noise)
    table = est.certify(observer).gains
    A, _, C, _ = setting.model.matrices
    K = observer.gain.numpy()
    z = np.exp(1j * np.linspace(0, np.pi, 20_000))
    x = np.linalg.solve(z[:, None, None] * np.eye(2) - (A - A @ K @ C), np.broadcast_to(A @ K, (len(z), 2, 1)))
    filtered = np.abs((np.eye(2) - K @ C) @ x + K)[..., 0].max(0)
    predicted = np.abs(z[:, None] * x[..., 0]).max(0)
    np.testing.assert_allclose(table.sel(kind="filtered").values[:, 0], filtered, rtol=2e-3)
    np.testing.assert_allclose(table.sel(kind="predicted").values[:, 0], predicted, rtol=2e-3)
    assert (table.sel(kind="filtered").values[:, 0] >= filtered * (1 - 1e-9)).all()


def test_no_noise_beats_the_gains_of_a_trained_observer(trained_pair):
    observer, data = trained_pair
    table = est.certify(observer).gains
    u, y = (torch.from_numpy(data[name].values) for name in ("u", "y"))
    state = observer.init(data["x"].values[:, 0])
    rng, worst = np.random.default_rng(1), np.zeros(2)
    base = observer.estimate_sequence(state, u, y).filtered
    for frequency in np.linspace(0, np.pi, 40):
        wave = np.cos(frequency * np.arange(y.shape[1])) * rng.uniform(0.001, 0.3)
        moved = observer.estimate_sequence(state, u, y + torch.from_numpy(wave)[None, :, None]).filtered
        energy = ((moved - base) ** 2).sum(1).sqrt() / np.linalg.norm(wave)
        worst = np.maximum(worst, energy.amax(0).numpy())
    bound = table.sel(kind="filtered").values[:, 0]
    assert (worst <= bound).all()
    assert (worst > 0.15 * bound).all()  # nor is the bound far from what happens


def test_a_network_may_be_proved_tighter_than_it_was_designed():
    network = est.R2DN(1, 3, 1, nfeedback=4, hidden=(8,), lipschitz=5.0, generator=torch.Generator().manual_seed(0))
    certificate = est.certify(network)
    assert certificate.evidence["smallest Lipschitz bound from input to output"] <= 5.0
    assert certificate.gains.shape == (1, 1)
    assert float(certificate.gains[0, 0]) <= 5.0 * (1 + 1e-9)


def test_linear_observers_slower_than_a_step_are_refuted_and_say_where():
    model = plants.scenario("mass_spring_damper").model
    observer = est.LuenbergerObserver(model, [[-3.0], [0.0]], form="predictor")
    certificate = est.certify(observer)
    assert certificate.verdict == "refuted"
    A, _, C, _ = model.matrices
    d = certificate.evidence["direction"]
    after = np.linalg.matrix_power(A - observer.gain.numpy() @ C, 20) @ d
    assert np.linalg.norm(after) > np.linalg.norm(d)
    with pytest.raises(ValueError, match="nothing to refine"):
        est.refine(observer)


def test_rounding_of_a_linear_observers_own_matrices_is_part_of_the_proof():
    model = plants.scenario("mass_spring_damper").model
    loop = Loop.linear(model.matrices, np.array([[0.3], [0.7]]), "filter")
    A, B, C, _ = (exact.ball(m) for m in model.matrices)
    K = exact.ball([[0.3], [0.7]])
    true = A - A * K * C
    for i in range(2):
        for j in range(2):
            assert abs(true[i, j] - exact.flint.arb(float(loop.A[i, j]))) <= exact.flint.arb(
                float(loop.errors[0][i, j])
            )
    assert B.ncols() == model.ninputs


def test_certificate_as_json(trained_pair):
    text = json.dumps(est.certify(trained_pair[0]).to_dict())
    back = json.loads(text)
    assert back["verdict"] == "proved" and np.array(back["gains"]["data"]).shape == (2, 2, 1)
    assert json.loads(json.dumps(est.certify(est.LipschitzNetwork((2, 4, 1))).to_dict()))["margin"] is None


def test_fit_reports_designed_and_refined_rate():
    setting = plants.scenario("pendulum")
    observer = est.R2DNObserver(setting.model, nfeedback=4, hidden=(8,), contraction_rate=0.97)
    result = observer.fit(setting.simulate(20, 40, seed=0), updates=5, one_step_updates=5, horizon=20, progress=False)
    assert result.designed_rate == 0.97
    assert result.refined_rate == est.refine(observer).bound <= 0.97


def test_deadbeat_is_not_refuted_by_inexact_eigenvalues():
    """A closed loop with A^10 = 0 exactly, whose computed eigenvalues lie far outside the unit circle."""
    rng = np.random.default_rng(0)
    nilpotent = np.triu(rng.integers(-9, 10, (10, 10)), 1).astype(float)
    change = np.tril(rng.integers(-3, 4, (10, 10)), -1) + np.eye(10)
    back = np.round(np.linalg.inv(change))
    A = back @ nilpotent @ change
    assert not np.linalg.matrix_power(A, 10).any()
    model = plants.discretize(ct.ss(A, np.zeros((10, 1)), np.eye(1, 10), 0, dt=1.0))
    certificate = est.certify(est.LuenbergerObserver(model, np.zeros((10, 1)), form="predictor"))
    assert certificate.verdict != "refuted"


@pytest.mark.parametrize("name", ["bx", "bv", "by"])
def test_biases_that_are_not_finite_are_refused_too(name):
    matrices = make("R2DN", 3, 4, 0).explicit()
    broken = getattr(matrices, name).detach().clone()
    broken[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        est.certify(matrices._replace(**{name: broken}))
    layer = matrices.network[0]
    with pytest.raises(ValueError, match="not positive"):
        est.certify(matrices._replace(network=(layer._replace(psi=0 * layer.psi), *matrices.network[1:])))


@pytest.mark.parametrize("kind", ["R2DN", "REN", "LBDN"])
def test_weights_that_are_not_finite_are_refused(kind):
    subject = make(kind, 3, 4, 0)
    with torch.no_grad():
        next(subject.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        est.certify(subject)


def test_an_observer_with_such_weights_gets_no_verdict(trained_pair):
    observer, data = trained_pair
    broken = copy.deepcopy(observer)
    with torch.no_grad():
        broken.network.X[0, 0] = float("nan")
    for question in (est.certify, est.refine, lambda o: est.certify_error(o, o.model, data)):
        with pytest.raises(ValueError, match="not finite"):
            question(broken)
    with pytest.raises(ValueError, match="has not seen data"):
        est.certify(est.R2DNObserver(observer.model))
