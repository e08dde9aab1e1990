"""A permanent-magnet synchronous motor without a speed or position sensor."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def synchronous_motor(
    resistance: float = 1.9,
    inductance: float = 0.003,
    flux: float = 0.1,
    inertia: float = 1.8e-4,
    friction: float = 0.001,
) -> ct.NonlinearIOSystem:
    """Two-phase motor of which only the currents are measured.

    Equations and parameters as in D. Simon, "Optimal State Estimation", Example 13.1, where an extended Kalman filter
    finds the rotor.

    Parameters
    ----------
    resistance, inductance : float
        Of a winding, ohm and H.
    flux : float
        Motor constant, V s/rad.
    inertia : float
        kg m^2.
    friction : float
        N m s/rad.

    Returns
    -------
    control.NonlinearIOSystem
        States both currents (A), speed (rad/s) and angle (rad) of the rotor; inputs both voltages (V); outputs both
        currents (A).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)
        R, L, flux, J, F = (params[name] for name in ("resistance", "inductance", "flux", "inertia", "friction"))
        sine, cosine = xp.sin(x[3]), xp.cos(x[3])
        return [
            (u[0] - R * x[0] + flux * x[2] * sine) / L,
            (u[1] - R * x[1] - flux * x[2] * cosine) / L,
            (1.5 * flux * (x[1] * cosine - x[0] * sine) - F * x[2]) / J,
            x[2],
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0], x[1]],
        name="synchronous_motor",
        states=["current_a", "current_b", "speed", "angle"],
        inputs=["voltage_a", "voltage_b"],
        outputs=["ammeter_a", "ammeter_b"],
        params={
            "resistance": resistance,
            "inductance": inductance,
            "flux": flux,
            "inertia": inertia,
            "friction": friction,
        },
    )


def scenario() -> Scenario:
    """Voltages in random steps; currents measured every 2 ms with 0.1 A standard deviation, angle told to 0.5 rad."""
    return Scenario(
        synchronous_motor(),
        dt=0.002,
        substeps=4,
        operating_region={
            "current_a": (-3, 3),
            "current_b": (-3, 3),
            "speed": (-40, 40),
            "angle": (-3.1, 3.1),
            "voltage_a": (-4, 4),
            "voltage_b": (-4, 4),
        },
        noise=GaussianNoise([0.05**2, 0.05**2, 0.5**2, 0.002**2], [0.1**2, 0.1**2]),
        excitation=steps(0.02),
        initial_mean=(0.0, 0.0, 0.0, 0.0),
        initial_cov=(0.3**2, 0.3**2, 5.0**2, 0.5**2),
        angle_states=("angle",),
        description="two-phase motor, speed and angle from its currents",
    )
