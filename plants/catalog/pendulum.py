"""A torque-driven pendulum with a noisy angle sensor."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def pendulum(
    mass: float = 1.0, length: float = 1.0, damping: float = 0.3, gravity: float = 9.81
) -> ct.NonlinearIOSystem:
    """Point mass on a rod: m l^2 theta'' = -m g l sin(theta) - b theta' + torque.

    Parameters
    ----------
    mass : float
        kg.
    length : float
        m.
    damping : float
        N m s/rad.
    gravity : float
        m/s^2.

    Returns
    -------
    control.NonlinearIOSystem
        States theta (rad, 0 hanging) and omega (rad/s), input torque (N m), output the angle (rad).
    """

    def update(t, x, u, params):
        xp, inertia = array_namespace(x), params["m"] * params["l"] ** 2
        return [x[1], (u[0] - params["b"] * x[1]) / inertia - params["g"] / params["l"] * xp.sin(x[0])]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="pendulum",
        states=["theta", "omega"],
        inputs=["torque"],
        outputs=["angle"],
        params={"m": mass, "l": length, "b": damping, "g": gravity},
    )


def scenario() -> Scenario:
    """Torque in random steps, swings to about 2 rad; angle measured with 0.2 rad standard deviation."""
    return Scenario(
        pendulum(),
        dt=0.05,
        operating_region={"theta": (-2, 2), "omega": (-4, 4), "torque": (-2, 2)},
        noise=GaussianNoise([0.005**2, 0.1**2], [0.2**2]),
        excitation=steps(1.0),
        angle_states=("theta",),
        angle_outputs=("angle",),
        description="swinging pendulum, noisy angle",
    )
