"""A cooled stirred-tank reactor with an exothermic reaction."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def stirred_tank_reactor(
    flow: float = 100.0,
    volume: float = 100.0,
    feed_concentration: float = 1.0,
    feed_temperature: float = 350.0,
    rate_constant: float = 7.2e10,
    activation: float = 8750.0,
    heat_of_reaction: float = 5e4,
    heat_capacity: float = 239.0,
    heat_transfer: float = 5e4,
) -> ct.NonlinearIOSystem:
    """Reaction A -> B in a tank of constant volume, cooled by a jacket.

    Parameters are those of D. E. Seborg, T. F. Edgar, D. A. Mellichamp, "Process Dynamics and Control", Example 2.5.

    Parameters
    ----------
    flow, volume : float
        L/min and L.
    feed_concentration, feed_temperature : float
        mol/L and K.
    rate_constant, activation : float
        k0 in 1/min and E/R in K.
    heat_of_reaction : float
        Released, J/mol.
    heat_capacity : float
        rho C_p, J/(L K).
    heat_transfer : float
        U A, J/(min K).

    Returns
    -------
    control.NonlinearIOSystem
        States concentration (mol/L) and temperature (K), input coolant temperature (K), output temperature (K).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)
        reaction = params["k0"] * xp.exp(-activation / x[1]) * x[0]
        return [
            flow / volume * (feed_concentration - x[0]) - reaction,
            flow / volume * (feed_temperature - x[1])
            + heat_of_reaction / heat_capacity * reaction
            + params["UA"] / (volume * heat_capacity) * (u[0] - x[1]),
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[1]],
        name="stirred_tank_reactor",
        states=["concentration", "temperature"],
        inputs=["coolant"],
        outputs=["thermometer"],
        params={"k0": rate_constant, "UA": heat_transfer},
    )


def scenario() -> Scenario:
    """Coolant in random steps; temperature measured every 3 s with 1 K standard deviation.

    No start in the region ignites the reaction, with k0 and UA right or wrong by 10 %; with k0 30 % up and UA 30 % down
    it does.
    """
    return Scenario(
        stirred_tank_reactor(),
        dt=0.05,
        operating_region={"concentration": (0.8, 1.0), "temperature": (308, 330), "coolant": (286, 296)},
        noise=GaussianNoise([3e-3**2, 0.2**2], [1.0**2]),
        excitation=steps(1.0),
        initial_mean=(0.94, 315.0),
        initial_cov=(0.03**2, 3.0**2),
        time_unit="min",
        description="exothermic reactor, temperature measured",
    )
