"""The plants that come with the toolkit: each a factory of a python-control system, with a scenario."""

from plants.catalog import (
    bicycle as _bicycle,
)
from plants.catalog import (
    bioreactor as _bioreactor,
)
from plants.catalog import (
    duffing as _duffing,
)
from plants.catalog import (
    falling_body as _falling_body,
)
from plants.catalog import (
    growth_model as _growth_model,
)
from plants.catalog import (
    loitering_target as _loitering_target,
)
from plants.catalog import (
    lorenz63 as _lorenz63,
)
from plants.catalog import (
    mass_spring_damper as _mass_spring_damper,
)
from plants.catalog import (
    measured_double_pendulum as _measured_double_pendulum,
)
from plants.catalog import (
    measured_pendulum as _measured_pendulum,
)
from plants.catalog import (
    pendulum as _pendulum,
)
from plants.catalog import (
    planar_quadrotor as _planar_quadrotor,
)
from plants.catalog import (
    quadruple_tank as _quadruple_tank,
)
from plants.catalog import (
    reaction_diffusion as _reaction_diffusion,
)
from plants.catalog import (
    stirred_tank_reactor as _stirred_tank_reactor,
)
from plants.catalog import (
    synchronous_motor as _synchronous_motor,
)
from plants.catalog import (
    van_der_pol as _van_der_pol,
)
from plants.catalog.scenario import Scenario

SCENARIOS = {
    "mass_spring_damper": _mass_spring_damper.scenario,
    "pendulum": _pendulum.scenario,
    "pendulum_displacement": _pendulum.displacement,
    "van_der_pol": _van_der_pol.scenario,
    "duffing": _duffing.scenario,
    "lorenz63": _lorenz63.scenario,
    "quadruple_tank": _quadruple_tank.scenario,
    "stirred_tank_reactor": _stirred_tank_reactor.scenario,
    "bioreactor": _bioreactor.scenario,
    "bicycle": _bicycle.scenario,
    "bicycle_slow_receiver": _bicycle.slow_receiver,
    "synchronous_motor": _synchronous_motor.scenario,
    "planar_quadrotor": _planar_quadrotor.scenario,
    "growth_model": _growth_model.scenario,
    "falling_body": _falling_body.scenario,
    "bearings_only": _loitering_target.bearings_only,
    "range_only": _loitering_target.range_only,
    "measured_pendulum": _measured_pendulum.scenario,
    "measured_double_pendulum": _measured_double_pendulum.scenario,
    "reaction_diffusion": _reaction_diffusion.scenario,
}
"""Factories of scenarios by name."""


def scenario(name: str) -> Scenario:
    """Return the scenario of a catalogue plant.

    Parameters
    ----------
    name : str
        One of ``plants.SCENARIOS``.

    Returns
    -------
    Scenario

    Raises
    ------
    ValueError
        Unknown name; the known ones are listed.
    """
    if name not in SCENARIOS:
        raise ValueError(f"unknown plant {name!r}; the catalogue has {', '.join(sorted(SCENARIOS))}")
    return SCENARIOS[name]()
