"""Unscented Kalman filter."""

import math

import torch

from estimators.gaussian.compiled import Unscented
from estimators.gaussian.filter import GaussianFilter
from plants.angles import wrap
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class UnscentedKalmanFilter(GaussianFilter):
    """UKF with scaled sigma points (van der Merwe, 2004), square-root form, float64.

    The 2n+1 points are drawn anew after the process noise has been added. Deviations are taken
    from the central point: with d_i = Y_i - Y_0 and delta = mean - Y_0 the covariance of the
    unscented transform is sum W_i d_i d_i' + (beta - alpha^2) delta delta', and also
    sum W_i (d_i - delta)(d_i - delta)' + W_c delta delta' with W_c the covariance weight of the central
    point. The one without a negative weight is used, so that a factor comes straight out of a QR
    decomposition and declared angles need no special mean. Julier's points are alpha = 1, beta = 0,
    kappa >= 0.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    alpha : float
        Spread of the points, in (0, 1].
    beta : float
        Prior knowledge of the distribution, 2 for a Gaussian; at least alpha^2, or such that W_c is not negative.
    kappa : float
        Secondary spread; nstates + kappa must be positive. Where inputs carry noise, their number is added to nstates.
    **settings
        As for :class:`~estimators.ExtendedKalmanFilter`.

    Raises
    ------
    ValueError
        Parameters outside these ranges, or as for the noise.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        noise: GaussianNoise | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 2.0,
        kappa: float = 0.0,
        **settings,
    ):
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        self.alpha, self.beta, self.kappa = alpha, beta, kappa
        super().__init__(model, noise, **settings)

    def _set_noise(self, noise):
        super()._set_noise(noise)
        n = self.model.nstates + (0 if self._input_factor is None else self._input_factor.shape[-1])
        if not n + self.kappa > 0:
            raise ValueError(f"kappa must be above -{n}, got {self.kappa}")
        total = self.alpha**2 * (n + self.kappa)
        self._spread, self._weight = math.sqrt(total), 1 / (2 * total)
        central = (1 - n / total) + (1 - self.alpha**2) + self.beta
        self._centred = self.beta < self.alpha**2
        if self._centred and central < 0:
            raise ValueError(
                f"beta must be at least alpha^2 = {self.alpha**2:g}, or give the central point a covariance weight "
                f"that is not negative; got beta = {self.beta} and weight {central:.3g}"
            )
        self._central = math.sqrt(central if self._centred else self.beta - self.alpha**2)

    def _rules(self):
        ours = self._unchanged(UnscentedKalmanFilter, "_points", "_transform", "_transition", "_correct")
        return Unscented(self._spread, self._weight, self._central, self._centred) if ours else None

    def _points(self, state, u, dt):
        """Sigma points of state and, where they carry noise, inputs: (..., 2 n + 1, nstates) and their inputs."""
        # float64 also for a float32 belief: a small deviation would drown in the rounding of the mean
        mean, columns = state.mean.double(), self._spread * state.factor.double().mT
        u = None if u is None else torch.as_tensor(u, dtype=torch.float64)[..., None, :]
        if self._input_factor is None:
            centre = mean[..., None, :]
            return torch.cat([centre, centre + columns, centre - columns], dim=-2), u
        noisy = self._spread * self.input_factor_over(dt).mT
        columns = torch.cat([columns, columns.new_zeros(*columns.shape[:-2], len(noisy), columns.shape[-1])], dim=-2)
        moves = torch.cat([noisy.new_zeros(self.model.nstates, noisy.shape[-1]), noisy])
        spread = torch.cat([0 * columns[..., :1, :], columns, -columns], dim=-2)
        return mean[..., None, :] + spread, u + torch.cat([0 * moves[:1], moves, -moves])

    def _transform(self, values, is_angle):
        """Mean (..., n) and deviation columns (..., n, 2 n + 1) of the propagated points."""
        deviations = wrap(values[..., 1:, :] - values[..., :1, :], is_angle)
        shift = self._weight * deviations.sum(dim=-2)
        if self._centred:
            deviations = deviations - shift[..., None, :]
        columns = torch.cat([math.sqrt(self._weight) * deviations, self._central * shift[..., None, :]], dim=-2).mT
        return values[..., 0, :] + shift, columns

    def _transition(self, state, u, process, model):
        mean, columns = self._transform(model.step(*self._points(state, u, model.dt), state.time), self._state_angles)
        # columns of opposite points: half their difference goes with the state, half their sum does not
        count, n = columns.shape[-1] // 2, model.nstates
        odd = (columns[..., :count] - columns[..., count : 2 * count]) / math.sqrt(2)
        even = (columns[..., :count] + columns[..., count : 2 * count]) / math.sqrt(2)
        process = process.expand(*columns.shape[:-1], process.shape[-1])
        return mean, odd[..., :n], torch.cat([odd[..., n:], even, columns[..., 2 * count :], process], dim=-1)

    def _correct(self, state, u, y, noise):
        expected, output_rows = self._transform(
            self.model.output(*self._points(state, u, self.model.dt), state.time), self._output_angles
        )
        half = self._spread * math.sqrt(self._weight) * state.factor
        none = half.new_zeros(*half.shape[:-1], output_rows.shape[-1] // 2 - self.model.nstates)
        state_rows = torch.cat([half, none, -half, none, torch.zeros_like(half[..., :1])], dim=-1)
        return self._combine(state, wrap(y - expected, self._output_angles), output_rows, state_rows, noise)


class CubatureKalmanFilter(UnscentedKalmanFilter):
    """Cubature Kalman filter (Arasaratnam and Haykin, IEEE TAC 2009): the UKF without a central point.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    **settings
        As for :class:`~estimators.ExtendedKalmanFilter`.
    """

    def __init__(self, model: StateSpaceModel, noise: GaussianNoise | None = None, **settings):
        super().__init__(model, noise, alpha=1.0, beta=0.0, kappa=0.0, **settings)
