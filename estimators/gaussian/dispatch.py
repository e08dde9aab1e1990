"""Which steps of a filter run as straight-line code, and which on tensors."""

import math
from functools import lru_cache

import numpy as np
import scipy.stats
import torch

from estimators.gaussian.compiled import FilterPrograms
from estimators.gaussian.state import GaussianState
from plants.program import NotRecordable

PATIENCE, MOST = 3, 64
"""How often a sample of another length has to come up before code is made for it; how many are kept."""


@lru_cache(maxsize=64)
def gate_thresholds(gate: float | None, channels: int) -> tuple[float, ...] | None:
    """Quantiles of the chi-square distribution that a gate stands for, by the number of measured channels."""
    return None if gate is None else (math.inf, *scipy.stats.chi2.ppf(gate, np.arange(1, channels + 1)).tolist())


def alone(estimator, state, u, y, process, noise, model):
    """Programs, and u and y as floats, for one trajectory for which there is such code; None for the rest."""
    if state.mean.ndim != 1 or any(f.ndim != 2 for f in (state.factor, process, noise)) or not is_lower(state.factor):
        return None
    known = zip(
        (process, noise), (estimator._process_factor, estimator._noise_factor), estimator._patterns, strict=True
    )
    patterns = (pattern if given is own else pattern_of(given) for given, own, pattern in known)
    programs = programs_for(estimator, model, *patterns, state, u, y, process, noise)
    if programs is None:
        return None
    u = numbers(u, model.ninputs, math.isfinite)
    y = y if y is None else numbers(y, model.noutputs, not_infinite)
    return None if u is None else (programs, u, y)


def programs_for(estimator, model, process, noise, *involved) -> FilterPrograms | None:
    """Straight-line code for noise factors with these patterns of zeros, where there is such code.

    None for what it does not cover: heavy tails, bounds, float32, derivatives, plants without a record or with too many
    states; and for a sample of another length until it has come up a few times.
    """
    if estimator.degrees_of_freedom is not None or estimator.bounds is not None or estimator.dtype != torch.float64:
        return None
    if torch.is_grad_enabled() and any(
        part.requires_grad for part in _tensors((*involved, estimator._process_factor, estimator._noise_factor))
    ):
        return None
    programs = estimator._programs
    key = model.dt, estimator.gate, estimator.inflation, process.tobytes(), noise.tobytes()
    found = programs.get(key, 0)
    if isinstance(found, int) and model.dt != estimator.model.dt and found < PATIENCE:
        if len(programs) > MOST:
            programs.clear()
        programs[key] = found + 1
        return None
    if isinstance(found, int):
        programs[key] = found = _made(estimator, model, process, noise)
    return found


def _made(estimator, model, process, noise):
    rules, inputs = estimator._rules(), estimator.input_factor_over(model.dt)
    if rules is None:
        return None
    try:
        return FilterPrograms(
            model,
            rules,
            process,
            noise,
            inflation=estimator.inflation,
            inputs=None if inputs is None else inputs.numpy(),
            thresholds=gate_thresholds(estimator.gate, model.noutputs),
        )
    except NotRecordable:  # more operations than pay: tensors it is
        return None


def is_lower(factor: torch.Tensor) -> bool:
    """Whether a single factor is lower triangular, as those that filters make are."""
    return not any(any(row[i + 1 :]) for i, row in enumerate(factor.tolist()))


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


def _tensors(parts):
    for part in parts:
        if isinstance(part, GaussianState):
            yield from part[:2]
        elif isinstance(part, torch.Tensor):
            yield part


def pattern_of(factor: torch.Tensor) -> np.ndarray:
    """(n, n) bool: entries that are not zero in all of (..., n, n)."""
    return (factor.detach() != 0).reshape(-1, *factor.shape[-2:]).any(0).numpy()


def flattened(factors, varies, lead):
    """Noise factors (..., time, n, n) as ([time,] [trajectory,] n, n), and whether they vary with time."""
    if not varies:
        factors = factors[..., 0, :, :]
    n, axes = factors.shape[-2:], factors.ndim - (3 if varies else 2)
    time = factors.shape[axes : axes + 1] if varies else ()
    if not lead:
        return factors.reshape(*time, *n), varies
    if axes:
        factors = factors.expand(*lead, *time, *n).flatten(0, len(lead) - 1)
        factors = factors.movedim(0, 1) if varies else factors
    return factors, varies
