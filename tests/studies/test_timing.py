"""The expressivity study's target and clock."""

import numpy as np
import pytest
import torch

from tutorials.studies import timing


def test_target_contracts():
    x, u = torch.meshgrid(torch.linspace(-10, 10, 401), torch.linspace(-5, 5, 201), indexing="ij")
    x = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(timing.target(x, u.double()).sum(), x)
    assert float(slope.abs().max()) < 1


def test_larger_networks_are_timed_as_slower():
    networks = {width: timing.make_network("REN", width, 0) for width in (5, 80)}
    times = timing.race(networks, 2, "cpu")
    assert times[80][0] > times[5][0]
    assert all(np.isfinite(t) and t > 0 for pair in times.values() for t in pair)


def test_a_fit_goes_on_from_its_checkpoint(tmp_path):
    sizes = {"updates": 200}
    _, error, _ = timing.fit("R2DN", 8, 0, sizes, tmp_path, "cpu", False)
    _, again, _ = timing.fit("R2DN", 8, 0, sizes, tmp_path, "cpu", False)
    assert again == error
    with pytest.raises(ValueError, match="settings"):
        timing.fit("R2DN", 8, 0, {"updates": 300}, tmp_path, "cpu", False)
