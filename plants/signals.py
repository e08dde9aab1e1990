"""Excitation signals: ``signal(timepts, ninputs, rng) -> (len(timepts), ninputs)`` with values in [-1, 1].

`simulate` stretches them to the input box of the operating region and draws the inputs of all
trajectories in one call.
"""

from collections.abc import Callable

import numpy as np

Signal = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def steps(hold: float) -> Signal:
    """Piecewise constant, uniform levels; each level held for `hold` units of time."""

    def signal(timepts, ninputs, rng):
        index = np.floor((timepts - timepts[0]) / _positive(hold, "hold") + rng.random() + 1e-9).astype(int)
        return rng.uniform(-1, 1, (index[-1] + 1, ninputs))[index]

    return signal


def prbs(hold: float) -> Signal:
    """Pseudo-random binary: -1 or 1, drawn anew every `hold` units of time."""

    def signal(timepts, ninputs, rng):
        return np.where(steps(hold)(timepts, ninputs, rng) > 0, 1.0, -1.0)

    return signal


def random_walk(step: float) -> Signal:
    """Gaussian random walk with standard deviation `step` per sample, reflected at -1 and 1."""

    def signal(timepts, ninputs, rng):
        start = rng.uniform(-1, 1, (1, ninputs))
        walk = start + np.cumsum(rng.normal(0, _positive(step, "step"), (len(timepts), ninputs)), axis=0)
        return np.abs((walk - 1) % 4 - 2) - 1

    return signal


def multisine(lowest: float, highest: float, count: int = 10) -> Signal:
    """Sum of `count` sines of random phase, log-spaced between two frequencies in cycles per unit of time."""
    if not 0 < lowest < highest:
        raise ValueError(f"multisine needs 0 < lowest < highest, got {lowest} and {highest}")

    def signal(timepts, ninputs, rng):
        phases = rng.uniform(0, 2 * np.pi, (count, ninputs))
        frequencies = np.geomspace(lowest, highest, count)
        total = np.zeros((len(timepts), ninputs))
        for frequency, phase in zip(frequencies, phases, strict=True):
            total += np.sin(2 * np.pi * frequency * timepts[:, None] + phase)
        return total / np.maximum(np.abs(total).max(axis=0), 1e-12)

    return signal


def chirp(lowest: float, highest: float) -> Signal:
    """Sine sweeping linearly from one frequency to another over the record, random phase."""
    if not (lowest > 0 and highest > 0):
        raise ValueError(f"chirp needs positive frequencies, got {lowest} and {highest}")

    def signal(timepts, ninputs, rng):
        elapsed = timepts - timepts[0]
        duration = max(elapsed[-1], 1e-12)
        phase = 2 * np.pi * (lowest * elapsed + (highest - lowest) * elapsed**2 / (2 * duration))
        return np.sin(phase[:, None] + rng.uniform(0, 2 * np.pi, ninputs))

    return signal


def _positive(value, name):
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return value
