"""What KF, EKF and UKF have in common: noise, start, step."""

import copy
from abc import ABC, abstractmethod
from numbers import Real
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch

from estimators.base import Estimate, Estimator, check_measurement, check_record, stack_steps
from estimators.gaussian.tuning import TuneResult, tune
from estimators.gaussian.update import triangular_factor
from plants.angles import wrap
from plants.arrays import as_covariance, as_tensor, covariance_factor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class GaussianState(NamedTuple):
    """Belief of a Gaussian filter.

    Attributes
    ----------
    mean : torch.Tensor
        (..., nstates).
    factor : torch.Tensor
        (..., nstates, nstates), cov = factor factor'.
    time : float
        Time of the belief, passed to time-varying plants.
    """

    mean: torch.Tensor
    factor: torch.Tensor
    time: float = 0.0

    @property
    def cov(self) -> torch.Tensor:
        """Covariance, (..., nstates, nstates), exactly symmetric."""
        product = self.factor @ self.factor.mT
        return (product + product.mT) / 2


def start_factor(estimator: Estimator, x0, P0) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate the start of an estimator that needs a covariance: x0 (..., nstates) and a factor of P0."""
    nstates = estimator.model.nstates
    x0 = as_tensor(x0, "x0", nstates)
    if P0 is None:
        raise ValueError(f"P0 is missing: {type(estimator).__name__} needs the covariance of the start")
    return x0, torch.from_numpy(covariance_factor(as_covariance(P0, "P0", nstates)))


class GaussianFilter(ABC):
    """Base of the Gaussian filters; subclasses say how a mean and a factor go through f and h.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    Q, R : array_like, optional
        The same as matrices, (nstates, nstates) and (noutputs, noutputs), instead of `noise`.
    gate : float, optional
        Probability with which a right measurement is used: one whose normalised innovation squared lies
        beyond that quantile of its chi-square distribution is left out as an outlier. Default: all are used.

    Raises
    ------
    TypeError
        `model` is not a StateSpaceModel.
    ValueError
        Neither or both ways of giving the noise; covariances that are not symmetric positive
        semidefinite of the plant's size (a sequence of matrices is refused, not truncated).
    """

    def __init__(
        self,
        model: StateSpaceModel,
        noise: GaussianNoise | None = None,
        *,
        Q=None,
        R=None,
        gate: float | None = None,
    ):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if (noise is None) == (Q is None and R is None) or (noise is None and (Q is None or R is None)):
            raise ValueError("give either noise=GaussianNoise(...) or both Q= and R=")
        if noise is None:
            noise = GaussianNoise(as_covariance(Q, "Q", model.nstates), as_covariance(R, "R", model.noutputs))
        if not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a GaussianNoise, got {type(noise).__name__}: covariances go into Q= and R=")
        noise.check_sizes(model.nstates, model.noutputs)
        if gate is not None and (isinstance(gate, bool) or not isinstance(gate, Real) or not 0 < gate < 1):
            raise ValueError(f"gate must be a probability between 0 and 1, or None, got {gate!r}")
        self.model, self.gate = model, gate
        quantiles = [] if gate is None else scipy.stats.chi2.ppf(gate, np.arange(1, model.noutputs + 1))
        self._thresholds = torch.tensor([np.inf, *quantiles], dtype=torch.float64)  # by the number of channels
        self._set_noise(noise)

    def _set_noise(self, noise: GaussianNoise) -> None:
        self.noise = noise
        self._set_factors(
            torch.from_numpy(covariance_factor(noise.process_cov)),
            torch.from_numpy(covariance_factor(noise.measurement_cov)),
        )

    def _set_factors(self, process: torch.Tensor, measurement: torch.Tensor) -> None:
        self._process_factor, self._noise_factor = process, measurement
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
        return GaussianState(wrap(x0, self.model.state_is_angle), factor.expand(*x0.shape[:-1], *factor.shape))

    def predict(self, state: GaussianState, u=None) -> GaussianState:
        """Advance the belief by one sample under input `u` (..., ninputs)."""
        mean, moved, noise = self._transition(state, u)
        factor = triangular_factor(torch.cat([moved, noise.expand(*moved.shape[:-1], noise.shape[-1])], dim=-1))
        return GaussianState(wrap(mean, self._state_angles), factor, state.time + self.model.dt)

    def correct(self, state: GaussianState, y, u=None, *, sensor=None) -> GaussianState:
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

        Returns
        -------
        GaussianState

        Raises
        ------
        ValueError
            No such output, or another number of channels.
        """
        return self.correct_with_likelihood(state, y, u, sensor=sensor)[0]

    def correct_with_likelihood(
        self, state: GaussianState, y, u=None, *, sensor=None
    ) -> tuple[GaussianState, torch.Tensor]:
        """As `correct`, and the log-likelihood of what was used, (...,)."""
        found = self._correction(state, y, u, sensor)
        mean, factor, likelihood = found[:3]
        if self.gate is not None:
            used = found.whitened.square().sum(-1) <= self._thresholds[found.channels]
            mean = torch.where(used[..., None], mean, state.mean)
            factor = torch.where(used[..., None, None], factor, state.factor)
            likelihood = torch.where(used, likelihood, torch.zeros_like(likelihood))
        return GaussianState(wrap(mean, self._state_angles), factor, state.time), likelihood

    def innovation(self, state: GaussianState, y, u=None, *, sensor=None) -> torch.Tensor:
        """Whitened innovation of a measurement, (..., noutputs): white with variance 1 if model and noise are right.

        Channels that were not measured are 0; the squares sum to the normalised innovation squared (NIS).
        """
        return self._correction(state, y, u, sensor).whitened

    def _correction(self, state, y, u, sensor):
        if not isinstance(state, GaussianState):
            raise TypeError(f"state must be the GaussianState that init or step returned, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y if sensor is None else self._all_channels(y, sensor))
        return self._correct(state, u, y)

    def _all_channels(self, y, sensor):
        names, labels = [sensor] if isinstance(sensor, str) else list(sensor), self.model.output_labels
        unknown = [name for name in names if name not in labels]
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"sensor must name different outputs of {list(labels)}, got {names}")
        y = as_tensor(y, "y", len(names), finite=False)
        whole = y.new_full((*y.shape[:-1], len(labels)), torch.nan)
        whole[..., [labels.index(name) for name in names]] = y
        return whole

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
            At k, predicted and filtered, with covariances.
        """
        filtered = self.correct(state, y, u)
        return self.predict(filtered, u), Estimate(state.mean, filtered.mean, state.cov, filtered.cov)

    def estimate_sequence(
        self, state: GaussianState, u: torch.Tensor, y: torch.Tensor, progress=lambda steps: steps
    ) -> Estimate:
        """Filter a record: u (..., time, ninputs), y (..., time, noutputs)."""
        u, y = check_record(self.model, u, y)
        lead = torch.broadcast_shapes(state.mean.shape[:-1], y.shape[:-2])
        mean, factor = state.mean.expand(*lead, -1), state.factor.expand(*lead, -1, -1)
        return stack_steps(self, state._replace(mean=mean, factor=factor), u, y, progress)

    def tune(self, dataset, **settings) -> TuneResult:
        """Fit the noise covariances to data by maximum likelihood; see :func:`estimators.gaussian.tuning.tune`."""
        return tune(self, dataset, **settings)

    @abstractmethod
    def _transition(self, state, u):
        """Mean of the next state, A S and N: with S the factor of the state, S_next S_next' = (A S)(A S)' + N N'."""

    @abstractmethod
    def _correct(self, state, u, y):
        """Outcome of a measurement, from :func:`estimators.gaussian.update.correct`."""
