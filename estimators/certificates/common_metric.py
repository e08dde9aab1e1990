"""A metric in which a map contracts over a region: from samples, proved by intervals, or refuted by a pair of runs."""

import math

import numpy as np
import torch

from estimators.certificates.metric_search import rates_in, smallest_common_rate
from estimators.certificates.result import Certificate
from estimators.certificates.rigorous import SAFETY, UNIT, gamma, positive_definite_each
from estimators.certificates.update_map import UpdateMap
from plants.intervals import NotEnclosable, enclose
from plants.program import Scalar

SAMPLES, FRESH, ATTEMPTS = 4096, 10_000, 8
OVERSHOOT = 1e4
"""What a pair of runs refutes is said for metrics whose condition number is at most the square of this."""
DOUBT = 1e-3
"""Probability with which the statement about samples may be wrong."""
MOST_CELLS = 300_000
PAIRS, STEPS, ROUNDS = 1024, 240, 4
LONGER = 8
"""A pair that seems not to approach is run so many times longer, its inputs repeated, before it counts."""


def certify_region(of: UpdateMap, seed: int = 0) -> Certificate:
    """Look for a constant metric in which a map contracts over a box, and for what refutes it.

    Parameters
    ----------
    of : UpdateMap
        The map and its box.
    seed : int
        Of samples and of the search.

    Returns
    -------
    Certificate
        See :func:`estimators.certify`.
    """
    rng = np.random.default_rng(seed)
    unit = (of.upper - of.lower)[: of.nstates] / 2
    where = ", ".join(f"{label} {lo:g} to {hi:g}" for label, lo, hi in zip(of.labels, of.lower, of.upper, strict=True))
    claim, evidence = f"contraction of {of.name} while both runs stay in the region", {"region": where}
    found, meaning = _tested(of, unit, rng)
    proof = None if found is None else prove_region(of, found[1] / np.outer(unit, unit), found[0])
    if proof is not None:
        cells, rate = proof
        evidence["meaning"] = "the Jacobian's enclosures contract on every one of the cells that cover the region"
        evidence["cells"] = cells
        return Certificate(claim, "proved", rate, math.nan, found[1] / np.outer(unit, unit), evidence=evidence)
    witness = find_pair(of, unit, rng)
    if witness is not None:
        limit = OVERSHOOT ** (-1 / witness.pop("apart for"))
        evidence |= witness
        evidence["meaning"] = (
            f"two runs on the same inputs (repeated) that stay in the region and do not approach each other in "
            f"{witness['steps']} steps: it does not contract at {limit:.4f} or faster with an overshoot of up to "
            f"{OVERSHOOT:g}"
        )
        claim = claim.replace("contraction of", f"contraction at {limit:.4f} a step or faster of", 1)
        return Certificate(claim, "refuted", limit, math.nan, None, evidence=evidence)
    evidence["meaning"] = meaning
    if found is None:
        return Certificate(claim, "inconclusive", 1.0, math.nan, None, evidence=evidence)
    rate, P, margin = found
    evidence["samples"] = f"{FRESH} fresh points, uniform: none of them violates the rate"
    return Certificate(claim, "sampled", rate, margin, P / np.outer(unit, unit), evidence=evidence)


def _tested(of, unit, rng):
    """Rate, metric and margin that fresh samples confirm, or None, and what that means in words."""
    jacobians = _jacobians(of, SAMPLES, unit, rng, corners=True)
    none = (
        f"no quadratic metric (condition number up to 1e5, in half-widths of the region) contracts {len(jacobians)} "
        "Jacobians from the region, and no two runs were found that refute contraction: a metric that varies with the "
        "state, or a smaller region, may do"
    )
    for _ in range(ATTEMPTS):
        found = smallest_common_rate(jacobians)
        if found is None:
            return None, none
        rate, P = found
        fresh = _jacobians(of, FRESH, unit, rng)
        worst = rates_in(P, fresh)
        if worst.max() < 1 and worst.max() <= rate + 0.1 * (1 - rate):
            rate = max(rate, float(worst.max()))
            margin = float(np.linalg.eigvalsh(rate**2 * P - np.swapaxes(fresh, 1, 2) @ P @ fresh)[:, 0].min())
            # each attempt had its chance to be confirmed by luck
            doubt = DOUBT / ATTEMPTS
            return (rate, P, max(margin, 0.0)), (
                f"with confidence {1 - DOUBT:.3%} the linearisations contract on all but "
                f"{-np.log(doubt) / FRESH:.2%} of the region's volume; of jumps they say nothing"
            )
        jacobians = np.concatenate([jacobians, fresh[np.argsort(worst)[-50:]]])
    return None, f"fresh samples contradicted {ATTEMPTS} metrics in turn"


def _jacobians(of, count, unit, rng, corners=False):
    points = rng.uniform(of.lower, of.upper, (count, len(of.lower)))
    if corners and len(of.lower) <= 10:
        bits = (np.arange(2 ** len(of.lower))[:, None] >> np.arange(len(of.lower))) & 1
        points = np.concatenate([np.where(bits == 1, of.upper, of.lower), points])
    found = of.jacobian(*of.split(points))
    bad = ~np.isfinite(found).all((1, 2))
    if bad.any():
        place = dict(zip(of.labels, points[bad][0].tolist(), strict=True))
        raise ValueError(f"the Jacobian of {of.name} is not finite at {place}: choose a region without that point")
    return found * unit / unit[:, None]


def prove_region(of: UpdateMap, metric: np.ndarray, rate: float) -> tuple[int, float] | None:
    """Prove a rate over the whole box by enclosures of the Jacobian on cells; cells needed and the rate, or None.

    Bisection of the widest side on which the Jacobian depends, until |J|_P <= rate holds for all matrices of the
    enclosure. Continuous maps with kinks are covered: their Jacobians on both sides are enclosed.
    """
    if of.program is None or not of.exact:
        return None
    n, every = of.nstates, len(of.lower)
    depends = _depends(of.program, n, every)
    P = np.tril(metric) + np.tril(metric, -1).T
    for share in (0.1, 0.3, 0.6):  # a proof needs room; more of it costs rate, less of it cells
        target = rate + share * (1 - rate)
        lower, upper, done = of.lower[None], of.upper[None], 0
        while len(lower):
            proved = _cells_contract(of.program, lower, upper, P, target, n)
            done += len(lower)
            lower, upper = lower[~proved], upper[~proved]
            if not len(lower):
                return done, float(target)
            if done + 2 * len(lower) > MOST_CELLS or not depends.any():
                break
            side = np.argmax(np.where(depends, (upper - lower) / (of.upper - of.lower), -1.0), axis=1)
            rows, middle = np.arange(len(lower)), (lower + upper) / 2
            first, second = upper.copy(), lower.copy()
            first[rows, side] = second[rows, side] = middle[rows, side]
            lower, upper = np.concatenate([lower, second]), np.concatenate([first, upper])
    return None


def _depends(program, n, every):
    """Which inputs the Jacobian by x depends on."""
    outputs = np.array(program.outputs[n:], dtype=object).reshape(n, every)[:, :n].ravel()
    live, stack = set(), [v for v in outputs if isinstance(v, Scalar)]
    while stack:
        node = stack.pop()
        if node.index not in live:
            live.add(node.index)
            stack += [a for a in node.arguments if isinstance(a, Scalar)]
    return np.array([i in live for i in range(every)])


def _cells_contract(program, lower, upper, P, rate, n):
    try:
        low, high = enclose(program, [*lower.T, 0.0], [*upper.T, 0.0], values=n)
    except NotEnclosable:
        return np.zeros(len(lower), bool)
    # a jump of the value is no matter for the derivative's enclosure, but it is for contraction
    continuous = np.isfinite(low[:n]).all(0) & np.isfinite(high[:n]).all(0)
    low, high = (np.moveaxis(a[n:].reshape(n, -1, len(lower))[:, :n], 2, 0) for a in (low, high))
    with np.errstate(all="ignore"):
        centre = (low + high) / 2
        radius = np.nextafter(np.maximum(high - centre, centre - low), np.inf)
        size = np.abs(centre)
        cross = np.swapaxes(size, 1, 2) @ np.abs(P) @ radius
        inner = np.swapaxes(centre, 1, 2) @ P @ centre
        value = rate * rate * P - (inner + np.swapaxes(inner, 1, 2)) / 2
        rounding = (gamma(2 * n + 2) + 4 * UNIT) * (
            np.swapaxes(size, 1, 2) @ np.abs(P) @ size + rate * rate * np.abs(P)
        )
        error = SAFETY * (cross + np.swapaxes(cross, 1, 2) + np.swapaxes(radius, 1, 2) @ np.abs(P) @ radius + rounding)
    return positive_definite_each(value, error) & continuous


def find_pair(of: UpdateMap, unit: np.ndarray, rng: np.random.Generator) -> dict | None:
    """Search for two starts and an input whose runs stay in the box and do not approach each other.

    Random pairs, near and far, under constant and switching inputs; then the worst are varied. None where
    the distance, in half-widths of the box, shrank in every pair over the last half.
    """
    n, m = of.nstates, len(of.lower) - of.nstates
    x = rng.uniform(of.lower[:n], of.upper[:n], (2, PAIRS, n))
    x[1, ::2] = x[0, ::2] + 1e-3 * unit * rng.standard_normal((len(x[1, ::2]), n))
    hold = rng.choice([STEPS, STEPS, 20, 5], PAIRS)
    levels = rng.uniform(of.lower[n:], of.upper[n:], (STEPS, PAIRS, m))
    extreme = rng.random(PAIRS) < 0.3
    levels[:, extreme] = np.where(rng.random((STEPS, extreme.sum(), m)) < 0.5, of.lower[n:], of.upper[n:])
    for _ in range(ROUNDS):
        growth, distance, inside = _run_pairs(of, x, levels, hold, unit)
        apart = np.flatnonzero(inside & (distance[-STEPS // 4 :].max(0) > 1e-6) & (growth >= 1))
        if len(apart):
            # those that never come close are the plainest witnesses
            apart = apart[np.argsort(distance[STEPS // 2 :, apart].min(0))[-64:]]
            growth_longer, far, stayed = _run_pairs(of, x[:, apart], levels[:, apart], hold[apart], unit, LONGER)
            # against the whole second quarter of the short run, so that a slow decay is not taken for none
            lasting = (
                stayed & (growth_longer >= 1) & (far[-STEPS:].max(0) >= distance[STEPS // 4 : STEPS // 2, apart].max(0))
            )
            if lasting.any():
                best = int(np.argmax(np.where(lasting, far[len(far) // 2 :].min(0), -1)))
                k = apart[best]
                used = levels[(np.arange(STEPS) // hold[k]) * hold[k], k]
                return {
                    "two starts": x[:, k],
                    "inputs": used if len(np.unique(used, axis=0)) > 1 else used[0],
                    "distance at the start, half way and at the end": far[[0, len(far) // 2, -1], best],
                    "steps": len(far),
                    "apart for": len(far) - STEPS - STEPS // 2,
                }
        # vary what shrank least and what stayed inside
        order = np.argsort(np.where(inside, growth, -1))[::-1][: PAIRS // 4]
        x = np.tile(x[:, order], (1, 4, 1)) + 0.05 * unit * rng.standard_normal((2, 4 * len(order), n))
        x = np.clip(x, of.lower[:n], of.upper[:n])
        levels = np.tile(levels[:, order], (1, 4, 1))
        levels = np.clip(
            levels + 0.05 * (of.upper - of.lower)[n:] * rng.standard_normal((1, levels.shape[1], m)),
            of.lower[n:],
            of.upper[n:],
        )
        hold = np.tile(hold[order], 4)
    return None


def _run_pairs(of, x, levels, hold, unit, longer=1):
    """Growth of the distance's maximum from the second to the last quarter, all distances, and who stayed inside."""
    n, count = of.nstates, x.shape[1]
    now, inside, distance = torch.from_numpy(x.reshape(-1, n).copy()), np.ones(count, bool), []
    each = np.arange(count)
    for k in range(longer * STEPS):
        both = now.numpy().reshape(2, count, n)
        inside &= ((both >= of.lower[:n]) & (both <= of.upper[:n])).all((0, 2))
        with np.errstate(all="ignore"):  # what has left the region may be anywhere
            distance.append(np.linalg.norm((both[1] - both[0]) / unit, axis=1))
        v = torch.from_numpy(levels[(k % STEPS // hold) * hold, each])
        with torch.no_grad():
            now = of.step(now, torch.cat([v, v]))
        now = torch.where(torch.isfinite(now), now, torch.zeros_like(now) + 1e300)
    distance, quarter = np.array(distance), longer * STEPS // 4
    before = distance[quarter : 2 * quarter].max(0)
    with np.errstate(all="ignore"):
        growth = np.where(before > 0, distance[-quarter:].max(0) / before, 0.0)
    return growth, distance, inside
