"""What is certified over a region: a map (x, v) -> x+ with Jacobians, and straight-line code where there is some."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import control as ct
import numpy as np
import torch
import xarray as xr

from estimators.luenberger import LuenbergerObserver
from plants.maps import ROUTES
from plants.model import StateSpaceModel, discretize
from plants.program import NotRecordable, Program, derivatives
from plants.region import OperatingRegion

OPERATIONS = 20_000
SIGNALS = (("x", "state"), ("u", "input"), ("y", "output"))


class UpdateMap(NamedTuple):
    """A map over a box.

    Attributes
    ----------
    name : str
        What it is, in words.
    labels : tuple of str
        Of x, then of v.
    nstates : int
        Size of x.
    step : callable
        ``(x, v)`` of (count, nstates), (count, ninputs) tensors to (count, nstates).
    jacobian : callable
        The same to (count, nstates, nstates), by x.
    program : Program or None
        From (x, v, time) to x+ and its Jacobian by (x, v), flat.
    lower, upper : numpy.ndarray
        Corners of the box of (x, v).
    exact : bool
        Whether the Jacobians are derivatives and not differences.
    """

    name: str
    labels: tuple[str, ...]
    nstates: int
    step: Callable
    jacobian: Callable
    program: Program | None
    lower: np.ndarray
    upper: np.ndarray
    exact: bool

    def sample(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw uniform points of the box: x and v."""
        return self.split(rng.uniform(self.lower, self.upper, (count, len(self.lower))))

    def split(self, points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors x and v from points (count, nstates + ninputs)."""
        return torch.from_numpy(points[:, : self.nstates].copy()), torch.from_numpy(points[:, self.nstates :].copy())

    def check_inside(self, dataset: xr.Dataset) -> None:
        """Raise ValueError where trajectories leave the box, with the label and how far they go."""
        known = {
            str(label): dataset[name].sel({dim: label}).values for name, dim in SIGNALS for label in dataset[dim].values
        }
        absent = [label for label in self.labels if label not in known]
        if absent:
            raise ValueError(f"the dataset has no {absent}, which the region bounds")
        for label, lower, upper in zip(self.labels, self.lower, self.upper, strict=True):
            low, high = np.nanmin(known[label]), np.nanmax(known[label])
            if low < lower or high > upper:
                raise ValueError(
                    f"the data leave the region: {label} goes from {low:.4g} to {high:.4g}, the region from "
                    f"{lower:.4g} to {upper:.4g}"
                )

    @classmethod
    def of(cls, subject, region: Mapping | None) -> "UpdateMap":
        """Make one of whatever has a constant update.

        Parameters
        ----------
        subject : StateSpaceModel, control.InputOutputSystem (discrete), LuenbergerObserver or callable
            A callable is ``(x, u, y) -> x_next``, written as python-control's functions are.
        region : mapping or None
            ``{label: (lower, upper)}``; for a callable ``{'x': (lower, upper), 'u': ..., 'y': ...}`` with arrays.
        """
        if isinstance(subject, LuenbergerObserver):
            return _of_luenberger(subject, region)
        if isinstance(subject, ct.InputOutputSystem):
            subject = _sampled(subject, region)
        elif not isinstance(subject, StateSpaceModel) and callable(subject):
            subject = _wrapped(subject, region)
            region = None
        if not isinstance(subject, StateSpaceModel):
            raise TypeError(
                "certify takes an R2DNObserver, a network or its matrices, a linear observer or a filter; over a "
                "region a StateSpaceModel, a discrete python-control system, a LuenbergerObserver or a function (x, u, "
                f"y) -> x_next; got {type(subject).__name__}"
            )
        model, box = subject, subject.operating_region
        if region is not None:
            box = _merged(box, region, model.state_labels, model.input_labels)
        check_constant(model)
        record = model.recorded
        return cls(
            f"the update of {model.name!r}",
            (*model.state_labels, *model.input_labels),
            model.nstates,
            model.step,
            lambda x, v: model.step_jacobian(x, v)[1].detach().numpy(),
            None if record is None else record.step_program,
            np.concatenate([box.state_lower, box.input_lower]),
            np.concatenate([box.state_upper, box.input_upper]),
            model.jacobian_source != ROUTES[-1],
        )


def check_constant(model: StateSpaceModel) -> None:
    """Refuse a plant that depends on time: what is certified is one map."""
    varies, record = False, model.recorded
    if record is not None:
        at = model.nstates + model.ninputs
        programs = record.step_program, record.output_program
        varies = any(node.operation == "input" and node.index == at for p in programs for node in p.nodes)
    elif model.matrices is None:  # no record to look at: probe
        x, u = (torch.from_numpy(a) for a in model.operating_region.sample(16, seed=0))
        for function in (model.step, model.output):
            now = function(x, u, 0.0)
            varies |= any(not torch.equal(now, function(x, u, t)) for t in np.geomspace(0.01, 1e4, 40))
    if varies:
        raise ValueError(f"{model.name!r} depends on time: only an update that stays the same can be certified")


def _merged(box, region, states, inputs):
    """Region of the model with what the caller says put in its place."""
    if not isinstance(region, Mapping):
        raise TypeError(f"region must be a mapping {{label: (lower, upper)}}, got {type(region).__name__}")
    bounds = dict(zip(states, zip(box.state_lower, box.state_upper, strict=True), strict=True))
    bounds |= dict(zip(inputs, zip(box.input_lower, box.input_upper, strict=True), strict=True))
    return OperatingRegion.from_bounds(bounds | dict(region), states, inputs)


def _sampled(system, region):
    if system.dt == 0:
        raise ValueError(f"{system.name!r} is continuous: give plants.discretize(system, dt=...) instead")
    if region is None:
        raise ValueError(f"region is missing: {system.name!r} does not say where it runs")
    absent = [label for label in (*system.state_labels, *system.input_labels) if label not in region]
    if absent:
        raise ValueError(f"region must bound every state and input of {system.name!r}, {absent} are missing")
    return discretize(
        system,
        system.dt if isinstance(system.dt, float | int) and system.dt > 0 and system.dt is not True else 1.0,
        operating_region=region,
    )


def _wrapped(function, region):
    """Make a system whose states are x and whose inputs are (u, y)."""
    if not isinstance(region, Mapping) or set(region) - {"x", "u", "y"} or "x" not in region:
        raise ValueError(
            "for a function (x, u, y) -> x_next, region must be {'x': (lower, upper), 'u': (lower, upper), 'y': "
            f"(lower, upper)}} with an array for each bound, got {region!r}"
        )
    labels, bounds, sizes = {}, {}, {}
    for name in ("x", "u", "y"):
        lower, upper = (np.atleast_1d(np.asarray(b, dtype=float)) for b in region.get(name, ((), ())))
        if lower.shape != upper.shape or lower.ndim != 1:
            raise ValueError(f"region[{name!r}] must be two arrays of one length, got {region[name]!r}")
        sizes[name] = len(lower)
        labels[name] = [f"{name}[{i}]" for i in range(len(lower))]
        bounds |= dict(zip(labels[name], zip(lower, upper, strict=True), strict=True))
    nu = sizes["u"]

    def update(t, x, v, params):
        return function(x, v[:nu], v[nu:])

    system = ct.nlsys(
        update,
        None,
        states=labels["x"],
        inputs=[*labels["u"], *labels["y"]],
        outputs=sizes["x"],
        dt=1.0,
        name=getattr(function, "__name__", "observer"),
    )
    return discretize(system, operating_region=bounds)


def _of_luenberger(observer, region):
    model, predictor = observer.model, observer.form == "predictor"
    labels = (*model.state_labels, *model.input_labels, *model.output_labels)
    region = dict(region or {})
    unknown = set(region) - set(labels)
    if unknown:
        raise ValueError(f"region names {sorted(unknown)}; the observer has {list(labels)}")
    own = _merged(
        model.operating_region,
        {k: b for k, b in region.items() if k not in model.output_labels},
        model.state_labels,
        model.input_labels,
    )
    absent = [label for label in model.output_labels if label not in region]
    if absent and not predictor:
        raise ValueError(f"region must bound the measurements {absent} too: where a filter gain leads depends on them")
    given = {k: b for k, b in region.items() if k in model.output_labels}
    if absent:  # what the sensors show there; the Jacobian of a predictor does not depend on it
        seen = model.output(*own.sample(4096, seed=0)).numpy()
        shown = zip(model.output_labels, zip(seen.min(0), seen.max(0), strict=True), strict=True)
        given = dict(shown) | given
    outputs = OperatingRegion.from_bounds(given, (), model.output_labels)
    check_constant(model)
    nx, nu, gain = model.nstates, model.ninputs, observer.gain.numpy()

    angles = bool(model.state_is_angle.any() or model.output_is_angle.any())

    def corrected(x, u, y):  # angles are not wrapped: a wrap would be a jump, and the claim says so
        return x + (y - model.output(x, u)) @ observer.gain.mT

    def step(x, v):
        u, y = v[..., :nu], v[..., nu:]
        if predictor:
            return model.step(x, u) + corrected(x, u, y) - x
        return model.step(corrected(x, u, y), u)

    def jacobian(x, v):
        u, y = v[..., :nu], v[..., nu:]
        _, C, _ = model.output_jacobian(x, u)
        if predictor:
            return (model.step_jacobian(x, u)[1] - observer.gain @ C).detach().numpy()
        filtered = corrected(x, u, y)
        reduced = torch.eye(nx, dtype=torch.float64) - observer.gain @ C
        return (model.step_jacobian(filtered, u)[1] @ reduced).detach().numpy()

    def build(*z):
        x, u, y, t = (np.array(part, dtype=object) for part in (z[:nx], z[nx : nx + nu], z[nx + nu : -1], z[-1]))
        t = t.item()
        change = gain @ (y - np.array(record.output(x, u, t), dtype=object))
        if predictor:
            following = np.array(record.step(x, u, t), dtype=object) + change
        else:
            following = np.array(record.step(x + change, u, t), dtype=object)
        return [*following, *derivatives(following, z[:-1]).ravel()]

    record, program = model.recorded, None
    if record is not None:
        try:
            program = Program(build, len(labels) + 1, limit=OPERATIONS)
        except NotRecordable:
            program = None
    return UpdateMap(
        f"the Luenberger observer of {model.name!r}" + (", its angles not wrapped," if angles else ""),
        labels,
        nx,
        step,
        jacobian,
        program,
        np.concatenate([own.state_lower, own.input_lower, outputs.input_lower]),
        np.concatenate([own.state_upper, own.input_upper, outputs.input_upper]),
        model.jacobian_source != ROUTES[-1],
    )
