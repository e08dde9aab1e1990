"""A torque-driven pendulum with a noisy angle sensor."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def pendulum(
    mass: float = 1.0, length: float = 1.0, damping: float = 0.3, gravity: float = 9.81, sensor: str = "angle"
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
    sensor : {'angle', 'displacement'}
        What is measured: the angle, or the horizontal displacement of the mass, l sin(theta), which does not tell above
        from below.

    Returns
    -------
    control.NonlinearIOSystem
        States theta (rad, 0 hanging) and omega (rad/s), input torque (N m), output the angle (rad) or the
        displacement (m).
    """
    if sensor not in ("angle", "displacement"):
        raise ValueError(f"sensor must be 'angle' or 'displacement', got {sensor!r}")

    def update(t, x, u, params):
        xp, inertia = array_namespace(x), params["m"] * params["l"] ** 2
        return [x[1], (u[0] - params["b"] * x[1]) / inertia - params["g"] / params["l"] * xp.sin(x[0])]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0] if sensor == "angle" else params["l"] * array_namespace(x).sin(x[0])],
        name="pendulum" if sensor == "angle" else "pendulum_displacement",
        states=["theta", "omega"],
        inputs=["torque"],
        outputs=[sensor],
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


def displacement() -> Scenario:
    """Torque that swings it past the horizontal; the mass's horizontal place measured with 0.2 m standard deviation."""
    return Scenario(
        pendulum(sensor="displacement"),
        dt=0.05,
        operating_region={"theta": (-2.6, 2.6), "omega": (-4, 4), "torque": (-2, 2)},
        noise=GaussianNoise([0.005**2, 0.1**2], [0.2**2]),
        excitation=steps(1.0),
        angle_states=("theta",),
        description="swinging pendulum, horizontal displacement measured",
    )
