"""What the main job prints and writes."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from estimators import plotting
from estimators.certificates.result import Certificate
from estimators.pipeline import Comparison
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
                *(f"{v:.3f}" for v in steady[i] / np.nanmin(steady, axis=0)),
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
                    *(f"{v:.3f}" for v in limit / np.nanmin(steady, axis=0)),
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


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
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


def write_results(result: Comparison, folder: Path) -> list[Path]:
    """Write model, estimates and figures.

    Parameters
    ----------
    result : Comparison
        From :func:`estimators.pipeline.compare`.
    folder : pathlib.Path
        Existing folder.

    Returns
    -------
    list of pathlib.Path
        What was written.
    """
    name, test = result.model.name, result.datasets["test"]
    paths = [folder / f"{name}_observer.safetensors", folder / f"{name}_estimates.nc"]
    result.estimators["R2DN"].save(paths[0])
    save_dataset(
        result.table.assign(
            x=(("trajectory", "time", "state"), test["x"].values),
            y=(("trajectory", "time", "output"), test["y"].values),
        ),
        paths[1],
    )
    figures = {
        "states": plotting.plot_estimates(result.table, test, result.model),
        "error_decay": plotting.plot_error_decay(result.table, test, result.model),
        "training": plotting.plot_training(result.history),
    }
    for title, figure in figures.items():
        paths.append(folder / f"{name}_{title}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths
