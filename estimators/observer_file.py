"""The file of a trained observer: parameters, scaling and what plant it is for; readable without the plant."""

from typing import NamedTuple

import torch

from estimators.coordinates import SCALES
from estimators.files import load_safetensors, save_safetensors
from estimators.networks.r2dn import R2DN
from estimators.startup import MATRICES

FORMAT = "contracting-observers R2DNObserver 2"


class ObserverFile(NamedTuple):
    """What is in a file.

    Attributes
    ----------
    network : R2DN
        With its parameters.
    coordinates : dict
        Name to float64 tensor, as :class:`estimators.coordinates.Coordinates` takes them.
    startup : dict
        Name to float64 tensor, as :class:`estimators.startup.Startup` takes them.
    error_cov : torch.Tensor or None
        (time, 2, nstates, nstates), calibrated covariances.
    settings : dict
        Arguments of R2DNObserver.
    plant : dict
        ``name``, ``dt``, ``states``, ``inputs``, ``outputs``: labels are tuples.
    """

    network: R2DN
    coordinates: dict[str, torch.Tensor]
    startup: dict[str, torch.Tensor]
    error_cov: torch.Tensor | None
    settings: dict
    plant: dict


def make_network(ninputs: int, nstates: int, noutputs: int, settings: dict, generator=None) -> R2DN:
    """Network of an observer of a plant of these sizes: sees (u, y, gaps, start-up signals), gives two estimates."""
    seen = ninputs + 2 * noutputs + 1 + nstates
    return R2DN(seen, noutputs=2 * nstates, generator=generator, **{"nstates": nstates} | settings)


def write(path, network: R2DN, coordinates: dict, startup: dict, error_cov, settings: dict, model) -> None:
    """Write a file, atomically.

    Parameters
    ----------
    path : path-like
        Where.
    network : R2DN
        Of the observer.
    coordinates, startup : dict
        Their tensors by name.
    error_cov : torch.Tensor or None
        Calibrated covariances.
    settings : dict
        Arguments of R2DNObserver, ``initialisation`` and ``seed`` among them.
    model : StateSpaceModel
        The plant.
    """
    tensors = {f"network.{k}": v.detach().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"coordinates.{k}": v for k, v in coordinates.items()}
    tensors |= {f"startup.{k}": v for k, v in startup.items()}
    if error_cov is not None:
        tensors["error_cov"] = error_cov
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
        coordinates, startup = _part(tensors, "coordinates."), _part(tensors, "startup.")
        nu, nx, ny = sizes
        shapes = dict(zip(SCALES, ((nx,), (nx,), (nu + ny,), (nu + ny,)), strict=True))
        of_startup = ((nx, nx), (nx, nu), (nx,), (ny, nx), (ny, nu), (ny,), (nx, ny), (nx, nx), (ny, ny), (nx, nx), ())
        for group, expected in ((coordinates, shapes), (startup, dict(zip(MATRICES, of_startup, strict=True)))):
            for name, shape in expected.items():
                if group[name].shape != shape or group[name].dtype != torch.float64:
                    raise ValueError(f"{name} has shape {tuple(group[name].shape)}, needs {shape} of float64")
                if not bool(torch.isfinite(group[name]).all()):
                    raise ValueError(f"{name} holds values that are not finite")
        error_cov = tensors.get("error_cov")
        if error_cov is not None and (error_cov.shape[1:] != (2, nx, nx) or error_cov.dtype != torch.float64):
            raise ValueError(f"error_cov has shape {tuple(error_cov.shape)}, needs (time, 2, {nx}, {nx}) of float64")
        if not all(bool((coordinates[name] > 0).all()) for name in ("state_scale", "input_scale")):
            raise ValueError("a scale is not positive")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return ObserverFile(network, coordinates, startup, error_cov, settings, plant)


def _part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
