"""Residuals of an observer: what it errs in a step although it is where it should be, at z = pi(x).

Along trajectories, at points of a region, or enclosed over it.
"""

from collections.abc import Mapping
from itertools import product as corners
from typing import NamedTuple

import numpy as np
import torch

from estimators.certificates.residual_bound import enclosed_residuals
from estimators.certificates.tracker import HIGHEST_DEGREE, embeddings
from plants.angles import wrap
from plants.region import OperatingRegion
from plants.schema import to_tensors
from plants.simulate import simulate

POINTS, TRAJECTORIES, LENGTH = 40_000, 256, 120


class Residuals(NamedTuple):
    """What is not noise, at points or along trajectories, in the observer's coordinates.

    Attributes
    ----------
    state : numpy.ndarray
        (trajectory, time, nz), pi(f(x, u) + d) - f_o(pi(x), u, h(x)), the part linear in d left out.
    directions : numpy.ndarray
        (nz, nstates), that part: columns for each disturbance at its bound.
    readout : numpy.ndarray
        (kind, trajectory, time, nstates), sizes of the errors of the estimates at e = 0.
    place : numpy.ndarray
        (trajectory, nz), size of pi(x) minus the scaled state at the start.
    """

    state: np.ndarray
    directions: np.ndarray
    readout: np.ndarray
    place: np.ndarray


def region_of(model, where):
    """Box of states and inputs, labels left out as in the operating region."""
    if not isinstance(where, Mapping):
        raise TypeError(f"where must be a Dataset or a region {{label: (lower, upper)}}, got {type(where).__name__}")
    own = model.operating_region
    bounds = dict(zip(model.state_labels, zip(own.state_lower, own.state_upper, strict=True), strict=True))
    bounds |= dict(zip(model.input_labels, zip(own.input_lower, own.input_upper, strict=True), strict=True))
    return OperatingRegion.from_bounds(bounds | dict(where), model.state_labels, model.input_labels)


def enclosed_over(tracker, observer, model, embedding, region, disturbance, noise):
    """Residuals over the box from their enclosures, in the place of sampled ones."""
    lower = np.concatenate([region.state_lower, region.input_lower])
    upper = np.concatenate([region.state_upper, region.input_upper])
    state, readout, cells = enclosed_residuals(tracker, observer, model, embedding, lower, upper, noise)
    for k, kind in enumerate(tracker.kinds):
        if kind == "predicted":
            readout[k] += disturbance / tracker.state_scale
    corner = np.array(list(corners((0.0, 1.0), repeat=model.nstates))) * region.state_width + region.state_lower
    scaled = observer.coordinates.from_plant(torch.from_numpy(corner))
    place = (embedding(torch.from_numpy(corner)) - observer.pad(scaled)).abs().amax(0).numpy()  # affine: at a corner
    place = place * (1 + 1e-9) + (0.0 if embedding.weights is None else 1e-9)
    # an affine embedding passes disturbances on exactly
    unit = torch.zeros(1, model.nstates, dtype=torch.float64)
    step = torch.diag(torch.from_numpy(disturbance))
    directions = (embedding(unit + step) - embedding(unit)).numpy().T
    return Residuals(state[None, None], directions, readout[:, None, None], place[None]), cells


def points_of(model, region, rng):
    """Points of a region, (count, 1, ...), and trajectories to fit the embedding on."""
    points = region.sample(POINTS, int(rng.integers(2**31)))
    lower, upper = (
        np.concatenate([getattr(region, f"{part}_{side}") for part in ("state", "input")])
        for side in ("lower", "upper")
    )
    if len(lower) <= 12:  # the largest residuals lie at the edges
        edge = np.array(list(corners((0.0, 1.0), repeat=len(lower)))) * (upper - lower) + lower
        points = [np.concatenate([a, b]) for a, b in zip(points, np.split(edge, [model.nstates], axis=1), strict=True)]
    inside = simulate(
        model,
        trajectories=TRAJECTORIES,
        steps=LENGTH,
        seed=int(rng.integers(2**31)),
        initial_mean=region.state_centre,
        initial_cov=np.square(region.state_width / 4),
    )
    x, u = (torch.from_numpy(a)[:, None] for a in points)
    return x, u, to_tensors(inside)[:2]


def best_residuals(tracker, observer, model, x, u, fitting, disturbance, rng, highest=None):
    """Residuals in the embedding whose worst residuals are least, in the observer's metric."""
    root = np.linalg.cholesky(tracker.metric).T
    best = (np.inf, None, None)
    if disturbance is None:  # that of the trajectories, their last step apart
        after = model.step(x, u)
        drawn = torch.nn.functional.pad(wrap(x[:, 1:] - after[:, :-1], model.state_is_angle), (0, 0, 0, 1))
        bounds = np.zeros(x.shape[-1])
    else:
        bounds, drawn = disturbance, disturbance * rng.uniform(-1, 1, x.shape)
        drawn[:, ::2] = disturbance * np.sign(drawn[:, ::2])
        drawn = torch.from_numpy(drawn)
    for embedding in embeddings(observer, *fitting, highest or HIGHEST_DEGREE):
        residuals = measure(tracker, observer, model, embedding, x, u, drawn, bounds)
        along = x.shape[1] > 1
        worst = np.linalg.norm(residuals.state[: len(fitting[0]) if along else None] @ root.T, axis=-1).max(1)
        score = float(np.quantile(worst, 0.9 if along else 1.0)) * (1 + 1e-9 * len(embedding.powers))
        if score < best[0]:
            best = (score, residuals, embedding)
    return best[1:]


def measure(tracker, observer, model, embedding, x, u, drawn, bounds) -> Residuals:
    """Residuals at states and inputs (trajectory, time, ...) under drawn disturbances.

    What is linear in disturbances with positive `bounds` is left out, since an ellipsoid allows for the whole of it.
    """
    n, kinds = model.nstates, tracker.kinds
    coordinates = getattr(observer, "coordinates", None)
    if coordinates is not None:
        x = coordinates.in_frame_of(x, u, model.output(x, u))

    def scaled(x):
        return x if coordinates is None else coordinates.from_plant(x)

    y, after = model.output(x, u), model.step(x, u)
    z = embedding(x)
    if coordinates is None:
        state, estimate = observer.step(observer.init(z), u, y)
        following = state.mean
        out = following if estimate.filtered is None else torch.cat([estimate.filtered, following], -1)
    else:
        v, _ = observer.settled_input(u[..., None, :], y[..., None, :])
        following, out = observer.explicit().collapse().step(z, v[..., 0, :])
    moved, calm = embedding(after + drawn), embedding(after)
    active, columns = bounds > 0, np.zeros((z.shape[-1], n))
    flat, change = drawn.flatten(0, 1).numpy(), (moved - calm).flatten(0, 1).numpy()
    if active.any():
        columns[:, active] = np.linalg.lstsq(flat[:, active], change, rcond=None)[0].T
    residual = (moved - following).numpy() - drawn.numpy() @ columns.T
    readout = []
    for k, kind in enumerate(kinds):
        truth = x if kind == "filtered" else after + drawn * torch.from_numpy(bounds == 0)
        seen = (out[..., k * n : (k + 1) * n] - scaled(truth)).abs().numpy()
        readout.append(seen + (bounds / tracker.state_scale if kind == "predicted" else 0.0))
    place = (z - torch.nn.functional.pad(scaled(x), (0, z.shape[-1] - n)))[:, 0].abs().numpy()
    return Residuals(residual, columns * bounds, np.array(readout), place)
