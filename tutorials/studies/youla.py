"""Learning-based feedback control: a contracting network as Youla parameter of a linear plant with bounded input.

    python -m tutorials.studies.youla [--reduced] [--seed 0] [--out results/youla]

z = T (w + u), T = 0.3 / (z^2 - 1.6 cos(0.2 pi) z + 0.64), |u| <= 5, w piecewise constant in [-10, 10]. The controller
compares z with what T says u alone would do, y~ = T u - z = -T w, and answers u = clip(Q(y~)). Since T is stable the
loop is stable for *every* contracting Q, so Q is trained by plain gradient descent on the mean of |z| + 1e-4 u^2
(settings: mathematics.md, 11). Writes results.nc, checkpoints and figures.
"""

import copy
import math

import control as ct
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

import estimators as est
from estimators.networks import long_memory
from estimators.networks.rollout import Recursion, rollout

from .training import arguments, count, finish, staircase, train, versions, with_history

LIMIT = 5.0
AMPLITUDE, HOLD = 10.0, 50
FULL = {"epochs": 80, "decay": 60, "steps": 800, "segment": 200, "batch": 64, "draws": 1000}
REDUCED = {"epochs": 8, "decay": 6, "steps": 400, "segment": 200, "batch": 64, "draws": 30}
KINDS = ("R2DN", "REN", "linear")
MODELS = {"R2DN": ("R2DN", 1), "REN": ("REN", 1), "linear": ("linear", 1), "R2DN, longer": ("R2DN", 3)}
"""Kind of network, and multiple of the published number of epochs."""
TEST_SEED = 10_000
TRAINED = ("epochs", "decay", "steps", "segment", "batch")
"""Sizes that a training depends on."""


def plant() -> ct.StateSpace:
    """T as a python-control system, sample time 1, input w + u, output z."""
    T = ct.tf([0.3], [1, -1.6 * math.cos(0.2 * math.pi), 0.64], dt=1.0)
    return ct.ss(T, name="plant")


def make_network(kind: str, seed: int, *, nfeedback: int | None = None, dtype=torch.float32, device="cpu"):
    """R2DN or REN of the published sizes, or the R2DN without its nonlinear part, 10 states each, long-memory start."""
    common = {"generator": torch.Generator().manual_seed(seed), "dtype": dtype}
    if kind == "R2DN":
        network = est.R2DN(1, 10, 1, nfeedback=100, hidden=(140,) * 4, activation="tanh", linear_output=False, **common)
    elif kind == "REN":
        network = est.REN(1, 10, 1, nfeedback=400, activation="tanh", **common)
    elif kind == "linear":
        network = est.R2DN(1, 10, 1, nfeedback=0, hidden=(), **common)
    else:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    long_memory(network, torch.Generator().manual_seed(seed + 1))
    return network.to(device)


def disturbances(batch: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Levels uniform in [-10, 10], each held for 50 samples: (batch, steps, 1)."""
    levels = rng.uniform(-AMPLITUDE, AMPLITUDE, (batch, math.ceil(steps / HOLD), 1))
    return np.repeat(levels, HOLD, axis=1)[:, :steps]


class ClosedLoop:
    """Rollouts of the loop. y~ does not depend on u, so each of T, Q and T again is one pass over a sequence.

    Parameters
    ----------
    dtype : torch.dtype
        Of the rollouts.
    device : torch.device or str
        Where they run.
    """

    def __init__(self, dtype=torch.float32, device="cpu"):
        system = plant()
        A, B, C = (torch.tensor(np.array(m), dtype=dtype, device=device) for m in (system.A, system.B, system.C))
        zero = A.new_zeros(len(A), 1)
        M, N = torch.cat([A, B, zero], 1), torch.cat([C, C.new_zeros(1, 2)], 1)
        self.T, self.order = Recursion("tanh", M, N, None, None, ()), len(A)

    def start(self, network, batch: int):
        """States of T driven by w + u, of T driven by w, and of Q: all zero."""
        new = self.T.M.new_zeros
        return new(batch, self.order), new(batch, self.order), new(batch, network.nstates)

    def __call__(self, network, w: torch.Tensor, state=None):
        """Run the loop: w (batch, time, 1) to z and u, and the state after it."""
        plant_state, model_error, q = self.start(network, len(w)) if state is None else state
        w = w.transpose(0, 1)
        model_error, tw = rollout(self.T, model_error, w)
        u, q = network(-tw.transpose(0, 1), q)
        u = u.clamp(-LIMIT, LIMIT)
        plant_state, z = rollout(self.T, plant_state, w + u.transpose(0, 1))
        return z.transpose(0, 1), u, (plant_state, model_error, q)


def cost(z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Mean of |z| + 1e-4 u^2 over time and runs."""
    return z.abs().mean() + 1e-4 * u.square().mean()


def losses(network, sizes, seed, device):
    """Fresh disturbances every epoch; states are carried from segment to segment, gradients are not."""
    loop = ClosedLoop(device=device)

    def epoch_losses(epoch):
        rng = np.random.default_rng((seed, epoch))
        w = torch.from_numpy(disturbances(sizes["batch"], sizes["steps"], rng)).float().to(device)
        state = loop.start(network, len(w))
        for part in w.split(sizes["segment"], dim=1):
            z, u, state = loop(network, part, state)
            yield cost(z, u)
            state = tuple(s.detach() for s in state)

    return epoch_losses


def test_cost(network, sizes, batch: int | None = None, device="cpu") -> float:
    """Cost on disturbances not trained on, the same for every network."""
    rng = np.random.default_rng(TEST_SEED)
    w = torch.from_numpy(disturbances(batch or sizes["batch"], sizes["steps"], rng)).float().to(device)
    with torch.no_grad():
        z, u, _ = ClosedLoop(device=device)(network, w)
        return float(cost(z, u))


def zero_cost(sizes, batch: int) -> float:
    """Cost without control, Q = 0."""
    network = make_network("linear", 0)
    with torch.no_grad():
        for name in ("C2", "D22", "by"):
            getattr(network, name).zero_()
    return test_cost(network, sizes, batch)


def control_loop(network) -> ct.InterconnectedSystem:
    """Build the same loop from python-control's parts: plant, its model, Q by ``to_control()``, and the clip.

    Parameters
    ----------
    network : R2DN or REN
        Q.

    Returns
    -------
    control.InterconnectedSystem
        Input w, outputs z and u; states of plant, model and Q.
    """
    T, Q = plant(), network.to_control(dt=1.0, name="Q")
    parts = [
        ct.ss(T, name="plant", inputs=["force"], outputs=["z"]),
        ct.ss(T, name="model", inputs=["u"], outputs=["expected"]),
        ct.summing_junction(["w", "u"], "force", name="sum"),
        ct.summing_junction(["expected", "-z"], "Q_in", name="difference"),
        ct.nlsys(Q.updfcn, Q.outfcn, states=Q.nstates, inputs=["Q_in"], outputs=["Q_out"], dt=1.0, name="youla"),
        ct.nlsys(
            None,
            lambda t, x, v, params: np.clip(v, -LIMIT, LIMIT),
            inputs=["Q_out"],
            outputs=["u"],
            dt=1.0,
            name="clip",
        ),
    ]
    return ct.interconnect(parts, inputs=["w"], outputs=["z", "u"], name="loop")


def against_control(network, steps: int = 200, seed: int = 0) -> float:
    """Largest difference in z and u, float64, between the torch rollout and python-control's simulation of the loop."""
    w = disturbances(1, steps, np.random.default_rng(seed))
    with torch.no_grad():
        z, u, _ = ClosedLoop(torch.float64)(copy.deepcopy(network).double(), torch.from_numpy(w))
    response = ct.input_output_response(control_loop(network), np.arange(steps), w[0].T)
    return float(np.abs(np.stack([z[0, :, 0].numpy(), u[0, :, 0].numpy()]) - response.outputs).max())


def random_draw(seed: int, kind: str = "R2DN"):
    """Draw every parameter of a network at random, each at a scale that is drawn too, from 0.01 to 100; float64."""
    rng = torch.Generator().manual_seed(seed)
    network = make_network(kind, seed, dtype=torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 10 ** (4 * torch.rand(1, generator=rng, dtype=torch.float64) - 2)
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return network


def stability(network, steps: int, seed: int) -> tuple[float, float]:
    """Run the loop twice under one disturbance, from different states of plant and Q, the model of T at the same.

    Then Q sees the same y~ in both, and whether it forgets its start decides over the loop: T is stable.

    Returns
    -------
    growth : float
        Largest ratio, over time, of the distance of Q's states, in its metric, to what it was at the start: below 1
        for a contracting Q. Infinite if anything was not finite.
    largest_z : float
        Largest |z| of both runs.
    """
    rng, loop = np.random.default_rng(seed), ClosedLoop(torch.float64)
    w = torch.from_numpy(disturbances(1, steps, rng)).expand(2, -1, -1).transpose(0, 1)
    with torch.no_grad():
        plant_state, model_error, q = (
            torch.cat([s, torch.from_numpy(rng.standard_normal(s.shape))]) for s in loop.start(network, 1)
        )
        matrices = network.explicit()
        _, tw = rollout(loop.T, model_error[:1].expand(2, -1), w)  # the same y~ in both: Q alone is compared
        q, answer = matrices.rollout(q, -tw)
        u = answer.clamp(-LIMIT, LIMIT)
        _, z = rollout(loop.T, plant_state, w + u)
        difference = q[:, 1] - q[:, 0]
        distance = ((difference @ matrices.metric) * difference).sum(1).clamp_min(0).sqrt()
        if not all(bool(torch.isfinite(a).all()) for a in (z, answer, q)):
            return math.inf, math.inf
        return float(distance[1:].max() / distance[0]), float(z.abs().max())


def steps_of_rising_height() -> np.ndarray:
    """Disturbance of the published figures: pulses of 0 to 8, 50 samples on, 50 off; (1, 700, 1)."""
    heights = np.linspace(0, 8, 7)
    return np.repeat(np.stack([heights, 0 * heights], 1).reshape(-1), HOLD)[None, :, None]


def study(folder, *, reduced: bool = False, seed: int = 0, device: str = "cpu", progress: bool = True) -> xr.Dataset:
    """Train R2DN, REN and the linear parameter alike, compare, and check stability and python-control's loop.

    Parameters
    ----------
    folder : pathlib.Path
        For checkpoints; training goes on from those it finds.
    reduced : bool
        Minutes instead of the full study.
    seed : int
        Of starts and disturbances.
    device : str
        Where networks are trained.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        ``test_cost`` (model), training curves (model, epoch), the published pulses with z and u of every model, without
        control too, ``control_difference`` (model) and ``growth``, ``largest_z`` (draw).
    """
    sizes = REDUCED if reduced else FULL
    folder.mkdir(parents=True, exist_ok=True)
    histories, networks = {}, {}
    for name, (kind, times) in MODELS.items():
        network = make_network(kind, seed, device=device)
        histories[name] = train(
            network,
            losses(network, sizes, seed, device),
            epochs=times * sizes["epochs"],
            learning_rate=staircase(5e-3, times * sizes["decay"]),
            clip=10.0,
            score=lambda network=network: test_cost(network, sizes, device=device),
            checkpoint=folder / f"{name}.checkpoint.safetensors",
            settings={
                "model": name,
                "seed": seed,
                **{k: sizes[k] * (times if k in ("epochs", "decay") else 1) for k in TRAINED},
            },
            name=name,
            progress=progress,
        )
        networks[name] = network.cpu()
    many = 8 * sizes["batch"]
    final = [test_cost(networks[k], sizes, many) for k in MODELS]
    w, loop = torch.from_numpy(steps_of_rising_height()), ClosedLoop(torch.float64)
    with torch.no_grad():
        runs = [loop(copy.deepcopy(networks[k]).double(), w)[:2] for k in MODELS]
    draws = [
        stability(random_draw(k), 1000, k)
        for k in tqdm(range(sizes["draws"]), desc="random parameters", disable=not progress)
    ]
    variables = {
        "test_cost": ("model", final),
        "parameters": ("model", [count(networks[k]) for k in MODELS]),
        "control_difference": ("model", [against_control(networks[k]) for k in MODELS]),
        "w": ("time", w[0, :, 0].numpy()),
        "z": (("model", "time"), np.stack([z[0, :, 0].numpy() for z, _ in runs])),
        "u": (("model", "time"), np.stack([u[0, :, 0].numpy() for _, u in runs])),
        "z_without_control": (
            "time",
            rollout(loop.T, loop.start(networks["R2DN"], 1)[0], w.transpose(0, 1))[1][:, 0, 0],
        ),
        "growth": ("draw", [g for g, _ in draws]),
        "largest_z": ("draw", [z for _, z in draws]),
    }
    return xr.Dataset(
        with_history(variables, histories),
        {"model": list(MODELS)},
        {"cost_without_control": zero_cost(sizes, many), "seed": seed, **versions(device)},
    )


def report(found: xr.Dataset) -> str:
    """Say in words and numbers what a study found."""
    cost_of = found["test_cost"].to_series()
    seconds = found["training_seconds"].max("epoch").to_series()
    lines = [
        f"test cost, 512 disturbances: without control {found.attrs['cost_without_control']:.4f}",
        *(
            f"  {k:13s}{cost_of[k]:8.4f}  parameters {int(found['parameters'].sel(model=k)):6d}  training "
            f"{seconds[k]:7.1f} s  torch against python-control {float(found['control_difference'].sel(model=k)):.1e}"
            for k in MODELS
        ),
        *(
            f"{k} / REN: cost {cost_of[k] / cost_of['REN']:.4f}, training time 1 / {seconds['REN'] / seconds[k]:.1f}"
            for k in ("R2DN", "R2DN, longer")
        ),
        f"{found.sizes['draw']} R2DN of random parameters, 1000 steps: {int((~(found['growth'] < 1)).sum())} "
        f"unstable, distances of Q's states fell to {float(found['growth'].max()):.6f} or less, "
        f"largest |z| {float(found['largest_z'].max()):.1f}",
    ]
    return "\n".join(lines)


def plot(found: xr.Dataset):
    """Pulses, responses, control, and learning curves against training time."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(8, 8), constrained_layout=True)
    axes[0].plot(found["time"], found["w"], "k:", lw=1, label="disturbance w")
    axes[0].plot(found["time"], found["z_without_control"], color="0.6", label="without control")
    for kind in MODELS:
        axes[0].plot(found["time"], found["z"].sel(model=kind), label=kind)
        axes[1].plot(found["time"], found["u"].sel(model=kind), label=kind)
        curve = found.sel(model=kind)
        axes[2].plot(curve["training_seconds"], curve["training_test"], label=kind)
    for level in (-LIMIT, LIMIT):
        axes[1].axhline(level, color="k", ls="--", lw=0.8)
    axes[0].set(ylabel="output z", xlabel="sample")
    axes[1].set(ylabel="control u, |u| <= 5", xlabel="sample")
    axes[2].set(ylabel="test cost", xlabel="training time [s]", xscale="log", yscale="log")
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


def main(arguments_=None):
    """Run the study from the command line."""
    options = arguments(__doc__, "youla").parse_args(arguments_)
    found = study(options.out, reduced=options.reduced, seed=options.seed, device=options.device)
    finish(found, options.out, report(found), {"youla": plot(found)})


if __name__ == "__main__":
    main()
