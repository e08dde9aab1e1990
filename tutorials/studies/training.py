"""What the studies share: a resumable training loop, learning-rate schedules, the command line."""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

import plants
from estimators.files import load_safetensors, save_safetensors

FORMAT = "contracting-observers study checkpoint 1"


@dataclass
class History:
    """What happened in training.

    Attributes
    ----------
    loss : list of float
        Mean training loss of every epoch.
    test : list of float
        Test score before the first epoch and after every one; empty where there is none.
    seconds : list of float
        Time spent in training up to the end of every epoch; scoring is not counted.
    """

    loss: list = field(default_factory=list)
    test: list = field(default_factory=list)
    seconds: list = field(default_factory=list)


def staircase(start: float, every: int, factor: float = 0.1, least: float = 1e-6) -> Callable:
    """Learning rate multiplied by `factor` every so many epochs."""
    return lambda history: max(start * factor ** (len(history.loss) // every), least)


def cosine(start: float, epochs: int) -> Callable:
    """Learning rate annealed to a thousandth over all epochs."""
    return lambda history: start * (0.5 * (1 + math.cos(math.pi * len(history.loss) / epochs)) + 1e-3)


def plateau(start: float, patience: int, factor: float = 0.1, least: float = 1e-6) -> Callable:
    """Learning rate multiplied by `factor` when the loss has not improved by 1e-4 of itself for `patience` epochs."""

    def rate(history):
        value, best, waited = start, math.inf, 0
        for loss in history.loss:
            if loss < best * (1 - 1e-4):
                best, waited = loss, 0
            else:
                waited += 1
            if waited > patience:
                value, waited = value * factor, 0
        return max(value, least)

    return rate


def train(
    network: nn.Module,
    losses: Callable[[int], Iterator[torch.Tensor]],
    *,
    epochs: int,
    learning_rate: Callable[[History], float],
    clip: float | None = None,
    score: Callable[[], float] | None = None,
    checkpoint=None,
    settings: dict | None = None,
    name: str = "training",
    progress: bool = True,
) -> History:
    """Train a network with Adam; what it was at the end is what it is.

    Parameters
    ----------
    network : torch.nn.Module
        Trained in place.
    losses : callable
        ``losses(epoch)`` yields the loss of one update after the other. It must depend on nothing but the
        epoch and the network, so that a training that was cut off goes on as it would have.
    epochs : int
        How many.
    learning_rate : callable
        Of the history so far.
    clip : float, optional
        Largest magnitude of any element of a gradient.
    score : callable, optional
        Test score, taken before and after every epoch, not counted in the training time.
    checkpoint : path-like, optional
        Written after every epoch; where it exists already, training goes on from there.
    settings : dict, optional
        Of the experiment; a checkpoint of others is refused.
    name : str
        For the progress bar.
    progress : bool
        Whether to show it.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        The checkpoint is of another experiment; an epoch without losses.
    FloatingPointError
        A loss is not finite.
    """
    history, settings = History(), settings or {}
    optimiser = torch.optim.Adam(network.parameters(), lr=1.0, fused=True)
    if checkpoint is not None and Path(checkpoint).exists():
        history = _restore(checkpoint, network, optimiser, settings)
    elif score is not None:
        history.test.append(score())
    spent = history.seconds[-1] if history.seconds else 0.0
    bar = tqdm(total=epochs, initial=len(history.loss), desc=name, unit="epoch", disable=not progress, mininterval=1.0)
    with bar:
        while len(history.loss) < epochs:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(history)
            total, count, began = 0.0, 0, time.perf_counter()
            for loss in losses(len(history.loss)):
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_value_(network.parameters(), clip)
                optimiser.step()
                total, count = total + loss.detach(), count + 1
            if not count:
                raise ValueError(f"losses({len(history.loss)}) yielded nothing to train on")
            value = float(total) / count
            spent += time.perf_counter() - began
            if not math.isfinite(value):
                raise FloatingPointError(f"{name}: the loss is not finite in epoch {len(history.loss)}")
            history.loss.append(value)
            history.seconds.append(spent)
            if score is not None:
                history.test.append(score())
            if checkpoint is not None:
                _store(checkpoint, network, optimiser, history, settings)
            bar.update()
            bar.set_postfix(loss=f"{value:.3g}", **({"test": f"{history.test[-1]:.3g}"} if history.test else {}))
    return history


def _store(path, network, optimiser, history, settings):
    tensors = {f"network.{k}": v.detach().clone() for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value.clone()
    save_safetensors(path, tensors, {"format": FORMAT, "history": asdict(history), "settings": settings})


def _restore(path, network, optimiser, settings):
    tensors, header = load_safetensors(path, FORMAT)
    if header["settings"] != settings:
        raise ValueError(
            f"{path} was written by a run with the settings {header['settings']}, not {settings}: "
            "delete it, or choose another folder"
        )
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    for name, parameter in network.named_parameters():
        prefix = f"adam.{name}."
        kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimiser.state[parameter] = {k: v.to(parameter.device) for k, v in kept.items()}
    return History(**header["history"])


def count(network: nn.Module) -> int:
    """Count the parameters."""
    return sum(p.numel() for p in network.parameters())


def arguments(module_doc: str, name: str) -> argparse.ArgumentParser:
    """Command line that every study has; a study adds its own."""
    parser = argparse.ArgumentParser(description=module_doc.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("results") / name, help="folder; a run that was cut off goes on"
    )
    parser.add_argument(
        "--seed", type=int, default=0, choices=range(1000), metavar="0..999", help="of everything random"
    )
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--reduced", action="store_true", help="minutes instead of the full study")
    return parser


def versions(device: str) -> dict:
    """Say what a run ran on, for the attributes of its results."""
    return {"torch": str(torch.__version__), "device": str(device), "threads": torch.get_num_threads()}


def finish(found: xr.Dataset, folder: Path, report: str, figures: dict) -> None:
    """Write results.nc and the figures to a folder, and print the report and where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    plants.save_dataset(found, folder / "results.nc")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    print(report)
    print(f"results and figures: {folder}")


def with_history(variables: dict, histories: dict[str, History]) -> dict:
    """Add learning curves to the variables of a Dataset, (model, epoch), padded with NaN."""
    names, longest = list(histories), max(len(h.loss) for h in histories.values())

    def padded(values):
        return [*values, *[math.nan] * (longest - len(values))]

    out = dict(variables)
    for key in ("loss", "seconds"):
        out[f"training_{key}"] = (("model", "epoch"), [padded(getattr(histories[n], key)) for n in names])
    if all(h.test for h in histories.values()):
        out["training_test"] = (("model", "epoch"), [padded(histories[n].test[1:]) for n in names])
    return out
