"""Reference estimators that carry samples: bootstrap particle filter and ensemble Kalman filter.

They are slower than Gaussian filters and need no Jacobians; the particle filter approaches the best
estimate there is as its particles grow, which shows what the others leave on the table.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch

from estimators.base import Estimate, check_measurement, check_record, stack_steps
from estimators.gaussian.state import input_noise, start_factor
from plants.angles import wrap
from plants.arrays import covariance_factor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class ParticleState(NamedTuple):
    """Belief as a sample.

    Attributes
    ----------
    particles : torch.Tensor
        (..., count, nstates).
    log_weights : torch.Tensor
        (..., count), normalised.
    step : int
        Steps since the start; with the seed it names the random numbers of the next step.
    time : float
        Time of the belief, passed to time-varying plants.
    """

    particles: torch.Tensor
    log_weights: torch.Tensor
    step: int = 0
    time: float = 0.0


class _Sampled(ABC):
    """What both estimators share: noise, start, moments.

    Random numbers depend on the seed and the step only and are the same for every trajectory of a batch, so that
    a trajectory gets the same estimate alone and in any batch.
    """

    def __init__(self, model: StateSpaceModel, noise: GaussianNoise, *, particles: int, seed: int):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a GaussianNoise, got {type(noise).__name__}")
        noise.check_sizes(model)
        if isinstance(particles, bool) or not isinstance(particles, int) or particles < 2:
            raise ValueError(f"particles must be an integer of at least 2, got {particles!r}")
        self.model, self.noise, self.count, self.seed = model, noise, particles, int(seed)
        self._process_factor = torch.from_numpy(covariance_factor(noise.process_cov))
        self._input_factor, _ = input_noise(model, noise)

    def _normal(self, step: int, purpose: int, size: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, step, purpose]).standard_normal((self.count, size)))

    def init(self, x0, P0=None) -> ParticleState:
        """Draw the particles of a predicted state.

        Parameters
        ----------
        x0 : array_like
            (..., nstates).
        P0 : array_like
            Its covariance: (nstates, nstates), (nstates,) variances or a scalar.

        Returns
        -------
        ParticleState

        Raises
        ------
        ValueError
            `P0` missing or not a covariance, `x0` of the wrong shape or not finite.
        """
        x0, factor = start_factor(self, x0, P0)
        drawn = self._normal(0, 0, self.model.nstates) @ factor.mT
        particles = wrap(x0[..., None, :] + drawn, self.model.state_is_angle)
        even = torch.full(particles.shape[:-1], -math.log(self.count), dtype=torch.float64)
        return ParticleState(particles, even)

    def step(self, state: ParticleState, u, y) -> tuple[ParticleState, Estimate]:
        """Correct with u and y of instant k, then predict to k+1.

        Parameters
        ----------
        state : ParticleState
            Belief about x_k from measurements up to k-1.
        u : array_like or None
            (..., ninputs), None for a plant without inputs.
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : ParticleState
            Belief about x_{k+1}.
        estimate : Estimate
            At k, predicted and filtered, with covariances, whitened innovation and log-likelihood.
        """
        if not isinstance(state, ParticleState):
            raise TypeError(f"state must be the ParticleState that init or step returned, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y)
        lead = torch.broadcast_shapes(state.log_weights.shape[:-1], u.shape[:-1], y.shape[:-1])
        particles = state.particles.expand(*lead, -1, -1)
        state = state._replace(particles=particles, log_weights=state.log_weights.expand(*lead, -1))
        before, before_cov = self._moments(state)
        inputs = u[..., None, :]
        if self._input_factor is not None:
            inputs = inputs + self._normal(state.step, 3, self._input_factor.shape[-1]) @ self._input_factor.mT
        corrected, innovation, likelihood = self._correct(state, inputs, y)
        after, after_cov = self._moments(corrected)
        chosen = self._resample(corrected)
        moved = self.model.step(chosen.particles, inputs, state.time)
        moved = moved + self._normal(state.step, 2, self.model.nstates) @ self._process_factor.mT
        following = chosen._replace(
            particles=wrap(moved, self.model.state_is_angle), step=state.step + 1, time=state.time + self.model.dt
        )
        return following, Estimate(before, after, before_cov, after_cov, innovation, likelihood)

    def estimate_sequence(
        self, state: ParticleState, u: torch.Tensor, y: torch.Tensor, progress=lambda steps: steps
    ) -> Estimate:
        """Filter a record: u (..., time, ninputs), y (..., time, noutputs)."""
        u, y = check_record(self.model, u, y)
        return stack_steps(lambda state, k: self.step(state, u[..., k, :], y[..., k, :]), state, y.shape[-2], progress)

    def _moments(self, state):
        """Mean and covariance; angles are averaged about the heaviest particle."""
        weights = state.log_weights.exp()[..., None]
        heaviest = state.log_weights.argmax(-1)[..., None, None].expand(
            *state.particles.shape[:-2], 1, self.model.nstates
        )
        centre = state.particles.gather(-2, heaviest)
        deviations = wrap(state.particles - centre, self.model.state_is_angle)
        shift = (weights * deviations).sum(-2)
        centred = deviations - shift[..., None, :]
        return wrap(centre[..., 0, :] + shift, self.model.state_is_angle), (weights * centred).mT @ centred

    def _measured(self, y, particles, u, time):
        """Innovations (..., count, noutputs), R and mask; a missing channel becomes one that says nothing."""
        present = ~torch.isnan(y)
        innovation = wrap(y[..., None, :] - self.model.output(particles, u, time), self.model.output_is_angle)
        innovation = torch.where(present[..., None, :], innovation, torch.zeros_like(innovation))
        mask = present.double()
        R = torch.from_numpy(self.noise.measurement_cov) * mask[..., :, None] * mask[..., None, :]
        return innovation, R + torch.diag_embed(1 - mask), mask

    def _whitened(self, innovation, R, weights):
        """Mean innovation over the factor of its covariance, and that factor."""
        first = innovation[..., :1, :]
        deviations = wrap(innovation - first, self.model.output_is_angle)
        shift = (weights[..., None] * deviations).sum(-2)
        centred = deviations - shift[..., None, :]
        root = torch.linalg.cholesky((weights[..., None] * centred).mT @ centred + R)
        mean = wrap(first[..., 0, :] + shift, self.model.output_is_angle)
        return torch.linalg.solve_triangular(root, mean[..., None], upper=False)[..., 0], root

    @abstractmethod
    def _correct(self, state, u, y):
        """Belief after a measurement, whitened innovation, log-likelihood."""

    def _resample(self, state):
        return state


class ParticleFilter(_Sampled):
    """Bootstrap particle filter: particles move by the plant with its noise and are weighted by the measurement.

    Resampled systematically where the effective number of particles falls below half (Gordon, Salmond
    and Smith 1993; Arulampalam et al. 2002). Batched over any leading dimensions; a step is a pure
    function, since its random numbers are named by the seed and the number of the step.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise
        Process and measurement covariances; the latter positive definite.
    particles : int
        How many; cost and memory are proportional.
    seed : int
        Of all random numbers.

    Raises
    ------
    TypeError, ValueError
        Model, noise or number of particles out of range; a singular measurement covariance.
    """

    def __init__(self, model: StateSpaceModel, noise: GaussianNoise, *, particles: int = 1000, seed: int = 0):
        super().__init__(model, noise, particles=particles, seed=seed)
        if np.linalg.eigvalsh(noise.measurement_cov)[0] <= 0:
            raise ValueError("measurement_cov must be positive definite: particles never meet a noise-free measurement")

    def _correct(self, state, u, y):
        innovation, R, mask = self._measured(y, state.particles, u, state.time)
        root = torch.linalg.cholesky(R)
        squares = torch.linalg.solve_triangular(root, innovation.mT, upper=False).square().sum(-2)
        log_weights = state.log_weights - 0.5 * squares
        total = torch.logsumexp(log_weights, -1)
        whitened, _ = self._whitened(innovation, R, state.log_weights.exp())
        corrected = state._replace(log_weights=log_weights - total[..., None])
        return corrected, whitened, total - _normaliser(root, mask)

    def _resample(self, state):
        weights = state.log_weights.exp()
        few = 1 / weights.square().sum(-1) < self.count / 2
        if not bool(few.any()):
            return state
        offset = torch.from_numpy(np.random.default_rng([self.seed, state.step, 1]).random(1))
        places = ((offset + torch.arange(self.count)) / self.count).expand(weights.shape).contiguous()
        upto = weights.cumsum(-1)
        index = torch.searchsorted(upto / upto[..., -1:], places).clamp(max=self.count - 1)
        index = torch.where(few[..., None], index, torch.arange(self.count))
        even = torch.full_like(weights, -math.log(self.count))
        return state._replace(
            particles=state.particles.gather(-2, index[..., None].expand_as(state.particles)),
            log_weights=torch.where(few[..., None], even, state.log_weights),
        )


class EnsembleKalmanFilter(_Sampled):
    """Ensemble Kalman filter with perturbed measurements (Burgers, van Leeuwen and Evensen 1998).

    The Kalman gain comes from the covariances of an ensemble that moves by the plant with its noise.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise
        Process and measurement covariances.
    particles : int
        Members of the ensemble.
    inflation : float
        Factor of the predicted deviations, at least 1; makes up for what a small ensemble underestimates.
    seed : int
        Of all random numbers.

    Raises
    ------
    TypeError, ValueError
        Model, noise, number of members or inflation out of range.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        noise: GaussianNoise,
        *,
        particles: int = 100,
        inflation: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(model, noise, particles=particles, seed=seed)
        if not 1 <= inflation < math.inf:
            raise ValueError(f"inflation must be at least 1 and finite, got {inflation!r}")
        self.inflation = float(inflation)
        self._noise_factor = torch.from_numpy(covariance_factor(noise.measurement_cov))

    def _correct(self, state, u, y):
        angles, outputs = self.model.state_is_angle, self.model.output_is_angle
        mean, _ = self._moments(state)
        deviations = self.inflation * wrap(state.particles - mean[..., None, :], angles)
        members = wrap(mean[..., None, :] + deviations, angles)
        innovation, R, mask = self._measured(y, members, u, state.time)
        whitened, root = self._whitened(innovation, R, state.log_weights.exp())
        likelihood = -0.5 * whitened.square().sum(-1) - _normaliser(root, mask)
        spread = wrap(innovation - innovation[..., :1, :], outputs)
        spread = spread - spread.mean(-2, keepdim=True)
        scale = 1 / (self.count - 1)
        cross, own = scale * deviations.mT @ -spread, scale * spread.mT @ spread + R
        noise = self._normal(state.step, 1, self.model.noutputs) @ self._noise_factor.mT
        noise = (noise - noise.mean(-2, keepdim=True)) * mask[..., None, :]
        moved = (wrap(innovation + noise, outputs)) @ torch.linalg.solve(own, cross.mT)
        return state._replace(particles=wrap(members + moved, angles)), whitened, likelihood


def _normaliser(root, mask):
    """Logarithm of the normal density's denominator, of the measured channels."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * math.log(2 * math.pi) * mask.sum(-1)
