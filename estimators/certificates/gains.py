"""Smallest gains from input to output of a loop: guessed in the frequency domain, proved by their inequality."""

import numpy as np

from estimators.certificates.loops import Loop

FREQUENCIES, SCALES = 240, 33
EXCESSES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Relative distances above the guess at which a proof is tried."""


class Response:
    """Frequency response of a loop, prepared for many questions about its gains.

    By the bounded real lemma the gain is below gamma if for some scale tau of the network's terms and every frequency

        gamma^2 u*u - y*y + tau (terms of the network) > 0,

    a form in (w, u). Its part in w is diagonalised once for each frequency; the rest is of the size of u and y.

    Parameters
    ----------
    loop : Loop
        Contracting.
    """

    def __init__(self, loop: Loop):
        self.loop = loop
        nx, nv, nu, _ = loop.sizes
        poles = np.linalg.eigvals(loop.A)
        grid = np.concatenate([np.linspace(0, np.pi, FREQUENCIES // 2), np.geomspace(1e-5, np.pi, FREQUENCIES // 2)])
        grid = np.unique(np.concatenate([grid, np.abs(np.angle(poles))]))
        z = np.exp(1j * grid)
        B = np.hstack([loop.B1, loop.B2])
        x = np.linalg.solve(z[:, None, None] * np.eye(nx) - loop.A, np.broadcast_to(B, (len(z), *B.shape)))
        v = loop.C1 @ x + np.hstack([loop.D11, loop.D12])
        self.y = loop.C2 @ x + np.hstack([loop.D21, loop.D22])
        w = np.eye(nv, nv + nu)
        if loop.multiplier is None:
            form = w.T @ w - loop.slope**2 * _star(v) @ v
        else:
            cross = w.T @ (loop.multiplier[:, None] * (w - v))
            form = cross + _star(cross)
        self.inner, self.basis = np.linalg.eigh(form[:, :nv, :nv])
        self.cross, self.direct = form[:, nv:, :nv] @ self.basis, form[:, nv:, nv:]
        self.y_w, self.y_u = self.y[..., :nv] @ self.basis, self.y[..., nv:]

    def guess(self, inputs, outputs) -> tuple[float, float]:
        """Smallest gamma^2 on the frequency grid from some inputs to some outputs, and its scale tau; inf if none."""
        nv = len(self.loop.C1)
        C, Yu = self.y_w[:, outputs], self.y_u[:, outputs][:, :, inputs]
        N, direct = self.cross[:, inputs], self.direct[:, inputs][:, :, inputs]
        if not nv:
            return float(np.square(np.linalg.norm(Yu, 2, axis=(1, 2))).max()), 1.0
        if not (self.inner > 0).all():
            return np.inf, 1.0

        def needed(tau):
            D = tau * self.inner[:, None, :]
            reduced = np.eye(C.shape[1]) - (C / D) @ _star(C)
            if not (np.linalg.eigvalsh(reduced) > 0).all():
                return np.inf
            H = _star(Yu) @ C - tau * N
            HD = H / D
            mixed = HD @ _star(C)
            square = _star(Yu) @ Yu - tau * direct + HD @ _star(H) + mixed @ np.linalg.solve(reduced, _star(mixed))
            return float(np.linalg.eigvalsh(square)[:, -1].max())

        centre = float((np.square(np.abs(C)).sum(1) / self.inner).max())
        centre = max(centre, 1e-9 * float(np.square(np.abs(Yu)).max()))  # a network that does not reach the output
        taus = centre * np.geomspace(1e-2, 1e6, SCALES)
        for _ in range(3):
            values = [needed(tau) for tau in taus]
            best = int(np.argmin(values))
            taus = np.geomspace(taus[max(best - 1, 0)], taus[min(best + 1, SCALES - 1)], SCALES)
        return values[best], taus[SCALES // 2]

    def bound(self, inputs, outputs, unit: np.ndarray) -> float:
        """Proved bound of the gain from some inputs to some outputs; inf where no proof was found.

        Parameters
        ----------
        inputs, outputs : list of int
            Channels of u and y.
        unit : numpy.ndarray
            (nx,), sizes of the states.
        """
        loop = self.loop.channels(inputs, outputs)
        _, nv, nu, _ = loop.sizes
        exact = loop.errors is None
        if exact and (
            not any(m.any() for m in (loop.B2, loop.D12, loop.D22))
            or not any(m.any() for m in (loop.C2, loop.D21, loop.D22))
        ):
            return 0.0
        square, tau = self.guess(inputs, outputs)
        if not np.isfinite(square):
            return np.inf
        floor = 1e-16 * float(np.square(np.abs(self.y)).sum((1, 2)).max())
        size = max(square, floor)  # a channel that does nothing still needs a positive number
        for excess in EXCESSES:
            target = float(size * (1 + excess) ** 2)
            inequality = loop.gain(target, tau)
            units = np.concatenate([unit * np.sqrt(size), np.full(nv, 1 / np.sqrt(tau) * np.sqrt(size)), np.ones(nu)])
            for P in inequality.metrics(1.0, units):
                if inequality.with_metric(P).prove(1.0).verdict == "proved":
                    return float(np.sqrt(target) * (1 + 4 * np.finfo(float).eps))
        return np.inf


def _star(a):
    return np.conj(np.swapaxes(a, -1, -2))
