"""What can be said of a Gaussian filter: from which wrong starts it found back, where it was tried."""

import math
from itertools import product

import numpy as np
import torch
import xarray as xr

from estimators.certificates.result import Certificate
from estimators.gaussian.exogenous import ExogenousKalmanFilter
from estimators.gaussian.filter import GaussianFilter
from estimators.metrics import errors
from plants.schema import to_tensors, validate

LEVELS = (-1.0, -0.5, 0.5, 1.0)
"""Displacements of a start, in half-widths of the region."""
MOST_STARTS, MOST_TRAJECTORIES = 128, 64
FOUND, NEAR = 0.1, 0.01
"""A filter has found back when what is left of the displacement is below these shares of its error or of the region."""


def certify_basin(estimator: GaussianFilter | ExogenousKalmanFilter, dataset: xr.Dataset, seed: int = 0) -> Certificate:
    """Start a filter at displaced states, with the covariance of the start, and see whether it forgets them.

    Each run is compared with the same filter started at the true state, on the same data. A filter's gain
    depends on its estimate, or on that of its reference, so there is no metric and nothing to prove.

    Parameters
    ----------
    estimator : GaussianFilter or ExogenousKalmanFilter
        The filter.
    dataset : xarray.Dataset
        Trajectories with true states.
    seed : int
        Of the directions tried, where a grid would be too large.

    Returns
    -------
    Certificate
        See :func:`estimators.certify`; `bound` is the share of runs that found back.
    """
    model = estimator.model
    validate(dataset, model, states=True)
    if dataset.sizes["time"] < 8:
        raise ValueError(f"dataset has {dataset.sizes['time']} time steps, at least 8 are needed")
    dataset = dataset.isel(trajectory=slice(MOST_TRAJECTORIES))
    x, u, y = to_tensors(dataset)
    half = model.operating_region.state_width / 2
    starts = half * _displacements(model.nstates, np.random.default_rng(seed))
    P0 = dataset["initial_cov"].values if "initial_cov" in dataset else np.diag(np.square(half) / 3)
    last = slice(-(dataset.sizes["time"] // 4), None)

    def run(x0):
        estimate = estimator.estimate_sequence(estimator.init(x0, P0), u, y)
        return (estimate.predicted if estimate.filtered is None else estimate.filtered)[..., last, :]

    reference = run(x[:, 0])
    error = np.sqrt(np.square(errors(model, reference, x[:, last])).mean((0, 1)))
    left = errors(
        model, run(x[None, :, 0] + torch.from_numpy(starts)[:, None]), reference.expand(len(starts), -1, -1, -1)
    )
    left = np.sqrt(np.square(left).mean(2))  # (start, trajectory, state)
    found = (np.nan_to_num(left, nan=np.inf) < np.maximum(FOUND * error, NEAR * half)).all(-1)
    count, share = found.size, float(found.mean())
    evidence = {
        "starts": f"{len(starts)} displacements of up to half the region's width, on {len(x)} trajectories",
        "runs that found back": f"{int(found.sum())} of {count}",
        "meaning": "an empirical basin, no certificate: other starts, inputs or noise may fare otherwise",
    }
    claim = f"the {type(estimator).__name__} forgets every start tried within the record"
    if found.all():
        evidence["confidence"] = (
            f"for trajectories like these: with confidence {0.999:.1%} a start from the grid is forgotten with "
            f"probability {0.001 ** (1 / len(x)):.1%} at least"
        )
        return Certificate(claim, "sampled", share, math.nan, None, evidence=evidence)
    start, trajectory = np.argwhere(~found)[0]
    evidence["two starts"] = np.stack([x[trajectory, 0].numpy(), x[trajectory, 0].numpy() + starts[start]])
    evidence["trajectory"] = int(trajectory)
    return Certificate(claim, "refuted", share, math.nan, None, evidence=evidence)


def _displacements(n, rng):
    """Grid of displacements in half-widths, or axes and random directions where the grid is too large."""
    if len(LEVELS) ** n + 2 * n <= MOST_STARTS:
        return np.array(list(product(LEVELS, repeat=n)))
    axes = np.concatenate([np.eye(n), -np.eye(n)])[: MOST_STARTS // 2]
    return np.concatenate([axes, rng.choice([-1.0, 1.0], (MOST_STARTS - len(axes), n))])
