"""The univariate nonstationary growth model, a standard trial for nonlinear filters."""

import control as ct
import numpy as np

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise


def growth_model() -> ct.NonlinearIOSystem:
    """x+ = x / 2 + 25 x / (1 + x^2) + 8 u with u = cos(1.2 k), y = x^2 / 20: the sign of x is not measured.

    N. J. Gordon, D. J. Salmond, A. F. M. Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation",
    IEE Proc. F 140(2), 1993; the forcing, a function of time there, is a known input here.

    Returns
    -------
    control.NonlinearIOSystem
        Discrete; state x, input forcing, output square.
    """
    return ct.nlsys(
        lambda t, x, u, params: [x[0] / 2 + 25 * x[0] / (1 + x[0] ** 2) + 8 * u[0]],
        lambda t, x, u, params: [x[0] ** 2 / 20],
        name="growth_model",
        states=["x"],
        inputs=["forcing"],
        outputs=["square"],
        dt=1.0,
    )


def _forcing(timepts, ninputs, rng):
    """cos(1.2 k) from anywhere in its period, as unit signal."""
    return np.cos(1.2 * timepts[:, None] + rng.uniform(0, 2 * np.pi, ninputs))


def scenario() -> Scenario:
    """Process and measurement noise of variance 1, as published; records start anywhere in the forcing's period."""
    return Scenario(
        growth_model(),
        dt=1.0,
        operating_region={"x": (-20, 20), "forcing": (-1, 1)},
        noise=GaussianNoise([1.0], [1.0]),
        excitation=_forcing,
        time_unit="",
        description="sign of the state not measured",
    )
