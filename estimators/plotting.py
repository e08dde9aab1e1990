"""Figures from datasets; each returns a matplotlib Figure."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from estimators.metrics import errors
from estimators.training import FitResult
from plants.angles import wrap
from plants.model import StateSpaceModel

STYLES = ("-", "-", "--", ":")
"""Lines that lie on one another, as EKF and UKF often do, stay visible."""


def _time_label(table: xr.Dataset) -> str:
    unit = table.attrs.get("time_unit", "")
    return f"time [{unit}]" if unit else "time"


def plot_estimates(
    table: xr.Dataset, dataset: xr.Dataset, model: StateSpaceModel, *, trajectory: int = 0, kind: str = "predicted"
) -> Figure:
    """Plot the true states of one trajectory with every estimate of it.

    Parameters
    ----------
    table : xarray.Dataset
        From :func:`estimators.benchmark`.
    dataset : xarray.Dataset
        The test data it was made from.
    model : StateSpaceModel
        The plant.
    trajectory : int
        Which one.
    kind : {'predicted', 'filtered'}
        Which estimate.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(
        model.nstates, 1, sharex=True, figsize=(8, 1.9 * model.nstates + 0.8), squeeze=False, layout="constrained"
    )
    times = table["time"].values

    def shown(values):
        return wrap(torch.from_numpy(np.array(values)), model.state_is_angle).numpy()

    truth = shown(dataset["x"].values[trajectory])
    measured = {s: o for s, o in zip(model.state_labels, _measured_states(model), strict=True) if o is not None}
    for i, (axis, state) in enumerate(zip(axes[:, 0], model.state_labels, strict=True)):
        if state in measured:
            y = wrap(torch.from_numpy(dataset["y"].values[trajectory].copy()), model.output_is_angle).numpy()[
                :, measured[state]
            ]
            axis.plot(times, y, ".", color="0.75", markersize=3, label="measured")
        axis.plot(times, truth[:, i], "k", linewidth=1.5, label="true")
        for style, name in zip(cycle(STYLES), table["estimator"].values, strict=False):
            estimate = shown(table["x_hat"].sel(estimator=name, kind=kind).values[trajectory])
            axis.plot(times, estimate[:, i], style, linewidth=1, label=str(name))
        axis.set_ylabel(state)
    axes[-1, 0].set_xlabel(_time_label(table))
    axes[0, 0].set_title(f"{table.attrs['plant']}: {kind} estimates, test trajectory {trajectory}")
    axes[0, 0].legend(ncols=5, fontsize="small")
    return figure


def _measured_states(model):
    """For each state the output that measures it directly, or None."""
    x, u = (torch.from_numpy(a) for a in model.operating_region.sample(4, seed=2))
    y = model.output(x, u)
    return [
        next((j for j in range(model.noutputs) if torch.equal(y[:, j], x[:, i])), None) for i in range(model.nstates)
    ]


def plot_error_decay(
    table: xr.Dataset, dataset: xr.Dataset, model: StateSpaceModel, *, kind: str = "predicted"
) -> Figure:
    """How fast a wrong start is forgotten: RMS error over trajectories, each state over its true RMS, log axis.

    Parameters
    ----------
    table, dataset, model
        As for :func:`plot_estimates`.
    kind : {'predicted', 'filtered'}
        Which estimate.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    truth = dataset["x"].values
    size = np.maximum(truth.std(axis=(0, 1)), np.finfo(float).tiny)
    for style, name in zip(cycle(STYLES), table["estimator"].values, strict=False):
        error = errors(model, table["x_hat"].sel(estimator=name, kind=kind).values, truth) / size
        size_now = np.sqrt(np.mean(np.square(error), axis=(0, 2)))
        axis.semilogy(table["time"].values, size_now, style, label=str(name))
    axis.axvline(table.attrs["transient"], color="0.7", linestyle=":", label="end of the transient")
    axis.set(
        xlabel=_time_label(table),
        ylabel="RMS error / standard deviation of the state",
        title=f"{table.attrs['plant']}: {len(truth)} wrong starts, {kind}",
    )
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()
    return figure


def plot_training(result: FitResult) -> Figure:
    """Training and validation loss over updates.

    Parameters
    ----------
    result : FitResult
        From ``observer.fit``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.semilogy(result.updates, result.train_loss, label="training")
    axis.semilogy(result.updates, result.validation_loss, label="validation")
    axis.axvline(result.best_update, color="0.7", linestyle=":", label="kept")
    axis.set(xlabel="update", ylabel="loss (1: Kalman filter's own expectation)", title="training of the observer")
    axis.legend()
    return figure
