"""Run an estimator over a dataset: one free function for filters and observers."""

import inspect
import warnings

import torch
import xarray as xr
from tqdm.auto import tqdm

from estimators.base import Estimate, Estimator
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.smoother import smooth_sequence
from plants.angles import wrap
from plants.arrays import as_covariance, as_tensor
from plants.schema import to_tensors, validate

SCHEMA = "contracting-observers estimates 1"


LEAST, SHARE, LOST = 50, 0.4, 25.0
"""A filter may have diverged where more than `SHARE` of the measurements in the second half of its record, at least
`LEAST`, have a normalised innovation squared per channel above `LOST`: five times what its covariance says. It has, if
it also predicts them worse than the last measurement would: a filter whose covariances are only too small does not."""


def run(
    estimator: Estimator, dataset: xr.Dataset, *, x0=None, P0=None, Q=None, R=None, progress: bool = False
) -> xr.Dataset:
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
    Q, R : array_like, optional
        For a Gaussian filter, covariances that change: (time, n, n) or (trajectory, time, n, n). ``R[k]`` is that of
        the measurement at k, ``Q[k]`` acts on the way from k to k+1. Default: those of the filter.
    progress : bool
        Show a progress bar where the estimator goes step by step.

    Returns
    -------
    xarray.Dataset
        ``predicted`` and, where the estimator has them, ``filtered``, ``predicted_cov``,
        ``filtered_cov``, with dimensions (trajectory, time, state[, state_]), ``innovation`` (trajectory, time,
        output), whitened, and ``log_likelihood`` (trajectory, time). Declared angles are in
        [-pi, pi): differences to true states go through ``estimators.metrics.errors``.

    Raises
    ------
    TypeError
        `Q` or `R` for something else than a Gaussian filter.
    ValueError
        The dataset does not fit the estimator's plant, or nothing is known about the start; a singular innovation
        covariance, with trajectory and time step.

    Warns
    -----
    UserWarning
        The estimator diverged: its estimates stopped being finite, or in the second half of the record more than 40 %
        of the measurements lie beyond five times what its covariance says and it predicts them worse than the
        measurement before would. The first trajectory and time step are named; estimates are NaN from there on. A
        trajectory without any measurement is named too.
    """
    estimate = estimate_batch(estimator, dataset, x0=x0, P0=P0, Q=Q, R=R, progress=progress)
    dims = ("trajectory", "time", "state")
    variables = {"predicted": (dims, estimate.predicted.numpy())}
    if estimate.filtered is not None:
        variables["filtered"] = (dims, estimate.filtered.numpy())
    for name in ("predicted_cov", "filtered_cov"):
        if getattr(estimate, name) is not None:
            variables[name] = ((*dims, "state_"), getattr(estimate, name).numpy())
    if estimate.innovation is not None:
        variables["innovation"] = ((*dims[:2], "output"), estimate.innovation.numpy())
        variables["log_likelihood"] = (dims[:2], estimate.log_likelihood.numpy())
    return _labelled(estimator, dataset, variables)


def estimate_batch(
    estimator: Estimator, dataset: xr.Dataset, *, x0=None, P0=None, Q=None, R=None, progress: bool = False
) -> Estimate:
    """As `run`, as tensors (trajectory, time, state[, state])."""
    if not isinstance(estimator, Estimator):
        raise TypeError(f"estimator must be a filter or an observer, got {type(estimator).__name__}")
    state, u, y = start(estimator, dataset, x0, P0)
    name = type(estimator).__name__
    extra = {key: value for key, value in (("Q", Q), ("R", R)) if value is not None}
    if extra and not isinstance(estimator, GaussianFilter):
        raise TypeError(f"{sorted(extra)} are for Gaussian filters, got {name}")
    if progress and "progress" in inspect.signature(estimator.estimate_sequence).parameters:
        extra["progress"] = lambda steps: tqdm(steps, desc=name, unit="step", leave=False)
    measured = ~torch.isnan(y)
    blind = (~measured).all(dim=(1, 2)).nonzero().flatten().tolist()
    if blind:
        warnings.warn(f"trajectories {blind} hold no measurement at all", UserWarning, stacklevel=3)
    estimate = estimator.estimate_sequence(state, u, y, **extra)
    lost = ~torch.isfinite(estimate.predicted).all(dim=-1)
    if estimate.innovation is not None:
        suspect = _beyond(estimate.innovation, measured)
        which = suspect.any(1).nonzero().flatten()
        if len(which):
            worse = _worse_than_persistence(estimator.model, estimate.predicted[which], u[which], y[which])
            suspect[which[~worse]] = False
        lost |= suspect
    return _without(estimate, _warn_where(name, lost))


def _beyond(innovation: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """(trajectory, time) bool: from where on most innovations are too large, if they still are at the end."""
    channels = measured.sum(-1)
    taken = (channels > 0).long()
    beyond = (innovation.square().sum(-1) > LOST * channels).long() * taken
    from_here = [values.flip(1).cumsum(1).flip(1) for values in (beyond, taken)]
    most, middle = from_here[0] > SHARE * from_here[1], measured.shape[1] // 2
    lost = most[:, middle] & (from_here[1][:, middle] >= LEAST)
    # since when: back from the middle for as long as most of what follows is beyond
    since = most[:, : middle + 1].flip(1).long().cumprod(1).sum(1, keepdim=True)
    instants = torch.arange(measured.shape[1])
    return (beyond > 0) & (instants > middle - since) & lost[:, None]


def _worse_than_persistence(model, predicted, u, y) -> torch.Tensor:
    """(trajectory,) bool: whether the last measurement of a channel predicts the next better, in the second half."""
    expected = [model.output(predicted[:, k], u[:, k], k * model.dt) for k in range(y.shape[1])]
    errors = [wrap(y - torch.stack(expected, 1), model.output_is_angle)]
    before = y.clone()
    for k in range(1, y.shape[1]):
        before[:, k] = torch.where(torch.isnan(y[:, k]), before[:, k - 1], y[:, k])
    errors.append(wrap(y - torch.cat([y[:, :1], before[:, :-1]], 1), model.output_is_angle))
    own, persistence = (torch.nan_to_num(e[:, y.shape[1] // 2 :]).square().sum(1) for e in errors)
    return (own > persistence).any(1)


def _without(estimate: Estimate, lost: torch.Tensor) -> Estimate:
    """Estimates with NaN from the first lost instant of each trajectory on."""
    if not bool(lost.any()):
        return estimate
    after = torch.cumsum(lost, 1) > 0
    return Estimate(
        *(
            None if part is None else part.masked_fill(after.reshape(*after.shape, *[1] * (part.ndim - 2)), torch.nan)
            for part in estimate[:4]
        ),
        *estimate[4:],
    )


def smooth(estimator: GaussianFilter, dataset: xr.Dataset, *, x0=None, P0=None, Q=None, R=None) -> xr.Dataset:
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
    Q, R : array_like, optional
        Covariances that change, as for `run`.

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
    mean, cov = smooth_sequence(estimator, *start(estimator, dataset, x0, P0), Q=Q, R=R)
    _warn_where(f"the smoother of {type(estimator).__name__}", ~torch.isfinite(mean).all(dim=-1))
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


def _warn_where(name: str, lost: torch.Tensor) -> torch.Tensor:
    if bool(lost.any()):
        which = lost.any(dim=1).nonzero().flatten()
        first = int(lost[which[0]].nonzero()[0])
        warnings.warn(
            f"{name} diverged on {len(which)} of {len(lost)} trajectories, first on trajectory {int(which[0])} "
            f"at time step {first}; its estimates from there on are NaN",
            UserWarning,
            stacklevel=4,
        )
    return lost


def _labelled(estimator, dataset, variables):
    kept = ("time", "state", "output", "trajectory")
    coordinates = {name: dataset.coords[name] for name in kept if name in dataset.coords}
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
