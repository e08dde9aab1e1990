"""Observer of a reaction-diffusion PDE: R2DN and REN as published, ours, EKF and UKF, with and without noise.

    python -m tutorials.studies.reaction_diffusion [--case corrected] [--reduced] [--out results/reaction_diffusion]

51 states, of which the boundary value and the middle are known. 100 000 samples of one run train the networks on
one-step errors (settings: mathematics.md, 11); tests start at xi = 1 with every estimator at 0. Cases: `published` (the
published code's data, 4 inner steps a sample), `corrected` (5), `noisy` (5, noise on states and sensor). Writes
results.nc, checkpoints, and figures to the folder of each case; a run that was cut off goes on from there.
"""

import math
import time

import numpy as np
import torch
import xarray as xr

import estimators as est
import plants
from estimators.files import load_safetensors, save_safetensors
from estimators.networks import long_memory

from .training import plateau, train

CASES = ("published", "corrected", "noisy")
FULL = {"steps": 100_000, "epochs": 200, "tests": 20, "test_steps": 2000, "updates": 3000}
REDUCED = {"steps": 10_000, "epochs": 20, "tests": 4, "test_steps": 1000, "updates": 300}
BATCH = 500
DRIFT = 1e-4
"""What filters are told of the noise-free cases, standard deviation of process and sensor: without any they would
stop listening to the sensor."""


def setting(case: str):
    """Plant of a case, and the noise of its data."""
    if case not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}, got {case!r}")
    ready = plants.scenario("reaction_diffusion")
    model = plants.discretize(
        plants.reaction_diffusion(updates=4 if case == "published" else 5), operating_region=ready.operating_region
    )
    return model, ready.noise if case == "noisy" else None


def record(model, trajectories: int, steps: int, start: float, boundary: float, noise, seed: int) -> xr.Dataset:
    """Simulate from a constant state, the boundary value a random walk of step 0.05 N(0, 1) clipped to [0, 1]."""
    rng = np.random.default_rng(seed)
    u = np.empty((steps, 1, trajectories))
    u[0] = boundary
    for k, w in enumerate(0.05 * rng.standard_normal((steps - 1, 1, trajectories))):
        u[k + 1] = np.clip(u[k] + w, 0, 1)
    x = np.empty((steps, model.nstates, trajectories))
    x[0] = start
    update = model.system.updfcn
    for k in range(steps - 1):
        x[k + 1] = update(0.0, x[k], u[k], {})
        if noise is not None:
            x[k + 1] += np.sqrt(np.diag(noise.process_cov))[:, None] * rng.standard_normal(x[k].shape)
    y = x[:, model.nstates // 2][:, None]
    if noise is not None:
        y = y + math.sqrt(noise.measurement_cov[0, 0]) * rng.standard_normal(y.shape)
    x, u, y = (a.transpose(2, 0, 1) for a in (x, u, y))
    told = noise or plants.GaussianNoise(np.full(model.nstates, DRIFT**2), [DRIFT**2])
    return plants.from_arrays(model, y=y, u=u, x=x, noise=told)


def from_zero(data: xr.Dataset) -> xr.Dataset:
    """Tell estimators that the start is about 0, with the second moment of the states."""
    x = data["x"].values.reshape(-1, data.sizes["state"])
    moment = x.T @ x / len(x) + 1e-6 * np.eye(x.shape[1])
    return data.assign(initial_mean=("state", np.zeros(x.shape[1])), initial_cov=(("state", "state_"), moment))


def make_network(kind: str, seed: int, device: str = "cpu"):
    """R2DN or REN of the published sizes, start and activations."""
    common = {"identity_output": True, "activation": "relu", "generator": torch.Generator().manual_seed(seed)}
    if kind == "R2DN":
        network = est.R2DN(2, 51, 51, nfeedback=50, hidden=(96,) * 4, linear_output=False, **common)
    else:
        network = est.REN(2, 51, 51, nfeedback=200, **common)
    long_memory(network, torch.Generator().manual_seed(seed + 1))
    return network.to(device)


def one_step_losses(network, data: xr.Dataset, seed: int, device: str):
    """Batches of 500 consecutive samples in the same shuffled order every epoch, as published."""
    x, u, y = (a[0].float().to(device) for a in plants.to_tensors(data))
    now, after, v = x[:-1], x[1:], torch.cat([u, y], -1)[:-1, None]
    pieces = np.random.default_rng(seed).permutation(len(now) // BATCH)

    def losses(epoch):
        for k in pieces:
            part = slice(k * BATCH, (k + 1) * BATCH)
            _, found = network(v[part], now[part])
            yield (found - after[part]).square().sum(-1).mean()

    return losses


def one_step_error(observer, data: xr.Dataset) -> float:
    """Mean |x+ - f(x, u, y)|^2 over data, the published loss, of any observer."""
    x, u, y = (a[:, :, :] for a in plants.to_tensors(data))
    state = observer.init(x[:, :-1].flatten(0, 1))
    if isinstance(observer, est.R2DNObserver):
        state = state._replace(startup=0.0)
    state, _ = observer.step(state, u[:, :-1].flatten(0, 1), y[:, :-1].flatten(0, 1))
    _, estimate = observer.step(state, u[:, 1:].flatten(0, 1), y[:, 1:].flatten(0, 1))
    return float((estimate.predicted - x[:, 1:].flatten(0, 1)).square().sum(-1).mean())


def nrmse(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error over the mean square, all states and times together."""
    return float(np.sqrt(np.mean(np.square(estimate - truth)) / np.mean(np.square(truth))))


def train_published(kind, model, data, sizes, folder, seed, device):
    """Train a network as published; returns an observer and the history."""
    network = make_network(kind, seed, device)
    rate = plateau(2e-3, patience=10)
    history = train(
        network,
        one_step_losses(network, data, seed, device),
        epochs=sizes["epochs"],
        learning_rate=rate,
        checkpoint=folder / f"{kind}.checkpoint.safetensors",
        settings={"kind": kind, "seed": seed, **sizes},
        name=kind,
    )
    return est.NetworkObserver(model, network.cpu()), history


def train_ours(model, data, sizes, folder, seed):
    """R2DN observer that starts as a Kalman filter and is trained on rollouts; kept in a file once it is done."""
    path = folder / "ours.safetensors"
    seconds = folder / "ours.seconds.safetensors"
    if path.exists() and seconds.exists():
        return est.R2DNObserver.load(path, model), float(load_safetensors(seconds, "seconds")[0]["seconds"])
    pieces = from_zero(plants.cut(data, BATCH // 2))
    order = np.random.default_rng(seed).permutation(pieces.sizes["trajectory"])
    training, validation = plants.split(
        pieces.isel(trajectory=order), (len(order) - len(order) // 10, len(order) // 10)
    )
    observer = est.R2DNObserver(model, nfeedback=50, hidden=(96, 96), contraction_rate=0.999, seed=seed)
    began = time.perf_counter()
    observer.fit(training, validation, updates=sizes["updates"], seed=seed)
    spent = time.perf_counter() - began
    observer.save(path)
    save_safetensors(seconds, {"seconds": torch.tensor(spent, dtype=torch.float64)}, {"format": "seconds"})
    return observer, spent
