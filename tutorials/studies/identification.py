"""System identification: R2DN and REN as simulation models, beside linear models and an LSTM of equal size.

    python -m tutorials.studies.identification [--record pendulum] [--data FOLDER] [--reduced] [--out FOLDER]

Records: `pendulum` (the catalogue's, simulated), `measured_rate` (DFKI's measured run), `f16` and `tanks` (read from
the folder given by --data; they are not part of this repository). Models see the inputs only and are trained by
truncated back-propagation: sequences in segments, the state carried, gradients not. Writes results.nc, checkpoints and
figures to the folder of each record; a run that was cut off goes on from there.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn

import estimators as est
from estimators.networks import from_linear, long_memory
from estimators.networks.rollout import Recursion, rollout

from .identification_data import Record, f16, measured_rate, pendulum, tanks
from .training import arguments, cosine, count, finish, train, versions, with_history

RECORDS = ("pendulum", "measured_rate", "f16", "tanks")
MODELS = ("linear, trained", "R2DN", "R2DN from linear", "REN", "LSTM")
SIZES = {
    "f16": {"nx": 75, "nv": 75, "hidden": (87,) * 3, "epochs": 40, "rate": 1e-3},
    "tanks": {"nx": 10, "nv": 20, "hidden": (32, 32), "epochs": 400, "rate": 3e-3},
    "pendulum": {"nx": 10, "nv": 20, "hidden": (32, 32), "epochs": 600, "rate": 5e-3},
    "measured_rate": {"nx": 10, "nv": 20, "hidden": (32, 32), "epochs": 100, "rate": 3e-3},
}
SEGMENT = 256
ORDERS = (2, 3, 4, 6, 8, 10, 14, 20)


class LSTM(nn.Module):
    """LSTM with a linear output of about so many parameters, called like the library's networks.

    Parameters
    ----------
    ninputs, noutputs : int
        Sizes.
    parameters : int
        Wanted.
    """

    def __init__(self, ninputs: int, noutputs: int, parameters: int):
        super().__init__()
        sizes = range(1, 400)
        width = min(sizes, key=lambda h: abs(4 * h * (h + ninputs + 2) + noutputs * (h + 1) - parameters))
        self.nstates = 2 * width
        self.lstm, self.out = nn.LSTM(ninputs, width, batch_first=True), nn.Linear(width, noutputs)

    def forward(self, u: torch.Tensor, x0: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences; the state is (h, c) side by side."""
        start = None if x0 is None else tuple(part[None].contiguous() for part in x0.chunk(2, dim=1))
        h, last = self.lstm(u, start)
        return self.out(h), torch.cat(last, 2)[0]


class LinearSystem(nn.Module):
    """x+ = A x + B u, y = C x + D u as a module called like the networks, float64.

    Parameters
    ----------
    A, B, C, D : numpy.ndarray
        Its matrices.
    """

    def __init__(self, A, B, C, D):
        super().__init__()
        self.nstates = len(A)
        parts = np.hstack([A, B]), np.hstack([C, D])
        self.M, self.N = (nn.Parameter(torch.from_numpy(a.astype(float)), requires_grad=False) for a in parts)

    def forward(self, u: torch.Tensor, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch of sequences."""
        M, N = (torch.nn.functional.pad(a, (0, 1)) for a in (self.M, self.N))  # no constant term
        x, y = rollout(Recursion("relu", M, N, None, None, ()), x0, u.transpose(0, 1))
        return y.transpose(0, 1), x


class Simulator(nn.Module):
    """A recurrent network between scaled signals, with a linear map from the first samples to its state.

    Parameters
    ----------
    network : torch.nn.Module
        ``network(u, x0) -> (y, x_last)``, with `nstates`.
    record : Record
        Sets the scaling, and how many samples the state may be chosen from.
    """

    def __init__(self, network: nn.Module, record: Record):
        super().__init__()
        self.network, self.lag = network, record.lag
        dtype = next(iter(network.parameters())).dtype
        for name, values in (("u", record.train_u), ("y", record.train_y)):
            flat = values.reshape(-1, values.shape[-1])
            self.register_buffer(f"{name}_mean", torch.from_numpy(flat.mean(0)).to(dtype))
            self.register_buffer(f"{name}_scale", torch.from_numpy(flat.std(0)).to(dtype))
        channels = record.train_u.shape[-1] + record.train_y.shape[-1]
        self.start = nn.Linear(self.lag * channels, network.nstates) if self.lag else None
        if self.start is not None:
            nn.init.zeros_(self.start.weight)
            nn.init.zeros_(self.start.bias)

    def scaled(self, u, y) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale arrays to the network's signals, in its dtype."""
        u, y = (torch.as_tensor(a, dtype=self.u_mean.dtype, device=self.u_mean.device) for a in (u, y))
        return (u - self.u_mean) / self.u_scale, (y - self.y_mean) / self.y_scale

    def state(self, u, y) -> torch.Tensor:
        """State to start from, of scaled sequences."""
        if self.start is None:
            return u.new_zeros(len(u), self.network.nstates)
        return self.start(torch.cat([u[:, : self.lag], y[:, : self.lag]], 2).flatten(1))

    def simulate(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return outputs (sequence, time, noutputs) in the data's units; only the first `lag` of `y` are seen."""
        u, y = self.scaled(u, y)
        with torch.no_grad():
            found, _ = self.network(u, self.state(u, y))
        return (found * self.y_scale + self.y_mean).double().cpu().numpy()


def subspace(record: Record) -> tuple[LinearSystem | None, int]:
    """Identify a linear model by N4SID (library nfoursid), of the order that simulates the training data best.

    Returns
    -------
    network : LinearSystem or None
        In scaled signals; None where every model found is unstable.
    order : int
        How many states.
    """
    from nfoursid.nfoursid import NFourSID

    shift, scale = zip(*((a.mean((0, 1)), a.std((0, 1))) for a in (record.train_u, record.train_y)), strict=True)
    u, y = ((a - m) / s for a, m, s in zip((record.train_u, record.train_y), shift, scale, strict=True))
    # the method knows no breaks: one record
    flat = np.hstack([(a - m) / s for a, m, s in zip(record.unbroken, shift, scale, strict=True)])
    names = [f"u{i}" for i in range(u.shape[2])], [f"y{i}" for i in range(y.shape[2])]
    frame = pd.DataFrame(flat, columns=[*names[0], *names[1]])
    best = (np.inf, None, 0)
    for order in ORDERS:
        rows = 2 * order + 2
        if len(frame) < 4 * rows * flat.shape[1]:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own deprecations
            method = NFourSID(frame, output_columns=names[1], input_columns=names[0], num_block_rows=rows)
            method.subspace_identification()
            model, _ = method.system_identification(rank=order)
        if np.abs(np.linalg.eigvals(model.a)).max() >= 1:
            continue
        network = LinearSystem(model.a, model.b, model.c, model.d)
        found, _ = network(torch.from_numpy(u), torch.zeros(len(u), order, dtype=torch.float64))
        error = float(np.square(found.numpy() - y)[:, record.burn :].mean())
        if error < 0.99 * best[0]:  # a larger model must be better by more than nothing
            best = (error, network, order)
    return best[1], best[2]


def make_network(kind: str, record: Record, sizes: dict, seed: int) -> nn.Module:
    """Build a model at its start; REN and LSTM have as many parameters as the R2DN, to within 5 %."""
    nu, ny, nx = record.train_u.shape[-1], record.train_y.shape[-1], sizes["nx"]
    generator = torch.Generator().manual_seed(seed)
    common = {"activation": "relu", "generator": generator}

    def r2dn(**changes):
        settings = {"nfeedback": sizes["nv"], "hidden": sizes["hidden"], **common, **changes}
        return est.R2DN(nu, nx, ny, **settings)

    if kind == "LSTM":
        torch.manual_seed(seed)  # torch.nn.LSTM takes no generator
        return LSTM(nu, ny, count(r2dn()))
    if kind == "REN":
        wanted = count(r2dn())
        width = min(range(1, 400), key=lambda nv: abs(_ren_parameters(nu, nx, ny, nv) - wanted))
        network = est.REN(nu, nx, ny, nfeedback=width, **common)
    elif kind == "linear, trained":
        network = est.R2DN(nu, nx, ny, nfeedback=0, hidden=(), generator=generator)
    else:
        network = r2dn()
    if kind != "R2DN from linear":  # that one is set by `start_from`
        long_memory(network, torch.Generator().manual_seed(seed + 1))
    return network


def _ren_parameters(nu, nx, ny, nv):
    return (2 * nx + nv) ** 2 + nx**2 + 1 + nx * (nu + 1) + nv * (nu + 1) + ny * (nx + nv + nu + 1)


def start_from(model: Simulator, linear: Simulator) -> None:
    """Let an R2DN begin as a linear model of the same size."""
    found, network = linear.network.explicit(), model.network
    A, B, b = (getattr(found, name).detach().cpu().numpy() for name in ("A", "B2", "bx"))
    from_linear(network, A, B, b)
    with torch.no_grad():
        network.D21.zero_()
        for name in ("C2", "D22", "by"):
            getattr(network, name).copy_(getattr(found, name))
    if model.start is not None:
        model.start.load_state_dict(linear.start.state_dict())


def losses(model: Simulator, record: Record):
    """Segments of the training sequences in order, all sequences at once; the state is carried, the gradient is not."""
    u, y = model.scaled(record.train_u, record.train_y)

    def epoch_losses(epoch):
        state, first = model.state(u, y), record.burn
        if first:
            with torch.no_grad():
                _, state = model.network(u[:, :first], state)
        for s in range(first, u.shape[1], SEGMENT):
            found, state = model.network(u[:, s : s + SEGMENT], state)
            yield (found - y[:, s : s + SEGMENT]).square().mean()
            state = state.detach()

    return epoch_losses


def rmse(model: Simulator, test) -> float:
    """Root mean square error of a free simulation over the samples that count, in the data's units."""
    u, y, scored = test
    return float(np.sqrt(np.square(model.simulate(u, y) - y)[:, scored].mean()))


def load_record(name: str, data, reduced: bool) -> Record:
    """Read or simulate a record; ValueError where its data are not given."""
    if name in ("f16", "tanks"):
        if data is None:
            raise ValueError(f"the record {name!r} is not part of this repository: give its folder by --data")
        return f16(data) if name == "f16" else tanks(data)
    if name not in RECORDS:
        raise ValueError(f"record must be one of {', '.join(RECORDS)}, got {name!r}")
    return pendulum(reduced) if name == "pendulum" else measured_rate()


def study(
    folder: Path, name: str, *, data=None, reduced: bool = False, seed: int = 0, device="cpu", progress=True
) -> xr.Dataset:
    """Train all models on a record and test them by free simulation.

    Parameters
    ----------
    folder : pathlib.Path
        For checkpoints; training goes on from those it finds.
    name : {'pendulum', 'measured_rate', 'f16', 'tanks'}
        The record.
    data : path-like, optional
        Folder of the sets that do not ship.
    reduced : bool
        A twentieth of the epochs.
    seed : int
        Of starts.
    device : str
        Where networks are trained.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        ``rmse`` and ``percent`` of the output's deviation (simulator, test); ``others`` (yardstick); training curves
        (model, epoch); ``u``, ``y`` and ``simulated`` (simulator, time) of each test's first sequence, first output.
    """
    record, sizes = load_record(name, data, reduced), SIZES[name]
    epochs = sizes["epochs"] // 20 if reduced else sizes["epochs"]
    folder.mkdir(parents=True, exist_ok=True)
    linear, order = subspace(record)
    models = {} if linear is None else {f"N4SID, order {order}": Simulator(linear, replace(record, lag=0))}
    histories = {}
    for kind in MODELS:
        model = Simulator(make_network(kind, record, sizes, seed), record)
        if kind == "R2DN from linear":
            start_from(model, models["linear, trained"])
        model = model.to(device)
        before = histories["linear, trained"].seconds[-1] if kind == "R2DN from linear" else 0.0
        histories[kind] = train(
            model,
            losses(model, record),
            epochs=epochs,
            learning_rate=cosine(sizes["rate"], epochs),
            clip=10.0,
            checkpoint=folder / f"{kind}.checkpoint.safetensors",
            settings={
                "record": name,
                "kind": kind,
                "seed": seed,
                "reduced": reduced,
                **sizes,
                "hidden": list(sizes["hidden"]),
                "epochs": epochs,
            },
            name=f"{name}: {kind}",
            progress=progress,
        )
        histories[kind].seconds = [before + s for s in histories[kind].seconds]
        models[kind] = model.cpu()
    errors = np.array([[rmse(m, t) for t in record.tests.values()] for m in models.values()])
    deviation = [float(y[:, scored].std()) for _, y, scored in record.tests.values()]
    variables = {
        "rmse": (("simulator", "test"), errors),
        "percent": (("simulator", "test"), 100 * errors / deviation),
        "parameters": ("simulator", [count(m.network) for m in models.values()]),
        "others": ("yardstick", list(record.others.values())),
    }
    for k, (u, y, scored) in enumerate(record.tests.values()):
        shown = np.flatnonzero(scored)[:2000]
        variables[f"u_{k}"] = (f"time_{k}", u[0, shown, 0])
        variables[f"y_{k}"] = (f"time_{k}", y[0, shown, 0])
        simulated = np.stack([m.simulate(u[:1], y[:1])[0, shown, 0] for m in models.values()])
        variables[f"simulated_{k}"] = (("simulator", f"time_{k}"), simulated)
        variables[f"time_{k}"] = (f"time_{k}", shown * record.dt)
    return xr.Dataset(
        with_history(variables, histories),
        {
            "simulator": list(models),
            "test": list(record.tests),
            "yardstick": list(record.others),
            "model": list(histories),
        },
        {"record": name, "unit": record.unit, "seed": seed, **versions(device)},
    )


def report(found: xr.Dataset) -> str:
    """Say in words and numbers what a study found."""
    unit, lines = found.attrs["unit"], [f"{found.attrs['record']}: error of a free simulation on data not trained on"]
    seconds = found["training_seconds"].max("epoch").to_series()
    for name in found["simulator"].values:
        one = found.sel(simulator=name)
        parts = [
            f"{test}: {float(one['rmse'].sel(test=test)):.4g} {unit} ({float(one['percent'].sel(test=test)):.2f} %)"
            for test in found["test"].values
        ]
        trained = f"trained in {seconds[name]:.0f} s" if name in seconds else ""
        lines.append(f"  {name:18s}{int(one['parameters']):7d} parameters  {'  '.join(parts)}  {trained}")
    lines += [f"  {m}: {float(v):.4g} {unit}" for m, v in found["others"].to_series().items()]
    error = found["rmse"].isel(test=0).to_series()
    linear = min(value for name, value in error.items() if name.startswith(("N4SID", "linear")))
    for name in ("R2DN", "R2DN from linear"):
        lines.append(
            f"{name}, first test: / REN {error[name] / error['REN']:.3f} (training time 1 / "
            f"{seconds['REN'] / seconds[name]:.1f}), / better linear model {error[name] / linear:.3f}, "
            f"/ LSTM {error[name] / error['LSTM']:.3f}"
        )
    return "\n".join(lines)


def plot(found: xr.Dataset):
    """Draw inputs, outputs and errors of the first sequence of every test, and learning curves."""
    import matplotlib.pyplot as plt

    tests = list(found["test"].values)
    figure, axes = plt.subplots(3, len(tests) + 1, figsize=(5 * (len(tests) + 1), 7), constrained_layout=True)
    for k, (column, test) in enumerate(zip(axes.T, tests, strict=False)):
        t = found[f"time_{k}"]
        column[0].plot(t, found[f"u_{k}"], lw=0.8)
        column[0].set(title=test, ylabel="input")
        column[1].plot(t, found[f"y_{k}"], "k", lw=1, label="measured")
        for name in found["simulator"].values:
            simulated = found[f"simulated_{k}"].sel(simulator=name)
            column[1].plot(t, simulated, lw=0.8, label=name)
            column[2].plot(t, simulated - found[f"y_{k}"], lw=0.8)
        column[1].set(ylabel=f"output [{found.attrs['unit']}]")
        column[2].set(ylabel="error", xlabel="time [s]")
        column[1].legend(fontsize=7)
    for name in found["model"].values:
        axes[0, -1].loglog(
            found["training_seconds"].sel(model=name), found["training_loss"].sel(model=name), label=name
        )
    axes[0, -1].set(xlabel="training time [s]", ylabel="training loss (scaled)")
    axes[0, -1].legend(fontsize=7)
    for axis in axes[1:, -1]:
        axis.set_axis_off()
    return figure


def main(arguments_=None):
    """Run the study from the command line."""
    parser = arguments(__doc__, "identification")
    parser.add_argument(
        "--record", choices=RECORDS, action="append", help="may be repeated; default: all that are there"
    )
    parser.add_argument("--data", type=Path, help="folder with f16_gvt_small/ and cascaded_tanks/")
    options = parser.parse_args(arguments_)
    names = options.record or (RECORDS if options.data else RECORDS[:2])
    for name in names:  # before any work is lost
        load_record(name, options.data, True)
    for name in names:
        folder = options.out / name
        found = study(
            folder, name, data=options.data, reduced=options.reduced, seed=options.seed, device=options.device
        )
        finish(found, folder, report(found), {name: plot(found)})


if __name__ == "__main__":
    main()
