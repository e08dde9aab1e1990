"""Where the main job gets its plant and data from: names, files, simulation."""

import importlib
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import control as ct
import numpy as np
import pandas as pd
import xarray as xr

from estimators.design import noise_of
from plants import SCENARIOS, Scenario, conditions_for, scenario, simulate_mixture
from plants.model import StateSpaceModel, discretize
from plants.noise import GaussianNoise
from plants.schema import cut, from_csv, load_dataset, split, validate
from plants.simulate import simulate

STEPS = 200
FEWEST = 20
"""A piece of data shorter than this says nothing about an observer."""
COUNTS = {"train": 4096, "validation": 256, "test": 512}
TUNED, TUNED_MIXTURE = 64, 128
"""Trajectories that filters are tuned on, of one condition and of all."""
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def find_plant(name: str) -> ct.InputOutputSystem | Scenario:
    """Look up a catalogue name, or import a user's ``module:factory`` and call it.

    Parameters
    ----------
    name : str
        Catalogue name, or ``module:factory``, searched in the current folder too.

    Returns
    -------
    control.InputOutputSystem or Scenario

    Raises
    ------
    ValueError
        Unknown name, module or factory, a factory that raises or returns something else.
    """
    if ":" not in name:
        if name not in SCENARIOS:
            raise ValueError(
                f"unknown plant {name!r}: use one of {', '.join(sorted(SCENARIOS))}, or module:factory of your own"
            )
        return scenario(name)
    system = call_factory(name)
    if not isinstance(system, Scenario | ct.InputOutputSystem):
        raise ValueError(
            f"{name} must return a python-control system or a plants.Scenario, got {type(system).__name__}"
        )
    return system


def call_factory(name: str):
    """Import a user's ``module:factory``, from the current folder too, and call it; ValueError where it fails."""
    module_name, _, factory_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name.removesuffix(".py"))
    except Exception as error:  # the user's module may fail in any way
        raise ValueError(
            f"cannot import {module_name!r} (searched {Path.cwd()} and the installed packages): "
            f"{type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"{module_name!r} has no function {factory_name!r}")
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error


def as_scenario(
    system: ct.InputOutputSystem | Scenario, dt: float | None, say: Callable[[str], None], given_data: bool = False
) -> Scenario:
    """Complete a bare system with stated defaults: region (-1, 1), noise in proportion to what the plant does.

    With `given_data` neither is used, and nothing is simulated.
    """
    if isinstance(system, Scenario):
        if dt is not None:
            raise ValueError("--dt is for a bare python-control system; this plant comes with its own sample time")
        return system
    model = discretize(system, dt)
    spread = np.ones(model.nstates), np.ones(model.noutputs)
    if not given_data:
        say(
            "defaults for a bare system: starts and inputs within (-1, 1), inputs in steps of ten samples, process "
            "noise of 2 % and measurement noise of 10 % of each signal's standard deviation; return a plants.Scenario "
            "from your factory to choose them"
        )
        quiet = simulate(model, trajectories=64, steps=STEPS, seed=0)
        spread = tuple(np.maximum(quiet[name].values.std(axis=(0, 1)), 1e-12) for name in ("x", "y"))
    noise = GaussianNoise((0.02 * spread[0]) ** 2, (0.1 * spread[1]) ** 2)
    setting = Scenario(system, model.dt, {}, noise, time_unit="")
    setting._model.append(model)  # it was made above, and may have warned
    return setting


def read_data(path, model: StateSpaceModel) -> xr.Dataset:
    """Read the user's trajectories from netCDF or CSV.

    The netCDF is that of this toolkit; the CSV's columns are ``time`` and the plant's labels.
    """
    if str(path).endswith(".csv"):
        try:
            columns = pd.read_csv(path, nrows=0).columns
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"cannot read {path} as CSV: {error}") from error

        absent = [label for label in (*model.output_labels, *model.input_labels) if label not in columns]
        if absent:
            raise ValueError(f"{path} has no columns for {absent} of {model.name!r}; it has {list(columns)}")

        def same(labels):
            return {label: label for label in labels if label in columns}

        data = from_csv(
            path,
            model,
            time="time",
            outputs=same(model.output_labels),
            inputs=same(model.input_labels),
            states=same(model.state_labels),
        )
    else:
        data = load_dataset(path)
    validate(data, model, states=True)
    return data


def divide(data: xr.Dataset) -> dict[str, xr.Dataset]:
    """Split into training, validation and test data and cut into pieces.

    The split is by runs, in time where there are fewer than ten runs.
    """
    by_runs = data.sizes["trajectory"] >= 10
    shortest = data.sizes["time"] if by_runs else int(min(SHARES.values()) * data.sizes["time"])
    if shortest < FEWEST:
        raise ValueError(
            f"the data hold {data.sizes['trajectory']} trajectories of {data.sizes['time']} samples: too few to train, "
            f"validate and test on pieces of at least {FEWEST} samples"
        )
    if by_runs:
        test, validation = (max(1, round(SHARES[name] * data.sizes["trajectory"])) for name in ("test", "validation"))
        parts = split(data, (data.sizes["trajectory"] - test - validation, validation, test))
    else:
        edges = np.round(np.cumsum([0, *SHARES.values()]) * data.sizes["time"]).astype(int)
        parts = [data.isel(time=slice(a, b)) for a, b in pairwise(edges)]
    datasets = {name: cut(part, min(STEPS, part.sizes["time"])) for name, part in zip(SHARES, parts, strict=True)}
    x = datasets["train"]["x"].values
    return {
        name: part
        if "initial_mean" in part and by_runs
        else part.assign(  # all that is known of the start of a piece
            initial_mean=("state", x.mean(axis=(0, 1))),
            initial_cov=(("state", "state_"), np.diag(x.var(axis=(0, 1)) + np.finfo(float).tiny)),
        )
        for name, part in datasets.items()
    }


def prepare(
    setting: Scenario, data: xr.Dataset | None, seed: int, say: Callable[[str], None], mixture: bool = False
) -> tuple[dict[str, xr.Dataset], GaussianNoise]:
    """Simulate training, tuning, validation and test data, or divide the given; and the noise a filter may start from.

    With `mixture` training and validation data are equal parts of all conditions; what filters are tuned on, and test
    data, are nominal.
    """
    model = setting.model
    if data is None:
        datasets = {
            name: simulate_mixture(setting, conditions_for(setting), count, STEPS, seed=3 * seed + i)
            if mixture and name != "test"
            else setting.simulate(count, STEPS, seed=3 * seed + i)
            for i, (name, count) in enumerate(COUNTS.items())
        }
        noise = setting.noise
        how, unit = f"simulated, {'mixture of conditions' if mixture else 'nominal'}", "trajectories"
    else:
        datasets = divide(data)
        noise = GaussianNoise(*noise_of(datasets["train"], model))
        how, unit = "given", "pieces"
    sizes = ", ".join(f"{part.sizes['trajectory']} {name}" for name, part in datasets.items())
    say(f"data: {how}, {sizes} {unit} of {datasets['train'].sizes['time']} samples")
    datasets["tuning"] = setting.simulate(TUNED, STEPS, seed=3 * seed) if mixture else datasets["train"]
    return datasets, noise
