"""A continuous fermenter with Contois kinetics."""

import control as ct

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def bioreactor(
    growth: float = 1.0, saturation: float = 1.0, consumption: float = 1.0, feed: float = 0.1
) -> ct.NonlinearIOSystem:
    """Biomass grows on a substrate that is fed at a dilution rate.

    Model and parameters are those of J. P. Gauthier, H. Hammouri, S. Othman, "A simple observer for nonlinear systems:
    applications to bioreactors", IEEE Trans. Automatic Control 37(6), 1992; units are the paper's.

    Parameters
    ----------
    growth, saturation, consumption, feed : float
        a1 to a4: largest growth rate, saturation, substrate per biomass, concentration of the feed.

    Returns
    -------
    control.NonlinearIOSystem
        States biomass and substrate, input dilution rate, output biomass.
    """

    def update(t, x, u, params):
        grown = params["growth"] * x[0] * x[1] / (saturation * x[0] + x[1])
        return [grown - u[0] * x[0], u[0] * (feed - x[1]) - consumption * grown]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="bioreactor",
        states=["biomass", "substrate"],
        inputs=["dilution"],
        outputs=["density"],
        params={"growth": growth},
    )


def scenario() -> Scenario:
    """Dilution in random steps; biomass measured with a standard deviation of 0.004."""
    return Scenario(
        bioreactor(),
        dt=0.5,
        operating_region={"biomass": (0.03, 0.09), "substrate": (0.01, 0.07), "dilution": (0.1, 0.7)},
        noise=GaussianNoise([2e-4**2, 4e-4**2], [4e-3**2]),
        excitation=steps(10.0),
        time_unit="h",
        description="fermenter, biomass measured",
    )
