"""Figures from datasets; each returns a matplotlib Figure."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
import xarray as xr
from matplotlib.figure import Figure

from estimators.certificates.error_bound import ErrorBound
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


def plot_consistency(result: xr.Dataset) -> Figure:
    """Plot what :func:`estimators.consistency` found, each with the band of a consistent filter.

    Parameters
    ----------
    result : xarray.Dataset
        From :func:`estimators.consistency`.

    Returns
    -------
    matplotlib.figure.Figure
        Normalised innovation squared per channel and, with true states, normalised estimation error squared per state,
        means over trajectories at each time; autocorrelation of the innovations.
    """
    if "autocorrelation" not in result:
        raise ValueError("result must come from estimators.consistency: it has no variable autocorrelation")
    channels = result["channels"].sum("trajectory").values
    panels = [
        ("normalised innovation squared per channel", result["nis"].sum("trajectory").values / channels, channels)
    ]
    if "nees" in result:
        count = result.sizes["trajectory"] * result.attrs["states"]
        nees = result["nees"].sum("trajectory").values / count
        panels.append(("normalised estimation error squared per state", nees, np.full(len(nees), count)))
    figure, axes = plt.subplots(len(panels) + 1, 1, figsize=(8, 2.2 * len(panels) + 2.6), layout="constrained")
    times = result["time"].values if "time" in result.coords else np.arange(result.sizes["time"])
    tail = (1 - result.attrs["level"]) / 2
    for axis, (title, values, freedom) in zip(axes, panels, strict=False):
        lower, upper = (
            scipy.stats.chi2.ppf(p, np.maximum(freedom, 1)) / np.maximum(freedom, 1) for p in (tail, 1 - tail)
        )
        axis.fill_between(times, lower, upper, alpha=0.25, label=f"{result.attrs['level']:.0%} of a consistent filter")
        axis.plot(times, values, ".-", markersize=3)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="time")
        axis.legend(loc="upper right")
    lags, labels = result["lag"].values, result["output"].values
    for i, output in enumerate(labels):
        values, band = (result[name].values[:, i] for name in ("autocorrelation", "autocorrelation_band"))
        (line,) = axes[-1].plot(lags, values, "o-", label=str(output))
        for side in (-band, band):
            axes[-1].plot(lags, side, "_", color=line.get_color(), markersize=12)
    axes[-1].axhline(0.0, color="black", linewidth=0.8)
    axes[-1].set(title="autocorrelation of the innovations, with bounds (-)", xlabel="lag [samples]")
    axes[-1].legend(loc="upper right")
    return figure


def plot_tube(
    bound: ErrorBound, estimates: xr.Dataset, dataset: xr.Dataset, *, trajectory: int = 0, kind: str = "filtered"
) -> Figure:
    """Plot one trajectory's estimates with their error tube, and the error beside the half-width.

    Parameters
    ----------
    bound : ErrorBound
        From :func:`estimators.certify_error`.
    estimates : xarray.Dataset
        From :func:`estimators.run`, of the same observer, no longer than the tube.
    dataset : xarray.Dataset
        With the true states.
    trajectory : int
        Which one.
    kind : {'filtered', 'predicted'}
        Which estimate.

    Returns
    -------
    matplotlib.figure.Figure
        Left the states, right the size of the error and the half-width, logarithmic.

    Raises
    ------
    ValueError
        A kind that the tube or the estimates do not have, estimates longer than the tube, data without states.
    """
    if kind not in bound.half_width["kind"].values or kind not in estimates:
        raise ValueError(f"kind must be one of {list(bound.half_width['kind'].values)}, got {kind!r}")
    if "x" not in dataset:
        raise ValueError("dataset has no true states x")
    count = estimates.sizes["time"]
    if count > bound.half_width.sizes["time"]:
        raise ValueError(f"estimates have {count} time steps, the tube {bound.half_width.sizes['time']}")
    states = [str(s) for s in bound.half_width["state"].values]
    figure, axes = plt.subplots(
        len(states), 2, sharex=True, figsize=(11, 1.9 * len(states) + 0.8), squeeze=False, layout="constrained"
    )
    times = estimates["time"].values
    for i, (row, state) in enumerate(zip(axes, states, strict=True)):
        width = bound.half_width.sel(kind=kind, state=state).values[:count]
        estimate = estimates[kind].values[trajectory][:, i]
        truth = dataset["x"].values[trajectory][:count, i]
        row[0].fill_between(times, estimate - width, estimate + width, alpha=0.2, label="tube")
        row[0].plot(times, truth, "k", linewidth=1.5, label="true")
        row[0].plot(times, estimate, linewidth=1, label=kind)
        # a wide tube at the start would leave nothing to see of the rest
        room = 0.5 * np.ptp(truth) + 2 * width[-1]
        row[0].set(ylabel=state, ylim=(truth.min() - room, truth.max() + room))
        row[1].semilogy(times, np.abs(estimate - truth), label="size of the error")
        row[1].semilogy(times, width, label="half-width")
        row[1].set_ylim(1e-3 * width.min(), 2 * width.max())
    for axis in axes[-1]:
        axis.set_xlabel(_time_label(dataset))
    axes[0, 0].legend(loc="upper right", ncols=3)
    axes[0, 1].legend(loc="upper right", ncols=2)
    axes[0, 0].set_title(f"{kind} estimates, trajectory {trajectory}")
    axes[0, 1].set_title(f"error tube: {bound.verdict}")
    return figure
