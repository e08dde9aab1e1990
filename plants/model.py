"""The bridge: from a python-control system to a batched, differentiable discrete-time model."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import control as ct
import numpy as np
import torch

from plants.arrays import as_tensor
from plants.flow import flow_of, linear_flow
from plants.maps import ROUTES, central_differences, row_jacobian
from plants.record import Record, make_record
from plants.region import OperatingRegion
from plants.sampling import INTEGRATORS, check_substeps, sampled, sampled_matrices


@dataclass(frozen=True, eq=False)
class StateSpaceModel:
    """A discrete-time plant x_{k+1} = f(x_k, u_k, t_k), y_k = h(x_k, u_k, t_k), batched in torch.

    Made by :func:`discretize`. Tensors carry features last and any number of leading batch
    dimensions; all arithmetic is float64; integers, lists and NumPy arrays are accepted.

    Attributes
    ----------
    name : str
        The plant's name.
    dt : float
        Sample time, in the plant's unit of time. Inputs are held constant between samples.
    state_labels, input_labels, output_labels : tuple of str
        As in python-control.
    jacobian_source : str
        ``'linear'``, ``'autodiff'``, ``'traced'`` or ``'finite difference'``; for an
        interconnection the least exact of its parts.
    vectorised : bool
        False when the plant function had to be called column by column.
    angle_states, angle_outputs : tuple of str
        Labels of angles in radians; differences of these are taken modulo a turn everywhere.
    operating_region : OperatingRegion
        Where the plant is meant to run.
    time_base : str
        How time was treated, in words.
    matrices : tuple of numpy.ndarray or None
        (A, B, C, D) of a linear plant, sampled exactly.
    system : control.NonlinearIOSystem
        What `discretize` was given.
    """

    name: str
    dt: float
    state_labels: tuple[str, ...]
    input_labels: tuple[str, ...]
    output_labels: tuple[str, ...]
    jacobian_source: str
    vectorised: bool
    angle_states: tuple[str, ...]
    angle_outputs: tuple[str, ...]
    operating_region: OperatingRegion
    time_base: str
    matrices: tuple[np.ndarray, ...] | None
    system: ct.NonlinearIOSystem = field(repr=False)
    _step: Callable = field(repr=False)
    _output: Callable = field(repr=False)
    _settings: dict = field(repr=False)
    _resample: Callable | None = field(repr=False)
    _record: tuple[Callable, Callable] = field(repr=False)
    _resampled: bool = field(repr=False, default=False)  # a sample that may never come again: not worth a record

    @property
    def nstates(self) -> int:
        """Number of states."""
        return len(self.state_labels)

    @property
    def ninputs(self) -> int:
        """Number of inputs; may be zero."""
        return len(self.input_labels)

    @property
    def noutputs(self) -> int:
        """Number of outputs."""
        return len(self.output_labels)

    @property
    def state_is_angle(self) -> torch.Tensor:
        """(nstates,) bool: which states are angles."""
        return torch.tensor([label in self.angle_states for label in self.state_labels])

    @property
    def output_is_angle(self) -> torch.Tensor:
        """(noutputs,) bool: which outputs are angles."""
        return torch.tensor([label in self.angle_outputs for label in self.output_labels])

    def __repr__(self) -> str:
        return (
            f"<StateSpaceModel {self.name!r}: {self.nstates} states, {self.ninputs} inputs, {self.noutputs} outputs; "
            f"{self.time_base}; Jacobians: {self.jacobian_source}>"
        )

    def __reduce__(self):
        """Travel to another process as the python-control system it is made of, discretised again there."""
        return _again, (self.system, self.dt, self._settings)

    def with_dt(self, dt: float) -> "StateSpaceModel":
        """Return the same plant over a sample of another length.

        Parameters
        ----------
        dt : float
            Length of the sample, positive. The integration step is at most that of this model.

        Returns
        -------
        StateSpaceModel

        Raises
        ------
        ValueError
            A discrete plant, whose sample time is its own; `dt` not positive and finite.
        """
        _check_dt(dt)
        if math.isclose(dt, self.dt, rel_tol=1e-9):
            return self
        if self._resample is None:
            raise ValueError(f"{self.name!r} is discrete with dt={self.dt:g}: it cannot advance by dt={dt:g}")
        return self._resample(float(dt))

    def with_system(self, system, operating_region: Mapping | None = None) -> "StateSpaceModel":
        """Discretise another python-control system as this one was: same dt, integration, region and angles.

        Parameters
        ----------
        system : control.NonlinearIOSystem
            With at least the signals that this model's angles and region name.
        operating_region : mapping, optional
            Bounds of its new states and inputs, default (-1, 1).

        Returns
        -------
        StateSpaceModel
        """
        region = {**(self._settings["operating_region"] or {}), **(operating_region or {})}
        return discretize(system, self.dt, **{**self._settings, "operating_region": region})

    def step(self, x, u=None, t: float = 0.0) -> torch.Tensor:
        """Advance the state by one sample.

        Parameters
        ----------
        x : array_like
            (..., nstates).
        u : array_like, optional
            (..., ninputs), held constant over the step; may be left out when there are none.
        t : float
            Time at the start of the step.

        Returns
        -------
        torch.Tensor
            (..., nstates), float64.
        """
        return self._batched(self._step, 0, x, u, t)

    def output(self, x, u=None, t: float = 0.0) -> torch.Tensor:
        """Measure: y = h(x, u, t) with u of the same instant.

        Parameters
        ----------
        x : array_like
            (..., nstates).
        u : array_like, optional
            (..., ninputs).
        t : float
            Time.

        Returns
        -------
        torch.Tensor
            (..., noutputs), float64.
        """
        return self._batched(self._output, 2, x, u, t)

    def step_jacobian(self, x, u=None, t: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next state, df/dx (..., nstates, nstates) and df/du (..., nstates, ninputs)."""
        return self._jacobian(self._step, 0, x, u, t)

    def output_jacobian(self, x, u=None, t: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output, dh/dx (..., noutputs, nstates) and dh/du (..., noutputs, ninputs)."""
        return self._jacobian(self._output, 2, x, u, t)

    def linearize(self, x, u=None, t: float = 0.0) -> tuple[torch.Tensor, ...]:
        """Jacobians of the sampled plant.

        Parameters
        ----------
        x : array_like
            (..., nstates).
        u : array_like, optional
            (..., ninputs).
        t : float
            Time.

        Returns
        -------
        A, B, C, D : torch.Tensor
            (..., nstates, nstates), (..., nstates, ninputs), (..., noutputs, nstates), (..., noutputs, ninputs).
        """
        return *self.step_jacobian(x, u, t)[1:], *self.output_jacobian(x, u, t)[1:]

    @cached_property
    def recorded(self) -> Record | None:
        """Step and output as straight-line code, or None; see :func:`plants.record.make_record`."""
        return make_record(self, *self._record)

    def _alone(self, first, x, u, t):
        """Value and Jacobian at one point on floats, a call in place of one for each operation; None elsewhere."""
        if len(x) != 1 or x.requires_grad or u.requires_grad or self._resampled:
            return None
        if (record := self.recorded) is None:
            return None
        n, z = (self.noutputs if first else self.nstates), (*x[0].tolist(), *u[0].tolist(), float(t))
        found = np.array((record.output_program if first else record.step_program).on_floats(*z))
        if not np.isfinite(found).all():
            return None
        return torch.from_numpy(found[:n]), torch.from_numpy(found[n:]).reshape(n, self.nstates + self.ninputs)

    def _flatten(self, x, u):
        x = as_tensor(x, "x", self.nstates, finite=False)
        if u is None and self.ninputs:
            raise ValueError(f"u is missing: {self.name!r} has the inputs {list(self.input_labels)}")
        u = x.new_zeros(0) if u is None else as_tensor(u, "u", self.ninputs, finite=False)
        lead = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        return (
            x.expand(*lead, self.nstates).reshape(lead.numel(), self.nstates),
            u.expand(*lead, self.ninputs).reshape(lead.numel(), self.ninputs),
            lead,
        )

    def _batched(self, function, first, x, u, t):
        x, u, lead = self._flatten(x, u)
        alone = self._alone(first, x, u, t)
        return (function(x, u, t) if alone is None else alone[0]).reshape(*lead, -1)

    def _jacobian(self, function, first, x, u, t):
        x, u, lead = self._flatten(x, u)
        n = self.noutputs if first else self.nstates
        if (alone := self._alone(first, x, u, t)) is not None:
            value, jacobian = alone
        elif self.matrices is not None:
            value = function(x, u, t)
            jacobian = torch.from_numpy(np.hstack(self.matrices[first : first + 2])).expand(*lead, n, -1)
        elif self.jacobian_source == ROUTES[-1]:
            region = self.operating_region
            value = function(x, u, t)
            jacobian = torch.from_numpy(
                central_differences(
                    lambda a, b: function(torch.from_numpy(a), torch.from_numpy(b), t).numpy(),
                    x.numpy(),
                    u.numpy(),
                    region.state_width,
                    region.input_width,
                )
            )
        else:
            value, jacobian = row_jacobian(lambda a, b: function(a, b, t), x, u)
        jacobian = jacobian.reshape(*lead, n, self.nstates + self.ninputs)
        return value.reshape(*lead, n), jacobian[..., : self.nstates], jacobian[..., self.nstates :]


def discretize(
    sys,
    dt: float | None = None,
    *,
    method: str = "rk4",
    substeps: int = 1,
    operating_region: Mapping | None = None,
    angle_states: Sequence[str] = (),
    angle_outputs: Sequence[str] = (),
) -> StateSpaceModel:
    """Turn a python-control system into a sampled :class:`StateSpaceModel`.

    Linear continuous plants are sampled exactly; nonlinear ones are integrated with a fixed
    step. Inputs are held constant over a sample (zero-order hold): data, filters and observers
    all go through this one map. Parameters are those stored in the system, frozen, and so is what its functions
    close over; inside an interconnection each block keeps its own, also where names repeat.

    Parameters
    ----------
    sys : control.StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem
        Continuous (``sys.dt == 0``) or discrete. Its functions are not modified.
    dt : float, optional
        Sample time. Required for a continuous plant and for one whose dt is unspecified (True
        or None: a difference equation; None warns); must agree with a discrete plant's own.
    method : {'rk4', 'euler'}
        Integration of a continuous nonlinear plant.
    substeps : int
        Integration steps per sample.
    operating_region : mapping, optional
        ``{state or input label: (lower, upper)}``, default (-1, 1) for each. The routes to
        Jacobians are probed and the step size is judged here.
    angle_states, angle_outputs : sequence of str
        Labels of angles, in radians.

    Returns
    -------
    StateSpaceModel

    Raises
    ------
    TypeError
        `sys` is not a python-control system with states.
    ValueError
        dt missing, not positive or in conflict; unknown labels; a plant function that raises or
        returns the wrong length.

    Warns
    -----
    UserWarning
        Halving the integration step changes the map by more than 1e-4 of the operating region's width
        (a sufficient `substeps` is named); a transfer function was realised;
        no differentiable route was found.

    Examples
    --------
    >>> import control as ct
    >>> model = discretize(ct.ss([[0, 1], [-2, -0.5]], [[0], [1]], [[1, 0]], 0), dt=0.1)
    >>> model.jacobian_source
    'linear'
    """
    if method not in INTEGRATORS:
        raise ValueError(f"method must be one of {sorted(INTEGRATORS)}, got {method!r}")
    if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1:
        raise ValueError(f"substeps must be a positive integer, got {substeps!r}")
    if isinstance(sys, ct.TransferFunction):
        realised = ct.ss(sys.minreal() if sys.issiso() else sys)
        realised.dt, realised.name = sys.dt, sys.name
        warnings.warn(
            f"transfer function {sys.name!r} was realised with {realised.nstates} states without physical meaning",
            UserWarning,
            stacklevel=2,
        )
        sys = realised
    if not isinstance(sys, ct.StateSpace | ct.NonlinearIOSystem):
        raise TypeError(
            "sys must be a python-control StateSpace, TransferFunction, NonlinearIOSystem or InterconnectedSystem, "
            f"got {type(sys).__name__}"
        )
    if not sys.nstates:
        raise TypeError(
            f"{sys.name!r} has no states to estimate"
            if sys.nstates == 0
            else f"{sys.name!r} does not say how many states it has: give states= to nlsys"
        )
    if sys.ninputs is None or not sys.noutputs:
        raise TypeError(
            f"{sys.name!r} does not say its inputs and outputs: give inputs= (0 for none) and outputs= when it is made"
        )
    continuous, dt, time_base = _time_base(sys, dt)
    states, inputs, outputs = (tuple(labels) for labels in (sys.state_labels, sys.input_labels, sys.output_labels))
    for what, given, known in (("angle_states", angle_states, states), ("angle_outputs", angle_outputs, outputs)):
        if isinstance(given, str) or set(given) - set(known):
            raise ValueError(f"{what} must be a list out of {list(known)}, got {given!r}")
    region = OperatingRegion.from_bounds(operating_region, states, inputs)
    common = dict(
        name=sys.name,
        state_labels=states,
        input_labels=inputs,
        output_labels=outputs,
        operating_region=region,
        angle_states=tuple(angle_states),
        angle_outputs=tuple(angle_outputs),
        system=sys,
        _settings=dict(
            method=method,
            substeps=substeps,
            operating_region=operating_region,
            angle_states=angle_states,
            angle_outputs=angle_outputs,
        ),
    )
    if isinstance(sys, ct.StateSpace):
        A, B, C, D = (np.array(m, dtype=float) for m in (sys.A, sys.B, sys.C, sys.D))
        common |= dict(jacobian_source="linear", vectorised=True)
        time_base += ", sampled exactly" if continuous else ""

        def at(dt):
            matrices = (*(sampled_matrices(A, B, dt) if continuous else (A, B)), C, D)
            flow = linear_flow(*matrices)
            return dict(matrices=matrices, _step=flow.rhs, _output=flow.output, _record=flow.recorded)
    else:
        flow = flow_of(sys, sys.params, region)
        common |= dict(jacobian_source=flow.route, vectorised=flow.vectorised, matrices=None, _output=flow.output)
        if continuous:
            time_base += f", {method} with {substeps} substep{'s' if substeps > 1 else ''}"
            check_substeps(flow.rhs, dt, method, substeps, region, sys.name)
        longest = dt / substeps

        def at(dt):
            if not continuous:
                return dict(_step=flow.rhs, _record=flow.recorded)
            substeps = max(1, math.ceil(dt / longest - 1e-9))
            step, record = (sampled(rhs, dt, method, substeps) for rhs in (flow.rhs, flow.recorded[0]))
            return dict(_step=step, _record=(record, flow.recorded[1]))

    @lru_cache(maxsize=64)
    def resample(other):
        return replace(
            model, _resampled=True, dt=other, time_base=f"{time_base}, asked for dt = {other:g}", **at(other)
        )

    model = StateSpaceModel(**common, dt=dt, time_base=time_base, _resample=resample if continuous else None, **at(dt))
    return model


def _again(system, dt, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the model was made first
        return discretize(system, dt, **settings)


def _check_dt(dt):
    if isinstance(dt, bool) or not isinstance(dt, int | float | np.number) or not 0 < float(dt) < math.inf:
        raise ValueError(f"dt must be a positive number, got {dt!r}")


def _time_base(sys, dt):
    if dt is not None:
        _check_dt(dt)
    unspecified = sys.dt is None or sys.dt is True
    if dt is None and (unspecified or sys.dt == 0):
        kind = "is continuous (dt=0)" if not unspecified else f"does not say its sample time (dt={sys.dt})"
        raise ValueError(f"{sys.name!r} {kind}: give dt= to discretize")
    if sys.dt is None:
        warnings.warn(
            f"{sys.name!r} has dt=None, neither continuous nor discrete: taken as a difference equation "
            f"sampled at dt={dt:g}; make it with dt=0 if it is a differential equation, with dt=True if not",
            UserWarning,
            stacklevel=3,
        )
    if unspecified:
        return False, float(dt), f"discrete, dt = {dt:g} given by the caller"
    if sys.dt == 0:
        return True, float(dt), f"dt = {dt:g}, continuous plant with zero-order hold"
    if dt is not None and not math.isclose(dt, sys.dt, rel_tol=1e-9):
        raise ValueError(f"{sys.name!r} is discrete with dt={sys.dt:g}, in conflict with dt={dt:g}")
    return False, float(sys.dt), f"discrete, dt = {sys.dt:g} of the plant"
