"""Tubes for noise that is only known to be bounded: ellipsoids that no noise within the bounds can leave.

About the observer's place pi(x) for the plant's state x, its error e = z - pi(x) obeys

    e+ = A e + B1 w + B2 n + r,    |w| <= ell |C1 e + D12 n|,

with n the measurement noise and r the residual of pi, disturbance included, both in boxes. With S-procedure
multipliers tau, mu the set e'Pe <= s is invariant if

    alpha^2 e'Pe - e+'P e+ - tau (ell^2 |C1 e + D12 n|^2 - |w|^2) + sum mu_k (n_k / bound_k)^2 > 0,  sum mu = (1 - alpha^2) s,

(inescapable ellipsoids: Abedor, Nagpal and Poolla, IJRNC 1996), and the same way an estimate, linear in (e, w, n), is
bounded on it. For each alpha both are one semidefinite programme in (P, tau, mu, ...).
"""

from collections.abc import Mapping
from itertools import product as corners
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from estimators.certificates.dissipation import Inequality, Term, add_terms
from estimators.certificates.refine import fastest
from estimators.certificates.rigorous import positive_definite_margin
from estimators.certificates.semidefinite import inequality_matrix, positive, solve
from estimators.certificates.tracker import Embedding, Tracker
from estimators.networks.rollout import Recursion
from plants.region import OperatingRegion
from plants.schema import to_tensors, validate
from plants.simulate import simulate

POINTS, FITTED, LENGTH = 40_000, 256, 120
LEVELS, REFINED = 7, 4
"""Rates that are tried, and then again about the best."""
INTERIOR = (1e-7, 1e-5)


class Residuals(NamedTuple):
    """Bounds of what is not noise, in the observer's coordinates.

    Attributes
    ----------
    state : numpy.ndarray
        (nz,), of pi(f(x, u) + d) - f_o(pi(x), u, h(x)), the part linear in d left out.
    directions : numpy.ndarray
        (nz, nstates), that part: columns for each disturbance at its bound.
    readout : numpy.ndarray
        (kinds, nstates), of the estimates at e = 0.
    place : numpy.ndarray
        (nz,), of pi(x) minus the scaled state, for the start.
    count : int
        Points, or trajectories, they are the largest of.
    what : str
        Which of the two.
    """

    state: np.ndarray
    directions: np.ndarray
    readout: np.ndarray
    place: np.ndarray
    count: int
    what: str


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
    """

    P: np.ndarray
    rate: float
    level: float
    noise: float


def bounded_noise_tube(tracker: Tracker, observer, model, where, start, noise, disturbance, seed) -> tuple:
    """Tube for bounded noise; the arguments of an :class:`~estimators.certificates.error_bound.ErrorBound`."""
    rng = np.random.default_rng(seed)
    x, u, fitting, times = _points(model, where, rng)
    embedding = Embedding(observer, *fitting)
    residuals = measure(tracker, observer, model, embedding, x, u, disturbance, rng)
    n, nz = len(tracker.state_scale), len(tracker.loop.A)
    widths = np.zeros((len(tracker.kinds), len(times), n))
    shares, rates = [], []
    least, _ = fastest(tracker.loop, tracker.metric, tracker.rate)
    scaled_noise = noise / tracker.output_scale
    for k, kind in enumerate(tracker.kinds):
        for i in range(n):
            found = smallest_ellipsoid(tracker, (kind, i), scaled_noise, residuals, least)
            if found is None:
                raise ValueError(
                    f"no invariant ellipsoid was found for {kind} {model.state_labels[i]!r}: the certified rate "
                    f"{least:.6f} may be too close to 1"
                )
            quiet = smallest_ellipsoid(tracker, (kind, i), 0 * scaled_noise, residuals, least)
            widths[k, :, i] = _over_time(tracker, found, (kind, i), start, residuals, len(times))
            whole = np.sqrt(found.level + found.noise) + residuals.readout[k, i]
            without = np.sqrt(quiet.level + quiet.noise) + residuals.readout[k, i]
            shares.append((whole, without, residuals.readout[k, i]))
            rates.append(found.rate)
    widths *= tracker.state_scale
    bound = xr.DataArray(
        widths,
        {"kind": list(tracker.kinds), "time": times, "state": list(model.state_labels)},
        ("kind", "time", "state"),
        name="half_width",
    )
    whole, without, readout = np.array(shares).T.reshape(3, len(tracker.kinds), n)
    names = nz + len(tracker.kinds) * n
    chance = 1 - names / (residuals.count + 1)
    if embedding.weights is None and model.matrices is not None:
        verdict, chance = "proved", 1.0
        statement = "for every trajectory of the linear plant"
    else:
        verdict = "sampled"
        statement = (
            f"for every trajectory on which the residuals stay within the largest of {residuals.count} sampled "
            f"{residuals.what}, as a fresh one of them does with probability {chance:.3%} at least"
        )
    statement += (
        ", whatever the noise and the disturbances within their bounds, from any start whose error is below start_error"
    )
    evidence = {
        "start_error": start,
        "measurement_bound": noise,
        "disturbance_bound": disturbance,
        "rates of the ellipsoids": f"{min(rates):.4f} to {max(rates):.4f}",
        "residual of a step, scaled": residuals.state,
        "share of residual and disturbance in the steady half-width": without / whole,
        "share of the readout's residual": readout / whole,
    }
    if embedding.weights is not None:
        evidence["degree of the embedding"] = max(map(len, embedding.powers))
    return bound, verdict, statement, chance, evidence


def _points(model, where, rng):
    """States and inputs where residuals are taken, trajectories to fit the embedding on, and times of the tube."""
    if isinstance(where, xr.Dataset):
        validate(where, model, states=True)
        x, u, _ = to_tensors(where)
        return x, u, (x[:FITTED], u[:FITTED]), where["time"].values
    if not isinstance(where, Mapping):
        raise TypeError(f"where must be a Dataset or a region {{label: (lower, upper)}}, got {type(where).__name__}")
    own = model.operating_region
    bounds = dict(zip(model.state_labels, zip(own.state_lower, own.state_upper, strict=True), strict=True))
    bounds |= dict(zip(model.input_labels, zip(own.input_lower, own.input_upper, strict=True), strict=True))
    region = OperatingRegion.from_bounds(bounds | dict(where), model.state_labels, model.input_labels)
    points = region.sample(POINTS, int(rng.integers(2**31)))
    lower, upper = np.concatenate([region.state_lower, region.input_lower]), np.concatenate([region.state_upper, region.input_upper])
    if len(lower) <= 12:  # the largest residuals lie at the edges
        edge = np.array(list(corners((0.0, 1.0), repeat=len(lower)))) * (upper - lower) + lower
        points = [np.concatenate([a, b]) for a, b in zip(points, np.split(edge, [model.nstates], axis=1), strict=True)]
    x, u = (torch.from_numpy(a)[:, None] for a in points)
    inside = simulate(
        model,
        trajectories=FITTED,
        steps=LENGTH,
        seed=int(rng.integers(2**31)),
        initial_mean=region.state_centre,
        initial_cov=np.square(region.state_width / 4),
    )
    states, inputs, _ = to_tensors(inside)
    return x, u, (states, inputs), np.arange(LENGTH) * model.dt


def measure(tracker, observer, model, embedding, x, u, disturbance, rng) -> Residuals:
    """Largest residuals over points (..., nstates), (..., ninputs)."""
    n, count, what = model.nstates, len(x), "trajectories" if x.shape[1] > 1 else "points"
    x, u = x.flatten(0, 1), u.flatten(0, 1)
    if hasattr(observer, "coordinates"):
        x = observer.coordinates.in_frame_of(x, u, model.output(x, u))
    scale = tracker.state_scale
    d = disturbance * rng.uniform(-1, 1, x.shape)
    d[1::2] = disturbance * np.sign(d[1::2])
    y, after = model.output(x, u), model.step(x, u)
    z = embedding(x)
    following, out = _observe(observer, z, u, y)
    moved, calm = embedding(after + torch.from_numpy(d)).numpy(), embedding(after).numpy()
    directions = np.linalg.lstsq(d[:, disturbance > 0], moved - calm, rcond=None)[0].T if (disturbance > 0).any() else None
    columns = np.zeros((z.shape[-1], n))
    if directions is not None:
        columns[:, disturbance > 0] = directions
    residual = np.abs(moved - d @ columns.T - following.numpy()).max(0)
    readout = []
    for k, kind in enumerate(tracker.kinds):
        truth = x if kind == "filtered" else after
        seen = out[:, k * n : (k + 1) * n] - _scaled(observer, truth)
        readout.append(np.abs(seen.numpy()).max(0) + (disturbance / scale if kind == "predicted" else 0.0))
    place = np.abs((z - torch.nn.functional.pad(_scaled(observer, x), (0, z.shape[-1] - n))).numpy()).max(0)
    return Residuals(residual, columns * disturbance, np.array(readout), place, count, what)


def _scaled(observer, x):
    return observer.coordinates.from_plant(x) if hasattr(observer, "coordinates") else x


def _observe(observer, z, u, y):
    """One step of the observer in its coordinates, the start-up signal faded: next state and outputs."""
    if not hasattr(observer, "coordinates"):
        state, estimate = observer.step(observer.init(z), u, y)
        kinds = [e for e in (estimate.filtered,) if e is not None]
        return state.mean, torch.cat([*kinds, state.mean], -1)
    v, _, _ = observer.coordinates.network_input(u[:, None], y[:, None], startup=0.0)
    matrices: Recursion = observer.explicit().collapse()
    return matrices.step(z, v[:, 0])


def smallest_ellipsoid(tracker: Tracker, estimate, noise, residuals: Residuals, least: float) -> Ellipsoid | None:
    """Proved invariant set with the smallest bound of one estimate, over rates between `least` and 1."""
    best, tried = None, {}

    def at(rate):
        if rate not in tried:
            tried[rate] = _ellipsoid(tracker, estimate, noise, residuals, rate)
        return tried[rate]

    def size(e):
        return np.inf if e is None else e.level + e.noise

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


def _ellipsoid(tracker, estimate, noise, residuals, rate):
    """Solve the programme at a rate, and prove what comes out."""
    import cvxpy as cp

    loop = tracker.loop
    nx, nv, _, _ = loop.sizes
    c, d, e = tracker.rows(*estimate)
    present = noise > 0
    N = noise[present]
    B, D, row_n = (m[..., tracker.noise_columns][..., present] * N for m in (loop.B2, loop.D12, e))
    R = np.concatenate([np.diag(residuals.state)[:, residuals.state > 0], residuals.directions], axis=1)
    R = R[:, np.abs(R).max(0) > 0]
    nn, nr = B.shape[1], R.shape[1]
    nz = nx + nv + nn + nr
    into = np.hstack([loop.A, loop.B1, B, R])
    v = np.hstack([loop.C1, loop.D11, D, np.zeros((nv, nr))])
    row = np.concatenate([c, d, row_n])[None]
    units = [np.eye(1, nz, nx + nv + k) for k in range(nn + nr)]
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
            (*loop.slopes(v, float(tau.value) * size**2 if nv else 1.0), *(Term(float(w), unit) for w, unit in zip(weights, units, strict=True))),
        )
        terms = (
            Term(1.0, E, metric),
            *loop.slopes(v[:, :short], float(other.value) * size**2 if nv else 1.0),
            *(Term(float(w), unit[:, :short]) for w, unit in zip(extra, units[:nn], strict=True)),
            Term(-1.0, row),
        )
        if (
            ask.with_metric(metric).prove(rate).verdict == "proved"
            and positive_definite_margin(*add_terms(terms, short)) > 0
        ):
            level = float(weights.sum() / (1 - rate**2)) * (1 + 1e-9)
            return Ellipsoid(metric, rate, level, float(extra.sum()) * (1 + 1e-9))
    return None


def _over_time(tracker, found, estimate, start, residuals, count):
    """Half-width of an estimate at each time, scaled: the set shrinks from the start's to the invariant one."""
    loop, n = tracker.loop, len(tracker.state_scale)
    kind, i = estimate
    k = tracker.kinds.index(kind)
    box = np.zeros(len(loop.A))
    box[:n] = start / tracker.state_scale
    distance = float((np.sqrt(np.diag(found.P)) * (box + residuals.place)).sum())
    if n <= 12:
        places = np.array(list(corners((-1, 1), repeat=n))) * box[:n]
        inner = np.sqrt(max(np.einsum("ki,ij,kj->k", places, found.P[:n, :n], places).max(), 0.0))
        distance = min(distance, float(inner + (np.sqrt(np.diag(found.P)) * residuals.place).sum()))
    startup, jump, seen = tracker.startup, 0.0, 0.0
    if startup is not None:
        # the start-up signal s enters as B2 s, and through the network, which is slope-Lipschitz
        b, d = loop.B2[:, -1], loop.slope * float(np.linalg.norm(loop.D12[:, -1]))
        root = np.linalg.cholesky(found.P).T
        jump = float(np.linalg.norm(root @ b) + np.linalg.norm(root @ loop.B1, 2) * d)
        row = tracker.rows(kind, i)
        seen = float(abs(row[2][-1]) + np.linalg.norm(row[1]) * d)
    fading = np.power(startup, np.arange(count)) if startup is not None else np.zeros(count)
    widths, level = np.empty(count), found.level
    for t in range(count):
        at = t if kind == "filtered" else t - 1
        if at < 0:
            widths[t] = start[i] / tracker.state_scale[i]
            continue
        widths[t] = np.sqrt(max(distance**2, 0.0) + found.noise) + residuals.readout[k, i] + seen * fading[at]
        distance = np.sqrt(found.rate**2 * distance**2 + (1 - found.rate**2) * level) + jump * fading[at]
    return widths
