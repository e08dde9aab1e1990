"""The Youla loop: stable for every parameter, the same in torch and in python-control."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from tutorials.studies import youla

A = [1, -1.6 * np.cos(0.2 * np.pi), 0.64]


@pytest.mark.parametrize("kind", youla.KINDS)
def test_rollout_equals_the_interconnected_python_control_system(kind):
    network = youla.random_draw(3, kind) if kind == "R2DN" else youla.make_network(kind, 3)
    assert youla.against_control(network, steps=60) < 1e-9  # both in float64, from the same parameters


def test_loop_is_what_its_formulas_say():
    rng, network = np.random.default_rng(0), youla.random_draw(5)
    w = youla.disturbances(3, 120, rng)
    with torch.no_grad():
        z, u, _ = youla.ClosedLoop(torch.float64)(network, torch.from_numpy(w))
    answer = network(torch.from_numpy(-lfilter([0, 0, 0.3], A, w, axis=1)))[0].detach().numpy().clip(-5, 5)
    np.testing.assert_allclose(u.numpy(), answer, atol=1e-9)
    np.testing.assert_allclose(z.numpy(), lfilter([0, 0, 0.3], A, w + answer, axis=1), atol=1e-9)


def test_segments_with_carried_states_are_one_run():
    network, loop = youla.random_draw(7), youla.ClosedLoop(torch.float64)
    w = torch.from_numpy(youla.disturbances(2, 90, np.random.default_rng(1)))
    with torch.no_grad():
        whole, _, _ = loop(network, w)
        first, _, state = loop(network, w[:, :40])
        second, _, _ = loop(network, w[:, 40:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["R2DN", "REN", "linear"]))
def test_loop_is_stable_for_every_parameter(seed, kind):
    growth, largest = youla.stability(youla.random_draw(seed, kind), 60 if kind == "REN" else 300, seed)
    assert growth <= 1 + 1e-9
    # |T| in the peak-to-peak sense times the largest w + u, and the start of a unit normal state that fades
    gain = np.abs(lfilter([0, 0, 0.3], A, np.eye(1, 500)[0])).sum()
    assert largest <= gain * 15 + 20


@pytest.mark.slow
def test_no_unstable_loop_in_draws_of_a_thousand_steps():
    """The full study makes a thousand draws."""
    found = np.array([youla.stability(youla.random_draw(k), 1000, k) for k in range(150)])
    assert (found[:, 0] < 1).all()
    assert np.isfinite(found).all()


def test_unstable_parameter_would_be_noticed():
    class Expanding:
        nstates, metric = 10, torch.eye(10, dtype=torch.float64)

        def explicit(self):
            return self

        def rollout(self, x0, u):
            growing = 1.1 ** torch.arange(len(u) + 1, dtype=torch.float64)
            return growing[:, None, None] * x0, u

    assert youla.stability(Expanding(), 100, 0)[0] > 1


def test_cost_without_control_is_that_of_the_plant_alone():
    sizes = {"steps": 200, "batch": 16}
    w = youla.disturbances(16, 200, np.random.default_rng(youla.TEST_SEED))
    assert youla.zero_cost(sizes, 16) == pytest.approx(np.abs(lfilter([0, 0, 0.3], A, w, axis=1)).mean(), rel=1e-5)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="R2DN, REN, linear"):
        youla.make_network("GRU", 0)
