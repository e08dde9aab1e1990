"""Search for the settings of an observer, with Optuna."""

import warnings
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from estimators.networks.recurrent import check_sizes
from estimators.observer import R2DNObserver
from estimators.training import default_learning_rate
from plants.model import StateSpaceModel


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    settings : dict
        Arguments of R2DNObserver of the best trial.
    fit : dict
        Arguments of its `fit` beside the data.
    loss : float
        Its validation loss.
    table : pandas.DataFrame
        A row for each trial, best first: loss, settings; loss is NaN where the trial failed, and `failure` says why.
    """

    settings: dict
    fit: dict
    loss: float
    table: pd.DataFrame


def search(
    model: StateSpaceModel,
    train: xr.Dataset,
    validation: xr.Dataset,
    *,
    trials: int = 30,
    updates: int = 800,
    one_step_updates: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Try settings of an R2DN observer by short trainings, and tell the best; the first trial is the defaults.

    Sizes of state, feedback and hidden layers, activation, contraction rate and learning rate are drawn by Optuna's
    tree-structured Parzen estimator. Train the winner for longer: what is best after a short training need not stay so.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    train, validation : xarray.Dataset
        Trajectories with true states.
    trials : int
        How many.
    updates, one_step_updates : int
        Of each training.
    seed : int
        Of the draws, the networks and their training.
    progress : bool
        Show a progress bar.

    Returns
    -------
    SearchResult

    Raises
    ------
    ImportError
        The extra ``search`` is not installed.
    ValueError
        Data or counts that cannot be used; every trial failed.

    Examples
    --------
    >>> found = search(model, train, validation)                                # doctest: +SKIP
    >>> observer = R2DNObserver(model, **found.settings)                        # doctest: +SKIP
    >>> observer.fit(train, validation, updates=5000, **found.fit)              # doctest: +SKIP
    """
    import optuna

    trials = check_sizes(trials=trials)
    nx, rows, found = model.nstates, [], {}

    def attempt(trial):
        settings = {
            "nstates": nx * trial.suggest_int("states per plant state", 1, 3),
            "nfeedback": trial.suggest_categorical("nfeedback", [8, 16, 32, 48, 64]),
            "hidden": (trial.suggest_categorical("width", [32, 48, 64, 96, 128]),) * trial.suggest_int("layers", 1, 3),
            "activation": trial.suggest_categorical("activation", ["relu", "elu", "tanh"]),
            "contraction_rate": 1 - trial.suggest_float("1 - contraction rate", 1e-3, 0.05, log=True),
        }
        factor = trial.suggest_float("learning rate factor", 0.3, 3.0, log=True)
        row = settings | {"learning_rate_factor": factor}
        observer = R2DNObserver(model, seed=seed, **settings)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the Kalman predictor contracts")
                observer.initialise(train)
                rate = factor * default_learning_rate(observer, train)
                counts = {"updates": updates, "one_step_updates": one_step_updates, "seed": seed}
                history = observer.fit(train, validation, learning_rate=rate, progress=False, **counts)
        except (ValueError, FloatingPointError) as error:  # a setting this plant does not allow: one trial less
            rows.append(row | {"loss": float("nan"), "failure": str(error)})
            raise optuna.TrialPruned(str(error)) from error
        loss = min(history.validation_loss)
        rows.append(row | {"loss": loss, "failure": ""})
        found[trial.number] = settings, {"learning_rate": rate}
        return loss

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        defaults = {"states per plant state": 2, "nfeedback": 32, "width": 64, "layers": 2, "activation": "relu"}
        study.enqueue_trial(defaults | {"1 - contraction rate": 0.01, "learning rate factor": 1.0})
        with tqdm(total=trials, desc="search", unit="trial", disable=not progress) as bar:
            study.optimize(attempt, n_trials=trials, callbacks=[lambda *_: bar.update()])
    finally:
        optuna.logging.set_verbosity(verbosity)
    table = pd.DataFrame(rows).sort_values("loss", ignore_index=True)
    if not found:
        raise ValueError(f"every trial failed; the first: {rows[0]['failure']}")
    best = min(found, key=lambda number: study.trials[number].value)
    return SearchResult(*found[best], float(study.trials[best].value), table)
