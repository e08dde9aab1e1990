"""Monotone activations with slope in [0, 1]: the only ones for which sandwich layers keep their bound."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch.nn import functional

_LEAK = 0.01


class Activation(NamedTuple):
    """One activation in the forms that the evaluations need.

    Attributes
    ----------
    function : callable
        Of a tensor; differentiable.
    in_place : callable
        Overwrites a tensor that nothing else needs, and returns it.
    pull_back : callable
        ``pull_back(grad, h)`` multiplies `grad` in place by the slope where the output is `h`.
    slope : callable
        Slope where the output is `h`, a new tensor.
    on : callable
        ``on(h)`` is a function without arguments that overwrites the NumPy array `h`: bound once, called often.
    """

    function: Callable
    in_place: Callable
    pull_back: Callable
    slope: Callable
    on: Callable


def _elu(h):
    np.copyto(h, np.expm1(np.minimum(h, 0)), where=h < 0)


def _relu(h):
    return partial(
        np.maximum, h, np.zeros_like(h), out=h
    )  # an array of zeros: converting a Python 0 costs as much again


_aten = torch.ops.aten
ACTIVATIONS = {
    "relu": Activation(
        torch.relu,
        torch.relu_,
        lambda grad, h: _aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad),
        lambda h: (h > 0).to(h.dtype),
        _relu,
    ),
    "leaky_relu": Activation(
        lambda v: functional.leaky_relu(v, _LEAK),
        lambda v: functional.leaky_relu_(v, _LEAK),
        lambda grad, h: _aten.leaky_relu_backward.grad_input(grad, h, _LEAK, True, grad_input=grad),
        lambda h: torch.where(h > 0, 1.0, _LEAK).to(h.dtype),
        lambda h: lambda: np.maximum(h, _LEAK * h, out=h),
    ),
    "elu": Activation(
        functional.elu,
        lambda v: functional.elu_(v),
        lambda grad, h: _aten.elu_backward.grad_input(grad, 1, 1, 1, True, h, grad_input=grad),
        lambda h: 1 + torch.clamp(h, max=0),
        lambda h: partial(_elu, h),
    ),
    "tanh": Activation(
        torch.tanh,
        torch.tanh_,
        lambda grad, h: _aten.tanh_backward.grad_input(grad, h, grad_input=grad),
        lambda h: 1 - h * h,
        lambda h: partial(np.tanh, h, out=h),
    ),
    "sigmoid": Activation(
        torch.sigmoid,
        torch.sigmoid_,
        lambda grad, h: _aten.sigmoid_backward.grad_input(grad, h, grad_input=grad),
        lambda h: h * (1 - h),
        lambda h: partial(scipy.special.expit, h, out=h),
    ),
    "softplus": Activation(
        # torch's own softplus is the identity above 20, a step down of 2e-9
        lambda v: torch.logaddexp(v, torch.zeros_like(v)),
        lambda v: torch.logaddexp(v, torch.zeros_like(v), out=v),
        lambda grad, h: grad.mul_(-torch.expm1(-h)),
        lambda h: -torch.expm1(-h),
        lambda h: partial(np.logaddexp, h, np.zeros_like(h), out=h),
    ),
}


def check_activation(name: str) -> None:
    """Raise a ValueError naming the choices unless `name` is one of them."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")
