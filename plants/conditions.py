"""Conditions under which estimators are tried: data that differ from a scenario's nominal ones, batched."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import control as ct
import numpy as np
import scipy.linalg
import xarray as xr

from plants.catalog.scenario import Scenario
from plants.model import StateSpaceModel, discretize
from plants.noise import GaussianNoise, OutlierNoise, StudentNoise
from plants.parameters import parameters_as_inputs
from plants.schema import from_arrays
from plants.simulate import DivergedError, draw_inputs, simulate


@dataclass(frozen=True)
class Condition:
    """What is different from nominal; the estimators are told the nominal plant, noise and start all the same.

    Parameters
    ----------
    parameter_error : float
        Every parameter that the plant's system stores is wrong by this share, up or down, in each trajectory.
    noise : callable, optional
        From the scenario's noise to that of the data.
    missing : float
        Share of the samples, of each output, that are not measured.
    bias : float
        Constant error of each sensor, up or down for each trajectory, in standard deviations of its noise.
    anywhere : bool
        Trajectories start anywhere in the operating region, which the told start knows nothing of.

    Raises
    ------
    ValueError
        A share outside [0, 1), a negative bias.
    """

    parameter_error: float = 0.0
    noise: Callable[[GaussianNoise], GaussianNoise] | None = None
    missing: float = 0.0
    bias: float = 0.0
    anywhere: bool = False

    def __post_init__(self):
        for name in ("parameter_error", "missing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if not self.bias >= 0:
            raise ValueError(f"bias must not be negative, got {self.bias!r}")

    def simulate(self, setting: Scenario, trajectories: int, steps: int, seed: int) -> xr.Dataset:
        """Simulate a scenario under this condition.

        Parameters
        ----------
        setting : Scenario
            Plant and nominal conditions.
        trajectories, steps : int
            Sizes.
        seed : int
            Of everything drawn.

        Returns
        -------
        xarray.Dataset
            As :meth:`Scenario.simulate` makes it, of the nominal plant's signals; covariances and start are the nominal
            ones.

        Raises
        ------
        ValueError
            A parameter error for a plant that stores no parameters.
        """
        rng = np.random.default_rng([seed, 1])
        noise = self.noise(setting.noise) if self.noise else setting.noise
        if self.parameter_error or self.anywhere:
            data = setting.at_sensor_rates(self._simulate_other(setting, trajectories, steps, seed, noise, rng))
        else:
            data = setting.simulate(trajectories, steps, seed, noise=noise)
        y = data["y"].values
        spread = np.sqrt(np.diag(setting.noise.measurement_cov))
        y = y + self.bias * spread * rng.choice([-1.0, 1.0], (len(y), 1, y.shape[2]))
        y[rng.random(y.shape) < self.missing] = np.nan
        nominal = {"process_cov": setting.noise.process_cov, "measurement_cov": setting.noise.measurement_cov}
        return data.assign(y=(data["y"].dims, y), **{k: (data[k].dims, v) for k, v in nominal.items()})

    def _simulate_other(self, setting, trajectories, steps, seed, noise, rng):
        """With other parameters or starts."""
        told, nu = setting.model, setting.model.ninputs
        u = draw_inputs(told, trajectories, steps, setting.excitation, np.random.default_rng([seed, 2])).numpy()
        u = u.transpose(1, 0, 2)
        model = told
        if self.parameter_error:
            model, values = varied_model(setting)
            signs = rng.choice([-1.0, 1.0], (trajectories, 1, len(values)))
            factors = values * (1 + self.parameter_error * signs)
            u = np.concatenate([u, np.broadcast_to(factors, (trajectories, steps, len(values)))], axis=-1)
            if noise.input_cov is not None:
                exact = np.zeros((len(values), len(values)))
                noise = replace(noise, input_cov=scipy.linalg.block_diag(noise.input_cov, exact))
        start = {"initial_mean": setting.initial_mean, "initial_cov": setting.initial_cov}
        nominal = simulate(told, trajectories=1, steps=1, seed=0, **start)
        if self.anywhere:
            region = told.operating_region
            first = rng.uniform(region.state_lower, region.state_upper, (trajectories, told.nstates))
            start = {"initial_mean": first, "initial_cov": np.zeros(told.nstates)}
        data = simulate(model, trajectories=trajectories, steps=steps, seed=seed, noise=noise, inputs=u, **start)
        return from_arrays(
            told,
            y=data["y"].values,
            u=data["u"].values[..., :nu],
            x=data["x"].values,
            initial_mean=nominal["initial_mean"].values,
            initial_cov=nominal["initial_cov"].values,
            noise=setting.noise,
            attrs={"seed": seed, "time_unit": setting.time_unit},
        )


def varied_model(setting: Scenario) -> tuple[StateSpaceModel, np.ndarray]:
    """Model of a scenario's plant with its parameters as further inputs, and their nominal values.

    Of a linear system the parameters are the entries of its matrices that are neither 0 nor 1 nor -1.
    """
    if not setting._varied:
        system, values = _stored_values(setting)
        if not values:
            raise ValueError(
                f"{system.name!r} stores no parameters that could be wrong: give them to control.nlsys, "
                "params={name: value}"
            )
        region = {**setting.operating_region, **{name: tuple(sorted((0.5 * v, 1.5 * v))) for name, v in values.items()}}
        model = discretize(
            parameters_as_inputs(system, values),
            setting.dt,
            substeps=setting.substeps,
            operating_region=region,
            angle_states=setting.angle_states,
            angle_outputs=setting.angle_outputs,
        )
        setting._varied.append((model, np.array(list(values.values()))))
    return setting._varied[0]


def _stored_values(setting):
    """System that can be given other parameters, and their values; none for transfer functions and interconnections."""
    system = setting.system
    if isinstance(system, ct.StateSpace):
        system = _with_entries_as_parameters(system)
    if not isinstance(system, ct.NonlinearIOSystem) or isinstance(system, ct.InterconnectedSystem):
        return system, {}
    return system, {name: float(v) for name, v in system.params.items() if isinstance(v, int | float) and v}


def _with_entries_as_parameters(system: ct.StateSpace) -> ct.NonlinearIOSystem:
    """Return the same system, nonlinear in name, with its matrices' entries as parameters."""
    matrices = {name: np.asarray(getattr(system, name), dtype=float) for name in "ABCD"}
    params = {
        f"{name}[{i},{j}]": value
        for name, matrix in matrices.items()
        for (i, j), value in np.ndenumerate(matrix)
        if value not in (0.0, 1.0, -1.0)
    }

    def row(names, i, parts, params):
        return sum(
            params.get(f"{name}[{i},{j}]", matrices[name][i, j]) * part[j]
            for name, part in zip(names, parts, strict=True)
            for j in range(matrices[name].shape[1])
        )

    return ct.nlsys(
        lambda t, x, u, params: [row("AB", i, (x, u), params) for i in range(system.nstates)],
        lambda t, x, u, params: [row("CD", i, (x, u), params) for i in range(system.noutputs)],
        states=system.state_labels,
        inputs=system.input_labels or 0,
        outputs=system.output_labels,
        dt=system.dt,
        params=params,
        name=system.name,
    )


def outliers(noise: GaussianNoise) -> OutlierNoise:
    """One measurement in twenty is ten times as noisy."""
    return OutlierNoise(
        noise.process_cov, noise.measurement_cov, input_cov=noise.input_cov, probability=0.05, scale=10.0
    )


def heavy_tails(noise: GaussianNoise) -> StudentNoise:
    """Give measurements Student's t noise of three degrees of freedom, with the same covariance."""
    return StudentNoise(noise.process_cov, noise.measurement_cov, input_cov=noise.input_cov, degrees_of_freedom=3.0)


CONDITIONS = {
    "nominal": Condition(),
    "wrong start": Condition(anywhere=True),
    "parameters 10 %": Condition(parameter_error=0.1),
    "parameters 30 %": Condition(parameter_error=0.3),
    "heavy tails": Condition(noise=heavy_tails),
    "outliers": Condition(noise=outliers),
    "missing samples": Condition(missing=0.3),
    "sensor bias": Condition(bias=1.0),
}
"""What the robustness table looks at."""


def conditions_for(setting: Scenario) -> dict[str, Condition]:
    """Those of `CONDITIONS` that a plant can be put under: without wrong parameters where it stores none.

    Parameters
    ----------
    setting : Scenario
        Plant and nominal conditions.

    Returns
    -------
    dict
        ``{name: Condition}``.
    """
    varied = bool(_stored_values(setting)[1])
    return {name: condition for name, condition in CONDITIONS.items() if varied or not condition.parameter_error}


def check_conditions(conditions: Mapping[str, Condition]) -> None:
    """Raise TypeError or ValueError unless it is ``{name: Condition}`` and holds one."""
    if not isinstance(conditions, Mapping):
        raise TypeError(f"conditions must be a mapping {{name: Condition}}, got {type(conditions).__name__}")
    for name, condition in conditions.items():
        if not isinstance(condition, Condition):
            raise TypeError(f"conditions[{name!r}] must be a plants.Condition, got {type(condition).__name__}")
    if not conditions:
        raise ValueError("conditions is empty: give {name: Condition}")


def simulate_mixture(
    setting: Scenario, conditions: Mapping[str, Condition], trajectories: int, steps: int, seed: int
) -> xr.Dataset:
    """Simulate equal parts of several conditions: training data for an estimator that is to hold under all of them.

    Parameters
    ----------
    setting : Scenario
        Plant and nominal conditions.
    conditions : mapping
        ``{name: Condition}``, for instance of :func:`conditions_for`. One under which a trajectory does not stay
        finite is left out with a warning: with wrong parameters a plant can run away.
    trajectories : int
        In all, at least one for each condition.
    steps : int
        Samples of each.
    seed : int
        Of everything drawn.

    Returns
    -------
    xarray.Dataset
        Trajectories of all conditions in random order, as :meth:`Condition.simulate` makes them.

    Raises
    ------
    TypeError, ValueError
        No conditions, or something else among them; fewer trajectories than conditions; a parameter error for a
        plant that stores no parameters; no condition is left.
    """
    if not isinstance(setting, Scenario):
        raise TypeError(f"setting must be a plants.Scenario, got {type(setting).__name__}")
    check_conditions(conditions)
    for name, value, least in (("trajectories", trajectories, 1), ("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if trajectories < len(conditions):
        raise ValueError(
            f"trajectories must be at least one for each condition, got {trajectories} for {len(conditions)} conditions"
        )
    # each its own, or half of the trajectories would be the same motion measured in another way
    seeds = np.random.default_rng([seed, 4]).integers(2**31, size=len(conditions)).tolist()
    parts, failed = [], ""
    for i, (name, condition) in enumerate(conditions.items()):
        try:
            parts.append(condition.simulate(setting, (trajectories + i) // len(conditions), steps, seeds[i]))
        except DivergedError as error:
            failed = f"condition {name!r} is left out: {error}"
            warnings.warn(failed, stacklevel=2)
    if not parts:
        raise ValueError(failed)
    data = xr.concat(
        parts, "trajectory", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
    )
    return data.isel(trajectory=np.random.default_rng([seed, 3]).permutation(data.sizes["trajectory"]))
