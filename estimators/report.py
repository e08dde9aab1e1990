"""What the main job prints and writes."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from estimators import html_report, plotting
from estimators.certificates.result import Certificate
from estimators.correction import LearnedCorrection
from estimators.pipeline import Comparison
from plants.model import StateSpaceModel
from plants.schema import save_dataset

MEANING = {"predicted": "x(k) from y up to k-1", "filtered": "x(k) from y up to k"}


def format_table(table: xr.Dataset, certificates: dict[str, Certificate] | None = None) -> str:
    """Lay a benchmark out as text: one block for predicted, one for filtered estimates.

    Parameters
    ----------
    table : xarray.Dataset
        From :func:`estimators.benchmark`.
    certificates : dict, optional
        Of the estimators by name; each has its say in a column.

    Returns
    -------
    str
    """
    unit = table.attrs.get("time_unit", "")
    states, lines = [str(s) for s in table["state"].values], []
    lines.append(
        f"{table.attrs['plant']}: {table.attrs['trajectories']} test trajectories from wrong starts, "
        f"transient = first {table.attrs['transient']:g} {unit}".rstrip()
    )
    head = ["", *(f"{s} RMSE" for s in states), *(f"{s} /best" for s in states), *(f"{s} transient" for s in states)]
    for kind in ("predicted", "filtered"):
        here = table["rmse"].sel(kind=kind)
        steady, transient = here.sel(phase="steady").values, here.sel(phase="transient").values
        rows = [
            [
                str(name),
                *(f"{v:.4g}" for v in steady[i]),
                *(f"{v:.3f}" for v in steady[i] / np.fmin.reduce(steady, axis=0)),
                *(f"{v:.4g}" for v in transient[i]),
            ]
            for i, name in enumerate(table["estimator"].values)
        ]
        if "optimum" in table:
            limit = table["optimum"].sel(kind=kind).values
            rows.append(
                [
                    "optimum",
                    *(f"{v:.4g}" for v in limit),
                    *(f"{v:.3f}" for v in limit / np.fmin.reduce(steady, axis=0)),
                    *("" for _ in states),
                ]
            )
        lines += ["", f"{kind} ({MEANING[kind]})", *_columns([head, *rows])]
    head = ["", "settles after" + (f" [{unit}]" if unit else ""), "NEES/n", "step [us]", "diverged"]
    rows = [[*head, "forgets its start"] if certificates else head]
    for i, name in enumerate(table["estimator"].values):
        nees = table["nees"].values[i]
        rows.append(
            [
                str(name),
                f"{table['settling_time'].values[i]:.3g}",
                "-" if np.isnan(nees) else f"{nees:.2f}",
                f"{1e6 * table['step_time'].values[i]:.0f}",
                str(table["diverged"].values[i]),
                *([_in_short(certificates[str(name)])] if certificates else []),
            ]
        )
    return "\n".join([*lines, "", *_columns(rows)])


def _in_short(certificate: Certificate) -> str:
    """Say in a table's cell what a certificate says."""
    if certificate.metric is not None:
        return f"{certificate.verdict}, {certificate.bound:.4f} a step"
    return f"{certificate.verdict}, {certificate.bound:.1%} of starts tried"


def _columns(rows: list[list[str]], left: tuple = (0,)) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def check_writable(folder: Path) -> None:
    """Create a folder and try to write there, before any work is done; ValueError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to the folder {folder}: {error}") from error


def write_results(result: Comparison, folder: Path, settings: dict) -> list[Path]:
    """Write model, estimates, figures and the HTML report.

    Parameters
    ----------
    result : Comparison
        From :func:`estimators.pipeline.compare`.
    folder : pathlib.Path
        Existing folder.
    settings : dict
        What the run was asked to do, for the report.

    Returns
    -------
    list of pathlib.Path
        What was written.
    """
    name, test = result.model.name, result.datasets["test"]
    paths = [folder / f"{name}_observer.safetensors", folder / f"{name}_estimates.nc"]
    result.estimators["R2DN"].save(paths[0])
    correction = folder / f"{name}_correction.safetensors"
    correction.unlink(missing_ok=True)  # of an earlier run, should this one have none
    for estimator in result.estimators.values():
        if isinstance(estimator, LearnedCorrection):
            paths.append(correction)
            estimator.save(correction)
    save_dataset(
        result.table.assign(
            x=(("trajectory", "time", "state"), test["x"].values),
            y=(("trajectory", "time", "output"), test["y"].values),
        ),
        paths[1],
    )
    figures = _figures(result.table, test, result.model)
    figures["training"] = plotting.plot_training(result.history)
    paths += _save(figures, folder, name)
    paths.append(folder / f"{name}_report.html")
    captions = {
        "One trajectory: true states and estimates": figures["states"],
        "Error over time, root mean square over trajectories": figures["error_decay"],
        "Loss during training (1: a Kalman filter's, were the plant linear)": figures["training"],
    }
    title = f"{name}: observer, EKF and UKF"
    html_report.write(
        html_report.render(title, settings, result.table, result.certificates, captions, result.robustness), paths[-1]
    )
    for figure in figures.values():
        plt.close(figure)
    return paths


def load_estimates(path) -> xr.Dataset:
    """Read the estimates that `write_results` wrote; ValueError for anything else."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            table = stored.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} as netCDF: {error}") from error
    if not {"x_hat", "x", "y"} <= set(table.variables):
        raise ValueError(f"{path} holds no estimates: give the PLANT_estimates.nc that benchmark writes")
    return table


def write_figures(table: xr.Dataset, model: StateSpaceModel, folder: Path) -> list[Path]:
    """Draw states and error decay from what `load_estimates` read; returns the files written."""
    states, outputs = tuple(map(str, table["state"].values)), table["y"].shape[-1]
    if states != model.state_labels or outputs != model.noutputs:
        raise ValueError(
            f"the estimates are of {table.attrs['plant']!r} with states {list(states)} and {outputs} outputs, "
            f"the plant {model.name!r} has {list(model.state_labels)} and {model.noutputs}"
        )
    figures = _figures(table, table, model)
    paths = _save(figures, folder, model.name)
    for figure in figures.values():
        plt.close(figure)
    return paths


def _figures(table, data, model):
    return {
        "states": plotting.plot_estimates(table, data, model),
        "error_decay": plotting.plot_error_decay(table, data, model),
    }


def _save(figures, folder, name):
    paths = [folder / f"{name}_{title}.png" for title in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def format_robustness(table: xr.Dataset) -> str:
    """Lay a Monte Carlo out as text: each estimator's RMSE over that of the best other, transient and steady."""
    frame = table.est.robustness()
    names = list(table["estimator"].values)
    rows = [["", *(f"{name} {phase}" for name in names for phase in ("transient", "steady")), "diverged"]]
    for condition in table["condition"].values:
        cells = [
            f"{frame.loc[(condition, name), phase]:.3f} ({frame.loc[(condition, name), f'{phase} se']:.3f})"
            for name in names
            for phase in ("transient", "steady")
        ]
        lost = "/".join(str(frame.loc[(condition, name), "diverged"]) for name in names)
        rows.append([str(condition), *cells, lost])
    head = (
        f"robustness, predicted: RMSE over that of the best other estimator (standard error over {table.sizes['seed']} "
        f"seeds of {table.attrs['trajectories']} trajectories); below 1: ahead"
    )
    failed = [f"  failed: {line}" for line in table.attrs["failures"].splitlines()]
    return "\n".join([head, *_columns(rows), *failed])


def format_catalogue(scenarios: dict) -> str:
    """List plants: name, sizes, sample time, what it is."""
    rows = [["", "states", "inputs", "outputs", "sample time", "what"]]
    for name, make in scenarios.items():
        setting = make()
        sizes = (setting.system.nstates, setting.system.ninputs, setting.system.noutputs)
        rows.append([name, *map(str, sizes), f"{setting.dt:g} {setting.time_unit}".strip(), setting.description])
    return "\n".join(_columns(rows, left=(0, 5)))
