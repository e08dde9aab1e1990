"""What a plant needs to become an experiment: sample time, region, noise, excitation, angles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import control as ct
import numpy as np
import xarray as xr

from plants.model import StateSpaceModel, discretize
from plants.noise import GaussianNoise
from plants.simulate import simulate


@dataclass(frozen=True, eq=False)
class Scenario:
    """A plant with the conditions under which it is observed.

    Parameters
    ----------
    system : control.InputOutputSystem
        The plant.
    dt : float
        Sample time.
    operating_region : mapping
        ``{label: (lower, upper)}``; starts are drawn about its centre.
    noise : GaussianNoise
        Process and measurement noise.
    excitation : callable, optional
        Input signal (:mod:`plants.signals`); None for random steps.
    angle_states, angle_outputs : tuple of str
        Labels of angles, in radians.
    substeps : int
        Integration steps per sample.
    time_unit : str
        Unit of time.
    description : str
        One line for people.
    initial_mean, initial_cov : tuple, optional
        Of the starts, (nstates,) each, covariances as variances; default as in :func:`plants.simulate`.
    every : mapping
        ``{output: n}`` for slower sensors: measured at every n-th sample, the first included, NaN between.

    Raises
    ------
    TypeError, ValueError
        `every` is not a mapping, or names something else than an output, or not a positive integer.
    """

    system: ct.InputOutputSystem
    dt: float
    operating_region: Mapping
    noise: GaussianNoise
    excitation: Callable | None = None
    angle_states: tuple = ()
    angle_outputs: tuple = ()
    substeps: int = 1
    time_unit: str = "s"
    description: str = ""
    initial_mean: tuple | None = None
    initial_cov: tuple | None = None
    every: Mapping = field(default_factory=dict)
    _model: list = field(default_factory=list, repr=False, init=False)
    _varied: list = field(default_factory=list, repr=False, init=False)

    def __post_init__(self):
        if not isinstance(self.every, Mapping):
            raise TypeError(f"every must be a mapping {{output: n}}, got {type(self.every).__name__}")
        for label, n in self.every.items():
            if label not in self.system.output_labels:
                raise ValueError(f"every names {label!r}, which is not among the outputs {self.system.output_labels}")
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ValueError(f"every[{label!r}] must be a positive integer, got {n!r}")

    @property
    def model(self) -> StateSpaceModel:
        """The sampled plant; made once."""
        if not self._model:
            self._model.append(
                discretize(
                    self.system,
                    self.dt,
                    substeps=self.substeps,
                    operating_region=self.operating_region,
                    angle_states=self.angle_states,
                    angle_outputs=self.angle_outputs,
                )
            )
        return self._model[0]

    def simulate(self, trajectories: int, steps: int, seed: int, noise: GaussianNoise | None = None) -> xr.Dataset:
        """Simulate under these conditions, or with other noise; see :func:`plants.simulate`."""
        data = simulate(
            self.model,
            trajectories=trajectories,
            steps=steps,
            seed=seed,
            noise=noise or self.noise,
            inputs=self.excitation,
            initial_mean=self.initial_mean,
            initial_cov=self.initial_cov,
        )
        data.attrs["time_unit"] = self.time_unit
        return self.at_sensor_rates(data)

    def at_sensor_rates(self, data: xr.Dataset) -> xr.Dataset:
        """Remove what slower sensors do not measure; see `every`."""
        y = data["y"].values.copy()
        for label, n in self.every.items():
            y[:, np.arange(y.shape[1]) % n != 0, self.system.output_labels.index(label)] = np.nan
        return data.assign(y=(data["y"].dims, y)) if self.every else data
