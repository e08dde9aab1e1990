"""Kalman filter linearised along another estimator's trajectory: the guarantee of one, the accuracy of the other."""

from typing import NamedTuple

import torch

from estimators.base import Estimate, Estimator, check_measurement, check_record, stack_steps
from estimators.gaussian.ekf import ExtendedKalmanFilter
from estimators.gaussian.state import GaussianState
from estimators.gaussian.update import triangular_factor
from plants.angles import wrap
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise
from plants.schema import to_tensors

SMALL = 1e-4
"""Difference of two runs in standard deviations: any will do, as they are linear; this one turns no angle."""


class ExogenousState(NamedTuple):
    """Belief of an exogenous Kalman filter.

    Attributes
    ----------
    reference : object
        Belief of the estimator along which it is linearised.
    belief : GaussianState
        Its own.
    """

    reference: object
    belief: GaussianState


class ExogenousKalmanFilter:
    """Kalman filter linearised along the estimates of another estimator, not along its own.

    An EKF linearises at its own estimate and may therefore hold on to a wrong one. Here f and h are linearised at the
    filtered and the predicted estimate of a reference, such as a contracting observer, which nothing that the filter
    does can disturb (Johansen and Fossen, "The eXogenous Kalman Filter", Int. J. Control 90(2), 2017):

        x(k+1|k) = f(r) + A(r) (x(k|k) - r),  innovation y - h(s) - C(s) (x(k|k-1) - s),

    with r and s the reference's filtered and predicted estimates at k. Given the reference this is the Kalman filter
    of a linear time-varying system; what its linearisation neglects is of second order in the reference's error, not in
    its own. :meth:`forgetting` tells along data how it forgets its start; how the reference does,
    :func:`estimators.certify` tells of the reference.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    noise : GaussianNoise
        Process and measurement covariances; those that ``ExtendedKalmanFilter.tune`` finds are a good choice.
    reference : Estimator
        A trained observer, or another estimator of the same plant.

    Raises
    ------
    TypeError
        `model`, `noise` or `reference` is something else.
    ValueError
        `reference` belongs to another plant, or covariances of another size.
    """

    def __init__(self, model: StateSpaceModel, noise: GaussianNoise, reference: Estimator):
        self._filter = ExtendedKalmanFilter(model, noise)
        if not isinstance(reference, Estimator):
            raise TypeError(f"reference must be an observer or a filter, got {type(reference).__name__}")
        theirs = reference.model
        if (theirs.state_labels, theirs.input_labels, theirs.output_labels, theirs.dt) != (
            model.state_labels,
            model.input_labels,
            model.output_labels,
            model.dt,
        ):
            raise ValueError(
                f"reference estimates the states {theirs.state_labels} of {theirs.name!r} every {theirs.dt:g}, the "
                f"model {model.name!r} has {model.state_labels} and dt = {model.dt:g}"
            )
        self.model, self.noise, self.reference = model, noise, reference

    def init(self, x0, P0=None) -> ExogenousState:
        """Start, as the reference, from a predicted state (..., nstates) and its covariance, which is needed."""
        return ExogenousState(self.reference.init(x0, P0), self._filter.init(x0, P0))

    def step(self, state: ExogenousState, u, y) -> tuple[ExogenousState, Estimate]:
        """Use u and y of instant k, as the reference does first.

        Parameters
        ----------
        state : ExogenousState
            From `init` or the last `step`.
        u : array_like or None
            (..., ninputs), None for a plant without inputs.
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : ExogenousState
            For k+1.
        estimate : Estimate
            At k: predicted and filtered, with covariances, whitened innovation and log-likelihood.
        """
        if not isinstance(state, ExogenousState):
            raise TypeError(f"state must be the ExogenousState that init or step returned, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y)
        reference, point = self.reference.step(state.reference, u, y)
        belief, estimate = self._along(state.belief, u, y, point)
        return ExogenousState(reference, belief), estimate

    def _along(self, belief, u, y, point):
        inner, angles = self._filter, self.model.state_is_angle
        expected, C, noise = inner._output(point.predicted, u, belief, inner._noise_factor)
        expected = expected + (C @ wrap(belief.mean - point.predicted, angles)[..., None])[..., 0]
        innovation = wrap(y - expected, self.model.output_is_angle)
        found = inner._combine(belief, innovation, C @ belief.factor, belief.factor, noise)
        mean, at = wrap(found.mean, angles), point.predicted if point.filtered is None else point.filtered
        filtered = GaussianState(mean, found.factor, belief.time)
        estimate = Estimate(belief.mean, mean, belief.cov, filtered.cov, found.whitened, found.log_likelihood)
        # the deviation from the reference goes through the same Jacobian as the covariance's factor
        carried = torch.cat([found.factor, wrap(mean - at, angles)[..., None]], -1)
        ahead, moved, noise = inner._moved(
            GaussianState(at, carried, belief.time), u, inner._process_factor, self.model
        )
        mean = wrap(ahead + moved[..., -1], angles)
        factor = triangular_factor(torch.cat([moved[..., :-1], noise], -1))
        return GaussianState(mean, factor, belief.time + self.model.dt), estimate

    def estimate_sequence(self, state: ExogenousState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Filter a record along the reference's estimates of it.

        Parameters
        ----------
        state : ExogenousState
            At the first sample.
        u, y : torch.Tensor
            (..., time, ninputs) and (..., time, noutputs).

        Returns
        -------
        Estimate
            (..., time, nstates), as from `step`.
        """
        u, y = check_record(self.model, u, y)
        return self._sequence(state.belief, u, y, self.reference.estimate_sequence(state.reference, u, y))

    def _sequence(self, belief, u, y, points):
        lead = torch.broadcast_shapes(belief.mean.shape[:-1], y.shape[:-2])
        belief = belief._replace(mean=belief.mean.expand(*lead, -1), factor=belief.factor.expand(*lead, -1, -1))

        def step(belief, k):
            parts = (None if part is None else part[..., k, :] for part in points[:2])
            return self._along(belief, u[..., k, :], y[..., k, :], Estimate(*parts))

        return stack_steps(step, belief, y.shape[-2])

    def forgetting(self, dataset) -> torch.Tensor:
        """Tell how far two runs along the same reference still differ, along data.

        Their difference obeys e(k+1) = A(r) (I - K C(s)) e(k) exactly, whatever its size, as long as no innovation of a
        measured angle passes half a turn.

        Parameters
        ----------
        dataset : xarray.Dataset
            Trajectories, with ``initial_mean`` and ``initial_cov``.

        Returns
        -------
        torch.Tensor
            (trajectory, time), the largest |e(k)| over |e(0)|, each in the inverse of its own predicted covariance.

        Raises
        ------
        ValueError
            The dataset does not tell the start, or a covariance is singular.
        """
        if "initial_mean" not in dataset or "initial_cov" not in dataset:
            raise ValueError("dataset does not tell where the estimate starts: give initial_mean and initial_cov")
        _, u, y = to_tensors(dataset)
        x0, P0 = (torch.from_numpy(dataset[name].values) for name in ("initial_mean", "initial_cov"))
        start = self.init(x0.expand(len(y), -1), P0)
        points = self.reference.estimate_sequence(start.reference, u, y)
        factor = start.belief.factor.contiguous()
        # one run, and one more for a small difference in each direction of the start's covariance
        away = SMALL * torch.cat([torch.zeros_like(factor[..., :1]), factor], -1).movedim(-1, 0)
        belief = start.belief._replace(mean=start.belief.mean + away, factor=factor.expand(len(away), *factor.shape))
        found = self._sequence(belief, u, y, points)
        apart = wrap(found.predicted[1:] - found.predicted[0], self.model.state_is_angle).permute(1, 2, 3, 0) / SMALL
        root, failed = torch.linalg.cholesky_ex(found.predicted_cov[0])
        if bool(failed.any()):
            raise ValueError("a predicted covariance is singular: forgetting is measured in its inverse")
        return torch.linalg.matrix_norm(torch.linalg.solve_triangular(root, apart, upper=False), ord=2)
