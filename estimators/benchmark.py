"""Compare estimators on the same data: predicted with predicted, filtered with filtered."""

import time
import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from estimators.base import Estimator
from estimators.gaussian.kalman import steady_state
from estimators.metrics import errors, nees, nrmse, rmse, settling_time
from estimators.run import estimate_batch
from plants.schema import to_tensors, validate

KINDS = ("predicted", "filtered")
PHASES = ("transient", "steady")


def benchmark(
    estimators: Mapping[str, Estimator],
    dataset: xr.Dataset,
    *,
    transient: float | None = None,
    x0=None,
    P0=None,
    progress: bool = False,
) -> xr.Dataset:
    """Score estimators on trajectories with known states.

    All are started from the same told state. The first `transient` units of time, in which the
    wrong start is forgotten, are scored apart from the rest.

    Parameters
    ----------
    estimators : mapping
        ``{name: estimator}``, all of the same plant.
    dataset : xarray.Dataset
        Test trajectories with true states.
    transient : float, optional
        Length of the transient in units of time; default a third of the record.
    x0, P0 : array_like, optional
        Start told to the estimators; default from the dataset.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        ``rmse`` and ``nrmse`` (estimator, kind, phase, state), ``settling_time``, ``nees`` (mean over
        steady state divided by nstates: 1 when the covariance is right), ``step_time`` (median
        seconds of one streaming step of one trajectory), ``diverged`` (trajectories), ``x_hat``
        (estimator, kind, trajectory, time, state) and, for linear plants whose noise is known,
        ``optimum`` (kind, state), the Kalman RMSE in steady state. ``.est.summary()`` makes a table.

    Warns
    -----
    UserWarning
        An estimator failed: its row is NaN, ``attrs['failures']`` says why, the others are scored.

    Raises
    ------
    ValueError
        Every estimator failed (the error of the first); no estimators, different plants, data without states, a
        transient as long as the record.
    """
    model = check_same_plant(estimators)
    validate(dataset, model, states=True)
    truth, steps = dataset["x"].values, dataset.sizes["time"]
    transient = steps * model.dt / 3 if transient is None else transient
    first = round(transient / model.dt)
    if not 0 < first < steps:
        raise ValueError(
            f"transient must lie between 0 and the record's length {steps * model.dt:g}, got {transient:g}"
        )
    names, nx = list(estimators), model.nstates
    parts = {"transient": slice(0, first), "steady": slice(first, steps)}
    table = np.full((2, len(names), 2, 2, nx), np.nan)  # rmse and nrmse
    x_hat = np.full((len(names), 2, *truth.shape), np.nan)
    settling, consistency, latency = (np.full(len(names), np.nan) for _ in range(3))
    diverged, failures = np.zeros(len(names), dtype=int), {}
    for i, name in enumerate(tqdm(names, desc="benchmark", unit="estimator", disable=not progress)):
        try:
            estimate = estimate_batch(estimators[name], dataset, x0=x0, P0=P0, progress=progress)
        except (ValueError, FloatingPointError, np.linalg.LinAlgError) as error:
            failures[name] = error
            continue
        for j, kind in enumerate(KINDS):
            values = getattr(estimate, kind)
            if values is None:
                continue
            x_hat[i, j] = values.numpy()
            error = errors(model, x_hat[i, j], truth)
            for k, part in enumerate(parts.values()):
                table[:, i, j, k] = rmse(error[:, part]), nrmse(error[:, part], truth[:, part])
        error = errors(model, x_hat[i, 0], truth)
        diverged[i] = int((~np.isfinite(error)).any(axis=(1, 2)).sum())
        settling[i] = settling_time(error, dataset["time"].values, table[0, i, 0, 1])
        if estimate.predicted_cov is not None and not diverged[i]:
            consistency[i] = (
                nees(error[:, parts["steady"]], estimate.predicted_cov[:, parts["steady"]].numpy()).mean() / nx
            )
        latency[i] = step_time(estimators[name], dataset, x0, P0)
    if len(failures) == len(names):
        raise failures[names[0]]
    for name, error in failures.items():
        warnings.warn(f"{name} failed and has no numbers: {error}", UserWarning, stacklevel=2)
    dims = ("estimator", "kind", "phase", "state")
    variables = {
        "rmse": (dims, table[0]),
        "nrmse": (dims, table[1]),
        "settling_time": ("estimator", settling),
        "nees": ("estimator", consistency),
        "step_time": ("estimator", latency),
        "diverged": ("estimator", diverged),
        "x_hat": (("estimator", "kind", "trajectory", "time", "state"), x_hat),
    }
    if model.matrices is not None and "process_cov" in dataset and "input_cov" not in dataset:
        A, _, C, _ = model.matrices
        limit = steady_state(A, C, dataset["process_cov"].values, dataset["measurement_cov"].values)
        variables["optimum"] = (("kind", "state"), np.sqrt([np.diag(limit.prior_cov), np.diag(limit.posterior_cov)]))
    coordinates = {
        "estimator": names,
        "kind": list(KINDS),
        "phase": list(PHASES),
        "state": list(model.state_labels),
        "time": dataset["time"].values,
    }
    return xr.Dataset(
        variables,
        coordinates,
        {
            "plant": model.name,
            "dt": model.dt,
            "transient": first * model.dt,
            "time_unit": dataset.attrs.get("time_unit", ""),
            "trajectories": len(truth),
            "failures": "\n".join(f"{name}: {error}" for name, error in failures.items()),
        },
    )


def check_same_plant(estimators: Mapping[str, Estimator], model=None):
    """Return the plant's model; TypeError or ValueError where there is no estimator or one is of another plant."""
    if not isinstance(estimators, Mapping):
        raise TypeError(f"estimators must be a mapping {{name: estimator}}, got {type(estimators).__name__}")
    if not estimators:
        raise ValueError("estimators is empty: give {name: estimator}")
    for name, estimator in estimators.items():
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimators[{name!r}] must be a filter or an observer, got {type(estimator).__name__}")
        model = estimator.model if model is None else model
        if (estimator.model.state_labels, estimator.model.dt) != (model.state_labels, model.dt):
            raise ValueError(f"estimator {name!r} is for the plant {estimator.model.name!r}, not for {model.name!r}")
    return model


def rmse_by_phase(model, estimate, dataset: xr.Dataset, first: int) -> tuple[np.ndarray, int]:
    """RMSE (kind, phase, state) over the trajectories that stayed finite, and how many did not."""
    truth, table, lost = dataset["x"].values, np.full((len(KINDS), len(PHASES), model.nstates), np.nan), 0
    for j, kind in enumerate(KINDS):
        values = getattr(estimate, kind)
        if values is None:
            continue
        error = errors(model, values.numpy(), truth)
        kept = np.isfinite(error).all(axis=(1, 2))
        lost = max(lost, int((~kept).sum()))
        if kept.any():
            table[j] = [rmse(error[kept, part]) for part in (slice(0, first), slice(first, None))]
    return table, lost


def step_time(estimator, dataset, x0, P0, steps: int = 60) -> float:
    """Median seconds of one `step` for one trajectory."""
    _, u, y = to_tensors(dataset)
    start = torch.as_tensor(np.array(dataset["initial_mean"].values if x0 is None else x0, dtype=float))
    start = start[0] if start.ndim == 2 else start
    state = estimator.init(start, dataset["initial_cov"].values if P0 is None and "initial_cov" in dataset else P0)
    taken = []
    for k in range(min(steps, y.shape[1])):
        began = time.perf_counter()
        state, _ = estimator.step(state, u[0, k], y[0, k])
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


@xr.register_dataset_accessor("est")
class BenchmarkAccessor:
    """``table.est``: views of a benchmark Dataset."""

    def __init__(self, dataset: xr.Dataset):
        self._dataset = dataset

    def summary(self) -> pd.DataFrame:
        """One row for each estimator, kind of estimate and state.

        Returns
        -------
        pandas.DataFrame
            Transient and steady RMSE, steady NRMSE, ratio of the steady RMSE to the best estimator
            of its kind and, where known, to the Kalman optimum.
        """
        data = self._dataset
        if "rmse" not in data:
            raise ValueError("this dataset is not a benchmark: it has no variable rmse")
        rows = []
        for kind in data["kind"].values:
            for state in data["state"].values:
                here = data.sel(kind=kind, state=state)
                best = float(here["rmse"].sel(phase="steady").min())
                for name in data["estimator"].values:
                    one = here.sel(estimator=name)
                    steady = float(one["rmse"].sel(phase="steady"))
                    row = {
                        "estimate": kind,
                        "state": state,
                        "estimator": name,
                        "transient RMSE": float(one["rmse"].sel(phase="transient")),
                        "steady RMSE": steady,
                        "steady NRMSE": float(one["nrmse"].sel(phase="steady")),
                        "to best": steady / best,
                    }
                    if "optimum" in data:
                        row["to optimum"] = steady / float(here["optimum"])
                    rows.append(row)
        return pd.DataFrame(rows).set_index(["estimate", "state", "estimator"]).dropna(how="all")

    def robustness(self, kind: str = "predicted") -> pd.DataFrame:
        """One row for each condition and estimator of a :func:`estimators.monte_carlo`.

        Parameters
        ----------
        kind : {'predicted', 'filtered'}
            Of estimate.

        Returns
        -------
        pandas.DataFrame
            For each phase the RMSE over that of the best other estimator, geometric mean over states; its standard
            error over seeds, paired; trajectories that diverged and are not in it.
        """
        table = self._dataset
        if "condition" not in table.dims:
            raise ValueError("this dataset is not a Monte Carlo: it has no conditions")
        rows = []
        for condition in table["condition"].values:
            here = table.sel(condition=condition, kind=kind)
            for name in table["estimator"].values:
                row = {"condition": condition, "estimator": name}
                for phase in table["phase"].values:
                    ratio = _to_best_other(here["rmse"].sel(phase=phase), name)
                    row[phase] = np.exp(ratio.mean())
                    row[f"{phase} se"] = (
                        row[phase] * ratio.std(ddof=1) / np.sqrt(len(ratio)) if len(ratio) > 1 else np.nan
                    )
                row["diverged"] = int(here["diverged"].sel(estimator=name).sum())
                rows.append(row)
        return pd.DataFrame(rows).set_index(["condition", "estimator"])


def _to_best_other(rmse, name):
    """Log ratio to the other estimator that is best over all seeds, mean over states, for each seed."""
    logs = np.log(rmse).mean("state", skipna=False)
    others = [other for other in rmse["estimator"].values if other != name]
    means = logs.sel(estimator=others).mean("seed", skipna=False).values
    if not np.isfinite(means).any():
        return np.full(rmse.sizes["seed"], np.nan)
    return (logs.sel(estimator=name) - logs.sel(estimator=others[int(np.nanargmin(means))])).values
