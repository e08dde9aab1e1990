"""Start-up signals: what a Kalman filter would correct more strongly at the start than its stationary gain does.

A time-invariant observer forgets a wrong start at one pace; a filter's gain starts large and shrinks. The best affine
fit of the plant tells by how much: with K_k the gains of its Kalman filter from the covariance of the start and K their
limit,

    zeta_k: filtered estimates with K_k,  zetabar_k: with K,  from the same start and the same measurements,

    d_k = zeta_k - zetabar_k

fades like (A - K C A)^k. Given d_k and a scalar s_k that fades alike as further inputs, an observer that is the
stationary filter plus d_k is the time-varying filter. Contraction holds for every input signal, so it holds with
these: d_k is a linear map of the start and the data, bounded by design, and zero after `length` steps.
"""

from typing import NamedTuple

import numpy as np
import torch

from estimators.design import Design

FASTEST, SLOWEST = 0.5, 0.98
"""Range of the factor by which s fades in a step."""
FADED, LONGEST = 1e-3, 1000
"""The signals are cut where what is left of d is this share of it, but no later than so many steps."""
LARGEST = 8.0
"""Bound of d, in the standard deviations that the affine model gives it."""
MATRICES = ("A", "B", "b", "C", "D", "d", "filter_gain", "process_cov", "measurement_cov", "start_cov", "rate")


class StartupState(NamedTuple):
    """Where the start-up is.

    Attributes
    ----------
    step : int
        Since the start.
    varying, stationary : torch.Tensor
        (..., nstates), predicted estimates of the two affine filters.
    """

    step: int
    varying: torch.Tensor
    stationary: torch.Tensor


class Startup:
    """The two affine filters, in the observer's coordinates.

    Parameters
    ----------
    A, B, b, C, D, d : torch.Tensor
        Affine model z+ = A z + B u + b, s = C z + D u + d, float64.
    filter_gain : torch.Tensor
        (nstates, noutputs), stationary K.
    process_cov, measurement_cov, start_cov : torch.Tensor
        Covariances that give K_k.
    rate : torch.Tensor
        (), prescribed degree of stability of K; 1 for the optimum.
    """

    def __init__(self, **matrices):
        self.matrices = {name: matrices[name] for name in MATRICES}
        A, C, K, Q, R, P, rate = (
            matrices[name].numpy()
            for name in ("A", "C", "filter_gain", "process_cov", "measurement_cov", "start_cov", "rate")
        )
        identity = np.eye(len(A))
        stationary = identity - K @ C
        radius = float(np.abs(np.linalg.eigvals(A @ stationary)).max())
        self.radius = radius
        self.decay = min(max(radius, FASTEST), SLOWEST)
        length = np.log(FADED) / np.log(min(max(radius, self.decay), 1 - 1e-9))
        self.length = int(min(np.ceil(length), LONGEST))
        # errors of both filters together: how large their difference is, were the plant affine
        joint, gains, deviations = np.tile(P, (2, 2)), [], []
        for _ in range(self.length):
            gain = np.linalg.solve(C @ P @ C.T + R, C @ P).T
            reduced = identity - gain @ C
            reduction = np.block([[reduced, 0 * identity], [0 * identity, stationary]])
            joint = reduction @ joint @ reduction.T + np.vstack([gain, K]) @ R @ np.vstack([gain, K]).T
            difference = np.hstack([identity, -identity])
            deviations.append(np.sqrt(np.maximum(np.diag(difference @ joint @ difference.T), 0.0)))
            gains.append(gain)
            step = np.kron(np.eye(2), A)
            joint = step @ joint @ step.T + np.tile(Q, (2, 2))
            P = (A / rate) @ (reduced @ P @ reduced.T + gain @ R @ gain.T) @ (A / rate).T + Q
        self.bounds = LARGEST * np.array(deviations)
        tensors = [torch.from_numpy(np.array(part)) for part in (gains, self.bounds)]
        self._constants = {torch.float64: (*(matrices[name] for name in (*MATRICES[:7],)), *tensors)}
        self._arrays = tuple(part.numpy() for part in self._constants[torch.float64])

    @classmethod
    def of(cls, design: Design, start_cov: np.ndarray) -> "Startup":
        """Take affine model and gains from a design; `start_cov` in its coordinates."""
        affine = design.affine
        values = (
            *(getattr(affine, name) for name in ("A", "B", "b", "C", "D", "d")),
            design.steady.filter_gain,
            design.process_cov,
            affine.R_fit,
            start_cov,
            design.rate,
        )
        tensors = (torch.from_numpy(np.array(value, dtype=float, order="C")) for value in values)
        return cls(**dict(zip(MATRICES, tensors, strict=True)))

    @property
    def size(self) -> int:
        """Number of signals: s, and d for each state."""
        return 1 + len(self.matrices["A"])

    def init(self, z0: torch.Tensor) -> StartupState:
        """Start from the told state (..., nstates)."""
        return StartupState(0, z0, z0)

    def forgetting(self, steps: int, missing: np.ndarray | None = None) -> np.ndarray:
        """Bound the change of the signals for a change of the start.

        Parameters
        ----------
        steps : int
            How far.
        missing : numpy.ndarray, optional
            (trajectory, time, noutputs), where there was no measurement; the bound holds for these gaps.

        Returns
        -------
        numpy.ndarray
            (steps, 1 + nstates, nstates): each signal changes by at most this times the sizes of the change of the
            start, component by component.
        """
        found = np.zeros((steps, self.size, self.size - 1))
        A, C, K, gains = (self._arrays[i] for i in (0, 3, 6, 7))
        ways = [np.eye(len(A))[None]] * 2
        for k in range(min(steps, self.length)):
            seen = np.ones((1, 1, len(C))) if missing is None else 1.0 - missing[:, k, None, :]
            ways = [way - (seen * gain) @ (C @ way) for way, gain in zip(ways, (gains[k], K), strict=True)]
            found[k, 1:] = np.abs(ways[0] - ways[1]).max(0)
            ways = [A @ way for way in ways]
        return found

    def largest(self, steps: int) -> np.ndarray:
        """Bounds of the signals, (steps, 1 + nstates)."""
        found = np.zeros((steps, self.size))
        kept = min(steps, self.length)
        found[:kept, 0] = self.decay ** np.arange(kept)
        found[:kept, 1:] = self.bounds[:kept]
        return found

    def signals(
        self, state: StartupState, v: torch.Tensor, shift: torch.Tensor | None, missing: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, StartupState]:
        """Signals over a record, time first.

        Parameters
        ----------
        state : StartupState
            At the first sample.
        v : torch.Tensor
            (time, ..., ninputs + noutputs), scaled inputs and measurements.
        shift : torch.Tensor or None
            (time, ..., nstates), turns that the state follows, before the sample is used.
        missing : torch.Tensor, optional
            (time, ..., noutputs), where there was no measurement: nothing is corrected.

        Returns
        -------
        signals : torch.Tensor
            (time, ..., 1 + nstates).
        state : StartupState
            After the last sample.
        """
        steps, constants = len(v), self._cast(v.dtype)
        lead = torch.broadcast_shapes(v.shape[1:-1], state.varying.shape[:-1])
        found = v.new_zeros(steps, *lead, self.size)
        for k in range(min(steps, self.length - state.step)):
            found[k, ..., 0] = self.decay ** (state.step)
            found[k, ..., 1:], state = _advance(
                torch,
                constants,
                state,
                v[k],
                None if shift is None else shift[k],
                None if missing is None else missing[k],
            )
        return found, state

    def sample(self, state: StartupState, v: np.ndarray, shift, missing) -> tuple[np.ndarray, StartupState]:
        """`signals` for one instant of one trajectory, in NumPy."""
        found = np.zeros(self.size)
        if state.step < self.length:
            found[0] = self.decay**state.step
            state = state._replace(varying=state.varying.numpy(), stationary=state.stationary.numpy())
            found[1:], state = _advance(np, self._arrays, state, v, shift, missing)
            state = state._replace(**{n: torch.from_numpy(getattr(state, n)) for n in ("varying", "stationary")})
        return found, state

    def _cast(self, dtype):
        if dtype not in self._constants:
            self._constants[dtype] = tuple(part.to(dtype) for part in self._constants[torch.float64])
        return self._constants[dtype]


def _advance(xp, constants, state, v, shift, missing):
    """One step of both filters; d, and the state after it."""
    A, B, b, C, D, d, K, gains, bounds = constants
    nu, k = B.shape[1], state.step
    u, y = v[..., :nu], v[..., nu:]
    filtered = []
    for z, gain in ((state.varying, gains[k]), (state.stationary, K)):
        z = z if shift is None else z + shift
        innovation = y - u @ D.T - d - z @ C.T
        if missing is not None:
            innovation = xp.where(missing, 0 * innovation, innovation)
        filtered.append(z + innovation @ gain.T)
    difference = xp.clip(filtered[0] - filtered[1], -bounds[k], bounds[k])
    into = u @ B.T + b
    return difference, StartupState(k + 1, *(z @ A.T + into for z in filtered))
