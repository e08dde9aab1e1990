"""A body falling through the atmosphere, tracked by range only: a classic re-entry problem."""

import control as ct

from plants.arrays import array_namespace
from plants.catalog.scenario import Scenario
from plants.noise import GaussianNoise


def falling_body(
    density_scale: float = 5e-5, radar_distance: float = 1e5, radar_height: float = 1e5
) -> ct.NonlinearIOSystem:
    """Vertical fall with drag exp(-gamma h) v^2 beta; the radar stands aside and measures the distance.

    M. Athans, R. P. Wishner, A. Bertolini, "Suboptimal state estimation for continuous-time nonlinear systems from
    discrete noisy measurements", IEEE Trans. Automatic Control 13(5), 1968; units are feet, as there.

    Parameters
    ----------
    density_scale : float
        gamma, 1/ft.
    radar_distance, radar_height : float
        ft.

    Returns
    -------
    control.NonlinearIOSystem
        States altitude (1e4 ft), speed (downwards, 1e4 ft/s), ballistic (1e-3 / ft), no inputs, output range (1e4 ft).
    """
    unit = 1e4

    def update(t, x, u, params):
        xp = array_namespace(x)
        # beta v^2 in 1e4 ft/s^2: 1e-3 / ft * (1e4 ft/s)^2 = 10 * 1e4 ft/s^2
        return [-x[1], -10 * xp.exp(-params["gamma"] * unit * x[0]) * x[1] * xp.abs(x[1]) * x[2], 0 * x[2]]

    def output(t, x, u, params):
        xp = array_namespace(x)
        return [xp.sqrt((radar_distance / unit) ** 2 + (x[0] - radar_height / unit) ** 2)]

    return ct.nlsys(
        update,
        output,
        name="falling_body",
        states=["altitude", "speed", "ballistic"],
        inputs=0,
        outputs=["range"],
        params={"gamma": density_scale},
    )


def scenario() -> Scenario:
    """From 300 000 ft at 20 000 ft/s, drag known to 20 %; range with 300 ft standard deviation every 0.15 s."""
    return Scenario(
        falling_body(),
        dt=0.15,
        operating_region={"altitude": (0, 32), "speed": (0, 2.2), "ballistic": (0.2, 2.0)},
        noise=GaussianNoise([1e-4**2, 1e-3**2, 2e-3**2], [0.03**2]),
        substeps=8,
        initial_mean=(30.0, 2.0, 1.0),
        initial_cov=(0.3**2, 0.05**2, 0.2**2),
        description="re-entry, range only",
    )
