"""Gains and rates of every kind of network, found by search and by the inequality."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import estimators as est
from estimators import lipschitz_bound
from estimators.networks import from_explicit, from_linear, long_memory
from tests.tolerances import ROUNDING

CONTRACTING = {
    "r2dn": lambda **k: est.R2DN(2, 3, 2, nfeedback=4, hidden=(5, 6), **k),
    "r2dn identity": lambda **k: est.R2DN(2, 3, 3, nfeedback=4, hidden=(5,), identity_output=True, **k),
    "ren": lambda **k: est.REN(2, 3, 2, nfeedback=4, **k),
    "ren identity": lambda **k: est.REN(2, 3, 3, nfeedback=4, identity_output=True, **k),
}
BOUNDED = {
    "r2dn": lambda gamma, **k: CONTRACTING["r2dn"](lipschitz=gamma, **k),
    "r2dn identity": lambda gamma, **k: CONTRACTING["r2dn identity"](lipschitz=gamma, **k),
    "ren": lambda gamma, **k: CONTRACTING["ren"](lipschitz=gamma, **k),
    "ren identity": lambda gamma, **k: CONTRACTING["ren identity"](lipschitz=gamma, **k),
    "linear r2dn": lambda gamma, **k: est.R2DN(2, 3, 2, nfeedback=0, hidden=(), lipschitz=gamma, **k),
    "linear ren": lambda gamma, **k: est.REN(2, 3, 2, nfeedback=0, lipschitz=gamma, **k),
}


def seeded(make, seed, *args, spread=0.3, **settings):
    """Build a network with every parameter away from its special start."""
    generator = torch.Generator().manual_seed(seed)
    built = make(*args, generator=generator, **settings)
    with torch.no_grad():
        for value in built.parameters():
            value.add_(spread * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype))
    return built


def gains(built, u, other):
    """Empirical incremental gain of each pair of inputs (batch, time, nu), from the same state."""
    (y, _), (z, _) = built(u), built(other)
    return (y - z).flatten(1).norm(dim=1) / (u - other).flatten(1).norm(dim=1)


def attack(built, seed, *, steps=60, length=12, pairs=16, train=False):
    """Search inputs, and with `train` also parameters, for the largest gain; return the largest one seen."""
    generator = torch.Generator().manual_seed(seed)
    u, d = (torch.randn(pairs, length, built.ninputs, generator=generator, dtype=torch.float64) for _ in range(2))
    u, d = (3 * u).requires_grad_(), d.requires_grad_()
    leaves, largest = [u, d, *(built.parameters() if train else ())], 0.0
    optimiser = torch.optim.Adam(leaves, lr=0.1)
    for _ in range(steps):
        gain = gains(built, u, u + d)
        largest = max(largest, gain.max().item())
        optimiser.zero_grad()
        (-gain.log().sum()).backward()
        optimiser.step()
    return largest


@pytest.mark.parametrize("kind", sorted(BOUNDED))
@pytest.mark.parametrize("gamma", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_adversarial_inputs_never_exceed_the_bound(kind, gamma, rate):
    for seed in range(3):
        built = seeded(BOUNDED[kind], seed, gamma, contraction_rate=rate, dtype=torch.float64)
        assert attack(built, seed) <= gamma * (1 + 1e-9)


@pytest.mark.parametrize("kind", sorted(BOUNDED))
def test_the_bound_is_nearly_reached_by_a_model_trained_to(kind):
    """Otherwise it would not be a real one."""
    gamma = 2.0
    built = seeded(BOUNDED[kind], 0, gamma, dtype=torch.float64)
    largest = attack(built, 0, steps=400, length=30, train=True)
    assert 0.8 * gamma < largest <= gamma * (1 + 1e-9)


def test_lipschitz_network_reaches_its_bound_and_never_exceeds_it():
    generator = torch.Generator().manual_seed(0)
    built = est.LipschitzNetwork((3, 8, 8, 2), 5.0, generator=generator, dtype=torch.float64)
    x, d = (torch.randn(32, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    optimiser, largest = torch.optim.Adam([x, d, *built.parameters()], lr=0.02), 0.0
    for _ in range(300):
        gain = (built(x + d) - built(x)).norm(dim=1) / d.norm(dim=1)
        largest = max(largest, gain.max().item())
        optimiser.zero_grad()
        (-gain.log().sum()).backward()
        optimiser.step()
    assert 4.0 < largest <= 5.0 * (1 + 1e-9)


@pytest.mark.parametrize("kind", sorted(BOUNDED))
def test_the_float32_network_keeps_the_bound_up_to_its_rounding(kind):
    built = seeded(BOUNDED[kind], 1, 2.0)
    double = copy.deepcopy(built).double()
    for network, slack in ((built, 1e-3), (double, 1e-9)):
        generator = torch.Generator().manual_seed(0)
        u, d = (torch.randn(64, 20, 2, generator=generator, dtype=network.X.dtype) for _ in range(2))
        assert gains(network, u, u + d).max() <= 2.0 * (1 + slack)


def supply_rate(seed, ny=2, nu=2):
    rng = np.random.default_rng(seed)
    Q, S = -np.eye(ny) - np.diag(rng.random(ny)), rng.normal(size=(nu, ny))
    R = np.eye(nu) + S @ np.linalg.solve(Q, S.T)
    return Q, S, (R + R.T) / 2


def test_dissipative_ren_keeps_its_supply_rate_under_attack():
    for seed in range(6):
        Q, S, R = supply_rate(seed)
        built = seeded(CONTRACTING["ren"], seed, supply=(Q, S, R), dtype=torch.float64)
        Q, S, R = (torch.from_numpy(m) for m in (Q, S, R))
        generator = torch.Generator().manual_seed(seed)
        u, d = (torch.randn(16, 12, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
        optimiser = torch.optim.Adam([u, d], lr=0.1)
        for _ in range(60):
            dy = built(u + d)[0] - built(u)[0]
            supplied = ((dy @ Q) * dy + 2 * (d @ S) * dy + (d @ R) * d).sum((1, 2)) / d.square().sum((1, 2))
            assert supplied.min() >= -1e-9
            optimiser.zero_grad()
            supplied.sum().backward()
            optimiser.step()


def small(kind, nx, nu, nv, hidden, generator, rate, gamma):
    ny = nx if kind.endswith("identity") else 2
    common = {
        "nfeedback": nv,
        "contraction_rate": rate,
        "lipschitz": gamma,
        "identity_output": kind.endswith("identity"),
        "generator": generator,
        "activation": ("relu", "tanh", "elu", "softplus")[nx % 4],
        "dtype": torch.float64,
    }
    if kind.startswith("ren"):
        return est.REN(nu, nx, ny, **common)
    return est.R2DN(nu, nx, ny, hidden=hidden if nv else [], **common)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(CONTRACTING)),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 5),
    st.lists(st.integers(1, 7), max_size=3),
    st.floats(0.05, 1.0),
    st.none() | st.floats(1e-3, 1e3),
    st.integers(0, 10_000),
)
def test_two_runs_contract_step_by_step_in_the_metric_at_the_rate(kind, nx, nu, nv, hidden, rate, gamma, seed):
    rng = torch.Generator().manual_seed(seed)
    explicit = small(kind, nx, nu, nv, hidden, rng, rate, gamma).explicit()
    one, two = 3 * torch.randn(2, 8, nx, generator=rng, dtype=torch.float64)

    def distance(a, b):
        return torch.einsum("bi,ij,bj->b", a - b, explicit.metric, a - b).sqrt()

    with torch.no_grad():
        size = torch.linalg.matrix_norm(explicit.metric, 2).sqrt()
        for _ in range(6):
            u, before = torch.randn(8, nu, generator=rng, dtype=torch.float64), distance(one, two)
            one, two = explicit.step(one, u)[0], explicit.step(two, u)[0]
            # rounding of a step, as large as the states are and as the metric weighs it
            rounding = 1e-14 * size * (1 + one.abs().max() + two.abs().max()) * nx
            assert bool((distance(one, two) <= rate * before * (1 + 1e-9) + rounding).all())


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(CONTRACTING)), st.integers(1, 6), st.integers(1, 3), st.integers(0, 5),
    st.lists(st.integers(1, 7), max_size=3), st.floats(0.05, 1.0), st.floats(1e-3, 1e3), st.integers(0, 10_000),
)  # fmt: skip
def test_two_runs_keep_the_lipschitz_bound(kind, nx, nu, nv, hidden, rate, gamma, seed):
    rng = torch.Generator().manual_seed(seed)
    built = small(kind, nx, nu, nv, hidden, rng, rate, gamma)
    u, other = 3 * torch.randn(2, 8, 10, nu, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        assert gains(built, u, other).max() <= gamma * (1 + 1e-9)


def random_draw(index):
    """Any kind, size, rate and bound, float32; all parameters scaled between 1/1000 and 10, or X and p alone, small."""
    rng, generator = np.random.default_rng(index), torch.Generator().manual_seed(index)
    kind = ("r2dn", "r2dn bounded", "r2dn identity bounded", "ren", "ren bounded", "ren dissipative")[index % 6]
    nx, nu, ny, nv = (int(n) for n in rng.integers(1, (20, 5, 5, 20)))
    common = {"nfeedback": nv, "contraction_rate": float(rng.uniform(0.05, 1)), "generator": generator}
    if "bounded" in kind:
        common["lipschitz"] = float(10 ** rng.uniform(-3, 3))
    if kind == "ren dissipative":
        common["supply"] = supply_rate(index, ny, nu)
    if kind.startswith("ren"):
        built = est.REN(nu, nx, ny, **common)
    else:
        identity, hidden = "identity" in kind, [int(n) for n in rng.integers(1, 20, rng.integers(1, 4))]
        built = est.R2DN(nu, nx, nx if identity else ny, hidden=hidden, identity_output=identity, **common)
    with torch.no_grad():
        alone = index // 6 % 4 == 3
        scale = 10 ** rng.uniform(-3, 0 if alone else 1)
        for value in (built.X, built.p) if alone else built.parameters():
            value.mul_(scale)
    return built


def holds(built, dtype):
    """Whether the inequality of the certificate holds, as float64 eigenvalues, for a map evaluated in `dtype`."""
    with torch.no_grad():
        certificate = est.certify(built.explicit(dtype))
    return certificate.verdict == "proved" or certificate.margin > 0


def test_inequality_holds_for_every_random_draw_mapped_in_float64():
    broken = [index for index in range(300) if not holds(random_draw(index), torch.float64)]
    assert broken == []


@pytest.mark.slow
def test_inequality_holds_for_a_thousand_random_draws():
    """Parameters are float32; mapped in float64 all hold, mapped in float32 many would not."""
    draws = [random_draw(index) for index in range(1000)]
    assert [i for i, built in enumerate(draws) if not holds(built, torch.float64)] == []
    assert sum(est.certify(built.explicit()).verdict == "proved" for built in draws) > 950
    assert sum(not holds(built, torch.float32) for built in draws) > 100


@pytest.mark.parametrize("kind", [*sorted(CONTRACTING), "r2dn bounded", "ren bounded"])
def test_inequality_holds_for_trained_models(kind):
    """Twenty models in all, float32, trained a little on a memory task."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        make = CONTRACTING[kind.removesuffix(" bounded")]
        bound = {"lipschitz": 3.0} if kind.endswith("bounded") else {}
        built = make(contraction_rate=0.95, generator=generator, **bound)
        optimiser = torch.optim.Adam(built.parameters(), lr=2e-2)
        for _ in range(40):
            u = torch.randn(16, 10, 2, generator=generator)
            loss = (built(u)[0][..., :2] - torch.cumsum(0.5 * u, 1)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert est.certify(built.explicit()).verdict == "proved"


@pytest.mark.parametrize("bound", [None, 1.5])
@pytest.mark.parametrize("identity", [False, True])
def test_any_explicit_model_can_be_the_start(bound, identity):
    common = {"lipschitz": bound, "identity_output": identity, "dtype": torch.float64}

    def make(rate, seed):
        ny = 3 if identity else 2
        return seeded(est.R2DN, seed, 2, 3, ny, nfeedback=4, hidden=(5, 6), contraction_rate=rate, **common)

    given_model, built = make(0.8, 1).explicit(), make(0.9, 2)
    from_explicit(built, given_model)
    u, x0 = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    for a, b in zip(built.explicit().step(x0, u), given_model.step(x0, u), strict=True):
        assert (a - b).abs().max() < 1e-9 * max(1, b.abs().max())  # through two matrix inverses and a Cholesky factor
    with pytest.raises(ValueError, match="does not hold in the given metric"):
        from_explicit(make(0.9, 3), given_model._replace(A=20 * given_model.A))
    with pytest.raises(ValueError, match="shapes"):
        from_explicit(est.R2DN(3, 3, 3 if identity else 2, nfeedback=4, hidden=(5, 6), **common), given_model)
    if bound and not identity:
        with pytest.raises(ValueError, match="feedthrough"):
            from_explicit(make(0.9, 3), given_model._replace(D22=20 * torch.ones_like(given_model.D22)))


def test_starts_that_need_a_contracting_network_say_so():
    bounded = est.R2DN(1, 2, 2, nfeedback=2, hidden=(3,), lipschitz=1.0)
    for call in (
        lambda: long_memory(bounded),
        lambda: from_linear(bounded, np.eye(2) / 2, np.ones((2, 1)), np.ones(2)),
    ):
        with pytest.raises(ValueError, match="contracting networks"):
            call()
    built = est.REN(1, 3, 3, nfeedback=4, dtype=torch.float64)
    long_memory(built, torch.Generator().manual_seed(0))
    A = built.explicit().A.detach().numpy()
    np.testing.assert_allclose(A, np.diag(np.diag(A)), atol=1e-5)
    assert np.diag(A).min() > 0.9


@pytest.mark.parametrize("kind", sorted(CONTRACTING))
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus"])
def test_rollout_streaming_python_control_and_definition_agree(kind, activation):
    built = seeded(CONTRACTING[kind], 3, activation=activation, dtype=torch.float64)
    explicit, step, rng = built.explicit(), built.streaming(), np.random.default_rng(0)
    u, x = rng.normal(size=(30, 2)), np.zeros(3)
    y, _ = built(torch.from_numpy(u)[None])
    system = built.to_control(dt=0.1, name="net")
    assert (system.nstates, system.ninputs, system.noutputs, system.dt) == (3, 2, built.noutputs, 0.1)
    for k in range(len(u)):
        following, defined = (t.detach().numpy() for t in explicit.step(torch.from_numpy(x), torch.from_numpy(u[k])))
        following_, out = step(x, u[k])
        outputs = out, y[0, k].detach().numpy(), system.output(0, x, u[k])
        for found, right in ((following_, following), *((o, defined) for o in outputs)):
            np.testing.assert_allclose(found, right, rtol=0, atol=ROUNDING * max(1, abs(right).max()))
        x = following_


@pytest.mark.parametrize("kind", sorted(CONTRACTING))
def test_parameters_survive_files_and_moves(kind, tmp_path):
    built = seeded(CONTRACTING[kind], 4)
    save_file(built.state_dict(), tmp_path / "net.safetensors")
    twin = CONTRACTING[kind]()
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    u = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(built(u)[0], twin(u)[0])
    twin.double()
    assert twin(u.double())[0].dtype == torch.float64
    assert (twin(u.double())[0] - built(u)[0]).abs().max() < 1e-3  # float32 against float64
    moved = CONTRACTING[kind](device="meta")
    assert all(p.device.type == "meta" for p in moved.parameters())
    with pytest.raises(TypeError, match=r"u must have the parameters' dtype torch\.float64"):
        twin(u)
    with pytest.raises(ValueError, match="x0 must have shape"):
        built(u, torch.zeros(2, 3))


@pytest.mark.parametrize("kind", sorted(CONTRACTING))
def test_definition_works_under_torch_func(kind):
    """Per-sample gradients of the plain definition, against a loop."""
    built = seeded(CONTRACTING[kind], 5, activation="tanh", dtype=torch.float64)
    parameters, u = dict(built.named_parameters()), torch.randn(4, 6, 2, dtype=torch.float64)

    def loss(parameters, u):
        x = u.new_zeros(3)
        explicit = torch.func.functional_call(_Explicit(built), {f"built.{k}": v for k, v in parameters.items()}, ())
        for k in range(len(u)):
            x, _ = explicit.step(x, u[k])
        return x.square().sum()

    fast = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, u)
    for index in range(len(u)):
        slow = torch.autograd.grad(loss(parameters, u[index]), list(parameters.values()), allow_unused=True)
        for found, right in zip(fast.values(), slow, strict=True):
            assert right is None or (found[index] - right).abs().max() <= 1e-11 * max(1, right.abs().max())


class _Explicit(torch.nn.Module):
    def __init__(self, built):
        super().__init__()
        self.built = built

    def forward(self):
        return self.built.explicit()


@pytest.mark.parametrize("kind", sorted(CONTRACTING))
def test_checkpointing_changes_no_number(kind):
    built = seeded(CONTRACTING[kind], 6, dtype=torch.float64)
    u = torch.randn(2, 3000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for checkpoint in (False, True):
        y, x = built(u, checkpoint=checkpoint)
        results.append(
            (y, *torch.autograd.grad(y.square().mean() + x.sum(), list(built.parameters()), allow_unused=True))
        )
    for a, b in zip(*results, strict=True):
        assert a is b is None or (a - b).abs().max() <= ROUNDING * max(1, b.abs().max())


def test_lipschitz_bound_is_never_below_the_true_constant():
    """Field case O11, its four networks."""
    assert 1e-5 <= lipschitz_bound([[[1e-5]]]) <= 1e-5 * (1 + 1e-8)
    assert 3 <= lipschitz_bound([np.diag([3.0, 2.9])]) <= 3 * (1 + 1e-8)
    first, second = [[0.8, -1.1], [0.3, 0.2], [-0.5, 0.9]], [[1, -0.7, 0.4]]
    bound = lipschitz_bound([first, second])
    assert 1.3732079230764729 <= bound <= 2.18747795002
    assert 1 <= lipschitz_bound([[[1.0], [-1.0]], [[1.0, -1.0]]]) <= 2 * (1 + 1e-8)
    # a certificate of other weights is worth nothing: 1 % more weight is noticed
    assert lipschitz_bound([1.01 * np.array(first), second]) > bound * 1.0099
    for wrong in ([], [np.ones(3)], [np.ones((2, 2)), np.ones((2, 3))], [[[np.nan]]]):
        with pytest.raises(ValueError, match="weights"):
            lipschitz_bound(wrong)


def test_lipschitz_bound_against_sampled_slopes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 6, 4)
        weights = [rng.normal(size=(b, a)) for a, b in pairwise(sizes)]
        bound, product = lipschitz_bound(weights), np.prod([np.linalg.norm(w, 2) for w in weights])
        assert bound <= product * (1 + 1e-9)
        for _ in range(50):
            masks = [np.diag(rng.integers(0, 2, n)) for n in sizes[1:-1]]
            assert np.linalg.norm(weights[2] @ masks[1] @ weights[1] @ masks[0] @ weights[0], 2) <= bound


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nfeedback": -1}, "nfeedback"),
        ({"contraction_rate": 0}, "contraction_rate"),
        ({"lipschitz": -1.0}, "lipschitz"),
        ({"activation": "sin"}, "activation must be one of"),
        ({"supply": (np.eye(2), np.zeros((2, 2)), np.eye(2))}, "Q of supply must be negative definite"),
        ({"supply": (-np.eye(2), np.zeros((2, 2)), -np.eye(2))}, "R - S Q"),
        ({"supply": (-np.eye(3), np.zeros((2, 2)), np.eye(2))}, "Q of supply must be finite with shape"),
        ({"supply": 3}, "supply must be three arrays"),
        ({"supply": (-np.eye(2), np.zeros((2, 2)), np.eye(2)), "lipschitz": 1.0}, "cannot be combined"),
        ({"identity_output": True}, "noutputs must equal nstates"),
    ],
)
def test_impossible_rens_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        est.REN(2, 3, 2, **({"nfeedback": 4} | wrong))


@pytest.mark.parametrize("sizes", [{}, {"nfeedback": 0}, {"nfeedback": 1}])
@pytest.mark.parametrize("kind", [{}, {"lipschitz": 2.0}, {"identity_output": True}])
@pytest.mark.parametrize(("ninputs", "noutputs"), [(1, 1), (3, 1), (1, 3)])
def test_smallest_rens_run_forward_and_backward(sizes, kind, ninputs, noutputs):
    nstates = noutputs if "identity_output" in kind else 1
    built = est.REN(ninputs, nstates, noutputs, **({"nfeedback": 2} | sizes | kind), dtype=torch.float64)
    y, x = built(torch.ones(1, 1, ninputs, dtype=torch.float64))
    (y.sum() + x.sum()).backward()
    for name, value in built.named_parameters():
        assert value.grad is not None and value.grad.shape == value.shape and bool(torch.isfinite(value.grad).all()), (
            name
        )


def test_linear_system_without_nonlinear_part_contracts_at_its_metric_rate():
    """Field case O15: x+ = A x in the metric of A'PA - P = -I."""
    A = np.array([[0.5, 0.4], [-0.3, 0.6]])
    P = np.array([[1.580032156541, -0.038057608101], [-0.038057608101, 1.928964833060]])
    built = est.R2DN(1, 2, 1, nfeedback=0, hidden=(), dtype=torch.float64)
    from_linear(built, A, np.zeros((2, 1)), np.zeros(2))
    explicit = built.explicit()
    np.testing.assert_allclose(explicit.A.detach().numpy(), A, atol=1e-9)
    certificate = est.certify(explicit._replace(metric=torch.from_numpy(P)))
    assert certificate.verdict == "proved"
    assert certificate.bound == pytest.approx(0.694757142136, abs=1e-6)
    assert est.certify(built).bound >= 0.648074069841


class TestCertificateOfExplicitMatrices:
    """Whatever is asked must be what is proved."""

    @pytest.mark.parametrize("kind", sorted(BOUNDED))
    def test_a_smaller_bound_than_the_model_has_is_not_proved(self, kind):
        built = seeded(BOUNDED[kind], 0, 2.0, dtype=torch.float64)
        reached = attack(built, 0, steps=400, length=30, train=True)
        assert est.certify(built.explicit()).verdict == "proved"
        assert est.certify(built.explicit()._replace(lipschitz=0.99 * reached)).verdict != "proved"

    def test_a_larger_supply_than_the_model_has_is_not_proved(self):
        Q, S, R = supply_rate(0)
        matrices = seeded(CONTRACTING["ren"], 0, supply=(Q, S, R), dtype=torch.float64).explicit()
        certificate = est.certify(matrices)
        assert certificate.verdict == "proved" and "dissipation" in str(certificate)
        less = torch.from_numpy(R - 5 * np.eye(2))
        assert est.certify(matrices._replace(supply=(*matrices.supply[:2], less))).verdict != "proved"

    @pytest.mark.parametrize(
        ("kind", "wrong", "message"),
        [
            ("ren", {"contraction_rate": 2.0}, "contraction_rate"),
            ("ren", {"lipschitz": 0.0}, "lipschitz must be positive"),
            ("ren", {"D11": torch.eye(4, dtype=torch.float64)}, "D11 must be strictly lower"),
            ("ren", {"multiplier": -torch.ones(4, dtype=torch.float64)}, "multiplier must be positive"),
            ("ren", {"lipschitz": None, "supply": 3 * (torch.eye(2, dtype=torch.float64),)}, "Q negative definite"),
            ("r2dn identity", {"C2": 2 * torch.eye(3, dtype=torch.float64)}, "identity_output is set"),
        ],
    )
    def test_matrices_that_are_not_what_the_claim_presupposes(self, kind, wrong, message):
        matrices = BOUNDED[kind](1.0, dtype=torch.float64).explicit()
        with pytest.raises(ValueError, match=message):
            est.certify(matrices._replace(**wrong))

    def test_no_proof_within_rounding_of_the_boundary(self):
        """One state, one signal: the determinant's sign in exact arithmetic, a few floats around where it changes."""
        rng, closest = np.random.default_rng(0), 0
        built = est.R2DN(1, 1, 1, nfeedback=1, hidden=(2,), dtype=torch.float64)
        for _ in range(40):
            a, b, c, p = (Fraction(float(v)) for v in rng.uniform(0.1, 1, 4))
            p = p / 2
            matrices = built.explicit()
            ell = Fraction(est.certify(matrices).evidence["network Lipschitz bound"])

            def positive(rate, a=a, b=b, c=c, p=p, ell=ell):
                inner = 1 - b * b * p
                return inner > 0 and (rate**2 * p - a * a * p - ell**2 * c * c) * inner > (a * p * b) ** 2

            low, high = 0.0, 1.0
            if not positive(Fraction(1)):
                continue
            while np.nextafter(low, 1) < high:
                middle = (low + high) / 2
                low, high = (low, middle) if positive(Fraction(middle)) else (middle, high)
            one = {name: torch.tensor([[float(v)]], dtype=torch.float64) for name, v in zip("AP", (a, p), strict=True)}
            for steps in range(1, 30):
                rate = high - steps * np.spacing(high)
                certificate = est.certify(
                    matrices._replace(
                        A=one["A"],
                        B1=torch.tensor([[float(b)]], dtype=torch.float64),
                        C1=torch.tensor([[float(c)]], dtype=torch.float64),
                        metric=one["P"],
                        contraction_rate=float(rate),
                    )
                )
                assert certificate.verdict != "proved"
                closest += 1
        assert closest > 100


class TestStreaming:
    def test_copies_are_independent_and_right(self):
        built = seeded(CONTRACTING["r2dn"], 3, dtype=torch.float64)
        step, x = built.streaming(), np.ones(3)
        right = step(x, np.ones(2))[0]
        twin = copy.deepcopy(step)
        step(x, np.zeros(2))
        np.testing.assert_array_equal(twin(x, np.ones(2))[0], right)

    def test_threads_that_share_a_step_do_not_mix(self):
        step = est.R2DN(2, 200, 3, nfeedback=50, hidden=(100, 100)).streaming()
        inputs = [np.full(2, float(k)) for k in range(40)]
        right = [step(np.zeros(200), u)[0] for u in inputs]
        with ThreadPoolExecutor(4) as pool:
            for found, wanted in zip(pool.map(lambda u: step(np.zeros(200), u)[0], inputs), right, strict=True):
                np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("kind", sorted(CONTRACTING))
    def test_other_shapes_are_refused_and_other_dtypes_taken(self, kind):
        step = CONTRACTING[kind]().streaming()
        for x, u in ((np.zeros(1), np.zeros(2)), (np.zeros(3), 1.0), (np.zeros((3, 1)), np.zeros(2))):
            with pytest.raises(ValueError, match="x and u must have shapes"):
                step(x, u)
        x = np.ones(3, np.float32)
        _, y = step(x, [1, 2])
        before = y.copy()
        x[:] = 7
        np.testing.assert_array_equal(y, before)

    def test_activations_agree_far_out(self):
        for activation in ("softplus", "elu", "sigmoid", "tanh"):
            built = est.R2DN(1, 2, 2, nfeedback=3, hidden=(4,), activation=activation, dtype=torch.float64)
            with torch.no_grad():
                built.network.layers[0].b.copy_(torch.tensor([-800.0, -21.0, 20.5, 800.0]))
            x, u = torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = built.streaming()(x.numpy(), u.numpy())[0]
            torch.testing.assert_close(torch.from_numpy(found), built.explicit().step(x, u)[0], rtol=1e-12, atol=1e-12)


def test_a_bound_belongs_to_the_design_and_not_to_the_parameters():
    one, three = (seeded(BOUNDED["ren"], 0, gamma) for gamma in (1.0, 3.0))
    one.load_state_dict(three.state_dict())
    assert est.certify(one).evidence["Lipschitz bound"] == 1.0
    assert est.certify(three.double().float()).evidence["Lipschitz bound"] == 3.0
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float64"):
            CONTRACTING["r2dn"](dtype=dtype)


def test_starts_refuse_what_they_cannot_set_and_leave_the_network_as_it_was():
    built, ren = (CONTRACTING[kind](dtype=torch.float64) for kind in ("r2dn", "ren"))
    with pytest.raises(TypeError, match="start of an R2DN, got REN"):
        from_linear(ren, np.eye(3) / 2, np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(TypeError, match="start of an R2DN, got REN"):
        from_explicit(ren, built.explicit())
    with pytest.raises(ValueError, match=r"B2 must be finite with shape \(3, 2\)"):
        from_linear(built, np.eye(3) / 2, np.zeros((3, 1)), np.zeros(3))
    explicit, before = built.explicit(), {k: v.clone() for k, v in built.state_dict().items()}
    layers = (explicit.network[0]._replace(B=3 * explicit.network[0].B), *explicit.network[1:])
    for wrong, message in (({"A": 20 * explicit.A}, "inequality does not hold"), ({"network": layers}, "sandwich")):
        with pytest.raises(ValueError, match=message):
            from_explicit(built, explicit._replace(**wrong))
        assert all(torch.equal(v, before[k]) for k, v in built.state_dict().items())


def test_lipschitz_bound_survives_the_range_of_floats():
    assert lipschitz_bound([[[1e-200]]]) == pytest.approx(1e-200, rel=1e-8)
    assert 1e50 * (1 - 1e-15) <= lipschitz_bound([[[1e-200]], [[1e250]]]) <= 1e50 * (1 + 1e-8)
    assert lipschitz_bound([np.zeros((2, 3))]) == 0
