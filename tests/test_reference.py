"""Agreement with the published implementation, file by file.

REFERENCE_DIR may name another folder of files in the same format.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import estimators as est
from tests.tolerances import REFERENCE

FOLDER = Path(os.environ.get("REFERENCE_DIR", Path(__file__).parent / "data" / "reference"))
FILES = sorted(FOLDER.glob("*.npz"))


def state_dict(stored, prefix="direct/"):
    names = [name for name in stored if name.startswith(prefix)]
    return {
        name.removeprefix(prefix).replace("layers_", "layers.").replace("/", "."): torch.from_numpy(stored[name])
        for name in names
    }


def close(found, right):
    right = np.asarray(right)
    np.testing.assert_allclose(found.detach().numpy(), right, rtol=0, atol=REFERENCE * max(np.abs(right).max(), 1e-300))


def layers(stored, prefix, explicit):
    for index, layer in enumerate(explicit):
        for name, own in (("A_T", layer.A_T), ("B", layer.B), ("psi_d", layer.psi), ("b", layer.b)):
            close(own, stored[f"{prefix}{index}/{name}"])


def sandwich_sizes(stored, prefix):
    shapes, index = [], 0
    while f"{prefix}layers_{index}/XY" in stored:
        shapes.append(stored[f"{prefix}layers_{index}/XY"].shape)
        index += 1
    return [shapes[0][0] - shapes[0][1], *(n for _, n in shapes)]


def activation_of(path):
    return "tanh" if "tanh" in path.name else "relu"


def test_there_are_reference_files():
    assert FILES, f"no .npz files in {FOLDER}"


@pytest.mark.parametrize("path", [p for p in FILES if p.name.startswith("r2dn")], ids=lambda p: p.stem)
def test_r2dn_matrices_and_rollout(path):
    stored = dict(np.load(path))
    (nx, nu), (ny, _), nv = stored["direct/B2"].shape, stored["direct/D22"].shape, len(stored["direct/C1"])
    hidden = sandwich_sizes(stored, "direct/network/")[1:-1]
    rate = float(stored.get("meta/abar", 1.0))
    network = est.R2DN(
        nu,
        nx,
        ny,
        nfeedback=nv,
        hidden=hidden,
        contraction_rate=rate,
        activation=activation_of(path),
        linear_output=False,
        dtype=torch.float64,
    )
    network.load_state_dict(state_dict(stored))
    explicit = network.explicit()
    for name in ("A", "B1", "B2", "C1", "C2", "D12", "D21", "D22", "bx", "bv", "by"):
        close(getattr(explicit, name), stored[f"explicit/{name}"])
    layers(stored, "explicit/network/", explicit.network)
    y, x_last = network(torch.from_numpy(stored["u"]).transpose(0, 1), torch.from_numpy(stored["x0"]))
    close(y.transpose(0, 1), stored["y"])
    close(x_last, stored["x_final"])


@pytest.mark.parametrize("path", [p for p in FILES if p.name.startswith("lbdn")], ids=lambda p: p.stem)
def test_lipschitz_network_matrices_and_output(path):
    stored = dict(np.load(path))
    network = est.LipschitzNetwork(
        sandwich_sizes(stored, "direct/"),
        float(stored["meta/gamma"]),
        activation=activation_of(path),
        linear_output=False,
        dtype=torch.float64,
    )
    network.load_state_dict(state_dict(stored))
    layers(stored, "explicit/", network.explicit())
    close(network(torch.from_numpy(stored["u"])), stored["y"])


@pytest.mark.parametrize("path", [p for p in FILES if p.name.startswith("ren")], ids=lambda p: p.stem)
def test_ren_matrices_and_rollout(path):
    stored = dict(np.load(path))
    (nx, nu), ny, nv = stored["direct/B2"].shape, len(stored["direct/C2"]), len(stored["direct/bv"])
    network = est.REN(
        nu,
        nx,
        ny,
        nfeedback=nv,
        contraction_rate=float(stored.get("meta/abar", 1.0)),
        lipschitz=float(stored["meta/gamma"]) if "meta/gamma" in stored else None,
        published=True,
        activation="tanh",
        dtype=torch.float64,
    )
    # the files hold what either kind of REN needs; supply rates are no parameters
    own, given = network.state_dict(), state_dict(stored)
    network.load_state_dict({name: given.get(name, own[name]) for name in own})
    explicit = network.explicit()
    for name in ("A", "B1", "B2", "C1", "C2", "D11", "D12", "D21", "D22", "bx", "bv", "by"):
        close(getattr(explicit, name), stored[f"explicit/{name}"])
    y, x_last = network(torch.from_numpy(stored["u"]).transpose(0, 1), torch.from_numpy(stored["x0"]))
    close(y.transpose(0, 1), stored["y"])
    close(x_last, stored["x_final"])


def test_every_file_is_covered():
    assert [p.name for p in FILES if not p.name.startswith(("r2dn", "lbdn", "ren"))] == []
