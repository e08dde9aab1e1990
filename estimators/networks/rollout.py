"""The R2DN recursion with one matrix a layer, and its hand-written adjoint.

    h_1 = sigma(G_1 x_t + c_t),  h_k = sigma(G_k h_{k-1} + g_k),  x_{t+1} = A x_t + F h_L + d_t

Everything that does not depend on the state is in c and d, computed for all times beforehand.
Time first, batch second, features last.
"""

import torch

_DERIVATIVES = {
    "relu": lambda grad, h: torch.ops.aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad),
    "tanh": lambda grad, h: torch.ops.aten.tanh_backward.grad_input(grad, h, grad_input=grad),
}
_IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}


class Rollout(torch.autograd.Function):
    """``apply(activation, x0, c, d, A, F, G_1, ..., G_L, g_2, ..., g_L) -> X, H``.

    Shapes: x0 (batch, nx), c (time, batch, n1), d (time, batch, nx), X (time + 1, batch, nx) with
    X[0] = x0, H (time, batch, nL) the last hidden layer. Differentiable once.
    """

    @staticmethod
    def forward(ctx, activation, x0, c, d, A, F, *layers):
        """Run the recursion."""
        depth = (len(layers) + 1) // 2
        G, g = layers[:depth], layers[depth:]
        steps, batch, _ = c.shape
        X = x0.new_empty(steps + 1, batch, x0.shape[1])
        X[0] = x0
        hidden = [x0.new_empty(steps, batch, weight.shape[0]) for weight in G]
        transposed = [weight.t().contiguous() for weight in G]
        At, Ft = A.t().contiguous(), F.t().contiguous()
        sigma = _IN_PLACE[activation]
        Xs, cs, ds, Hs = X.unbind(0), c.unbind(0), d.unbind(0), [h.unbind(0) for h in hidden]
        for t in range(steps):
            h = sigma(torch.addmm(cs[t], Xs[t], transposed[0], out=Hs[0][t]))
            for k in range(1, depth):
                h = sigma(torch.addmm(g[k - 1], h, transposed[k], out=Hs[k][t]))
            torch.addmm(ds[t], Xs[t], At, out=Xs[t + 1]).addmm_(h, Ft)
        ctx.save_for_backward(X, A, F, *G, *hidden)
        ctx.depth, ctx.activation = depth, activation
        return X, hidden[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_X, grad_H):
        """Run the adjoint recursion backwards in time, then form each weight gradient in one product."""
        depth, derivative = ctx.depth, _DERIVATIVES[ctx.activation]
        X, A, F, *rest = ctx.saved_tensors
        G, hidden = rest[:depth], rest[depth:]
        deltas = [torch.empty_like(h) for h in hidden]
        lam = grad_X.clone(memory_format=torch.contiguous_format)
        lams, Ds, Hs, gHs = (
            lam.unbind(0),
            [d.unbind(0) for d in deltas],
            [h.unbind(0) for h in hidden],
            grad_H.unbind(0),
        )
        for t in range(len(gHs) - 1, -1, -1):
            delta = torch.addmm(gHs[t], lams[t + 1], F, out=Ds[-1][t])
            derivative(delta, Hs[-1][t])
            for k in range(depth - 1, 0, -1):
                delta = torch.mm(delta, G[k], out=Ds[k - 1][t])
                derivative(delta, Hs[k - 1][t])
            lams[t].addmm_(lams[t + 1], A).addmm_(delta, G[0])

        def rows(tensor):
            return tensor.reshape(-1, tensor.shape[-1])

        after = rows(lam[1:]).t()
        grad_G = [rows(deltas[0]).t() @ rows(X[:-1])] + [
            rows(deltas[k]).t() @ rows(hidden[k - 1]) for k in range(1, depth)
        ]
        grad_g = [rows(deltas[k]).sum(0) for k in range(1, depth)]
        return None, lam[0], deltas[0], lam[1:], after @ rows(X[:-1]), after @ rows(hidden[-1]), *grad_G, *grad_g
