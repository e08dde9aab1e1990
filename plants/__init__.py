"""Plants: python-control systems turned into batched, differentiable models and into data."""

from plants import signals
from plants.arrays import array_namespace
from plants.catalog import SCENARIOS, Scenario, scenario
from plants.catalog.bicycle import bicycle
from plants.catalog.bioreactor import bioreactor
from plants.catalog.duffing import duffing
from plants.catalog.falling_body import falling_body
from plants.catalog.growth_model import growth_model
from plants.catalog.loitering_target import loitering_target
from plants.catalog.lorenz63 import lorenz63
from plants.catalog.mass_spring_damper import mass_spring_damper
from plants.catalog.measured_double_pendulum import measured_double_pendulum
from plants.catalog.measured_pendulum import measured_pendulum
from plants.catalog.pendulum import pendulum
from plants.catalog.planar_quadrotor import planar_quadrotor
from plants.catalog.quadruple_tank import quadruple_tank
from plants.catalog.reaction_diffusion import reaction_diffusion
from plants.catalog.stirred_tank_reactor import stirred_tank_reactor
from plants.catalog.synchronous_motor import synchronous_motor
from plants.catalog.van_der_pol import van_der_pol
from plants.conditions import CONDITIONS, Condition, conditions_for, simulate_mixture
from plants.model import StateSpaceModel, discretize
from plants.noise import BiasedNoise, BoundedNoise, GaussianNoise, OutlierNoise, StudentNoise
from plants.parameters import parameters_as_inputs, parameters_as_states, with_parameters
from plants.region import OperatingRegion
from plants.schema import cut, from_arrays, from_csv, load_dataset, save_dataset, split, to_tensors, validate
from plants.simulate import simulate

__all__ = [
    "CONDITIONS",
    "SCENARIOS",
    "BiasedNoise",
    "BoundedNoise",
    "Condition",
    "GaussianNoise",
    "OperatingRegion",
    "OutlierNoise",
    "Scenario",
    "StateSpaceModel",
    "StudentNoise",
    "array_namespace",
    "bicycle",
    "bioreactor",
    "conditions_for",
    "cut",
    "discretize",
    "duffing",
    "falling_body",
    "from_arrays",
    "from_csv",
    "growth_model",
    "load_dataset",
    "loitering_target",
    "lorenz63",
    "mass_spring_damper",
    "measured_double_pendulum",
    "measured_pendulum",
    "parameters_as_inputs",
    "parameters_as_states",
    "pendulum",
    "planar_quadrotor",
    "quadruple_tank",
    "reaction_diffusion",
    "save_dataset",
    "scenario",
    "signals",
    "simulate",
    "simulate_mixture",
    "split",
    "stirred_tank_reactor",
    "synchronous_motor",
    "to_tensors",
    "validate",
    "van_der_pol",
    "with_parameters",
]
