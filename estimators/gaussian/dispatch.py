"""Which steps of a filter run as straight-line code, and which on tensors."""

import contextlib
import math

import numpy as np
import torch

from estimators.gaussian.compiled import FilterPrograms
from estimators.gaussian.state import GaussianState
from plants.program import NotRecordable


def alone(estimator, state, u, y, process, noise, model):
    """Programs, and u and y as floats, for one trajectory for which there is such code; None for the rest."""
    if state.mean.ndim != 1:
        return None
    known = zip(
        (process, noise), (estimator._process_factor, estimator._noise_factor), estimator._patterns, strict=True
    )
    patterns = (pattern if given is own else pattern_of(given) for given, own, pattern in known)
    programs = programs_for(estimator, model, *patterns, state)
    u = numbers(u, model.ninputs, math.isfinite)
    y = y if y is None else numbers(y, model.noutputs, not_infinite)
    return None if programs is None or u is None else (programs, u, y)


def programs_for(estimator, model, process, noise, *tensors) -> FilterPrograms | None:
    """Straight-line code for noise factors with these patterns of zeros, where there is such code.

    None for what it does not cover: other settings than the defaults, float32, derivatives, plants without
    a record or with too many states.
    """
    if estimator.degrees_of_freedom is not None or estimator.bounds is not None or estimator.dtype != torch.float64:
        return None
    involved = (*_tensors(tensors), estimator._process_factor, estimator._noise_factor)
    if torch.is_grad_enabled() and any(part.requires_grad for part in involved):
        return None
    key = model.dt, estimator.gate, process.tobytes(), noise.tobytes()
    if key not in estimator._programs:
        estimator._programs[key], rules, inputs = None, estimator._rules(), estimator._input_factor
        if rules is not None:
            with contextlib.suppress(NotRecordable):  # more operations than pay: tensors it is
                estimator._programs[key] = FilterPrograms(
                    model,
                    rules,
                    process,
                    noise,
                    inflation=estimator.inflation,
                    inputs=None if inputs is None else inputs.numpy(),
                    thresholds=None if estimator.gate is None else estimator._thresholds.tolist(),
                )
    return estimator._programs[key]


def not_infinite(value: float) -> bool:
    """Whether a measurement may be this: NaN says that there is none."""
    return not math.isinf(value)


def numbers(values, size, usable):
    """Floats of one sample, or None for anything else, which then is checked and told on tensors."""
    if values is None:
        return [] if size == 0 else None
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != size:
        return None
    return [float(v) for v in values] if all(isinstance(v, float | int) and usable(v) for v in values) else None


def _tensors(tensors):
    for part in tensors:
        yield from (part[:2] if isinstance(part, GaussianState) else (part,))


def pattern_of(factor: torch.Tensor) -> np.ndarray:
    """(n, n) bool: entries that are not zero in all of (..., n, n)."""
    return (factor.detach() != 0).reshape(-1, *factor.shape[-2:]).any(0).numpy()


def flattened(factors, varies, lead):
    """Noise factors (..., time, n, n) as ([time,] [trajectory,] n, n), and whether they vary with time."""
    if not varies:
        factors = factors[..., 0, :, :]
        return (factors.expand(*lead, -1, -1).flatten(0, len(lead) - 1) if factors.ndim > 2 else factors), False
    if factors.ndim > 3:
        factors = factors.expand(*lead, -1, -1, -1).flatten(0, len(lead) - 1).movedim(0, 1)
    return factors, True
