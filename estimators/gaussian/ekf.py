"""Extended Kalman filter."""

import torch

from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.update import correct, triangular_factor
from plants.angles import wrap


class ExtendedKalmanFilter(GaussianFilter):
    """EKF: mean through f and h, covariance through their Jacobians at the current mean.

    f is linearised at the filtered mean, h at the predicted mean. Batched over any leading
    dimensions, square-root form, float64. For a linear plant it is the Kalman filter.

    Parameters
    ----------
    model : StateSpaceModel
        The plant; its Jacobians come by the route named in ``model.jacobian_source``.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    Q, R : array_like, optional
        The same as matrices instead of `noise`.
    """

    def _propagate(self, state, u):
        mean, A, _ = self.model.step_jacobian(state.mean, u, state.time)
        wide = A @ state.factor
        process = self._process_factor.expand(*wide.shape[:-2], *self._process_factor.shape[-2:])
        return mean, triangular_factor(torch.cat([wide, process], dim=-1))

    def _correct(self, state, u, y):
        expected, C, _ = self.model.output_jacobian(state.mean, u, state.time)
        return correct(
            state.mean, wrap(y - expected, self._output_angles), C @ state.factor, state.factor, self._noise_factor
        )
