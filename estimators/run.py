"""Run an estimator over a dataset: one free function for filters and observers."""

import inspect
import warnings

import torch
import xarray as xr
from tqdm.auto import tqdm

from estimators.base import Estimate, Estimator
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.smoother import smooth_sequence
from plants.arrays import as_covariance, as_tensor
from plants.schema import to_tensors, validate

SCHEMA = "contracting-observers estimates 1"


def run(estimator: Estimator, dataset: xr.Dataset, *, x0=None, P0=None, progress: bool = False) -> xr.Dataset:
    """Estimate the states of every trajectory of a dataset, in one batch.

    Parameters
    ----------
    estimator : Estimator
        A filter or a trained observer.
    dataset : xarray.Dataset
        Trajectories of the estimator's plant; true states are not used.
    x0 : array_like, optional
        Start, (nstates,) or (trajectory, nstates). Default ``initial_mean`` of the dataset.
    P0 : array_like, optional
        Covariance of the start. Default ``initial_cov`` of the dataset.
    progress : bool
        Show a progress bar where the estimator goes step by step.

    Returns
    -------
    xarray.Dataset
        ``predicted`` and, where the estimator has them, ``filtered``, ``predicted_cov``,
        ``filtered_cov``, with dimensions (trajectory, time, state[, state_]).

    Raises
    ------
    ValueError
        The dataset does not fit the estimator's plant, or nothing is known about the start.

    Warns
    -----
    UserWarning
        Estimates stopped being finite: the first trajectory and time step are named, the
        values are left as NaN.
    """
    estimate = estimate_batch(estimator, dataset, x0=x0, P0=P0, progress=progress)
    dims = ("trajectory", "time", "state")
    variables = {"predicted": (dims, estimate.predicted.numpy())}
    if estimate.filtered is not None:
        variables["filtered"] = (dims, estimate.filtered.numpy())
    for name in ("predicted_cov", "filtered_cov"):
        if getattr(estimate, name) is not None:
            variables[name] = ((*dims, "state_"), getattr(estimate, name).numpy())
    return _labelled(estimator, dataset, variables)


def estimate_batch(estimator: Estimator, dataset: xr.Dataset, *, x0=None, P0=None, progress: bool = False) -> Estimate:
    """As `run`, as tensors (trajectory, time, state[, state])."""
    state, u, y = start(estimator, dataset, x0, P0)
    name = type(estimator).__name__
    extra = {}
    if progress and "progress" in inspect.signature(estimator.estimate_sequence).parameters:
        extra["progress"] = lambda steps: tqdm(steps, desc=name, unit="step", leave=False)
    estimate = estimator.estimate_sequence(state, u, y, **extra)
    _warn_where_not_finite(name, estimate.predicted)
    return estimate


def smooth(estimator: GaussianFilter, dataset: xr.Dataset, *, x0=None, P0=None) -> xr.Dataset:
    """Estimate every state from the whole of its record, past and future; one batch.

    Rauch-Tung-Striebel smoothing with the transition of the filter: exact for a Kalman filter, linearised
    for an EKF, unscented for a UKF.

    Parameters
    ----------
    estimator : KalmanFilter, ExtendedKalmanFilter, UnscentedKalmanFilter or one of their kind
        Filters the record first.
    dataset : xarray.Dataset
        Trajectories of the filter's plant.
    x0, P0 : array_like, optional
        Start and its covariance, as for `run`.

    Returns
    -------
    xarray.Dataset
        ``smoothed`` and ``smoothed_cov``, with dimensions (trajectory, time, state[, state_]).

    Raises
    ------
    TypeError
        Not a Gaussian filter.
    ValueError
        As for `run`; a predicted covariance that is singular.
    """
    if not isinstance(estimator, GaussianFilter):
        raise TypeError(f"smooth takes a Gaussian filter, got {type(estimator).__name__}")
    mean, cov = smooth_sequence(estimator, *start(estimator, dataset, x0, P0))
    _warn_where_not_finite(f"the smoother of {type(estimator).__name__}", mean)
    dims = ("trajectory", "time", "state")
    variables = {"smoothed": (dims, mean.numpy()), "smoothed_cov": ((*dims, "state_"), cov.numpy())}
    return _labelled(estimator, dataset, variables)


def start(estimator: Estimator, dataset: xr.Dataset, x0, P0) -> tuple:
    """State at the beginning, inputs and measurements; x0 and P0 as for `run`."""
    model = estimator.model
    validate(dataset, model)
    _, u, y = to_tensors(dataset)
    if x0 is None:
        if "initial_mean" not in dataset:
            raise ValueError(
                "x0 is missing: give x0= (and P0= for a filter), or initial_mean and initial_cov to from_arrays"
            )
        x0 = dataset["initial_mean"].values
    x0 = as_tensor(x0, "x0", model.nstates)
    if x0.shape not in ((model.nstates,), (len(y), model.nstates)):
        raise ValueError(f"x0 must have shape ({model.nstates},) or ({len(y)}, {model.nstates}), got {tuple(x0.shape)}")
    if P0 is None and "initial_cov" in dataset:
        P0 = as_covariance(dataset["initial_cov"].values, "initial_cov", model.nstates)
    return estimator.init(x0.expand(len(y), -1), P0), u, y


def _warn_where_not_finite(name, values):
    bad = ~torch.isfinite(values).all(dim=-1)
    if bool(bad.any()):
        lost = bad.any(dim=1).nonzero().flatten()
        first = int(bad[lost[0]].nonzero()[0])
        warnings.warn(
            f"{name} diverged on {len(lost)} of {len(bad)} trajectories, first on trajectory {int(lost[0])} "
            f"at time step {first}; its estimates there are NaN",
            UserWarning,
            stacklevel=4,
        )


def _labelled(estimator, dataset, variables):
    coordinates = {name: dataset.coords[name] for name in ("time", "state", "trajectory") if name in dataset.coords}
    coordinates.setdefault("state", list(estimator.model.state_labels))
    return xr.Dataset(
        variables,
        coordinates,
        {
            "schema": SCHEMA,
            "plant": estimator.model.name,
            "estimator": type(estimator).__name__,
            "dt": estimator.model.dt,
        },
    )
