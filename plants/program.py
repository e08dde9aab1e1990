"""Arithmetic recorded once as straight-line code, then run on floats or on arrays.

For a handful of states the cost of a filter's step is not arithmetic but the calls that carry it. A function written
for NumPy is run once on :class:`Scalar` objects, which record what is done to them; derivatives are added by the chain
rule with zeros left out; and the record is written out as Python source in which every line is one operation. On
floats (``math``) a line costs tens of nanoseconds; on arrays (``numpy``) a batch goes through together.

Whatever cannot be recorded (a branch on a value, ``int(x)``, a compiled library) raises, and whoever builds a program
compares its values with the function's own.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

LARGEST = 60_000
"""Operations on a record; more would take seconds and gain nothing."""


class NotRecordable(TypeError):
    """The function does something that is not arithmetic on its arguments."""


# name: (source on floats, source on arrays, derivative by each argument)
_UNARY = {
    "neg": ("-{0}", "-{0}", lambda x, v: -1.0),
    "abs": ("abs({0})", "abs({0})", lambda x, v: apply("sign", x)),
    "sign": ("(copysign(1.0, {0}) if {0} else 0.0)", "sign({0})", lambda x, v: 0.0),
    "floor": ("floor({0})", "floor({0})", lambda x, v: 0.0),
    "ceil": ("ceil({0})", "ceil({0})", lambda x, v: 0.0),
    "not": ("(not {0})", "logical_not({0})", lambda x, v: 0.0),
    "sqrt": ("sqrt({0})", "sqrt({0})", lambda x, v: 0.5 / v),
    "exp": ("exp({0})", "exp({0})", lambda x, v: v),
    "expm1": ("expm1({0})", "expm1({0})", lambda x, v: v + 1.0),
    "log": ("log({0})", "log({0})", lambda x, v: 1.0 / x),
    "log1p": ("log1p({0})", "log1p({0})", lambda x, v: 1.0 / (1.0 + x)),
    "log2": ("log2({0})", "log2({0})", lambda x, v: 1.0 / (x * math.log(2))),
    "log10": ("log10({0})", "log10({0})", lambda x, v: 1.0 / (x * math.log(10))),
    "sin": ("sin({0})", "sin({0})", lambda x, v: apply("cos", x)),
    "cos": ("cos({0})", "cos({0})", lambda x, v: -apply("sin", x)),
    "tan": ("tan({0})", "tan({0})", lambda x, v: 1.0 + v * v),
    "arcsin": ("asin({0})", "arcsin({0})", lambda x, v: 1.0 / apply("sqrt", 1.0 - x * x)),
    "arccos": ("acos({0})", "arccos({0})", lambda x, v: -1.0 / apply("sqrt", 1.0 - x * x)),
    "arctan": ("atan({0})", "arctan({0})", lambda x, v: 1.0 / (1.0 + x * x)),
    "sinh": ("sinh({0})", "sinh({0})", lambda x, v: apply("cosh", x)),
    "cosh": ("cosh({0})", "cosh({0})", lambda x, v: apply("sinh", x)),
    "tanh": ("tanh({0})", "tanh({0})", lambda x, v: 1.0 - v * v),
    "arcsinh": ("asinh({0})", "arcsinh({0})", lambda x, v: 1.0 / apply("sqrt", x * x + 1.0)),
    "arccosh": ("acosh({0})", "arccosh({0})", lambda x, v: 1.0 / apply("sqrt", x * x - 1.0)),
    "arctanh": ("atanh({0})", "arctanh({0})", lambda x, v: 1.0 / (1.0 - x * x)),
}
_BINARY = {
    "add": ("{0} + {1}", "{0} + {1}", lambda a, b, v: (1.0, 1.0)),
    "sub": ("{0} - {1}", "{0} - {1}", lambda a, b, v: (1.0, -1.0)),
    "mul": ("{0} * {1}", "{0} * {1}", lambda a, b, v: (b, a)),
    "div": ("{0} / {1}", "{0} / {1}", lambda a, b, v: (1.0 / b, -v / b)),
    "mod": ("{0} % {1}", "{0} % {1}", lambda a, b, v: (1.0, -apply("floor", a / b))),
    "pow": ("pow({0}, {1})", "power({0}, {1})", lambda a, b, v: _powers(a, b, v)),
    "arctan2": ("atan2({0}, {1})", "arctan2({0}, {1})", lambda a, b, v: _turns(a, b)),
    "hypot": ("hypot({0}, {1})", "hypot({0}, {1})", lambda a, b, v: (a / v, b / v)),
    "copysign": ("copysign({0}, {1})", "copysign({0}, {1})", lambda a, b, v: _signs(a, b)),
    "minimum": ("({0} if {0} < {1} else {1})", "minimum({0}, {1})", lambda a, b, v: _shares(a < b, a > b)),
    "maximum": ("({0} if {0} > {1} else {1})", "maximum({0}, {1})", lambda a, b, v: _shares(a > b, a < b)),
}
_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_COMPARISON = {name: f"{{0}} {sign} {{1}}" for name, sign in _SIGNS.items()}
_COMPARISON |= {"and": "{0} & {1}", "or": "{0} | {1}"}
_SOURCE = {name: entry[:2] for name, entry in (_UNARY | _BINARY).items()}
_SOURCE |= {name: (f"({source})", f"({source})") for name, source in _COMPARISON.items()}
_TRUTHS = {*_COMPARISON, "not"}
_SOURCE["select"] = ("({1} if {0} else {2})", "where({0}, {1}, {2})")
_MATH = {name: getattr(math, name) for name in dir(math) if not name.startswith("_")} | {"abs": abs}
_NUMPY = {
    name: getattr(np, name)
    for name in (*_UNARY, "power", "arctan2", "hypot", "copysign", "minimum", "maximum", "where", "logical_not")
    if hasattr(np, name)
} | {"inf": np.inf, "nan": np.nan}


def _powers(a, b, v):
    """Differentiate a power; by the exponent zero at base zero, as torch has it."""
    return b * a ** (b - 1.0), v * apply("log", select(apply("eq", a, 0.0), 1.0, a))


def _signs(a, b):
    """Differentiate a copysign, also where b is zero."""
    return apply("sign", a) * apply("copysign", 1.0, b), 0.0


def _turns(a, b):
    """Differentiate an arctan2; zero at the origin, as torch has it."""
    square = a * a + b * b
    inverse = select(square > 0.0, 1.0 / select(square > 0.0, square, 1.0), 0.0)
    return b * inverse, -a * inverse


def _shares(first, second):
    """Differentiate a minimum or maximum; half each at a tie, as torch has it."""
    return select(first, 1.0, select(second, 0.0, 0.5)), select(second, 1.0, select(first, 0.0, 0.5))


class Scalar:
    """A number that records what is done to it."""

    __slots__ = ("arguments", "index", "operation", "tape")
    __array_priority__ = 1000

    def __init__(self, tape, operation, arguments):
        self.tape, self.operation, self.arguments = tape, operation, arguments
        self.index = len(tape.nodes)
        tape.nodes.append(self)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        operation = UFUNCS.get(ufunc.__name__)
        if method != "__call__" or kwargs or operation is None:
            raise NotRecordable(f"numpy.{ufunc.__name__} is not recorded")
        return elementwise(operation)(*inputs)

    def __bool__(self):
        raise NotRecordable("a branch on a value")

    def __float__(self):
        raise NotRecordable("float() of a value")

    __int__ = __index__ = __float__
    __hash__ = object.__hash__

    def __pow__(self, other):
        return apply("pow", self, other)

    def __rpow__(self, other):
        return apply("pow", other, self)

    def __neg__(self):
        return apply("neg", self)

    def __pos__(self):
        return self

    def __abs__(self):
        return apply("abs", self)

    def __invert__(self):
        return apply("not", self)


def _operator(name, swap=False):
    def method(self, other):
        if isinstance(other, np.ndarray):
            return NotImplemented  # the array goes through its elements
        return apply(name, other, self) if swap else apply(name, self, other)

    return method


for _symbol, _name in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"), ("mod", "mod")):
    setattr(Scalar, f"__{_symbol}__", _operator(_name))
    setattr(Scalar, f"__r{_symbol}__", _operator(_name, swap=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "and", "or"):
    setattr(Scalar, f"__{_name}__", _operator(_name))
for _name in _UNARY:  # an array of objects calls the method of that name
    if not hasattr(Scalar, _name) and _name not in ("neg", "not"):
        setattr(Scalar, _name, lambda self, name=_name: apply(name, self))


class _Tape:
    def __init__(self, limit):
        self.nodes, self.known, self.limit = [], {}, limit


def is_truth(value) -> bool:
    """Whether a value is the outcome of a comparison, which is no number."""
    if not isinstance(value, Scalar):
        return isinstance(value, bool | np.bool_)
    return value.operation in _TRUTHS or (value.operation == "select" and all(map(is_truth, value.arguments[1:])))


def as_number(value):
    """Turn the outcome of a comparison into 1.0 or 0.0."""
    return select(value, 1.0, 0.0) if is_truth(value) and isinstance(value, Scalar) else value


def _prepared(operation, arguments):
    """Arguments with truths where they are meant and numbers where they are not."""
    if operation in ("not", "and", "or"):
        if not all(is_truth(a) for a in arguments):
            raise NotRecordable(f"{operation} of a number")
        return arguments
    condition, values = (arguments[:1], arguments[1:]) if operation == "select" else ((), arguments)
    if condition and not is_truth(condition[0]):
        condition = (apply("ne", condition[0], 0.0),)
    truths = [is_truth(v) for v in values]
    if operation == "select" and all(truths):
        raise NotRecordable("a choice between truths")
    if all(truths) and operation not in ("eq", "ne"):
        raise NotRecordable(f"{operation} of truths, which NumPy takes for logic")
    return (*condition, *(as_number(v) for v in values))


def apply(operation: str, *arguments):
    """Record an operation, or evaluate it where nothing is variable; trivial ones are left out."""
    arguments = tuple(a.item() if isinstance(a, np.ndarray) and a.ndim == 0 else a for a in arguments)
    if any(isinstance(a, Scalar) for a in arguments):
        arguments = _prepared(operation, arguments)
    arguments = tuple(a if isinstance(a, Scalar) else _constant(a) for a in arguments)
    variable = [a for a in arguments if isinstance(a, Scalar)]
    if not variable:
        return _evaluate(operation, arguments)
    short = _shortened(operation, arguments)
    if short is not None:
        return short
    tape = variable[0].tape
    key = (operation, *(a.index if isinstance(a, Scalar) else (a, math.copysign(1, a)) for a in arguments))
    if key not in tape.known:
        if len(tape.nodes) >= tape.limit:
            raise NotRecordable(f"more than {tape.limit} operations")
        tape.known[key] = Scalar(tape, operation, arguments)
    return tape.known[key]


def _constant(value):
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
        if isinstance(value, Scalar):
            return value
    if isinstance(value, bool | np.bool_ | int | float | np.number):
        return float(value)
    raise NotRecordable(f"arithmetic with {type(value).__name__}")


def _evaluate(operation, arguments):
    """Evaluate what does not vary, as NumPy does."""
    if operation == "select":
        return arguments[1] if arguments[0] else arguments[2]
    with np.errstate(all="ignore"):
        return float(_ON_CONSTANTS[operation](*(np.float64(a) for a in arguments)))


def _shortened(operation, arguments):
    first, last = arguments[0], arguments[-1]
    zero, one = ([isinstance(a, float) and a == number for a in arguments] for number in (0.0, 1.0))
    if operation == "add" and (zero[0] or zero[1]):
        return last if zero[0] else first
    if operation == "sub" and (zero[0] or zero[1]):
        return -last if zero[0] else first
    if operation == "mul":
        if zero[0] or zero[1]:
            return 0.0
        if one[0] or one[1]:
            return last if one[0] else first
        for number, other in ((first, last), (last, first)):
            if isinstance(number, float) and number == -1.0:
                return -other
    if operation == "div" and (zero[0] or one[1]):
        return 0.0 if zero[0] else first
    if operation == "neg" and first.operation == "neg":
        return first.arguments[0]
    if operation == "pow" and isinstance(last, float):
        if last in (0.0, 1.0):
            return first if last else 1.0
        if last in (2.0, 3.0, 4.0):
            square = first * first
            return square if last == 2 else square * first if last == 3 else square * square
        if last == 0.5:
            return apply("sqrt", first)
        if last == -1.0:
            return 1.0 / first
    if operation == "select":
        if isinstance(first, float):
            return arguments[1] if first else arguments[2]
        if arguments[1] is last or (all(isinstance(a, float) for a in arguments[1:]) and arguments[1] == last):
            return last
    return None


def select(condition, a, b):
    """Record `a` where the condition holds, else `b`."""
    return apply("select", condition, a, b)


def elementwise(operation: str) -> Callable:
    """Make a function of scalars and arrays from an operation."""

    def function(*arguments, **kwargs):
        if kwargs:
            raise NotRecordable(f"keyword arguments {sorted(kwargs)} of numpy.{operation}")
        arguments = [np.array(a, dtype=object) if isinstance(a, list | tuple) else a for a in arguments]
        if any(isinstance(a, np.ndarray) and a.ndim for a in arguments):
            return np.frompyfunc(lambda *a: apply(operation, *a), len(arguments), 1)(*map(_boxed, arguments))
        return apply(operation, *arguments)

    return function


def _boxed(value):
    """Wrap a Scalar in an array, or NumPy would ask it to carry out the call."""
    if not isinstance(value, Scalar):
        return value
    box = np.empty((), dtype=object)
    box[()] = value
    return box


UFUNCS = {name: name for name in (*_UNARY, *_BINARY) if name not in ("neg", "not", "div", "sub", "mul", "mod", "pow")}
UFUNCS |= {
    "negative": "neg",
    "absolute": "abs",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "remainder": "mod",
    "power": "pow",
    "float_power": "pow",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
    "arctan2": "arctan2",
}
_ON_CONSTANTS = {operation: getattr(np, name) for name, operation in UFUNCS.items() if hasattr(np, name)}


def derivatives(values: Sequence, by: Sequence[Scalar]) -> np.ndarray:
    """Differentiate by the chain rule.

    Parameters
    ----------
    values : sequence of Scalar or float
        (n,).
    by : sequence of Scalar
        (m,) inputs of the program.

    Returns
    -------
    numpy.ndarray
        (n, m) of Scalar or float.
    """
    slopes = {x.index: {j: 1.0} for j, x in enumerate(by)}
    result = np.zeros((len(values), len(by)), dtype=object)
    for node in _reachable(values):
        if node.index in slopes or node.operation == "input":
            continue
        terms = {}
        factors = None
        for i, argument in enumerate(node.arguments):
            inner = slopes.get(argument.index) if isinstance(argument, Scalar) else None
            if not inner:
                continue
            if factors is None:
                factors = _factors(node)
            for j, slope in inner.items():
                terms[j] = terms.get(j, 0.0) + factors[i] * slope
        slopes[node.index] = {j: s for j, s in terms.items() if isinstance(s, Scalar) or s != 0}
    for i, value in enumerate(values):
        if isinstance(value, Scalar):
            for j, slope in slopes.get(value.index, {}).items():
                result[i, j] = slope
    return result


def _factors(node):
    if node.operation in _UNARY:
        return (_UNARY[node.operation][2](node.arguments[0], node),)
    if node.operation == "pow" and isinstance(node.arguments[1], float):
        a, b = node.arguments
        return (b * a ** (b - 1.0), 0.0)
    if node.operation in _BINARY:
        return _BINARY[node.operation][2](*node.arguments, node)
    if node.operation == "select":
        condition = node.arguments[0]
        return 0.0, select(condition, 1.0, 0.0), select(condition, 0.0, 1.0)
    return (0.0,) * len(node.arguments)


def _reachable(values) -> list[Scalar]:
    tape = next((v.tape for v in values if isinstance(v, Scalar)), None)
    if tape is None:
        return []
    live = {v.index for v in values if isinstance(v, Scalar)}
    for node in reversed(tape.nodes):
        if node.index in live:
            live.update(a.index for a in node.arguments if isinstance(a, Scalar))
    return [tape.nodes[i] for i in sorted(live)]


class Program:
    """A function of scalars as straight-line code.

    Parameters
    ----------
    build : callable
        Called with `count` Scalars; returns a flat list of Scalars and floats.
    count : int
        Number of inputs.
    limit : int
        Most operations on the record.

    Raises
    ------
    NotRecordable
        `build` does something that is not arithmetic, or too much of it.
    """

    def __init__(self, build: Callable, count: int, limit: int = LARGEST):
        tape = _Tape(limit)
        inputs = [Scalar(tape, "input", ()) for _ in range(count)]
        self.outputs = [v if isinstance(v, Scalar) else _constant(v) for v in build(*inputs)]
        self.nodes = _reachable(self.outputs)
        self._count = count
        self.operations = sum(node.operation != "input" for node in self.nodes)
        self._on_floats = self._compile(0, _MATH)
        self._on_arrays = self._compile(1, _NUMPY)

    def _compile(self, kind, scope):
        last = {}
        for node in self.nodes:
            for argument in node.arguments:
                if isinstance(argument, Scalar):
                    last[argument.index] = node.index
        kept = {v.index for v in self.outputs if isinstance(v, Scalar)}
        names, free, used = {i: f"i{i}" for i in range(self._count)}, [], 0

        def name(value):
            return names[value.index] if isinstance(value, Scalar) else f"({value!r})" if value < 0 else repr(value)

        lines = []
        for node in self.nodes:
            if node.operation == "input":
                continue
            source = _SOURCE[node.operation][kind].format(*(name(a) for a in node.arguments))
            for argument in {a.index for a in node.arguments if isinstance(a, Scalar)}:
                # a name is free after its last use, and its memory goes to the next operation while still in cache
                if argument >= self._count and last[argument] == node.index and argument not in kept:
                    free.append(names[argument])
            if not free:
                free, used = [f"v{used}"], used + 1
            names[node.index] = free.pop()
            lines.append(f"    {names[node.index]} = {source}")
        result = ", ".join(name(v) for v in self.outputs)
        arguments = ", ".join(f"i{i}" for i in range(self._count))
        source = f"def program({arguments}):\n" + "\n".join(lines) + f"\n    return ({result},)\n"
        scope = dict(scope)
        exec(compile(source, "<recorded program>", "exec"), scope)
        return scope["program"]

    def on_floats(self, *values: float) -> tuple:
        """Run on Python floats; what ``math`` refuses (a division by zero, an overflow) is run again in NumPy."""
        try:
            return self._on_floats(*values)
        except (ArithmeticError, ValueError):
            with np.errstate(all="ignore"):
                return tuple(float(v) for v in self._on_arrays(*(np.float64(v) for v in values)))

    def on_arrays(self, *values) -> tuple:
        """Run on arrays of one shape and floats, elementwise; warnings are the caller's to silence."""
        # a Python float would bring its own logic and its own division by zero
        return self._on_arrays(*(v if isinstance(v, np.ndarray) else np.float64(v) for v in values))
