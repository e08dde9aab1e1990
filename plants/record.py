"""A plant's step and output as straight-line code, compared with the plant itself before anyone uses it."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from plants.maps import PROBE_TIME, ROUTES
from plants.program import Program, derivatives
from plants.region import OperatingRegion

RECORDED_STATES, RECORDED_OPERATIONS = 24, 10_000
"""Beyond, straight-line code with all its derivatives is longer than it is fast, and takes long to make."""


class Record(NamedTuple):
    """A plant as straight-line code.

    Attributes
    ----------
    step, output : callable
        ``(x, u, t)`` on arrays of :class:`plants.program.Scalar`.
    step_program, output_program : Program
        From (x, u, t) to the value and its Jacobian by x and u, flat.
    """

    step: Callable
    output: Callable
    step_program: Program
    output_program: Program


def make_record(model, step: Callable, output: Callable) -> Record | None:
    """Record a plant, or return None.

    Parameters
    ----------
    model : StateSpaceModel
        The plant on tensors.
    step, output : callable
        ``(x, u, t)`` on arrays of :class:`plants.program.Scalar`.

    Returns
    -------
    Record or None
        None for a plant of more than `RECORDED_STATES` states, where the functions cannot be recorded, or where
        values or Jacobians of the record differ from those on tensors at random points of the operating region, well
        outside, at its corners or at rest.
    """
    if model.jacobian_source == ROUTES[-1] or model.nstates > RECORDED_STATES:
        return None  # a record's exact derivatives would not be those of the filters on tensors
    nx, nu, programs = model.nstates, model.ninputs, []
    x, u = _probes(model.operating_region)
    try:
        for record, original in zip((step, output), (model.step_jacobian, model.output_jacobian), strict=True):

            def build(*z, record=record):
                values = record(np.array(z[:nx], dtype=object), np.array(z[nx:-1], dtype=object), z[-1])
                return [*values, *derivatives(values, z[:-1]).ravel()]

            program = Program(build, nx + nu + 1, limit=RECORDED_OPERATIONS)
            if not all(_agrees(program, original, x, u, t) for t in (0.0, PROBE_TIME, 10 * PROBE_TIME)):
                return None
            programs.append(program)
    # any failure here only means that the plant is evaluated on tensors
    except Exception:
        return None
    return Record(step, output, *programs)


def _probes(region: OperatingRegion) -> tuple[np.ndarray, np.ndarray]:
    """Points at which a record is compared."""
    x, u = region.sample(24, seed=3)
    far_x, far_u = (c + 3 * (z - c) for z, c in ((x, region.state_centre), (u, region.input_centre)))
    rest_x, rest_u = (np.zeros((1, z.shape[1])) for z in (x, u))
    return (
        np.concatenate([x, far_x, rest_x, 0 * x[:4], region.state_lower[None], region.state_upper[None]]),
        np.concatenate([u, far_u, rest_u, u[:4], region.input_lower[None], region.input_upper[None]]),
    )


def _agrees(program, original, x, u, t):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        value, *jacobians = (part.numpy() for part in original(x, u, t))
        truth = np.concatenate([value, np.concatenate(jacobians, axis=2).reshape(len(x), -1)], axis=1)
        alone = np.array([program.on_floats(*a, *b, t) for a, b in zip(x.tolist(), u.tolist(), strict=True)])
        columns = program.on_arrays(*x.T.copy(), *u.T.copy(), t)
        together = np.array([np.broadcast_to(c, len(x)) for c in columns]).T
    known = np.isfinite(truth)
    scale = np.max(np.abs(truth), axis=0, initial=np.finfo(float).tiny, where=known)
    near = np.maximum(np.abs(truth), scale)  # far points may be larger than the rest by orders of magnitude
    return all(
        (np.isfinite(found) == known).all() and (np.abs(found - truth)[known] <= 1e-10 * near[known]).all()
        for found in (alone, together)
    )
