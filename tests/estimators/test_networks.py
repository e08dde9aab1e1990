import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import estimators as est
from estimators.networks.activations import ACTIVATIONS
from estimators.networks.initialise import from_linear, long_memory
from estimators.networks.rollout import ROWS, Recursion, rollout
from tests.tolerances import ROUNDING


def network(seed=0, activation="relu", linear_output=True, **sizes):
    sizes = {"ninputs": 2, "nstates": 3, "noutputs": 2, "nfeedback": 4, "hidden": (5, 6)} | sizes
    built = est.R2DN(
        **sizes,
        activation=activation,
        linear_output=linear_output,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    with torch.no_grad():  # every parameter away from its special start
        for value in built.parameters():
            value.add_(
                0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
            )
    return built


def step_by_step(built, u, x0):
    explicit, x, outputs = built.explicit(), x0, []
    for k in range(u.shape[1]):
        x, y = explicit.step(x, u[:, k])
        outputs.append(y)
    return torch.stack(outputs, dim=1), x


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("linear_output", [True, False])
def test_rollout_equals_the_definition_in_values_and_every_gradient(activation, linear_output):
    built = network(activation=activation, linear_output=linear_output)
    rng = torch.Generator().manual_seed(5)
    u, x0 = (torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in ((4, 9, 2), (4, 3)))
    leaves = [u, x0, *built.parameters()]
    results = []
    for y, x_last in (built(u, x0), step_by_step(built, u, x0)):
        results.append((y, x_last, torch.autograd.grad(y.square().sum() + x_last.pow(3).sum(), leaves)))
    (y1, x1, g1), (y2, x2, g2) = results
    for a, b in ((y1, y2), (x1, x2), *zip(g1, g2, strict=True)):
        assert (a - b).abs().max() <= ROUNDING * max(b.abs().max(), 1e-3)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_adjoint_passes_gradcheck(activation, depth, output, checkpoint, monkeypatch):
    monkeypatch.setattr("estimators.networks.rollout.ROWS", 4)  # several chunks, the last one shorter
    rng = torch.Generator().manual_seed(depth)

    def make(*shape):
        return (0.5 * torch.randn(*shape, generator=rng, dtype=torch.float64)).requires_grad_()

    widths, matrices = (4, 5, 3)[:depth], [make(3, 6), make(2, 6) if output else None]
    matrices += [make(3, widths[-1]), make(2, widths[-1]) if output else None] if depth else [None, None]
    layers = [make(4, 6)][:depth]
    for k in range(1, depth):
        layers += [make(widths[k], widths[k - 1]), make(widths[k])]
    given = [make(2, 3), make(5, 2, 2), *matrices, *layers]
    present = [i for i, a in enumerate(given) if a is not None]
    for states in (True, False):

        def run(*tensors, states=states):
            full = [None] * len(given)
            for i, a in zip(present, tensors, strict=True):
                full[i] = a
            system = Recursion(activation, *full[2:6], tuple(full[6:]))
            x, y = rollout(system, *full[:2], states=states, checkpoint=checkpoint)
            return x, y

        assert torch.autograd.gradcheck(run, [given[i] for i in present])
        with torch.no_grad():  # the pass that keeps nothing gives the same numbers
            quick = run(*[given[i] for i in present])
        kept = run(*[given[i] for i in present])
        for a, b in zip(quick, kept, strict=True):
            assert torch.equal(a, b)


def test_second_derivatives_are_refused_and_the_definition_has_them():
    built = network()
    u = torch.ones(1, 3, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(built(u)[0].sum(), [built.X], create_graph=True)
    y, _ = step_by_step(built, u, torch.zeros(1, 3, dtype=torch.float64))
    (first,) = torch.autograd.grad(y.sum(), [built.X], create_graph=True)
    first.sum().backward()
    assert bool(torch.isfinite(built.X.grad).all())


def kept_bytes(steps, batch, checkpoint):
    """Bytes that a rollout keeps for its backward pass, weights not counted."""
    built, total = network(), []

    def keep(tensor):
        if tensor.ndim == 3 or (checkpoint and tensor.shape[:1] == (batch,)):
            total.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        collapsed = built.collapsed()
        total.clear()  # the map keeps what it keeps, whatever the horizon
        rollout(collapsed, torch.zeros(batch, 3).double(), torch.ones(steps, batch, 2).double(), checkpoint=checkpoint)
    return sum(total)


def test_memory_of_the_backward_pass_is_linear_with_the_stated_constant():
    """Each instant of a trajectory: input, z = [x, u, 1], every hidden layer; checkpointed: little beside the input."""
    batch, sample = 16, 8 * (2 + (3 + 2 + 1) + (5 + 6))
    for steps in (256, 512, 2048):
        last = 8 * batch * (3 + 2 + 1)  # z after the last step
        assert kept_bytes(steps, batch, False) == steps * batch * sample + last
        chunk = ROWS // batch
        assert kept_bytes(steps, batch, True) == steps * batch * 8 * 2 + 8 * batch * 3 * (steps // chunk)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=5), st.floats(1e-3, 1e3), st.integers(0, 10_000), st.booleans())
def test_lipschitz_network_keeps_its_bound(sizes, bound, seed, linear_output):
    built = est.LipschitzNetwork(
        sizes, bound, linear_output=linear_output, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    a, b = 5 * torch.randn(2, 50, sizes[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        gain = (built(a) - built(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert gain.max() <= bound * (1 + 1e-9)


def test_long_memory_start_remembers():
    built = est.R2DN(1, 4, 4, nfeedback=3, hidden=(5,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    long_memory(built, torch.Generator().manual_seed(1))
    A = built.explicit().A.detach().numpy()
    np.testing.assert_allclose(A, np.diag(np.diag(A)), atol=1e-5)
    assert np.diag(A).min() > 0.9  # exactly 1 - 0.05 U(0, 1), but for the half of Y - Y' and eps


def test_linear_start_is_the_given_observer():
    A = np.array([[0.9, 0.2], [-0.1, 0.7]])
    built = est.R2DN(2, 2, 2, nfeedback=3, hidden=(4,), contraction_rate=0.95, dtype=torch.float64)
    from_linear(built, A, np.array([[1.0, 2], [3, 4]]), np.array([0.5, -0.5]))
    x, u = torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    np.testing.assert_allclose(
        built.explicit().step(x, u)[0].detach().numpy()[0], A @ [1, -2] + [0.5 + 0.5, 1.3 - 0.5], rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"contracts at 0\.99"):
        from_linear(built, np.diag([0.99, 0.1]), np.zeros((2, 2)), np.zeros(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nstates": 0}, "nstates must be a positive integer"),
        ({"ninputs": 1.5}, "ninputs"),
        ({"nfeedback": -1}, "nfeedback must be an integer of at least 0"),
        ({"nfeedback": 0}, "hidden must be empty"),
        ({"hidden": (4, 0)}, r"hidden\[1\] must be a positive integer"),
        ({"lipschitz": 0.0}, "lipschitz must be positive"),
        ({"identity_output": True}, "noutputs must equal nstates = 3"),
        ({"contraction_rate": 1.1}, r"contraction_rate must be in \(0, 1\]"),
        ({"activation": "gelu"}, "activation must be one of"),
    ],
)
def test_impossible_sizes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        network(**wrong)


@pytest.mark.parametrize(
    "sizes",
    [
        {"nstates": 1},
        {"noutputs": 1},
        {"nfeedback": 1},
        {"hidden": (1,)},
        {"ninputs": 1},
        {"hidden": ()},
        {"nfeedback": 0, "hidden": ()},
    ],
)
@pytest.mark.parametrize(
    "kind", [{}, {"lipschitz": 2.0}, {"noutputs": 3, "identity_output": True}, {"linear_output": False}]
)
def test_smallest_sizes_run_forward_and_backward(sizes, kind):
    if "identity_output" in kind and sizes.keys() & {"nstates", "noutputs"}:
        kind = kind | {"noutputs": 1, "nstates": 1}
    built = network(**sizes | kind)
    y, x = built(torch.ones(1, 1, built.ninputs, dtype=torch.float64))
    (y.sum() + x.sum()).backward()
    for name, value in built.named_parameters():
        assert value.grad is not None and value.grad.shape == value.shape and bool(torch.isfinite(value.grad).all()), (
            name
        )
