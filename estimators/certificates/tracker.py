"""An observer with a proved loop, as error bounds need it: linear part, coordinates, its place for each plant state."""

from itertools import combinations_with_replacement
from itertools import product as corners
from typing import NamedTuple

import numpy as np
import torch

from estimators.certificates.certify import certify, linear_start
from estimators.certificates.loops import Loop
from estimators.certificates.update_map import check_constant
from estimators.coordinates import Coordinates
from estimators.luenberger import LuenbergerObserver
from estimators.networks.rollout import rollout
from estimators.observer import R2DNObserver
from estimators.startup import Startup
from plants.angles import wrap
from plants.model import StateSpaceModel

KINDS = ("filtered", "predicted")
MOST_FEATURES, HIGHEST_DEGREE = 120, 5


class Tracker(NamedTuple):
    """The observer in its own coordinates.

    Attributes
    ----------
    loop : Loop
        Inputs (u, y), and start-up signals where there are any; outputs the filtered estimate, where there is one, then
        the predicted of the next instant.
    metric : numpy.ndarray
        A proved metric, (nz, nz).
    rate : float
        Proved in it.
    kinds : tuple of str
        Of the outputs, ``nstates`` each.
    state_scale, output_scale : numpy.ndarray
        (nstates,), (noutputs,): coordinates to the plant's units.
    noise_columns : list of int
        Where the measurements are among the loop's inputs.
    startup : Startup or None
        Where the last inputs come from.
    """

    loop: Loop
    metric: np.ndarray
    rate: float
    kinds: tuple[str, ...]
    state_scale: np.ndarray
    output_scale: np.ndarray
    noise_columns: list[int]
    startup: Startup | None

    @classmethod
    def of(cls, observer) -> "Tracker":
        """Take an R2DNObserver, or a LuenbergerObserver of a linear plant; ValueError if it is not proved."""
        if isinstance(observer, R2DNObserver):
            matrices, coordinates = observer.explicit(), observer.coordinates
            certificate = certify(matrices)
            loop, P, kinds = Loop.of(matrices), certificate.metric, KINDS
            nu = observer.model.ninputs
            scales = coordinates.state_scale.numpy(), coordinates.input_scale.numpy()[nu:]
            startup = observer.startup
        elif isinstance(observer, LuenbergerObserver):
            certificate, loop, P = linear_start(observer)
            model = observer.model
            if bool(model.state_is_angle.any()) or bool(model.output_is_angle.any()):
                raise ValueError(
                    "declared angles make the innovation of a linear observer jump at half a turn: declare none"
                )
            kinds = KINDS if observer.form == "filter" else KINDS[1:]
            scales, nu, startup = (np.ones(model.nstates), np.ones(model.noutputs)), model.ninputs, None
        else:
            raise TypeError(
                "certify_error takes an R2DNObserver, or a LuenbergerObserver of a linear plant, got "
                f"{type(observer).__name__}: a filter has no certificate to build on"
            )
        if certificate.verdict != "proved":
            raise ValueError(f"the observer is not proved to be contracting, so there is no bound: {certificate}")
        columns = [nu + j for j in range(observer.model.noutputs)]
        return cls(loop, P, certificate.bound, kinds, *scales, columns, startup)

    def rows(self, kind: str, state: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row of an estimate by x, w and the loop's inputs."""
        i = self.kinds.index(kind) * len(self.state_scale) + state
        return self.loop.C2[i], self.loop.D21[i], self.loop.D22[i]

    def startup_effect(self, P: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bound what start-up signals, the last inputs, do within given sizes.

        They enter the state as B2 s and the readouts as D22 s, and both through the network, whose slope is bounded.

        Parameters
        ----------
        P : numpy.ndarray
            Metric of the state.
        sizes : numpy.ndarray
            (time, signals), largest absolute values.

        Returns
        -------
        moved : numpy.ndarray
            (time,), change of the next state in the metric.
        seen : numpy.ndarray
            (kind, time, state), change of the estimates of the instant, scaled.
        """
        loop, root = self.loop, np.linalg.cholesky(P).T
        B, D, N = (m[:, -sizes.shape[1] :] for m in (loop.B2, loop.D12, loop.D22))
        through = loop.slope * _over_boxes(D, sizes)
        moved = _over_boxes(root @ B, sizes) + np.linalg.norm(root @ loop.B1, 2) * through
        seen = sizes @ np.abs(N).T + through[:, None] * np.linalg.norm(loop.D21, axis=1)
        return moved, seen.reshape(len(sizes), len(self.kinds), -1).transpose(1, 0, 2)


def _over_boxes(M, sizes):
    """Largest norm of M s over boxes of s with these half-widths, (time,); above 12 signals the sum of their norms."""
    if sizes.shape[1] > 12:
        return sizes @ np.linalg.norm(M, axis=0)
    signs = np.array(list(corners((-1.0, 1.0), repeat=sizes.shape[1])))
    return np.array([np.linalg.norm((signs * box) @ M.T, axis=1).max() for box in sizes])


class Embedding(NamedTuple):
    """A map pi from plant states to observer states: a polynomial of the scaled states, or themselves.

    Attributes
    ----------
    size : int
        Of the observer's state.
    coordinates : Coordinates or None
        Of the observer; None where they are the plant's.
    powers : tuple of tuple of int
        Which states each feature multiplies.
    weights : numpy.ndarray or None
        (features, size).
    """

    size: int
    coordinates: Coordinates | None
    powers: tuple = ()
    weights: np.ndarray | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Observer state, (..., size), for plant states (..., nstates)."""
        scaled = x if self.coordinates is None else self.coordinates.from_plant(x)
        if self.weights is None:
            return torch.nn.functional.pad(scaled, (0, self.size - x.shape[-1]))
        return torch.from_numpy(_features(scaled.numpy(), self.powers) @ self.weights)

    def on_scalars(self, scaled: np.ndarray) -> np.ndarray:
        """Do the same for a vector of scaled states that are recorded scalars."""
        if self.weights is None:
            return np.concatenate([scaled, np.zeros(self.size - len(scaled), dtype=object)])
        return np.array([np.prod(scaled[list(p)]) if p else 1.0 for p in self.powers], dtype=object) @ self.weights

    @property
    def degree(self) -> int:
        """Of the polynomial; 1 for the scaled states themselves."""
        return 1 if self.weights is None else max(map(len, self.powers))


def embeddings(observer, x: torch.Tensor, u: torch.Tensor, highest: int) -> list[Embedding]:
    """Candidates for where an observer is while the plant is at x: polynomials fitted to noise-free runs, the identity.

    Parameters
    ----------
    observer : R2DNObserver or LuenbergerObserver
        The observer.
    x, u : torch.Tensor
        (trajectory, time, ...), trajectories of the plant; the observer sees their noise-free outputs.
    highest : int
        Degree of the polynomials.
    """
    if isinstance(observer, LuenbergerObserver):
        return [Embedding(x.shape[-1], None)]
    coordinates, matrices, y = observer.coordinates, observer.explicit().collapse(), observer.model.output(x, u)
    size, n, settled = len(matrices.M), x.shape[-1], x.shape[1] // 3
    scaled = coordinates.from_plant(coordinates.in_frame_of(x, u, y))
    v, shift = observer.settled_input(u, y)
    start, shift = (torch.nn.functional.pad(a, (0, size - n)) for a in (scaled[:, 0], shift.transpose(0, 1)))
    shift = torch.cat([shift[1:], torch.zeros_like(shift[:1])]).contiguous()
    with torch.no_grad():
        z, _ = rollout(matrices, start, v.transpose(0, 1).contiguous(), shift, states=True)
    scaled, z = (a[:, settled:].reshape(-1, a.shape[-1]).numpy() for a in (scaled, z[:-1].transpose(0, 1)))
    found, powers = [Embedding(size, coordinates)], [()]
    for degree in range(1, highest + 1):
        powers = [*powers, *combinations_with_replacement(range(n), degree)]
        if len(powers) > min(MOST_FEATURES, len(z) // 20):
            break
        weights, *_ = np.linalg.lstsq(_features(scaled, powers), z, rcond=None)
        found.append(Embedding(size, coordinates, tuple(powers), weights))
    return found


def _features(x, powers):
    return np.stack([np.prod(x[..., list(p)], axis=-1) for p in powers], axis=-1)


def may_turn(observer, start: np.ndarray, x0: torch.Tensor, u0: torch.Tensor, y0: torch.Tensor) -> np.ndarray:
    """Whether a start within `start` of x0 may land on another turn of an angle than x0 does, (count, nstates).

    An observer brings the angles of its start within half a turn of the first measurement, where they are measured,
    else of zero: then a start error is a turn less the angle it was.

    Parameters
    ----------
    observer : R2DNObserver
        Or any other, without angles.
    start : numpy.ndarray
        (nstates,), largest start errors.
    x0, u0, y0 : torch.Tensor
        (count, ...), true states, inputs and measurements at the start.
    """
    model = observer.model
    turned = np.zeros(tuple(x0.shape), bool)
    if not bool(model.state_is_angle.any()):
        return turned
    noise = wrap(y0 - model.output(x0, u0), model.output_is_angle).abs().nan_to_num(nan=np.inf).numpy()
    carried = observer.coordinates.carried.numpy()
    # what a start error does to the outputs, at the corners of its box: other states may move a measured angle too
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (64, model.nstates))
    signs[:2] = 1.0, -1.0
    if model.nstates <= 6:
        signs = np.array(list(corners((-1.0, 1.0), repeat=model.nstates)))
    here = model.output(x0, u0)
    moved = np.max([(model.output(x0 + torch.from_numpy(e * start), u0) - here).abs().numpy() for e in signs], axis=0)
    for i in model.state_is_angle.nonzero().flatten().tolist():
        shown = np.flatnonzero(carried[:, i])
        if len(shown):
            turned[:, i] = (noise + moved)[:, shown[0]] >= np.pi
        else:
            turned[:, i] = x0[:, i].abs().numpy() + start[i] >= np.pi
    return turned


def check_same_plant(observer, model: StateSpaceModel) -> None:
    """Raise unless `model` is a plant like the one the observer is for: labels and sample time."""
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
    own = observer.model
    check_constant(model)
    for what in ("state_labels", "input_labels", "output_labels", "dt", "angle_states", "angle_outputs"):
        if getattr(own, what) != getattr(model, what):
            raise ValueError(
                f"observer and model differ in {what}: {getattr(own, what)} of the observer's plant, "
                f"{getattr(model, what)} of the model"
            )
