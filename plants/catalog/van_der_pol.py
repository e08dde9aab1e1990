"""The Van der Pol oscillator: unstable origin, attracting limit cycle, no input."""

import control as ct

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise


def van_der_pol(damping: float = 1.0) -> ct.NonlinearIOSystem:
    """Oscillator x'' = mu (1 - x^2) x' - x, dimensionless.

    Parameters
    ----------
    damping : float
        mu.

    Returns
    -------
    control.NonlinearIOSystem
        States x1 and x2 = x1', no inputs, output x1.
    """

    def update(t, x, u, params):
        return [x[1], params["mu"] * (1 - x[0] ** 2) * x[1] - x[0]]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="van_der_pol",
        states=["x1", "x2"],
        inputs=0,
        outputs=["y"],
        params={"mu": damping},
    )


def scenario() -> Scenario:
    """Measure x1 with a standard deviation of 0.3, from starts inside and outside the limit cycle."""
    return Scenario(
        van_der_pol(),
        dt=0.05,
        operating_region={"x1": (-3, 3), "x2": (-4, 4)},
        noise=GaussianNoise([0.02**2, 0.05**2], [0.3**2]),
        time_unit="",
        description="limit cycle without input, noisy x1",
    )
