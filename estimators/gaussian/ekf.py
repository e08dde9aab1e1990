"""Extended Kalman filter, plain and iterated."""

from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.update import correct
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
    gate : float, optional
        Probability with which a right measurement is used; see :class:`~estimators.gaussian.filter.GaussianFilter`.
    """

    def _transition(self, state, u):
        mean, A, _ = self.model.step_jacobian(state.mean, u, state.time)
        return mean, A @ state.factor, self._process_factor

    def _correct(self, state, u, y):
        expected, C, _ = self.model.output_jacobian(state.mean, u, state.time)
        return correct(
            state.mean, wrap(y - expected, self._output_angles), C @ state.factor, state.factor, self._noise_factor
        )


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
    Q, R : array_like, optional
        The same as matrices instead of `noise`.
    gate : float, optional
        Probability with which a right measurement is used; see :class:`~estimators.gaussian.filter.GaussianFilter`.
    iterations : int
        At most so many; it stops where no state moves by more than 1e-10 of its predicted deviation.

    Raises
    ------
    ValueError
        `iterations` below 1, or as for the noise.
    """

    def __init__(self, model, noise=None, *, Q=None, R=None, gate: float | None = None, iterations: int = 10):
        super().__init__(model, noise, Q=Q, R=R, gate=gate)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
        self.iterations = iterations

    def _correct(self, state, u, y):
        at, deviation = state.mean, state.factor.square().sum(-1).sqrt()
        for _ in range(self.iterations):
            expected, C, _ = self.model.output_jacobian(at, u, state.time)
            back = wrap(state.mean - at, self._state_angles)
            innovation = wrap(y - expected, self._output_angles) - (C @ back[..., None])[..., 0]
            found = correct(state.mean, innovation, C @ state.factor, state.factor, self._noise_factor)
            moved = wrap(found[0] - at, self._state_angles).abs()
            at = found[0]
            if bool((moved <= 1e-10 * deviation).all()):
                break
        return found
