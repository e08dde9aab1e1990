"""A mass on a spring with a damper, driven by a force; linear."""

import control as ct

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def mass_spring_damper(mass: float = 1.0, stiffness: float = 2.0, damping: float = 0.3) -> ct.StateSpace:
    """Linear oscillator m x'' + c x' + k x = F.

    Parameters
    ----------
    mass : float
        kg.
    stiffness : float
        N/m.
    damping : float
        N s/m.

    Returns
    -------
    control.StateSpace
        States position (m) and velocity (m/s), input force (N), output position (m).
    """
    return ct.ss(
        [[0, 1], [-stiffness / mass, -damping / mass]],
        [[0], [1 / mass]],
        [[1, 0]],
        0,
        name="mass_spring_damper",
        states=["position", "velocity"],
        inputs=["force"],
        outputs=["measured_position"],
    )


def scenario() -> Scenario:
    """Force in random steps; position measured with 0.2 m standard deviation."""
    return Scenario(
        mass_spring_damper(),
        dt=0.1,
        operating_region={"position": (-2, 2), "velocity": (-3, 3), "force": (-2, 2)},
        noise=GaussianNoise([0.01**2, 0.1**2], [0.2**2]),
        excitation=steps(1.0),
        description="linear oscillator, noisy position",
    )
