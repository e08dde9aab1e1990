"""A car as a kinematic bicycle, with a satellite receiver and a compass."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def bicycle(
    wheelbase: float = 2.7, drag: float = 0.3, cruise: float = 8.0, *, name: str = "bicycle"
) -> ct.NonlinearIOSystem:
    """Rear-axle kinematic model: the car goes where its front wheels point.

    As in R. Rajamani, "Vehicle Dynamics and Control", 2nd ed., section 2.2, referred to the rear axle; the speed
    returns to that of cruising.

    Parameters
    ----------
    wheelbase : float
        m.
    drag : float
        1/s.
    cruise : float
        m/s.
    name : str
        Of the system.

    Returns
    -------
    control.NonlinearIOSystem
        States east, north (m), heading (rad from east), speed (m/s); inputs acceleration (m/s^2) and steering angle
        (rad); outputs east, north (m) and heading (rad).
    """

    def update(t, x, u, params):
        xp = array_namespace(x)
        return [
            x[3] * xp.cos(x[2]),
            x[3] * xp.sin(x[2]),
            x[3] / params["wheelbase"] * xp.tan(u[1]),
            u[0] + drag * (cruise - x[3]),
        ]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0], x[1], x[2]],
        name=name,
        states=["east", "north", "heading", "speed"],
        inputs=["acceleration", "steering"],
        outputs=["gps_east", "gps_north", "compass"],
        params={"wheelbase": wheelbase},
    )


def scenario(name: str = "bicycle", **changed) -> Scenario:
    """Drive about for 20 s; position measured with 1 m, heading with 0.1 rad standard deviation, ten times a second."""
    return Scenario(
        bicycle(name=name),
        dt=0.1,
        operating_region={
            "east": (-100, 100),
            "north": (-100, 100),
            "heading": (-3, 3),
            "speed": (4, 12),
            "acceleration": (-2, 2),
            "steering": (-0.4, 0.4),
        },
        noise=GaussianNoise([0.02**2, 0.02**2, 0.01**2, 0.1**2], [1.0**2, 1.0**2, 0.1**2]),
        excitation=steps(2.0),
        initial_mean=(0.0, 0.0, 0.0, 8.0),
        initial_cov=(5.0**2, 5.0**2, 1.0**2, 1.5**2),
        angle_states=("heading",),
        angle_outputs=("compass",),
        **{"description": "car with satellite receiver and compass", **changed},
    )


def slow_receiver() -> Scenario:
    """Drive the same car with a receiver that measures once a second."""
    return scenario(
        "bicycle_slow_receiver",
        every={"gps_east": 10, "gps_north": 10},
        description="the same, position once a second, compass ten times",
    )
