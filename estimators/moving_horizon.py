"""Moving-horizon estimation: the best trajectory through the last measurements, with bounds."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import torch

from estimators.base import Estimate, check_measurement, check_record, stack_steps
from estimators.gaussian.bounds import as_bounds
from estimators.gaussian.ekf import ExtendedKalmanFilter
from estimators.gaussian.state import GaussianState
from estimators.gaussian.update import triangular_factor
from plants.angles import wrap
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class HorizonState(NamedTuple):
    """Belief of a moving-horizon estimator.

    Attributes
    ----------
    arrival : GaussianState
        Belief about the first state of the window from the measurements before it.
    inputs, measurements : tuple of torch.Tensor
        Those in the window, (..., ninputs) and (..., noutputs) each.
    states : torch.Tensor
        (..., window + 1, nstates), the trajectory found last and its prediction; the next search starts there.
    """

    arrival: GaussianState
    inputs: tuple
    measurements: tuple
    states: torch.Tensor


class MovingHorizonEstimator:
    """Maximum a posteriori trajectory over a window, by ``scipy.optimize.least_squares``.

    Minimises |x_0 - m|^2 in P^-1 + sum |x_{k+1} - f(x_k, u_k)|^2 in Q^-1 + sum |y_k - h(x_k, u_k)|^2 in R^-1 over the
    states of the window, within bounds (Rao, Rawlings and Mayne, IEEE TAC 2003). The arrival cost (m, P) is carried by
    an EKF linearised at the trajectory found. Without bounds and for a linear plant it is the Kalman filter. It
    is a reference: each trajectory of a batch is its own optimisation, tens of milliseconds a step.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise
        Process and measurement covariances, both positive definite.
    horizon : int
        Measurements in the window.
    bounds : mapping, optional
        State label to (lower, upper), either of which may be None; every state of the window stays inside.

    Raises
    ------
    TypeError, ValueError
        As for the filters; a covariance that is singular; `horizon` not a positive integer.
    """

    def __init__(
        self, model: StateSpaceModel, noise: GaussianNoise, *, horizon: int = 10, bounds: Mapping | None = None
    ):
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise ValueError(f"horizon must be a positive integer, got {horizon!r}")
        self._ekf = ExtendedKalmanFilter(model, noise)
        self.model, self.noise, self.horizon = model, noise, horizon
        for name in ("process_cov", "measurement_cov"):
            if np.linalg.eigvalsh(getattr(noise, name))[0] <= 0:
                raise ValueError(f"{name} must be positive definite: its inverse weighs the residuals")
        if noise.input_cov is not None:
            raise ValueError("input_cov is not supported here: put it into process_cov, B input_cov B'")
        self._limits = as_bounds(bounds, model)
        self._process_root = np.linalg.cholesky(noise.process_cov)

    def init(self, x0, P0=None) -> HorizonState:
        """Start from a predicted state `x0` (..., nstates) with covariance `P0`, positive definite."""
        arrival = self._ekf.init(x0, P0)
        if bool((torch.linalg.matrix_rank(arrival.factor) < self.model.nstates).any()):
            raise ValueError("P0 must be positive definite: its inverse weighs the start")
        return HorizonState(arrival, (), (), arrival.mean[..., None, :])

    def step(self, state: HorizonState, u, y) -> tuple[HorizonState, Estimate]:
        """Use u and y of instant k, then predict to k+1.

        Parameters
        ----------
        state : HorizonState
            Belief about x_k from measurements up to k-1.
        u : array_like or None
            (..., ninputs).
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : HorizonState
            Belief about x_{k+1}.
        estimate : Estimate
            At k, predicted and filtered; no covariances.
        """
        if not isinstance(state, HorizonState):
            raise TypeError(f"state must be the HorizonState of init or step, got {type(state).__name__}")
        u, y = (part.clone() for part in check_measurement(self.model, u, y))  # they stay in the window
        lead = torch.broadcast_shapes(state.states.shape[:-2], u.shape[:-1], y.shape[:-1])
        inputs, measurements = (*state.inputs, u.expand(*lead, -1)), (*state.measurements, y.expand(*lead, -1))
        arrival = GaussianState(
            state.arrival.mean.expand(*lead, -1), state.arrival.factor.expand(*lead, -1, -1), state.arrival.time
        )
        states = state.states.expand(*lead, *state.states.shape[-2:])
        predicted = states[..., -1, :]
        us, ys = torch.stack(inputs, -2), torch.stack(measurements, -2)
        count, parts = lead.numel(), (arrival.mean, arrival.factor, states, us, ys)
        flat = [part.reshape(count, *part.shape[len(lead) :]) for part in parts]
        found = torch.stack([self._search(*(part[i] for part in flat), arrival.time) for i in range(count)])
        found = found.reshape(states.shape)
        filtered = found[..., -1, :]
        following = self.model.step(filtered, u, arrival.time + (len(inputs) - 1) * self.model.dt)
        states = torch.cat([found, wrap(following, self.model.state_is_angle)[..., None, :]], -2)
        if len(inputs) == self.horizon:
            arrival = self._advance(arrival, found[..., 0, :], inputs[0], measurements[0])
            inputs, measurements, states = inputs[1:], measurements[1:], states[..., 1:, :]
        return HorizonState(arrival, inputs, measurements, states), Estimate(predicted, filtered)

    def estimate_sequence(
        self, state: HorizonState, u: torch.Tensor, y: torch.Tensor, progress=lambda steps: steps
    ) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs)."""
        u, y = check_record(self.model, u, y)
        return stack_steps(lambda state, k: self.step(state, u[..., k, :], y[..., k, :]), state, y.shape[-2], progress)

    def _search(self, mean, factor, start, us, ys, time):
        """Trajectory (window, nstates) of least cost for one trajectory."""
        model, N, nx = self.model, len(us), self.model.nstates
        unit = factor.square().sum(-1).sqrt().numpy()  # the search sees states in units of their deviation
        prior, factor = mean.numpy(), triangular_factor(factor).numpy()
        angles, output_angles = model.state_is_angle, model.output_is_angle
        rows = []  # of each instant: which channels, and R^(1/2) of them
        for y in ys.numpy():
            channels = np.flatnonzero(~np.isnan(y))
            R = self.noise.measurement_cov[np.ix_(channels, channels)]
            rows.append((channels, np.linalg.cholesky(R) if len(channels) else R))
        times = [time + k * model.dt for k in range(N)]

        def residuals(z):
            x = torch.from_numpy(z.reshape(N, nx) * unit)
            steps = [model.step(x[k], us[k], times[k]) for k in range(N - 1)]
            outputs = [model.output(x[k], us[k], times[k]) for k in range(N)]
            parts = [solve(factor, wrap(x[0] - mean, angles).numpy())]
            for k in range(N - 1):
                parts.append(solve(self._process_root, wrap(x[k + 1] - steps[k], angles).numpy()))
            for k, (channels, root) in enumerate(rows):
                if len(channels):
                    parts.append(solve(root, wrap(outputs[k] - ys[k], output_angles).numpy()[channels]))
            return np.concatenate(parts)

        def jacobian(z):
            x = torch.from_numpy(z.reshape(N, nx) * unit)
            steps = [model.step_jacobian(x[k], us[k], times[k]) for k in range(N - 1)]
            outputs = [model.output_jacobian(x[k], us[k], times[k]) for k in range(N)]
            count = nx * N + sum(len(channels) for channels, _ in rows)
            J, row = np.zeros((count, nx * N)), nx
            J[:nx, :nx] = solve(factor, np.diag(unit))
            for k in range(N - 1):
                J[row : row + nx, k * nx : (k + 1) * nx] = solve(self._process_root, -steps[k][1].numpy() * unit)
                J[row : row + nx, (k + 1) * nx : (k + 2) * nx] = solve(self._process_root, np.diag(unit))
                row += nx
            for k, (channels, root) in enumerate(rows):
                if len(channels):
                    J[row : row + len(channels), k * nx : (k + 1) * nx] = solve(
                        root, outputs[k][1].numpy()[channels] * unit
                    )
                    row += len(channels)
            return J

        guess, limits = start.numpy() / unit, (-np.inf, np.inf)
        if self._limits is not None:
            lower, upper = (np.tile(bound.numpy() / unit, N) for bound in self._limits)
            margin = 1e-9 * np.minimum(1.0, upper - lower)
            limits, guess = (lower, upper), np.clip(guess.ravel(), lower + margin, upper - margin)
        found = scipy.optimize.least_squares(
            residuals, guess.ravel(), jacobian, bounds=limits, xtol=1e-10, ftol=1e-12, gtol=1e-10, x_scale=1.0
        )
        if not found.success or not np.isfinite(found.x).all():
            raise ValueError(f"the search over {N} states from {prior.tolist()} failed: {found.message}")
        return wrap(torch.from_numpy(found.x.reshape(N, nx) * unit), angles)

    def _advance(self, arrival, at, u, y):
        """Belief about the window's second state: the EKF step of the first, linearised at the trajectory found."""
        model, ekf = self.model, self._ekf
        expected, C, _ = model.output_jacobian(at, u, arrival.time)
        back = wrap(arrival.mean - at, model.state_is_angle)
        innovation = wrap(y - expected, model.output_is_angle) - (C @ back[..., None])[..., 0]
        found = ekf._combine(arrival, innovation, C @ arrival.factor, arrival.factor, ekf._noise_factor)
        following, A, _ = model.step_jacobian(at, u, arrival.time)
        mean = following + (A @ wrap(found.mean - at, model.state_is_angle)[..., None])[..., 0]
        array = torch.cat([A @ found.factor, ekf._process_factor.expand(*A.shape)], -1)
        return GaussianState(wrap(mean, model.state_is_angle), triangular_factor(array), arrival.time + model.dt)


def solve(root, right):
    """Solve root z = right for a lower triangular root."""
    return scipy.linalg.solve_triangular(root, right, lower=True)
