"""How far an estimate can be from the plant's state: tubes from a contraction certificate (mathematics.md, 9)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import product as corners

import numpy as np
import scipy.linalg
import scipy.optimize
import xarray as xr

from estimators.certificates.dissipation import EPS, InMetric, Term, add_terms
from estimators.certificates.invariant import bounded_noise_tube, conformal_rank, turned_start
from estimators.certificates.refine import fastest, units_of
from estimators.certificates.result import plain
from estimators.certificates.rigorous import positive_definite_margin
from estimators.certificates.tracker import Tracker, check_same_plant
from estimators.metrics import errors
from plants.arrays import as_tensor
from plants.schema import to_tensors, validate

RATES = 8
"""Rates at which the decay of a wrong start is bounded; the tube takes the smallest bound at each time."""


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """A tube around an observer's estimates.

    Attributes
    ----------
    half_width : xarray.DataArray
        (kind, time, state), in the plant's units: the true state is within this of the estimate.
    verdict : str
        ``'sampled'``: with the probability in `statement`; ``'proved'``: for certain, under what it says.
    statement : str
        What the tube means, and on what it rests.
    probability : float
        With which a fresh trajectory stays inside at all times, 1 where proved.
    evidence : dict
        Numbers behind it; what limits it.
    """

    half_width: xr.DataArray
    verdict: str
    statement: str
    probability: float
    evidence: dict = field(default_factory=dict)

    @property
    def steady(self) -> xr.DataArray:
        """Half-width when the start is forgotten, (kind, state): the largest in the last quarter of the record."""
        return self.half_width.isel(time=slice(-max(1, self.half_width.sizes["time"] // 4), None)).max("time")

    def __str__(self) -> str:
        lines = [f"error tube: {self.verdict.upper()}", f"  {self.statement}"]
        for kind in self.half_width["kind"].values:
            widths = self.steady.sel(kind=kind)
            text = ", ".join(f"{s} {float(w):.4g}" for s, w in zip(widths["state"].values, widths.values, strict=True))
            lines.append(f"  steady half-width, {kind}: {text}")
        lines += [
            f"  {name}: {value if isinstance(value, str) else np.array2string(np.asarray(value), precision=4)}"
            for name, value in self.evidence.items()
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """All fields as JSON knows them; numbers that are not finite become None."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)} | {"steady": plain(self.steady)}

    def violations(self, observer, dataset: xr.Dataset, x0) -> np.ndarray:
        """Count where trajectories leave the tube.

        Parameters
        ----------
        observer : R2DNObserver or LuenbergerObserver
            Whose tube it is.
        dataset : xarray.Dataset
            Trajectories with true states, no longer than the tube.
        x0 : array_like
            (trajectory, nstates), starts of the observer, within the start error allowed.

        Returns
        -------
        numpy.ndarray
            (trajectory,) of bool: True where some state was outside at some time.
        """
        found = _errors(observer, dataset, as_tensor(x0, "x0", observer.model.nstates))
        width = self.half_width.transpose("kind", "time", "state").values[:, : dataset.sizes["time"]]
        return np.any(np.abs(found) > width[:, None], axis=(0, 2, 3))


def certify_error(
    observer,
    model,
    where: xr.Dataset | Mapping,
    *,
    start_error=None,
    measurement_bound=None,
    disturbance_bound=None,
    probability: float = 0.99,
    residual: str = "sampled",
    seed: int = 0,
) -> ErrorBound:
    """Bound the error of a contracting observer on a plant, over time, from any start.

    **Without noise bounds** (`where` a dataset) the trajectories are a sample of what the plant and its noise
    do. The observer started at the true state makes an error that is only theirs; from any other start its run
    approaches that one by the certificate. So with s_i(t) the first, of which a quantile over trajectories is
    taken (split conformal prediction: half of them give its shape in time, half its size), and e the start error,

        |x_hat_i(t) - x_i(t)| <= s_i(t) + min over proved (rate, P) of rho_i(P) rate^t |e|_P + (start-up signals),

    for a fresh trajectory of the same kind with the stated probability at all times together, whatever the start.

    **With noise bounds** the measurement noise, and the disturbance of each step, may be anything within them, at worst
    against the observer. The observer's place z = pi(x) for each plant state is fitted; its residual, pi(f(x, u) + d) -
    f_o(pi(x), u, h(x)), is bounded by sampling, along the trajectories of a dataset or over a region;
    and an ellipsoid about pi(x) that no noise and residual can leave is found for each state by a semidefinite
    programme over rate and metric, and proved.

    Parameters
    ----------
    observer : R2DNObserver, or LuenbergerObserver of a linear plant
        Proved to be contracting.
    model : StateSpaceModel
        The plant it is to track: its own, or another with the same labels (a changed parameter).
    where : xarray.Dataset or mapping
        Trajectories with true states, or with noise bounds also a region ``{label: (lower, upper)}`` of states and
        inputs; labels left out are as in the model's operating region.
    start_error : array_like, optional
        (nstates,), how far the observer's start may be from the true state, each state. Default: the width of the
        operating region.
    measurement_bound : array_like, optional
        (noutputs,), largest measurement noise of each output.
    disturbance_bound : array_like, optional
        (nstates,), largest disturbance of each state per step. Default: what drove the trajectories of the dataset
        belongs to them; over a region, none.
    probability : float
        Wanted for a fresh trajectory of the kind of a dataset's.
    residual : {'sampled', 'enclosed'}
        Over a region: the largest of many points; or bounded by interval arithmetic, which makes the tube ``'proved'``
        while the plant stays there, for plants of a few states and inputs.
    seed : int
        Of sampling.

    Returns
    -------
    ErrorBound

    Raises
    ------
    TypeError
        An observer without certificate.
    ValueError
        Observer, model and data do not fit together; too few trajectories for the probability; a region that data
        leave, or is empty; bounds that are negative.
    """
    if residual not in ("sampled", "enclosed"):
        raise ValueError(f"residual must be 'sampled' or 'enclosed', got {residual!r}")
    if residual == "enclosed" and isinstance(where, xr.Dataset):
        raise ValueError("residual='enclosed' is for a region: trajectories are samples")
    tracker = Tracker.of(observer)
    check_same_plant(observer, model)
    width = model.operating_region.state_width if start_error is None else start_error
    start = _bound(width, "start_error", model.nstates)
    if measurement_bound is None and disturbance_bound is None:
        if not isinstance(where, xr.Dataset):
            raise ValueError("over a region, measurement_bound is needed (zeros for noise-free measurements)")
        return _from_trajectories(tracker, observer, model, where, start, probability)
    noise = _bound(
        np.zeros(model.noutputs) if measurement_bound is None else measurement_bound,
        "measurement_bound",
        model.noutputs,
    )
    disturbance = None
    if disturbance_bound is not None or not isinstance(where, xr.Dataset):
        disturbance = _bound(
            np.zeros(model.nstates) if disturbance_bound is None else disturbance_bound,
            "disturbance_bound",
            model.nstates,
        )
    enclosed = residual == "enclosed"
    found = bounded_noise_tube(tracker, observer, model, where, start, noise, disturbance, probability, seed, enclosed)
    return ErrorBound(*found)


def _bound(value, name, size):
    value = as_tensor(value, name).numpy()
    if value.shape != (size,) or (value < 0).any():
        raise ValueError(f"{name} must be {size} numbers that are not negative, got {value}")
    return value


def _from_trajectories(tracker, observer, model, dataset, start, probability):
    validate(dataset, model, states=True)
    count = dataset.sizes["trajectory"]
    half, rank = count - count // 2, conformal_rank(count, probability)
    x, u, y = to_tensors(dataset)
    found = np.abs(_errors(observer, dataset, x[:, 0], model))  # (kind, trajectory, time, state)
    shape = np.sqrt(np.square(found[:, : count - half]).mean(1))
    shape = np.maximum(shape, 0.1 * shape.max(1, keepdims=True) + np.finfo(float).tiny)
    scores = (found[:, count - half :] / shape[:, None]).max((0, 2, 3))
    box = turned_start(observer, start, x, u, y, scores, rank)
    size = float(np.sort(scores)[rank - 1])
    missing = np.isnan(dataset["y"].values)
    decay, rates = _forgetting(tracker, box, dataset.sizes["time"], missing if missing.any() else None)
    tube = size * shape + decay
    largest = found[..., -max(1, found.shape[2] // 4) :, :].max((1, 2))
    bound = _labelled(tube, tracker.kinds, dataset, model)
    result = ErrorBound(
        bound,
        "sampled",
        f"a fresh trajectory drawn like these stays inside at all times with probability {probability:.2%} (split "
        f"conformal prediction, {half} of {count} trajectories), from any start whose error is below start_error, for "
        "which the contraction certificate is proved",
        probability,
        {
            "start_error": start,
            "certified rates of forgetting": f"{rates[0]:.4f} to {rates[-1]:.4f}",
            "largest error seen after settling": "; ".join(
                f"{kind} {np.array2string(v, precision=4)}" for kind, v in zip(tracker.kinds, largest, strict=True)
            ),
        },
    )
    result.evidence["steady half-width over largest error"] = result.steady.values / np.maximum(largest, 1e-300)
    return result


def _errors(observer, dataset, x0, model=None):
    """Errors of all kinds of estimates from given starts, (kind, trajectory, time, state)."""
    x, u, y = to_tensors(dataset)
    estimate = observer.estimate_sequence(observer.init(x0), u, y)
    found = [e for e in (estimate.filtered, estimate.predicted) if e is not None]
    return np.stack([errors(model or observer.model, e, x) for e in found])


def _forgetting(tracker, start, steps, missing=None):
    """Bound on the difference that a wrong start makes, (kind, time, state), and the rates used."""
    loop, n = tracker.loop, len(tracker.state_scale)
    least, _ = fastest(loop, tracker.metric, tracker.rate)
    inequality, unit = loop.contraction(), units_of(loop, tracker.metric)
    proved = [(tracker.rate, inequality.with_metric(tracker.metric))]
    for rate in np.linspace(least, 1.0, RATES + 1)[:-1]:
        for P in list(inequality.metrics(rate, unit))[:3]:
            here = inequality.with_metric(P)
            if here.prove(rate).verdict == "proved":
                proved.append((rate, here))
    times = np.arange(steps)
    best = np.full((len(tracker.kinds), steps, n), np.inf)
    vertices = np.array(list(corners((-1, 1), repeat=n))) if n <= 12 else None
    box = np.zeros(len(loop.A))
    box[:n] = start / tracker.state_scale
    signals = None
    if tracker.startup is not None:  # they differ too, by what the start differs
        signals = tracker.startup.forgetting(steps, missing) @ box[:n]
    for rate, here in proved:
        if vertices is not None:
            places = vertices * box[:n]
            distance = math.sqrt(max(np.einsum("ki,ij,kj->k", places, here.P[:n, :n], places).max(), 0.0))
        else:  # the box lies in the sum of its axes
            distance = float((np.sqrt(np.diag(here.P)) * box).sum())
        apart, seen = distance * rate**times, np.zeros((len(tracker.kinds), steps, n))
        if signals is not None:
            moved, seen = tracker.startup_effect(here.P, signals)
            for t in times[1:]:
                apart[t] = rate * apart[t - 1] + moved[t - 1]
        for k, kind in enumerate(tracker.kinds):
            for i in range(n):
                size = readout_bound(tracker, here, kind, i) * (1 + 1e-9)
                value = tracker.state_scale[i] * (size * apart + seen[k, :, i])
                if kind == "predicted":  # about the next instant; before the first measurement it is the start itself
                    value = np.concatenate([tracker.state_scale[i] * box[i : i + 1], value[:-1]])
                best[k, :, i] = np.minimum(best[k, :, i], value)
    return best, (least, max(rate for rate, _ in proved))


def readout_bound(tracker: Tracker, here: InMetric, kind: str, state: int) -> float:
    """Proved bound on the change of an estimate for a change of size 1 of the observer's state in a metric."""
    c, d, _ = tracker.rows(kind, state)
    nx, nv, _, _ = tracker.loop.sizes
    _, v, _ = tracker.loop.rows(False)
    row, wrong = np.concatenate([c, d])[None], None
    if tracker.loop.errors is not None:
        place = tracker.kinds.index(kind) * len(tracker.state_scale) + state
        wrong = np.hstack([tracker.loop.errors[1][[place], :nx], np.zeros((1, nv))])
    E = np.eye(nx, nx + nv)

    def inside(square, tau):
        terms = (Term(square, E, here.P), *tracker.loop.slopes(v, tau), Term(-1.0, row, error=wrong))
        return positive_definite_margin(*add_terms(terms, nx + nv)) > 0

    if not nv:
        square = float(c @ np.linalg.solve(here.P, c)) * (1 + 1e-9) + np.finfo(float).tiny
        return math.sqrt(square) * (1 + 4 * EPS) if inside(square, 1.0) else math.inf
    # slopes scaled by tau leave square P - tau N > 0; the least square is convex in tau
    Q, _ = add_terms(tracker.loop.slopes(v, 1.0), nx + nv)
    root = np.linalg.cholesky(here.P)
    least = float(d @ np.linalg.solve(Q[nx:, nx:], d)) + 1e-12

    def square_at(exponent):
        inner = least * (1 + math.exp(exponent)) * Q - row.T @ row
        schur = inner[:nx, nx:] @ np.linalg.solve(inner[nx:, nx:], inner[nx:, :nx]) - inner[:nx, :nx]
        whitened = scipy.linalg.solve_triangular(
            root, scipy.linalg.solve_triangular(root, schur, lower=True).T, lower=True
        )
        return float(np.linalg.eigvalsh((whitened + whitened.T) / 2)[-1])

    found = scipy.optimize.minimize_scalar(square_at, bounds=(-14, 28), method="bounded", options={"xatol": 0.05})
    # at the minimum the check may be lost in rounding: then a little away from it
    for exponent in (found.x, found.x + 1.0, found.x + 3.0):
        bound = _least_square(inside, square_at(exponent), least * (1 + math.exp(exponent)))
        if math.isfinite(bound):
            return bound
    return math.inf


def _least_square(inside, square, tau):
    """Root of the smallest of a few squares above a computed one that is proved; infinite if none is."""
    for excess in (1e-9, 1e-6, 1e-3, 1e-1):
        proved = max(square, 0.0) * (1 + excess) + 1e-14
        if math.isfinite(proved) and inside(proved, tau):
            return math.sqrt(proved) * (1 + 4 * EPS)
    return math.inf


def _labelled(tube, kinds, dataset, model):
    return xr.DataArray(
        tube,
        {"kind": list(kinds), "time": dataset["time"].values, "state": list(model.state_labels)},
        ("kind", "time", "state"),
        name="half_width",
    )
