"""Residuals of an observer over a box of states and inputs, enclosed: branch and bound with interval arithmetic.

With z = pi(x) affine, f the plant and h its output, the residual is

    r = pi(f(x, u)) - A z - B2 v - bx - B1 phi(p),    p = C1 z + D12 v + bv,    v = (u, h(x, u)) scaled.

On a cell everything but phi is followed by the mean value theorem, with enclosed Jacobians, so that what cancels in the
difference cancels; phi by its Lipschitz constant. Cells whose bound exceeds what was attained somewhere are split.
"""

import numpy as np
import torch

from estimators.certificates.loops import array
from estimators.certificates.rigorous import SAFETY, gamma
from estimators.certificates.tracker import Embedding, Tracker
from estimators.networks.activations import ACTIVATIONS
from plants.intervals import NotEnclosable, enclose
from plants.program import NotRecordable, Program, derivatives

OPERATIONS, MOST_CELLS, TOLERANCE = 40_000, 300_000, 0.05


def enclosed_residuals(tracker: Tracker, observer, model, embedding: Embedding, lower, upper, noise) -> tuple:
    """Bounds of the residual and of the readouts' errors over a box, rounding included.

    Parameters
    ----------
    tracker : Tracker
        Of the observer.
    observer : R2DNObserver
        The observer.
    model : StateSpaceModel
        The plant; it has to have a record.
    embedding : Embedding
        Affine.
    lower, upper : numpy.ndarray
        (nstates + ninputs,), the box.
    noise : numpy.ndarray
        (noutputs,) bounds of the measurement noise, which may not take a measured angle past half a turn.

    Returns
    -------
    state : numpy.ndarray
        (nz,).
    readout : numpy.ndarray
        (kinds, nstates), against the next state without disturbance for the predicted estimate.
    cells : int
        That it took.

    Raises
    ------
    ValueError
        The plant cannot be enclosed on the box, or a measured angle passes half a turn there.
    """
    matrices, n, nu = observer.explicit(), model.nstates, model.ninputs
    names = ("A", "B2", "bx", "C1", "D12", "bv", "C2", "D22", "by", "B1", "D21")
    A, B2, bx, C1, D12, bv, C2, D22, by, B1, D21 = (array(getattr(matrices, name)) for name in names)
    coordinates, nz, record = observer.coordinates, len(A), model.recorded
    if record is None:
        raise ValueError(f"{model.name!r} has no record of its arithmetic to be enclosed: use residual='sampled'")
    centre, scale = coordinates.state_centre.numpy(), coordinates.state_scale.numpy()
    middle, spread = coordinates.input_centre.numpy(), coordinates.input_scale.numpy()
    rows = np.vstack([B1, -D21])  # what phi enters by

    def build(*q):
        x, u, t = (np.array(part, dtype=object) for part in (q[:n], q[n : n + nu], q[-1:]))
        after, y = (np.array(g(x, u, t[0]), dtype=object) for g in (record.step, record.output))
        scaled, ahead = (x - centre) / scale, (after - centre) / scale
        z = embedding.on_scalars(scaled)
        faded = np.zeros(model.noutputs + observer.startup.size, dtype=object)
        v = np.concatenate([(np.concatenate([u, y]) - middle) / spread, faded])
        rest = embedding.on_scalars(ahead) - (A @ z + B2 @ v + bx)
        truth = np.concatenate([scaled if kind == "filtered" else ahead for kind in tracker.kinds])
        values = [*rest, *(C2 @ z + D22 @ v + by - truth), *(C1 @ z + D12 @ v + bv)]
        return [*values, *derivatives(values, q[:-1]).ravel(), *y]

    try:
        program = Program(build, n + nu + 1, limit=OPERATIONS)
        first, size = len(rows), len(lower)
        count = first + len(C1)

        def on(low, high):
            found = enclose(program, [*low.T, 0.0], [*high.T, 0.0], values=count)
            values, slopes = (
                [side[part].reshape(*shape, -1) for side in found]
                for part, shape in ((slice(count), (count,)), (slice(count, count * (1 + size)), (count, size)))
            )
            return values, np.maximum(*map(np.abs, slopes)), [side[count * (1 + size) :] for side in found]

        best, cells = np.zeros(first), 0
        left, right, given_up = lower[None], upper[None], np.zeros(first)
        _check_angles(observer.model, on(left, right)[2], noise)
        while len(left):
            mid, radius = (left + right) / 2, np.nextafter((right - left) / 2, np.inf) * (1 + 1e-15)
            (low, high), _, _ = on(mid, mid)
            _, slopes, _ = on(left, right)
            at, doubt = (low + high) / 2, (high - low) / 2 * (1 + 1e-12) + 1e-300
            w, wrong = _network(matrices, at[first:].T, doubt[first:].T)
            point = at[:first] - rows @ w.T
            error = (
                doubt[:first]
                + np.abs(rows) @ wrong.T
                + gamma(rows.shape[1] + 4) * (np.abs(rows) @ np.abs(w).T + np.abs(at[:first]))
            )
            move = np.einsum("ijk,kj->ik", slopes, radius) * (1 + 1e-12)
            spread_p = np.sqrt(np.square(move[first:]).sum(0)) * tracker.loop.slope
            bound = np.abs(point) + SAFETY * (error + move[:first] + np.linalg.norm(rows, axis=1)[:, None] * spread_p)
            bound = np.where(np.isnan(bound), np.inf, bound)
            cells += len(left)
            with np.errstate(invalid="ignore"):
                reached = np.nan_to_num(np.abs(point) - error, nan=0.0, posinf=0.0)
            best = np.maximum(best, reached.max(1))
            open_ = (bound > (1 + TOLERANCE) * best[:, None] + 1e-9).any(0)
            if cells + 2 * open_.sum() > MOST_CELLS:
                given_up = bound[:, open_].max(1)
                break
            left, right = left[open_], right[open_]
            side = np.argmax((right - left) / (upper - lower), axis=1)
            index, half = np.arange(len(left)), (left + right) / 2
            one, two = right.copy(), left.copy()
            one[index, side] = two[index, side] = half[index, side]
            left, right = np.concatenate([left, two]), np.concatenate([one, right])
    except (NotRecordable, NotEnclosable) as failure:
        raise ValueError(f"{model.name!r} cannot be enclosed ({failure}): use residual='sampled'") from failure
    total = np.maximum((1 + TOLERANCE) * best + 1e-9, given_up)
    if not np.isfinite(total).all():
        raise ValueError(
            f"{model.name!r} has no finite enclosure on the region: choose a smaller one, or residual='sampled'"
        )
    return total[:nz], total[nz:].reshape(len(tracker.kinds), n), cells


def _check_angles(model, outputs, noise):
    """Refuse a measured angle that passes half a turn, where it jumps, and with it the observer's input."""
    lowest, highest = (side[:, 0] + sign * noise for side, sign in zip(outputs, (-1.0, 1.0), strict=True))
    angles = model.output_is_angle.tolist()
    for label, angle, low, high in zip(model.output_labels, angles, lowest, highest, strict=True):
        if angle and not (-np.pi < low and high < np.pi):
            raise ValueError(
                f"the measured angle {label!r} goes from {low:.3g} to {high:.3g} over the region, noise "
                "included: it has to stay within half a turn"
            )


def _network(matrices, p, doubt):
    """Phi at points (count, nv) in floats, and a bound on its error where the points are uncertain by `doubt`."""
    sigma, h, error = ACTIVATIONS[matrices.activation].function, p, doubt
    for index, layer in enumerate(matrices.network):
        linear = matrices.linear_output and index == len(matrices.network) - 1
        for weight, bias in ((layer.B, layer.b),) if linear else ((layer.inward, layer.b), (layer.outward, None)):
            W = array(weight)
            out = h @ W.T + (0.0 if bias is None else array(bias))
            # the weights themselves are products of stored factors: eight roundings more
            size = np.abs(h) @ np.abs(W).T + (0.0 if bias is None else np.abs(array(bias)))
            error = SAFETY * (error @ np.abs(W).T + gamma(W.shape[1] + 10) * size)
            h = out
            if bias is not None and not linear:
                h = sigma(torch.from_numpy(out)).numpy()
                error = error + gamma(16) * np.abs(h)
    return h, error
