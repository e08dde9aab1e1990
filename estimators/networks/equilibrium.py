"""The equilibrium layer w = sigma(D11 w + v) of a REN with strictly lower triangular D11."""

import torch

from estimators.networks.activations import ACTIVATIONS

BLOCK = 16
"""Rows solved one after the other; rows of earlier blocks enter through one product."""


class Substitution:
    """Views of one D11, taken once for all the instants of a sequence.

    Parameters
    ----------
    D11 : torch.Tensor
        (nv, nv), strictly lower triangular.
    activation : str
        Sigma.
    """

    def __init__(self, D11: torch.Tensor, activation: str):
        self.D11, self.activation = D11, ACTIVATIONS[activation]
        fixed, n = D11.detach(), len(D11)
        upper = fixed.t().contiguous()
        self.blocks = []
        for s in range(0, n, BLOCK):
            e = min(s + BLOCK, n)
            forwards = [(i, fixed[i : i + 1, s:i], slice(s, i)) for i in range(s, e)]
            backwards = [(i, upper[i : i + 1, i + 1 : e], slice(i + 1, e)) for i in reversed(range(s, e))]
            self.blocks.append((slice(s, e), fixed[s:e, :s], upper[s:e, e:], forwards, backwards))

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Solve for w, features first: v (nv, batch) to w (nv, batch). Differentiable once."""
        return _Equilibrium.apply(self, self.D11, v)


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(ctx, substitution, D11, v):
        """Forward substitution."""
        w = v.clone(memory_format=torch.contiguous_format)
        sigma = substitution.activation.in_place
        rows = w.split(1)
        for block, before, _, forwards, _ in substitution.blocks:
            if block.start:
                w[block].addmm_(before, w[: block.start])
            for i, coefficients, known in forwards:
                if known.start < known.stop:
                    rows[i].addmm_(coefficients, w[known])
                sigma(rows[i])
        ctx.substitution = substitution
        ctx.save_for_backward(w)
        return w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """Backward substitution of the implicit-function rule: with J the slopes, g_v = J (g + D11' g_v)."""
        (w,) = ctx.saved_tensors
        slope = ctx.substitution.activation.slope(w)
        gv = grad.clone(memory_format=torch.contiguous_format)
        rows, slopes = gv.split(1), slope.split(1)
        for block, _, after, _, backwards in reversed(ctx.substitution.blocks):
            if block.stop < len(w):
                gv[block].addmm_(after, gv[block.stop :])
            for i, coefficients, known in backwards:
                if known.start < known.stop:
                    rows[i].addmm_(coefficients, gv[known])
                rows[i].mul_(slopes[i])
        return None, torch.tril(gv @ w.mT, -1), gv
