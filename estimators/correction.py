"""What a filter's innovations still tell of its errors, learned: a contracting R2DN behind a Kalman filter."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from estimators.base import Estimate, check_measurement, check_record
from estimators.files import load_safetensors, save_safetensors
from estimators.gaussian import (
    CubatureKalmanFilter,
    ExogenousKalmanFilter,
    ExtendedKalmanFilter,
    IteratedExtendedKalmanFilter,
    KalmanFilter,
    UnscentedKalmanFilter,
)
from estimators.gaussian.filter import GaussianFilter
from estimators.networks.r2dn import R2DN
from estimators.networks.rollout import Recursion, rollout
from estimators.run import start
from estimators.training import FitResult
from plants.angles import wrap
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise
from plants.schema import check_measured, to_tensors, validate

FORMAT = "contracting-observers LearnedCorrection 2"
LARGEST = 6.0
"""Bound of the network's inputs, in standard deviations over the training data: the correction is bounded with them."""
LEARNING_RATE = 3e-3
COVARIANCES = "process_cov", "measurement_cov", "input_cov"
FILTERS = {
    kind.__name__: kind
    for kind in (
        KalmanFilter,
        ExtendedKalmanFilter,
        IteratedExtendedKalmanFilter,
        UnscentedKalmanFilter,
        CubatureKalmanFilter,
    )
}
"""What `load` makes by itself."""


class FilterLostError(ValueError):
    """A filter diverges on all of the data: nothing can be learned from its errors."""


class CorrectedState(NamedTuple):
    """Belief of a corrected filter.

    Attributes
    ----------
    belief : object
        Of the filter.
    z : torch.Tensor
        (..., nstates of the network).
    predicted : torch.Tensor
        (..., nstates), correction of the next predicted estimate, in its standard deviations.
    matrices : Recursion
        The network, mapped once.
    """

    belief: object
    z: torch.Tensor
    predicted: torch.Tensor
    matrices: Recursion


class LearnedCorrection:
    """Kalman filter whose errors an R2DN predicts from its innovations.

    A right filter's innovations are white and tell nothing more. Those of a filter that is told the wrong noise,
    parameters or bias, or whose plant is too nonlinear for it, do: a contracting network sees them, and the
    estimate becomes x(k|k) + sigma(k) c(k), with c its output and sigma the filter's own standard deviations: units
    that are right for large ranges with small errors too. The network starts with c = 0, as the filter, and training
    keeps what is best on validation data, the filter included.

    The filter does not see the network, so whatever the training did, they are a cascade: two runs of the network on
    the same signals of the filter approach each other at the certified rate (``certify(corrected.network)``), and c is
    bounded, since its inputs are. Whether the whole forgets its start is up to the filter.

    Parameters
    ----------
    filter : GaussianFilter or ExogenousKalmanFilter
        To be corrected, tuned.
    nstates, nfeedback, hidden, contraction_rate
        Of the network; see :class:`estimators.R2DN`.
    seed : int
        Of its start.

    Raises
    ------
    TypeError
        `filter` has no innovations.
    ValueError
        A size or rate out of range.
    """

    def __init__(
        self,
        filter: GaussianFilter | ExogenousKalmanFilter,
        *,
        nstates: int = 16,
        nfeedback: int = 32,
        hidden: Sequence[int] = (64, 64),
        contraction_rate: float = 0.99,
        seed: int = 0,
    ):
        if not isinstance(filter, GaussianFilter | ExogenousKalmanFilter):
            raise TypeError(
                f"filter must be a Gaussian filter or an ExogenousKalmanFilter, which have innovations and "
                f"covariances, got {type(filter).__name__}"
            )
        self.filter, self.model = filter, filter.model
        self.settings = {
            "nstates": nstates,
            "nfeedback": nfeedback,
            "hidden": list(hidden),
            "contraction_rate": contraction_rate,
            "seed": int(seed),
        }
        model = self.model
        # innovations twice, gaps, inputs, states with cosines of angles beside sines, deviations
        size = 3 * model.noutputs + model.ninputs + 2 * model.nstates + int(model.state_is_angle.sum())
        own = {name: value for name, value in self.settings.items() if name != "seed"}
        self.network = R2DN(size, noutputs=2 * model.nstates, generator=torch.Generator().manual_seed(int(seed)), **own)
        with torch.no_grad():
            for part in (self.network.C2, self.network.D21, self.network.D22, self.network.by):
                part.zero_()
        self.centre, self.scale = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)

    def _signals(self, estimate, u, missing):
        """Input of the network (..., size) from the filter's estimate of the same instants; before scaling."""
        innovation, angles = estimate.innovation.double(), self.model.state_is_angle
        x = estimate.filtered.double()
        turning = torch.where(angles, torch.sin(x), x)
        # small innovations show bias, the size of large ones is told by their logarithm
        small = innovation.clamp(-3.0, 3.0)
        large = innovation.sign() * innovation.abs().log1p()
        deviation = _deviations(estimate.filtered_cov).clamp_min(1e-30).log()
        parts = [small, large, missing, u, turning, torch.cos(x[..., angles]), deviation]
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.to(torch.float64).expand(*lead, -1) for part in parts], -1)

    def _scaled(self, signals):
        return ((signals - self.centre) / self.scale).clamp(-LARGEST, LARGEST)

    def init(self, x0, P0=None) -> CorrectedState:
        """Start from a predicted state (..., nstates) and its covariance, as the filter does."""
        belief = self.filter.init(x0, P0)
        with torch.no_grad():
            matrices = self.network.explicit().collapse()
        lead = np.shape(x0)[:-1]
        z = torch.zeros(*lead, self.network.nstates, dtype=torch.float64)
        return CorrectedState(belief, z, torch.zeros(*lead, self.model.nstates, dtype=torch.float64), matrices)

    def step(self, state: CorrectedState, u, y) -> tuple[CorrectedState, Estimate]:
        """Use u and y of instant k.

        Parameters
        ----------
        state : CorrectedState
            From `init` or the last `step`.
        u : array_like or None
            (..., ninputs), None for a plant without inputs.
        y : array_like
            (..., noutputs); NaN where not measured.

        Returns
        -------
        state : CorrectedState
            For k+1.
        estimate : Estimate
            At k: predicted and filtered; innovation and log-likelihood are the filter's. No covariances: those
            of the filter are not those of the corrected errors.
        """
        if not isinstance(state, CorrectedState):
            raise TypeError(f"state must be the CorrectedState that init or step returned, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y)
        belief, estimate = self.filter.step(state.belief, u, y)
        v = self._scaled(self._signals(estimate, u, torch.isnan(y)))
        z, out = state.matrices.step(state.z, v)
        nx = self.model.nstates
        corrected = self._corrected(estimate, state.predicted, out[..., :nx])
        return CorrectedState(belief, z, out[..., nx:], state.matrices), corrected

    def _corrected(self, estimate, predicted, filtered):
        angles = self.model.state_is_angle
        parts = (
            wrap(mean.double() + _deviations(cov) * c, angles)
            for mean, cov, c in (
                (estimate.predicted, estimate.predicted_cov, predicted),
                (estimate.filtered, estimate.filtered_cov, filtered),
            )
        )
        return Estimate(*parts, None, None, estimate.innovation, estimate.log_likelihood)

    def estimate_sequence(self, state: CorrectedState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs), as `step` does."""
        u, y = check_record(self.model, u, y)
        estimate = self.filter.estimate_sequence(state.belief, u, y)
        v, nx = self._scaled(self._signals(estimate, u, torch.isnan(y))), self.model.nstates
        lead, steps = v.shape[:-2], v.shape[-2]
        with torch.no_grad():
            z = state.z.expand(*lead, -1).reshape(lead.numel(), -1)
            flat = v.reshape(lead.numel(), steps, -1).transpose(0, 1).contiguous()
            _, out = rollout(state.matrices, z, flat)
        out = out.transpose(0, 1).reshape(*lead, steps, 2 * nx)
        first = state.predicted.expand(*lead, nx)[..., None, :]
        return self._corrected(estimate, torch.cat([first, out[..., :-1, nx:]], -2), out[..., :nx])

    def _examples(self, dataset):
        """Signals and errors to be predicted, (time, trajectory, .), of the filter on a dataset."""
        state, u, y = start(self.filter, dataset, None, None)
        estimate = self.filter.estimate_sequence(state, u, y)
        x, angles = to_tensors(dataset)[0], self.model.state_is_angle
        errors = [
            wrap(x - mean, angles) / _deviations(cov)
            for mean, cov in (
                (estimate.filtered, estimate.filtered_cov),
                (estimate.predicted, estimate.predicted_cov),
            )
        ]
        # what is told at k of the prediction is of k + 1
        target = torch.cat([errors[0][:, :-1], errors[1][:, 1:]], -1)
        signals = self._signals(estimate, u, torch.isnan(y))[:, :-1]
        kept = (torch.isfinite(target).all(-1) & torch.isfinite(signals).all(-1)).all(1)
        if not bool(kept.any()):
            raise FilterLostError("the filter diverges on every trajectory: nothing can be learned from its errors")
        return signals[kept].transpose(0, 1), target[kept].transpose(0, 1)

    def fit(
        self,
        train: xr.Dataset,
        validation: xr.Dataset | None = None,
        *,
        updates: int = 1500,
        batch: int = 64,
        learning_rate: float = LEARNING_RATE,
        seed: int = 0,
        progress: bool = True,
    ) -> FitResult:
        """Train the network on the filter's errors; the filter stays as it is.

        Squared errors in the filter's standard deviations, of each trajectory over what the filter has there (but at
        least 1), so that one on which it does badly does not outweigh those on which it is right.

        Parameters
        ----------
        train : xarray.Dataset
            Trajectories with true states and told start, of the conditions that the estimator is for.
        validation : xarray.Dataset, optional
            Decides which parameters are kept. Default: every tenth trajectory of `train`, left out of the training.
        updates, batch : int
            Number of updates, and trajectories in each.
        learning_rate : float
            Of Adam, annealed to zero by a cosine.
        seed : int
            Of batches.
        progress : bool
            Show a progress bar.

        Returns
        -------
        FitResult
            Losses relative to the filter's: 1 is as good as the filter.

        Raises
        ------
        ValueError
            Data do not fit, are fewer than ten trajectories without `validation`, or do not tell their start;
            settings out of range; the filter diverges on all of them (a FilterLostError).
        FloatingPointError
            The loss is not finite; the parameters are the best before that.
        """
        for name, value in (("updates", updates), ("batch", batch)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")
        validate(train, self.model, states=True)
        check_measured(train, "train")
        if validation is None:
            count = train.sizes["trajectory"]
            if count < 10:
                raise ValueError(f"train has {count} trajectories: give validation data, or at least ten of them")
            held = np.arange(count) % 10 == 9  # not the last tenth: conditions may follow one another
            train, validation = train.isel(trajectory=~held), train.isel(trajectory=held)
        validate(validation, self.model, states=True)
        v, target = self._examples(train)
        flat = v.reshape(-1, v.shape[-1])
        spread = flat.std(0)
        self.centre = flat.mean(0)
        self.scale = torch.where(spread > 1e-9 * (1 + self.centre.abs()), spread, torch.ones_like(spread))
        dtype = next(self.network.parameters()).dtype
        data = [self._prepared(v, target, dtype), self._prepared(*self._examples(validation), dtype)]
        return self._train(*data, updates, batch, learning_rate, np.random.default_rng(seed), progress)

    def _prepared(self, v, target, dtype):
        weight = 1 / target.square().mean(0, keepdim=True).clamp_min(1.0)
        return self._scaled(v).to(dtype), target.to(dtype), weight.to(dtype)

    def _loss(self, v, target, weight):
        _, out = rollout(self.network.collapsed(), v.new_zeros(v.shape[1], self.network.nstates), v.contiguous())
        return ((out - target).square() * weight).mean()

    def _train(self, train, validation, updates, batch, learning_rate, rng, progress):
        network, result, bar = self.network, FitResult(), tqdm(total=updates, desc="correction", disable=not progress)
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        filters = [float((target.square() * weight).mean()) for _, target, weight in (train, validation)]

        def validated():
            with torch.no_grad():
                return self._loss(*validation).item() / filters[1]

        began = time.perf_counter()
        best, best_loss, recent = copy.deepcopy(network.state_dict()), validated(), []
        every = max(1, updates // 20)
        with bar:
            for done in range(1, updates + 1):
                which = torch.from_numpy(rng.integers(train[0].shape[1], size=batch))
                loss = self._loss(*(part[:, which] for part in train))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
                optimiser.param_groups[0]["lr"] = learning_rate * (
                    0.5 * (1 + math.cos(math.pi * done / updates)) + 1e-3
                )
                optimiser.step()
                recent.append(loss.item() / filters[0])
                bar.update()
                if done % every and done < updates:
                    continue
                value, mean = validated(), float(np.mean(recent))
                if not math.isfinite(mean):
                    network.load_state_dict(best)
                    raise FloatingPointError(
                        f"the training loss is not finite at update {done}; the parameters are those of update "
                        f"{result.best_update}: try a smaller learning_rate"
                    )
                result.updates.append(done)
                result.train_loss.append(mean)
                result.validation_loss.append(value)
                bar.set_postfix(train=f"{mean:.3f}", validation=f"{value:.3f}")
                recent = []
                if value < best_loss:
                    best, best_loss, result.best_update = copy.deepcopy(network.state_dict()), value, done
        network.load_state_dict(best)
        result.wall_time = time.perf_counter() - began
        result.designed_rate = network.contraction_rate
        return result

    def save(self, path) -> None:
        """Write the network, its scaling and settings, and the filter's noise to a safetensors file, atomically.

        Parameters
        ----------
        path : path-like
            Where.

        Raises
        ------
        ValueError
            The place cannot be written.
        """
        tensors = {f"network.{k}": v.detach().contiguous() for k, v in self.network.state_dict().items()}
        tensors |= {"centre": self.centre, "scale": self.scale}
        tensors |= {
            f"noise.{name}": torch.tensor(value)
            for name in COVARIANCES
            if (value := getattr(self.filter.noise, name)) is not None
        }
        header = {"settings": self.settings, "plant": _signals_of(self.model), "filter": _described(self.filter)}
        save_safetensors(path, tensors, {"format": FORMAT, **header})

    @classmethod
    def load(
        cls,
        path,
        model: StateSpaceModel,
        filter: Callable[[StateSpaceModel, GaussianNoise], GaussianFilter | ExogenousKalmanFilter] | None = None,
    ) -> "LearnedCorrection":
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        model : StateSpaceModel
            The plant.
        filter : callable, optional
            From the model and the noise in the file to the filter that was corrected, where that was made with other
            than default settings: ``lambda model, noise: est.ExtendedKalmanFilter(model, noise, gate=0.99)``. Its kind,
            settings and noise are compared with those in the file; not the parameters of the plant, nor the reference
            of an ExogenousKalmanFilter, which the file does not hold.

        Returns
        -------
        LearnedCorrection

        Raises
        ------
        TypeError, ValueError
            Unreadable, damaged or foreign file, another plant, or another kind of filter.
        """
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if filter is not None and not callable(filter):
            raise TypeError(f"filter must be a function of model and noise that makes it, got {type(filter).__name__}")
        tensors, header = load_safetensors(path, FORMAT)
        kind = header["filter"]["kind"]
        if filter is None:
            if kind not in FILTERS:
                raise ValueError(f"{path} corrects a {kind}: give filter, which makes it from the model and the noise")
            filter = FILTERS[kind]
        noise = {name: tensors[f"noise.{name}"].numpy() for name in COVARIANCES if f"noise.{name}" in tensors}
        if header["plant"] != _signals_of(model):
            raise ValueError(f"{path} corrects a filter of {header['plant']}, the given model is {_signals_of(model)}")
        found = cls(filter(model, GaussianNoise(**noise)), **header["settings"])
        if header["filter"] != (made := _described(found.filter)):
            raise ValueError(f"{path} corrects {header['filter']}, filter made {made}")
        if any(not np.array_equal(getattr(found.filter.noise, name), value) for name, value in noise.items()):
            raise ValueError(f"filter must take the noise it is given, which is that in {path}")
        prefix = "network."
        found.network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        found.centre, found.scale = tensors["centre"], tensors["scale"]
        return found


def _signals_of(model: StateSpaceModel) -> dict:
    """Return what a file remembers of the plant."""
    labels = {what: list(getattr(model, f"{what[:-1]}_labels")) for what in ("states", "inputs", "outputs")}
    return {"dt": model.dt, **labels}


def _described(filter) -> dict:
    """Kind and settings of a filter, as they come back from JSON."""
    own = {k: v for k, v in vars(filter).items() if k[0] != "_" and k not in ("model", "noise", "reference")}
    return {"kind": type(filter).__name__, **{name: _plain(value) for name, value in own.items()}}


def _plain(value):
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Real):
        return float(value)
    return value if value is None else str(value)


def _deviations(cov: torch.Tensor) -> torch.Tensor:
    return cov.double().diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
