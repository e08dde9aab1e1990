"""A recorded plant on boxes: enclosures of all values it takes there, rounding included.

Interval arithmetic with outward rounding: sums, products, quotients and roots are correctly rounded by IEEE 754, so one
float further out encloses them; elementary functions get `LIBRARY` floats, more than any libm in use errs.
Where an operation is undefined, undecided or unknown on a box the enclosure is the whole line, never a wrong interval.
"""

import math
from collections.abc import Callable

import numpy as np

from plants.program import Program, Scalar

LIBRARY = 8
"""Units in the last place granted to sin, exp and their like."""


class NotEnclosable(TypeError):
    """The program has an operation that has no enclosure here."""


def enclose(program: Program, lower, upper, values: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Enclose a program's outputs on boxes.

    Parameters
    ----------
    program : Program
        Of ``len(lower)`` inputs.
    lower, upper : sequence of numpy.ndarray or float
        Bounds of each input, arrays over boxes of one shape.
    values : int, optional
        How many of the outputs are values, the others their derivatives: a choice whose condition is
        undecided on a box encloses both sides for a derivative, but gives up for a value, which may jump there.
        Default: all of them.

    Returns
    -------
    lower, upper : numpy.ndarray
        (outputs, ...), infinite where there is no enclosure.

    Raises
    ------
    NotEnclosable
        An operation without enclosure.
    """
    shape = np.broadcast_shapes(*(np.shape(a) for a in (*lower, *upper)))
    known: dict[int, tuple] = {}
    lost: dict[int, np.ndarray] = {}  # where a node has no enclosure: nothing later may make it finite again
    jumps = _reached(program.outputs[: len(program.outputs) if values is None else values])

    def of(value):
        return known[value.index] if isinstance(value, Scalar) else (np.float64(value), np.float64(value))

    with np.errstate(all="ignore"):
        for node in program.nodes:
            if node.operation == "input":
                lost[node.index] = np.False_
                known[node.index] = np.asarray(lower[node.index], float), np.asarray(upper[node.index], float)
                continue
            operation = _OPERATIONS.get(node.operation)
            if operation is None:
                raise NotEnclosable(f"{node.operation} is not enclosed")
            if node.operation == "mul" and node.arguments[0] is node.arguments[1]:
                result = _power(of(node.arguments[0]), 2.0, None)
            elif node.operation == "pow":
                result = _power(of(node.arguments[0]), node.arguments[1], of(node.arguments[1]))
            elif node.operation == "select":
                result = _select(*map(of, node.arguments), node.index in jumps and not _is_clip(node))
            else:
                result = operation(*map(of, node.arguments))
                if node.operation in ("sign", "floor", "ceil") and node.index in jumps:
                    result = _unless(result[0] != result[1], result)
            result = _unless(np.isnan(result[0]) | np.isnan(result[1]), result)
            known[node.index] = result
            before = [lost[a.index] if isinstance(a, Scalar) else np.False_ for a in node.arguments]
            if node.operation == "select":
                condition = of(node.arguments[0])
                before = [before[0], before[1] & (condition[1] > 0), before[2] & (condition[0] <= 0)]
            lost[node.index] = _any(*before, np.isinf(result[0]) & np.isinf(result[1]))
    bounds = [_unless(lost[v.index], of(v)) if isinstance(v, Scalar) else of(v) for v in program.outputs]
    return tuple(np.array([np.broadcast_to(b[side], shape) for b in bounds]) for side in (0, 1))


def _any(first, *others):
    for other in others:
        first = first | other
    return first


def _reached(outputs):
    live, stack = set(), [v for v in outputs if isinstance(v, Scalar)]
    while stack:
        node = stack.pop()
        if node.index not in live:
            live.add(node.index)
            stack += [a for a in node.arguments if isinstance(a, Scalar)]
    return live


def _is_clip(node):
    """Whether a choice is that of numpy.clip, between x and its limited value, which join continuously."""
    condition, x, limited = node.arguments
    limits = {}
    while isinstance(limited, Scalar) and limited.operation in ("minimum", "maximum") and limited is not x:
        constants = [a for a in limited.arguments if not isinstance(a, Scalar)]
        inside = [a for a in limited.arguments if isinstance(a, Scalar)]
        if len(inside) != 1 or limited.operation in limits:
            return False
        limits[limited.operation], limited = constants[0], inside[0]
    if limited is not x or not limits or not isinstance(condition, Scalar):
        return False
    parts = condition.arguments if condition.operation == "and" else (condition,)
    asked = {}
    for part in parts:
        if not isinstance(part, Scalar) or part.operation not in ("ge", "le") or part.arguments[0] is not x:
            return False
        asked["maximum" if part.operation == "ge" else "minimum"] = part.arguments[1]
    return asked == limits and limits.get("maximum", -math.inf) <= limits.get("minimum", math.inf)


def _unless(bad, interval):
    return np.where(bad, -np.inf, interval[0]), np.where(bad, np.inf, interval[1])


def _out(lower, upper, count=1):
    """Move bounds outward by a number of floats."""
    if count == 1:
        return np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
    return lower - count * np.spacing(np.abs(lower)), upper + count * np.spacing(np.abs(upper))


def _corners(function, a, b, count=1):
    four = [function(x, y) for x in a for y in b]
    return _out(np.minimum.reduce(four), np.maximum.reduce(four), count)


def _product(x, y):
    return np.where((x == 0) | (y == 0), 0.0, x * y)  # zero times an infinite bound is zero


def _divide(a, b):
    return _unless((b[0] <= 0) & (b[1] >= 0), _corners(np.divide, a, b))


def _increasing(function, low=-math.inf, high=math.inf, count=LIBRARY):
    def enclosure(a):
        result = _out(function(a[0]), function(a[1]), count)
        return _unless((a[0] < low) | (a[1] > high), result)

    return enclosure


def _decreasing(function, low, high):
    def enclosure(a):
        return _unless((a[0] < low) | (a[1] > high), _out(function(a[1]), function(a[0]), LIBRARY))

    return enclosure


def _wave(function, peak):
    """Enclose sin or cos, whose maxima lie at `peak` and full turns from it."""

    def enclosure(a):
        ends = function(a[0]), function(a[1])
        low, high = _out(np.minimum(*ends), np.maximum(*ends), LIBRARY)
        turn = 2 * math.pi
        # a little too willing to find an extremum inside, so that rounding of the turns cannot hide one
        near = 1e-12 * (1 + np.maximum(np.abs(a[0]), np.abs(a[1])))

        def inside(place):
            return np.floor((a[1] + near - place) / turn) > np.floor((a[0] - near - place) / turn)

        low = np.where(inside(peak + math.pi), -1.0, np.maximum(low, -1.0))
        high = np.where(inside(peak), 1.0, np.minimum(high, 1.0))
        return _unless(~np.isfinite(a[0]) | ~np.isfinite(a[1]) | (near > 1e-3), (low, high))

    return enclosure


def _absolute(a):
    straddles = (a[0] < 0) & (a[1] > 0)
    ends = np.abs(a[0]), np.abs(a[1])
    return np.where(straddles, 0.0, np.minimum(*ends)), np.maximum(*ends)


def _cosh(a):
    ends = _absolute(a)
    return _increasing(np.cosh)(ends)


def _tan(a):
    pole = np.floor(a[1] / math.pi - 0.5 + 1e-9) > np.floor(a[0] / math.pi - 0.5 - 1e-9)
    return _unless(pole | ~(np.abs(a[0]) < 1e6) | ~(np.abs(a[1]) < 1e6), _out(np.tan(a[0]), np.tan(a[1]), LIBRARY))


def _hypot(a, b):
    (a0, a1), (b0, b1) = _absolute(a), _absolute(b)
    return _out(np.hypot(a0, b0), np.hypot(a1, b1), LIBRARY)


def _power(base, exponent, exponents):
    if not isinstance(exponent, Scalar) and float(exponent).is_integer() and abs(exponent) < 64:
        n = int(exponent)
        if n < 0:
            return _divide((np.float64(1.0), np.float64(1.0)), _power(base, -n, exponents))
        if n % 2:
            return _out(np.power(base[0], n), np.power(base[1], n), LIBRARY)
        ends = _absolute(base)
        low, high = _out(np.power(ends[0], n), np.power(ends[1], n), LIBRARY)
        return np.maximum(low, 0.0), high
    # x^y = exp(y log x) for positive bases: extremes lie at corners
    return _unless(~(base[0] > 0), _corners(np.power, base, exponents, LIBRARY))


def _select(condition, a, b, may_jump):
    true, undecided = condition[0] > 0, (condition[0] <= 0) & (condition[1] > 0)
    low = np.where(undecided, np.minimum(a[0], b[0]), np.where(true, a[0], b[0]))
    high = np.where(undecided, np.maximum(a[1], b[1]), np.where(true, a[1], b[1]))
    return _unless(undecided & may_jump, (low, high))


def _truth(surely, surely_not):
    return np.where(surely, 1.0, 0.0), np.where(surely_not, 0.0, 1.0)


_OPERATIONS: dict[str, Callable] = {
    "neg": lambda a: (-a[1], -a[0]),
    "abs": _absolute,
    "sign": lambda a: (np.sign(a[0]), np.sign(a[1])),
    "floor": lambda a: (np.floor(a[0]), np.floor(a[1])),
    "ceil": lambda a: (np.ceil(a[0]), np.ceil(a[1])),
    "not": lambda a: (1 - a[1], 1 - a[0]),
    "sqrt": _increasing(np.sqrt, low=0.0, count=1),
    "exp": _increasing(np.exp),
    "expm1": _increasing(np.expm1),
    "log": _increasing(np.log, low=0.0),
    "log1p": _increasing(np.log1p, low=-1.0),
    "log2": _increasing(np.log2, low=0.0),
    "log10": _increasing(np.log10, low=0.0),
    "sin": _wave(np.sin, math.pi / 2),
    "cos": _wave(np.cos, 0.0),
    "tan": _tan,
    "arcsin": _increasing(np.arcsin, -1.0, 1.0),
    "arccos": _decreasing(np.arccos, -1.0, 1.0),
    "arctan": _increasing(np.arctan),
    "sinh": _increasing(np.sinh),
    "cosh": _cosh,
    "tanh": _increasing(np.tanh),
    "arcsinh": _increasing(np.arcsinh),
    "arccosh": _increasing(np.arccosh, low=1.0),
    "arctanh": _increasing(np.arctanh, -1.0, 1.0),
    "add": lambda a, b: _out(a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: _out(a[0] - b[1], a[1] - b[0]),
    "mul": lambda a, b: _corners(_product, a, b),
    "div": _divide,
    "pow": _power,
    "hypot": _hypot,
    "minimum": lambda a, b: (np.minimum(a[0], b[0]), np.minimum(a[1], b[1])),
    "maximum": lambda a, b: (np.maximum(a[0], b[0]), np.maximum(a[1], b[1])),
    "lt": lambda a, b: _truth(a[1] < b[0], a[0] >= b[1]),
    "le": lambda a, b: _truth(a[1] <= b[0], a[0] > b[1]),
    "gt": lambda a, b: _truth(a[0] > b[1], a[1] <= b[0]),
    "ge": lambda a, b: _truth(a[0] >= b[1], a[1] < b[0]),
    "eq": lambda a, b: _truth((a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]), (a[1] < b[0]) | (a[0] > b[1])),
    "ne": lambda a, b: _truth((a[1] < b[0]) | (a[0] > b[1]), (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])),
    "and": lambda a, b: (np.minimum(a[0], b[0]), np.minimum(a[1], b[1])),
    "or": lambda a, b: (np.maximum(a[0], b[0]), np.maximum(a[1], b[1])),
    "select": _select,
}
