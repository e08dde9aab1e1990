"""Unscented Kalman filter."""

import math

import torch

from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.update import correct
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
    Q, R : array_like, optional
        The same as matrices instead of `noise`.
    gate : float, optional
        Probability with which a right measurement is used; see :class:`~estimators.gaussian.filter.GaussianFilter`.
    alpha : float
        Spread of the points, in (0, 1].
    beta : float
        Prior knowledge of the distribution, 2 for a Gaussian; at least alpha^2, or such that W_c is not negative.
    kappa : float
        Secondary spread; nstates + kappa must be positive.

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
        Q=None,
        R=None,
        gate: float | None = None,
        alpha: float = 1.0,
        beta: float = 2.0,
        kappa: float = 0.0,
    ):
        super().__init__(model, noise, Q=Q, R=R, gate=gate)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}")
        if not model.nstates + kappa > 0:
            raise ValueError(f"kappa must be above -{model.nstates}, got {kappa}")
        total = alpha**2 * (model.nstates + kappa)
        self._spread, self._weight = math.sqrt(total), 1 / (2 * total)
        central = (1 - model.nstates / total) + (1 - alpha**2) + beta
        self._centred = beta < alpha**2
        if self._centred and central < 0:
            raise ValueError(
                f"beta must be at least alpha^2 = {alpha**2:g}, or give the central point a covariance weight that "
                f"is not negative; got beta = {beta} and weight {central:.3g}"
            )
        self._central = math.sqrt(central if self._centred else beta - alpha**2)

    def _points(self, state):
        steps = self._spread * state.factor.mT
        return torch.cat(
            [state.mean[..., None, :], state.mean[..., None, :] + steps, state.mean[..., None, :] - steps], dim=-2
        )

    def _transform(self, values, is_angle):
        """Mean (..., n) and deviation columns (..., n, 2 nx + 1) of the propagated points."""
        deviations = wrap(values[..., 1:, :] - values[..., :1, :], is_angle)
        shift = self._weight * deviations.sum(dim=-2)
        if self._centred:
            deviations = deviations - shift[..., None, :]
        columns = torch.cat([math.sqrt(self._weight) * deviations, self._central * shift[..., None, :]], dim=-2).mT
        return values[..., 0, :] + shift, columns

    def _transition(self, state, u):
        inputs = None if u is None else _for_points(u)
        mean, columns = self._transform(self.model.step(self._points(state), inputs, state.time), self._state_angles)
        # columns of opposite points: half their difference goes with the state, half their sum does not
        n = self.model.nstates
        plus, minus, rest = columns[..., :n], columns[..., n : 2 * n], columns[..., 2 * n :]
        process = self._process_factor.expand(*columns.shape[:-2], *self._process_factor.shape[-2:])
        return mean, (plus - minus) / math.sqrt(2), torch.cat([(plus + minus) / math.sqrt(2), rest, process], dim=-1)

    def _correct(self, state, u, y):
        expected, output_rows = self._transform(
            self.model.output(self._points(state), _for_points(u), state.time), self._output_angles
        )
        half = self._spread * math.sqrt(self._weight) * state.factor
        state_rows = torch.cat([half, -half, torch.zeros_like(half[..., :1])], dim=-1)
        return correct(state.mean, wrap(y - expected, self._output_angles), output_rows, state_rows, self._noise_factor)


class CubatureKalmanFilter(UnscentedKalmanFilter):
    """Cubature Kalman filter (Arasaratnam and Haykin, IEEE TAC 2009): the UKF without a central point.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    Q, R : array_like, optional
        The same as matrices instead of `noise`.
    gate : float, optional
        Probability with which a right measurement is used; see :class:`~estimators.gaussian.filter.GaussianFilter`.
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
        super().__init__(model, noise, Q=Q, R=R, gate=gate, alpha=1.0, beta=0.0, kappa=0.0)


def _for_points(u):
    return torch.as_tensor(u, dtype=torch.float64)[..., None, :]
