"""Plants of the catalogue that tests may run through in seconds."""

import plants

LARGE = ("reaction_diffusion",)
SMALL = [name for name in plants.SCENARIOS if name not in LARGE]
