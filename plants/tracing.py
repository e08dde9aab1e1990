"""From a NumPy plant function to a torch graph.

torch.compile's front end (Dynamo) reads the bytecode of an unmodified NumPy function and
rewrites it as torch operations; the graph it hands to a backend is kept here and never
compiled, so no C++ compiler is needed. Three gaps are closed on the way in, each by giving
a *copy* of the function other globals: ``math.*`` and ``float()`` (which Dynamo cannot
follow on tensors) become their NumPy counterparts, and ``np.array`` stacks nested lists of
scalars. In-place writes are removed by functionalisation. Whoever calls :func:`trace`
must compare the result with the original function: see :mod:`plants.maps`.
"""

import functools
import math
import types
from collections.abc import Callable

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

MATH_TO_NUMPY = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "pow": np.power,
    "fabs": np.abs,
}
MATH_TO_NUMPY |= {
    name: getattr(np, name)
    for name in (
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "tanh",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "hypot",
        "copysign",
        "radians",
        "degrees",
        "floor",
        "ceil",
    )
}


def _stacking_array(obj, *args, **kwargs):
    if isinstance(obj, list | tuple):
        return np.stack([_stacking_array(item) for item in obj])
    return np.asarray(obj)


def _keep_float(value=0.0):
    return np.asarray(value) * 1.0


def _shim(name: str, module: types.ModuleType, **replaced) -> types.ModuleType:
    shim = types.ModuleType(name)
    shim.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("__")} | replaced)
    return shim


_NUMPY_SHIM = _shim("numpy_for_tracing", np, array=_stacking_array)
_MATH_SHIM = _shim("math_for_tracing", math, **MATH_TO_NUMPY)
_REPLACED = {id(np): _NUMPY_SHIM, id(math): _MATH_SHIM, id(np.array): _stacking_array}
_REPLACED |= {id(getattr(math, name)): function for name, function in MATH_TO_NUMPY.items()}


def rebind(value, seen: dict, replaced: dict | None = None, float_: Callable = _keep_float):
    """Copy a function, and the functions it reaches, with other globals in place of some.

    Parameters
    ----------
    value : object
        A function; anything that is none is returned as it is, unless replaced.
    seen : dict
        Copies made so far, by id.
    replaced : dict, optional
        Object's id to what takes its place. Default: those for tracing.
    float_ : callable
        Takes the place of ``float``.
    """
    replaced = _REPLACED if replaced is None else replaced
    if id(value) in replaced:
        return replaced[id(value)]
    if isinstance(value, types.MethodType):
        return types.MethodType(rebind(value.__func__, seen, replaced, float_), value.__self__)
    if isinstance(value, functools.partial):
        return functools.partial(rebind(value.func, seen, replaced, float_), *value.args, **value.keywords)
    if not isinstance(value, types.FunctionType) or (value.__module__ or "").split(".")[0] in (
        "numpy",
        "scipy",
        "torch",
    ):
        return value
    if id(value) in seen:
        return seen[id(value)]
    names = _all_names(value.__code__)
    # without a module name Dynamo looks names up in this dictionary, not in the module it was copied from
    scope = {name: item for name, item in value.__globals__.items() if name != "__name__"}
    closure = value.__closure__ and tuple(types.CellType() for _ in value.__closure__)
    copy = types.FunctionType(value.__code__, scope, value.__name__, value.__defaults__, closure)
    copy.__kwdefaults__ = value.__kwdefaults__
    seen[id(value)] = copy
    for name in names & scope.keys():
        scope[name] = rebind(scope[name], seen, replaced, float_)
    if "float" in names and "float" not in value.__globals__:
        scope["float"] = float_
    for new, old in zip(closure or (), value.__closure__ or (), strict=True):
        new.cell_contents = rebind(old.cell_contents, seen, replaced, float_)
    return copy


def _all_names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_all_names, inner))


def _assign(destination, source, *_, **__):
    return source.to(destination.dtype).expand(destination.shape)


def _select_scatter(destination, source, dim, index):
    parts = list(destination.unbind(dim))
    parts[index] = source
    return torch.stack(parts, dim)


def _slice_scatter(destination, source, dim=0, start=None, end=None, step=1):
    parts = list(destination.unbind(dim))
    parts[start:end:step] = source.unbind(dim)
    return torch.stack(parts, dim)


# The aten originals lack a batching rule or forward-mode AD (copy), or give wrong gradients when
# autograd runs outside vmap (the scatters, seen with torch 2.13).
_SAFE = {
    torch.ops.aten.copy.default: _assign,
    torch.ops.aten.select_scatter.default: _select_scatter,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
}


def trace(function: Callable, *sizes: int) -> torch.fx.GraphModule:
    """Trace ``function(t, *arrays)``, written for NumPy, into a torch graph.

    Parameters
    ----------
    function : callable
        Called once as ``function(t, a, b, ...)`` with a 0-d time and 1-d arrays; returns an
        array_like of floats. Never modified.
    *sizes : int
        Length of each array argument.

    Returns
    -------
    torch.fx.GraphModule
        Same signature, float64 tensors in and out; works under ``torch.func.vmap`` and every
        autograd transform.

    Raises
    ------
    Exception
        Whatever Dynamo raises for code it cannot follow (branches on the state, ``int(x)``,
        calls into compiled libraries); the caller falls back to another route.
    """
    captured = {}

    def keep_graph(graph, example_inputs):
        def run(*args):
            captured.update(graph=graph, args=args)
            return graph(*args)

        return run

    traceable = rebind(function, {})
    as_numpy = torch.compiler.wrap_numpy(lambda t, *arrays: np.asarray(_stacking_array(traceable(t, *arrays))))
    inputs = [torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for size in sizes]
    inputs.insert(0, torch.tensor(0.0, dtype=torch.float64))
    torch._dynamo.reset()
    torch.compile(as_numpy, backend=keep_graph, fullgraph=True, dynamic=False)(*inputs)

    # Dynamo lifts closed-over arrays to graph inputs; everything that is not ours is a constant.
    def position(arg):
        for index, ours in enumerate(inputs):
            if (
                isinstance(arg, torch.Tensor)
                and arg.shape == ours.shape
                and arg.numel()
                and arg.data_ptr() == ours.data_ptr()
            ):
                return index
        return None

    places = [position(arg) for arg in captured["args"]]
    constants = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in captured["args"]]

    def closed(*arguments):
        filled = [constants[i] if place is None else arguments[place] for i, place in enumerate(places)]
        return captured["graph"](*filled)[0].to(torch.float64)

    graph = make_fx(torch.func.functionalize(closed, remove="mutations"))(*inputs)
    for node in graph.graph.nodes:
        node.target = _SAFE.get(node.target, node.target)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
