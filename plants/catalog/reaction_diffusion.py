"""A bistable reaction-diffusion equation on a line, the observer example of the REN and R2DN papers."""

import control as ct
import numpy as np

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise
from plants.signals import random_walk


def reaction_diffusion(
    nodes: int = 51, length: float = 10.0, courant: float = 0.1, updates: int = 5
) -> ct.NonlinearIOSystem:
    """Equation xi_t = xi_zz + R(xi)/2, R = xi (1 - xi)(xi - 1/2), both ends held at the input, sensed in the middle.

    Explicit Euler on a uniform grid with inner step ``courant * dz^2``, several inner steps a sample; the input is
    constant over a sample. Revay, Wang and Manchester, "Recurrent equilibrium networks", IEEE TAC 2023, section on
    observers; Barbara, Wang and Manchester, arXiv 2504.01250. The published code returns the state before the last of
    its five inner steps: ``updates=4`` reproduces its data.

    Parameters
    ----------
    nodes : int
        Grid points, ends included; the sensor sits at ``nodes // 2``.
    length : float
        Of the line, in units in which the diffusivity is 1.
    courant : float
        Inner step over dz^2; explicit Euler is stable up to 1/2.
    updates : int
        Inner steps a sample.

    Returns
    -------
    control.NonlinearIOSystem
        Discrete, ``dt = updates * courant * dz^2``: 0.02. States xi[0] ... (concentrations, stable at 0 and 1), input
        the boundary value, output the concentration in the middle; all dimensionless.

    Raises
    ------
    ValueError
        Fewer than three nodes, no length, no inner step, or an unstable one.
    """
    if nodes < 3 or updates < 1 or not 0 < courant <= 0.5 or not length > 0:
        raise ValueError(
            "nodes must be at least 3, updates at least 1, length positive and courant in (0, 1/2], "
            f"got nodes={nodes}, updates={updates}, length={length}, courant={courant}"
        )
    dz = length / (nodes - 1)
    inner, middle = courant * dz**2, nodes // 2

    def update(t, x, u, params):
        join = np.concatenate if array_namespace(x) is np else array_namespace(x).cat
        for _ in range(updates):
            inside = x[1:-1]
            diffusion = (x[:-2] + x[2:] - 2 * inside) / dz**2
            reaction = inside * (1 - inside) * (inside - 0.5)
            x = join([u[0:1], inside + inner * (diffusion + reaction / 2), u[0:1]])
        return x

    return ct.nlsys(
        update,
        lambda t, x, u, params: x[middle : middle + 1],
        name="reaction_diffusion",
        states=[f"xi[{i}]" for i in range(nodes)],
        inputs=["boundary"],
        outputs=["middle"],
        dt=updates * inner,
    )


def scenario() -> Scenario:
    """51 nodes, the boundary a random walk; noise of 0.002 a sample on every node and of 0.02 on the sensor."""
    system = reaction_diffusion()
    return Scenario(
        system,
        dt=system.dt,
        operating_region={label: (0, 1) for label in [*system.state_labels, "boundary"]},
        noise=GaussianNoise(np.full(system.nstates, 0.002**2), [0.02**2]),
        excitation=random_walk(0.1),
        time_unit="",
        description="reaction-diffusion on a line, one sensor in the middle",
    )
