"""A linear system in feedback with a network of bounded slopes, in NumPy: what every inequality here is about.

    x+ = A x + B1 w + B2 u,  v = C1 x + D11 w + D12 u,  y = C2 x + D21 w + D22 u

for differences of two runs, so biases are gone. Of w, an R2DN's network gives ell^2 v'v - w'w >= 0, a REN's
2 w'Lambda (v - w) >= 0 (mathematics.md, 3-5); a linear system has no w.
"""

from typing import NamedTuple

import numpy as np
import torch

from estimators.certificates.dissipation import EPS, Inequality, Term
from estimators.certificates.feedforward import network_bound
from estimators.certificates.rigorous import product
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.ren import RENMatrices


class Loop(NamedTuple):
    """The matrices.

    Attributes
    ----------
    A, B1, B2, C1, D11, D12, C2, D21, D22 : numpy.ndarray
        float64.
    slope : float
        Ell, a proved bound of the network's Lipschitz constant; of a REN 1.
    multiplier : numpy.ndarray or None
        Diagonal of a REN's Lambda.
    errors : tuple of numpy.ndarray or None
        Bounds on the errors of (A, B2) and (C2, D22), (nx, nx + nu) and (ny, nx + nu), where they were formed with
        rounding.
    """

    A: np.ndarray
    B1: np.ndarray
    B2: np.ndarray
    C1: np.ndarray
    D11: np.ndarray
    D12: np.ndarray
    C2: np.ndarray
    D21: np.ndarray
    D22: np.ndarray
    slope: float
    multiplier: np.ndarray | None = None
    errors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of x, w, u and y."""
        return len(self.A), len(self.C1), self.B2.shape[1], len(self.C2)

    @classmethod
    def of(cls, matrices: R2DNMatrices | RENMatrices) -> "Loop":
        """Take the float64 values of explicit matrices; ValueError where they are not finite."""
        names = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
        A, B1, B2, C1, D12, C2, D21, D22 = (array(getattr(matrices, name)) for name in names)
        is_ren = isinstance(matrices, RENMatrices)
        D11 = array(matrices.D11) if is_ren else np.zeros((len(C1), len(C1)))
        P = None if matrices.metric is None else array(matrices.metric)
        if not all(m is None or np.isfinite(m).all() for m in (A, B1, B2, C1, D11, D12, C2, D21, D22, P)):
            raise ValueError("the matrices hold values that are not finite")
        every = [t for t in matrices if isinstance(t, torch.Tensor)]
        layers = () if is_ren else matrices.network
        every += [t for layer in layers for t in layer if isinstance(t, torch.Tensor)]
        if not all(bool(torch.isfinite(t).all()) for t in every) or any(
            layer.psi is not None and not bool((layer.psi > 0).all()) for layer in layers
        ):
            raise ValueError("the matrices hold values that are not finite, or scalings that are not positive")
        slope = 1.0 if is_ren else network_bound(matrices.network, matrices.linear_output)
        return cls(A, B1, B2, C1, D11, D12, C2, D21, D22, slope, array(matrices.multiplier) if is_ren else None)

    @classmethod
    def linear(cls, plant, gain: np.ndarray, form: str) -> "Loop":
        """Observer of constant gain of a linear plant (A, B, C, D), for u = (plant input, measurement).

        Its outputs are the filtered estimates, where the gain is a filter's, and then the predicted ones of the next
        instant. Rounding of its matrices is bounded.
        """
        A, B, C, D = (np.asarray(m, dtype=float) for m in plant)
        nx, nu, ny = len(A), B.shape[1], len(C)
        plant_rows, both = np.hstack([A, B, np.zeros((nx, ny))]), np.hstack([-C, -D, np.eye(ny)])
        if form == "predictor":
            correction, error = product(gain, both)
            rows = plant_rows + correction
            error = error + EPS * (np.abs(plant_rows) + np.abs(rows))
            readout, readout_error = rows, error
        else:
            change, change_error = product(gain, both)
            filtered = np.eye(nx, nx + nu + ny) + change
            change_error = change_error + EPS * (1 + np.abs(filtered))
            step, step_error = product(A, filtered)
            rows = step + np.hstack([np.zeros((nx, nx)), B, np.zeros((nx, ny))])
            error = step_error + np.abs(A) @ change_error * (1 + 1e-12) + EPS * (np.abs(rows) + np.abs(plant_rows))
            readout, readout_error = np.vstack([filtered, rows]), np.vstack([change_error, error])
        none = np.zeros((0, nx)), np.zeros((0, 0)), np.zeros((0, nu + ny))
        return cls(
            rows[:, :nx],
            np.zeros((nx, 0)),
            rows[:, nx:],
            *none,
            readout[:, :nx],
            np.zeros((len(readout), 0)),
            readout[:, nx:],
            1.0,
            None,
            (error, readout_error),
        )

    def channels(self, inputs, outputs) -> "Loop":
        """Keep some inputs and outputs, given as index lists."""
        nx, errors = len(self.A), self.errors
        if errors is not None:
            columns = [*range(nx), *(nx + np.asarray(inputs, dtype=int))]
            errors = errors[0][:, columns], errors[1][outputs][:, columns]
        return self._replace(
            B2=self.B2[:, inputs],
            D12=self.D12[:, inputs],
            C2=self.C2[outputs],
            D21=self.D21[outputs],
            D22=self.D22[np.ix_(outputs, inputs)],
            errors=errors,
        )

    def rows(self, with_input: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next state, v and y as rows over z = (x, w) or (x, w, u)."""
        nx, nv, nu, _ = self.sizes
        size = nx + nv + (nu if with_input else 0)
        blocks = ((self.A, self.B1, self.B2), (self.C1, self.D11, self.D12), (self.C2, self.D21, self.D22))
        return tuple(np.hstack(row)[:, :size] for row in blocks)

    def slopes(self, v: np.ndarray, scale: float = 1.0) -> tuple[Term, ...]:
        """Terms that are not positive for what the network can do, given rows of v over z = (x, w, ...)."""
        nx, nv, _, _ = self.sizes
        w = np.eye(nv, v.shape[1], nx)
        if not nv:
            return ()
        if self.multiplier is None:
            return Term(scale, w), Term(-scale * self.slope * self.slope * (1 + 8 * EPS), v)
        return (Term(2 * scale, w, np.diag(self.multiplier), w - v),)

    def contraction(self) -> Inequality:
        """Inequality whose metric and rate are those of contraction."""
        into, v, _ = self.rows(False)
        return Inequality(into, self.slopes(v), self._error(0, into.shape[1]))

    def gain(self, gamma_squared: float, scale: float) -> Inequality:
        """Inequality at rate 1 of a bound gamma on the gain from u to y, the network's terms multiplied by `scale`."""
        into, v, y = self.rows(True)
        nx, nv, nu, _ = self.sizes
        u = np.eye(nu, nx + nv + nu, nx + nv)
        terms = (*self.slopes(v, scale), Term(gamma_squared, u), Term(-1.0, y, error=self._error(1, y.shape[1])))
        return Inequality(into, terms, self._error(0, into.shape[1]))

    def _error(self, which, size):
        if self.errors is None:
            return None
        nx, nv = len(self.A), len(self.C1)
        error = self.errors[which]
        return np.hstack([error[:, :nx], np.zeros((len(error), nv)), error[:, nx:]])[:, :size]


def array(tensor) -> np.ndarray:
    """Float64 values of a tensor."""
    return tensor.detach().cpu().double().numpy()
