"""A linear plant whose response scipy computes."""

import numpy as np
from scipy.signal import lfilter


def second_order(count: int, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs (count, steps, 1) of (0.2 z + 0.1) / (z^2 - 1.5 z + 0.7) from rest."""
    u = np.random.default_rng(seed).standard_normal((count, steps, 1))
    return u, lfilter([0, 0.2, 0.1], [1, -1.5, 0.7], u, axis=1)
