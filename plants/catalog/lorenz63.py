"""The chaotic system of Lorenz (1963)."""

import control as ct

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise


def lorenz63(prandtl: float = 10.0, rayleigh: float = 28.0, geometry: float = 8 / 3) -> ct.NonlinearIOSystem:
    """Convection in three modes, dimensionless.

    E. N. Lorenz, "Deterministic nonperiodic flow", J. Atmos. Sci. 20, 1963.

    Parameters
    ----------
    prandtl, rayleigh, geometry : float
        sigma, rho, beta.

    Returns
    -------
    control.NonlinearIOSystem
        States x, y, z, no inputs, output x.
    """

    def update(t, x, u, params):
        return [
            params["sigma"] * (x[1] - x[0]),
            x[0] * (params["rho"] - x[2]) - x[1],
            x[0] * x[1] - params["beta"] * x[2],
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="lorenz63",
        states=["x", "y", "z"],
        inputs=0,
        outputs=["x_measured"],
        params={"sigma": prandtl, "rho": rayleigh, "beta": geometry},
    )


def scenario() -> Scenario:
    """Measure x fifty times per unit of time with a standard deviation of 2."""
    return Scenario(
        lorenz63(),
        dt=0.02,
        operating_region={"x": (-20, 20), "y": (-27, 27), "z": (0, 50)},
        noise=GaussianNoise([0.1**2, 0.1**2, 0.1**2], [2.0**2]),
        time_unit="",
        description="chaotic, one noisy state",
    )
