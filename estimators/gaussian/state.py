"""The belief of a Gaussian filter."""

from typing import NamedTuple

import torch

from estimators.base import Estimator
from plants.arrays import as_covariance, as_tensor, covariance_factor


class GaussianState(NamedTuple):
    """Belief of a Gaussian filter.

    Attributes
    ----------
    mean : torch.Tensor
        (..., nstates).
    factor : torch.Tensor
        (..., nstates, nstates), cov = factor factor'.
    time : float
        Time of the belief, passed to time-varying plants.
    """

    mean: torch.Tensor
    factor: torch.Tensor
    time: float = 0.0

    @property
    def cov(self) -> torch.Tensor:
        """Covariance, (..., nstates, nstates), exactly symmetric."""
        product = self.factor @ self.factor.mT
        return (product + product.mT) / 2


def start_factor(estimator: Estimator, x0, P0) -> tuple[torch.Tensor, torch.Tensor]:
    """Validate the start of an estimator that needs a covariance: x0 (..., nstates) and a factor of P0."""
    nstates = estimator.model.nstates
    x0 = as_tensor(x0, "x0", nstates)
    if P0 is None:
        raise ValueError(f"P0 is missing: {type(estimator).__name__} needs the covariance of the start")
    return x0, torch.from_numpy(covariance_factor(as_covariance(P0, "P0", nstates)))


def check_state(state) -> None:
    """Raise TypeError unless `state` is a GaussianState."""
    if not isinstance(state, GaussianState):
        raise TypeError(f"state must be the GaussianState that init or step returned, got {type(state).__name__}")


def input_noise(model, noise) -> tuple[torch.Tensor | None, bool]:
    """Return the factor of the inputs' covariance, noisy columns only, and whether the outputs see it at once."""
    if noise.input_cov is None or not noise.input_cov.any():
        return None, False
    factor = torch.from_numpy(covariance_factor(noise.input_cov))
    factor = factor[:, factor.any(0)]
    x, u = (torch.from_numpy(a) for a in model.operating_region.sample(32, seed=2))
    moves, shows = (J @ factor != 0 for J in (model.step_jacobian(x, u)[2], model.output_jacobian(x, u)[2]))
    both = moves.any(1).any(0) & shows.any(1).any(0)
    if bool(both.any()):
        names = [label for label, row in zip(model.input_labels, factor[:, both], strict=True) if row.any()]
        raise ValueError(
            f"noise of the inputs {names} moves the states and shows in the outputs at the same instant, so process "
            "and measurement noise would be correlated: use one input for each, or add a state between"
        )
    return factor, bool(shows.any())
