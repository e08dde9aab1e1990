"""Maximum-likelihood tuning of a Gaussian filter: noise covariances, start, parameters of the plant."""

import copy
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.optimize
import torch
import xarray as xr
from tqdm.auto import tqdm

from plants.arrays import as_covariance, as_tensor, covariance_factor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise
from plants.parameters import parameters_as_inputs, with_parameters
from plants.schema import check_measured, to_tensors, validate

LARGEST_CHANGE = 1e4
"""No standard deviation is changed by more than this factor."""
BEGINNING = 150
"""Samples of each record on which far guesses are tried."""
TOGETHER = 20_000
"""Trajectories that are filtered in one batch, those of all trial points together."""


class TuneResult(NamedTuple):
    """Outcome of tuning.

    Attributes
    ----------
    noise : GaussianNoise
        The covariances found; the filter now uses them.
    log_likelihood : float
        Mean log-likelihood per sample after tuning.
    log_likelihood_before : float
        The same before.
    evaluations : int
        Runs over the data.
    table : pandas.DataFrame
        One row for each number that was fitted, columns ``estimate``, ``standard_error`` and ``guess``. Errors come
        from the curvature of the likelihood (observed information). NaN where the data do not determine the number: a
        deviation that they only bound from above is the largest that costs no more than a tenth of a unit of
        log-likelihood, so that the filter does not trust what nothing speaks for.
    model : StateSpaceModel
        The plant with the parameters found; the filter now uses it.
    initial_mean, initial_cov : numpy.ndarray or None
        Start found, where it was asked for; give it to `run` as x0 and P0.
    """

    noise: GaussianNoise
    log_likelihood: float
    log_likelihood_before: float
    evaluations: int
    table: pd.DataFrame
    model: StateSpaceModel
    initial_mean: np.ndarray | None = None
    initial_cov: np.ndarray | None = None


def tune(
    estimator,
    dataset: xr.Dataset,
    *,
    parameters: Mapping[str, float] | None = None,
    start: bool = False,
    trajectories: int = 64,
    steps: int | None = None,
    P0=None,
    progress: bool = False,
) -> TuneResult:
    """Fit Q and R, and where asked the start and parameters of the plant, by maximum likelihood of the innovations.

    Every state's process noise and every output's measurement noise gets a factor of its own
    (correlations are kept, zeros stay zero), found by L-BFGS on the logarithms. The gradient is a central
    difference whose 2p+1 filters run as one batch: for plants of a few states that is a hundred times faster than
    differentiating through the record, and it works for any plant.

    Parameters
    ----------
    estimator : KalmanFilter, ExtendedKalmanFilter or UnscentedKalmanFilter
        Its noise is the starting guess, and is replaced by the result.
    dataset : xarray.Dataset
        Trajectories of the filter's plant. A long record that knows its true states, of a plant that does not depend
        on time, is tuned much faster in pieces: ``plants.cut(dataset, 200)``.
    parameters : mapping, optional
        Parameters of the plant to fit, each with a guess. The plant must be made by ``control.nlsys``.
    start : bool
        Fit the mean and the deviations of the initial state, common to all trajectories. The guess is ``initial_mean``
        of the dataset and `P0`.
    trajectories : int
        How many of them to use, the first ones.
    steps : int, optional
        How many samples of each, the first ones. Default: all.
    P0 : array_like, optional
        Covariance of the starts; default ``initial_cov`` of the dataset.
    progress : bool
        Count the batches of filter runs; how many it takes is not known before.

    Returns
    -------
    TuneResult

    Raises
    ------
    TypeError
        `parameters` for a plant that has none.
    ValueError
        The dataset does not fit, or says nothing about the start; a parameter that changes nothing.

    Warns
    -----
    UserWarning
        The data do not determine a parameter or the start that was asked for.
    """
    model = estimator.model
    validate(dataset, model)
    check_measured(dataset, "dataset")
    x, u, y = to_tensors(dataset)
    if P0 is None and "initial_cov" not in dataset:
        raise ValueError("P0 is missing: give it to tune, or initial_cov to from_arrays")
    P0 = as_covariance(dataset["initial_cov"].values if P0 is None else P0, "P0", model.nstates)
    for name, value in (("trajectories", trajectories), ("steps", y.shape[1] if steps is None else steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise TypeError(f"parameters must be a mapping {{name: guess}}, got {type(parameters).__name__}")
    u, y = u[:trajectories, :steps], y[:trajectories, :steps]
    if x is not None and not start:  # an unbiased start: the truth, off by a draw from P0
        offset = np.random.default_rng(0).standard_normal((len(y), model.nstates)) @ covariance_factor(P0).T
        mean = x[:trajectories, 0] + torch.from_numpy(offset)
    elif "initial_mean" in dataset:
        mean = torch.from_numpy(dataset["initial_mean"].values).expand(len(y), -1)
    else:
        raise ValueError("the dataset has neither true states nor initial_mean, so the filter cannot be started")
    unknowns = _Unknowns(estimator, parameters or {}, start, mean, P0)
    trial = copy.copy(estimator)
    trial.gate = None  # a filter that leaves everything out would be the likeliest
    if unknowns.parameters:
        system = parameters_as_inputs(model.system, unknowns.parameters)
        bounds = {name: sorted((0.5 * v, 1.5 * v)) if v else (-1, 1) for name, v in unknowns.parameters.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step too coarse for a guess that is far off
            trial._set_model(model.with_system(system, bounds))
        if trial._input_factor is not None:  # the parameters are inputs without noise
            trial._input_factor = torch.nn.functional.pad(trial._input_factor, (0, 0, 0, len(unknowns.parameters)))
    history = []

    def negative_log_likelihood(points: np.ndarray, length: int | None = None) -> np.ndarray:
        """Of the samples up to `length`, one value a point."""
        values, part = [], y[:, :length]
        for some in np.array_split(points, max(1, len(points) * len(y) // TOGETHER)):
            process, measurement, state, inputs = unknowns.at(some, trial, u[:, :length])
            estimate = trial.with_factors(process, measurement).estimate_sequence(state, inputs, part)
            values.append(-estimate.log_likelihood.sum(dim=(1, 2)).numpy())
        values = np.concatenate(values)
        history.append(len(values))
        bar.update()
        return np.where(np.isfinite(values), values, 1e6 * y.shape[0] * y.shape[1])

    samples, count = max(1, int((~torch.isnan(y)).any(dim=-1).sum())), unknowns.count

    def minimised(guess, length, iterations):
        h = 1e-3
        stencil = np.concatenate([np.zeros((1, count)), h * np.eye(count), -h * np.eye(count)])

        def value_and_gradient(point):
            values = negative_log_likelihood(point + stencil, length) / samples
            return values[0], (values[1 : count + 1] - values[count + 1 :]) / (2 * h)

        return scipy.optimize.minimize(
            value_and_gradient,
            guess,
            jac=True,
            method="L-BFGS-B",
            bounds=unknowns.bounds,
            options={"maxiter": iterations, "ftol": 1e-10, "gtol": 1e-6},
        )

    bar = tqdm(desc=f"tuning {type(estimator).__name__}", unit="batch", disable=not progress)
    before = negative_log_likelihood(np.zeros((1, count)))[0] / samples
    # where to start is settled on the beginning of the records
    short = min(y.shape[1], BEGINNING)
    guesses = np.zeros(count), *_coarse(lambda points: negative_log_likelihood(points, short), unknowns)
    best = min((minimised(guess, short, 50) for guess in guesses), key=lambda outcome: outcome.fun)
    point = minimised(best.x, None, 200).x
    errors = _standard_errors(negative_log_likelihood, point, unknowns)
    point = _bounded_from_above(negative_log_likelihood, point, errors, unknowns)
    after = negative_log_likelihood(point[None])[0] / samples
    bar.close()
    result = unknowns.result(point, errors, -after, -before, len(history))
    asked = [name for name in result.table.index if name in unknowns.parameters or name.startswith("initial")]
    unknown = [name for name in asked if np.isnan(result.table.loc[name, "standard_error"])]
    if unknown:
        warnings.warn(f"the data do not determine {unknown}", UserWarning, stacklevel=3)
    estimator._set_model(result.model)
    estimator._set_noise(result.noise)
    return result


class _Unknowns:
    """What is fitted, as a vector that is zero at the guess: logarithms of deviations, then relative changes."""

    def __init__(self, estimator, parameters, start, mean, P0):
        self.model, self.noise, self.start, self.mean, self.P0 = estimator.model, estimator.noise, start, mean, P0
        self.parameters = {name: float(as_tensor(value, name)) for name, value in parameters.items()}
        self.process, self.measurement = estimator._process_factor, estimator._noise_factor
        self.deviation = np.sqrt(np.diag(P0))
        kinds = {
            "process": np.sqrt(np.diag(self.noise.process_cov)) > 0,
            "measurement": np.sqrt(np.diag(self.noise.measurement_cov)) > 0,
            "initial std": (self.deviation > 0) & start,
            "initial mean": (self.deviation > 0) & start,
            "parameters": np.ones(len(self.parameters), dtype=bool),
        }
        self._fitted = {kind: np.flatnonzero(mask) for kind, mask in kinds.items()}
        self._size = {kind: len(mask) for kind, mask in kinds.items()}
        ends = np.cumsum([len(which) for which in self._fitted.values()])
        self.places = dict(zip(kinds, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
        self.count = int(ends[-1])
        log = np.log(LARGEST_CHANGE)
        deviations = ("process", "measurement", "initial std")
        limits = {kind: (-log, log) if kind in deviations else (None, None) for kind in kinds}
        self.bounds = [limits[kind] for kind in kinds for _ in self.places[kind]]
        values = np.array(list(self.parameters.values()))
        self._unit = np.where(values != 0, np.abs(values), 1.0)

    def relative_size(self, point) -> np.ndarray:
        """Size of the parameters at a point in their units, 1 where they are zero."""
        values = np.array(list(self.parameters.values())) + self._unit * point[self.places["parameters"]]
        return np.where(values != 0, np.abs(values), self._unit) / self._unit

    def _part(self, points, kind):
        """(points, size) of a kind, zero for what is not fitted."""
        whole = np.zeros((len(points), self._size[kind]))
        whole[:, self._fitted[kind]] = points[:, self.places[kind]]
        return whole

    def at(self, points, trial, u):
        """Noise factors, beliefs and inputs of trial filters, (point, trajectory, ...)."""

        def scaled(kind, factor):
            return torch.from_numpy(np.exp(self._part(points, kind)))[:, None, :, None] * factor

        mean = self.mean + torch.from_numpy(self.deviation * self._part(points, "initial mean"))[:, None, :]
        factor = scaled("initial std", torch.from_numpy(covariance_factor(self.P0)))
        state = trial.init(self.mean[0], self.P0)
        lower = trial.lower(factor)
        state = state._replace(mean=mean, factor=lower.expand(len(points), len(self.mean), *lower.shape[-2:]))
        values = np.array(list(self.parameters.values())) + self._unit * self._part(points, "parameters")
        if values.shape[1]:
            theta = torch.from_numpy(values)[:, None, None, :].expand(-1, *u.shape[:2], -1)
            u = torch.cat([u.expand(len(points), *u.shape), theta], dim=-1)
        return scaled("process", self.process), scaled("measurement", self.measurement), state, u

    def result(self, point, errors, *outcome):
        """Assemble what was found."""
        scale = {kind: np.exp(self._part(point[None], kind)[0]) for kind in ("process", "measurement", "initial std")}
        process, measurement, initial_cov = (
            covariance * np.outer(scale[kind], scale[kind])
            for kind, covariance in (
                ("process", self.noise.process_cov),
                ("measurement", self.noise.measurement_cov),
                ("initial std", self.P0),
            )
        )
        noise = GaussianNoise(process, measurement, input_cov=self.noise.input_cov)
        initial_mean = self.mean[0].numpy() + self.deviation * self._part(point[None], "initial mean")[0]
        guesses = np.array(list(self.parameters.values()))
        values = guesses + self._unit * point[self.places["parameters"]]
        states, outputs = self.model.state_labels, self.model.output_labels
        rows = []
        for kind, name, labels, covariance, guess in (
            ("process", "process std", states, process, self.noise.process_cov),
            ("measurement", "measurement std", outputs, measurement, self.noise.measurement_cov),
            ("initial std", "initial std", states, initial_cov, self.P0),
        ):
            for i, place in zip(self._fitted[kind], self.places[kind], strict=True):
                found, before = np.sqrt(covariance[i, i]), np.sqrt(guess[i, i])
                rows.append((f"{name} {labels[i]}", found, found * errors[place], before))
        for i, place in zip(self._fitted["initial mean"], self.places["initial mean"], strict=True):
            unit = self.deviation[i]
            rows.append((f"initial mean {states[i]}", initial_mean[i], unit * errors[place], float(self.mean[0, i])))
        for i, (name, place) in enumerate(zip(self.parameters, self.places["parameters"], strict=True)):
            rows.append((name, values[i], self._unit[i] * errors[place], guesses[i]))
        table = pd.DataFrame(rows, columns=["number", "estimate", "standard_error", "guess"]).set_index("number")
        model = self.model
        if self.parameters:
            model = model.with_system(with_parameters(model.system, dict(zip(self.parameters, values, strict=True))))
        start = (initial_mean, initial_cov) if self.start else (None, None)
        return TuneResult(noise, *outcome, table, model, *start)


def _coarse(negative_log_likelihood, unknowns) -> tuple[np.ndarray, np.ndarray]:
    """Search from a guess that may be far off, where a deviation that is much too small shows no slope to follow.

    All of Q against all of R on a grid of decades is one start; from there every deviation and every parameter on its
    own, twice, is another. The likelihood of two states' noise seen through one output may have a maximum in either.
    """
    scales = np.log(np.logspace(-4, 4, 9))
    process, measurement = (np.isin(np.arange(unknowns.count), unknowns.places[k]) for k in ("process", "measurement"))
    trials = np.array([a * process + b * measurement for a in scales for b in scales])
    point = together = trials[np.argmin(negative_log_likelihood(trials))]
    factors = np.logspace(-4, 4, 17) - 1  # of a parameter, as a relative change
    for _ in range(2):
        for kind in ("parameters", "process", "measurement", "initial std"):
            values = factors if kind == "parameters" else scales
            for place in unknowns.places[kind]:
                trials = np.repeat(point[None], len(values) + 1, axis=0)
                trials[1:, place] = values
                point = trials[np.argmin(negative_log_likelihood(trials))]
    return together, point


def _standard_errors(negative_log_likelihood, point, unknowns):
    """Square roots of the diagonal of the inverse Hessian; NaN for what takes part in a flat direction."""
    n = len(point)
    # a step and a judgement in units of what was found, not of the guess
    unit = np.ones(n)
    unit[unknowns.places["parameters"]] = unknowns.relative_size(point)
    h = 2e-3  # of 1e-2 the error would be as large as a flat direction is flat
    eye, pairs = h * np.diag(unit), [(i, j) for i in range(n) for j in range(i)]
    moves = [np.zeros(n), *eye, *-eye]
    moves += [sign * (eye[i] + eye[j]) for sign in (1, -1) for i, j in pairs]
    values = negative_log_likelihood(point + np.array(moves))
    centre, up, down = values[0], values[1 : n + 1], values[n + 1 : 2 * n + 1]
    H = np.diag(up + down - 2 * centre)
    both = values[2 * n + 1 :].reshape(2, -1)
    for k, (i, j) in enumerate(pairs):
        H[i, j] = H[j, i] = (both[0, k] + both[1, k] - up[i] - up[j] - down[i] - down[j] + 2 * centre) / 2
    curvature, directions = np.linalg.eigh(H / h**2)
    # a whole unit (a factor e of a deviation, the parameter itself) along it would not show
    flat = curvature < 1.0
    variance = np.square(directions[:, ~flat]) @ (1 / curvature[~flat])
    return unit * np.where(np.square(directions[:, flat]).sum(1) > 0.1, np.nan, np.sqrt(variance))


def _bounded_from_above(negative_log_likelihood, point, errors, unknowns):
    """Raise process and measurement deviations that are not determined as far as they stay likely."""
    steps = np.linspace(0, np.log(LARGEST_CHANGE) * 2, 75)
    for kind in ("process", "measurement"):
        for place in unknowns.places[kind][np.isnan(errors[unknowns.places[kind]])]:
            trials = np.repeat(point[None], len(steps), axis=0)
            trials[:, place] += steps
            values = negative_log_likelihood(trials)
            likely = values <= values[0] + 0.1
            point = trials[len(likely) - 1 if likely.all() else int(np.argmin(likely)) - 1]
    return point
