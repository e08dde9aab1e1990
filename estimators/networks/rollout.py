"""The R2DN recursion with one matrix a layer, and its hand-written adjoint (mathematics.md, 7).

With z_t = [x_t, u_t, 1], so that inputs and biases ride along in the products with the state,

    h_1 = sigma(W_1 z_t),  h_k = sigma(W_k h_{k-1} + b_k),  x_{t+1} = M z_t + F h_L,  y_t = N z_t + J h_L

Time first, batch second, features last. Times are processed in chunks that stay in the cache: the
outputs and, backwards, the weight gradients of a chunk are single products over (time x batch).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from estimators.networks.activations import ACTIVATIONS

ROWS = 2048
"""Rows (time x batch) of a chunk: where the measured time is smallest, from batch 64 to 1024."""


class Recursion(NamedTuple):
    """Matrices of the recursion.

    Attributes
    ----------
    activation : str
        Sigma.
    M, N : torch.Tensor
        (nx, nx + nu + 1), and (ny, nx + nu + 1) or None where there is no output but the state.
    F, J : torch.Tensor or None
        (nx, n_L) and (ny, n_L); None without hidden layers, J also without output.
    layers : tuple of torch.Tensor
        W_1, W_2, b_2, W_3, b_3, ...; empty for an affine system.
    """

    activation: str
    M: torch.Tensor
    N: torch.Tensor | None
    F: torch.Tensor | None
    J: torch.Tensor | None
    layers: tuple[torch.Tensor, ...]

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """W_1, W_2, ..."""
        return self.layers[:1] + self.layers[1::2]

    @property
    def biases(self) -> Sequence[torch.Tensor]:
        """b_2, b_3, ..."""
        return self.layers[2::2]

    def to(self, dtype: torch.dtype) -> "Recursion":
        """Round the matrices to another dtype."""

        def cast(a):
            return None if a is None else a.to(dtype)

        matrices = map(cast, (self.M, self.N, self.F, self.J))
        return Recursion(self.activation, *matrices, tuple(map(cast, self.layers)))

    def step(self, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: x (..., nx), u (..., nu) to the next state and the output y (..., ny); differentiable."""
        sigma = ACTIVATIONS[self.activation].function
        lead = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        z = torch.cat([x.expand(*lead, -1), u.expand(*lead, -1), x.new_ones(*lead, 1)], -1)
        following, y = z @ self.M.mT, x if self.N is None else z @ self.N.mT
        if self.layers:
            h = sigma(z @ self.layers[0].mT)
            for weight, bias in zip(self.weights[1:], self.biases, strict=True):
                h = sigma(h @ weight.mT + bias)
            following, y = following + h @ self.F.mT, y if self.N is None else y + h @ self.J.mT
        return following, y

    def with_shift(self, nu: int) -> "Recursion":
        """Append to the `nu` inputs as many more as there are states, which are added to the next state."""
        nx = len(self.M)
        at = nx + nu

        def widened(a, block=None):
            if a is None:
                return None
            block = a.new_zeros(len(a), nx) if block is None else block
            return torch.cat([a[:, :at], block, a[:, at:]], 1)

        layers = (widened(self.layers[0]), *self.layers[1:]) if self.layers else ()
        M = widened(self.M, torch.eye(nx, dtype=self.M.dtype, device=self.M.device))
        return self._replace(M=M, N=widened(self.N), layers=layers)


def rollout(
    system: Recursion,
    x0: torch.Tensor,
    u: torch.Tensor,
    shift: torch.Tensor | None = None,
    *,
    states: bool = False,
    checkpoint: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recursion over a batch of sequences.

    Parameters
    ----------
    system : Recursion
        Of the same dtype and device as the signals.
    x0, u : torch.Tensor
        (batch, nx) and (time, batch, nu).
    shift : torch.Tensor, optional
        (time, batch, nx), added to the next state.
    states : bool
        Return all states and not only the last.
    checkpoint : bool
        Keep only every chunk's first state for the backward pass, which then runs the recursion
        once more.

    Returns
    -------
    x : torch.Tensor
        (time + 1, batch, nx) with x[0] = x0, or the last one, (batch, nx).
    y : torch.Tensor
        (time, batch, ny); without N, x[:-1]. Differentiable once.
    """
    if shift is not None:
        system, u = system.with_shift(u.shape[-1]), torch.cat([u, shift], -1)
    tensors = (x0, u, system.M, system.N, system.F, system.J, *system.layers)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        x, y = _Rollout.apply(system.activation, states, checkpoint, *tensors)
    else:
        x, y, _, _ = _evaluate(system, x0, u, states, store=False)
    return x, x[:-1] if y is None else y


def _chunk(steps, batch):
    return max(1, min(steps, ROWS // max(batch, 1)))


def _fill(Z, x, u):
    """Write start, inputs and the constant into the rows z of a chunk."""
    nx = x.shape[1]
    Z[0, :, :nx] = x
    Z[: len(u), :, nx:-1] = u


def _advance(system, transposed, Z, hidden):
    """Step through a chunk: states go into Z[1:], layers into `hidden`."""
    Wt, Mt, Ft = transposed
    sigma, biases = ACTIVATIONS[system.activation].in_place, system.biases
    X, Zs, Hs = Z[..., : len(system.M)].unbind(0), Z.unbind(0), [h.unbind(0) for h in hidden]
    first, rest = Hs[:1], list(zip(Hs[1:], Wt[1:], biases, strict=True))
    mm, addmm = torch.mm, torch.addmm
    for t in range(len(Zs) - 1):
        following = mm(Zs[t], Mt, out=X[t + 1])
        if first:
            h = sigma(mm(Zs[t], Wt[0], out=first[0][t]))
            for H, W, b in rest:
                h = sigma(addmm(b, h, W, out=H[t]))
            following.addmm_(h, Ft)


def _rows(a):
    return a.reshape(-1, a.shape[-1])


def _transposed(system):
    Ft = None if system.F is None else system.F.t().contiguous()
    return [w.t().contiguous() for w in system.weights], system.M.t().contiguous(), Ft


def _evaluate(system, x0, u, states, store, boundaries=None):
    """Forward pass; `store` keeps every z and h, else only what a chunk needs at a time."""
    steps, batch, nu = u.shape
    nx, K = len(system.M), _chunk(steps, batch)
    transposed = _transposed(system)
    Z = x0.new_empty((steps if store else K) + 1, batch, nx + nu + 1)
    Z[..., -1] = 1
    H = [x0.new_empty(steps if store else K, batch, len(w)) for w in system.weights]
    if not store:  # of a layer that only feeds the next one, one instant is enough
        H[:-1] = [h[:1].expand(K, -1, -1) for h in H[:-1]]
    X = x0.new_empty(steps + 1, batch, nx) if states else None
    if system.N is None:
        y = None if states else x0.new_empty(steps, batch, nx)
    else:
        y = x0.new_empty(steps, batch, len(system.N))
        Nt, Jt = system.N.t().contiguous(), None if system.J is None else system.J.t().contiguous()
    x = x0
    for s in range(0, steps, K):
        n = min(K, steps - s)
        Zc, Hc = (Z[s : s + n + 1], [h[s : s + n] for h in H]) if store else (Z[: n + 1], [h[:n] for h in H])
        if boundaries is not None:
            boundaries.append(x.clone())
        _fill(Zc, x, u[s : s + n])
        _advance(system, transposed, Zc, Hc)
        x = Zc[n, :, :nx]
        if states:
            X[s : s + n] = Zc[:n, :, :nx]
        if system.N is None:
            if y is not None:
                y[s : s + n] = Zc[:n, :, :nx]
        else:
            out = torch.mm(_rows(Zc[:n]), Nt, out=_rows(y[s : s + n]))
            if H:
                out.addmm_(_rows(Hc[-1]), Jt)
    if states:
        X[steps] = x
    return X if states else x.clone(), y, Z, H


class _Rollout(torch.autograd.Function):
    """:func:`rollout` with its adjoint recursion."""

    @staticmethod
    def forward(ctx, activation, states, checkpoint, x0, u, M, N, F, J, *layers):
        """Run the recursion, keeping what its adjoint needs."""
        ctx.set_materialize_grads(False)
        system, boundaries = Recursion(activation, M, N, F, J, layers), [] if checkpoint else None
        x, y, Z, H = _evaluate(system, x0, u, states, store=not checkpoint, boundaries=boundaries)
        ctx.save_for_backward(u, M, N, F, J, *layers, *(boundaries if checkpoint else (Z, *H)))
        ctx.activation, ctx.states, ctx.checkpoint, ctx.nlayers = activation, states, checkpoint, len(layers)
        return x, y

    @staticmethod
    def backward(ctx, grad_x, grad_y):
        """Adjoint recursion backwards in time; weight gradients are summed chunk by chunk."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a rollout is differentiable once, and create_graph=True asks for more: "
                "step through explicit().step, the plain definition, for higher derivatives"
            )
        u, M, N, F, J, *rest = ctx.saved_tensors
        layers, kept = rest[: ctx.nlayers], rest[ctx.nlayers :]
        system = Recursion(ctx.activation, M, N, F, J, tuple(layers))
        steps, batch, nu = u.shape
        nx, K = len(M), _chunk(steps, batch)
        weights, pull_back = system.weights, ACTIVATIONS[ctx.activation].pull_back
        A, W1x = M[:, :nx].contiguous(), weights[0][:, :nx].contiguous() if layers else None
        grads = {name: torch.zeros_like(a) for name, a in zip("MNFJ", (M, N, F, J), strict=True) if a is not None}
        grad_W, grad_b = [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in system.biases]
        grad_u = u.new_empty(u.shape) if ctx.needs_input_grad[4] else None
        if ctx.checkpoint:
            transposed = _transposed(system)
            Z = u.new_empty(K + 1, batch, nx + nu + 1)
            Z[..., -1] = 1
            H = [u.new_empty(K, batch, len(w)) for w in weights]
        else:
            Z, *H = kept
        lam, D = u.new_zeros(K + 1, batch, nx), [u.new_empty(K, batch, len(w)) for w in weights]
        if grad_x is not None:
            lam[0] = grad_x[-1] if ctx.states else grad_x
        for s in reversed(range(0, steps, K)):
            n = min(K, steps - s)
            if ctx.checkpoint:
                Zc, Hc = Z[: n + 1], [h[:n] for h in H]
                _fill(Zc, kept[s // K], u[s : s + n])
                _advance(system, transposed, Zc, Hc)
            else:
                Zc, Hc = Z[s : s + n + 1], [h[s : s + n] for h in H]
            Dc, Lc = [d[:n] for d in D], lam[: n + 1]
            Lc[n] = lam[0]  # what the chunk after this one left
            gy = None if grad_y is None or N is None else _rows(grad_y[s : s + n])
            if gy is None:
                Lc[:n] = 0 if grad_y is None else grad_y[s : s + n]
                for d in Dc[-1:]:
                    d.zero_()
            else:
                torch.mm(gy, N[:, :nx], out=_rows(Lc[:n]))
                for d in Dc[-1:]:
                    torch.mm(gy, J, out=_rows(d))
            if grad_x is not None and ctx.states:
                Lc[:n] += grad_x[s : s + n]
            _pull_back(pull_back, A, W1x, F, weights, Lc, Dc, Hc)
            after, z = _rows(Lc[1:]), _rows(Zc[:n])
            grads["M"].addmm_(after.t(), z)
            if gy is not None:
                grads["N"].addmm_(gy.t(), z)
            if layers:
                last = _rows(Hc[-1])
                grads["F"].addmm_(after.t(), last)
                if gy is not None:
                    grads["J"].addmm_(gy.t(), last)
                grad_W[0].addmm_(_rows(Dc[0]).t(), z)
            for k, d in enumerate(map(_rows, Dc[1:])):
                grad_W[k + 1].addmm_(d.t(), _rows(Hc[k]))
                grad_b[k].add_(d.sum(0))
            if grad_u is not None:
                out = torch.mm(after, M[:, nx:-1], out=_rows(grad_u[s : s + n]))
                if gy is not None:
                    out.addmm_(gy, N[:, nx:-1])
                if layers:
                    out.addmm_(_rows(Dc[0]), weights[0][:, nx:-1])
        pairs = [g for pair in zip(grad_W[1:], grad_b, strict=True) for g in pair]
        matrices = (grads.get(name) for name in "MNFJ")
        return None, None, None, lam[0], grad_u, *matrices, *grad_W[:1], *pairs


def _pull_back(pull_back, A, W1x, F, weights, lam, D, H):
    """Adjoint of `_advance`: `lam` and the last of `D` hold direct gradients, and all become total ones."""
    lams, Ds, Hs = lam.unbind(0), [d.unbind(0) for d in D], [h.unbind(0) for h in H]
    below = list(zip(reversed(Ds[:-1]), reversed(weights[1:]), reversed(Hs[:-1]), strict=True)) if D else []
    mm = torch.mm
    for t in range(len(lams) - 2, -1, -1):
        now, after = lams[t], lams[t + 1]
        now.addmm_(after, A)
        if D:
            delta = Ds[-1][t].addmm_(after, F)
            pull_back(delta, Hs[-1][t])
            for d, W, h in below:
                delta = mm(delta, W, out=d[t])
                pull_back(delta, h[t])
            now.addmm_(delta, W1x)
