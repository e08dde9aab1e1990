"""Maximum-likelihood tuning of the noise covariances of a Gaussian filter."""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
import xarray as xr

from plants.arrays import as_covariance, covariance_factor
from plants.noise import GaussianNoise
from plants.schema import check_measured, to_tensors, validate

LARGEST_CHANGE = 1e4
"""No standard deviation is changed by more than this factor."""


class TuneResult(NamedTuple):
    """Outcome of tuning.

    Attributes
    ----------
    noise : GaussianNoise
        The covariances found; the filter now uses them.
    log_likelihood : float
        Mean log-likelihood per sample after tuning.
    log_likelihood_before : float
        The same before.
    evaluations : int
        Runs over the data.
    """

    noise: GaussianNoise
    log_likelihood: float
    log_likelihood_before: float
    evaluations: int


def tune(estimator, dataset: xr.Dataset, *, trajectories: int = 64, steps: int = 150, P0=None) -> TuneResult:
    """Fit Q and R by maximum likelihood of the innovations.

    Every state's process noise and every output's measurement noise gets a factor of its own
    (correlations are kept), found by L-BFGS on the logarithms. The gradient is a central
    difference whose 2p+1 filters run as one batch: forward only, any plant, no stored graph.

    Parameters
    ----------
    estimator : KalmanFilter, ExtendedKalmanFilter or UnscentedKalmanFilter
        Its noise is the starting guess, and is replaced by the result.
    dataset : xarray.Dataset
        Trajectories of the filter's plant. Long ones are cut into pieces of `steps` samples where
        the true state at the cut is in the data.
    trajectories, steps : int
        How much of the data to use.
    P0 : array_like, optional
        Covariance of the starts; default ``initial_cov`` of the dataset.

    Returns
    -------
    TuneResult

    Raises
    ------
    ValueError
        The dataset does not fit, or says nothing about the start.
    """
    model = estimator.model
    validate(dataset, model)
    check_measured(dataset, "dataset")
    x, u, y = to_tensors(dataset)
    if P0 is None and "initial_cov" not in dataset:
        raise ValueError("P0 is missing: give it to tune, or initial_cov to from_arrays")
    P0 = as_covariance(dataset["initial_cov"].values if P0 is None else P0, "P0", model.nstates)
    pieces = max(1, y.shape[1] // steps) if x is not None else 1
    length = min(steps, y.shape[1])

    def cut(tensor):
        return tensor[:, : pieces * length].unflatten(1, (pieces, length)).flatten(0, 1)[:trajectories]

    u, y = cut(u), cut(y)
    if x is not None:  # an unbiased start: the truth, off by a draw from P0
        offset = np.random.default_rng(0).standard_normal((len(y), model.nstates)) @ covariance_factor(P0).T
        start = cut(x)[:, 0] + torch.from_numpy(offset)
    elif "initial_mean" in dataset:
        start = torch.from_numpy(dataset["initial_mean"].values).expand(len(y), -1)
    else:
        raise ValueError("the dataset has neither true states nor initial_mean, so the filter cannot be started")
    process, measurement = estimator._process_factor, estimator._noise_factor
    nx, count = model.nstates, model.nstates + model.noutputs
    samples = int((~torch.isnan(y)).any(dim=-1).sum())

    def negative_log_likelihood(points: np.ndarray) -> np.ndarray:
        scale = torch.from_numpy(np.exp(points))
        trial = estimator.with_factors(
            (scale[:, :nx, None] * process)[:, None], (scale[:, nx:, None] * measurement)[:, None]
        )
        trial.gate = None  # a filter that leaves everything out would be the likeliest
        state = trial.init(start.expand(len(points), *start.shape), P0)
        total = torch.zeros(len(points), len(y), dtype=torch.float64)
        for k in range(length):
            state, likelihood = trial.correct_with_likelihood(state, y[:, k].expand(len(points), -1, -1), u[:, k])
            total += likelihood
            state = trial.predict(state, u[:, k])
        value = -total.sum(dim=1).numpy() / samples
        return np.where(np.isfinite(value), value, 1e6)

    h = 1e-3
    stencil = np.concatenate([np.zeros((1, count)), h * np.eye(count), -h * np.eye(count)])
    history = []

    def value_and_gradient(point):
        values = negative_log_likelihood(point + stencil)
        history.append(values[0])
        return values[0], (values[1 : count + 1] - values[count + 1 :]) / (2 * h)

    bound = np.log(LARGEST_CHANGE)
    found = scipy.optimize.minimize(
        value_and_gradient,
        np.zeros(count),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-bound, bound)] * count,
        options={"maxiter": 25, "ftol": 1e-6},
    )
    scale = np.exp(found.x)

    def scaled(covariance, by):
        return covariance * np.outer(by, by)

    noise = GaussianNoise(
        scaled(estimator.noise.process_cov, scale[:nx]), scaled(estimator.noise.measurement_cov, scale[nx:])
    )
    estimator._set_noise(noise)
    return TuneResult(noise, -float(found.fun), -float(history[0]), len(history))
