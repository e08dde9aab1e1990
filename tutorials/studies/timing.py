"""Error of a fit against time per step, over sizes: R2DN and REN, forward and with gradient.

    python -m tutorials.studies.timing [--device cpu] [--reduced] [--out results/timing]

Fit: x+ = f(x, u) of mathematics.md, 11, by one scalar state, on points drawn anew for every update, the same for every
model. Time: a rollout of batch 64 and horizon 128, and the gradient of mean(x_T^2) + mean(y^2); mapping of the
parameters included; fastest of several rounds in which all models take turns. Writes results.nc and a figure; a run
that was cut off goes on from its checkpoints.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import estimators as est

from .training import arguments, cosine, count, finish, train, versions, with_history

SIZES = {"R2DN": (8, 16, 32, 64, 96, 128), "REN": (20, 40, 80, 120, 160, 200)}
FULL = {"updates": 1000, "rounds": 9, "seeds": 1}
REDUCED = {"updates": 300, "rounds": 3, "seeds": 1}
BATCH, HORIZON, POINTS, PER_EPOCH = 64, 128, 512, 100


def target(x, u):
    """Map to be fitted, scalar, slope in x below 1."""
    s = x + u
    waves = 0.05 * torch.cos(2 * s) + 0.05 * torch.sin(3 * s)
    return 0.2 * torch.sin(x) + waves + 0.075 * torch.sin(4 * s) * torch.atan(0.1 * s * s) + 0.05 * x + u


def points(rng: np.random.Generator, size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """States within 10 and inputs within 5, uniform, (size, 1) each."""
    x, u = (rng.uniform(-r, r, (size, 1)).astype(np.float32) for r in (10, 5))
    return torch.from_numpy(x).to(device), torch.from_numpy(u).to(device)


def make_network(kind: str, width: int, seed: int, device="cpu"):
    """R2DN with four hidden layers of a width and 16 feedback signals, or REN with so many; random start."""
    common = {"identity_output": True, "generator": torch.Generator().manual_seed(seed)}
    if kind == "R2DN":
        network = est.R2DN(1, 1, 1, nfeedback=16, hidden=(width,) * 4, activation="relu", **common)
    else:
        network = est.REN(1, 1, 1, nfeedback=width, activation="tanh", **common)
    return network.to(device)


def fit(kind, width, seed, sizes, folder: Path, device, progress):
    """Train on one-step errors; returns the network and its error, relative to the target's root mean square."""
    network, epochs = make_network(kind, width, seed, device), sizes["updates"] // PER_EPOCH

    def losses(epoch):
        rng = np.random.default_rng((seed, epoch))
        for _ in range(PER_EPOCH):
            x, u = points(rng, POINTS, device)
            _, found = network(u[:, None], x)
            yield (found - target(x, u)).square().mean()

    history = train(
        network,
        losses,
        epochs=epochs,
        learning_rate=cosine(3e-3, epochs),
        clip=10.0,
        checkpoint=folder / f"{kind}-{width}-{seed}.checkpoint.safetensors",
        settings={"kind": kind, "width": width, "seed": seed, "updates": sizes["updates"]},
        name=f"{kind} {width}, seed {seed}",
        progress=progress,
    )
    x, u = points(np.random.default_rng(10_000), 8192, device)
    with torch.no_grad():
        right, (_, found) = target(x, u), network(u[:, None], x)
        return network, float(((found - right).square().mean() / right.square().mean()).sqrt()), history


def race(networks: dict, rounds: int, device) -> dict:
    """Fastest seconds (forward, with gradient) of every network over interleaved rounds in random order."""
    u = torch.randn(BATCH, HORIZON, 1, generator=torch.Generator().manual_seed(0)).to(device)

    def wait():
        if u.is_cuda:
            torch.cuda.synchronize()

    def forward(network):
        with torch.no_grad():
            network(u)

    def both(network):
        y, x = network(u)
        (x.square().mean() + y.square().mean()).backward()

    jobs = [(key, k) for key in networks for k in (0, 1)]
    best, rng = dict.fromkeys(jobs, np.inf), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(jobs)
        for key, k in jobs:
            job = (forward, both)[k]
            job(networks[key])
            wait()
            began = time.perf_counter()
            job(networks[key])
            wait()
            best[key, k] = min(best[key, k], time.perf_counter() - began)
    return {key: (best[key, 0], best[key, 1]) for key in networks}


def study(folder: Path, *, reduced: bool = False, seed: int = 0, device="cpu", progress: bool = True) -> xr.Dataset:
    """Fit and time all sizes.

    Parameters
    ----------
    folder : pathlib.Path
        For checkpoints; a fit goes on from those it finds.
    reduced : bool
        Minutes instead of the full study: fewer updates, one seed, every other size.
    seed : int
        The first of the seeds.
    device : str
        Where networks are trained and timed.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        ``error`` (network, seed), ``forward`` and ``both`` in seconds, ``parameters`` and ``width`` (network);
        learning curves (model, epoch).
    """
    sizes = REDUCED if reduced else FULL
    folder.mkdir(parents=True, exist_ok=True)
    found, networks, histories = {}, {}, {}
    for kind, widths in SIZES.items():
        for width in widths[::2] if reduced else widths:
            key = f"{kind} {width}"
            found[key] = []
            for k in range(sizes["seeds"]):
                networks[key], error, histories[f"{key}, seed {seed + k}"] = fit(
                    kind, width, seed + k, sizes, folder, device, progress
                )
                found[key].append(error)
    times = race(networks, sizes["rounds"], device)
    variables = {
        "error": (("network", "seed"), list(found.values())),
        "forward": ("network", [times[k][0] for k in found]),
        "both": ("network", [times[k][1] for k in found]),
        "parameters": ("network", [count(networks[k]) for k in found]),
        "width": ("network", [int(k.split()[1]) for k in found]),
    }
    return xr.Dataset(
        with_history(variables, histories),
        {"network": list(found), "seed": list(range(seed, seed + sizes["seeds"])), "model": list(histories)},
        {**versions(device), "batch": BATCH, "horizon": HORIZON},
    )


def kinds(found: xr.Dataset) -> dict[str, xr.Dataset]:
    """Split by kind of network."""
    return {kind: found.sel(network=[k for k in found["network"].values if k.startswith(kind)]) for kind in SIZES}


def time_to(one: xr.Dataset, what: str, error: float) -> float:
    """Seconds of the fastest network of a kind whose mean error is at most this; infinite if none is."""
    good = one["error"].mean("seed") <= error
    return float(one[what].where(good).fillna(np.inf).min())


def report(found: xr.Dataset) -> str:
    """Say in words and numbers what a study found."""
    attrs = found.attrs
    lines = [
        f"batch {attrs['batch']}, horizon {attrs['horizon']}, {attrs['device']}, {attrs['threads']} threads; error: "
        "NRMSE of the fit, mean (smallest to largest) over seeds",
        f"  {'':10s}{'parameters':>12s}{'error':>26s}{'forward [ms]':>14s}{'with gradient [ms]':>20s}",
    ]
    for name in found["network"].values:
        one = found.sel(network=name)
        errors = one["error"].values
        lines.append(
            f"  {name:10s}{int(one['parameters']):12d}{errors.mean():10.4f} ({errors.min():.4f}-{errors.max():.4f})"
            f"{1e3 * float(one['forward']):14.2f}{1e3 * float(one['both']):20.2f}"
        )
    parts = kinds(found)
    # levels that both kinds reach
    level = max(float(p["error"].mean("seed").min()) for p in parts.values())
    for what in ("forward", "both"):
        fast, slow = (time_to(parts[k], what, level * 1.001) for k in SIZES)
        lines.append(f"to an error of {level:.4f}, which both reach: {what} REN / R2DN {slow / fast:.1f}")
    return "\n".join(lines)


def plot(found: xr.Dataset):
    """Draw error against time per call, forward and with gradient."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, constrained_layout=True)
    for axis, what, title in zip(axes, ("forward", "both"), ("forward", "with gradient"), strict=True):
        for kind, one in kinds(found).items():
            mean, low, high = (getattr(one["error"], f)("seed").values for f in ("mean", "min", "max"))
            axis.errorbar(1e3 * one[what], mean, [mean - low, high - mean], marker="o", capsize=2, label=kind)
        axis.set(xscale="log", yscale="log", xlabel="time of a rollout [ms]", title=title)
        axis.grid(which="both", alpha=0.3)
    axes[0].set_ylabel("NRMSE of the fit")
    axes[0].legend()
    return figure


def main(arguments_=None):
    """Run the study from the command line."""
    options = arguments(__doc__, "timing").parse_args(arguments_)
    found = study(options.out, reduced=options.reduced, seed=options.seed, device=options.device)
    finish(found, options.out, report(found), {"error_against_time": plot(found)})


if __name__ == "__main__":
    main()
