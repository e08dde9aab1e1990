"""The box of states and inputs in which a plant is meant to run."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class OperatingRegion(NamedTuple):
    """Box of states and inputs in which a model is probed, sampled and plotted.

    Attributes
    ----------
    state_lower, state_upper : numpy.ndarray
        (nstates,), in the plant's units.
    input_lower, input_upper : numpy.ndarray
        (ninputs,), in the plant's units.
    """

    state_lower: np.ndarray
    state_upper: np.ndarray
    input_lower: np.ndarray
    input_upper: np.ndarray

    @property
    def state_width(self) -> np.ndarray:
        """Width of the box in each state, (nstates,)."""
        return self.state_upper - self.state_lower

    @property
    def input_width(self) -> np.ndarray:
        """Width of the box in each input, (ninputs,)."""
        return self.input_upper - self.input_lower

    @property
    def state_centre(self) -> np.ndarray:
        """Centre of the box, (nstates,)."""
        return (self.state_upper + self.state_lower) / 2

    @property
    def input_centre(self) -> np.ndarray:
        """Centre of the box, (ninputs,)."""
        return (self.input_upper + self.input_lower) / 2

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw uniform points: states (count, nstates) and inputs (count, ninputs)."""
        rng = np.random.default_rng(seed)
        return (
            rng.uniform(self.state_lower, self.state_upper, (count, len(self.state_lower))),
            rng.uniform(self.input_lower, self.input_upper, (count, len(self.input_lower))),
        )

    @classmethod
    def from_bounds(cls, bounds, states: Sequence[str], inputs: Sequence[str]) -> "OperatingRegion":
        """Build from ``{label: (lower, upper)}``; labels left out get (-1, 1)."""
        if isinstance(bounds, OperatingRegion):
            return bounds
        if bounds is not None and not isinstance(bounds, Mapping):
            raise TypeError(f"operating_region must be a mapping {{label: (lower, upper)}}, got {bounds!r}")
        bounds = dict(bounds or {})
        unknown = bounds.keys() - {*states, *inputs}
        if unknown:
            raise ValueError(
                f"operating_region names {sorted(unknown)}; "
                f"this plant has states {list(states)} and inputs {list(inputs)}"
            )
        for label, pair in bounds.items():
            if not _is_interval(pair):
                raise ValueError(f"operating_region[{label!r}] must be (lower, upper) with lower < upper, got {pair!r}")

        def column(labels, side):
            return np.array([bounds.get(label, (-1.0, 1.0))[side] for label in labels], dtype=float)

        return cls(column(states, 0), column(states, 1), column(inputs, 0), column(inputs, 1))


def _is_interval(pair) -> bool:
    try:
        lower, upper = (float(value) for value in pair)
    except (TypeError, ValueError):
        return False
    return -math.inf < lower < upper < math.inf
