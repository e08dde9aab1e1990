"""Tubes for noise that is only known to be bounded: ellipsoids that no noise within the bounds can leave.

About the observer's place pi(x) for the plant's state x, its error e = z - pi(x) obeys

    e+ = A e + B1 w + B2 n + r,    |w| <= ell |C1 e + D12 n|,

with n the measurement noise and r the residual of pi, disturbance included, both in boxes. With S-procedure
multipliers tau, mu the set e'Pe <= s is invariant if

    alpha^2 e'Pe - e+'P e+ - tau (ell^2 |C1 e + D12 n|^2 - |w|^2) + sum mu_k (n_k / bound_k)^2 > 0,

    sum mu = (1 - alpha^2) s

(inescapable ellipsoids: Abedor, Nagpal and Poolla, IJRNC 1996), and the same way an estimate, linear in (e, w, n), is
bounded on it. For each alpha both are one semidefinite programme in (P, tau, mu, ...).
"""

import math
from itertools import product as corners
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from estimators.certificates.adversary import worst_errors
from estimators.certificates.dissipation import Inequality, Term, add_terms
from estimators.certificates.refine import fastest
from estimators.certificates.residuals import (
    LENGTH,
    POINTS,
    best_residuals,
    enclosed_over,
    points_of,
    region_of,
)
from estimators.certificates.rigorous import positive_definite_margin
from estimators.certificates.semidefinite import inequality_matrix, positive, solve
from estimators.certificates.tracker import HIGHEST_DEGREE, Tracker, may_turn
from estimators.luenberger import LuenbergerObserver
from plants.schema import to_tensors, validate

TYPICAL = 0.9
"""Quantile of a step's residual that an ellipsoid is made for; along trajectories the excess is added in its place."""
LEVELS, REFINED = 7, 4
"""Rates that are tried, and then again about the best."""
INTERIOR = (1e-7, 1e-5)
TURN = 2 * np.pi


class Ellipsoid(NamedTuple):
    """An invariant set for one estimate.

    Attributes
    ----------
    P : numpy.ndarray
        (nz, nz).
    rate, level : float
        Alpha and s.
    noise : float
        What the noise adds to the estimate's squared bound directly.
    box : numpy.ndarray
        (nz,), residual that it allows for.
    """

    P: np.ndarray
    rate: float
    level: float
    noise: float
    box: np.ndarray


def bounded_noise_tube(
    tracker: Tracker, observer, model, where, start, noise, disturbance, probability, seed, enclosed
) -> tuple:
    """Tube for bounded noise; the arguments of an :class:`~estimators.certificates.error_bound.ErrorBound`."""
    rng = np.random.default_rng(seed)
    least, _ = fastest(tracker.loop, tracker.metric, tracker.rate)
    along = isinstance(where, xr.Dataset)
    if along:
        validate(where, model, states=True)
        x, u, y = to_tensors(where)
        times, count = where["time"].values, len(x)
        half = count // 2
        rank = conformal_rank(count, probability)
        fitting = x[:half], u[:half]
    else:
        region = region_of(model, where)
        x, u, fitting = points_of(model, region, rng)
        times, count = np.arange(LENGTH) * model.dt, len(x)
    linear = isinstance(observer, LuenbergerObserver) and observer.model is model
    highest = 1 if enclosed or disturbance is not None else None  # an affine place passes disturbances on exactly
    residuals, embedding = best_residuals(tracker, observer, model, x, u, fitting, disturbance, rng, highest)
    if not along:
        largest = torch.from_numpy(np.maximum(np.abs(region.state_lower), np.abs(region.state_upper)))[None]
        seen = model.output(largest, region.input_centre) + torch.from_numpy(noise)
        start = np.where(
            may_turn(observer, start, largest, torch.from_numpy(region.input_centre)[None], seen)[0], TURN, start
        )
    cells = 0
    if enclosed and not linear:
        residuals, cells = enclosed_over(tracker, observer, model, embedding, region, disturbance, noise)
    chosen = residuals.state[:half] if along else residuals.state  # what calibrates the tube may not shape it
    typical = np.quantile(np.abs(chosen), TYPICAL if along else 1.0, axis=(0, 1))
    scaled_noise, n = noise / tracker.output_scale, len(tracker.state_scale)
    widths = np.empty((len(tracker.kinds), count if along else 1, len(times), n))
    rates, quiet, ellipsoids = [], np.empty((len(tracker.kinds), n)), {}
    for k, kind in enumerate(tracker.kinds):
        for i in range(n):
            found = smallest_ellipsoid(tracker, (kind, i), scaled_noise, residuals.directions, typical, least)
            if found is None:
                raise ValueError(
                    f"no invariant ellipsoid was found for {kind} {model.state_labels[i]!r}: the certified rate "
                    f"{least:.6f} may be too close to 1"
                )
            rates.append(found.rate)
            ellipsoids[k, i] = found
            without = smallest_ellipsoid(
                tracker, (kind, i), scaled_noise, residuals.directions, 0 * typical, least, (found.rate,)
            )
            quiet[k, i] = np.nan if without is None else np.sqrt(without.level + without.noise)
    steady = slice(-max(1, len(times) // 4), None)
    names = (typical.size + quiet.size) * (HIGHEST_DEGREE + 1)  # each candidate embedding had its chance

    def grown(start):
        for (k, i), found in ellipsoids.items():
            widths[k, :, :, i] = _over_time(tracker, found, (tracker.kinds[k], i), start, residuals, len(times), along)
        if not along:
            return widths[:, 0], None
        shape = widths[:, :half].mean(1)
        return shape, (widths[:, half:] / shape[:, None]).max((0, 2, 3))

    shape, scores = grown(start)
    tube, chance = shape, 1 - names / (POINTS + 1)
    if along:
        box = turned_start(observer, start, x, u, y, scores, rank)
        if (box != start).any():
            shape, scores = grown(box)
        tube, chance = float(np.sort(scores)[rank - 1]) * shape, probability
    if linear and disturbance is not None:
        verdict, chance = "proved", 1.0
        statement = "for every trajectory of the linear plant"
    elif enclosed:
        verdict, chance = "proved", 1.0
        statement = (
            f"as long as states and inputs stay in the region, on which the residual is enclosed ({cells} cells)"
        )
    else:
        verdict = "sampled"
        statement = (
            f"with probability {chance:.2%} for a fresh trajectory of states and inputs drawn like these (split "
            f"conformal prediction of what the residuals add up to, {count - half} of {count} trajectories)"
            if along
            else f"as long as the residual of each step stays below the largest of {POINTS} points of the region, as a "
            f"fresh one does with probability {chance:.3%}"
        )
    statement += (
        f", whatever the measurement noise{'' if disturbance is None else ' and the disturbances'} within bounds, from "
        "any start whose error is below start_error"
        + (", while no measured angle passes half a turn" if _follows_turns(observer) else "")
    )
    evidence = {
        "start_error": start,
        "measurement_bound": noise,
        "disturbance_bound": "disturbances are those of the trajectories" if disturbance is None else disturbance,
        "rates of the ellipsoids": f"{min(rates):.4f} to {max(rates):.4f}",
        "residual of a step, root mean square over states' deviations": np.sqrt(
            np.square(residuals.state).mean((0, 1))
        ),
        "share of what is bounded in the steady half-width": quiet / tube[:, steady].max(1),
        "embedding": "the plant's state" if embedding.weights is None else f"polynomial of degree {embedding.degree}",
    }
    if along:
        worst = worst_errors(tracker, observer, model, where, noise)
        evidence["largest error found with noise against the observer"] = worst
        evidence["steady half-width over that"] = tube[:, steady].max(1) * tracker.state_scale / worst
    bound = xr.DataArray(
        tube * tracker.state_scale,
        {"kind": list(tracker.kinds), "time": times, "state": list(model.state_labels)},
        ("kind", "time", "state"),
        name="half_width",
    )
    return bound, verdict, statement, chance, evidence


def _follows_turns(observer):
    return getattr(observer, "coordinates", None) is not None and observer.coordinates.follows_turns


def turned_start(observer, start, x, u, y, scores, rank) -> np.ndarray:
    """Start errors with room for whole turns, if more trajectories might need it than the probability leaves out.

    Otherwise those that might are counted as outside, in place, among the `scores` of the second half.
    """
    turned = may_turn(observer, start, x[:, 0], u[:, 0], y[:, 0])
    late = turned[len(turned) - len(scores) :].any(1)
    if np.sort(np.where(late, np.inf, scores))[rank - 1] == np.inf:
        return np.where(turned.any(0), TURN, start)
    scores[late] = np.inf
    return start


def conformal_rank(count: int, probability: float) -> int:
    """Place, among the scores of the second half of `count` trajectories, of the one that bounds a fresh one's."""
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1, got {probability!r}")
    half = count - count // 2
    rank = math.ceil((half + 1) * probability)
    if rank > half or count < 4:
        raise ValueError(
            f"a probability of {probability:g} takes {2 * math.ceil(probability / (1 - probability))} trajectories, "
            f"the dataset has {count}: half of them give the tube its shape, half its size"
        )
    return rank


def smallest_ellipsoid(tracker: Tracker, estimate, noise, directions, box, least, rates=None) -> Ellipsoid | None:
    """Proved invariant set with the smallest bound of one estimate, over rates between `least` and 1.

    Parameters
    ----------
    tracker : Tracker
        The observer.
    estimate : tuple
        Kind and state.
    noise : numpy.ndarray
        (noutputs,) bounds, scaled.
    directions, box : numpy.ndarray
        (nz, nstates) and (nz,), residual and disturbances as in :class:`Residuals`.
    least : float
        Smallest certified rate.
    rates : sequence of float, optional
        To try only these.
    """
    best, tried = None, {}

    def at(rate):
        if rate not in tried:
            tried[rate] = _ellipsoid(tracker, estimate, noise, directions, box, rate)
        return tried[rate]

    def size(e):
        return np.inf if e is None else e.level + e.noise

    if rates is not None:
        return min((at(rate) for rate in rates), key=size)
    rates = 1 - np.geomspace(1 - (least + 0.02 * (1 - least)), 0.02 * (1 - least), LEVELS)
    for rate in rates:
        best = min(best, at(float(rate)), key=size)
    if best is None:
        return None
    place = int(np.argmin(np.abs(rates - best.rate)))
    around = np.linspace(rates[max(place - 1, 0)], rates[min(place + 1, LEVELS - 1)], REFINED + 2)[1:-1]
    for rate in around:
        best = min(best, at(float(rate)), key=size)
    return best


def _ellipsoid(tracker, estimate, noise, directions, box, rate):
    """Solve the programme at a rate, and prove what comes out."""
    import cvxpy as cp

    loop = tracker.loop
    nx, nv, _, _ = loop.sizes
    c, d, e = tracker.rows(*estimate)
    present = noise > 0
    N = noise[present]
    B, D, row_n = (m[..., tracker.noise_columns][..., present] * N for m in (loop.B2, loop.D12, e))
    R = np.concatenate([np.diag(box), directions], axis=1)
    R = R[:, np.abs(R).max(0) > 0]
    nn, nr = B.shape[1], R.shape[1]
    nz = nx + nv + nn + nr
    into = np.hstack([loop.A, loop.B1, B, R])
    v = np.hstack([loop.C1, loop.D11, D, np.zeros((nv, nr))])
    row = np.concatenate([c, d, row_n])[None]
    units = [np.eye(1, nz, nx + nv + k) for k in range(nn + nr)]
    wrong = row_wrong = None
    if loop.errors is not None:  # of matrices formed with rounding, scaled by the noise's bounds as the columns are
        columns = [nx + j for j in np.asarray(tracker.noise_columns)[present]]
        place = tracker.kinds.index(estimate[0]) * len(tracker.state_scale) + estimate[1]
        wrong, row_wrong = (
            np.hstack([e[:, :nx], np.zeros((len(e), nv)), e[:, columns] * N * (1 + 1e-12)])
            for e in (loop.errors[0], loop.errors[1][[place]])
        )
        wrong = np.hstack([wrong, np.zeros((nx, nr))])
    short = nz - nr
    slopes = add_terms(loop.slopes(v, 1.0), nz)[0]
    # the programme's own units: noise and residual are within 1, the state about as large as they make it in a step
    typical = np.maximum(np.sqrt(np.square(np.hstack([B, R])).sum(1)), 1e-12)
    scale = np.concatenate([typical, np.full(nv, typical.max()), np.ones(nn + nr)])
    size = float(np.abs(c) @ typical + np.abs(row_n).sum()) + 1e-300
    P, tau, other, s = cp.Variable((nx, nx), symmetric=True), *(cp.Variable(nonneg=True) for _ in range(3))
    mu = cp.Variable(nn + nr, nonneg=True) if nn + nr else None
    sigma = cp.Variable(nn, nonneg=True) if nn else None
    inner = into * scale / scale[:nx, None]
    S = slopes * scale * scale[:, None]
    line = row * scale[:short] / size
    E = np.eye(nx, short)
    for distance in INTERIOR:
        value = inequality_matrix(P, rate, inner, [(tau, S)] if nv else [])
        value = value + sum(mu[k] * (unit.T @ unit) for k, unit in enumerate(units))
        reach = E.T @ P @ E - line.T @ line + (other * S[:short, :short] if nv else 0)
        reach = reach + sum(sigma[k] * (units[k].T @ units[k])[:short, :short] for k in range(nn))
        total = cp.sum(mu) if nn + nr else 0
        problem = cp.Problem(
            cp.Minimize(s + (cp.sum(sigma) if nn else 0)),
            [positive(value, distance), positive(reach, distance), total <= (1 - rate**2) * s],
        )
        if not solve(problem):
            return None
        metric = (P.value + P.value.T) / 2 / scale[:nx] / scale[:nx, None] * size**2
        weights = np.maximum(mu.value, 0.0) * size**2
        extra = np.maximum(sigma.value, 0.0) * size**2 if nn else np.zeros(0)
        ask = Inequality(
            into,
            (
                *loop.slopes(v, float(tau.value) * size**2 if nv else 1.0),
                *(Term(float(w), unit) for w, unit in zip(weights, units, strict=True)),
            ),
            wrong,
        )
        terms = (
            Term(1.0, E, metric),
            *loop.slopes(v[:, :short], float(other.value) * size**2 if nv else 1.0),
            *(Term(float(w), unit[:, :short]) for w, unit in zip(extra, units[:nn], strict=True)),
            Term(-1.0, row, error=row_wrong),
        )
        if (
            ask.with_metric(metric).prove(rate).verdict == "proved"
            and positive_definite_margin(*add_terms(terms, short)) > 0
        ):
            level = float(weights.sum() / (1 - rate**2)) * (1 + 1e-9)
            return Ellipsoid(metric, rate, level, float(extra.sum()) * (1 + 1e-9), box)
    return None


def _over_time(tracker, found, estimate, start, residuals, count, along):
    """Half-widths of an estimate, scaled, (trajectory, time).

    The distance to pi(x) shrinks from the start's towards the invariant set; what a residual exceeds the ellipsoid's
    box by is added where it occurs.
    """
    n = len(tracker.state_scale)
    kind, i = estimate
    k = tracker.kinds.index(kind)
    deviation = np.sqrt(np.diag(found.P))
    box = start / tracker.state_scale
    if n <= 12:
        places = np.array(list(corners((-1, 1), repeat=n))) * box
        first = np.sqrt(max(np.einsum("ki,ij,kj->k", places, found.P[:n, :n], places).max(), 0.0))
    else:
        first = deviation[:n] @ box
    root = np.linalg.cholesky(found.P).T
    if along:
        excess = np.sign(residuals.state) * np.maximum(np.abs(residuals.state) - found.box, 0.0)
        added, readout = np.linalg.norm(excess @ root.T, axis=-1), residuals.readout[k, :, :, i]
        distance = first + residuals.place @ deviation
    else:
        added, readout = np.zeros((1, count)), np.full((1, count), residuals.readout[k, ..., i].max())
        distance = np.array([first + residuals.place.max(0) @ deviation])
    jump = seen = np.zeros(count)
    if tracker.startup is not None:
        jump, seen = tracker.startup_effect(found.P, tracker.startup.largest(count))
        seen = seen[k, :, i]
    widths = np.empty((len(distance), count))
    for t in range(count):
        now = np.sqrt(distance**2 + found.noise) + readout[:, t] + seen[t]
        if kind == "filtered":
            widths[:, t] = now
        else:  # what is said at t is about t + 1; before the first measurement the estimate is the start
            widths[:, t] = widths[:, t] if t else box[i]
            if t + 1 < count:
                widths[:, t + 1] = now
        distance = np.sqrt(found.rate**2 * distance**2 + (1 - found.rate**2) * found.level) + jump[t] + added[:, t]
    return widths
