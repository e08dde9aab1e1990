"""The quadruple-tank process of Johansson (2000), minimum-phase setting."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps

DRY = 1e-2
"""Level in cm below which the outflow is linear in the level: keeps the square root differentiable."""


def quadruple_tank(
    areas=(28.0, 32.0, 28.0, 32.0),
    outlets=(0.071, 0.057, 0.071, 0.057),
    pump_gains=(3.33, 3.35),
    valves=(0.70, 0.60),
    gravity: float = 981.0,
) -> ct.NonlinearIOSystem:
    """Two pumps, four tanks, two of them draining into the other two.

    Parameters are those of K. H. Johansson, "The quadruple-tank process", IEEE Trans. Control
    Systems Technology 8(3), 2000, Table I, minimum-phase operating point P-.

    Parameters
    ----------
    areas : sequence of float
        Cross-sections of tanks 1 to 4, cm^2.
    outlets : sequence of float
        Cross-sections of the outlets, cm^2.
    pump_gains : sequence of float
        cm^3/(V s).
    valves : sequence of float
        Share of each pump's flow that goes to the lower tank.
    gravity : float
        cm/s^2.

    Returns
    -------
    control.NonlinearIOSystem
        States h1 to h4 (cm), inputs v1 and v2 (V), outputs the levels of the two lower tanks (cm).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)

        def outflow(i):
            level = xp.where(x[i] > DRY, x[i], DRY + 0 * x[i])
            return outlets[i] * (2 * gravity) ** 0.5 * xp.where(x[i] > DRY, xp.sqrt(level), x[i] / DRY**0.5)

        q1, q2, q3, q4 = (outflow(i) for i in range(4))
        k1, k2, g1, g2 = (params[name] for name in ("pump1", "pump2", "valve1", "valve2"))
        return [
            (q3 - q1 + g1 * k1 * u[0]) / areas[0],
            (q4 - q2 + g2 * k2 * u[1]) / areas[1],
            ((1 - g2) * k2 * u[1] - q3) / areas[2],
            ((1 - g1) * k1 * u[0] - q4) / areas[3],
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0], x[1]],
        name="quadruple_tank",
        states=["h1", "h2", "h3", "h4"],
        inputs=["v1", "v2"],
        outputs=["level1", "level2"],
        params=dict(zip(("pump1", "pump2", "valve1", "valve2"), (*pump_gains, *valves), strict=True)),
    )


def scenario() -> Scenario:
    """Pumps in random steps about 3 V; the lower levels measured with 0.5 cm standard deviation every 4 s."""
    return Scenario(
        quadruple_tank(),
        dt=4.0,
        operating_region={"h1": (4, 22), "h2": (4, 22), "h3": (0.5, 4.5), "h4": (0.5, 4.5), "v1": (2, 4), "v2": (2, 4)},
        noise=GaussianNoise([0.1**2, 0.1**2, 0.03**2, 0.03**2], [0.5**2, 0.5**2]),
        excitation=steps(60.0),
        description="four tanks, the two lower levels measured",
    )
