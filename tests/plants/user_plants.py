"""Plants in the styles that python-control's documentation and users use; written for NumPy, none knows of torch.

Each entry: name -> (system, analytic Jacobian of the update at (x, u) or None, route the bridge must reach).
"""

import math
from math import cos, sin

import control as ct
import numpy as np

A = np.array([[0.0, 1.0], [-2.0, -0.3]])
B = np.array([0.0, 1.0])


def list_return(t, x, u, params):
    return [x[1], -np.sin(x[0]) - 0.2 * x[1] + u[0]]


def array_return(t, x, u, params):
    k, c = params.get("k", 1.0), params.get("c", 0.5)
    return np.array([x[1], -k * x[0] ** 3 - c * x[1] + u[0]])


def closed_over_matrix(t, x, u, params):
    return A @ x + B * u[0]


def math_functions(t, x, u, params):
    return [x[1], -9.81 * sin(x[0]) + u[0] * math.exp(-(x[1] ** 2)) + 0.1 * math.atan2(x[1], 2.0 + cos(x[0]))]


def clipped(t, x, u, params):
    torque = np.clip(u[0], -0.5, 0.5)
    return [x[1], torque - 0.4 * x[1] * abs(x[1]) - np.where(x[0] > 0, x[0], 3.0 * x[0])]


def unpacking(t, x, u, params):
    x1, x2 = x
    (force,) = u
    return x2, params["mu"] * (1 - x1**2) * x2 - x1 + force


def in_place(t, x, u, params):
    dx = np.zeros(2)
    dx[0] = x[1]
    dx[1] = -2.0 * x[0] + u[0]
    dx[1] += -0.5 * np.tanh(x[1])
    return dx


def friction(v, level=0.3):
    return level * np.arctan(10 * v)


def helper_functions(t, x, u, params):
    return np.array([x[1], -np.sin(x[0]) - friction(x[1]) + u[0]])


def branch_on_parameters(t, x, u, params):
    spring = -x[0] if params["kind"] == "linear" else -x[0] - x[0] ** 3
    return [x[1], spring + u[0]]


def branch_on_state(t, x, u, params):
    if x[0] > 0.2:
        return [x[1], -2.0 * x[0] + u[0]]
    return [x[1], -0.5 * x[0] + u[0]]


def rounded_state(t, x, u, params):
    return [x[1], -x[0] - 0.1 * int(10 * x[1]) + u[0]]


def mass_matrix(t, x, u, params):
    q1, q2, v1, v2 = x
    mass = np.array([[2.0 + np.cos(q2), 0.5 * np.cos(q2)], [0.5 * np.cos(q2), 1.0]])
    force = np.array([u[0] - np.sin(q1), -np.sin(q1 + q2)]) - 0.1 * np.array([v1, v2])
    return np.concatenate([[v1, v2], np.linalg.solve(mass, force)])


def float_casts(t, x, u, params):
    position, speed = float(x[0]), float(x[1])
    return [speed, -position + 0.3 * math.sqrt(1.0 + speed**2) + float(u[0])]


class Bicycle:
    """Parameters in an object, methods as functions."""

    def __init__(self, wheelbase):
        self.wheelbase = wheelbase

    def update(self, t, x, u, params):
        return [u[0] * np.cos(x[2]), u[0] * np.sin(x[2]), u[0] / self.wheelbase * np.tan(u[1])]


def second_order(update, name, **params):
    return ct.nlsys(update, lambda t, x, u, params: [x[0]], states=2, inputs=1, outputs=1, name=name, params=params)


def _loop():
    def block(t, x, u, params):
        return [-params["k"] * x[0] + u[0]]

    slow, fast = (
        ct.nlsys(
            block, lambda t, x, u, params: [x[0]], states=1, inputs=["u"], outputs=["y"], name=name, params={"k": k}
        )
        for name, k in (("slow", 1.0), ("fast", 7.0))
    )
    return ct.interconnect(
        [slow, fast],
        connections=[["slow.u", "-fast.y"], ["fast.u", "slow.y"]],
        inplist=["slow.u"],
        outlist=["fast.y"],
        name="loop",
    )


SYSTEMS = {
    "list_return": (second_order(list_return, "list_return"), lambda x, u: [[0, 1], [-np.cos(x[0]), -0.2]], "traced"),
    "array_return": (
        second_order(array_return, "array_return", k=2.0),
        lambda x, u: [[0, 1], [-6 * x[0] ** 2, -0.5]],
        "traced",
    ),
    "closed_over_matrix": (second_order(closed_over_matrix, "closed_over_matrix"), lambda x, u: A, "traced"),
    "math_functions": (
        second_order(math_functions, "math_functions"),
        lambda x, u: [
            [0, 1],
            [
                -9.81 * cos(x[0]) + 0.1 * x[1] * sin(x[0]) / ((2 + cos(x[0])) ** 2 + x[1] ** 2),
                -2 * x[1] * u[0] * math.exp(-(x[1] ** 2)) + 0.1 * (2 + cos(x[0])) / ((2 + cos(x[0])) ** 2 + x[1] ** 2),
            ],
        ],
        "traced",
    ),
    "clipped": (
        second_order(clipped, "clipped"),
        lambda x, u: [[0, 1], [-1 if x[0] > 0 else -3, -0.8 * abs(x[1])]],
        "traced",
    ),
    "unpacking": (
        second_order(unpacking, "unpacking", mu=1.5),
        lambda x, u: [[0, 1], [-3 * x[0] * x[1] - 1, 1.5 * (1 - x[0] ** 2)]],
        "autodiff",
    ),
    "in_place": (second_order(in_place, "in_place"), lambda x, u: [[0, 1], [-2, -0.5 / np.cosh(x[1]) ** 2]], "traced"),
    "helper_functions": (
        second_order(helper_functions, "helper_functions"),
        lambda x, u: [[0, 1], [-np.cos(x[0]), -3 / (1 + 100 * x[1] ** 2)]],
        "traced",
    ),
    "branch_on_parameters": (
        second_order(branch_on_parameters, "branch_on_parameters", kind="cubic"),
        lambda x, u: [[0, 1], [-1 - 3 * x[0] ** 2, 0]],
        "autodiff",
    ),
    "branch_on_state": (
        second_order(branch_on_state, "branch_on_state"),
        lambda x, u: [[0, 1], [-2 if x[0] > 0.2 else -0.5, 0]],
        "finite difference",
    ),
    "rounded_state": (second_order(rounded_state, "rounded_state"), None, "finite difference"),
    "mass_matrix": (
        ct.nlsys(mass_matrix, lambda t, x, u, params: x[:2], states=4, inputs=1, outputs=2, name="mass_matrix"),
        None,
        "traced",
    ),
    "float_casts": (
        second_order(float_casts, "float_casts"),
        lambda x, u: [[0, 1], [-1, 0.3 * x[1] / math.sqrt(1 + x[1] ** 2)]],
        "traced",
    ),
    "bicycle": (
        ct.nlsys(
            Bicycle(2.5).update,
            lambda t, x, u, params: [np.hypot(x[0] + 3, x[1] - 3), x[2]],
            states=3,
            inputs=2,
            outputs=2,
            name="bicycle",
        ),
        lambda x, u: [[0, 0, -u[0] * np.sin(x[2])], [0, 0, u[0] * np.cos(x[2])], [0, 0, 0]],
        "traced",
    ),
    "loop": (_loop(), lambda x, u: [[-1, -1], [1, -7]], "autodiff"),
}
