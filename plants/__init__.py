"""Plants: python-control systems turned into batched, differentiable models and into data."""

from plants import signals
from plants.arrays import array_namespace
from plants.catalog import SCENARIOS, Scenario, scenario
from plants.catalog.mass_spring_damper import mass_spring_damper
from plants.catalog.measured_double_pendulum import measured_double_pendulum
from plants.catalog.measured_pendulum import measured_pendulum
from plants.catalog.pendulum import pendulum
from plants.catalog.quadruple_tank import quadruple_tank
from plants.catalog.reaction_diffusion import reaction_diffusion
from plants.catalog.van_der_pol import van_der_pol
from plants.model import StateSpaceModel, discretize
from plants.noise import BiasedNoise, BoundedNoise, GaussianNoise, OutlierNoise
from plants.parameters import parameters_as_inputs, parameters_as_states, with_parameters
from plants.region import OperatingRegion
from plants.schema import cut, from_arrays, from_csv, load_dataset, save_dataset, split, to_tensors, validate
from plants.simulate import simulate

__all__ = [
    "SCENARIOS",
    "BiasedNoise",
    "BoundedNoise",
    "GaussianNoise",
    "OperatingRegion",
    "OutlierNoise",
    "Scenario",
    "StateSpaceModel",
    "array_namespace",
    "cut",
    "discretize",
    "from_arrays",
    "from_csv",
    "load_dataset",
    "mass_spring_damper",
    "measured_double_pendulum",
    "measured_pendulum",
    "parameters_as_inputs",
    "parameters_as_states",
    "pendulum",
    "quadruple_tank",
    "reaction_diffusion",
    "save_dataset",
    "scenario",
    "signals",
    "simulate",
    "split",
    "to_tensors",
    "validate",
    "van_der_pol",
    "with_parameters",
]
