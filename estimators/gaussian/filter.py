"""What KF, EKF and UKF have in common: noise, start, step."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real

import torch

from estimators.base import Estimate, channels_of, check_measurement, check_record, stack_steps
from estimators.gaussian.bounds import as_bounds, project
from estimators.gaussian.dispatch import alone, flattened, gate_thresholds, pattern_of, programs_for
from estimators.gaussian.robust import student_correction
from estimators.gaussian.state import GaussianState, check_state, input_noise, start_factor
from estimators.gaussian.tuning import TuneResult, tune
from estimators.gaussian.update import Correction, correct, triangular_factor
from plants.angles import wrap
from plants.arrays import as_covariance, as_tensor, covariance_factor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class GaussianFilter(ABC):
    """Base of the Gaussian filters; subclasses say how a mean and a factor go through f and h.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances, and that of the inputs where they carry noise.
    Q, R : array_like, optional
        The same as matrices, (nstates, nstates) and (noutputs, noutputs), instead of `noise`.
    gate : float, optional
        Probability with which a right measurement is used: one whose normalised innovation squared lies
        beyond that quantile of its chi-square distribution is left out as an outlier, all channels of the
        instant together: correct sensor by sensor where they fail on their own. Default: all are used.
    degrees_of_freedom : float, optional
        The measurement noise has Student's t distribution with so many degrees of freedom and scale R: outliers are
        weighed down rather than left out, all channels of the instant together (variational correction of
        Agamennoni, Nieto and Nebot, IEEE TSP 2012). Default: it is Gaussian.
    bounds : mapping, optional
        State label to (lower, upper), either of which may be None: every mean is projected into the box, in
        the metric of its covariance (Simon, IET Control Theory 2010); the covariance is left as it is.
    inflation : float
        Predicted covariances are multiplied by this factor per unit of time, for a model that is trusted too much.
    dtype : torch.dtype
        Of mean and covariance; the plant is evaluated in float64.

    Raises
    ------
    TypeError
        `model` is not a StateSpaceModel.
    ValueError
        Neither or both ways of giving the noise; covariances that are not symmetric positive
        semidefinite of the plant's size (a sequence of matrices is refused, not truncated: it goes to
        `run` or to `predict` and `correct`); another argument out of its range.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        noise: GaussianNoise | None = None,
        *,
        Q=None,
        R=None,
        gate: float | None = None,
        degrees_of_freedom: float | None = None,
        bounds: Mapping | None = None,
        inflation: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if (noise is None) == (Q is None and R is None) or (noise is None and (Q is None or R is None)):
            raise ValueError("give either noise=GaussianNoise(...) or both Q= and R=")
        if noise is None:
            noise = GaussianNoise(as_covariance(Q, "Q", model.nstates), as_covariance(R, "R", model.noutputs))
        if not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a GaussianNoise, got {type(noise).__name__}: covariances go into Q= and R=")
        noise.check_sizes(model)
        if gate is not None and not (_is_real(gate) and 0 < gate < 1):
            raise ValueError(f"gate must be a probability between 0 and 1, or None, got {gate!r}")
        if degrees_of_freedom is not None and not (_is_real(degrees_of_freedom) and degrees_of_freedom > 0):
            raise ValueError(f"degrees_of_freedom must be a positive number or None, got {degrees_of_freedom!r}")
        if gate is not None and degrees_of_freedom is not None:
            raise ValueError("give either gate or degrees_of_freedom: each deals with outliers in its own way")
        if not (_is_real(inflation) and 1 <= inflation < math.inf):
            raise ValueError(f"inflation must be at least 1, got {inflation!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        self.gate, self.degrees_of_freedom = gate, degrees_of_freedom
        self.inflation, self.dtype = inflation, dtype
        self.bounds = as_bounds(bounds, model)
        self._set_model(model)
        self._set_noise(noise)

    def _set_model(self, model: StateSpaceModel) -> None:
        self.model, self._programs = model, {}

    def _set_noise(self, noise: GaussianNoise) -> None:
        self.noise, self._programs = noise, {}  # the code holds the noise of the inputs
        self._input_factor, self._noisy_output = input_noise(self.model, noise)
        self._set_factors(
            torch.from_numpy(covariance_factor(noise.process_cov)),
            torch.from_numpy(covariance_factor(noise.measurement_cov)),
        )

    def _set_factors(self, process: torch.Tensor, measurement: torch.Tensor) -> None:
        self._process_factor = triangular_factor(process).to(self.dtype)
        self._noise_factor = triangular_factor(measurement).to(self.dtype)
        self._patterns = pattern_of(self._process_factor), pattern_of(self._noise_factor)
        self._state_angles, self._output_angles = self.model.state_is_angle, self.model.output_is_angle

    def with_factors(self, process: torch.Tensor, measurement: torch.Tensor) -> "GaussianFilter":
        """Copy with other, possibly batched, noise factors (..., n, n); used to try many noises in one run."""
        other = copy.copy(self)
        other._set_factors(process, measurement)
        return other

    def init(self, x0, P0=None) -> GaussianState:
        """Start from a predicted state.

        Parameters
        ----------
        x0 : array_like
            (..., nstates).
        P0 : array_like
            Its covariance: (nstates, nstates), (nstates,) variances or a scalar.

        Returns
        -------
        GaussianState

        Raises
        ------
        ValueError
            `P0` missing or not a covariance, `x0` of the wrong shape or not finite.
        """
        x0, factor = start_factor(self, x0, P0)
        mean = wrap(x0, self.model.state_is_angle).to(self.dtype)
        factor = triangular_factor(factor).to(self.dtype)
        return GaussianState(mean, factor.expand(*x0.shape[:-1], *factor.shape))

    def predict(self, state: GaussianState, u=None, *, dt: float | None = None, Q=None) -> GaussianState:
        """Advance the belief by one sample.

        Parameters
        ----------
        state : GaussianState
            Filtered belief.
        u : array_like, optional
            (..., ninputs), held over the sample.
        dt : float, optional
            Length of the sample, for irregular measurements of a continuous plant; 0 changes nothing. The process
            noise is white: its covariance is proportional to the length. Default: that of the model.
        Q : array_like, optional
            (..., nstates, nstates) covariance of the process noise of just this step, whatever its length.

        Returns
        -------
        GaussianState

        Raises
        ------
        ValueError
            `dt` negative (a measurement that is late goes to :class:`estimators.Replay`), or other than its own
            for a discrete plant; `Q` not a covariance.
        """
        check_state(state)
        model, process = self.model, self._process_factor
        if dt is not None:
            if not (_is_real(dt) and 0 <= dt < math.inf):
                raise ValueError(
                    f"dt must be a number of at least 0, got {dt!r}: time does not go backwards; Replay takes in "
                    "measurements that are late"
                )
            if dt == 0:
                return state
            model, process = model.with_dt(dt), process * math.sqrt(dt / model.dt)
        if Q is not None:
            process = self._factors(Q, "Q", model.nstates)
        return self._predict(state, u, process, model)

    def _predict(self, state, u, process, model):
        fast = alone(self, state, u, None, process, self._noise_factor, model)
        following = fast and fast[0].predicted(state, fast[1], process)
        if following:
            return GaussianState(*following, state.time + model.dt)
        mean, moved, noise = self._moved(state, u, process, model)
        factor = triangular_factor(torch.cat([moved, noise], dim=-1))
        if self.inflation != 1:
            factor = factor * self.inflation ** (model.dt / 2)
        mean = project(mean, factor, self.bounds)
        return GaussianState(mean, factor, state.time + model.dt)

    def _moved(self, state, u, process, model):
        """Mean of the next state, A S and N, all with the same leading dimensions."""
        u = u if u is None else as_tensor(u, "u", model.ninputs)
        mean, moved, noise = (part.to(self.dtype) for part in self._transition(state, u, process, model))
        lead = torch.broadcast_shapes(moved.shape[:-2], noise.shape[:-2])
        mean, moved, noise = (
            mean.expand(*lead, -1),
            moved.expand(*lead, *moved.shape[-2:]),
            noise.expand(*lead, *noise.shape[-2:]),
        )
        return wrap(mean, self._state_angles), moved, noise

    def input_factor_over(self, dt: float) -> torch.Tensor | None:
        """Factor of the inputs' noise, held over a sample of `dt`; white, as that of the process."""
        return None if self._input_factor is None else self._input_factor * math.sqrt(self.model.dt / dt)

    def correct(self, state: GaussianState, y, u=None, *, sensor=None, R=None) -> GaussianState:
        """Use a measurement taken under input `u` of the same instant.

        Parameters
        ----------
        state : GaussianState
            Predicted belief.
        y : array_like
            (..., noutputs), or the channels of `sensor` in its order. Channels that are NaN were not
            measured; the others are used, with their share of a correlated R.
        u : array_like, optional
            (..., ninputs).
        sensor : str or sequence of str, optional
            Labels of the outputs that `y` holds; the others were not measured.
        R : array_like, optional
            (..., n, n) covariance of just this measurement, n the number of channels in `y`.

        Returns
        -------
        GaussianState

        Raises
        ------
        ValueError
            No such output, or another number of channels; `R` not a covariance; singular innovation covariance.
        """
        return self.correct_with_likelihood(state, y, u, sensor=sensor, R=R)[0]

    def correct_with_likelihood(
        self, state: GaussianState, y, u=None, *, sensor=None, R=None
    ) -> tuple[GaussianState, torch.Tensor]:
        """As `correct`, and the log-likelihood of what was used, (...,)."""
        check_state(state)
        u, y, noise = self._measured(y, u, sensor, R)
        return self._corrected(state, u, y, noise)[:2]

    def innovation(self, state: GaussianState, y, u=None, *, sensor=None, R=None) -> torch.Tensor:
        """Whitened innovation of a measurement, (..., noutputs): white with variance 1 if model and noise are right.

        Channels that were not measured are 0; the squares sum to the normalised innovation squared (NIS).
        """
        check_state(state)
        u, y, noise = self._measured(y, u, sensor, R)
        return self._correct(state, u, y, noise).whitened

    def _measured(self, y, u, sensor, R):
        labels = self.model.output_labels
        channels = list(range(len(labels))) if sensor is None else channels_of(sensor, labels)
        if sensor is not None:
            y = [y] if len(channels) == 1 and (isinstance(y, Real) or getattr(y, "ndim", 1) == 0) else y
            y = _spread(as_tensor(y, "y", len(channels), finite=False), channels, len(labels), torch.nan)
        u, y = check_measurement(self.model, u, y)
        noise = self._noise_factor
        if R is not None:
            noise = _spread(self._factors(R, "R", len(channels)).mT, channels, len(labels), 0.0).mT
        return u, y.to(self.dtype), noise

    @staticmethod
    def lower(factor: torch.Tensor) -> torch.Tensor:
        """Return the lower triangular factor of the same covariance, which is what a belief carries."""
        return triangular_factor(factor)

    def _factors(self, value, name, size):
        factor = torch.from_numpy(covariance_factor(as_covariance(value, name, size, batch=True)))
        return triangular_factor(factor).to(self.dtype)

    def _corrected(self, state, u, y, noise) -> tuple[GaussianState, torch.Tensor, torch.Tensor]:
        """Belief after a measurement, log-likelihood of what was used, and whitened innovation of what was measured."""
        fast = alone(self, state, u, y, self._process_factor, noise, self.model)
        found = fast and fast[2] is not None and fast[0].corrected(state, *fast[1:], noise)
        if found:
            estimate, factor = found
            belief = GaussianState(estimate.filtered, factor, state.time)
            return belief, estimate.log_likelihood, estimate.innovation
        found = self._correct(state, u, y, noise)
        mean, factor, likelihood = found[:3]
        if (degrees := self.degrees_of_freedom) is not None:
            mean, factor, likelihood = student_correction(
                lambda weighed: self._correct(state, u, y, weighed), found, noise, ~torch.isnan(y), degrees
            )
        if self.gate is not None:
            limits = torch.tensor(gate_thresholds(self.gate, self.model.noutputs), dtype=self.dtype)
            used = found.whitened.square().sum(-1) <= limits[found.channels]
            mean = torch.where(used[..., None], mean, state.mean)
            factor = torch.where(used[..., None, None], factor, state.factor)
            likelihood = torch.where(used, likelihood, torch.zeros_like(likelihood))
        mean = project(wrap(mean, self._state_angles), factor, self.bounds)
        return GaussianState(mean, factor, state.time), likelihood, found.whitened

    def _combine(self, state, innovation, output_rows, state_rows, noise):
        """Correction in the dtype of the belief; the arguments of :func:`estimators.gaussian.update.correct`."""
        return correct(
            state.mean, innovation.to(self.dtype), output_rows.to(self.dtype), state_rows, noise.to(self.dtype)
        )

    def step(self, state: GaussianState, u, y) -> tuple[GaussianState, Estimate]:
        """Correct with u and y of instant k, then predict to k+1.

        Parameters
        ----------
        state : GaussianState
            Belief about x_k from measurements up to k-1.
        u : array_like or None
            (..., ninputs), None for a plant without inputs.
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : GaussianState
            Belief about x_{k+1}.
        estimate : Estimate
            At k, predicted and filtered, with covariances, whitened innovation and log-likelihood.
        """
        check_state(state)
        fast = alone(self, state, u, y, self._process_factor, self._noise_factor, self.model)
        found = fast and fast[2] and fast[0].step(state, *fast[1:], self._process_factor, self._noise_factor)
        if found:
            return GaussianState(*found[:2], state.time + self.model.dt), found[2]
        u, y, noise = self._measured(y, u, None, None)
        return self._step(state, u, y, self._process_factor, noise)

    def _rules(self):
        """Return how means and factors go through recorded functions, None where there is no such way."""
        return None

    def _unchanged(self, cls, *names) -> bool:
        """Whether no subclass of `cls` changes the arithmetic that the straight-line code repeats."""
        shared = ("_predict", "_moved", "_corrected", "_combine", "_step", "_measured")
        return all(getattr(type(self), name) is getattr(cls, name) for name in (*names, *shared))

    def _step(self, state, u, y, process, noise):
        filtered, likelihood, whitened = self._corrected(state, u, y, noise)
        estimate = Estimate(state.mean, filtered.mean, state.cov, filtered.cov, whitened, likelihood)
        return self._predict(filtered, u, process, self.model), estimate

    def estimate_sequence(
        self,
        state: GaussianState,
        u: torch.Tensor,
        y: torch.Tensor,
        progress=lambda steps: steps,
        *,
        Q=None,
        R=None,
    ) -> Estimate:
        """Filter a record.

        Parameters
        ----------
        state : GaussianState
            Predicted belief at the first sample.
        u, y : torch.Tensor
            (..., time, ninputs) and (..., time, noutputs).
        progress : callable, optional
            Wraps the range of time steps.
        Q, R : array_like, optional
            Covariances that change with time, (..., time, nstates, nstates) and (..., time, noutputs, noutputs):
            ``R[k]`` is that of ``y[k]``, ``Q[k]`` acts on the way from sample k to k+1.

        Returns
        -------
        Estimate
            (..., time, nstates).
        """
        u, y = check_record(self.model, u, y)
        y = y.to(self.dtype)
        process = self.factor_sequence(Q, "Q", y.shape[-2])
        noise = self.factor_sequence(R, "R", y.shape[-2])
        lead = torch.broadcast_shapes(state.mean.shape[:-1], y.shape[:-2], process.shape[:-3], noise.shape[:-3])
        mean, factor = state.mean.expand(*lead, -1), state.factor.expand(*lead, -1, -1)
        state = state._replace(mean=mean, factor=factor)
        if bool(torch.triu(factor, 1).any()):
            factor = triangular_factor(factor)
        factors, given = (process, noise), (Q is not None, R is not None)
        patterns = (pattern_of(f) if g else own for own, g, f in zip(self._patterns, given, factors, strict=True))
        programs = programs_for(self, self.model, *patterns, state, u, y)
        one = lead.numel() == 1  # goes on floats
        if programs is not None and (one or programs.pays(lead.numel())):
            varying = [flattened(f, g, () if one else lead) for f, g in zip(factors, given, strict=True)]
            whole = mean, factor, u.expand(*lead, *u.shape[-2:]), y.expand(*lead, *y.shape[-2:])
            flat = [part.reshape(*(() if one else [lead.numel()]), *part.shape[len(lead) :]) for part in whole]
            found = programs.sequence(GaussianState(*flat[:2], state.time), *flat[2:], *varying, progress)
            if found is not None:
                return Estimate(*(part.reshape(*lead, *part.shape[0 if one else 1 :]) for part in found))
        state = state._replace(mean=mean, factor=factor)

        def step(state, k):
            return self._step(state, u[..., k, :], y[..., k, :], process[..., k, :, :], noise[..., k, :, :])

        return stack_steps(step, state, y.shape[-2], progress)

    def factor_sequence(self, value, name: str, steps: int) -> torch.Tensor:
        """Return the factors of Q or R at each step, (..., steps, n, n); those of the filter where `value` is None."""
        own = self._process_factor if name == "Q" else self._noise_factor
        if value is None:
            return own[..., None, :, :].expand(*own.shape[:-2], steps, *own.shape[-2:])
        factors = self._factors(value, name, own.shape[-2])
        if factors.ndim < 3 or factors.shape[-3] != steps:
            raise ValueError(
                f"{name} must hold one matrix for each of {steps} time steps, (..., {steps}, {own.shape[-2]}, "
                f"{own.shape[-2]}), got {tuple(factors.shape)}"
            )
        return factors

    def tune(self, dataset, **settings) -> TuneResult:
        """Fit the noise covariances to data by maximum likelihood; see :func:`estimators.gaussian.tuning.tune`."""
        return tune(self, dataset, **settings)

    @abstractmethod
    def _transition(self, state, u, process, model):
        """Mean of the next state, A S and N: with S the factor of the state, S_next S_next' = (A S)(A S)' + N N'."""

    @abstractmethod
    def _correct(self, state, u, y, noise) -> Correction:
        """Outcome of a measurement with noise factor `noise`, by :func:`estimators.gaussian.update.correct`."""


def _is_real(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _spread(values, channels, count, fill):
    whole = values.new_full((*values.shape[:-1], count), fill)
    whole[..., channels] = values
    return whole
