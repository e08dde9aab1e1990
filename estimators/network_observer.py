"""Any contracting network as an observer whose state is the estimate: the form of the REN and R2DN papers."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from estimators.base import Estimate, check_measurement, check_record
from estimators.networks.recurrent import Recurrent
from plants.arrays import as_tensor
from plants.model import StateSpaceModel


class NetworkState(NamedTuple):
    """Belief of a :class:`NetworkObserver`.

    Attributes
    ----------
    x : torch.Tensor
        (..., nstates), the predicted state.
    matrices : R2DNMatrices or RENMatrices
        Of the network, float64, mapped once in `init`.
    stream : callable or None
        NumPy step, of one trajectory alone.
    """

    x: torch.Tensor
    matrices: NamedTuple
    stream: Callable | None


class NetworkObserver:
    """Observer x_{k+1} = f(x_k, (u_k, y_k)) with f a contracting R2DN or REN, in the plant's own units.

    It has a predicted estimate and no filtered one. :class:`R2DNObserver`, which scales signals, starts
    as a Kalman filter, reads out a filtered estimate and takes missing samples, is what one would use; this
    is the published form, for comparison with it and for a REN.

    Parameters
    ----------
    model : StateSpaceModel
        The plant, without declared angles.
    network : R2DN or REN
        With ``identity_output``; inputs are those of the plant and then its outputs.

    Raises
    ------
    TypeError
        Not a model or network.
    ValueError
        Sizes do not fit, the output is not the state, or the plant has angles.
    """

    def __init__(self, model: StateSpaceModel, network: Recurrent):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if not isinstance(network, Recurrent):
            raise TypeError(f"network must be an R2DN or REN, got {type(network).__name__}")
        sizes, needed = (network.ninputs, network.nstates), (model.ninputs + model.noutputs, model.nstates)
        if sizes != needed or not network.identity_output:
            raise ValueError(
                f"network must have identity_output, {needed[0]} inputs (those of the plant, then its outputs) and "
                f"{needed[1]} states, got identity_output={network.identity_output}, {sizes[0]} and {sizes[1]}"
            )
        if bool(model.state_is_angle.any()) or bool(model.output_is_angle.any()):
            raise ValueError("model must not declare angles: a network of raw signals cannot follow their jumps")
        self.model, self.network = model, network

    def init(self, x0, P0=None) -> NetworkState:
        """Start from a predicted state (..., nstates); `P0` is ignored, an observer carries no covariance."""
        x0 = as_tensor(x0, "x0", self.model.nstates)
        with torch.no_grad():
            return NetworkState(x0, self.network.explicit(), self.network.streaming() if x0.ndim == 1 else None)

    def step(self, state: NetworkState, u, y) -> tuple[NetworkState, Estimate]:
        """Use u (..., ninputs) and y (..., noutputs) of instant k; returns the state of k+1 and the estimate at k."""
        if not isinstance(state, NetworkState):
            raise TypeError(f"state must be the NetworkState that init or step returned, got {type(state).__name__}")
        v = self._signals(*check_measurement(self.model, u, y))
        if state.stream is not None and state.x.ndim == v.ndim == 1:
            following = torch.from_numpy(state.stream(state.x.detach().numpy(), v.detach().numpy())[0])
        else:
            with torch.no_grad():
                following, _ = state.matrices.step(state.x, v)
        return state._replace(x=following), Estimate(state.x)

    def estimate_sequence(self, state: NetworkState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs), one rollout."""
        v = self._signals(*check_record(self.model, u, y))
        lead, steps = torch.broadcast_shapes(state.x.shape[:-1], v.shape[:-2]), v.shape[-2]
        v = v.expand(*lead, -1, -1).reshape(lead.numel(), steps, -1).transpose(0, 1)
        x0 = state.x.expand(*lead, -1).reshape(lead.numel(), -1)
        with torch.no_grad():
            x, _ = state.matrices.rollout(x0, v)
        return Estimate(x[:-1].transpose(0, 1).reshape(*lead, steps, -1))

    def _signals(self, u, y):
        if bool(torch.isnan(y).any()):
            raise ValueError("y holds NaN: this observer has no answer to missing measurements, an R2DNObserver has")
        lead = torch.broadcast_shapes(u.shape[:-1], y.shape[:-1])
        return torch.cat([u.expand(*lead, -1), y.expand(*lead, -1)], -1)
