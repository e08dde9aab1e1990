"""One step at a time, for control loops: NumPy on matrices mapped once, no autograd, no allocation but the result."""

import threading
from functools import partial

import numpy as np
import torch

from estimators.networks.activations import ACTIVATIONS
from estimators.networks.rollout import Recursion


class Stream:
    """Step function of a collapsed R2DN for one trajectory.

    Parameters
    ----------
    system : Recursion
        Its matrices; arithmetic is in their dtype.

    Notes
    -----
    An instance works in its own buffers, which a lock protects: threads that share one wait for each other.
    """

    def __init__(self, system: Recursion):
        def array(tensor):
            return tensor.detach().cpu().numpy()

        nx, nz = system.M.shape
        self._system, self._lock = system, threading.Lock()
        hidden = [len(w) for w in system.weights]
        last = hidden[-1] if hidden else 0
        # state and output come from one product on [h_L, x, u, 1]
        rows = [(system.F, system.M)] + ([] if system.N is None else [(system.J, system.N)])
        out = np.vstack([np.hstack([array(h), array(z)]) if hidden else array(z) for h, z in rows])
        buffer = np.ones(last + nz, out.dtype)
        self._x, self._u, self._nx, self._identity = (
            buffer[last : last + nx],
            buffer[last + nx : -1],
            nx,
            len(rows) == 1,
        )
        self._finish, self._calls, into = partial(np.dot, out, buffer), [], buffer[last:]
        for k, weight in enumerate(system.weights):
            # biases ride along: every layer's buffer ends with a constant 1
            W = array(weight) if k == 0 else np.hstack([array(weight), array(system.biases[k - 1])[:, None]])
            store = np.ones(len(W) + 1, W.dtype)
            h = buffer[:last] if k == len(hidden) - 1 else store[:-1]
            self._calls += [partial(np.dot, np.ascontiguousarray(W), into, h), ACTIVATIONS[system.activation].on(h)]
            into = store

    def step(self, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step.

        Parameters
        ----------
        x, u : numpy.ndarray
            (nx,) and (nu,).

        Returns
        -------
        x_next, y : numpy.ndarray
            (nx,) and (ny,), new arrays.

        Raises
        ------
        ValueError
            Other shapes.
        """
        if np.shape(x) != self._x.shape or np.shape(u) != self._u.shape:
            raise ValueError(
                f"x and u must have shapes {self._x.shape} and {self._u.shape}, got {np.shape(x)} and {np.shape(u)}"
            )
        with self._lock:
            self._x[:] = x
            self._u[:] = u
            for call in self._calls:
                call()
            both = self._finish()
            return (both, self._x.copy()) if self._identity else (both[: self._nx], both[self._nx :])

    def __reduce__(self):
        # a copy of the buffers would come apart from the calls bound to them
        return type(self), (self._system,)


class SubstitutionStream(Stream):
    """Step function of a REN for one trajectory: row by row through its equilibrium layer.

    Parameters
    ----------
    system : RENMatrices
        Arithmetic is in their dtype.
    """

    def __init__(self, system):
        def stacked(*parts):
            columns = [a if a.ndim == 2 else a[:, None] for a in parts]
            return np.ascontiguousarray(torch.cat(columns, 1).detach().cpu().numpy())

        self._system, self._lock, self._identity = system, threading.Lock(), system.identity_output
        self._nx, nu, nv = len(system.A), system.B2.shape[1], len(system.bv)
        rows = stacked(system.C1, system.D12, system.bv, system.D11)
        first = self._nx + nu + 1
        out = stacked(system.A, system.B2, system.bx, system.B1)
        if not self._identity:
            out = np.vstack([out, stacked(system.C2, system.D22, system.by, system.D21)])
        buffer = np.ones(first + nv, out.dtype)
        self._x, self._u, self._finish = buffer[: self._nx], buffer[self._nx : first - 1], partial(np.dot, out, buffer)
        self._calls = []
        for i in range(nv):
            w = buffer[first + i : first + i + 1]
            self._calls += [
                partial(np.dot, rows[i : i + 1, : first + i], buffer[: first + i], w),
                ACTIVATIONS[system.activation].on(w),
            ]
