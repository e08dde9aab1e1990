"""Rauch-Tung-Striebel smoothing with the factors that the filters carry."""

import math

import torch

from estimators.gaussian.bounds import project
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.state import GaussianState
from estimators.gaussian.update import triangular_factor
from plants.angles import wrap


def smooth_sequence(
    estimator: GaussianFilter, state: GaussianState, u: torch.Tensor, y: torch.Tensor, *, Q=None, R=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth a record.

    With the joint factor [[A S, N], [S, 0]] of (x_{k+1}, x_k) triangularised to [[L, 0], [G L, S_c]], G is the
    smoother's gain and S_c the factor of x_k given x_{k+1} (Saerkkae, Bayesian Filtering and Smoothing, ch. 8; in
    array form no covariance is subtracted).

    Parameters
    ----------
    estimator : GaussianFilter
        The filter; its linearisation or sigma points are the smoother's.
    state : GaussianState
        Predicted belief at the first sample, (trajectory, nstates).
    u, y : torch.Tensor
        (trajectory, time, ninputs) and (trajectory, time, noutputs).
    Q, R : array_like, optional
        Covariances that change with time, as for ``estimate_sequence`` of the filter.

    Returns
    -------
    mean, cov : torch.Tensor
        (trajectory, time, nstates) and (trajectory, time, nstates, nstates).

    Raises
    ------
    ValueError
        A predicted covariance is singular.
    """
    angles, nx, filtered, links = estimator.model.state_is_angle, estimator.model.nstates, [], []
    process, noise = (estimator.factor_sequence(value, name, y.shape[1]) for value, name in ((Q, "Q"), (R, "R")))
    y = y.to(estimator.dtype)
    for k in range(y.shape[1]):
        state = estimator._corrected(state, u[:, k], y[:, k], noise[..., k, :, :])[0]
        filtered.append(state)
        if k == y.shape[1] - 1:
            break
        following, moved, driven = estimator._moved(state, u[:, k], process[..., k, :, :], estimator.model)
        if estimator.inflation != 1:  # an inflated prediction is one with more noise
            more = math.sqrt(estimator.inflation**estimator.model.dt - 1)
            driven = torch.cat([driven, more * triangular_factor(torch.cat([moved, driven], -1))], -1)
        array = torch.cat(
            [torch.cat([moved, driven], -1), torch.cat([state.factor, torch.zeros_like(driven)], -1)], dim=-2
        )
        joint = triangular_factor(array)
        L, GL, conditional = joint[..., :nx, :nx], joint[..., nx:, :nx], joint[..., nx:, nx:]
        if bool((L.diagonal(dim1=-2, dim2=-1) == 0).any()):
            raise ValueError(
                f"the covariance predicted at time step {k + 1} is singular, so the future does not determine "
                "the past: give every state some process noise or start uncertainty"
            )
        following = project(following, L, estimator.bounds)
        links.append((following, torch.linalg.solve_triangular(L, GL, upper=False, left=False), conditional))
        state = GaussianState(following, L, state.time + estimator.model.dt)
    mean, factor = filtered[-1].mean, filtered[-1].factor
    means, covs = [mean], [filtered[-1].cov]
    for (following, gain, conditional), now in zip(reversed(links), reversed(filtered[:-1]), strict=True):
        difference = wrap(mean - following, angles)
        mean = wrap(now.mean + (gain @ difference[..., None])[..., 0], angles)
        factor = triangular_factor(torch.cat([conditional, gain @ factor], dim=-1))
        mean = project(mean, factor, estimator.bounds)
        means.append(mean)
        covs.append(now._replace(factor=factor).cov)
    return torch.stack(means[::-1], dim=1), torch.stack(covs[::-1], dim=1)
