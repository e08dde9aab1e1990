"""An observer with a proved loop, as error bounds need it: linear part, coordinates, its place for each plant state."""

from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch

from estimators.certificates.certify import certify, linear_start
from estimators.certificates.loops import Loop
from estimators.luenberger import LuenbergerObserver
from estimators.networks.rollout import rollout
from estimators.observer import R2DNObserver
from plants.model import StateSpaceModel

KINDS = ("filtered", "predicted")
MOST_FEATURES = 120


class Tracker(NamedTuple):
    """The observer in its own coordinates.

    Attributes
    ----------
    loop : Loop
        Inputs (u, y), and a start-up signal where there is one; outputs the filtered estimate, where there is one, then
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
    startup : float or None
        Factor by which the start-up signal, the last input, fades.
    """

    loop: Loop
    metric: np.ndarray
    rate: float
    kinds: tuple[str, ...]
    state_scale: np.ndarray
    output_scale: np.ndarray
    noise_columns: list[int]
    startup: float | None

    @classmethod
    def of(cls, observer) -> "Tracker":
        """Take an R2DNObserver, or a LuenbergerObserver of a linear plant; ValueError if it is not proved."""
        if isinstance(observer, R2DNObserver):
            matrices, coordinates = observer.explicit(), observer.coordinates
            certificate = certify(matrices)
            loop, P, kinds = Loop.of(matrices), certificate.metric, KINDS
            nu = observer.model.ninputs
            scales = coordinates.state_scale.numpy(), coordinates.input_scale.numpy()[nu:]
            startup = float(coordinates.startup_decay)
        elif isinstance(observer, LuenbergerObserver):
            certificate, loop, P = linear_start(observer)
            model = observer.model
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


class Embedding:
    """Where a contracting observer settles while the plant is at x: a polynomial fitted to noise-free runs.

    For a linear observer, and where its own coordinates are the plant's, the identity.

    Parameters
    ----------
    observer : R2DNObserver or LuenbergerObserver
        The observer.
    x, u : torch.Tensor
        (trajectory, time, ...), trajectories of the plant; the observer sees their noise-free outputs.
    """

    def __init__(self, observer, x: torch.Tensor, u: torch.Tensor):
        self.observer, self.powers, self.weights = observer, (), None
        if isinstance(observer, LuenbergerObserver):
            return
        n, settled = observer.model.nstates, x.shape[1] // 3
        coordinates, y = observer.coordinates, observer.model.output(x, u)
        scaled = coordinates.from_plant(coordinates.in_frame_of(x, u, y))
        v, shift, _ = coordinates.network_input(u, y, startup=0.0)
        matrices = observer.explicit().collapse()
        start = torch.nn.functional.pad(scaled[:, 0], (0, len(matrices.M) - n))
        shift = torch.nn.functional.pad(shift, (0, len(matrices.M) - n)).transpose(0, 1)
        with torch.no_grad():
            z, _ = rollout(
                matrices,
                start,
                v.transpose(0, 1).contiguous(),
                torch.cat([shift[1:], torch.zeros_like(shift[:1])]).contiguous(),
                states=True,
            )
        z = z[:-1].transpose(0, 1)
        scaled, z = (a[:, settled:].reshape(-1, a.shape[-1]).numpy() for a in (scaled, z))
        even, odd = slice(0, None, 2), slice(1, None, 2)
        best = np.inf
        powers = [()]
        for degree in range(1, 6):
            powers = [*powers, *combinations_with_replacement(range(n), degree)]
            if len(powers) > min(MOST_FEATURES, len(z) // 20):
                break
            features = _features(scaled, powers)
            weights, *_ = np.linalg.lstsq(features[even], z[even], rcond=None)
            error = np.abs(features[odd] @ weights - z[odd]).max()
            if error < 0.95 * best:  # worth the higher degree, which is worse outside the data
                best, self.powers, self.weights = error, tuple(powers), weights

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Observer state, (..., nz), for plant states (..., nstates)."""
        if self.weights is None:
            return x
        scaled = self.observer.coordinates.from_plant(x).numpy()
        return torch.from_numpy(_features(scaled, self.powers) @ self.weights)


def _features(x, powers):
    return np.stack([np.prod(x[..., list(p)], axis=-1) for p in powers], axis=-1)


def check_same_plant(observer, model: StateSpaceModel) -> None:
    """Raise unless `model` is a plant like the one the observer is for: labels and sample time."""
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
    own = observer.model
    for what in ("state_labels", "input_labels", "output_labels", "dt"):
        if getattr(own, what) != getattr(model, what):
            raise ValueError(
                f"observer and model differ in {what}: {getattr(own, what)} of the observer's plant, "
                f"{getattr(model, what)} of the model"
            )
