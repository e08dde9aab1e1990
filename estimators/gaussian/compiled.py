"""The step of a filter as straight-line code, for plants of a few states.

The same arithmetic as on tensors, recorded once (:mod:`plants.program`) and run on floats for one trajectory or on
arrays of all trajectories: what is left of a step is its operations, without the calls around them.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from estimators.base import Estimate
from plants.model import StateSpaceModel
from plants.program import NotRecordable, Program, apply, derivatives, select

LARGEST = 40_000
"""Operations in a step beyond which tensors are faster also for one trajectory (tests/benchmarks/filters.py)."""
CHUNK = 4096
"""Trajectories that go through together; their intermediate results stay in the cache."""


def triangular(rows: np.ndarray) -> np.ndarray:
    """Lower triangular L with L L' = W W' by Householder reflections of the columns, zeros left out.

    Parameters
    ----------
    rows : numpy.ndarray
        W, (n, m) of Scalar and float.

    Returns
    -------
    numpy.ndarray
        (n, n).
    """
    W = rows.copy()
    n, m = W.shape
    for i in range(min(n, m)):
        others = [k for k in range(i + 1, m) if not _is_zero(W[i, k])]
        if not others:
            continue
        alpha = W[i, i]
        norm = apply("sqrt", sum((W[i, k] * W[i, k] for k in others), alpha * alpha))
        beta = -apply("copysign", norm, alpha)
        # a row of zeros is left alone: its reflection would divide by zero
        some = apply("gt", norm, 0.0)
        head = select(some, alpha - beta, 1.0)
        scale = select(some, apply("abs", head) / select(some, norm, 1.0), 0.0)
        inverse = 1.0 / head
        vector = {i: 1.0, **{k: W[i, k] * inverse for k in others}}
        for j in range(i + 1, n):
            product = sum((v * W[j, k] for k, v in vector.items()), 0.0)
            if _is_zero(product):
                continue
            product = product * scale
            for k, v in vector.items():
                W[j, k] = W[j, k] - product * v
        W[i, i] = beta
        W[i, others] = 0.0
    if m < n:
        W = np.concatenate([W, np.zeros((n, n - m), dtype=object)], axis=1)
    return W[:, :n]


def _is_zero(value):
    return isinstance(value, float | int) and value == 0


def wrapped(values: Sequence, is_angle: Sequence[bool]) -> np.ndarray:
    """Bring angles into [-pi, pi), as :func:`plants.angles.wrap`."""
    turn = 2 * math.pi
    return np.array(
        [apply("mod", v + math.pi, turn) - math.pi if a else v for v, a in zip(values, is_angle, strict=True)], object
    )


def square(factor: np.ndarray) -> np.ndarray:
    """Covariance L L' of a lower triangular factor, flat; each entry is recorded once for both of its places."""
    n = len(factor)
    P = np.empty((n, n), dtype=object)
    for i in range(n):
        for j in range(i + 1):
            P[i, j] = P[j, i] = sum((factor[i, k] * factor[j, k] for k in range(j + 1)), 0.0)
    return P.ravel()


class FilterPrograms:
    """Predict and correct of one filter and plant.

    Parameters
    ----------
    model : StateSpaceModel
        The plant, with a record.
    rules : Linearised or Unscented
        ``through(function, z, D, angles)`` to the mean of function(z) and the columns of its deviations, where z has
        the deviations D.
    process, noise : numpy.ndarray
        (nx, nx) and (ny, ny) bool: which entries of the noise factors are not zero.
    inflation : float
        Factor on the predicted covariance.
    inputs : numpy.ndarray or None
        Factor of the inputs' covariance, (nu, any), where they carry noise.
    thresholds : sequence of float or None
        Normalised innovation squared beyond which a measurement is left out, by the number of its channels.

    Raises
    ------
    NotRecordable
        Too many operations.
    """

    def __init__(self, model: StateSpaceModel, rules, process, noise, *, inflation=1.0, inputs=None, thresholds=None):
        if 4 * model.nstates**3 > LARGEST or model.recorded is None:
            raise NotRecordable(f"{model.nstates} states, or a plant without a record")
        self.model, self._rules, self._inflation = model, rules, inflation
        self._inputs, self._thresholds = inputs, thresholds
        self.process, self.noise = np.argwhere(process).tolist(), np.argwhere(noise).tolist()
        self._known = {}
        nx, nu, ny = model.nstates, model.ninputs, model.noutputs
        self._lower = np.argwhere(np.tri(nx, dtype=bool)).tolist()
        self._step, self._output = model.recorded[:2]
        self._x_angles, self._y_angles = model.state_is_angle.tolist(), model.output_is_angle.tolist()
        self.sizes = nx, nu, ny
        self.operations = self.predict.operations + self.correct.operations
        if self.operations > LARGEST:
            raise NotRecordable(f"{self.operations} operations")

    def pays(self, trajectories: int) -> bool:
        """Whether a batch goes through faster than on tensors: a call for each operation against a few large ones."""
        return self.operations < 2000 + 40 * trajectories

    def _split(self, values, *sizes):
        ends = np.cumsum(sizes)
        return [np.array(values[end - size : end], dtype=object) for end, size in zip(ends, sizes, strict=True)]

    def _matrix(self, values, where, n):
        matrix = np.zeros((n, n), dtype=object)
        for (i, j), value in zip(where, values, strict=True):
            matrix[i, j] = value
        return matrix

    def _through(self, function, t, u, m, S, angles):
        """Mean and factor of the state, and of the inputs' noise where there is any, through a recorded function."""
        nx = len(m)
        if self._inputs is None:
            return self._rules.through(lambda x: function(x, u, t), m, S, angles)
        D = np.zeros((nx + len(u), nx + self._inputs.shape[1]), dtype=object)
        D[:nx, :nx], D[nx:, nx:] = S, self._inputs
        return self._rules.through(lambda z: function(z[:nx], z[nx:], t), np.concatenate([m, u]), D, angles)

    @cached_property
    def predict(self) -> Program:
        """From (t, u, mean, factor, Q) to (mean, factor)."""
        nx, nu, _ = self.sizes

        def build(*values):
            (t,), u, m, S, Q = self._split(values, 1, nu, nx, len(self._lower), len(self.process))
            S = self._matrix(S, self._lower, nx)
            mean, rows = self._through(self._step, t, u, m, S, self._x_angles)
            factor = triangular(np.concatenate([rows, self._matrix(Q, self.process, nx)], axis=1))
            if self._inflation != 1:
                factor = factor * self._inflation ** (self.model.dt / 2)
            return [*wrapped(mean, self._x_angles), *factor.ravel()]

        return Program(build, 1 + nu + nx + len(self._lower) + len(self.process))

    def _correction(self, masked):
        """From (t, u, y, mean, factor, R) to (mean, factor, predicted P, filtered P, whitened, log-likelihood)."""
        nx, nu, ny = self.sizes

        def build(*values):
            sizes = 1, nu, ny, nx, len(self._lower), len(self.noise)
            (t,), u, y, m, S, R = self._split(values, *sizes)
            S = self._matrix(S, self._lower, nx)
            expected, output_rows = self._through(self._output, t, u, m, S, self._y_angles)
            state_rows = np.zeros((nx, output_rows.shape[1]), dtype=object)
            state_rows[:, :nx] = S
            noise, count = self._matrix(R, self.noise, ny), float(ny)
            innovation = wrapped(y - np.array(expected, dtype=object), self._y_angles)
            if masked:
                present = [select(v == v, 1.0, 0.0) for v in y]
                missing = np.zeros((ny, ny), dtype=object)
                for i, p in enumerate(present):
                    noise[i], output_rows[i] = noise[i] * p, output_rows[i] * p
                    innovation[i] = select(p > 0.0, innovation[i], 0.0)
                    missing[i, i] = 1.0 - p
                noise, count = np.concatenate([noise, missing], axis=1), sum(present)
            top = np.concatenate([noise, output_rows], axis=1)
            bottom = np.concatenate([np.zeros((nx, noise.shape[1]), dtype=object), state_rows], axis=1)
            joint = triangular(np.concatenate([top, bottom]))
            root, gain, factor = joint[:ny, :ny], joint[ny:, :ny], joint[ny:, ny:]
            whitened = []
            for i in range(ny):
                left = innovation[i] - sum((root[i, k] * whitened[k] for k in range(i)), 0.0)
                whitened.append(left / root[i, i])
            squares = sum((w * w for w in whitened), 0.0)
            pivots = sum((apply("log", apply("abs", root[i, i])) for i in range(ny)), 0.0)
            likelihood = -0.5 * squares - pivots - 0.5 * math.log(2 * math.pi) * count
            mean = wrapped(m + gain @ np.array(whitened, dtype=object), self._x_angles)
            if self._thresholds is not None:
                limit = self._thresholds[ny]
                for channels in range(ny) if masked else ():
                    limit = select(apply("eq", count, float(channels)), self._thresholds[channels], limit)
                used = apply("le", squares, limit)
                mean = np.array([select(used, a, b) for a, b in zip(mean, m, strict=True)], dtype=object)
                factor = np.array([select(used, a, b) for a, b in zip(factor.flat, S.flat, strict=True)], dtype=object)
                factor, likelihood = factor.reshape(nx, nx), select(used, likelihood, 0.0)
            signed = [w * apply("sign", root[i, i]) for i, w in enumerate(whitened)]
            return [*mean, *factor.ravel(), *square(S), *square(factor), *signed, likelihood]

        return Program(build, 1 + nu + ny + nx + len(self._lower) + len(self.noise))

    @cached_property
    def correct(self) -> Program:
        """Where every channel was measured."""
        return self._correction(masked=False)

    @cached_property
    def correct_some(self) -> Program:
        """Where a NaN in y says that a channel was not measured."""
        return self._correction(masked=True)

    def _entries(self, values):
        """Entries below the diagonal of the factor that a program returned after a mean."""
        nx = self.sizes[0]
        return [values[nx + i * nx + j] for i, j in self._lower]

    def entries(self, matrix: torch.Tensor, which: str) -> list:
        """Entries of a factor (..., n, n) that a program takes, each a float or an array (...,)."""
        where = {"state": self._lower, "process": self.process, "noise": self.noise}[which]
        if matrix.ndim == 2:
            rows = matrix.tolist()
            return [rows[i][j] for i, j in where]
        return [np.ascontiguousarray(matrix.numpy()[..., i, j]) for i, j in where]

    def _constant(self, matrix: torch.Tensor, which: str) -> list:
        """`entries` of a factor that is the same object step after step."""
        known = self._known.get(which)
        if known is None or known[0] is not matrix:
            known = self._known[which] = matrix, self.entries(matrix, which)
        return known[1]

    def _correct_alone(self, state, u, y, noise):
        """Flat outcome of a correction on floats; None where the numbers stop being finite."""
        correct = self.correct_some if any(v != v for v in y) else self.correct
        mean, factor = state.mean.tolist(), self.entries(state.factor, "state")
        found = correct.on_floats(state.time, *u, *y, *mean, *factor, *self._constant(noise, "noise"))
        # with a gate the likelihood may be finite where the innovation is not
        return found if all(map(math.isfinite, found[-1 - self.sizes[2] :])) else None

    def _predict_alone(self, t, u, mean, factor, process):
        nx = self.sizes[0]
        after = np.array(self.predict.on_floats(t, *u, *mean, *factor, *self._constant(process, "process")))
        if not np.isfinite(after).all():
            return None
        return torch.from_numpy(after[:nx]), torch.from_numpy(after[nx:].reshape(nx, nx))

    def _estimate(self, state, found):
        nx, _, ny = self.sizes
        square, now = nx * nx, np.array(found)
        ends = (nx, nx + square, nx + 2 * square, nx + 3 * square, nx + 3 * square + ny)
        estimate = Estimate(
            state.mean,
            torch.from_numpy(now[:nx]),
            torch.from_numpy(now[ends[1] : ends[2]].reshape(nx, nx)),
            torch.from_numpy(now[ends[2] : ends[3]].reshape(nx, nx)),
            torch.from_numpy(now[ends[3] : ends[4]]),
            torch.tensor(found[-1], dtype=torch.float64),
        )
        return estimate, torch.from_numpy(now[nx : ends[1]].reshape(nx, nx))

    def corrected(self, state, u: list, y: list, noise: torch.Tensor) -> tuple[Estimate, torch.Tensor] | None:
        """Correct one trajectory: the estimate and its factor. None where the numbers stop being finite."""
        found = self._correct_alone(state, u, y, noise)
        return None if found is None else self._estimate(state, found)

    def predicted(self, state, u: list, process: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Advance one trajectory: mean and factor. None where the numbers stop being finite."""
        factor = self.entries(state.factor, "state")
        return self._predict_alone(state.time, u, state.mean.tolist(), factor, process)

    def step(self, state, u: list, y: list, process, noise) -> tuple[torch.Tensor, torch.Tensor, Estimate] | None:
        """Correct and advance one trajectory: mean, factor, estimate. None where the numbers stop being finite."""
        found = self._correct_alone(state, u, y, noise)
        if found is None:
            return None
        following = self._predict_alone(state.time, u, found[: self.sizes[0]], self._entries(found), process)
        return None if following is None else (*following, self._estimate(state, found)[0])

    def sequence(self, state, u, y, process, noise, steps: Callable) -> Estimate | None:
        """Filter records.

        Parameters
        ----------
        state : GaussianState
            (trajectory, nx), or (nx,) for one record on floats.
        u, y : torch.Tensor
            (trajectory, time, feature) or (time, feature).
        process, noise : tuple of torch.Tensor and bool
            Noise factors ([time,] [trajectory,] n, n), and whether there is a time axis.
        steps : callable
            Wraps the range of time steps.

        Returns
        -------
        Estimate or None
            None where the numbers stop being finite: on tensors it comes out why.
        """
        nx, _, ny = self.sizes
        alone, (length, _) = y.ndim == 2, y.shape[-2:]
        batch = 1 if alone else len(y)
        out = np.empty((length, 2 * nx + 2 * nx * nx + ny + 1, batch))
        pieces = [slice(start, min(start + CHUNK, batch)) for start in range(0, batch, CHUNK)]
        for number, piece in enumerate(pieces):

            def part(tensor, piece=piece):
                return tensor if alone else tensor[piece]

            def factors(matrix, varies, kind, piece=piece):
                """Entries of a factor at each time step."""
                if matrix.ndim == (4 if varies else 3):
                    matrix = matrix[:, piece] if varies else matrix[piece]
                if varies:
                    return [self.entries(at, kind) for at in matrix]
                return [self.entries(matrix, kind)] * length

            Q, R = factors(*process, "process"), factors(*noise, "noise")
            mean, factor = part(state.mean).numpy(), self.entries(part(state.factor), "state")
            mean = mean.tolist() if alone else list(np.ascontiguousarray(mean.T))
            inputs, measured = (part(v).numpy() for v in (u, y))
            gaps = np.isnan(measured).any(axis=-1 if alone else (0, 2)).tolist()
            inputs, measured = (
                v.tolist() if alone else np.ascontiguousarray(v.transpose(1, 2, 0)) for v in (inputs, measured)
            )
            t, kind = state.time, "on_floats" if alone else "on_arrays"
            predict, correct, correct_some = (
                getattr(p, kind) for p in (self.predict, self.correct, self.correct_some if any(gaps) else self.correct)
            )
            with np.errstate(all="ignore"):
                for k in steps(range(length)) if number == 0 else range(length):
                    found = (correct_some if gaps[k] else correct)(t, *inputs[k], *measured[k], *mean, *factor, *R[k])
                    now = out[k, :, piece]
                    for i, value in enumerate((*mean, *found[:nx], *found[nx + nx * nx :])):
                        now[i] = value
                    following = predict(t, *inputs[k], *found[:nx], *self._entries(found), *Q[k])
                    mean, factor, t = following[:nx], self._entries(following), t + self.model.dt
            # what is not finite stays so: it shows in the innovations, or in the last belief
            last = (*mean, *factor)
            if not (np.isfinite(out[:, -1 - ny :, piece]).all() and all(np.isfinite(v).all() for v in last)):
                return None
        # as views: time and trajectory change places without a copy
        whole = torch.from_numpy(out[..., 0] if alone else out.transpose(2, 0, 1))
        predicted, filtered, predicted_cov, filtered_cov, whitened, likelihood = whole.split(
            [nx, nx, nx * nx, nx * nx, ny, 1], dim=-1
        )
        covs = (c.unflatten(-1, (nx, nx)) for c in (predicted_cov, filtered_cov))
        return Estimate(predicted, filtered, *covs, whitened, likelihood[..., 0])


class Linearised:
    """Rules of an extended Kalman filter."""

    def through(self, function, z, D, angles):
        """Value at z, and its derivative along each direction."""
        values = function(z)
        return values, derivatives(values, z) @ D


class Unscented:
    """Rules of an unscented filter; the arguments are the weights of the points."""

    def __init__(self, spread: float, weight: float, central: float, centred: bool):
        self.spread, self.weight, self.central, self.centred = spread, weight, central, centred

    def through(self, function, z, D, angles):
        """Mean, and deviation columns rotated so that the first go with the directions and the rest with none."""
        centre, n = function(z), D.shape[1]
        plus, minus = (
            [wrapped(function(z + sign * self.spread * D[:, i]) - centre, angles) for i in range(n)] for sign in (1, -1)
        )
        shift = self.weight * sum(plus[1:] + minus, plus[0])
        if self.centred:
            plus, minus = [d - shift for d in plus], [d - shift for d in minus]
        half = math.sqrt(self.weight / 2)
        odd = [half * (a - b) for a, b in zip(plus, minus, strict=True)]
        even = [half * (a + b) for a, b in zip(plus, minus, strict=True)]
        return centre + shift, np.array([*odd, *even, self.central * shift], dtype=object).T
