"""Tests of a Gaussian filter: honest covariance, white innovations."""

import numpy as np
import scipy.stats
import torch
import xarray as xr

from estimators.gaussian.exogenous import ExogenousKalmanFilter
from estimators.gaussian.filter import GaussianFilter
from estimators.metrics import errors, nees
from estimators.run import start
from plants.schema import to_tensors

LAGS = 10


def consistency(
    estimator: GaussianFilter | ExogenousKalmanFilter,
    dataset: xr.Dataset,
    *,
    x0=None,
    P0=None,
    level: float = 0.99,
) -> xr.Dataset:
    """Test a Gaussian filter on data: normalised innovations, their whiteness, normalised errors.

    If model and noise are what the filter believes, whitened innovations are independent with variance 1: the
    normalised innovation squared (NIS) has a chi-square distribution with as many degrees of freedom as there are
    channels, and no lag is correlated. With true states the normalised estimation error squared (NEES) is tested too,
    over trajectories at each time, since errors of one trajectory are correlated in time (Bar-Shalom, Li and
    Kirubarajan, Estimation with Applications to Tracking and Navigation, ch. 5.4).

    Parameters
    ----------
    estimator : KalmanFilter, ExtendedKalmanFilter, UnscentedKalmanFilter or one of their kind
        The filter.
    dataset : xarray.Dataset
        Trajectories of its plant, with or without true states.
    x0, P0 : array_like, optional
        Start and its covariance, as for `run`.
    level : float
        Probability with which a consistent filter stays within each band.

    Returns
    -------
    xarray.Dataset
        ``innovation`` (trajectory, time, output), whitened; ``nis`` and the number of measured ``channels``
        (trajectory, time); ``autocorrelation`` (lag, output) of the innovations and its ``autocorrelation_band``,
        the lag counted in measurements of that output, NaN where there are too few; with true states ``nees``
        (trajectory, time), of the predicted estimate. Attributes: ``nis_per_channel`` and ``nees_per_state``, means
        that should be 1; ``nis_per_output``, the same for each output, given those before it at the same instant;
        ``nis_band``; ``nees_band`` (of a mean over trajectories at one time) and the share of times within it,
        ``nees_inside``; ``innovations_consistent`` and ``innovations_white``, 1 or 0.

    Raises
    ------
    TypeError
        Not a Gaussian filter.
    ValueError
        As for `run`, or `level` not between 0 and 1.
    """
    if not isinstance(estimator, GaussianFilter | ExogenousKalmanFilter):
        raise TypeError(f"consistency takes a Gaussian filter, got {type(estimator).__name__}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    state, u, y = start(estimator, dataset, x0, P0)
    estimate = estimator.estimate_sequence(state, u, y)
    w, measured = estimate.innovation.double().numpy(), ~torch.isnan(y).numpy()
    tail = (1 - level) / 2

    def band(freedom):
        return [float(scipy.stats.chi2.ppf(p, freedom) / freedom) for p in (tail, 1 - tail)]

    nis, channels = np.square(w).sum(-1), measured.sum()
    mean, nis_band = float(nis.sum() / channels), band(channels)
    if not channels:
        raise ValueError("the dataset holds no measurement")
    lags = np.arange(1, LAGS + 1)
    correlation, correlation_band = np.full((2, LAGS, w.shape[2]), np.nan)
    for i in range(w.shape[2]):
        values = _one_after_another(w[..., i], measured[..., i])
        power = np.nanmean(np.square(values)) if values.size else np.nan
        for lag in lags[: max(values.shape[1] - 1, 0)]:
            products = values[:, lag:] * values[:, :-lag]
            pairs = np.isfinite(products).sum()
            if pairs:
                # of independent numbers the correlation has variance 1 / pairs
                correlation[lag - 1, i] = np.nansum(products) / pairs / power
                correlation_band[lag - 1, i] = 1 / np.sqrt(pairs)
    some = np.isfinite(correlation)
    each = 1 - (1 - level) / max(some.sum(), 1)  # one level for all lags and outputs together
    correlation_band = correlation_band * scipy.stats.norm.ppf((1 + each) / 2)
    counts = measured.sum((0, 1))
    per_output = np.square(w).sum((0, 1)) / np.where(counts, counts, np.nan)
    dims, labels = ("trajectory", "time", "output"), list(estimator.model.output_labels)
    variables = {
        "innovation": (dims, w),
        "nis": (dims[:2], nis),
        "channels": (dims[:2], measured.sum(-1)),
        "autocorrelation": (("lag", "output"), correlation),
        "autocorrelation_band": (("lag", "output"), correlation_band),
    }
    attributes = {
        "estimator": type(estimator).__name__,
        "level": level,
        "states": estimator.model.nstates,
        "nis_per_channel": mean,
        "nis_band": nis_band,
        "nis_per_output": per_output,
        "innovations_consistent": int(nis_band[0] <= mean <= nis_band[1]),
        "innovations_white": int(some.any() and (np.abs(correlation) <= correlation_band)[some].all()),
    }
    x = to_tensors(dataset)[0]
    if x is not None:
        error = errors(estimator.model, estimate.predicted, x)
        variables["nees"] = (dims[:2], values := nees(error, estimate.predicted_cov.numpy()))
        nees_band, nx = band(len(y) * estimator.model.nstates), estimator.model.nstates
        at_times = values.mean(0) / nx
        attributes |= {
            "nees_per_state": float(at_times.mean()),
            "nees_band": nees_band,
            "nees_inside": float(((nees_band[0] <= at_times) & (at_times <= nees_band[1])).mean()),
        }
    coordinates = {"output": labels, "lag": lags} | {k: dataset.coords[k] for k in ("time",) if k in dataset.coords}
    return xr.Dataset(variables, coordinates, attributes)


def _one_after_another(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """(trajectory, number) of the values that were measured, in their order; NaN after the last."""
    compact = np.full((len(values), measured.sum(1).max(initial=0)), np.nan)
    rows, times = np.nonzero(measured)
    compact[rows, (np.cumsum(measured, 1) - 1)[rows, times]] = values[rows, times]
    return compact
