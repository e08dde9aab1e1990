"""The main job: from a plant to tuned filters, a trained observer, a table and a certificate."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from estimators import observer_file
from estimators.benchmark import benchmark
from estimators.certificates.certify import certify, certify_parts
from estimators.certificates.error_bound import ErrorBound, certify_error
from estimators.certificates.result import Certificate
from estimators.correction import FilterLostError, LearnedCorrection
from estimators.gaussian import ExogenousKalmanFilter, ExtendedKalmanFilter, UnscentedKalmanFilter
from estimators.gaussian.filter import GaussianFilter
from estimators.metrics import errors
from estimators.monte_carlo import monte_carlo
from estimators.observer import R2DNObserver
from estimators.run import estimate_batch
from estimators.sources import STEPS, TUNED, TUNED_MIXTURE, as_scenario, call_factory, find_plant, prepare, read_data
from estimators.startup import Startup
from estimators.training import FitResult
from plants import Scenario, conditions_for
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise
from plants.schema import cut

CORRECTION_UPDATES = 1500


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


def compare(
    setting: Scenario,
    data: xr.Dataset | None = None,
    *,
    seed: int = 0,
    updates: int = 2500,
    mixture: bool = False,
    robustness_seeds: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Tune EKF and UKF, train an R2DN observer, compare them on test data and certify the observer.

    All get the same trajectories, simulated or given. "R2DN+KF" is a Kalman filter linearised along the observer, with
    the noise that the EKF was tuned to; "EKF+R2DN" or "UKF+R2DN" the filter that is better on validation data, with its
    errors predicted by a network.

    Parameters
    ----------
    setting : Scenario
        The plant and its conditions.
    data : xarray.Dataset, optional
        Trajectories to use instead of simulated ones.
    seed : int
        Of data and training.
    updates : int
        Rollout updates of the observer's training, and at most so many of the correction's.
    mixture : bool
        Train on equal parts of all of ``plants.CONDITIONS`` instead of on nominal data. "EKF" and "UKF", and what
        builds on them, are tuned on nominal data all the same; "EKF, mixture" and "UKF, mixture" have the noise that
        the EKF is tuned to on the mixture.
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
    if mixture and data is not None:
        raise ValueError("mixture (--mixture) is of simulated data: give either it or data (--data)")
    model = setting.model
    say(repr(model))
    datasets, noise = prepare(setting, data, seed, say, mixture)
    filters = tune_filters(model, noise, datasets["tuning"], progress, say)
    mixed = {}
    if mixture:  # once: it takes longest of all, and both see the same innovations but for what is nonlinear
        first = ExtendedKalmanFilter(model, noise)
        tuned = _tune_and_tell(first, "EKF, mixture", datasets["train"], TUNED_MIXTURE, progress, say).noise
        mixed = {f"{name}, mixture": type(filter)(model, tuned) for name, filter in filters.items()}
    observer, history = train_observer(
        model, datasets, seed=seed, updates=updates, checkpoint=checkpoint, progress=progress, say=say
    )
    along = ExogenousKalmanFilter(model, filters["EKF"].noise, observer)
    corrected = correct_better(
        filters, datasets, seed=seed, updates=max(1, min(updates, CORRECTION_UPDATES)), progress=progress, say=say
    )
    estimators = {"R2DN": observer, "R2DN+KF": along, **corrected, **filters, **mixed}
    table = benchmark(estimators, datasets["test"])
    certificates = {name: certify(estimator, datasets["test"]) for name, estimator in estimators.items()}
    robustness = None
    if robustness_seeds and data is None:
        robustness = monte_carlo(
            estimators, setting, conditions_for(setting), seeds=robustness_seeds, steps=STEPS, progress=progress
        )
    return Comparison(model, datasets, estimators, history, table, certificates["R2DN"], certificates, robustness)


def tune_filters(
    model: StateSpaceModel,
    noise: GaussianNoise,
    data: xr.Dataset,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, GaussianFilter]:
    """EKF and UKF, tuned on data by maximum likelihood from a first noise, ``{"EKF": it, "UKF": it}``."""
    found = {"EKF": ExtendedKalmanFilter(model, noise), "UKF": UnscentedKalmanFilter(model, noise)}
    for name, filter in found.items():
        _tune_and_tell(filter, name, data, TUNED, progress, say)
    return found


def _tune_and_tell(filter, name, data, trajectories, progress, say):
    tuned = filter.tune(data, trajectories=trajectories, progress=progress)
    deviations = [np.sqrt(np.diag(c)) for c in (tuned.noise.process_cov, tuned.noise.measurement_cov)]
    say(
        f"{name} tuned by maximum likelihood: log-likelihood {tuned.log_likelihood_before:.4f} -> "
        f"{tuned.log_likelihood:.4f} a sample; process noise {_numbers(deviations[0])}, "
        f"measurement noise {_numbers(deviations[1])} (standard deviations)"
    )
    return tuned


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


def correct_better(
    filters: dict[str, GaussianFilter],
    datasets: dict[str, xr.Dataset],
    *,
    seed: int = 0,
    updates: int = CORRECTION_UPDATES,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, LearnedCorrection]:
    """Learn the correction of the filter that is better on validation data, ``{"EKF+R2DN": it}``.

    Nothing, and a line that tells why, where the filter is lost on all of the data or the training diverges.
    """
    typical = {name: _typical_error(filter, datasets["validation"]) for name, filter in filters.items()}
    # the first of those that are level within a percent
    better = next(name for name, error in typical.items() if error <= min(typical.values()) + 0.01)
    corrected = LearnedCorrection(filters[better], seed=seed)
    try:
        history = corrected.fit(
            datasets["train"], datasets["validation"], updates=updates, seed=seed, progress=progress
        )
    except (FilterLostError, FloatingPointError) as error:  # the other estimators are worth comparing
        say(f"{better}+R2DN left out: {error}")
        return {}
    say(
        f"{better}+R2DN trained: {history.wall_time:.0f} s, kept update {history.best_update} of "
        f"{history.updates[-1]}; loss {min(1.0, *history.validation_loss):.3f} of the filter's"
    )
    return {f"{better}+R2DN": corrected}


def _typical_error(filter, data):
    """Mean over trajectories and states of the log RMSE of filtered estimates; the states' spread for lost ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*diverged on")
        try:
            estimate = estimate_batch(filter, data)
        except (ValueError, FloatingPointError, np.linalg.LinAlgError):  # its row of the table will say so
            return np.inf
    x = data["x"].values
    found = np.sqrt(np.square(errors(filter.model, estimate.filtered, x)).mean(1))
    found = np.where(np.isfinite(found), found, x.std((0, 1)))
    return float(np.log(np.maximum(found, np.finfo(float).tiny)).mean())


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
