"""The trained observer: an R2DN that sees the plant's input and measurement and tracks its state."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import xarray as xr

from estimators import observer_file
from estimators.base import Estimate, check_measurement, check_record, stack_steps
from estimators.coordinates import Coordinates
from estimators.design import DEFAULT_RATE, AffineModel, Design
from estimators.networks.initialise import from_linear
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.recurrent import check_sizes
from estimators.networks.rollout import Recursion, rollout
from estimators.networks.streaming import Stream
from estimators.startup import Startup, StartupState
from estimators.training import FitResult, fit
from plants.angles import wrap
from plants.arrays import as_tensor
from plants.model import StateSpaceModel
from plants.schema import to_tensors, validate

LIFTED = 8
"""Up to so many states an observer has twice as many, unless told otherwise."""


class ObserverState(NamedTuple):
    """Belief of an observer.

    Attributes
    ----------
    z : torch.Tensor
        (..., nstates of the observer), internal state, in the observer's coordinates.
    predicted : torch.Tensor
        (..., nstates), predicted estimate, in the observer's coordinates.
    held : torch.Tensor
        (..., noutputs), the last measurement of each channel used where a
        sample is missing; NaN before the first.
    startup : StartupState or None
        Of the start-up signals; None where they have faded.
    matrices : Recursion
        The network, mapped once.
    stream : Stream or None
        The same for one trajectory, in NumPy.
    """

    z: torch.Tensor
    predicted: torch.Tensor
    held: torch.Tensor
    startup: StartupState | None
    matrices: Recursion
    stream: Stream | None = None


class R2DNObserver:
    """Contracting observer xh_{k+1} = f_o(xh_k, u_k, y_k), trained on trajectories of the plant.

    An R2DN whose input is (u, y) and start-up signals that fade, by which it corrects more strongly at
    the start, as a Kalman filter does (:mod:`estimators.startup`). Its state starts at the told state
    (scaled) and is the observer's memory; two linear readouts of state, network signal and
    input give the filtered estimate of x_k and the predicted estimate of x_{k+1}, so neither is
    limited by the metric in which the state contracts. For every value of the parameters two
    runs on the same data approach each other at the contraction rate, in the certified metric.
    The observer starts as the Kalman filter of the best affine fit of the plant over the
    data (mathematics.md, 6), and training improves on that. On a linear plant that filter is the optimum.

    Missing measurements (NaN) are replaced by the channel's last value, before the first by its
    mean in the training data, and the network is told which they are: trained on data with gaps
    (``plants.Condition(missing=...)``) it learns what to make of them. A measured angle is brought within a turn, and
    the angle state follows its jumps between pi and -pi by a whole turn. Both depend on the measurements only (but
    for the turn chosen at the first of them), as do the start-up signals but for their start, which they forget at the
    pace of the affine filter; so the certificate holds as it stands.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    nfeedback : int
        Width of the signals around the network.
    hidden : sequence of int
        Widths of its hidden layers.
    contraction_rate : float, optional
        Designed rate, in (0, 1]. Default: from the data, 0.99 or, for a slow plant, what its best gain needs.
    nstates : int, optional
        Size of the observer's state, at least the plant's. Default: twice the plant's, above ``LIFTED`` states the
        plant's. The estimate is a learned linear map of the whole state, the further ones start at zero; they remember
        what the plant's own cannot, and let an observer track plants that none of their own size can in a constant
        metric (see :func:`estimators.check_plant`).
    activation : {'relu', 'leaky_relu', 'elu', 'tanh', 'sigmoid', 'softplus'}
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
        nfeedback: int = 32,
        hidden: Sequence[int] = (64, 64),
        contraction_rate: float | None = None,
        nstates: int | None = None,
        activation: str = "relu",
        initialisation: str = "kalman",
        seed: int = 0,
    ):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if initialisation not in ("kalman", "random"):
            raise ValueError(f"initialisation must be 'kalman' or 'random', got {initialisation!r}")
        self.model, self.initialisation, self.seed = model, initialisation, int(seed)
        lifted = model.nstates * (2 if model.nstates <= LIFTED else 1)
        self.nstates = lifted if nstates is None else check_sizes(nstates=nstates)
        if self.nstates < model.nstates:
            raise ValueError(f"nstates must be at least the plant's {model.nstates}, got {nstates}")
        self.settings = {
            "nfeedback": nfeedback,
            "hidden": list(hidden),
            "contraction_rate": contraction_rate,
            "activation": activation,
            "nstates": self.nstates,
        }
        asked = DEFAULT_RATE if contraction_rate is None else contraction_rate
        self.network = observer_file.make_network(
            model.ninputs,
            model.nstates,
            model.noutputs,
            self.settings | {"contraction_rate": asked},
            torch.Generator().manual_seed(self.seed),
        )
        self.coordinates: Coordinates | None = None
        self.startup: Startup | None = None
        self.error_cov: torch.Tensor | None = None

    @property
    def contraction_rate(self) -> float:
        """The designed rate; before `initialise` has chosen one, the default."""
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
        model = self.model
        self.coordinates = Coordinates.from_data(model, dataset)
        design = self.linear_design(dataset)
        self.network.contraction_rate = self.settings["contraction_rate"] = design.contraction_rate
        self.startup = Startup.of(design, self.start_cov(dataset))
        gaps = slice(model.ninputs + model.noutputs, model.ninputs + 2 * model.noutputs)
        with torch.no_grad():  # what no data has shown yet has no effect
            self.network.D12[:, gaps] = 0.0
            self.network.B2[:, gaps] = 0.0
        if self.initialisation == "random":
            return
        affine, K, L, nx = design.affine, design.steady.filter_gain, design.steady.predictor_gain, model.nstates
        silent = np.zeros((nx, model.noutputs + self.startup.size))
        closed, into, offset = (
            affine.A - L @ affine.C,
            np.hstack([affine.B - L @ affine.D, L, silent]),
            affine.b - L @ affine.d,
        )
        from_linear(self.network, *self._lifted(closed, into, offset))
        network = self.network
        seen = np.vstack([np.hstack([-K @ affine.D, K, silent]), into])
        seen[:, -nx:] = np.vstack([np.eye(nx), affine.A])  # what the time-varying filter adds to the stationary one
        with torch.no_grad():
            network.C2.zero_()
            network.C2[:, :nx].copy_(torch.from_numpy(np.vstack([np.eye(nx) - K @ affine.C, closed])))
            network.D22.copy_(torch.from_numpy(seen))
            network.by.copy_(torch.from_numpy(np.concatenate([-K @ affine.d, offset])))
            network.D21.zero_()

    def _lifted(self, A, B, b):
        """Add the further states to a linear start: filters of the inputs, of different pace, not read out yet."""
        extra = self.nstates - len(A)
        if not extra:
            return A, B, b
        rng = np.random.default_rng(self.seed)
        pace = self.contraction_rate * np.linspace(0.5, 0.95, extra)
        into = (1 - pace)[:, None] * rng.standard_normal((extra, B.shape[1]))
        into[:, -self.startup.size - self.model.noutputs :] = 0.0
        return scipy.linalg.block_diag(A, np.diag(pace)), np.vstack([B, into]), np.concatenate([b, np.zeros(extra)])

    def pad(self, z: torch.Tensor) -> torch.Tensor:
        """Widen (..., nstates of the plant) to the observer's states, with zeros."""
        return torch.nn.functional.pad(z, (0, self.nstates - z.shape[-1]))

    def linear_design(self, dataset: xr.Dataset) -> Design:
        """Fit the best affine model of the plant over a dataset and find the gains that track best with it.

        The model is in the observer's coordinates.
        """
        x, u, y = to_tensors(dataset)
        x = self.coordinates.in_frame_of(x, u, y)
        v, _, _ = self.coordinates.network_input(u, y)
        affine = AffineModel.fit(self.model, dataset, x, self.coordinates)
        z = self.coordinates.from_plant(x)
        sample = slice(None, None, max(1, len(x) // 64))
        signals = v[..., : self.model.ninputs + self.model.noutputs]
        records = (a[sample, :1000].transpose(0, 1).numpy() for a in (z, signals))
        return affine.gains(self.settings["contraction_rate"], *records)

    def start_cov(self, dataset: xr.Dataset) -> np.ndarray:
        """Covariance of the start that a dataset tells, else that of its states, in the observer's coordinates."""
        scale = self.coordinates.state_scale.numpy()
        if "initial_cov" in dataset:
            return dataset["initial_cov"].values / np.outer(scale, scale)
        x, u, y = to_tensors(dataset)
        return np.diag(self.coordinates.from_plant(self.coordinates.in_frame_of(x, u, y)).var(dim=(0, 1)).numpy())

    def fit(self, train: xr.Dataset, validation: xr.Dataset | None = None, **settings) -> FitResult:
        """Train on trajectories; see :func:`estimators.training.fit` for the settings."""
        return fit(self, train, validation, **settings)

    def explicit(self) -> R2DNMatrices:
        """Named matrices in the observer's coordinates, float64, for the parameters as they are."""
        self._require_data()
        with torch.no_grad():
            return self.network.explicit()

    def init(self, x0, P0=None) -> ObserverState:
        """Start from a predicted state.

        Parameters
        ----------
        x0 : array_like
            (..., nstates).
        P0 : ignored
            The observer's start-up believes the covariance of its training data.

        Returns
        -------
        ObserverState
        """
        matrices = self.explicit().collapse()
        x0 = wrap(as_tensor(x0, "x0", self.model.nstates), self.model.state_is_angle)
        held = torch.full((*x0.shape[:-1], self.model.noutputs), math.nan, dtype=torch.float64)
        z = self.coordinates.from_plant(x0)
        stream = Stream(matrices) if z.ndim == 1 else None
        return ObserverState(self.pad(z), z, held, self.startup.init(z), matrices, stream)

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
            At k: predicted and filtered, with covariances after `calibrate`.
        """
        if not isinstance(state, ObserverState):
            raise TypeError(f"state must be the ObserverState that init or step returned, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y)
        alone = state.stream is not None and u.ndim == y.ndim == 1
        alone = alone and not (
            state.z.requires_grad or state.predicted.requires_grad or u.requires_grad or y.requires_grad
        )
        if alone and not (self.coordinates.follows_turns and bool(torch.isnan(state.held).any())):
            return self._step_alone(state, u.numpy(), y.numpy())
        lead = torch.broadcast_shapes(state.z.shape[:-1], u.shape[:-1], y.shape[:-1])
        u, y = u.expand(*lead, -1), y.expand(*lead, -1)
        v, shift, held = self.coordinates.network_input(u[..., None, :], y[..., None, :], state.held)
        z, v, shift = self._first_frame(state, u, y), v[..., 0, :], shift[..., 0, :]
        signals, startup = self._startup(state, z, v[None], shift[None], torch.isnan(y)[None])
        z, out = state.matrices.step(z + self.pad(shift), torch.cat([v, signals[0]], -1))
        nx = self.model.nstates
        following = state._replace(z=z, predicted=out[..., nx:], held=held, startup=startup)
        estimates = (self.coordinates.to_plant(part) for part in (state.predicted, out[..., :nx]))
        return following, Estimate(*estimates, *self._covariances(state, lead, None))

    def _startup(self, state, z, v, shift, missing):
        """Start-up signals over a record, time first; where the frame of the start was chosen they follow."""
        if state.startup is None:
            return v.new_zeros(*v.shape[:-1], self.startup.size), None
        turned = z[..., : self.model.nstates] - state.z[..., : self.model.nstates]
        filters = state.startup._replace(filters=state.startup.filters + turned)
        return self.startup.signals(filters, v, shift, missing)

    def _step_alone(self, state, u, y):
        """`step` of one trajectory, the same numbers in a fraction of the time."""
        coordinates, nx = self.coordinates, self.model.nstates
        v, shift, held = coordinates.network_sample(u, y, state.held.numpy())
        z, startup = state.z.numpy(), state.startup
        signals = np.zeros(self.startup.size)
        if startup is not None:
            signals, startup = self.startup.sample(startup, v, shift, np.isnan(y))
        if coordinates.follows_turns:
            z = z.copy()
            z[:nx] += shift
        z, out = state.stream.step(z, np.concatenate([v, signals]))
        z, predicted, held, before, filtered = map(
            torch.from_numpy,
            (
                z,
                out[nx:],
                held,
                coordinates.sample_to_plant(state.predicted.numpy()),
                coordinates.sample_to_plant(out[:nx]),
            ),
        )
        following = state._replace(z=z, predicted=predicted, held=held, startup=startup)
        return following, Estimate(before, filtered, *self._covariances(state, (), None))

    def settled_input(self, u: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Network input, (..., time, size), and turns of the state for records, the start-up signals having faded."""
        v, shift, _ = self.coordinates.network_input(u, y)
        return torch.nn.functional.pad(v, (0, self.startup.size)), shift

    def estimate_sequence(self, state: ObserverState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs), one rollout."""
        u, y = check_record(self.model, u, y)
        lead = torch.broadcast_shapes(state.z.shape[:-1], y.shape[:-2])
        u, y = u.expand(*lead, -1, -1), y.expand(*lead, -1, -1)
        if bool((self.coordinates.carried.any(1) & torch.isnan(state.held) & torch.isnan(y[..., 0, :])).any()):
            # the turn is chosen at the first measurement, which is not the first sample
            return stack_steps(lambda now, k: self.step(now, u[..., k, :], y[..., k, :]), state, y.shape[-2])
        v, shift, _ = self.coordinates.network_input(u, y, state.held)
        steps, nx = v.shape[-2], self.model.nstates

        def time_first(a):
            return a.reshape(lead.numel(), steps, -1).transpose(0, 1).contiguous()

        z = self._first_frame(state, u[..., 0, :], y[..., 0, :])
        with torch.no_grad():
            z = z.expand(*lead, -1).reshape(lead.numel(), -1)
            v, shift, missing = time_first(v), time_first(shift), time_first(torch.isnan(y))
            signals, _ = self._startup(self._flat(state, lead), z, v, shift, missing)
            shift = self.pad(shift)
            following = torch.cat([shift[1:], torch.zeros_like(shift[:1])])
            v = torch.cat([v, signals], -1)
            _, out = rollout(state.matrices, z + shift[0], v, following, states=False)
        out = out.transpose(0, 1).reshape(*lead, steps, 2 * nx)
        predicted = torch.cat([state.predicted.expand(*lead, nx)[..., None, :], out[..., :-1, nx:]], dim=-2)
        estimates = (self.coordinates.to_plant(part) for part in (predicted, out[..., :nx]))
        return Estimate(*estimates, *self._covariances(state, lead, steps))

    def _covariances(self, state, lead, steps):
        """Calibrated covariances of an instant (steps None) or of a record; (None, None) without calibration."""
        if self.error_cov is None:
            return None, None
        last = len(self.error_cov) - 1
        first = last if state.startup is None else state.startup.step
        at = min(first, last) if steps is None else torch.arange(first, first + steps).clamp(max=last)
        both = self.error_cov[at]
        shape = (*lead, *(() if steps is None else (steps,)), *both.shape[-2:])
        return both[..., 0, :, :].expand(shape), both[..., 1, :, :].expand(shape)

    def calibrate(self, dataset: xr.Dataset) -> None:
        """Learn the covariance of its errors, so that estimates come with one.

        The second moment of the errors on the dataset at each time since the start, as long as the start-up lasts, and
        one for all times after it. It does not depend on the state: honest on average over data like these, which
        should not be those of the training.

        Parameters
        ----------
        dataset : xarray.Dataset
            Trajectories with true states, started as the dataset tells; at least ten for each state.

        Raises
        ------
        ValueError
            Data do not fit, are too few, or say nothing about the start; the observer has not been initialised.
        """
        self._require_data()
        validate(dataset, self.model, states=True)
        nx, (count, steps) = self.model.nstates, (dataset.sizes["trajectory"], dataset.sizes["time"])
        if count < 10 * nx:
            raise ValueError(f"dataset has {count} trajectories, a covariance of {nx} states needs at least {10 * nx}")
        if "initial_mean" not in dataset:
            raise ValueError("dataset does not tell where the estimate starts: give initial_mean to from_arrays")
        x, u, y = to_tensors(dataset)
        self.error_cov = None
        x0 = torch.from_numpy(dataset["initial_mean"].values).expand(count, -1)
        estimate = self.estimate_sequence(self.init(x0), u, y)
        errors = torch.stack([wrap(e - x, self.model.state_is_angle) for e in (estimate.predicted, estimate.filtered)])
        moments = torch.einsum("kbti,kbtj->tkij", errors, errors) / count
        over = min(self.startup.length, 2 * steps // 3)
        steady = moments[over:].mean(0, keepdim=True)
        # neighbouring times share what they have, once errors no longer fall from sample to sample
        smooth = moments[:over].clone()
        for k in range(6, over):
            smooth[k] = moments[k - 2 : k + 3].mean(0)
        late = steady.expand(max(0, self.startup.length - over) + 1, -1, -1, -1)
        self.error_cov = torch.cat([smooth, late]).contiguous()

    def _flat(self, state, lead):
        """State with one batch dimension, as far as the start-up needs it."""
        startup = state.startup
        if startup is not None:
            filters = [part.expand(*lead, -1).reshape(lead.numel(), -1) for part in startup.filters]
            startup = StartupState(startup.step, torch.stack(filters))
        return state._replace(z=state.z.expand(*lead, -1).reshape(lead.numel(), -1), startup=startup)

    def _first_frame(self, state, u, y):
        """Before the first measurement the state's turn is free: choose that of the measured angle."""
        coordinates, fresh = self.coordinates, torch.isnan(state.held)
        if not bool(coordinates.carried.any() & fresh.any()):
            return state.z
        nx = self.model.nstates
        x = state.z[..., :nx] * coordinates.state_scale + coordinates.state_centre
        y = torch.where(fresh, y, torch.full_like(y, math.nan))
        framed = coordinates.from_plant(coordinates.in_frame_of(x, u, y))
        return torch.cat([framed, state.z[..., nx:].expand(*framed.shape[:-1], -1)], -1)

    def _require_data(self):
        if self.coordinates is None:
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
        self._require_data()
        settings = self.settings | {"initialisation": self.initialisation, "seed": self.seed}
        tensors = self.coordinates.tensors(), self.startup.matrices, self.error_cov
        observer_file.write(path, self.network, *tensors, settings, self.model)

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
        if not isinstance(model, StateSpaceModel):
            raise TypeError(
                f"model must be the StateSpaceModel the observer was trained for, got {type(model).__name__}"
            )
        found = observer_file.read(path)
        plant = found.plant
        for key, what, own in (
            ("states", "states", model.state_labels),
            ("inputs", "inputs", model.input_labels),
            ("outputs", "outputs", model.output_labels),
            ("dt", "sample time", model.dt),
        ):
            if plant[key] != own:
                raise ValueError(
                    f"{path} holds an observer for {plant['name']!r} with {what} {plant[key]}, "
                    f"the model {model.name!r} has {own}"
                )
        observer = cls(model, **found.settings)
        observer.network, observer.coordinates = found.network, Coordinates(model, **found.coordinates)
        observer.startup, observer.error_cov = Startup(**found.startup), found.error_cov
        return observer
