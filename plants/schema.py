"""The trajectory Dataset: built, checked, stored, and turned into tensors; here and nowhere else.

Variables ``x`` (trajectory, time, state), ``u`` (trajectory, time, input), ``y`` (trajectory,
time, output); ``y`` may hold NaN, 'not measured at this time'. Optional: ``initial_mean``,
``initial_cov``, ``process_cov``, ``measurement_cov``, ``input_cov``, what an estimator may be told. netCDF
attributes cannot hold matrices, hence variables.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from plants.arrays import as_covariance, as_tensor
from plants.model import StateSpaceModel

SCHEMA = "contracting-observers trajectories 1"
_DIMS = {
    "x": ("trajectory", "time", "state"),
    "u": ("trajectory", "time", "input"),
    "y": ("trajectory", "time", "output"),
}


def from_arrays(
    model: StateSpaceModel,
    *,
    y,
    u=None,
    x=None,
    initial_mean=None,
    initial_cov=None,
    noise=None,
    attrs: Mapping | None = None,
) -> xr.Dataset:
    """Build a Dataset from arrays, one trajectory or many.

    Parameters
    ----------
    model : StateSpaceModel
        Gives labels, sample time and angle declarations.
    y : array_like or pandas.DataFrame
        (time, noutputs) or (trajectory, time, noutputs); NaN where nothing was measured. The columns of a DataFrame
        are matched by their names, here and for `u` and `x`.
    u : array_like, optional
        (time, ninputs) or (trajectory, time, ninputs); may be left out for a plant without inputs.
    x : array_like, optional
        True states, where they are known, (time, nstates) or (trajectory, time, nstates).
    initial_mean, initial_cov : array_like, optional
        What an estimator is told of the first state: (nstates,) and (nstates, nstates).
    noise : GaussianNoise, optional
        Covariances an estimator may be told.
    attrs : mapping, optional
        Further attributes (numbers or strings).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ValueError
        Shapes do not fit the model or each other; NaN or infinity in `x` or `u`, infinity in `y`.
    """
    if u is None and model.ninputs:
        raise ValueError(f"u is missing: the plant has the inputs {list(model.input_labels)}")
    y = _by_name(y, "y", model.output_labels)
    u, x = _by_name(u, "u", model.input_labels), _by_name(x, "x", model.state_labels)
    y = as_tensor(y, "y", model.noutputs, finite=False)
    if bool(torch.isinf(y).any()):
        raise ValueError("y holds infinite values: use NaN for what was not measured")
    if y.ndim not in (2, 3):
        raise ValueError(
            f"y must have shape (time, {model.noutputs}) or (trajectory, time, {model.noutputs}), "
            f"time before features, got {tuple(y.shape)}"
        )
    arrays = {"y": y}
    arrays["u"] = y.new_zeros(*y.shape[:-1], 0) if u is None else as_tensor(u, "u", model.ninputs)
    if x is not None:
        arrays["x"] = as_tensor(x, "x", model.nstates)
    for name, array in arrays.items():
        if array.shape[:-1] != y.shape[:-1]:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}, which does not go with y of shape {tuple(y.shape)}"
            )
    if y.ndim == 2:
        arrays = {name: array[None] for name, array in arrays.items()}
    variables = {name: (_DIMS[name], array.numpy()) for name, array in arrays.items()}
    if initial_mean is not None:
        variables["initial_mean"] = ("state", as_tensor(initial_mean, "initial_mean", model.nstates).numpy())
    if initial_cov is not None:
        variables["initial_cov"] = (("state", "state_"), as_covariance(initial_cov, "initial_cov", model.nstates))
    if noise is not None:
        noise.check_sizes(model)
        variables["process_cov"] = (("state", "state_"), noise.process_cov)
        variables["measurement_cov"] = (("output", "output_"), noise.measurement_cov)
        if noise.input_cov is not None:
            variables["input_cov"] = (("input", "input_"), noise.input_cov)
    coordinates = {
        "state": list(model.state_labels),
        "output": list(model.output_labels),
        "time": np.arange(y.shape[-2]) * model.dt,
    }
    if model.ninputs:  # netCDF cannot store a string coordinate of length zero
        coordinates["input"] = list(model.input_labels)
    region = model.operating_region
    described = {
        "schema": SCHEMA,
        "plant": model.name,
        "dt": model.dt,
        "angle_states": ",".join(model.angle_states),
        "angle_outputs": ",".join(model.angle_outputs),
        "state_lower": region.state_lower,
        "state_upper": region.state_upper,
    }
    return xr.Dataset(variables, coordinates, described | dict(attrs or {}))


def _by_name(table, name, labels):
    if not isinstance(table, pd.DataFrame):
        return table
    if set(table.columns) != set(labels) or len(table.columns) != len(labels):
        raise ValueError(f"{name} must have the columns {list(labels)}, got {list(table.columns)}")
    return table[list(labels)].to_numpy(dtype=float)


def validate(dataset: xr.Dataset, model: StateSpaceModel, *, states: bool = False) -> None:
    """Check that a Dataset follows the schema and belongs to `model`.

    Parameters
    ----------
    dataset : xarray.Dataset
        Candidate.
    model : StateSpaceModel
        The plant it must fit: labels in the same order, same sample time.
    states : bool
        Require the true states ``x``.

    Raises
    ------
    TypeError
        Not an xarray Dataset.
    ValueError
        Variables, dimensions, labels, sample time or values are wrong.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"the data must be an xarray.Dataset as simulate() and from_arrays() make, got {type(dataset).__name__}"
        )
    needed = ["u", "y"] + ["x"] * states
    missing = [name for name in needed if name not in dataset]
    if missing:
        raise ValueError(
            f"the dataset lacks {missing}; it holds {sorted(dataset.data_vars)}"
            + (": true states are needed here" if missing == ["x"] else "")
        )
    labels = {"x": model.state_labels, "u": model.input_labels, "y": model.output_labels}
    for name in [n for n in ("x", "u", "y") if n in dataset]:
        if dataset[name].dims != _DIMS[name]:
            raise ValueError(f"{name} must have the dimensions {_DIMS[name]}, got {dataset[name].dims}")
        dim = _DIMS[name][-1]
        found = tuple(str(v) for v in dataset[dim].values) if dim in dataset.coords else ("",) * dataset.sizes[dim]
        if (found != labels[name]) if dim in dataset.coords else (len(found) != len(labels[name])):
            raise ValueError(
                f"{dim} labels of the dataset {list(found)} "
                f"are not those of the plant {model.name!r}, {list(labels[name])}"
            )
    dt = dataset.attrs.get("dt")
    if dt is None or not np.isclose(dt, model.dt, rtol=1e-9):
        raise ValueError(f"the dataset is sampled at dt={dt}, the plant {model.name!r} at dt={model.dt:g}")
    for name in ("x", "u"):
        if name in dataset and not np.isfinite(dataset[name].values).all():
            at = np.argwhere(~np.isfinite(dataset[name].values))[0].tolist()
            raise ValueError(
                f"{name} must be finite, got {dataset[name].values[tuple(at)]} "
                f"at trajectory {at[0]}, time step {at[1]}, {_DIMS[name][-1]} {at[2]}"
            )


def check_measured(dataset: xr.Dataset, name: str) -> None:
    """Raise ValueError where an output of `dataset`, called `name` in the message, was never measured."""
    never = np.isnan(dataset["y"].values).all(axis=(0, 1))
    if never.any():
        labels = [str(label) for label in dataset["output"].values[never]]
        raise ValueError(f"{name} holds no measurement of {labels}: y is NaN throughout")


def to_tensors(dataset: xr.Dataset) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Take the arrays out of a Dataset.

    Parameters
    ----------
    dataset : xarray.Dataset
        Following the schema.

    Returns
    -------
    x, u, y : torch.Tensor
        float64 copies, (trajectory, time, feature); x is None where the true states are unknown.
    """

    def tensor(name):
        return torch.from_numpy(np.array(dataset[name].values, dtype=np.float64)) if name in dataset else None

    return tensor("x"), tensor("u"), tensor("y")


def from_csv(
    path,
    model: StateSpaceModel,
    *,
    time: str,
    outputs: Mapping[str, str],
    inputs: Mapping[str, str] | None = None,
    states: Mapping[str, str] | None = None,
    resample: bool = False,
) -> xr.Dataset:
    """Read one measured trajectory from a CSV file with a header.

    Parameters
    ----------
    path : path-like
        The file.
    model : StateSpaceModel
        The plant the data belong to.
    time : str
        Column of times, in the plant's unit.
    outputs, inputs, states : mapping
        ``{label of the model: column of the file}``; an output without a column is never measured.
    resample : bool
        Bring the record onto the model's sample times where the recorded ones jitter or differ. A channel is
        interpolated between two of its own samples that are at most 1.5 sample times apart. Elsewhere an output is
        taken where it was measured within half a sample time and is NaN where it was not (a slower sensor, a gap),
        and an input is held.

    Returns
    -------
    xarray.Dataset
        One trajectory.

    Raises
    ------
    ValueError
        Unreadable file, unknown label or column, times that do not increase, or a sample time
        other than the model's while `resample` is False.
    """
    for name, mapping in (("outputs", outputs), ("inputs", inputs), ("states", states)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f"{name} must be a mapping {{label of the plant: column of the file}}, got {mapping!r}")
    try:
        table = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"cannot read {path} as CSV: {error}") from error
    inputs, states = dict(inputs or {}), dict(states or {})
    for what, mapping, known in (
        ("outputs", outputs, model.output_labels),
        ("inputs", inputs, model.input_labels),
        ("states", states, model.state_labels),
    ):
        if set(mapping) - set(known):
            raise ValueError(f"{what} names {sorted(set(mapping) - set(known))}, the plant has {list(known)}")
    columns = [time, *outputs.values(), *inputs.values(), *states.values()]
    absent = [c for c in columns if c not in table.columns]
    if absent:
        raise ValueError(f"{path} has no columns {absent}; it has {list(table.columns)}")
    if set(inputs) != set(model.input_labels):
        raise ValueError(f"inputs must name a column for each of {list(model.input_labels)}, got {sorted(inputs)}")
    if states and set(states) != set(model.state_labels):
        raise ValueError(
            f"states must name a column for each of {list(model.state_labels)} or be left out, got {sorted(states)}"
        )
    try:
        seconds = table[time].to_numpy(dtype=float)
        values = {c: table[c].to_numpy(dtype=float) for c in columns}
    except ValueError as error:
        raise ValueError(f"{path} holds something that is not a number: {error}") from error
    if len(seconds) < 2 or np.any(~(np.diff(seconds) > 0)):
        raise ValueError(f"the times in column {time!r} of {path} must increase, and there must be at least two")
    grid = np.arange(seconds[0], seconds[-1] + 1e-9 * model.dt, model.dt)
    if resample:
        angles = {mapping[label] for mapping, labels in ((outputs, model.angle_outputs), (states, model.angle_states))
                  for label in labels if label in mapping}  # fmt: skip
        held = set(inputs.values())
        values = {
            c: _resampled(grid, seconds, v, model.dt, held=c in held, angle=c in angles) for c, v in values.items()
        }
    elif len(grid) != len(seconds) or np.abs(grid - seconds).max() > 0.05 * model.dt:
        raise ValueError(
            f"the samples of {path} are not {model.dt:g} apart (median {np.median(np.diff(seconds)):g}, "
            f"from {np.diff(seconds).min():g} to {np.diff(seconds).max():g}): "
            "give the model this dt, or resample=True to interpolate"
        )
    length = len(grid) if resample else len(seconds)

    def stack(labels, mapping):
        return (
            np.stack(
                [values[mapping[label]] if label in mapping else np.full(length, np.nan) for label in labels], axis=-1
            )
            if labels
            else None
        )

    return from_arrays(
        model,
        y=stack(model.output_labels, outputs),
        u=stack(model.input_labels, inputs),
        x=stack(model.state_labels, states) if states else None,
        attrs={"source": str(Path(path).name)},
    )


def _resampled(grid, seconds, values, dt, *, held: bool, angle: bool) -> np.ndarray:
    """One channel of a record at the times `grid`; see `from_csv`."""
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(grid), np.nan)
    s, v = seconds[known], np.unwrap(values[known]) if angle else values[known]
    right = np.clip(np.searchsorted(s, grid), 0, len(s) - 1)
    left = np.clip(np.searchsorted(s, grid, side="right") - 1, 0, len(s) - 1)
    near = np.where(np.abs(s[left] - grid) <= np.abs(s[right] - grid), left, right)
    close = np.abs(s[near] - grid) <= (0.5 + 1e-9) * dt
    sparse = v[left] if held else np.where(close, v[near], np.nan)
    dense = (s[right] - s[left] <= 1.5 * dt) & (s[left] <= grid) & (grid <= s[right])
    found = np.where(dense, np.interp(grid, s, v), sparse)
    return (found + np.pi) % (2 * np.pi) - np.pi if angle else found


def save_dataset(dataset: xr.Dataset, path) -> None:
    """Write netCDF (h5netcdf).

    Parameters
    ----------
    dataset : xarray.Dataset
        Trajectories or estimates.
    path : path-like
        The file; replaced where it exists.

    Raises
    ------
    ValueError
        The place cannot be written.
    """
    try:
        dataset.to_netcdf(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def load_dataset(path) -> xr.Dataset:
    """Read trajectories written by `save_dataset`.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ValueError
        The file is missing, unreadable or not one of ours.
    """
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            dataset = stored.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} as netCDF: {error}") from error
    if dataset.attrs.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is netCDF but not a trajectory dataset of this toolkit "
            f"(attribute schema is {dataset.attrs.get('schema')!r}, needed {SCHEMA!r})"
        )
    return dataset


def split(dataset: xr.Dataset, counts: Sequence[int]) -> list[xr.Dataset]:
    """Divide a Dataset into consecutive groups of trajectories.

    Parameters
    ----------
    dataset : xarray.Dataset
        Trajectories.
    counts : sequence of int
        Trajectories in each group.

    Returns
    -------
    list of xarray.Dataset

    Raises
    ------
    ValueError
        More are asked for than there are.
    """
    if sum(counts) > dataset.sizes["trajectory"]:
        raise ValueError(
            f"counts {list(counts)} ask for {sum(counts)} trajectories, the dataset has {dataset.sizes['trajectory']}"
        )
    edges = np.cumsum([0, *counts])
    return [dataset.isel(trajectory=slice(a, b)) for a, b in pairwise(edges)]


def cut(dataset: xr.Dataset, steps: int) -> xr.Dataset:
    """Cut trajectories into shorter ones; a rest at the end is left out.

    Parameters
    ----------
    dataset : xarray.Dataset
        Trajectories.
    steps : int
        Samples of a piece.

    Returns
    -------
    xarray.Dataset
        The pieces, all first ones first; times start at zero. Where there are several to a
        trajectory, ``initial_mean`` and ``initial_cov``, which are about its start, are left out.

    Raises
    ------
    ValueError
        The trajectories are shorter than `steps`.
    """
    pieces = dataset.sizes["time"] // steps
    if pieces < 1:
        raise ValueError(f"steps is {steps}, the trajectories have only {dataset.sizes['time']} samples")
    parts = [
        dataset.isel(time=slice(i * steps, (i + 1) * steps)).assign_coords(
            time=dataset["time"].values[:steps] - dataset["time"].values[0]
        )
        for i in range(pieces)
    ]
    records = xr.concat([part[list(_DIMS.keys() & part.data_vars)] for part in parts], dim="trajectory")
    about_the_start = {"initial_mean", "initial_cov"} if pieces > 1 else set()
    rest = dataset.drop_vars(list((_DIMS.keys() | about_the_start) & set(dataset.data_vars)))
    return records.assign({name: rest[name] for name in rest.data_vars}).assign_attrs(dataset.attrs)
