"""Observer of a reaction-diffusion PDE: R2DN and REN as published, ours, EKF and UKF, with and without noise.

    python -m tutorials.studies.reaction_diffusion [--case corrected] [--reduced] [--out results/reaction_diffusion]

51 states, of which the boundary value and the middle are known. 100 000 samples of one run train the networks on
one-step errors (settings: mathematics.md, 11); tests start at xi = 1 with every estimator at 0. Cases: `published` (the
published code's data, 4 inner steps a sample), `corrected` (5), `noisy` (5, noise on states and sensor). Writes
results.nc, checkpoints, and figures to the folder of each case; a run that was cut off goes on from there.
"""

import json
import math
import time

import numpy as np
import pandas as pd
import torch
import xarray as xr

import estimators as est
import plants
from estimators.networks import long_memory

from .training import arguments, count, finish, plateau, train, versions, with_history

CASES = ("published", "corrected", "noisy")
PUBLISHED = ("R2DN", "REN")
FULL = {"steps": 100_000, "epochs": 200, "tests": 20, "test_steps": 2000, "updates": 3200, "calibration": 400}
REDUCED = {"steps": 20_000, "epochs": 10, "tests": 2, "test_steps": 500, "updates": 200}
NOISY_SHARE = 0.3
"""Of the published epochs where there is noise, to save time."""
BATCH = 500
PIECE, HORIZON = 500, 250
"""Samples of a trajectory that ours is trained on, and of a window."""
TEST_SEED = 10_000
DESIGN = plants.scenario("reaction_diffusion").noise
"""Noise that ours is designed for where there is none."""
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
    return plants.from_arrays(model, y=y, u=u, x=x, noise=told_noise(model, noise))


def told_noise(model, noise) -> plants.GaussianNoise:
    """Noise that filters are told of: the data's, or a little where there is none."""
    return noise or plants.GaussianNoise(np.full(model.nstates, DRIFT**2), [DRIFT**2])


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


def nrmse(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root of mean squared error over mean square, of (..., time, state): one number a trajectory."""
    return np.sqrt(np.square(estimate - truth).mean(axis=(-2, -1)) / np.square(truth).mean(axis=(-2, -1)))


def train_published(kind, case, model, data, sizes, folder, seed, device, progress):
    """Train a network as published; returns an observer and the history."""
    network = make_network(kind, seed, device)
    rate = plateau(2e-3, patience=10)
    history = train(
        network,
        one_step_losses(network, data, seed, device),
        epochs=sizes["epochs"],
        learning_rate=rate,
        checkpoint=folder / f"{kind}.checkpoint.safetensors",
        settings={"kind": kind, "seed": seed, "case": case, "steps": sizes["steps"], "epochs": sizes["epochs"]},
        name=kind,
        progress=progress,
    )
    return est.NetworkObserver(model, network.cpu()), history


def ours(model, data, seed):
    """R2DN observer of ours before training, and the pieces of the record it is trained on and checked with."""
    pieces = from_zero(plants.cut(data, PIECE))
    # for noise-free data too: without any noise the design would be a dead-beat one
    pieces = pieces.assign(
        process_cov=(pieces["process_cov"].dims, DESIGN.process_cov),
        measurement_cov=(pieces["measurement_cov"].dims, DESIGN.measurement_cov),
    )
    order = np.random.default_rng(seed).permutation(pieces.sizes["trajectory"])
    kept = max(1, len(order) // 10)
    parts = plants.split(pieces.isel(trajectory=order), (len(order) - kept, kept))
    return est.R2DNObserver(model, nfeedback=50, hidden=(96, 96), contraction_rate=0.999, seed=seed), *parts


def train_ours(name, settings, model, data, folder, progress):
    """Train an R2DN observer that starts as a Kalman filter, on rollouts; kept in a file with its training time."""
    path, result, checkpoint = (folder / f"{name}.{end}" for end in ("safetensors", "json", "checkpoint.safetensors"))
    if result.exists():
        kept = json.loads(result.read_text())
        if kept["settings"] != settings:
            raise ValueError(f"{path} was trained with other settings, {kept}: delete it, or choose another folder")
        if path.exists():
            return est.R2DNObserver.load(path, model), kept["seconds"]
    result.write_text(json.dumps({"settings": settings}))
    observer, training, validation = ours(model, data, settings["seed"])
    history = observer.fit(
        training,
        validation,
        updates=settings["updates"],
        one_step_updates=0,
        horizon=HORIZON,
        seed=settings["seed"],
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=progress,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    result.write_text(json.dumps({"settings": settings, "seconds": history.wall_time}))
    observer.save(path)
    return observer, history.wall_time


def one_step_loss(observer, data: xr.Dataset) -> float:
    """Mean |x+ - f(x, u, y)|^2 over data, the published training loss, of an observer whose state is the plant's."""
    x, u, y = plants.to_tensors(data)
    state = observer.init(x[:, :-1].flatten(0, 1))
    if isinstance(observer, est.R2DNObserver):
        state = state._replace(startup=None)
    state, _ = observer.step(state, u[:, :-1].flatten(0, 1), y[:, :-1].flatten(0, 1))
    after = observer.coordinates.to_plant(state.z) if isinstance(observer, est.R2DNObserver) else state.x
    return float((after - x[:, 1:].flatten(0, 1)).square().sum(-1).mean())


def study(folder, case: str, *, reduced: bool = False, seed: int = 0, device: str = "cpu", progress: bool = True):
    """Train, filter and compare on one case.

    Parameters
    ----------
    folder : pathlib.Path
        For checkpoints; training goes on from those it finds.
    case : {'published', 'corrected', 'noisy'}
        Which data.
    reduced : bool
        Minutes instead of the full study.
    seed : int
        Of data, starts and batches.
    device : str
        Where the published networks are trained.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        ``nrmse`` and ``settled_nrmse`` (estimator, kind, trajectory), over the whole test and its second half;
        ``one_step_loss`` (the published training loss, on the tests), ``training_seconds_total``, ``step_time``,
        ``certified_rate``, ``verdict`` (estimator); learning curves (model, epoch); ``truth`` (time, state) and
        ``x_hat`` (estimator, time, state) of the first test;
        in full ``tube`` (kind, time, state), half-widths for 99 % of runs from xi = 1, its start anywhere within 1.
    """
    sizes = dict(REDUCED if reduced else FULL)
    if case == "noisy":
        sizes["epochs"] = math.ceil(NOISY_SHARE * sizes["epochs"])
    folder.mkdir(parents=True, exist_ok=True)
    model, noise = setting(case)
    data = record(model, 1, sizes["steps"] + 1, 0.0, 0.0, noise, seed)
    test = record(model, sizes["tests"], sizes["test_steps"] + 1, 1.0, 0.5, noise, seed + TEST_SEED)
    told = from_zero(data)
    test = test.assign(initial_mean=told["initial_mean"], initial_cov=told["initial_cov"])
    observers, histories, seconds, one_step = {}, {}, {}, {}
    start, training, _ = ours(model, data, seed)
    began = time.perf_counter()
    start.initialise(training)
    observers["R2DN ours, untrained"], seconds["R2DN ours, untrained"] = start, time.perf_counter() - began
    one_step["R2DN ours, untrained"] = one_step_loss(start, test)
    for name, updates in (("R2DN ours", sizes["updates"]), ("R2DN ours, short", sizes["updates"] // 8)):
        settings = {"updates": updates, "seed": seed, "case": case, "steps": sizes["steps"]}
        observers[name], seconds[name] = train_ours(name, settings, model, data, folder, progress)
    for kind in PUBLISHED:
        observers[kind], histories[kind] = train_published(
            kind, case, model, data, sizes, folder, seed, device, progress
        )
        seconds[kind] = histories[kind].seconds[-1]
        one_step[kind] = one_step_loss(observers[kind], test)
    known = told_noise(model, noise)
    filters = {"EKF": est.ExtendedKalmanFilter(model, known), "UKF": est.UnscentedKalmanFilter(model, known)}
    table = est.benchmark({**observers, **filters}, test, progress=progress)
    names, x_hat, truth = list(table["estimator"].values), table["x_hat"].values, test["x"].values
    half = truth.shape[1] // 2
    certified = {"R2DN ours": observers["R2DN ours"]} if reduced else observers
    certificates = {name: est.certify(observer) for name, observer in certified.items()}
    dims = ("estimator", "kind", "trajectory")
    variables = {
        "nrmse": (dims, nrmse(x_hat, truth)),
        "settled_nrmse": (dims, nrmse(x_hat[:, :, :, half:], truth[:, half:])),
        "training_seconds_total": ("estimator", [seconds.get(name, 0.0) for name in names]),
        "parameters": ("estimator", [count(observers[n].network) if n in observers else 0 for n in names]),
        "one_step_loss": ("estimator", [one_step.get(name, np.nan) for name in names]),
        "step_time": ("estimator", table["step_time"].values),
        "certified_rate": ("estimator", [certificates[n].bound if n in certificates else np.nan for n in names]),
        "verdict": ("estimator", [certificates[n].verdict if n in certificates else "none" for n in names]),
        "truth": (("time", "state"), truth[0]),
        "x_hat": (("estimator", "time", "state"), x_hat[:, 0, 0]),
    }
    if not reduced:
        steps = sizes["test_steps"] // 2
        calibration = record(model, sizes["calibration"], steps, 1.0, 0.5, noise, seed + TEST_SEED + 1)
        tube = est.certify_error(observers["R2DN ours"], model, calibration, start_error=np.ones(model.nstates))
        half_width = tube.half_width.transpose("kind", "time", "state").values
        variables["tube"] = (("kind", "tube_time", "state"), half_width)
    return xr.Dataset(
        with_history(variables, histories),
        {
            "estimator": names,
            "kind": list(table["kind"].values),
            "state": list(model.state_labels),
            "time": test["time"].values,
            "model": list(histories),
        },
        {"case": case, "seed": seed, "trajectories": sizes["tests"], "epochs": sizes["epochs"], **versions(device)},
    )


def report(found: xr.Dataset) -> str:
    """Say in words and numbers what a study found."""
    rows = {}
    for name in found["estimator"].values:
        one = found.sel(estimator=name)
        whole, verdict = one["nrmse"].sel(kind="predicted").values, str(one["verdict"].values)
        rows[name] = {
            "predicted": f"{whole.mean():.4f} ({whole.std(ddof=1) / math.sqrt(len(whole)):.4f})",
            "settled": f"{float(one['settled_nrmse'].sel(kind='predicted').mean()):.2g}",
            "filtered": f"{float(one['nrmse'].sel(kind='filtered').mean()):.4f}",
            "settled ": f"{float(one['settled_nrmse'].sel(kind='filtered').mean()):.2g}",
            "one-step loss": f"{float(one['one_step_loss']):.2g}",
            "training [s]": f"{float(one['training_seconds_total']):.0f}",
            "step [us]": f"{1e6 * float(one['step_time']):.0f}",
            "parameters": f"{int(one['parameters'])}",
            "contraction": "" if verdict == "none" else f"{verdict}, {float(one['certified_rate']):.5f}",
        }
    lines = [
        f"{found.attrs['case']}: {found.attrs['trajectories']} tests from xi = 1, every estimator from 0; NRMSE, "
        f"mean over tests (standard error); settled: second half; R2DN and REN trained {found.attrs['epochs']} epochs",
        pd.DataFrame(rows).T.replace("nan", "").to_string(),
    ]
    mean = found["nrmse"].sel(kind="predicted").mean("trajectory").to_series()
    time_of = found["training_seconds_total"].to_series()
    loss, seconds = found["training_loss"], found["training_seconds"]
    level = float(loss.min("epoch").max())  # what both published trainings reach
    reach = [float(seconds.sel(model=k).where(loss.sel(model=k) <= level).min()) for k in PUBLISHED]
    lines += [
        f"R2DN / REN: NRMSE {mean['R2DN'] / mean['REN']:.3f}, training time 1 / "
        f"{time_of['REN'] / time_of['R2DN']:.2f}; time to the loss both reach, {level:.2g}: "
        f"1 / {reach[1] / reach[0]:.2f}",
        *(
            f"{name}: NRMSE {mean[name] / mean['R2DN']:.3f} of R2DN, {mean[name] / mean['REN']:.3f} of "
            f"REN, training time 1 / {time_of['R2DN'] / time_of[name]:.1f} and 1 / {time_of['REN'] / time_of[name]:.1f}"
            for name in ("R2DN ours", "R2DN ours, short", "R2DN ours, untrained")
        ),
    ]
    if "tube" in found:
        end = float(found["tube"].sel(kind="predicted").isel(tube_time=-1).max())
        lines.append(
            "tube of R2DN ours, predicted, 99 % of runs from xi = 1, its start anywhere within 1: half-width at the "
            f"end {end:.3g} (largest over the states)"
        )
    return "\n".join(lines)


def plot(found: xr.Dataset):
    """Heat maps of truth, estimate and error for every estimator."""
    import matplotlib.pyplot as plt

    names = list(found["estimator"].values)
    figure, axes = plt.subplots(
        len(names) + 1, 2, figsize=(10, 1.5 * (len(names) + 1)), sharex=True, sharey=True, constrained_layout=True
    )
    extent = (0, float(found["time"][-1]), 0, found.sizes["state"] - 1)
    look = {"aspect": "auto", "origin": "lower", "extent": extent, "interpolation": "nearest"}
    truth = found["truth"].values.T
    shown = axes[0, 0].imshow(truth, cmap="inferno", vmin=0, vmax=1, **look)
    axes[0, 0].set_title("truth")
    axes[0, 1].set_axis_off()
    for (left, right), name in zip(axes[1:], names, strict=True):
        estimate = found["x_hat"].sel(estimator=name).values.T
        left.imshow(estimate, cmap="inferno", vmin=0, vmax=1, **look)
        size = right.imshow(np.log10(np.abs(estimate - truth) + 1e-6), cmap="viridis", vmin=-5, vmax=0, **look)
        left.set_title(f"{name}, predicted", fontsize=9)
        right.set_title("log10 of |error|", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("time")
    figure.colorbar(shown, ax=axes[:, 0], shrink=0.6)
    figure.colorbar(size, ax=axes[:, 1], shrink=0.6)
    return figure


def plot_training(found: xr.Dataset):
    """Training loss of the published recipe against time, and error and tube of ours in one node."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), constrained_layout=True)
    for kind in PUBLISHED:
        one = found.sel(model=kind)
        left.loglog(one["training_seconds"], one["training_loss"], label=kind)
    left.set(xlabel="training time [s]", ylabel="one-step loss, training")
    node, shown = found.sizes["state"] // 4, found.sizes.get("tube_time", found.sizes["time"])
    error = np.abs(found["x_hat"].sel(estimator="R2DN ours") - found["truth"])[:shown, node]
    right.semilogy(found["time"][:shown], error, label="error of R2DN ours")
    if "tube" in found:
        right.semilogy(found["time"][:shown], found["tube"].sel(kind="predicted")[:, node], "k--", label="tube, 99 %")
    right.set(xlabel="time", ylabel=str(found["state"].values[node]))
    for axis in (left, right):
        axis.legend(fontsize=8)
    return figure


def main(arguments_=None):
    """Run the study from the command line."""
    parser = arguments(__doc__, "reaction_diffusion")
    parser.add_argument(
        "--case", choices=CASES, action="append", help="which data; may be repeated; default: all three"
    )
    options = parser.parse_args(arguments_)
    for case in options.case or CASES:
        folder = options.out / case
        found = study(folder, case, reduced=options.reduced, seed=options.seed, device=options.device)
        finish(found, folder, report(found), {"heat_maps": plot(found), "training": plot_training(found)})


if __name__ == "__main__":
    main()
