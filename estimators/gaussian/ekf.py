"""Extended Kalman filter, plain and iterated."""

import torch

from estimators.gaussian.compiled import Linearised
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.update import triangular_factor
from plants.angles import wrap

HALVINGS = 12
"""At most so many of one Gauss-Newton step."""


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
        ``Q``, ``R``: covariances as matrices, instead of `noise`. ``gate``: probability with which a right measurement
        is used; what is less likely is left out as an outlier. ``degrees_of_freedom``: of Student's t distribution
        of the measurement noise, for outliers that are weighed down. ``bounds``: ``{state label: (lower, upper)}``,
        None where there is none; means are projected. ``inflation``: factor on predicted covariances per unit
        of time. ``dtype``: ``torch.float64`` or ``torch.float32``. In full: GaussianFilter in
        ``estimators.gaussian.filter``.
    """

    def _rules(self):
        ours = self._unchanged(ExtendedKalmanFilter, "_transition", "_correct", "_output")
        return Linearised() if ours else None

    def _transition(self, state, u, process, model):
        mean, A, B = model.step_jacobian(state.mean, u, state.time)
        if self._input_factor is not None:
            inputs = B @ self.input_factor_over(model.dt)
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
    many the iterations. A step that would make the posterior less likely is halved until it does not, where R is
    not singular. The covariance is that of the last linearisation.

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
        # x = m + S z: z is standard normal before the measurement, whatever the rank of S
        S, m, measured = state.factor, state.mean, ~torch.isnan(y)
        deviation = S.square().sum(-1).sqrt()
        z = torch.zeros_like(m)
        at, z = m, z.expand(*torch.broadcast_shapes(m.shape[:-1], y.shape[:-1]), -1)
        for _ in range(self.iterations):
            expected, C, rows = self._output(at, u, state, noise)
            H, residual = C @ S, wrap(y - expected, self._output_angles)
            found = self._combine(state, residual + (H @ z[..., None])[..., 0], H, S, rows)
            gain = torch.linalg.solve_triangular(found.root, H * measured[..., None], upper=False).mT
            step = (gain @ found.whitened[..., None])[..., 0] - z
            z = z + self._shortened(state, u, y, rows, z, step)
            before, at = at, wrap(m + (S @ z[..., None])[..., 0], self._state_angles)
            if bool((wrap(at - before, self._state_angles).abs() <= 1e-10 * deviation).all()):
                break
        return found._replace(mean=at)

    def _shortened(self, state, u, y, rows, z, step):
        """Halve a step in z where it does not lower |z|^2 + |y - h(m + S z)|^2 in R^-1."""
        missing = torch.isnan(y)
        kept = rows * ~missing[..., None]
        filler = torch.diag_embed(missing.to(rows.dtype))
        root = triangular_factor(torch.cat([kept.expand(*filler.shape[:-1], -1), filler], dim=-1))
        if bool((root.diagonal(dim1=-2, dim2=-1) == 0).any()):
            return step

        def cost(z):
            x = state.mean + (state.factor @ z[..., None])[..., 0]
            residual = wrap(y - self.model.output(x, u, state.time), self._output_angles).to(self.dtype)
            residual = torch.where(missing, torch.zeros_like(residual), residual)
            weighed = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
            return z.square().sum(-1) + weighed.square().sum(-1)

        now, share = cost(z), torch.ones_like(z[..., :1])
        for _ in range(HALVINGS):
            worse = cost(z + share * step) > now * (1 + 1e-12)
            if not bool(worse.any()):
                break
            share = torch.where(worse[..., None], share / 2, share)
        return share * step
