"""The torque-controlled single pendulum of DFKI's open data set, with its identified parameters."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def measured_pendulum(
    inertia: float = 0.06259,
    gravity_moment: float = 0.1022,
    viscous: float = 0.04707,
    coulomb: float = 0.1839,
    offset: float = -0.07586,
    gravity: float = 9.81,
) -> ct.NonlinearIOSystem:
    """Pendulum J a = torque - m c g sin(q) - Fv v - Fc atan(100 v) - offset.

    Default parameters: system_identification.txt of dfki-ric-underactuated-lab/torque_limited_simple_pendulum
    (BSD-3-Clause).

    Parameters
    ----------
    inertia : float
        J, kg m^2.
    gravity_moment : float
        m c, kg m.
    viscous : float
        Fv, N m s/rad.
    coulomb : float
        Fc, N m.
    offset : float
        Torque offset, N m.
    gravity : float
        m/s^2.

    Returns
    -------
    control.NonlinearIOSystem
        States position (rad, 0 hanging) and velocity (rad/s), input torque (N m), output the angle (rad).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)
        friction = viscous * x[1] + coulomb * xp.arctan(100 * x[1])
        return [x[1], (u[0] - gravity_moment * gravity * xp.sin(x[0]) - friction - offset) / inertia]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="measured_pendulum",
        states=["position", "velocity"],
        inputs=["torque"],
        outputs=["angle"],
    )


def scenario() -> Scenario:
    """5 ms samples, encoder step 0.0029 rad; Coulomb friction is stiff, hence two substeps."""
    dt, density = 0.005, 1.0
    return Scenario(
        measured_pendulum(),
        dt=dt,
        substeps=2,
        operating_region={"position": (-3, 3), "velocity": (-8, 8), "torque": (-2, 2)},
        noise=GaussianNoise(
            [[density * dt**3 / 3, density * dt**2 / 2], [density * dt**2 / 2, density * dt]], [0.0029**2 / 12 + 1e-6]
        ),
        excitation=steps(0.4),
        angle_states=("position",),
        angle_outputs=("angle",),
        description="DFKI torque-controlled pendulum, encoder angle",
    )
