"""The trained observer: an R2DN that sees the plant's input and measurement and tracks its state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from estimators.base import Estimate, check_measurement
from estimators.design import AffineModel, centre_and_scale
from estimators.files import load_safetensors, save_safetensors
from estimators.gaussian.kalman import SteadyState
from estimators.networks.initialise import from_linear
from estimators.networks.r2dn import R2DN, CollapsedR2DN, R2DNMatrices
from estimators.training import FitResult, fit
from plants.angles import wrap
from plants.arrays import as_tensor
from plants.model import StateSpaceModel
from plants.schema import to_tensors, validate

FASTEST_STARTUP, SLOWEST_STARTUP = 0.5, 0.98
"""Range of the factor by which the start-up signal fades in a step."""
FORMAT = "contracting-observers R2DNObserver 1"


@dataclass(frozen=True, eq=False)
class Scaling:
    """Affine map between the plant's units and the observer's own coordinates (value - centre) / scale.

    Attributes
    ----------
    state_centre, state_scale : torch.Tensor
        (nstates,), float64.
    input_centre, input_scale : torch.Tensor
        (ninputs + noutputs,), float64: plant inputs, then measurements.
    startup_decay : torch.Tensor
        (), factor per step by which the start-up signal fades.
    """

    state_centre: torch.Tensor
    state_scale: torch.Tensor
    input_centre: torch.Tensor
    input_scale: torch.Tensor
    startup_decay: torch.Tensor


class ObserverState(NamedTuple):
    """Belief of an observer.

    Attributes
    ----------
    z : torch.Tensor
        (..., nstates), internal state, in the observer's coordinates.
    predicted : torch.Tensor
        (..., nstates), predicted estimate, in the observer's coordinates.
    held : torch.Tensor
        (..., noutputs), the last measurement of each channel used where a
        sample is missing; NaN before the first.
    startup : float
        Start-up signal: 1 at the start, fading by a constant factor a step.
    matrices : CollapsedR2DN
        The network, mapped once.
    """

    z: torch.Tensor
    predicted: torch.Tensor
    held: torch.Tensor
    startup: float
    matrices: CollapsedR2DN


class R2DNObserver:
    """Contracting observer xh_{k+1} = f_o(xh_k, u_k, y_k), trained on trajectories of the plant.

    An R2DN whose input is (u, y) and a start-up signal that fades from 1 to 0, by which it can
    correct more strongly at the start, as a Kalman filter does. Its state starts at the told
    state (scaled) and is the observer's memory; two linear readouts of state, network signal and
    input give the filtered estimate of x_k and the predicted estimate of x_{k+1}, so neither is
    limited by the metric in which the state contracts. For every value of the parameters two
    runs on the same data approach each other at the contraction rate, in the certified metric.
    The observer starts as the stationary Kalman filter of the best affine fit of the plant over the
    data (mathematics.md, 6), and training improves on that.

    Missing measurements (NaN) are replaced by the channel's last value, before the first by its
    mean in the training data; declared angles are unwrapped along time. Both depend on the
    data only, so the certificate holds as it stands.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    nfeedback : int
        Width of the signals around the network.
    hidden : sequence of int
        Widths of its hidden layers.
    contraction_rate : float
        Designed rate, in (0, 1].
    activation : {'relu', 'tanh'}
        Of the network.
    initialisation : {'kalman', 'random'}
        Start of the parameters; 'random' is the published one.
    seed : int
        Of the random part of the start.

    Raises
    ------
    TypeError
        `model` is not a StateSpaceModel.
    ValueError
        A size or rate out of range.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        *,
        nfeedback: int = 16,
        hidden: Sequence[int] = (48, 48),
        contraction_rate: float = 0.99,
        activation: str = "relu",
        initialisation: str = "kalman",
        seed: int = 0,
    ):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if initialisation not in ("kalman", "random"):
            raise ValueError(f"initialisation must be 'kalman' or 'random', got {initialisation!r}")
        self.model, self.initialisation, self.seed = model, initialisation, int(seed)
        self.settings = {
            "nfeedback": nfeedback,
            "hidden": list(hidden),
            "contraction_rate": contraction_rate,
            "activation": activation,
        }
        self.network = R2DN(
            model.ninputs + model.noutputs + 1,
            model.nstates,
            2 * model.nstates,
            generator=torch.Generator().manual_seed(self.seed),
            **self.settings,
        )
        self._carried = self._find_carried()
        self.scaling: Scaling | None = None

    @property
    def contraction_rate(self) -> float:
        """The designed rate."""
        return self.network.contraction_rate

    def initialise(self, dataset: xr.Dataset) -> None:
        """Choose the scaling from data and set the parameters to their start.

        Parameters
        ----------
        dataset : xarray.Dataset
            Trajectories with true states. Noise covariances are taken from it, or from the
            residuals of the model where it names none.

        Warns
        -----
        UserWarning
            The optimal Kalman predictor contracts more slowly than the designed rate; a faster
            gain was taken.
        """
        validate(dataset, self.model, states=True)
        x, u, y = to_tensors(dataset)
        model = self.model
        x = self.in_frame_of(x, u, y)
        uy = torch.cat([u, wrap(y, model.output_is_angle)], dim=-1).numpy()
        scales = (torch.from_numpy(a) for a in (*centre_and_scale(x.numpy()), *centre_and_scale(uy)))
        self.scaling = Scaling(*scales, torch.tensor(SLOWEST_STARTUP, dtype=torch.float64))
        affine, gains = self.linear_design(dataset)
        # the start is forgotten at the pace of the error dynamics
        decay = min(max(affine.radius(gains), FASTEST_STARTUP), SLOWEST_STARTUP)
        self.scaling = replace(self.scaling, startup_decay=torch.tensor(decay, dtype=torch.float64))
        if self.initialisation == "random":
            return
        K, L, nx = gains.filter_gain, gains.predictor_gain, model.nstates
        silent = np.zeros((nx, 1))
        closed, into, offset = (
            affine.A - L @ affine.C,
            np.hstack([affine.B - L @ affine.D, L, silent]),
            affine.b - L @ affine.d,
        )
        from_linear(self.network, closed, into, offset)
        network = self.network
        with torch.no_grad():
            network.C2.copy_(torch.from_numpy(np.vstack([np.eye(nx) - K @ affine.C, closed])))
            network.D22.copy_(torch.from_numpy(np.vstack([np.hstack([-K @ affine.D, K, silent]), into])))
            network.by.copy_(torch.from_numpy(np.concatenate([-K @ affine.d, offset])))
            network.D21.zero_()

    def linear_design(self, dataset: xr.Dataset) -> tuple[AffineModel, SteadyState]:
        """Fit the best affine model of the plant over a dataset and find the gains that track best with it.

        The model is in the observer's coordinates.
        """
        x, u, y = to_tensors(dataset)
        x = self.in_frame_of(x, u, y)
        v, _, _ = self.network_input(u, y)
        affine = AffineModel.fit(self.model, dataset, x, self.scaling)
        z = (x - self.scaling.state_centre) / self.scaling.state_scale
        sample = slice(None, None, max(1, len(x) // 64))
        return affine, affine.gains(
            self.contraction_rate, *(a[sample, :1000].transpose(0, 1).numpy() for a in (z, v[..., :-1]))
        )

    def fit(self, train: xr.Dataset, validation: xr.Dataset | None = None, **settings) -> FitResult:
        """Train on trajectories; see :func:`estimators.training.fit` for the settings."""
        return fit(self, train, validation, **settings)

    def explicit(self) -> R2DNMatrices:
        """Named matrices in the observer's coordinates, float64, for the parameters as they are."""
        self._require_scaling()
        with torch.no_grad():
            return self.network.explicit(torch.float64)

    def init(self, x0, P0=None) -> ObserverState:
        """Start from a predicted state.

        Parameters
        ----------
        x0 : array_like
            (..., nstates).
        P0 : ignored
            An observer carries no covariance.

        Returns
        -------
        ObserverState
        """
        matrices = self.explicit().collapse()
        x0 = wrap(as_tensor(x0, "x0", self.model.nstates), self.model.state_is_angle)
        held = torch.full((*x0.shape[:-1], self.model.noutputs), math.nan, dtype=torch.float64)
        z = (x0 - self.scaling.state_centre) / self.scaling.state_scale
        return ObserverState(z, z, held, 1.0, matrices)

    def step(self, state: ObserverState, u, y) -> tuple[ObserverState, Estimate]:
        """Use u and y of instant k.

        Parameters
        ----------
        state : ObserverState
            From `init` or the last `step`.
        u : array_like or None
            (..., ninputs), None for a plant without inputs.
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : ObserverState
            For k+1.
        estimate : Estimate
            At k: predicted and filtered, no covariance.
        """
        u, y = check_measurement(self.model, u, y)
        v, shift, held = self.network_input(u[..., None, :], y[..., None, :], state.held, state.startup)
        z, out = state.matrices.step(self._first_frame(state, u, y) + shift[..., 0, :], v[..., 0, :])
        nx = self.model.nstates
        return ObserverState(
            z, out[..., nx:], held, state.startup * float(self.scaling.startup_decay), state.matrices
        ), Estimate(self._physical(state.predicted), self._physical(out[..., :nx]))

    def estimate_sequence(self, state: ObserverState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs), one rollout."""
        u, y = check_measurement(self.model, u, y)
        v, shift, _ = self.network_input(u, y, state.held, state.startup)
        lead, steps, nx = v.shape[:-2], v.shape[-2], self.model.nstates

        def time_first(a):
            return a.reshape(lead.numel(), steps, -1).transpose(0, 1).contiguous()

        z = self._first_frame(state, u[..., 0, :], y[..., 0, :]) + shift[..., 0, :]
        with torch.no_grad():
            following = torch.cat([time_first(shift)[1:], shift.new_zeros(1, lead.numel(), nx)])
            _, out = state.matrices.rollout(z.expand(*lead, nx).reshape(lead.numel(), nx), time_first(v), following)
        out = out.transpose(0, 1).reshape(*lead, steps, 2 * nx)
        predicted = torch.cat([state.predicted.expand(*lead, nx)[..., None, :], out[..., :-1, nx:]], dim=-2)
        return Estimate(self._physical(predicted), self._physical(out[..., :nx]))

    def _first_frame(self, state, u, y):
        """Before the first measurement the state's turn is free: choose that of the measured angle."""
        if not bool(self._carried.any() & torch.isnan(state.held).any()):
            return state.z
        scaling = self.scaling
        x = state.z * scaling.state_scale + scaling.state_centre
        return (
            self.in_frame_of(x, u, torch.where(torch.isnan(state.held), y, torch.full_like(y, math.nan)))
            - scaling.state_centre
        ) / scaling.state_scale

    def network_input(
        self, u: torch.Tensor, y: torch.Tensor, held: torch.Tensor | None = None, startup: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prepare a record for the network: fill gaps, bring angles within a turn, scale.

        Parameters
        ----------
        u, y : torch.Tensor
            (..., time, ninputs) and (..., time, noutputs).
        held : torch.Tensor, optional
            (..., noutputs), last measurement before the record; NaN or left out for none.
        startup : float
            Start-up signal at the first sample.

        Returns
        -------
        v : torch.Tensor
            (..., time, ninputs + noutputs + 1), scaled, start-up signal last.
        shift : torch.Tensor
            (..., time, nstates), whole turns by which the state must follow a measured angle that
            jumps between pi and -pi, scaled; to be added before the sample is used.
        held : torch.Tensor
            (..., noutputs), last measurement of each channel.
        """
        y = wrap(y, self.model.output_is_angle)
        held = torch.full_like(y[..., 0, :], math.nan) if held is None else held.expand_as(y[..., 0, :])
        filled = torch.cat([held[..., None, :], y], dim=-2)
        if bool(torch.isnan(y).any()):
            for k in range(1, filled.shape[-2]):
                filled[..., k, :] = torch.where(
                    torch.isnan(filled[..., k, :]), filled[..., k - 1, :], filled[..., k, :]
                )
        turns = torch.round((filled[..., 1:, :] - filled[..., :-1, :]) / (2 * math.pi)).nan_to_num(0.0)
        shift = 2 * math.pi * turns @ self._carried / self.scaling.state_scale
        held, y = filled[..., -1, :], filled[..., 1:, :]
        y = torch.where(torch.isnan(y), self.scaling.input_centre[self.model.ninputs :], y)
        scaled = (
            torch.cat([u.expand(*y.shape[:-1], -1), y], dim=-1) - self.scaling.input_centre
        ) / self.scaling.input_scale
        fading = startup * self.scaling.startup_decay ** torch.arange(y.shape[-2], dtype=torch.float64)
        return torch.cat([scaled, fading[:, None].expand(*scaled.shape[:-1], 1)], dim=-1), shift, held

    def in_frame_of(self, x: torch.Tensor, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add whole turns to the angles of states x so that they go with measured angles y.

        x is (..., nstates), y is (..., noutputs).
        """
        if not bool(self._carried.any()):
            return x
        y = wrap(y, self.model.output_is_angle)
        turns = torch.round((y - self.model.output(x, u)) / (2 * math.pi)).nan_to_num(0.0)
        return x + 2 * math.pi * turns @ self._carried

    def _find_carried(self) -> torch.Tensor:
        """(noutputs, nstates): 1 where a turn of an angle state is a turn of an angle output."""
        model = self.model
        x, u = (torch.from_numpy(a) for a in model.operating_region.sample(3, seed=0))
        carried = torch.zeros(model.noutputs, model.nstates, dtype=torch.float64)
        for i in model.state_is_angle.nonzero().flatten().tolist():
            turned = x.clone()
            turned[:, i] += 2 * math.pi
            change = (model.output(turned, u) - model.output(x, u)) / (2 * math.pi)
            for j in model.output_is_angle.nonzero().flatten().tolist():
                if bool(((change[:, j] - 1).abs() < 1e-9).all()):
                    carried[j, i] = 1.0
                    break
        return carried

    def _physical(self, z):
        return wrap(z * self.scaling.state_scale + self.scaling.state_centre, self.model.state_is_angle)

    def _require_scaling(self):
        if self.scaling is None:
            raise ValueError(
                "the observer has not seen data yet, which set its scaling: call fit(train) or initialise(train) first"
            )

    def save(self, path) -> None:
        """Write parameters and settings to a safetensors file, settings as JSON in its header.

        Parameters
        ----------
        path : path-like
            Written atomically.

        Raises
        ------
        ValueError
            The observer has not been initialised, or the place cannot be written.
        """
        self._require_scaling()
        tensors = {f"network.{k}": v.detach().contiguous() for k, v in self.network.state_dict().items()}
        tensors |= {f"scaling.{k}": v for k, v in vars(self.scaling).items()}
        model = self.model
        header = {
            "format": FORMAT,
            "settings": self.settings,
            "initialisation": self.initialisation,
            "seed": self.seed,
            "plant": {
                "name": model.name,
                "dt": model.dt,
                "states": model.state_labels,
                "inputs": model.input_labels,
                "outputs": model.output_labels,
            },
        }
        save_safetensors(path, tensors, header)

    @classmethod
    def load(cls, path, model: StateSpaceModel) -> "R2DNObserver":
        """Read an observer written by `save`.

        Parameters
        ----------
        path : path-like
            The file.
        model : StateSpaceModel
            The plant it was trained for: labels and sample time must agree.

        Returns
        -------
        R2DNObserver

        Raises
        ------
        ValueError
            Unreadable or foreign file, or another plant.
        """
        tensors, header = load_safetensors(path, FORMAT)
        plant = header["plant"]
        for what, stored, own in (
            ("states", plant["states"], model.state_labels),
            ("inputs", plant["inputs"], model.input_labels),
            ("outputs", plant["outputs"], model.output_labels),
            ("sample time", plant["dt"], model.dt),
        ):
            if (tuple(stored) if isinstance(stored, list) else stored) != own:
                raise ValueError(
                    f"{path} holds an observer for {plant['name']!r} with {what} {stored}, "
                    f"the model {model.name!r} has {own}"
                )
        observer = cls(model, **header["settings"], initialisation=header["initialisation"], seed=header["seed"])
        try:
            observer.network.load_state_dict(
                {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
            )
            observer.scaling = Scaling(
                **{k.removeprefix("scaling."): v for k, v in tensors.items() if k.startswith("scaling.")}
            )
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return observer
