"""Robustness: estimators under many conditions and seeds, in this process or on Dask workers."""

import warnings
from collections.abc import Mapping

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from estimators.base import Estimator
from estimators.benchmark import KINDS, PHASES, check_same_plant, rmse_by_phase, step_time
from estimators.run import estimate_batch
from plants.catalog.scenario import Scenario
from plants.conditions import CONDITIONS, Condition, check_conditions


def monte_carlo(
    estimators: Mapping[str, Estimator],
    setting: Scenario,
    conditions: Mapping[str, Condition] = CONDITIONS,
    *,
    seeds: int = 20,
    first_seed: int = 1000,
    trajectories: int = 64,
    steps: int = 200,
    transient: float | None = None,
    client=None,
    progress: bool = True,
) -> xr.Dataset:
    """Score estimators on fresh data of every condition, with standard errors over seeds.

    Parameters
    ----------
    estimators : mapping
        ``{name: estimator}``, all of the scenario's plant.
    setting : Scenario
        Plant and nominal conditions.
    conditions : mapping
        ``{name: Condition}``.
    seeds : int
        Datasets of each condition; the data of a seed do not depend on how many there are, or where they are made.
    first_seed : int
        The first of them: another than the training's.
    trajectories, steps : int
        Of each dataset, in one batch.
    transient : float, optional
        Length of the transient in units of time; default a third of the record.
    client : dask.distributed.Client, optional
        Where to run; default here. Work that a worker loses is done again by another.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        ``rmse`` (condition, seed, estimator, kind, phase, state), NaN where an estimator failed; over the trajectories
        on which its estimates stayed finite; the others are counted in ``diverged`` (condition, seed, estimator).
        ``step_time`` (estimator), seconds of one streaming step, measured here. ``attrs['failures']`` has a line for
        each estimator and condition that failed. ``.est.robustness()`` makes a table.

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit; a failing estimator or condition does not raise, it is reported.
    """
    if not isinstance(setting, Scenario):
        raise TypeError(f"setting must be a plants.Scenario, got {type(setting).__name__}")
    for name, value in (("seeds", seeds), ("trajectories", trajectories), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    check_conditions(conditions)
    model = setting.model
    check_same_plant(estimators, model)
    transient = steps * model.dt / 3 if transient is None else transient
    first = round(transient / model.dt)
    if not 0 < first < steps:
        raise ValueError(
            f"transient must lie between 0 and the record's length {steps * model.dt:g}, got {transient:g}"
        )
    tasks = [(name, first_seed + k) for name in conditions for k in range(seeds)]
    found, failures = {}, {}

    def take(task, result):
        found[task] = result[:2]
        for who, why in result[2].items():
            failures.setdefault((task[0], who), why)

    bar = tqdm(total=len(tasks), desc="Monte Carlo", unit="dataset", disable=not progress)
    with bar:
        if client is None:
            for task in tasks:
                take(task, _score(estimators, setting, conditions[task[0]], trajectories, steps, first, task[1]))
                bar.update()
        else:
            from distributed import as_completed

            shared = client.scatter(_Shared(dict(estimators), setting), broadcast=True)
            futures = {
                client.submit(_score_shared, shared, conditions[name], trajectories, steps, first, seed, pure=False): (
                    name,
                    seed,
                )
                for name, seed in tasks
            }
            for future in as_completed(futures):
                take(futures[future], future.result())
                bar.update()
    shape = (len(conditions), seeds)
    dims = ("condition", "seed", "estimator")
    stacked = [np.array([found[task][i] for task in tasks]) for i in range(2)]
    stacked = [a.reshape(*shape, *a.shape[1:]) for a in stacked]
    sample = setting.simulate(1, min(steps, 60), seed=first_seed)
    return xr.Dataset(
        {
            "rmse": ((*dims, "kind", "phase", "state"), stacked[0]),
            "diverged": (dims, stacked[1]),
            "step_time": ("estimator", [_step_time_or_nan(e, sample) for e in estimators.values()]),
        },
        {
            "condition": list(conditions),
            "seed": [first_seed + k for k in range(seeds)],
            "estimator": list(estimators),
            "kind": list(KINDS),
            "phase": list(PHASES),
            "state": list(model.state_labels),
        },
        {
            "plant": model.name,
            "dt": model.dt,
            "transient": first * model.dt,
            "time_unit": setting.time_unit,
            "trajectories": trajectories,
            "steps": steps,
            "failures": "\n".join(f"{condition}, {who}: {why}" for (condition, who), why in failures.items()),
        },
    )


class _Shared:
    """What every task needs, sent to each worker once."""

    def __init__(self, estimators, setting):
        self.estimators, self.setting = estimators, setting


def _score_shared(shared, *task):
    return _score(shared.estimators, shared.setting, *task)


def _score(estimators, setting, condition, trajectories, steps, first, seed):
    """RMSE (estimator, kind, phase, state), diverged (estimator,), and reasons of failures, for one dataset."""
    table = np.full((len(estimators), len(KINDS), len(PHASES), setting.model.nstates), np.nan)
    diverged, failures = np.zeros(len(estimators), dtype=int), {}
    try:
        data = condition.simulate(setting, trajectories, steps, seed)
    except ValueError as error:
        return table, diverged, {"data": str(error)}
    for i, (name, estimator) in enumerate(estimators.items()):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*diverged on")  # counted instead
                estimate = estimate_batch(estimator, data)
        except (
            ValueError,
            FloatingPointError,
            np.linalg.LinAlgError,
        ) as error:  # reported in its row; the others go on
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        table[i], diverged[i] = rmse_by_phase(setting.model, estimate, data, first)
    return table, diverged, failures


def _step_time_or_nan(estimator, sample):
    try:
        return step_time(estimator, sample, None, None)
    except ValueError:
        return np.nan
