"""The forced Duffing oscillator with two wells."""

import control as ct

from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import steps


def duffing(damping: float = 0.3, stiffness: float = -1.0, cubic: float = 1.0) -> ct.NonlinearIOSystem:
    """Oscillator q'' + delta q' + alpha q + beta q^3 = force, dimensionless.

    With a negative stiffness it has wells at +-1 and a saddle between them (Guckenheimer and Holmes, "Nonlinear
    Oscillations, Dynamical Systems, and Bifurcations of Vector Fields", 1983, section 2.2).

    Parameters
    ----------
    damping, stiffness, cubic : float
        delta, alpha, beta.

    Returns
    -------
    control.NonlinearIOSystem
        States q and rate, input force, output q.
    """

    def update(t, x, u, params):
        p = params
        return [x[1], u[0] - p["damping"] * x[1] - p["stiffness"] * x[0] - p["cubic"] * x[0] ** 3]

    return ct.nlsys(
        update,
        lambda t, x, u, params: [x[0]],
        name="duffing",
        states=["q", "rate"],
        inputs=["force"],
        outputs=["position"],
        params={"damping": damping, "stiffness": stiffness, "cubic": cubic},
    )


def scenario() -> Scenario:
    """Push it from well to well by steps of force; position measured with a standard deviation of 0.2."""
    return Scenario(
        duffing(),
        dt=0.1,
        operating_region={"q": (-1.8, 1.8), "rate": (-1.8, 1.8), "force": (-1, 1)},
        noise=GaussianNoise([0.01**2, 0.04**2], [0.2**2]),
        excitation=steps(2.0),
        time_unit="",
        description="two wells, noisy position",
    )
