"""Recorded arithmetic: the same values and derivatives as the function it was recorded from."""

import contextlib

import control as ct
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plants
from plants.program import NotRecordable, Program, Scalar, apply, derivatives, select
from plants.recording import recordable
from tests.plants.user_plants import SYSTEMS

UNARY = ["sin", "cos", "tanh", "exp", "arctan", "sinh", "arcsinh", "abs", "neg"]
BINARY = ["add", "sub", "mul", "maximum", "minimum", "hypot", "arctan2"]


def on_tensors(name, *values):
    torch_names = {"neg": "neg", "abs": "abs", "arctan": "atan", "arcsinh": "asinh", "arctan2": "atan2"}
    return getattr(torch, torch_names.get(name, name))(*values)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_values_and_derivatives_equal_autograd(data):
    """Random expressions of three numbers, against torch."""
    plan = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(UNARY), st.integers(0, 100), st.just(0)),
                st.tuples(st.sampled_from(BINARY), st.integers(0, 100), st.integers(0, 100)),
            ),
            min_size=1,
            max_size=12,
        )
    )
    # nearer to zero autograd's own sums cancel: arctan2(x, x) + x at 3e-134 has derivative 1 and is given 0
    point = [round(data.draw(st.floats(-1.5, 1.5)), 3) for _ in range(3)]

    def grow(values, use):
        for name, i, j in plan:
            chosen = values[i % len(values)], values[j % len(values)]
            # tanh keeps a tower of exponentials within range
            result = use("tanh", use(name, *(chosen if name in BINARY else chosen[:1])))
            values.append(result)
        return values[-1]

    def build(*z):
        value = grow(list(z), apply)
        return [value, *derivatives([value], z)[0]]

    program = Program(build, 3)
    x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    truth = grow(list(x), on_tensors)
    (slope,) = torch.autograd.grad(truth, x)
    expected = np.array([truth.item(), *slope.tolist()])
    found = np.array(program.on_floats(*point))
    finite = np.isfinite(expected)  # hypot and arctan2 have no derivative at the origin
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-9, atol=1e-12)
    with np.errstate(all="ignore"):
        arrays = program.on_arrays(*(np.array([v, v]) for v in point))
    for value, alone in zip(arrays, found, strict=True):
        np.testing.assert_allclose(np.broadcast_to(value, 2), alone, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_plants_in_every_style_are_recorded_or_left_to_tensors(name):
    system = SYSTEMS[name][0]
    with pytest.warns(UserWarning) if name in ("branch_on_state", "rounded_state") else contextlib.nullcontext():
        model = plants.discretize(system, 0.05 if system.dt == 0 else None)
    if name in ("branch_on_state", "rounded_state"):
        assert model.recorded is None
        return
    step, output, *_ = model.recorded
    nx, nu = model.nstates, model.ninputs
    x, u = model.operating_region.sample(20, seed=5)
    for record, original in ((step, model.step_jacobian), (output, model.output_jacobian)):

        def build(*z, record=record):
            values = record(np.array(z[:nx], dtype=object), np.array(z[nx:], dtype=object), 0.3)
            return [*values, *derivatives(values, z).ravel()]

        program = Program(build, nx + nu)
        value, A, B = original(x, u, 0.3)
        truth = torch.cat([value, torch.cat([A, B], -1).flatten(1)], 1).numpy()
        found = np.array([program.on_floats(*a, *b) for a, b in zip(x.tolist(), u.tolist(), strict=True)])
        np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-11)


def test_an_interconnection_is_recorded_block_by_block():
    plant = ct.nlsys(lambda t, x, u, p: [-p["k"] * x[0] ** 3 + u[0]], None, states=1, inputs=["u"], outputs=["y"],
                     params={"k": 2.0}, name="plant")  # fmt: skip
    lag = ct.ss([[-3.0]], [[3.0]], [[1.0]], [[0.0]], inputs=["r"], outputs=["u"], name="lag")
    model = plants.discretize(ct.interconnect([plant, lag], inputs=["r"], outputs=["y"]), 0.1)
    step = model.recorded.step
    program = Program(lambda *z: list(step(np.array(z[:2], dtype=object), np.array(z[2:], dtype=object), 0.0)), 3)
    np.testing.assert_allclose(program.on_floats(0.4, -0.2, 0.7), model.step([0.4, -0.2], [0.7]), rtol=1e-13)


def test_ties_and_kinks_have_the_derivatives_of_tensors():
    def build(x):
        values = [apply("maximum", x, 0.0), apply("abs", x), recordable(lambda x: np.clip(x, -1.0, 0.0))(x)]
        return list(derivatives(values, [x])[:, 0])

    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    truth = [
        torch.autograd.grad(f, x)[0].item()
        for f in (torch.maximum(x, torch.zeros_like(x)), x.abs(), torch.clamp(x, -1.0, 0.0))
    ]
    assert list(Program(build, 1).on_floats(0.0)) == truth


def test_what_math_refuses_comes_out_as_in_numpy():
    program = Program(lambda x: [1.0 / x, apply("exp", 800.0 * x), apply("log", x)], 1)
    np.testing.assert_array_equal(program.on_floats(0.0), [np.inf, 1.0, -np.inf])
    assert program.on_floats(1.0)[1] == np.inf
    assert np.isnan(program.on_floats(-1.0)[2])


def test_what_is_not_arithmetic_is_refused():
    for function in (
        lambda x: x if x > 0 else -x,
        lambda x: float(x) and x,
        lambda x: np.linalg.eigvals(np.array([[x, 0.0], [0.0, 1.0]])),
        lambda x: [0, 1][x],
        lambda x: np.sort(np.array([x, 1.0 - x])),
    ):
        with pytest.raises((NotRecordable, TypeError)):
            Program(lambda x, function=function: list(np.ravel(function(x))), 1)


def test_constants_are_folded_and_dead_code_is_left_out():
    program = Program(lambda x, y: [0.0 * y + x * 1.0 + (2.0 - 2.0) * x + 0.0, select(2.0 > 1.0, x, y)], 2)
    assert program.operations == 0
    assert program.on_floats(3.0, 4.0) == (3.0, 3.0)
    assert isinstance(program.outputs[0], Scalar)
