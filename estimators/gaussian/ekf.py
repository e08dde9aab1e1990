"""Extended Kalman filter, plain and iterated."""

import torch

from estimators.gaussian.compiled import Linearised
from estimators.gaussian.filter import GaussianFilter
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
    **settings
        ``Q``, ``R``, ``gate``, ``degrees_of_freedom``, ``bounds``, ``inflation``, ``dtype`` of
        :class:`~estimators.gaussian.filter.GaussianFilter`.
    """

    def _rules(self):
        kept = ("_transition", "_correct", "_output")
        ours = all(getattr(type(self), name) is getattr(ExtendedKalmanFilter, name) for name in kept)
        return Linearised() if ours else None

    def _transition(self, state, u, process, model):
        mean, A, B = model.step_jacobian(state.mean, u, state.time)
        if self._input_factor is not None:
            inputs = B @ self._input_factor
            process = torch.cat([process.expand(*inputs.shape[:-1], -1), inputs.to(process.dtype)], dim=-1)
        return mean, A.to(self.dtype) @ state.factor, process

    def _output(self, at, u, state, noise):
        """Return the expected output, C, and the noise factor with what the inputs add."""
        expected, C, D = self.model.output_jacobian(at, u, state.time)
        if self._noisy_output:
            inputs = D @ self._input_factor
            noise = torch.cat([noise.expand(*inputs.shape[:-1], -1), inputs.to(noise.dtype)], dim=-1)
        return expected, C.to(self.dtype), noise

    def _correct(self, state, u, y, noise):
        expected, C, noise = self._output(state.mean, u, state, noise)
        return self._combine(state, wrap(y - expected, self._output_angles), C @ state.factor, state.factor, noise)


class IteratedExtendedKalmanFilter(ExtendedKalmanFilter):
    """EKF whose correction is the maximum a posteriori estimate, found by Gauss-Newton.

    h is linearised again at each iterate x_i, always from the predicted mean m (Bell and Cathey, IEEE
    TAC 1993): x_{i+1} = m + K_i (y - h(x_i) - C_i (m - x_i)). The measurement is used once, however
    many the iterations. The covariance is that of the last linearisation.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise, optional
        Process and measurement covariances.
    iterations : int
        At most so many; it stops where no state moves by more than 1e-10 of its predicted deviation.
    **settings
        As for :class:`ExtendedKalmanFilter`.

    Raises
    ------
    ValueError
        `iterations` below 1, or as for the noise.
    """

    def __init__(self, model, noise=None, *, iterations: int = 10, **settings):
        super().__init__(model, noise, **settings)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
        self.iterations = iterations

    def _correct(self, state, u, y, noise):
        at, deviation = state.mean, state.factor.square().sum(-1).sqrt()
        for _ in range(self.iterations):
            expected, C, rows = self._output(at, u, state, noise)
            back = wrap(state.mean - at, self._state_angles)
            innovation = wrap(y - expected, self._output_angles) - (C @ back[..., None])[..., 0]
            found = self._combine(state, innovation, C @ state.factor, state.factor, rows)
            moved = wrap(found.mean - at, self._state_angles).abs()
            at = found.mean
            if bool((moved <= 1e-10 * deviation).all()):
                break
        return found
