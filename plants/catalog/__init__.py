"""The plants that come with the toolkit: each a factory of a python-control system, with a scenario."""

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
    quadruple_tank as _quadruple_tank,
)
from plants.catalog import (
    reaction_diffusion as _reaction_diffusion,
)
from plants.catalog import (
    van_der_pol as _van_der_pol,
)
from plants.catalog.scenario import Scenario

SCENARIOS = {
    "mass_spring_damper": _mass_spring_damper.scenario,
    "pendulum": _pendulum.scenario,
    "van_der_pol": _van_der_pol.scenario,
    "quadruple_tank": _quadruple_tank.scenario,
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
