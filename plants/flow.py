"""The right-hand side and output of a python-control system as batched torch maps.

The blocks of an interconnection are taken one by one.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import control as ct
import numpy as np
import torch

from plants.maps import ROUTES, build_map
from plants.program import NotRecordable
from plants.recording import recordable
from plants.region import OperatingRegion


class Flow(NamedTuple):
    """A plant, or part of one, before sampling: rhs and output on (batch, feature) tensors.

    `recorded` are the same two, ``(x, u, t)`` on arrays of :class:`plants.program.Scalar`.
    """

    nstates: int
    ninputs: int
    noutputs: int
    rhs: Callable
    output: Callable
    route: str
    vectorised: bool
    feedthrough: bool
    recorded: tuple[Callable, Callable]


def linear_flow(A, B, C, D) -> Flow:
    """Make the maps of a linear system from its matrices."""
    At, Bt, Ct, Dt = (torch.from_numpy(np.ascontiguousarray(m.T, dtype=float)) for m in (A, B, C, D))
    return Flow(
        len(A),
        B.shape[1],
        len(C),
        lambda x, u, t: x @ At + u @ Bt,
        lambda x, u, t: x @ Ct + u @ Dt,
        "linear",
        True,
        bool(np.any(D)),
        (lambda x, u, t: A @ x + B @ u, lambda x, u, t: C @ x + D @ u),
    )


def flow_of(sys, params, region: OperatingRegion) -> Flow:
    """Build the maps of a system, by the best route for each function.

    Parameters
    ----------
    sys : control.StateSpace, NonlinearIOSystem or InterconnectedSystem
        The system or a block of one.
    params : mapping
        Its parameters, frozen into the maps.
    region : OperatingRegion
        Where routes are probed.

    Returns
    -------
    Flow
    """
    if isinstance(sys, ct.StateSpace):
        return linear_flow(sys.A, sys.B, sys.C, sys.D)
    if isinstance(sys, ct.InterconnectedSystem):
        return _interconnected_flow(sys, params, region)
    params, update, measure = copy.deepcopy(dict(params)), sys.updfcn, sys.outfcn
    rhs = output = None
    if sys.nstates:
        rhs = build_map(
            lambda t, x, u: update(t, x, u, params), sys.nstates, f"update function of {sys.name!r}", region
        )
    if measure is not None:
        output = build_map(
            lambda t, x, u: measure(t, x, u, params), sys.noutputs, f"output function of {sys.name!r}", region
        )
    elif sys.noutputs != sys.nstates:
        raise ValueError(
            f"{sys.name!r} has no output function, "
            f"so its {sys.noutputs} outputs would have to be its {sys.nstates} states"
        )
    maps = [m for m in (rhs, output) if m is not None]
    return Flow(
        sys.nstates,
        sys.ninputs,
        sys.noutputs,
        rhs.function if rhs else (lambda x, u, t: x),
        output.function if output else (lambda x, u, t: x),
        max((m.route for m in maps), key=ROUTES.index),
        all(m.vectorised for m in maps),
        output is not None,
        (
            _on_scalars(lambda t, x, u: update(t, x, u, params), sys.nstates),
            _on_scalars((lambda t, x, u: measure(t, x, u, params)) if measure else (lambda t, x, u: x), sys.noutputs),
        ),
    )


def _on_scalars(function, size):
    def call(x, u, t):
        values = recordable(function)(t, x.copy(), u.copy())
        parts = values if isinstance(values, list | tuple) else [values]
        flat = np.concatenate([np.zeros(0, dtype=object), *(np.ravel(np.asarray(p, dtype=object)) for p in parts)])
        if len(flat) != size:
            raise NotRecordable(f"returned {len(flat)} values, needed {size}")
        return flat

    return call


def _interconnected_flow(sys, params, region: OperatingRegion) -> Flow:
    # A parameter whose value in the interconnection is none of its blocks' own was set on purpose there; the
    # rest are the merge by name that python-control makes, in which the last block would win for all.
    overrides = {k: v for k, v in params.items() if not any(k in s.params and s.params[k] is v for s in sys.syslist)}
    parts, start_x, start_u = [], 0, 0
    u_lower, u_upper = (_signal_bounds(sys, region, side) for side in (0, 1))
    for part in sys.syslist:
        xs, us = slice(start_x, start_x + part.nstates), slice(start_u, start_u + part.ninputs)
        start_x, start_u = xs.stop, us.stop
        own = OperatingRegion(region.state_lower[xs], region.state_upper[xs], u_lower[us], u_upper[us])
        parts.append(
            (flow_of(part, {**part.params, **{k: v for k, v in overrides.items() if k in part.params}}, own), xs, us)
        )
    connect, external, out = (
        torch.from_numpy(np.array(m, dtype=float).T) for m in (sys.connect_map, sys.input_map, sys.output_map)
    )
    passes = 1 + sum(part.feedthrough for part, _, _ in parts)

    def run(x, u, t, outputs, maps, together, columns):
        """All inputs and outputs of the blocks; `columns` picks features, `together` joins them."""
        outside = u @ maps[1]
        ylist, ulist = [None] * len(parts), outside
        for index in range(passes):
            for i, ((part, xs, us), output) in enumerate(zip(parts, outputs, strict=True)):
                if index == 0 or part.feedthrough:
                    ylist[i] = output(columns(x, xs), columns(ulist, us), t)
            ulist = together(ylist) @ maps[0] + outside
        return ulist, together(ylist)

    def blocks(outputs, rhss, maps, together, columns):
        def rhs(x, u, t):
            ulist, _ = run(x, u, t, outputs, maps, together, columns)
            moved = [f(columns(x, xs), columns(ulist, us), t) for f, (_, xs, us) in zip(rhss, parts, strict=True)]
            return together([m for m, (part, _, _) in zip(moved, parts, strict=True) if part.nstates])

        def output(x, u, t):
            ulist, ylist = run(x, u, t, outputs, maps, together, columns)
            return together([ylist, ulist]) @ maps[2]

        return rhs, output

    on_tensors = ([part.output for part, _, _ in parts], [part.rhs for part, _, _ in parts], (connect, external, out))
    tensors = (lambda parts: torch.cat(parts, dim=1), lambda x, which: x[:, which])
    rhs, output = blocks(*on_tensors, *tensors)
    recorded = blocks(
        [part.recorded[1] for part, _, _ in parts],
        [part.recorded[0] for part, _, _ in parts],
        [m.numpy() for m in (connect, external, out)],
        np.concatenate,
        lambda x, which: x[which],
    )
    x, u = (torch.from_numpy(a) for a in region.sample(5, seed=0))
    ulist, ylist = run(x, u, 0.0, on_tensors[0], on_tensors[2], *tensors)
    again = torch.cat([part.output(x[:, xs], ulist[:, us], 0.0) for part, xs, us in parts], dim=1)
    if not torch.allclose(again, ylist, rtol=1e-12, atol=1e-300, equal_nan=True):
        raise ValueError(f"{sys.name!r} has an algebraic loop: an output depends on itself at the same instant")
    return Flow(
        sys.nstates,
        sys.ninputs,
        sys.noutputs,
        rhs,
        output,
        max((p.route for p, _, _ in parts), key=ROUTES.index),
        all(p.vectorised for p, _, _ in parts),
        any(p.feedthrough for p, _, _ in parts),
        recorded,
    )


def _signal_bounds(sys, region, side):
    """Probe inputs of the blocks where the outer input drives them directly, (-1, 1) elsewhere."""
    outer = (region.input_lower, region.input_upper)[side]
    direct = np.abs(sys.input_map) @ np.abs(outer)
    return (-1.0, 1.0)[side] * np.where(np.any(sys.input_map, axis=1), np.maximum(direct, 1e-12), 1.0)
