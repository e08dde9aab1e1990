"""The torque-driven double pendulum of DFKI's open data set, with its identified parameters."""

import control as ct
import numpy as np

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps

DESIGN_C1_MODEL_1 = {
    "I1": 0.031887199591513114,
    "I2": 0.05086984812807257,
    "Ir": 6.287203962819607e-05,
    "b1": 0.001,
    "b2": 0.001,
    "cf1": 0.16,
    "cf2": 0.12,
    "g": 9.81,
    "gr": 6.0,
    "l1": 0.2,
    "m1": 0.5234602302310271,
    "m2": 0.6255677234174437,
    "r1": 0.2,
    "r2": 0.25569305436052964,
}
"""Identified parameters, SI units.

They are design_C.1/model_1.0 of dfki-ric-underactuated-lab/double_pendulum (BSD-3-Clause).
"""


def measured_double_pendulum(parameters: dict | None = None) -> ct.NonlinearIOSystem:
    """Build the manipulator equations with rotor inertia, viscous friction and Coulomb friction cf atan(100 v).

    Parameters
    ----------
    parameters : dict, optional
        Inertias I1, I2, Ir (kg m^2), masses m1, m2 (kg), l1, r1, r2 (m), gear ratio gr, viscous b1, b2
        (N m s/rad), Coulomb cf1, cf2 (N m), gravity g; default ``DESIGN_C1_MODEL_1``.

    Returns
    -------
    control.NonlinearIOSystem
        States q1 (shoulder, 0 hanging), q2 (elbow, relative), v1, v2 (rad, rad/s); inputs tau1, tau2 (N m);
        outputs the two angles.
    """

    def update(t, x, u, params):
        xp, p = array_namespace(x), params
        q1, q2, v1, v2 = x[0], x[1], x[2], x[3]
        coupling = p["m2"] * p["l1"] * p["r2"]
        m11 = p["I1"] + p["I2"] + p["m2"] * p["l1"] ** 2 + 2 * coupling * xp.cos(q2) + (p["gr"] ** 2 + 1) * p["Ir"]
        m12 = p["I2"] + coupling * xp.cos(q2) - p["gr"] * p["Ir"]
        m22 = p["I2"] + p["gr"] ** 2 * p["Ir"]
        swirl = coupling * xp.sin(q2)
        pull2 = p["m2"] * p["g"] * p["r2"] * xp.sin(q1 + q2)
        pull1 = (p["m1"] * p["r1"] + p["m2"] * p["l1"]) * p["g"] * xp.sin(q1) + pull2
        f1 = u[0] - pull1 + swirl * (2 * v1 + v2) * v2 - p["b1"] * v1 - p["cf1"] * xp.arctan(100 * v1)
        f2 = u[1] - pull2 - swirl * v1**2 - p["b2"] * v2 - p["cf2"] * xp.arctan(100 * v2)
        det = m11 * m22 - m12**2
        return [v1, v2, (m22 * f1 - m12 * f2) / det, (m11 * f2 - m12 * f1) / det]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0], x[1]],
        name="measured_double_pendulum",
        states=["q1", "q2", "v1", "v2"],
        inputs=["tau1", "tau2"],
        outputs=["angle1", "angle2"],
        params=dict(parameters or DESIGN_C1_MODEL_1),
    )


def encoder_noise(dt: float, density: float = 5.0) -> GaussianNoise:
    """White angular acceleration of a density in (rad/s^2)^2 s, encoder step 3.815e-4 rad."""
    one = density * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
    return GaussianNoise(np.kron(one, np.eye(2)), [3.815e-4**2 / 12 + 1e-8] * 2)


def scenario() -> Scenario:
    """2 ms samples, two encoders."""
    return Scenario(
        measured_double_pendulum(),
        dt=0.002,
        operating_region={
            "q1": (-2, 2),
            "q2": (-2, 2),
            "v1": (-8, 8),
            "v2": (-12, 12),
            "tau1": (-3, 3),
            "tau2": (-3, 3),
        },
        noise=encoder_noise(0.002),
        excitation=steps(0.2),
        angle_states=("q1", "q2"),
        angle_outputs=("angle1", "angle2"),
        description="DFKI double pendulum, two encoder angles",
    )
