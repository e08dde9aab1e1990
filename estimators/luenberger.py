"""Observers with a constant gain: Luenberger's and the steady-state Kalman filter."""

from typing import NamedTuple

import numpy as np
import scipy.signal
import torch

from estimators.base import Estimate, check_measurement, check_record, stack_steps
from estimators.gaussian.kalman import steady_state
from plants.angles import wrap
from plants.arrays import as_tensor
from plants.model import StateSpaceModel
from plants.noise import GaussianNoise


class LuenbergerState(NamedTuple):
    """Belief of a Luenberger observer.

    Attributes
    ----------
    mean : torch.Tensor
        (..., nstates), predicted.
    time : float
        Time of the belief, passed to time-varying plants.
    """

    mean: torch.Tensor
    time: float = 0.0


class LuenbergerObserver:
    """Observer with a constant gain, for linear plants and, near an operating point, for nonlinear ones.

    x_filtered = x + K (y - h(x, u)), x_next = f(x_filtered, u). With a predictor gain L instead, x_next =
    f(x, u) + L (y - h(x, u)), and there is no filtered estimate.

    Parameters
    ----------
    model : StateSpaceModel
        The plant.
    gain : array_like
        (nstates, noutputs).
    form : {'filter', 'predictor'}
        Which of the two gains it is; of a linear plant L = A K.

    Raises
    ------
    TypeError, ValueError
        Not a model; a gain of the wrong shape or not finite; another form.
    """

    def __init__(self, model: StateSpaceModel, gain, *, form: str = "filter"):
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"model must be a StateSpaceModel as plants.discretize returns, got {type(model).__name__}")
        if form not in ("filter", "predictor"):
            raise ValueError(f"form must be 'filter' or 'predictor', got {form!r}")
        self.model, self.form = model, form
        self.gain = as_tensor(gain, "gain")
        if self.gain.shape != (model.nstates, model.noutputs):
            raise ValueError(f"gain must be ({model.nstates}, {model.noutputs}), got {tuple(self.gain.shape)}")

    @classmethod
    def from_noise(cls, model: StateSpaceModel, noise: GaussianNoise, x=None, u=None) -> "LuenbergerObserver":
        """Take the gain of the steady-state Kalman filter of the plant linearised at an operating point.

        Parameters
        ----------
        model : StateSpaceModel
            The plant.
        noise : GaussianNoise
            Process and measurement covariances.
        x, u : array_like, optional
            Operating point, (nstates,) and (ninputs,). Default: centre of the operating region.

        Returns
        -------
        LuenbergerObserver

        Raises
        ------
        ValueError
            Not detectable there, or a mode that the noise does not excite on the unit circle.
        """
        A, _, C, _ = _linearised(model, x, u)
        noise.check_sizes(model)
        return cls(model, steady_state(A, C, noise.process_cov, noise.measurement_cov).filter_gain)

    @classmethod
    def from_poles(cls, model: StateSpaceModel, poles, x=None, u=None) -> "LuenbergerObserver":
        """Place the eigenvalues of A - L C of the plant linearised at an operating point.

        Parameters
        ----------
        model : StateSpaceModel
            The plant.
        poles : array_like
            (nstates,), inside the unit circle; complex ones in conjugate pairs.
        x, u : array_like, optional
            Operating point, (nstates,) and (ninputs,). Default: centre of the operating region.

        Returns
        -------
        LuenbergerObserver
            In predictor form.

        Raises
        ------
        ValueError
            Poles on or outside the unit circle, too few or not reachable (not observable, repeated more often
            than there are outputs).
        """
        poles = np.asarray(poles)
        if poles.shape != (model.nstates,) or not (np.abs(poles) < 1).all():
            raise ValueError(f"poles must be {model.nstates} numbers inside the unit circle, got {poles}")
        A, _, C, _ = _linearised(model, x, u)
        unit = model.operating_region.state_width  # scaled, or units would spoil the placement
        try:
            gain = scipy.signal.place_poles((A * unit / unit[:, None]).T, (C * unit).T, poles).gain_matrix.T
        except ValueError as error:
            raise ValueError(f"poles {poles} cannot be placed, is the plant observable? {error}") from error
        gain = unit[:, None] * gain
        found = np.linalg.eigvals(A - gain @ C)
        if np.abs(np.poly(found) - np.poly(poles)).max() > 1e-6:  # sorting would pair them by their rounding
            raise ValueError(f"poles {poles} cannot be placed, is the plant observable? Got {found}")
        return cls(model, gain, form="predictor")

    def init(self, x0, P0=None) -> LuenbergerState:
        """Start from a predicted state `x0` (..., nstates); there is no covariance."""
        return LuenbergerState(wrap(as_tensor(x0, "x0", self.model.nstates), self.model.state_is_angle))

    def step(self, state: LuenbergerState, u, y) -> tuple[LuenbergerState, Estimate]:
        """Use u and y of instant k; a channel that is NaN changes nothing.

        Parameters
        ----------
        state : LuenbergerState
            Belief about x_k from measurements up to k-1.
        u : array_like or None
            (..., ninputs).
        y : array_like
            (..., noutputs).

        Returns
        -------
        state : LuenbergerState
            Belief about x_{k+1}.
        estimate : Estimate
            At k: predicted, and filtered in the form 'filter'.
        """
        if not isinstance(state, LuenbergerState):
            raise TypeError(f"state must be the LuenbergerState of init or step, got {type(state).__name__}")
        u, y = check_measurement(self.model, u, y)
        angles, x = self.model.state_is_angle, state.mean
        innovation = wrap(y - self.model.output(x, u, state.time), self.model.output_is_angle)
        change = torch.nan_to_num(innovation) @ self.gain.mT
        if self.form == "filter":
            filtered = wrap(x + change, angles)
            following = self.model.step(filtered, u, state.time)
        else:
            filtered, following = None, self.model.step(x, u, state.time) + change
        return LuenbergerState(wrap(following, angles), state.time + self.model.dt), Estimate(x, filtered)

    def estimate_sequence(self, state: LuenbergerState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record: u (..., time, ninputs), y (..., time, noutputs)."""
        u, y = check_record(self.model, u, y)
        state = state._replace(mean=state.mean.expand(*y.shape[:-2], -1))
        return stack_steps(lambda state, k: self.step(state, u[..., k, :], y[..., k, :]), state, y.shape[-2])


def _linearised(model, x, u):
    region = model.operating_region
    return [
        m.numpy()
        for m in model.linearize(region.state_centre if x is None else x, region.input_centre if u is None else u)
    ]
