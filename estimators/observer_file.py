"""The file of a trained observer: parameters, scaling and what plant it is for; readable without the plant."""

from typing import NamedTuple

import torch

from estimators.files import load_safetensors, save_safetensors
from estimators.networks.r2dn import R2DN

FORMAT = "contracting-observers R2DNObserver 1"
COORDINATES = ("state_centre", "state_scale", "input_centre", "input_scale", "startup_decay")


class ObserverFile(NamedTuple):
    """What is in a file.

    Attributes
    ----------
    network : R2DN
        With its parameters.
    coordinates : dict
        Name to float64 tensor, as :class:`estimators.coordinates.Coordinates` takes them.
    settings : dict
        Arguments of R2DNObserver.
    plant : dict
        ``name``, ``dt``, ``states``, ``inputs``, ``outputs``: labels are tuples.
    """

    network: R2DN
    coordinates: dict[str, torch.Tensor]
    settings: dict
    plant: dict


def make_network(ninputs: int, nstates: int, noutputs: int, settings: dict, generator=None) -> R2DN:
    """Network of an observer of a plant of these sizes: sees (u, y, start-up signal), gives two estimates."""
    return R2DN(ninputs + noutputs + 1, noutputs=2 * nstates, generator=generator, **{"nstates": nstates} | settings)


def write(path, network: R2DN, coordinates: dict, settings: dict, model) -> None:
    """Write a file, atomically.

    Parameters
    ----------
    path : path-like
        Where.
    network : R2DN
        Of the observer.
    coordinates : dict
        Its tensors by name.
    settings : dict
        Arguments of R2DNObserver, ``initialisation`` and ``seed`` among them.
    model : StateSpaceModel
        The plant.
    """
    tensors = {f"network.{k}": v.detach().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"coordinates.{k}": v for k, v in coordinates.items()}
    plant = {"name": model.name, "dt": model.dt}
    plant |= {what: getattr(model, f"{what[:-1]}_labels") for what in ("states", "inputs", "outputs")}
    save_safetensors(path, tensors, {"format": FORMAT, "settings": settings, "plant": plant})


def read(path) -> ObserverFile:
    """Read and check a file; ValueError for one that is missing, foreign, damaged or changed since it was written."""
    tensors, header = load_safetensors(path, FORMAT)
    try:
        settings, plant = dict(header["settings"]), dict(header["plant"])
        plant |= {what: tuple(plant[what]) for what in ("states", "inputs", "outputs")}
        own = {k: v for k, v in settings.items() if k not in ("initialisation", "seed")}
        sizes = len(plant["inputs"]), len(plant["states"]), len(plant["outputs"])
        network = make_network(*sizes, own)
        network.load_state_dict(_part(tensors, "network."))
        coordinates = _part(tensors, "coordinates.")
        shapes = (sizes[1:2], sizes[1:2], (sizes[0] + sizes[2],), (sizes[0] + sizes[2],), ())
        for name, shape in zip(COORDINATES, shapes, strict=True):
            if coordinates[name].shape != shape or coordinates[name].dtype != torch.float64:
                raise ValueError(f"{name} has shape {tuple(coordinates[name].shape)}, needs {tuple(shape)} of float64")
        if not all(bool((coordinates[name] > 0).all()) for name in ("state_scale", "input_scale")):
            raise ValueError("a scale is not positive")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return ObserverFile(network, coordinates, settings, plant)


def _part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
