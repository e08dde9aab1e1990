"""The observer's own coordinates: scaled signals, gaps filled, angles within a turn."""

import math

import numpy as np
import torch
import xarray as xr

from plants.angles import wrap
from plants.model import StateSpaceModel
from plants.schema import to_tensors

SCALES = ("state_centre", "state_scale", "input_centre", "input_scale")


def centre_and_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, NaN ignored; a constant channel gets scale 1."""
    flat = values.reshape(-1, values.shape[-1])
    flat = np.where(np.isnan(flat).all(axis=0), 0.0, flat)
    centre, scale = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
    return centre, np.where(scale > 1e-12 * (np.abs(centre) + np.finfo(float).tiny), scale, 1.0)


class Coordinates:
    """Affine map between the plant's units and the observer's coordinates, (value - centre) / scale.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    state_centre, state_scale : torch.Tensor
        (nstates,), float64.
    input_centre, input_scale : torch.Tensor
        (ninputs + noutputs,), float64: plant inputs, then measurements.
    """

    def __init__(self, model, state_centre, state_scale, input_centre, input_scale):
        self.model = model
        self.state_centre, self.state_scale = state_centre, state_scale
        self.input_centre, self.input_scale = input_centre, input_scale
        self.carried = _find_carried(model)
        self.follows_turns = bool(self.carried.any())
        self._angles = model.output_is_angle.numpy(), model.state_is_angle.numpy()

    @classmethod
    def from_data(cls, model: StateSpaceModel, dataset: xr.Dataset) -> "Coordinates":
        """Take mean and standard deviation of trajectories with true states for centre and scale."""
        x, u, y = to_tensors(dataset)
        states = centre_and_scale(_in_frame_of(model, _find_carried(model), x, u, y).numpy())
        signals = centre_and_scale(torch.cat([u, wrap(y, model.output_is_angle)], dim=-1).numpy())
        scales = (torch.from_numpy(a) for a in (*states, *signals))
        return cls(model, *scales)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the model, by argument name; for files."""
        return {name: getattr(self, name) for name in SCALES}

    def from_plant(self, x: torch.Tensor) -> torch.Tensor:
        """Scale states (..., nstates)."""
        return (x - self.state_centre) / self.state_scale

    def to_plant(self, z: torch.Tensor) -> torch.Tensor:
        """Return scaled states (..., nstates) to the plant's units, angles within [-pi, pi)."""
        return wrap(z * self.state_scale + self.state_centre, self.model.state_is_angle)

    def network_input(
        self, u: torch.Tensor, y: torch.Tensor, held: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prepare a record for the network: fill gaps, bring angles within a turn, scale.

        Parameters
        ----------
        u, y : torch.Tensor
            (..., time, ninputs) and (..., time, noutputs).
        held : torch.Tensor, optional
            (..., noutputs), last measurement before the record; NaN or left out for none.

        Returns
        -------
        v : torch.Tensor
            (..., time, ninputs + 2 noutputs): inputs and measurements, scaled, then 1 for each measurement that is
            missing.
        shift : torch.Tensor
            (..., time, nstates), whole turns by which the state must follow a measured angle that
            jumps between pi and -pi, scaled; to be added before the sample is used.
        held : torch.Tensor
            (..., noutputs), last measurement of each channel.
        """
        y = wrap(y, self.model.output_is_angle)
        missing = torch.isnan(y)
        held = torch.full_like(y[..., 0, :], math.nan) if held is None else held.expand_as(y[..., 0, :])
        filled = torch.cat([held[..., None, :], y], dim=-2)
        if bool(torch.isnan(y).any()):
            for k in range(1, filled.shape[-2]):
                filled[..., k, :] = torch.where(
                    torch.isnan(filled[..., k, :]), filled[..., k - 1, :], filled[..., k, :]
                )
        turns = torch.round((filled[..., 1:, :] - filled[..., :-1, :]) / (2 * math.pi)).nan_to_num(0.0)
        shift = 2 * math.pi * turns @ self.carried / self.state_scale
        held, y = filled[..., -1, :], filled[..., 1:, :]
        y = torch.where(torch.isnan(y), self.input_centre[self.model.ninputs :], y)
        scaled = (torch.cat([u.expand(*y.shape[:-1], -1), y], dim=-1) - self.input_centre) / self.input_scale
        return torch.cat([scaled, missing.to(scaled.dtype)], dim=-1), shift, held

    def network_sample(
        self, u: np.ndarray, y: np.ndarray, held: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | float, np.ndarray]:
        """Do as `network_input` does, for one instant of one trajectory, in NumPy: v, shift and held."""
        y = wrap(y, self._angles[0])
        filled, shift = np.where(np.isnan(y), held, y), 0.0
        if self.follows_turns:
            turns = np.nan_to_num(np.round((filled - held) / (2 * math.pi)))
            shift = 2 * math.pi * turns @ self.carried.numpy() / self.state_scale.numpy()
        centre, nu = self.input_centre.numpy(), self.model.ninputs
        v = np.concatenate([u, np.where(np.isnan(filled), centre[nu:], filled)])
        return np.concatenate([(v - centre) / self.input_scale.numpy(), np.isnan(y)]), shift, filled

    def sample_to_plant(self, z: np.ndarray) -> np.ndarray:
        """Do as `to_plant` does, for one state in NumPy."""
        return wrap(z * self.state_scale.numpy() + self.state_centre.numpy(), self._angles[1])

    def in_frame_of(self, x: torch.Tensor, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add whole turns to the angles of states x (..., nstates) so that they go with measured angles y."""
        return _in_frame_of(self.model, self.carried, x, u, y)


def _in_frame_of(model, carried, x, u, y):
    if not bool(carried.any()):
        return x
    y = wrap(y, model.output_is_angle)
    turns = torch.round((y - model.output(x, u)) / (2 * math.pi)).nan_to_num(0.0)
    return x + 2 * math.pi * turns @ carried


def _find_carried(model: StateSpaceModel) -> torch.Tensor:
    """(noutputs, nstates): 1 where a turn of an angle state is a turn of an angle output."""
    x, u = (torch.from_numpy(a) for a in model.operating_region.sample(3, seed=0))
    carried = torch.zeros(model.noutputs, model.nstates, dtype=torch.float64)
    for i in model.state_is_angle.nonzero().flatten().tolist():
        turned = x.clone()
        turned[:, i] += 2 * math.pi
        change = (model.output(turned, u) - model.output(x, u)) / (2 * math.pi)
        for j in model.output_is_angle.nonzero().flatten().tolist():
            if bool(((change[:, j] - 1).abs() < 1e-9).all()):
                carried[j, i] = 1.0
                break
    return carried
