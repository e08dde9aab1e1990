"""Before an observer is designed: whether the state is seen, and whether injection can make an observer contract."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from estimators.certificates.metric_search import bisect, common_metric, constant_gain
from estimators.observability import observability
from plants.model import StateSpaceModel
from plants.schema import to_tensors, validate

POINTS, RECORDS, LENGTH = 512, 16, 50
WEAK = 1e-3
"""A direction whose outputs change by less than this share of the best seen one is called weakly observable."""


@dataclass(frozen=True, eq=False)
class PlantCheck:
    """Outcome of :func:`check_plant`.

    Attributes
    ----------
    rank : int
        Observable directions in the worst of the records looked at.
    weakest : float
        Smallest over largest singular value there, of scaled outputs to scaled states.
    unobservable : dict
        State label to its share of unobservable directions, in the worst record.
    injection_rate : float
        Smallest rate at which a constant metric contracts x+ = f(x, u) + g(x, u, y) for *some* injection g on all
        sampled points; NaN where there is none.
    constant_gain_rate : float
        The same with g = L (y - h(x, u)), one L; NaN where there is none.
    gain : numpy.ndarray or None
        That L, (nstates, noutputs), a predictor's gain.
    points : int
        How many points were sampled.
    nstates : int
        Of the plant.
    """

    rank: int
    weakest: float
    unobservable: dict
    injection_rate: float
    constant_gain_rate: float
    gain: np.ndarray | None
    points: int
    nstates: int

    @property
    def needs_lift(self) -> bool:
        """Whether an observer needs more states than the plant to contract in a constant metric."""
        return math.isnan(self.injection_rate)

    def __str__(self) -> str:
        seen = f"{self.rank} of {self.nstates} directions observable along the records"
        seen += f", weakest {self.weakest:.1e} of the best"
        if self.unobservable:
            seen += f"; not seen: {', '.join(f'{k} ({v:.0%})' for k, v in self.unobservable.items())}"
        elif self.weakest < WEAK:
            seen += ": weakly observable, noise will be amplified there"
        lines = [seen]
        if self.needs_lift:
            lines.append(
                f"no constant metric contracts f + any output injection on {self.points} sampled points: an observer "
                "of the plant's own size cannot be certified here. Give it more states: R2DNObserver(model, nstates="
                f"{2 * self.nstates} or so), whose estimate is a learned linear map of them"
            )
        else:
            lines.append(
                f"output injection can contract at {self.injection_rate:.4f} a step in a constant metric "
                f"({self.points} sampled points)"
            )
            lines.append(
                "one constant gain does not"
                if math.isnan(self.constant_gain_rate)
                else f"one constant gain does at {self.constant_gain_rate:.4f}"
            )
        return "\n".join(lines)


def check_plant(model: StateSpaceModel, dataset: xr.Dataset | None = None, *, seed: int = 0) -> PlantCheck:
    """Look whether a plant's state can be estimated, and by a contracting observer of its own size.

    Two questions. Is the state observable along records (empirical Gramian)? And is there, on sampled points, a
    constant metric P in which output injection can contract: P - A'PA / rate^2 > 0 in the directions that the output
    does not show, C d = 0 (by Finsler's lemma that is what injections can and cannot do)? Where not, an observer with
    as many states as the plant cannot contract in a constant metric and follow it too.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    dataset : xarray.Dataset, optional
        Trajectories with true states, on which it is looked at. Default: random points of the operating region,
        inputs held.
    seed : int
        Of the points.

    Returns
    -------
    PlantCheck

    Raises
    ------
    TypeError
        Not a StateSpaceModel.
    ValueError
        Data of another plant or without states.
    """
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
    rng, region = np.random.default_rng(seed), model.operating_region
    if dataset is None:
        x, u = region.sample(POINTS, seed)
        records = [(x[k], u[k]) for k in range(RECORDS)]
        scale = region.state_width / 2
    else:
        validate(dataset, model, states=True)
        states, inputs, _ = (part.numpy() for part in to_tensors(dataset))
        count, steps = states.shape[:2]
        pick = rng.choice(count * steps, min(POINTS, count * steps), replace=False)
        x, u = states.reshape(-1, model.nstates)[pick], inputs.reshape(count * steps, model.ninputs)[pick]
        scale = np.maximum(states.std((0, 1)), 1e-9 * region.state_width)
        long = min(LENGTH, steps)
        starts = rng.integers(steps - long + 1, size=RECORDS)
        records = [
            (states[i, k], inputs[i, k : k + long])
            for i, k in zip(rng.integers(count, size=RECORDS), starts, strict=True)
        ]
    reports = [
        observability(model, start, held, steps=len(held) if held.ndim == 2 else LENGTH, state_scale=scale)
        for start, held in records
    ]

    def weakest(report):
        return float(report.singular_values[-1] / max(report.singular_values[0], np.finfo(float).tiny))

    worst = min(reports, key=lambda report: (report.rank, weakest(report)))
    A, _, C, _ = (part.numpy() for part in model.linearize(x, u))
    A, C = A * scale / scale[:, None], C * scale
    _, values, right = np.linalg.svd(C)
    # a small singular value still shows its direction: only the rank decides what injection can do
    shown = (values > 1e-9 * max(values.max(), np.finfo(float).tiny)).sum(1)
    hidden = np.where(np.arange(model.nstates)[:, None] >= shown[:, None, None], right, 0.0)[:, int(shown.min()) :]
    if hidden.shape[1]:
        found = bisect(lambda rate: common_metric(A, rate, np.swapaxes(hidden, 1, 2)))
        injection = math.nan if found is None else found[0]
    else:
        injection = 0.0
    constant = None if math.isnan(injection) else bisect(lambda rate: constant_gain(A, C, rate))
    return PlantCheck(
        worst.rank,
        weakest(worst),
        worst.unobservable,
        injection,
        math.nan if constant is None else constant[0],
        None if constant is None else scale[:, None] * constant[1][0],
        len(x),
        model.nstates,
    )
