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
EXACT = torch.float64, torch.device("cpu")
MATRICES = ("A", "B", "b", "C", "D", "d", "filter_gain", "process_cov", "measurement_cov", "start_cov", "rate")


class StartupState(NamedTuple):
    """Where the start-up is.

    Attributes
    ----------
    step : int
        Since the start.
    filters : torch.Tensor
        (2, ..., nstates), predicted estimates of the time-varying and of the stationary affine filter.
    """

    step: int
    filters: torch.Tensor


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
        both = np.stack([np.array(gains), np.broadcast_to(K, (self.length, *K.shape))], axis=1)
        tensors = (torch.from_numpy(np.ascontiguousarray(part)) for part in (both.transpose(0, 1, 3, 2), self.bounds))
        self._constants = {EXACT: (*(matrices[name] for name in MATRICES[:6]), *tensors)}
        self._arrays = tuple(part.numpy() for part in self._constants[EXACT])

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
    def gains(self) -> torch.Tensor:
        """Transposed gains of both filters, (length, 2, noutputs, nstates)."""
        return self._constants[EXACT][6]

    @property
    def size(self) -> int:
        """Number of signals: s, and d for each state."""
        return 1 + len(self.matrices["A"])

    def init(self, z0: torch.Tensor) -> StartupState:
        """Start from the told state (..., nstates)."""
        return StartupState(0, torch.stack([z0, z0]))

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
        A, C, gains = (self._arrays[i] for i in (0, 3, 6))
        ways = [np.eye(len(A))[None]] * 2
        for k in range(min(steps, self.length)):
            seen = np.ones((1, 1, len(C))) if missing is None else 1.0 - missing[:, k, None, :]
            ways = [way - (seen * gain.T) @ (C @ way) for way, gain in zip(ways, gains[k], strict=True)]
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
            (time, ..., ninputs + noutputs or more), scaled inputs and measurements first.
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
        lead = torch.broadcast_shapes(v.shape[1:-1], state.filters.shape[1:-1])
        found, first = v.new_zeros(len(v), *lead, self.size), state.step
        steps = min(len(v), self.length - first)
        if steps <= 0:
            return found, state
        A, B, b, C, D, d, gains, bounds = self._cast(v.dtype, v.device)
        nu, nx = B.shape[1], len(A)

        def flat(part, size):
            return part.expand(*part.shape[:1], *lead, size).reshape(part.shape[0], lead.numel(), size)

        u, y = v[:steps, ..., :nu], v[:steps, ..., nu : nu + len(C)]
        target, into = flat(y - u @ D.T - d, len(C)), flat(u @ B.T + b, nx)
        z = torch.stack([part.expand(*lead, nx).reshape(lead.numel(), nx) for part in state.filters])
        shift = None if shift is None else flat(shift, nx)
        missing = None if missing is None or not bool(missing.any()) else flat(missing, len(C))
        filtered = []
        for k in range(steps):
            z = z if shift is None else z + shift[k]
            innovation = target[k] - z @ C.T
            if missing is not None:
                innovation = innovation.masked_fill(missing[k], 0.0)
            filtered.append(torch.baddbmm(z, innovation, gains[first + k]))
            z = filtered[-1] @ A.T + into[k]
        both, largest = torch.stack(filtered), bounds[first : first + steps, None]
        difference = torch.clamp(both[:, 0] - both[:, 1], -largest, largest)
        found[:steps, ..., 1:] = difference.reshape(steps, *lead, nx)
        fading = self.decay ** torch.arange(first, first + steps, dtype=v.dtype, device=v.device)
        found[:steps, ..., 0] = fading.reshape(-1, *[1] * len(lead))
        return found, StartupState(first + steps, z.reshape(2, *lead, nx))

    def sample(self, state: StartupState, v: np.ndarray, shift, missing) -> tuple[np.ndarray, StartupState]:
        """`signals` for one instant of one trajectory, in NumPy."""
        found, k = np.zeros(self.size), state.step
        if k >= self.length:
            return found, state
        A, B, b, C, D, d, gains, bounds = self._arrays
        u, y = v[: B.shape[1]], v[B.shape[1] : B.shape[1] + len(C)]
        z = state.filters.numpy() + shift
        innovation = np.where(missing, 0.0, y - D @ u - d - z @ C.T)
        filtered = z + np.matmul(innovation[:, None], gains[k])[:, 0]
        found[0] = self.decay**k
        found[1:] = np.clip(filtered[0] - filtered[1], -bounds[k], bounds[k])
        return found, StartupState(k + 1, torch.from_numpy(filtered @ A.T + (B @ u + b)))

    def _cast(self, dtype, device):
        if (dtype, device) not in self._constants:
            self._constants[dtype, device] = tuple(part.to(device, dtype) for part in self._constants[EXACT])
        return self._constants[dtype, device]
