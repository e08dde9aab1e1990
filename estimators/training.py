"""Training of observers on rollouts."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import distributed
from tqdm.auto import tqdm

from estimators.certificates.refine import smallest_rate
from estimators.files import load_safetensors, save_safetensors
from estimators.networks.rollout import rollout
from plants.arrays import covariance_factor
from plants.schema import check_measured, split, to_tensors, validate

RELATIVE_LEARNING_RATE = 0.02
STATE_SHARE = 0.01
"""Weight of the internal state's own error: keeps it near the plant's state at hardly any cost to the readouts."""
CHECKPOINT_FORMAT = "contracting-observers training checkpoint 1"


@dataclass
class FitResult:
    """History of a training run.

    Attributes
    ----------
    updates : list of int
        At which the losses were evaluated.
    train_loss, validation_loss : list of float
        Mean squared error over the variance to be expected at that time, were the plant linear; 1 is
        as good as a Kalman filter there.
    best_update : int
        Whose parameters were kept.
    wall_time : float
        Seconds.
    designed_rate, refined_rate : float
        Contraction rate asked for, and the smallest that the trained observer is proved to have in any metric.
    interrupted : bool
        Stopped by Ctrl-C; the best parameters so far were kept.
    checkpoint : str or None
        File of the best parameters and of what is needed to resume.
    """

    updates: list = field(default_factory=list)
    train_loss: list = field(default_factory=list)
    validation_loss: list = field(default_factory=list)
    best_update: int = 0
    wall_time: float = 0.0
    interrupted: bool = False
    checkpoint: str | None = None
    designed_rate: float = math.nan
    refined_rate: float = math.nan


def fit(
    observer,
    train: xr.Dataset,
    validation: xr.Dataset | None = None,
    *,
    updates: int = 2000,
    one_step_updates: int = 500,
    horizon: int = 100,
    batch: int = 64,
    learning_rate: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    checkpoint=None,
    resume: bool = False,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Train an observer: first on one step, then on rollouts.

    Under ``torchrun``, once ``torch.distributed.init_process_group`` has been called, the processes share every batch:
    each takes its part, gradients are averaged, and all end with the parameters that one process would have found, up
    to rounding. They have to be given the same data; the first alone writes checkpoints and shows progress.

    One step: from x_k plus an error drawn from the stationary covariance, with the noisy
    y_k, to x_{k+1}. Its minimiser is the Bayes-optimal predictor for errors of that size.
    Rollouts: windows of `horizon` samples of noisy measurements, from the start that an estimator
    is told at the beginning of a trajectory, or from the truth plus a start error elsewhere.
    Squared errors are divided by the variance to be expected at that time after the start (see
    :meth:`estimators.design.AffineModel.expected_errors`), so that transient and steady state,
    small and large states all count alike.

    Parameters
    ----------
    observer : R2DNObserver
        Trained in place; initialised from `train` if it was not.
    train : xarray.Dataset
        Trajectories with true states.
    validation : xarray.Dataset, optional
        Decides which parameters are kept. Default: the last tenth of the trajectories, or the
        training data where there are fewer than ten.
    updates, one_step_updates : int
        Number of rollout and of one-step updates.
    horizon : int
        Samples a window.
    batch : int
        Windows an update.
    learning_rate : float, optional
        Of Adam, annealed to zero by a cosine. Default: ``RELATIVE_LEARNING_RATE`` times the
        estimation error to be expected, relative to the states: the better the sensors, the finer
        the steps.
    patience : int, optional
        Stop after so many updates without improvement; default: never early.
    seed : int
        Of batches.
    checkpoint : path-like, optional
        Where to keep the best parameters and the state of the training, safetensors.
    resume : bool
        Go on from `checkpoint`.
    progress : bool
        Show a progress bar.
    device : torch.device or str
        Where to train; the observer returns to the CPU.

    Returns
    -------
    FitResult

    Raises
    ------
    ValueError
        Data do not fit the model or lack states; settings out of range; nothing to resume.
    FloatingPointError
        The loss is not finite; parameters are the best before that.
    """
    model = observer.model
    for name, value, least in (
        ("updates", updates, 0),
        ("one_step_updates", one_step_updates, 0),
        ("horizon", horizon, 2),
        ("batch", batch, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if updates + one_step_updates == 0:
        raise ValueError("updates and one_step_updates are both zero: nothing to train")
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")
    if resume and (checkpoint is None or not Path(checkpoint).exists()):
        raise ValueError(f"nothing to resume from: checkpoint is {checkpoint!r}")
    validate(train, model, states=True)
    if validation is not None:
        validate(validation, model, states=True)
    else:
        count = train.sizes["trajectory"]
        train, validation = split(train, (count - count // 10, count // 10)) if count >= 10 else (train, train)
    check_measured(train, "train")
    if train.sizes["time"] < 3:
        raise ValueError(f"train has {train.sizes['time']} time steps, at least 3 are needed")
    if observer.coordinates is None:
        observer.initialise(train)
    processes = distributed.get_world_size() if _is_distributed() else 1
    if batch % processes:
        raise ValueError(f"batch must be a multiple of the {processes} processes that share it, got {batch}")
    result = _Training(observer, train, validation, horizon, batch, seed, torch.device(device)).run(
        updates,
        one_step_updates,
        learning_rate,
        patience,
        None if checkpoint is None else Path(checkpoint),
        resume,
        progress,
    )
    observer.network.to("cpu")
    result.designed_rate = observer.contraction_rate
    result.refined_rate = smallest_rate(observer.explicit())
    return result


def default_learning_rate(observer, train: xr.Dataset, steps: int = 100) -> float:
    """Learning rate that :func:`fit` takes by default for an initialised observer and these data."""
    design = observer.linear_design(train)
    return _learning_rate(design.affine.expected_errors(design.steady, observer.start_cov(train), steps)[2])


def _learning_rate(stationary):
    return RELATIVE_LEARNING_RATE * float(np.exp(np.log(np.diag(stationary)).mean() / 2))


def _is_distributed():
    return distributed.is_available() and distributed.is_initialized()


class _Records:
    """Trajectories in the observer's coordinates, time first, in the training dtype."""

    def __init__(self, observer, dataset, dtype, device):
        x, u, y = to_tensors(dataset)
        coordinates = observer.coordinates
        v, shift, _ = coordinates.network_input(u, y)
        missing = torch.isnan(y).transpose(0, 1).contiguous().to(device)
        self.missing = missing if bool(missing.any()) else None
        x = coordinates.in_frame_of(x, u, y)
        self.z = coordinates.from_plant(x).transpose(0, 1).to(device, dtype).contiguous()
        self.v = v.transpose(0, 1).to(device, dtype).contiguous()
        # the turn a state takes on its way to sample k + 1
        self.shift = (
            torch.cat([shift[:, 1:], shift[:, :1] * 0], dim=1).transpose(0, 1).to(device, dtype).contiguous()
            if bool(shift.any())
            else None
        )
        mean = torch.from_numpy(dataset["initial_mean"].values) if "initial_mean" in dataset else None
        self.told = None if mean is None else coordinates.from_plant(mean).to(device, dtype)
        self.steps, self.count = self.z.shape[:2]


class _Training:
    """One run of :func:`fit`."""

    def __init__(self, observer, train, validation, horizon, batch, seed, device):
        self.observer, self.network, self.batch, self.device = observer, observer.network.to(device), batch, device
        parameter = next(self.network.parameters())
        self.dtype = parameter.dtype
        self.train, self.validation = (_Records(observer, data, self.dtype, device) for data in (train, validation))
        self.rank, self.processes = 0, 1
        if _is_distributed():
            self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        self.share = slice(self.rank, None, self.processes)  # of every batch; all processes draw the whole of it
        self.horizon = min(horizon, self.train.steps - 1)
        self.rng = np.random.default_rng(seed)
        P0 = observer.start_cov(train)
        self.start_factor = torch.from_numpy(covariance_factor(P0)).to(self.device, self.dtype)
        longest = max(self.horizon, self.validation.steps - 1)
        design = observer.linear_design(train)
        predicted, filtered, stationary = design.affine.expected_errors(design.steady, P0, longest)
        self.predicted_weight, self.filtered_weight = (
            torch.from_numpy(1 / v).to(self.device, self.dtype)[:, None] for v in (predicted, filtered)
        )
        self.one_step_factor = torch.from_numpy(covariance_factor(stationary)).to(self.device, self.dtype)
        self.learning_rate = _learning_rate(stationary)
        turn = torch.where(observer.model.state_is_angle, 2 * np.pi / observer.coordinates.state_scale, torch.inf)
        self.turn = turn.to(self.device, self.dtype) if bool(observer.model.state_is_angle.any()) else None

    def square(self, difference):
        if self.turn is not None:
            turns = torch.round(difference / self.turn)
            difference = difference - torch.where(
                torch.isinf(self.turn), torch.zeros_like(turns), turns * self.turn.nan_to_num(posinf=0.0)
            )
        return difference.square()

    def normal(self, *shape):
        return torch.from_numpy(self.rng.standard_normal(shape)).to(self.device, self.dtype)

    def windows(self):
        """Draw windows: start (batch, nx), states (horizon + 1, batch, nx); inputs, shifts, gaps (horizon, ...)."""
        data = self.train
        which = torch.from_numpy(self.rng.integers(data.count, size=self.batch))
        first = self.rng.integers(data.steps - self.horizon, size=self.batch)
        at_start = self.rng.random(self.batch) < 0.5
        if data.told is not None:
            first[at_start] = 0
        index = torch.from_numpy(first)[None] + torch.arange(self.horizon + 1)[:, None]
        z, v = data.z[index, which], data.v[index[:-1], which]
        shift = None if data.shift is None else data.shift[index[:-1], which]
        start = z[0] + self.normal(self.batch, z.shape[-1]) @ self.start_factor.T
        if data.told is not None:
            start = torch.where(torch.from_numpy(at_start).to(self.device)[:, None], data.told, start)
        missing = None if data.missing is None else data.missing[index[:-1], which]
        return start[self.share], *(None if a is None else a[:, self.share] for a in (z, v, shift, missing))

    def rollout_loss(self, start, z, v, shift, missing):
        nx, steps = z.shape[-1], len(v)
        pad, startup = self.observer.pad, self.observer.startup
        # the turn before a sample is the one after the sample before
        before = None if shift is None else torch.cat([torch.zeros_like(shift[:1]), shift[:-1]])
        v = torch.cat(
            [v, startup.signals(startup.init(start), v, before, missing)[0]], -1
        )  # every window is a start of its own
        states, out = rollout(
            self.network.collapsed(), pad(start), v, None if shift is None else pad(shift), states=True
        )
        weight = self.predicted_weight[1 : steps + 1]
        if shift is not None:
            out = torch.cat([out[..., :nx], out[..., nx:] + shift], dim=-1)
        loss = self.loss(out[..., nx:], z[1:], weight, out[..., :nx], z[:-1], self.filtered_weight[:steps])
        return loss + STATE_SHARE * (self.square(states[1:, :, :nx] - z[1:]) * weight).mean()

    def loss(self, predicted, after, predicted_weight, filtered, now, filtered_weight):
        return (
            (self.square(predicted - after) * predicted_weight).mean()
            + (self.square(filtered - now) * filtered_weight).mean()
        ) / 2

    def one_step_loss(self):
        data, size = self.train, 32 * self.batch
        which = torch.from_numpy(self.rng.integers(data.count, size=size))
        when = torch.from_numpy(self.rng.integers(data.steps - 1, size=size))
        spread = torch.from_numpy(np.exp(self.rng.uniform(-0.7, 1.1, (size, 1)))).to(self.device, self.dtype)
        error = spread * (self.normal(size, data.z.shape[2]) @ self.one_step_factor.T)
        which, when, error = (part[self.share] for part in (which, when, error))
        now = data.z[when, which]
        start = now + error
        # errors of the stationary size: start-up signals are zero
        v = torch.nn.functional.pad(data.v[when, which], (0, self.observer.startup.size))
        state, out = self.network.collapsed().step(self.observer.pad(start), v)
        after, nx = data.z[when + 1, which], now.shape[1]
        state = state[:, :nx]
        if data.shift is not None:
            state = state + data.shift[when, which]
        weights = self.predicted_weight[-1], self.filtered_weight[-1]
        return (
            self.loss(out[:, nx:], after, weights[0], out[:, :nx], now, weights[1])
            + (self.square(state - after) * weights[0]).mean()
        ) / 2

    def validation_loss(self):
        data = self.validation
        if data.told is None:  # a fixed wrong start, the same at every evaluation
            error = (
                torch.from_numpy(np.random.default_rng(0).standard_normal((data.count, data.z.shape[-1]))).to(
                    self.device, self.dtype
                )
                @ self.start_factor.T
            )
            start = data.z[0] + error
        else:
            start = data.told.expand(data.count, -1)
        with torch.no_grad():
            records = (None if part is None else part[:-1] for part in (data.v, data.shift, data.missing))
            return self.rollout_loss(start, data.z, *records).item()

    def _shared(self, loss):
        """Average loss and gradients over the processes, in one message."""
        if self.processes == 1:
            return loss.detach()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        message = torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients)]) / self.processes
        distributed.all_reduce(message)
        for gradient, part in zip(gradients, message[1:].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return message[0]

    def run(self, updates, one_step_updates, learning_rate, patience, checkpoint, resume, progress):
        learning_rate = self.learning_rate if learning_rate is None else learning_rate
        result = FitResult(checkpoint=None if checkpoint is None else str(checkpoint))
        progress = progress and self.rank == 0
        optimiser = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        total, done = one_step_updates + updates, 0
        best, best_loss = self._copy(), self.validation_loss()
        if not np.isfinite(best_loss):
            best_loss = np.inf
        if resume:
            best, best_loss, done = self._restore(checkpoint, optimiser, result)
        elif checkpoint is not None:  # a place that cannot be written is found out before any work
            self._store(checkpoint, optimiser, best, best_loss, done, result)
        began, recent = time.perf_counter() - result.wall_time, []
        every = max(1, min(100, total // 20))
        bar = tqdm(total=total, initial=done, desc="training", disable=not progress, unit="update")
        try:
            while done < total:
                loss = self.one_step_loss() if done < one_step_updates else self.rollout_loss(*self.windows())
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                loss = self._shared(loss)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
                optimiser.param_groups[0]["lr"] = learning_rate * (0.5 * (1 + np.cos(np.pi * done / total)) + 1e-3)
                optimiser.step()
                done += 1
                bar.update()
                recent.append(loss.item())
                if done % every and done < total:
                    continue
                value = self.validation_loss()
                result.updates.append(done)
                result.train_loss.append(float(np.mean(recent)))
                result.validation_loss.append(value)
                bar.set_postfix(train=f"{result.train_loss[-1]:.3f}", validation=f"{value:.3f}")
                if not np.isfinite(result.train_loss[-1]):
                    raise FloatingPointError(
                        f"the training loss is not finite at update {done}; the observer keeps the parameters "
                        f"of update {result.best_update}: try a smaller learning_rate"
                    )
                recent = []
                if value < best_loss:
                    best, best_loss, result.best_update = self._copy(), value, done
                if checkpoint is not None:
                    result.wall_time = time.perf_counter() - began
                    self._store(checkpoint, optimiser, best, best_loss, done, result)
                if patience is not None and done - result.best_update >= patience:
                    break
        except KeyboardInterrupt:
            result.interrupted = True
            where = f", stored in {checkpoint}" if checkpoint is not None else ""
            tqdm.write(
                f"training interrupted after {done} of {total} updates; the observer holds the best parameters, "
                f"those of update {result.best_update}{where}"
            )
        finally:
            bar.close()
            self.network.load_state_dict(best)
            result.wall_time = time.perf_counter() - began
        return result

    def _copy(self):
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _store(self, path, optimiser, best, best_loss, done, result):
        if self.rank:
            return
        tensors = {f"best.{k}": v for k, v in best.items()} | {f"last.{k}": v for k, v in self._copy().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value.clone()
        left_out = ("interrupted", "designed_rate", "refined_rate")
        history = {k: v for k, v in asdict(result).items() if k not in left_out}
        save_safetensors(
            path,
            tensors,
            {
                "format": CHECKPOINT_FORMAT,
                "done": done,
                "best_loss": best_loss,
                "history": history,
                "rng": self.rng.bit_generator.state,
            },
        )

    def _restore(self, path, optimiser, result):
        tensors, header = load_safetensors(path, CHECKPOINT_FORMAT)

        def part(prefix):
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.network.load_state_dict(part("last."))
        except RuntimeError as error:
            raise ValueError(f"{path} belongs to an observer of another size: {error}") from error
        for name, parameter in self.network.named_parameters():
            moments = part(f"adam.{name}.")
            optimiser.state[parameter] = {k: v if k == "step" else v.to(self.device) for k, v in moments.items()}
        self.rng.bit_generator.state = header["rng"]
        for key, value in header["history"].items():
            setattr(result, key, value)
        return part("best."), header["best_loss"], header["done"]
