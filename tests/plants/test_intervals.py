"""Enclosures of recorded plants: never a value outside, never a jump hidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plants
from plants.intervals import NotEnclosable, enclose
from plants.program import Program
from plants.recording import recordable

UNARY = {
    name: getattr(np, name)
    for name in [
        "sin",
        "cos",
        "tan",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "arcsinh",
    ]
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "hypot": np.hypot,
    "power": np.power,
}


def program(function, count):
    recorded = recordable(function)
    return Program(lambda *z: list(np.atleast_1d(recorded(*z))), count)


def assert_encloses(made, lower, upper, rng, draws=50):
    low, high = enclose(made, lower, upper)
    for _ in range(draws):
        point = rng.uniform(lower, upper)
        with np.errstate(all="ignore"):
            value = np.array([np.broadcast_to(v, low.shape[1:]) for v in made.on_arrays(*point)])
        known = np.isfinite(value)
        assert ((value >= low) & (value <= high))[known].all()
        assert not (np.isfinite(low) & np.isfinite(high))[~known].any()  # nothing undefined has a bound
    return low, high


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(UNARY)), st.floats(-20, 20), st.floats(1e-12, 10), st.integers(0, 2**32 - 1))
def test_functions_of_one_variable(name, lower, width, seed):
    function = UNARY[name]
    made = program(lambda x: function(x), 1)
    assert_encloses(made, np.array([[lower]]), np.array([[lower + width]]), np.random.default_rng(seed))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(BINARY)),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    st.floats(1e-12, 4),
    st.integers(0, 2**32 - 1),
)
def test_functions_of_two_variables(name, lower, width, seed):
    function = BINARY[name]
    made, lower = program(lambda x, y: function(x, y), 2), np.array(lower)[:, None]
    assert_encloses(made, lower, lower + width, np.random.default_rng(seed))


@pytest.mark.parametrize("exponent", [2, 3, 5, 6, -1, -2, 0.5, 1.5])
def test_powers(exponent):
    rng = np.random.default_rng(0)
    made = program(lambda x: x**exponent, 1)
    for lower in (-2.0, 0.3, 4.0):
        assert_encloses(made, np.array([[lower]]), np.array([[lower + 1.5]]), rng)


@pytest.mark.parametrize("name", ["pendulum", "van_der_pol", "quadruple_tank", "measured_double_pendulum"])
def test_steps_and_jacobians_of_the_catalogue_stay_within_their_enclosures(name):
    model = plants.scenario(name).model
    region, rng = model.operating_region, np.random.default_rng(1)
    lower = np.concatenate([region.state_lower, region.input_lower, [0.0]])
    upper = np.concatenate([region.state_upper, region.input_upper, [0.0]])
    centre, width = rng.uniform(lower, upper, (200, len(lower))), 10 ** rng.uniform(-4, -0.5, (200, 1))
    low, high = (np.clip(centre + sign * width * (upper - lower), lower, upper).T for sign in (-1.0, 1.0))
    for made in (model.recorded.step_program, model.recorded.output_program):
        below, _ = assert_encloses(made, low, high, rng, draws=20)
        assert np.isfinite(below).mean() > 0.5
        # as the boxes shrink the enclosures do too, in proportion
        thin = enclose(made, centre.T, centre.T + 1e-9)
        assert np.median(np.nan_to_num(thin[1] - thin[0], posinf=1.0)) < 1e-6


def test_a_narrow_box_far_out_contains_the_extremum_of_a_wave():
    made = program(lambda x: np.cos(x), 1)
    for turns in (0, 3, 1000):
        place = 2 * np.pi * turns
        _, high = enclose(made, [np.array([place - 1e-9])], [np.array([place + 1e-9])])
        assert high[0] >= 1.0


def test_a_jump_has_no_enclosure_and_a_kink_has_one():
    relay = program(lambda x: np.where(x > 0, 1.0, -1.0) * x + np.where(x > 0, 1.0, 0.0), 1)
    low, high = enclose(relay, [np.array([-1.0])], [np.array([1.0])])
    assert np.isinf(low).all() and np.isinf(high).all()
    low, high = enclose(relay, [np.array([0.5])], [np.array([1.0])])  # decided: no jump inside
    assert low[0] <= 1.5 and high[0] >= 2.0 and np.isfinite(high).all()
    saturation = program(lambda x: np.clip(x, -0.5, 0.5), 1)
    low, high = enclose(saturation, [np.array([-1.0])], [np.array([1.0])])
    assert low[0] <= -0.5 and high[0] >= 0.5 and np.isfinite(low).all()
    for step in (np.sign, np.floor, np.ceil):
        low, _ = enclose(program(lambda x, step=step: step(x), 1), [np.array([-0.5])], [np.array([0.5])])
        assert np.isinf(low).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda s: 0.5 * np.where(s < 3, s, np.maximum(s, 4)),  # looks like a clip, and is none
        lambda s: 0.5 * np.tanh(0.3 * np.where(s < 3, s, s + 4)),  # tanh makes any enclosure finite
        lambda s: 0.5 * s + 0.4 * np.maximum(np.minimum(np.sign(s - 2.5), 1), -1),
        lambda s: np.arctan(1 / (s - 3)),
        lambda s: np.tanh(np.log(s - 3)),
    ],
)
def test_a_jump_is_not_hidden_by_what_follows_it(function):
    low, high = enclose(program(function, 1), [np.array([2.0])], [np.array([3.5])])
    assert np.isinf(low).all() and np.isinf(high).all()


def test_a_branch_not_taken_does_no_harm():
    made = program(lambda s: np.where(s > 1, 1 / np.where(s > 1, s, 1.0), 2.0), 1)
    low, high = enclose(made, [np.array([2.0])], [np.array([4.0])])
    assert low[0] <= 0.25 and high[0] >= 0.5 and high[0] < 0.6


def test_what_has_no_enclosure_says_so():
    made = program(lambda x, y: np.arctan2(x, y), 2)
    with pytest.raises(NotEnclosable, match="arctan2"):
        enclose(made, [0.0, 0.0], [1.0, 1.0])
