"""The main job: from a plant to tuned filters, a trained observer, a table and a certificate."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import control as ct
import numpy as np
import pandas as pd
import torch
import xarray as xr

from estimators import observer_file
from estimators.benchmark import benchmark
from estimators.certificates.certify import certify, certify_parts
from estimators.certificates.error_bound import ErrorBound, certify_error
from estimators.certificates.result import Certificate
from estimators.design import noise_of
from estimators.gaussian import ExogenousKalmanFilter, ExtendedKalmanFilter, UnscentedKalmanFilter
from estimators.monte_carlo import monte_carlo
from estimators.observer import R2DNObserver
from estimators.startup import Startup
from estimators.training import FitResult
from plants import SCENARIOS, Scenario, scenario
from plants.model import StateSpaceModel, discretize
from plants.noise import GaussianNoise
from plants.schema import cut, from_csv, load_dataset, split, validate
from plants.simulate import simulate

STEPS = 200
FEWEST = 20
"""A piece of data shorter than this says nothing about an observer."""
COUNTS = {"train": 4096, "validation": 256, "test": 512}
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclass
class Comparison:
    """What the main job produced."""

    model: StateSpaceModel
    datasets: dict[str, xr.Dataset]
    estimators: dict
    history: FitResult
    table: xr.Dataset
    certificate: Certificate
    certificates: dict[str, Certificate]
    robustness: xr.Dataset | None


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
    setting: Scenario, data: xr.Dataset | None, seed: int, say: Callable[[str], None]
) -> tuple[dict[str, xr.Dataset], GaussianNoise]:
    """Simulate training, validation and test data, or divide the given; and the noise a filter may start from."""
    model = setting.model
    if data is None:
        datasets = {
            name: setting.simulate(count, STEPS, seed=3 * seed + i) for i, (name, count) in enumerate(COUNTS.items())
        }
        noise = setting.noise
        say(
            "data: simulated, "
            + ", ".join(f"{count} {name}" for name, count in COUNTS.items())
            + f" trajectories of {STEPS} samples"
        )
    else:
        datasets = divide(data)
        noise = GaussianNoise(*noise_of(datasets["train"], model))
        say(
            "data: given, "
            + ", ".join(f"{part.sizes['trajectory']} {name}" for name, part in datasets.items())
            + f" pieces of {datasets['train'].sizes['time']} samples"
        )
    return datasets, noise


def compare(
    setting: Scenario,
    data: xr.Dataset | None = None,
    *,
    seed: int = 0,
    updates: int = 2500,
    robustness_seeds: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Tune EKF and UKF, train an R2DN observer on the same data, compare them on test data and certify the observer.

    "R2DN+KF" is a Kalman filter linearised along the observer, with the noise that the EKF was tuned to.

    Parameters
    ----------
    setting : Scenario
        The plant and its conditions.
    data : xarray.Dataset, optional
        Trajectories to use instead of simulated ones.
    seed : int
        Of data and training.
    updates : int
        Rollout updates of the training.
    robustness_seeds : int
        How many datasets of each of ``plants.CONDITIONS`` the estimators are tried on; 0, and for given data: none.
    checkpoint : path-like, optional
        Where the training keeps its best parameters.
    progress : bool
        Show progress bars.
    say : callable
        Where lines of text go.

    Returns
    -------
    Comparison
    """
    model = setting.model
    say(repr(model))
    datasets, noise = prepare(setting, data, seed, say)
    train = datasets["train"]
    estimators = {"EKF": ExtendedKalmanFilter(model, noise), "UKF": UnscentedKalmanFilter(model, noise)}
    for name, estimator in estimators.items():
        tuned = estimator.tune(train)
        deviations = [np.sqrt(np.diag(c)) for c in (tuned.noise.process_cov, tuned.noise.measurement_cov)]
        say(
            f"{name} tuned by maximum likelihood: log-likelihood {tuned.log_likelihood_before:.4f} -> "
            f"{tuned.log_likelihood:.4f} a sample; process noise {_numbers(deviations[0])}, "
            f"measurement noise {_numbers(deviations[1])} (standard deviations)"
        )
    observer, history = train_observer(
        model, datasets, seed=seed, updates=updates, checkpoint=checkpoint, progress=progress, say=say
    )
    along = ExogenousKalmanFilter(model, estimators["EKF"].noise, observer)
    estimators = {"R2DN": observer, "R2DN+KF": along, **estimators}
    table = benchmark(estimators, datasets["test"])
    certificates = {name: certify(estimator, datasets["test"]) for name, estimator in estimators.items()}
    robustness = None
    if robustness_seeds and data is None:
        robustness = monte_carlo(estimators, setting, seeds=robustness_seeds, steps=STEPS, progress=progress)
    return Comparison(model, datasets, estimators, history, table, certificates["R2DN"], certificates, robustness)


def train_observer(
    model: StateSpaceModel,
    datasets: dict[str, xr.Dataset],
    *,
    seed: int,
    updates: int,
    checkpoint: Path | None,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[R2DNObserver, FitResult]:
    """Train an R2DN observer on what `prepare` returned; arguments as for `compare`."""
    observer = R2DNObserver(model, seed=seed)
    history = observer.fit(
        datasets["train"],
        datasets["validation"],
        updates=updates,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    if datasets["validation"].sizes["trajectory"] >= 10 * model.nstates and "initial_mean" in datasets["validation"]:
        observer.calibrate(datasets["validation"])
    say(
        f"R2DN trained: {sum(p.numel() for p in observer.network.parameters())} parameters, "
        f"{history.wall_time:.0f} s, kept update {history.best_update} of {history.updates[-1]}; "
        f"contraction rate designed {history.designed_rate:g}, refined {history.refined_rate:.4f}"
    )
    return observer, history


def certify_model(
    path,
    plant: str | None = None,
    data=None,
    *,
    dt: float | None = None,
    probability: float = 0.99,
    say: Callable[[str], None] = print,
) -> tuple[Certificate, ErrorBound | None]:
    """Certify the observer in a file, and bound its error on data of its plant.

    Parameters
    ----------
    path : path-like
        File of an R2DNObserver, or ``module:factory`` of something else that :func:`estimators.certify` takes.
    plant : str, optional
        Catalogue name or ``module:factory``. Without it the certificate is about the observer alone.
    data : path-like, optional
        Trajectories with true states.
    dt : float, optional
        For a bare continuous system.
    probability : float
        Of the tube.
    say : callable
        Where lines of text go.

    Returns
    -------
    certificate : Certificate
    bound : ErrorBound or None
    """
    if ":" in str(path) and not Path(path).exists():
        if plant is not None or data is not None:
            raise ValueError(f"--plant and --data go with a file of an observer, not with {path}")
        subject = call_factory(str(path))
        say(f"{path}: {type(subject).__name__}")
        return certify(subject), None
    file = observer_file.read(path)
    say(f"{path}: observer of {file.plant['name']!r}, {file.network.nstates} states, dt = {file.plant['dt']:g}")
    if plant is None:
        with torch.no_grad():
            startup = Startup(**file.startup)
            return certify_parts(file.network.explicit(), file.coordinates, startup, file.plant), None
    system = find_plant(plant)
    if dt is None and not isinstance(system, Scenario) and system.dt == 0:
        dt = file.plant["dt"]
    setting = as_scenario(system, dt, say, given_data=True)
    observer = R2DNObserver.load(path, setting.model)
    if data is None:
        return certify(observer), None
    trajectories, note = read_data(data, setting.model), None
    if trajectories.sizes["trajectory"] < 2 * probability / (1 - probability):
        trajectories = cut(trajectories, min(STEPS, trajectories.sizes["time"]))
        note = (
            f"few trajectories: cut into {trajectories.sizes['trajectory']} pieces of {trajectories.sizes['time']} "
            "samples, taken as if they were independent"
        )
        say(note)
    bound = certify_error(observer, setting.model, trajectories, probability=probability)
    if note is not None:
        bound.evidence["trajectories"] = note
    return certify(observer, trajectories), bound


def _numbers(values) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in values) + ")"
