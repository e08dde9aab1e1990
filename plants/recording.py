"""Plant functions, written for NumPy, on recording scalars: NumPy's and math's names stand for recorded operations.

As in :mod:`plants.tracing` the function is copied with other globals; nothing of the original is changed.
"""

import math
import types
from collections.abc import Callable

import numpy as np

from plants.program import UFUNCS, NotRecordable, apply, as_number, elementwise, select
from plants.tracing import MATH_TO_NUMPY, rebind


def _inverse(matrix):
    """Invert by cofactors, for mass matrices: no pivot to choose, so nothing to branch on."""
    n = len(matrix)
    if n > 3:
        raise NotRecordable(f"numpy.linalg of a {n} by {n} matrix")
    if n == 1:
        return np.array([[1.0 / matrix[0, 0]]], dtype=object)
    if n == 2:
        (a, b), (c, d) = matrix
        cofactors = np.array([[d, -b], [-c, a]], dtype=object)
    else:
        a, b, c = matrix.T
        cofactors = np.array([np.cross(b, c), np.cross(c, a), np.cross(a, b)], dtype=object)
    return cofactors / (matrix[0] @ cofactors[:, 0])


def _norm(x):
    """Euclidean norm; its derivative at the origin is zero, as torch has it."""
    square = sum(v * v for v in np.ravel(np.asarray(x, dtype=object)))
    positive = apply("gt", square, 0.0)
    return select(positive, apply("sqrt", select(positive, square, 1.0)), 0.0)


def _clip(x, low=None, high=None, **kwargs):
    low, high = kwargs.pop("min", low), kwargs.pop("max", high)
    low, high = kwargs.pop("a_min", low), kwargs.pop("a_max", high)
    if kwargs:
        raise NotRecordable(f"keyword arguments {sorted(kwargs)} of numpy.clip")
    inside = 1.0
    if low is not None:
        inside = elementwise("ge")(x, low)
    if high is not None:
        below = elementwise("le")(x, high)
        inside = below if low is None else elementwise("and")(inside, below)
    limited = x if low is None else elementwise("maximum")(x, low)
    limited = limited if high is None else elementwise("minimum")(limited, high)
    return elementwise("select")(inside, x, limited)


def _objects(make):
    return lambda *args, **kwargs: make(*args, **(kwargs | {"dtype": object}))


def _array(values, *args, **kwargs):
    return np.array(values, dtype=object)


def _stack(parts, axis=0, **kwargs):
    return np.stack([np.asarray(p, dtype=object) for p in parts], axis)


_SHIM = types.ModuleType("numpy_recorded")
_SHIM.__dict__.update({k: v for k, v in vars(np).items() if not k.startswith("__")})
_REPLACEMENTS = {name: elementwise(operation) for name, operation in UFUNCS.items() if hasattr(np, name)}
_REPLACEMENTS |= {
    "abs": elementwise("abs"),
    "fabs": elementwise("abs"),
    "where": elementwise("select"),
    "pow": elementwise("pow"),
    "mod": elementwise("mod"),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1.0 / x,
    "radians": lambda x: x * (math.pi / 180),
    "deg2rad": lambda x: x * (math.pi / 180),
    "degrees": lambda x: x * (180 / math.pi),
    "rad2deg": lambda x: x * (180 / math.pi),
    "clip": _clip,
    "array": _array,
    "asarray": _array,
    "stack": _stack,
    "hstack": lambda parts: np.concatenate([np.atleast_1d(np.asarray(p, dtype=object)) for p in parts]),
    "concatenate": lambda parts, axis=0: np.concatenate([np.asarray(p, dtype=object) for p in parts], axis),
    "zeros": _objects(np.zeros),
    "ones": _objects(np.ones),
    "empty": _objects(np.zeros),
    "zeros_like": lambda x, **kwargs: np.zeros(np.shape(x), dtype=object),
    "ones_like": lambda x, **kwargs: np.ones(np.shape(x), dtype=object),
    "empty_like": lambda x, **kwargs: np.zeros(np.shape(x), dtype=object),
}
_SHIM.__dict__.update(_REPLACEMENTS)
_SHIM.linalg = types.ModuleType("linalg_recorded")
_SHIM.linalg.inv = lambda matrix: _inverse(np.asarray(matrix, dtype=object))
_SHIM.linalg.solve = lambda matrix, right: _inverse(np.asarray(matrix, dtype=object)) @ np.asarray(right, dtype=object)
_SHIM.linalg.norm = _norm
_MATH_NAMES = {name: _REPLACEMENTS[f.__name__] for name, f in MATH_TO_NUMPY.items() if f.__name__ in _REPLACEMENTS}
_MATH_SHIM = types.ModuleType("math_recorded")
_MATH_SHIM.__dict__.update({k: v for k, v in vars(math).items() if not k.startswith("__")} | _MATH_NAMES)
_REBOUND = {id(np): _SHIM, id(math): _MATH_SHIM, id(np.linalg): _SHIM.linalg}
_REBOUND |= {id(getattr(np.linalg, name)): getattr(_SHIM.linalg, name) for name in ("inv", "solve", "norm")}
_REBOUND |= {id(getattr(np, name)): function for name, function in _REPLACEMENTS.items()}
_REBOUND |= {id(getattr(math, name)): function for name, function in _MATH_NAMES.items()}


def recordable(function: Callable) -> Callable:
    """Copy a function written for NumPy so that it runs on :class:`Scalar` objects."""
    return rebind(function, {}, _REBOUND, float_=lambda value=0.0: as_number(value))
