"""A quadrotor in a vertical plane, its attitude stabilised."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def planar_quadrotor(
    stiffness: float = 25.0, damping: float = 8.0, drag: float = 0.4, gravity: float = 9.81
) -> ct.NonlinearIOSystem:
    """Thrust along the body axis, pitch following a command through the attitude loop.

    Rigid body in the plane as in R. Tedrake, "Underactuated Robotics", chapter 3; with linear drag, and a
    proportional-derivative attitude loop, without which no input but its own would keep it in the air.

    Parameters
    ----------
    stiffness, damping : float
        Of the attitude loop, 1/s^2 and 1/s.
    drag : float
        1/s.
    gravity : float
        m/s^2.

    Returns
    -------
    control.NonlinearIOSystem
        States x, z (m), pitch (rad), vx, vz (m/s), pitch_rate (rad/s); inputs thrust (m/s^2, without that of hovering)
        and pitch command (rad); outputs x, z (m) and pitch (rad).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)
        thrust = params["gravity"] + u[0]
        return [
            x[3],
            x[4],
            x[5],
            thrust * xp.sin(x[2]) - params["drag"] * x[3],
            thrust * xp.cos(x[2]) - params["gravity"] - params["drag"] * x[4],
            stiffness * (u[1] - x[2]) - damping * x[5],
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0], x[1], x[2]],
        name="planar_quadrotor",
        states=["x", "z", "pitch", "vx", "vz", "pitch_rate"],
        inputs=["thrust", "command"],
        outputs=["x_measured", "z_measured", "pitch_measured"],
        params={"drag": drag, "gravity": gravity},
    )


def scenario() -> Scenario:
    """Thrust and pitch in random steps; position measured with 0.3 m, pitch with 0.05 rad standard deviation."""
    return Scenario(
        planar_quadrotor(),
        dt=0.05,
        operating_region={
            "x": (-40, 40),
            "z": (-40, 40),
            "pitch": (-0.6, 0.6),
            "vx": (-6, 6),
            "vz": (-6, 6),
            "pitch_rate": (-3, 3),
            "thrust": (-4, 4),
            "command": (-0.6, 0.6),
        },
        noise=GaussianNoise([1e-3**2, 1e-3**2, 5e-3**2, 0.03**2, 0.03**2, 0.05**2], [0.3**2, 0.3**2, 0.05**2]),
        excitation=steps(0.8),
        initial_mean=(0.0,) * 6,
        initial_cov=(2.0**2, 2.0**2, 0.2**2, 1.5**2, 1.5**2, 0.5**2),
        description="quadrotor in a plane, position and pitch measured",
    )
