"""Estimators out of the library: as python-control systems, and as one-step functions in ONNX."""

from pathlib import Path

import control as ct
import numpy as np
import torch
from torch import nn

from estimators.base import Estimator
from estimators.correction import LearnedCorrection
from estimators.gaussian.exogenous import ExogenousKalmanFilter, ExogenousState
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.state import GaussianState
from estimators.luenberger import LuenbergerObserver, LuenbergerState
from estimators.network_observer import NetworkObserver
from estimators.observer import R2DNObserver
from estimators.startup import StartupState

KINDS = ("predicted", "filtered")


def to_control(estimator: Estimator, kind: str = "predicted", name: str | None = None) -> ct.NonlinearIOSystem:
    """Wrap an estimator, as it is now, as a discrete python-control system.

    Signals go by name, so that ``control.interconnect`` connects it with its plant and a controller. Its state is the
    estimator's belief; start it at :func:`control_state`.

    Parameters
    ----------
    estimator : Estimator
        A Gaussian filter or an observer.
    kind : {'predicted', 'filtered'}
        Which estimate of x_k the outputs at k are. A predicted one does not depend on y_k and u_k, so that a feedback
        of it closes no algebraic loop; a filtered one does on y_k, and for a trained observer on u_k.
    name : str, optional
        Of the system.

    Returns
    -------
    control.NonlinearIOSystem
        Inputs are the plant's inputs and then its outputs, outputs ``<state>_hat``.

    Raises
    ------
    TypeError
        An estimator without a belief of fixed size, or with random draws.
    ValueError
        `kind` is not one the estimator has.

    Examples
    --------
    >>> import control as ct, estimators as est, plants
    >>> setting = plants.scenario("pendulum")
    >>> system = est.to_control(est.ExtendedKalmanFilter(setting.model, setting.noise))
    >>> system.input_labels, system.output_labels
    (['torque', 'angle'], ['theta_hat', 'omega_hat'])
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be 'predicted' or 'filtered', got {kind!r}")
    packing, model = _packing(estimator), estimator.model
    start = packing.unpack(packing.pack(estimator.init(np.zeros(model.nstates), np.eye(model.nstates))))
    nu, ny = model.ninputs, model.noutputs
    if kind == "filtered" and estimator.step(start, np.zeros(nu), np.zeros(ny))[1].filtered is None:
        raise ValueError(f"this {type(estimator).__name__} has no filtered estimate: use kind='predicted'")

    def advance(x, u):
        return estimator.step(packing.unpack(x), u[:nu], u[nu:])

    def update(t, x, u, params):
        return packing.pack(advance(x, u)[0])

    def output(t, x, u, params):
        if kind == "predicted":
            return packing.predicted(x)
        return advance(x, u)[1].filtered.numpy()

    return ct.nlsys(
        update,
        output,
        states=packing.size,
        inputs=[*model.input_labels, *model.output_labels],
        outputs=[f"{label}_hat" for label in model.state_labels],
        dt=model.dt,
        name=name or f"{model.name}_{type(estimator).__name__}",
    )


def control_state(estimator: Estimator, x0, P0=None) -> np.ndarray:
    """Start of the system that `to_control` returns: the estimator's belief as a vector.

    Parameters
    ----------
    estimator : Estimator
        The same.
    x0 : array_like
        (nstates,), told start.
    P0 : array_like, optional
        Its covariance, for a filter.

    Returns
    -------
    numpy.ndarray
    """
    packing = _packing(estimator)
    state = estimator.init(x0, P0)
    if np.ndim(x0) != 1:
        raise ValueError(f"x0 must be one state, (nstates,), got shape {np.shape(x0)}")
    return packing.pack(state)


def export_onnx(observer: R2DNObserver, path) -> None:
    """Write a trained observer as a function of one step in ONNX, float64.

    Inputs ``belief`` (n,), ``u`` (ninputs,) and ``y`` (noutputs,), NaN where not measured; outputs ``next_belief``
    (n,), ``predicted`` and ``filtered`` (nstates,). The belief starts at :func:`control_state`; names of the plant's
    signals and its sample time are in the metadata.

    Parameters
    ----------
    observer : R2DNObserver
        Trained, or initialised.
    path : path-like
        Written atomically.

    Raises
    ------
    TypeError
        Not an R2DNObserver.
    ValueError
        The observer has not seen data, the place cannot be written.
    ImportError
        The extra ``onnx`` is not installed.
    """
    if not isinstance(observer, R2DNObserver):
        raise TypeError(f"observer must be an R2DNObserver, got {type(observer).__name__}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    import onnx

    step, model = _OneStep(observer), observer.model
    example = (
        torch.from_numpy(control_state(observer, model.operating_region.state_centre)),
        torch.zeros(model.ninputs, dtype=torch.float64),
        torch.zeros(model.noutputs, dtype=torch.float64),
    )
    names = ["belief", *(["u"] if model.ninputs else []), "y"]
    exported = torch.onnx.export(
        step,
        example,
        dynamo=True,
        input_names=names if model.ninputs else ["belief", "u", "y"],
        output_names=["next_belief", "predicted", "filtered"],
        verbose=False,
    ).model_proto
    labels = {"states": model.state_labels, "inputs": model.input_labels, "outputs": model.output_labels}
    for key, value in {
        "plant": model.name,
        "dt": repr(model.dt),
        **{k: ",".join(v) for k, v in labels.items()},
    }.items():
        entry = exported.metadata_props.add()
        entry.key, entry.value = key, value
    partial = path.with_name(path.name + ".partial")
    try:
        onnx.save(exported, str(partial))
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}") from error


class _Packing:
    """A belief as a vector: predicted estimate first."""

    def __init__(self, estimator):
        self.estimator, self.nx = estimator, estimator.model.nstates

    def predicted(self, x):
        return np.array(x[: self.nx])


class _Filter(_Packing):
    """Mean, lower half of the factor of the covariance, time."""

    def __init__(self, estimator):
        super().__init__(estimator)
        self.lower = np.tril_indices(self.nx)
        self.size = self.nx + len(self.lower[0]) + 1

    def pack(self, state):
        # a factor may be wide or full: the triangular one of the same covariance
        factor = np.linalg.qr(state.factor.numpy().T, mode="r").T
        return np.concatenate([state.mean.numpy(), factor[self.lower], [state.time]])

    def unpack(self, x):
        factor = np.zeros((self.nx, self.nx))
        factor[self.lower] = x[self.nx : -1]
        return GaussianState(torch.from_numpy(np.array(x[: self.nx])), torch.from_numpy(factor), float(x[-1]))


class _Exogenous(_Packing):
    """The filter's own belief, then that of its reference."""

    def __init__(self, estimator):
        super().__init__(estimator)
        self.own, self.reference = _Filter(estimator), _packing(estimator.reference)
        self.size = self.own.size + self.reference.size

    def pack(self, state):
        return np.concatenate([self.own.pack(state.belief), self.reference.pack(state.reference)])

    def unpack(self, x):
        return ExogenousState(self.reference.unpack(x[self.own.size :]), self.own.unpack(x[: self.own.size]))


class _Corrected(_Packing):
    """The filter's belief, then the network's state and what it says of the next prediction."""

    def __init__(self, estimator):
        super().__init__(estimator)
        self.filter = _packing(estimator.filter)
        self.start = estimator.init(np.zeros(self.nx), np.eye(self.nx))
        self.parts = np.cumsum([self.filter.size, len(self.start.z)])
        self.size = int(self.parts[-1]) + self.nx

    def predicted(self, x):
        model = self.estimator.model  # whatever is measured now
        blind = np.zeros(model.ninputs), np.full(model.noutputs, np.nan)
        return self.estimator.step(self.unpack(x), *blind)[1].predicted.numpy()

    def pack(self, state):
        return np.concatenate([self.filter.pack(state.belief), state.z.numpy(), state.predicted.numpy()])

    def unpack(self, x):
        belief, z, predicted = np.split(np.array(x, dtype=float), self.parts)
        z, predicted = map(torch.from_numpy, (z, predicted))
        return self.start._replace(belief=self.filter.unpack(belief), z=z, predicted=predicted)


class _Luenberger(_Packing):
    @property
    def size(self):
        return self.nx + 1

    def pack(self, state):
        return np.append(state.mean.numpy(), state.time)

    def unpack(self, x):
        return LuenbergerState(torch.from_numpy(np.array(x[:-1])), float(x[-1]))


class _Network(_Packing):
    def __init__(self, estimator):
        super().__init__(estimator)
        self.size, self.start = self.nx, estimator.init(np.zeros(self.nx))

    def pack(self, state):
        return state.x.numpy()

    def unpack(self, x):
        return self.start._replace(x=torch.from_numpy(np.array(x)))


class _Observer(_Packing):
    """Predicted estimate and state, last measurements and whether there were any, start-up filters and step."""

    def __init__(self, estimator):
        super().__init__(estimator)
        self.ny, self.nz = estimator.model.noutputs, estimator.nstates
        self.start = estimator.init(np.zeros(self.nx))
        self.parts = np.cumsum([self.nx, self.nz, self.ny, self.ny, 2 * self.nx])
        self.size = int(self.parts[-1]) + 1

    def predicted(self, x):
        return self.estimator.coordinates.sample_to_plant(np.array(x[: self.nx]))

    def pack(self, state):
        held = state.held.numpy()
        return np.concatenate(
            [
                state.predicted.numpy(),
                state.z.numpy(),
                np.nan_to_num(held),
                ~np.isnan(held),
                state.startup.filters.numpy().ravel(),
                [min(state.startup.step, self.estimator.startup.length)],
            ]
        )

    def unpack(self, x):
        predicted, z, held, seen, filters, step = np.split(np.array(x, dtype=float), self.parts)
        tensors = map(torch.from_numpy, (z, predicted, np.where(seen > 0.5, held, np.nan), filters.reshape(2, -1)))
        z, predicted, held, filters = tensors
        startup = StartupState(round(float(step[0])), filters)
        return self.start._replace(z=z, predicted=predicted, held=held, startup=startup)


def _packing(estimator) -> _Packing:
    for kind, packing in (
        (GaussianFilter, _Filter),
        (ExogenousKalmanFilter, _Exogenous),
        (LearnedCorrection, _Corrected),
        (LuenbergerObserver, _Luenberger),
        (NetworkObserver, _Network),
        (R2DNObserver, _Observer),
    ):
        if isinstance(estimator, kind):
            return packing(estimator)
    raise TypeError(
        f"a {type(estimator).__name__} cannot become a python-control system: Gaussian filters and observers can"
    )


class _OneStep(nn.Module):
    """The observer's step on the packed belief, of plain tensor operations."""

    def __init__(self, observer):
        super().__init__()
        self.packing, self.model = _Observer(observer), observer.model
        self.recursion = observer.explicit().collapse()
        coordinates, startup = observer.coordinates, observer.startup
        self.follows_turns = coordinates.follows_turns
        self.angles = {
            what: mask if bool(mask.any()) else None
            for what, mask in (("state", self.model.state_is_angle), ("output", self.model.output_is_angle))
        }
        for name, value in (
            *coordinates.tensors().items(),
            ("carried", coordinates.carried),
            *startup.matrices.items(),
            ("gains", startup.gains),
            # a row of zeros for whenever the start-up is over
            ("bounds", torch.nn.functional.pad(torch.from_numpy(startup.bounds), (0, 0, 0, 1))),
            ("fading", torch.from_numpy(startup.largest(startup.length + 1)[:, 0])),
        ):
            self.register_buffer(name, value.clone())
        self.length = startup.length

    def forward(self, belief, u, y):
        parts = [int(p) for p in self.packing.parts]
        sizes = np.diff([0, *parts, self.packing.size]).tolist()
        predicted, z, held, seen, filters, step = torch.split(belief, sizes)
        nx, centre, scale = self.packing.nx, self.state_centre, self.state_scale
        y, known = self._wrap(y, "output"), seen > 0.5
        missing = torch.isnan(y)
        filled = torch.where(missing, held, y)
        shift = torch.zeros_like(predicted)
        first = z[:nx]
        if self.follows_turns:
            jump = torch.where(known & ~missing, filled - held, torch.zeros_like(filled))
            shift = 2 * torch.pi * torch.round(jump / (2 * torch.pi)) @ self.carried / scale
            # the first measurement of an angle chooses the turn
            # two at once: a single point would go through NumPy, which leaves no graph
            framed = self.model.output((first * scale + centre).expand(2, -1), u.expand(2, -1))[0]
            turns = torch.where(known | missing, torch.zeros_like(y), torch.round((y - framed) / (2 * torch.pi)))
            turned = 2 * torch.pi * turns @ self.carried / scale
        else:
            turned = torch.zeros_like(predicted)
        nu = self.model.ninputs
        usable = torch.where(known | ~missing, filled, self.input_centre[nu:])
        v = (torch.cat([u, usable]) - self.input_centre) / self.input_scale
        both = filters.reshape(2, nx) + turned + shift
        k = step.to(torch.int64).clamp(max=self.length - 1)
        innovation = v[nu:] - v[:nu] @ self.D.T - self.d - both @ self.C.T
        innovation = torch.where(missing, torch.zeros_like(innovation), innovation)
        filtered = both + torch.matmul(innovation[:, None], self.gains[k][0])[:, 0]
        now = step.to(torch.int64)
        bound = self.bounds[now][0]
        difference = torch.minimum(torch.maximum(filtered[0] - filtered[1], -bound), bound)
        after = filtered @ self.A.T + (v[:nu] @ self.B.T + self.b)
        over = step >= self.length
        signals = torch.cat([missing.to(v.dtype), self.fading[now], difference])
        z = z + torch.nn.functional.pad(turned + shift, (0, len(z) - nx))
        following, out = self.recursion.step(z, torch.cat([v, signals]))
        belief = torch.cat(
            [
                out[nx:],
                following,
                filled,
                (known | ~missing).to(z.dtype),
                torch.where(over, filters, after.reshape(-1)),
                torch.clamp(step + 1, max=self.length),
            ]
        )
        return belief, *(self._wrap(part * scale + centre, "state") for part in (predicted, out[:nx]))

    def _wrap(self, values, what):
        """`plants.angles.wrap` with what is an angle settled beforehand: a graph has no branches on values."""
        if self.angles[what] is None:
            return values
        turned = values - 2 * torch.pi * torch.floor((values + torch.pi) / (2 * torch.pi))
        return torch.where(self.angles[what], turned, values)
