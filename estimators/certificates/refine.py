"""For matrices as they are: the smallest rate, the best-conditioned metric, the smallest gains; all proved."""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from estimators.certificates.dissipation import InMetric
from estimators.certificates.gains import Response
from estimators.certificates.linear_matrix import certify_matrices
from estimators.certificates.loops import Loop
from estimators.certificates.result import Certificate
from estimators.certificates.semidefinite import best_conditioned
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.ren import RENMatrices

BISECTIONS = 26


def fastest(loop: Loop, P: np.ndarray, proved: float) -> tuple[float, InMetric]:
    """Smallest rate for which there is a metric, to 1e-4 of its distance from 1, and that metric.

    By bisection over the Riccati equation of the inequality. For an R2DN or a linear system that is the optimum of the
    semidefinite programme (bounded real lemma: one multiplier for the network scales out); for a REN that for
    its designed multiplier Lambda.

    Parameters
    ----------
    loop : Loop
        The matrices.
    P : numpy.ndarray
        A metric that gives the states their units.
    proved : float
        A rate proved in `P`.
    """
    inequality, unit = loop.contraction(), units_of(loop, P)
    low, high = float(np.abs(np.linalg.eigvals(loop.A)).max()), proved
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if next(inequality.metrics(middle, unit), None) is None:
            low = middle
        else:
            high = middle
    rate = high + 1e-4 * (1 - high)
    for metric in inequality.metrics(rate, unit):
        here = inequality.with_metric(metric)
        if rate < proved and here.prove(rate).verdict == "proved":
            return here.smallest_rate(rate), here
    return proved, inequality.with_metric(P)


def smallest_rate(matrices: R2DNMatrices | RENMatrices) -> float:
    """Smallest rate of contraction that explicit matrices are proved to have; NaN where they are not proved at all."""
    designed = certify_matrices(matrices)
    if designed.verdict != "proved":
        return math.nan
    return fastest(Loop.of(matrices), designed.metric, designed.bound)[0]


def units_of(loop: Loop, P: np.ndarray) -> np.ndarray:
    """Sizes of (x, w) in which the inequality of contraction is well scaled."""
    w = np.ones(len(loop.C1)) if loop.multiplier is None else 1 / np.sqrt(loop.multiplier)
    return np.concatenate([1 / np.sqrt(np.diag(P)), w])


def refine_loop(loop: Loop, P: np.ndarray, proved: float, rate: float | None) -> Certificate:
    """Smallest rate, or best-conditioned metric at `rate`, of a loop with a metric P proved for the rate `proved`."""
    inequality = loop.contraction()
    if rate is None:
        bound, here = fastest(loop, P, proved)
        result = here.prove(bound)
        return Certificate(
            "contraction at the smallest rate there is a metric for", result.verdict, bound, result.margin, here.P
        )
    least, here = fastest(loop, P, proved)
    if rate < least:
        raise ValueError(f"rate {rate:g} is below {least:.6f}, the smallest for which there is a metric")
    _, v, _ = loop.rows(False)
    slopes = loop.slopes(v)
    for metric, scale in best_conditioned(inequality, rate, slopes, units_of(loop, P)):
        candidate = inequality.with_metric(metric / scale)
        result = candidate.prove(rate)
        if result.verdict == "proved":
            here = candidate
            break
    else:
        result = here.prove(rate)
    return Certificate(
        f"contraction at rate {rate:g} in the best-conditioned metric", result.verdict, rate, result.margin, here.P
    )


def gains(
    loop: Loop, P: np.ndarray, inputs: dict[str, int], outputs: Sequence[tuple], output_scale, input_scale, dims: tuple
) -> xr.DataArray:
    """Proved gains from single inputs to single outputs of a loop, in the user's units.

    Parameters
    ----------
    loop : Loop
        Contracting.
    P : numpy.ndarray
        A metric that gives the states their units.
    inputs : dict
        Label to channel.
    outputs : sequence of (coordinates, channels)
        Coordinates along all of `dims` but the last, and the channels that are taken together there.
    output_scale, input_scale : array_like
        Units of each of `outputs`, and of each input of the loop, in the user's.
    dims : tuple of str
        Of the result; the last is that of the inputs.
    """
    response, unit = Response(loop), 1 / np.sqrt(np.diag(P))
    coordinates = {dim: list(dict.fromkeys(c[0][k] for c in outputs)) for k, dim in enumerate(dims[:-1])}
    coordinates[dims[-1]] = list(inputs)
    result = xr.DataArray(np.full([len(c) for c in coordinates.values()], np.inf), coordinates, dims, name="gain")
    for (place, channels), to in zip(outputs, output_scale, strict=True):
        for label, j in inputs.items():
            bound = response.bound([j], channels, unit) * to / input_scale[j]
            result.loc[(*place, label)] = np.nextafter(bound * (1 + 4 * np.finfo(float).eps), np.inf)
    return result


def overall_gain(loop: Loop, P: np.ndarray) -> float:
    """Smallest proved bound of the gain from all inputs to all outputs; inf where none was found."""
    _, _, nu, ny = loop.sizes
    return Response(loop).bound(list(range(nu)), list(range(ny)), 1 / np.sqrt(np.diag(P)))
