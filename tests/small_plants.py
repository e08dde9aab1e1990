"""Plants of the catalogue that tests may run through in seconds."""

import plants

LARGE = ("reaction_diffusion",)
CATALOGUE = [name for name in plants.SCENARIOS if name not in LARGE]
SMALL = [
    "mass_spring_damper",
    "pendulum",
    "van_der_pol",
    "quadruple_tank",
    "measured_pendulum",
    "measured_double_pendulum",
]
"""For what is tested with every estimator: one of each kind of plant."""
