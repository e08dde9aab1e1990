"""A target that loiters about a point, seen by one sensor: bearings only, or range only."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def loitering_target(
    sensor: str = "bearing", sensor_east: float = -1.5, stiffness: float = 0.6, damping: float = 0.4
) -> ct.NonlinearIOSystem:
    """Point mass held about the origin by a spring and a damper, pushed by a known acceleration.

    The measurement problems of Y. Bar-Shalom, X. R. Li, T. Kirubarajan, "Estimation with Applications to Tracking and
    Navigation", 2001, with a target that stays, so that errors have a steady state.

    Parameters
    ----------
    sensor : {'bearing', 'range'}
        What the sensor, on the east axis, measures.
    sensor_east : float
        Its place, km.
    stiffness, damping : float
        1/min^2 and 1/min.

    Returns
    -------
    control.NonlinearIOSystem
        States east, north (km), east_rate, north_rate (km/min); inputs accelerations (km/min^2); output the bearing
        from east (rad) or the range (km).
    """
    if sensor not in ("bearing", "range"):
        raise ValueError(f"sensor must be 'bearing' or 'range', got {sensor!r}")

    def update(t, x, u, params):
        k, d = params["stiffness"], params["damping"]
        return [x[2], x[3], u[0] - k * x[0] - d * x[2], u[1] - k * x[1] - d * x[3]]

    def bearing(t, x, u, params):
        xp = array_namespace(x)
        return [(xp.arctan2 if xp.__name__ == "numpy" else xp.atan2)(x[1], x[0] - sensor_east)]

    def distance(t, x, u, params):
        # a centimetre of height keeps it differentiable above the sensor
        return [array_namespace(x).sqrt((x[0] - sensor_east) ** 2 + x[1] ** 2 + 1e-10)]

    return ct.nlsys(
        update,
        bearing if sensor == "bearing" else distance,
        name="bearings_only" if sensor == "bearing" else "range_only",
        states=["east", "north", "east_rate", "north_rate"],
        inputs=["push_east", "push_north"],
        outputs=[sensor],
        params={"stiffness": stiffness, "damping": damping},
    )


_REGION = {
    "east": (-3, 3),
    "north": (-3, 3),
    "east_rate": (-2, 2),
    "north_rate": (-2, 2),
    "push_east": (-1, 1),
    "push_north": (-1, 1),
}
_SHAKING = [1e-3**2, 1e-3**2, 0.08**2, 0.08**2]


def bearings_only() -> Scenario:
    """Measure the bearing with a standard deviation of 0.15 rad; the target passes close by the sensor."""
    return Scenario(
        loitering_target("bearing"),
        dt=0.1,
        operating_region=_REGION,
        noise=GaussianNoise(_SHAKING, [0.15**2]),
        excitation=steps(1.0),
        angle_outputs=("bearing",),
        time_unit="min",
        description="target, bearings only",
    )


def range_only() -> Scenario:
    """Measure the range with a standard deviation of 0.15 km: north and south look alike."""
    return Scenario(
        loitering_target("range"),
        dt=0.1,
        operating_region=_REGION,
        noise=GaussianNoise(_SHAKING, [0.15**2]),
        excitation=steps(1.0),
        time_unit="min",
        description="target, range only",
    )
