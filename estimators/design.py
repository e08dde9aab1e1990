"""Linear observer design from data: scaling, best affine model, Kalman gains, expected errors."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from estimators.coordinates import Coordinates, centre_and_scale
from estimators.gaussian.kalman import SteadyState, steady_state
from plants.angles import wrap
from plants.arrays import as_covariance
from plants.model import StateSpaceModel
from plants.schema import to_tensors

MOST_POINTS = 20_000
"""No more data points than this go into the affine fit."""
LINEARISED_POINTS = 500
"""Of them so many are linearised."""
UNEXCITED = 1e-3
"""Relative singular value of the data below which a direction counts as not excited."""
STABILITY_RESERVE = 0.999
"""A linear start contracts at least this much faster than the rate asked for, so that the inequality is strict."""
DEFAULT_RATE, SLOWEST = 0.99, 1 - 1e-5
"""Contraction rate where none is asked for, and the slowest that is taken for a slow plant."""
TRANSIENT_SHARE = 0.1
"""Least share of the stationary observer's error variance that is expected of any observer."""
INFLATIONS = tuple(10.0**k for k in np.arange(0, 4.1, 0.5))
"""Multiples of the affine fit's process covariance that are tried."""


def noise_of(dataset: xr.Dataset, model: StateSpaceModel) -> tuple[np.ndarray, np.ndarray]:
    """Process and measurement covariance named by a dataset, else those of the model's residuals on it.

    Parameters
    ----------
    dataset : xarray.Dataset
        With true states.
    model : StateSpaceModel
        The plant.

    Returns
    -------
    Q, R : numpy.ndarray
        (nstates, nstates) and (noutputs, noutputs), with a floor of 1e-4 of each channel's standard
        deviation, far below anything that matters, which keeps the Riccati equation solvable.
    """
    x, u, y = to_tensors(dataset)
    if "process_cov" in dataset and "input_cov" not in dataset:
        Q, R = dataset["process_cov"].values, dataset["measurement_cov"].values
    else:
        w = wrap(x[:, 1:] - model.step(x[:, :-1], u[:, :-1]), model.state_is_angle).flatten(0, 1)
        v = wrap(y - model.output(x, u), model.output_is_angle).flatten(0, 1)
        v = v[~torch.isnan(v).any(dim=1)]
        Q, R = (np.atleast_2d((a.T @ a / max(len(a), 1)).numpy()) for a in (w, v))
    state_floor, output_floor = ((1e-4 * centre_and_scale(a.numpy())[1]) ** 2 for a in (x, y))
    return as_covariance(Q + np.diag(state_floor), "process_cov", model.nstates), as_covariance(
        R + np.diag(output_floor), "measurement_cov", model.noutputs
    )


@dataclass(frozen=True, eq=False)
class AffineModel:
    """z+ = A z + B v + b + w, s = C z + D v + d + n in scaled coordinates: the best affine fit of a plant over data.

    Attributes
    ----------
    A, B, b, C, D, d : numpy.ndarray
        Matrices and offsets.
    Q, R : numpy.ndarray
        Covariances of the plant's own noise.
    Q_fit, R_fit : numpy.ndarray
        The same plus what the affine fit leaves unexplained.
    """

    A: np.ndarray
    B: np.ndarray
    b: np.ndarray
    C: np.ndarray
    D: np.ndarray
    d: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    Q_fit: np.ndarray
    R_fit: np.ndarray

    @classmethod
    def fit(
        cls, model: StateSpaceModel, dataset: xr.Dataset, states: torch.Tensor, coordinates: Coordinates
    ) -> "AffineModel":
        """Regress the model's next state and output on state and input over data points.

        For a linear plant this is the plant itself; for a nonlinear one it weighs the linearisations
        by where the plant actually is. In directions in which the data hardly vary, which are many where a plant
        has many states, regression would find anything: there it is the mean linearisation.

        Parameters
        ----------
        model : StateSpaceModel
            The plant.
        dataset : xarray.Dataset
            Inputs; noise, named or shown.
        states : torch.Tensor
            (trajectory, time, nstates) true states.
        coordinates : Coordinates
            Scaling of states, inputs and outputs.
        """
        _, u, _ = to_tensors(dataset)
        x, u = states.flatten(0, 1), u.flatten(0, 1)
        every = max(1, len(x) // MOST_POINTS)
        x, u = x[::every], u[::every]
        nx, nu = model.nstates, model.ninputs
        c, s = coordinates.state_centre, coordinates.state_scale
        ci, si = coordinates.input_centre, coordinates.input_scale
        regressors = torch.cat(
            [(x - c) / s, (u - ci[:nu]) / si[:nu], torch.ones(len(x), 1, dtype=torch.float64)], dim=1
        ).numpy()
        targets = torch.cat([(model.step(x, u) - c) / s, (model.output(x, u) - ci[nu:]) / si[nu:]], dim=1).numpy()
        coefficients, _, rank, _ = np.linalg.lstsq(regressors, targets, rcond=UNEXCITED)
        if rank < regressors.shape[1]:
            few = slice(None, None, max(1, len(x) // LINEARISED_POINTS))
            scale = torch.cat([s, si[nu:]])[:, None] / torch.cat([s, si[:nu]])
            A, B, C, D = (part.mean(0) for part in model.linearize(x[few], u[few]))
            mean = torch.cat([torch.cat([A, B], 1), torch.cat([C, D], 1)]) / scale
            mean = torch.cat([mean, mean.new_zeros(len(mean), 1)], 1).nan_to_num(0.0, 0.0, 0.0).numpy().T
            coefficients = mean + np.linalg.lstsq(regressors, targets - regressors @ mean, rcond=UNEXCITED)[0]
        residual = targets - regressors @ coefficients
        unexplained = residual.T @ residual / len(residual)
        M = coefficients.T
        Q, R = noise_of(dataset, model)
        Q, R = Q / np.outer(s, s), R / np.outer(si[nu:], si[nu:])
        return cls(
            M[:nx, :nx],
            M[:nx, nx : nx + nu],
            M[:nx, -1],
            M[nx:, :nx],
            M[nx:, nx : nx + nu],
            M[nx:, -1],
            Q,
            R,
            Q + unexplained[:nx, :nx],
            R + unexplained[nx:, nx:],
        )

    def gains(self, rate: float | None, states: np.ndarray, inputs: np.ndarray) -> "Design":
        """Kalman gains whose predictor contracts at `rate` or faster and tracks best on data.

        What the affine fit leaves unexplained is not white, so its covariance alone says too little
        about the best gain: multiples of it are tried on the data.

        Parameters
        ----------
        rate : float, optional
            Contraction rate asked for. Default: ``DEFAULT_RATE``, or where the best gain is slower than that, half
            way between its pace and 1.
        states, inputs : numpy.ndarray
            (time, trajectory, nstates) and (time, trajectory, ninputs + noutputs), scaled.

        Returns
        -------
        Design

        Warns
        -----
        UserWarning
            The best gain is slower than `rate`; a faster one was taken.
        """
        options = [steady_state(self.A, self.C, inflation * self.Q_fit, self.R_fit) for inflation in INFLATIONS]
        scores = [self._tracking_error(option, states, inputs) for option in options]
        chosen = int(np.nanargmin(scores))
        best = Design(self, options[chosen], INFLATIONS[chosen] * self.Q_fit, 1.0, rate or DEFAULT_RATE)
        wanted = _pace(best.contraction_rate)
        if rate is None and best.radius >= wanted:
            if best.radius > SLOWEST:
                raise ValueError(
                    f"no observer of this plant forgets its start in less than {1 / (1 - SLOWEST):.0f} steps: the best "
                    f"gain contracts at {best.radius:.7f} a step; a state that the outputs do not show neither decays "
                    "nor is driven by noise: measure it, or leave it out"
                )
            best = best._replace(contraction_rate=(1 + best.radius) / 2)
            wanted = _pace(best.contraction_rate)
        if best.radius < wanted:
            return best
        warnings.warn(
            f"the Kalman predictor contracts at {best.radius:.4f} a step, slower than the contraction rate "
            f"{rate:g} asked for: the observer starts from a faster, noisier gain; "
            "a rate closer to 1 allows a more accurate one",
            UserWarning,
            stacklevel=3,
        )
        try:
            faster = Design(
                self, steady_state(self.A, self.C, self.Q_fit, self.R_fit, rate=wanted), self.Q_fit, wanted, rate
            )
        except ValueError:
            faster = best
        if faster.radius >= rate:
            raise ValueError(
                f"no gain makes an observer of this plant contract at {rate:g} a step (the best reaches "
                f"{faster.radius:.4f}): a state that the outputs do not show decays more slowly than that or "
                "grows; measure it, or ask for a contraction_rate closer to 1"
            )
        return faster

    def _tracking_error(self, gains, states, inputs) -> float:
        """Mean over states of the log mean square error of the linear predictor, after a third of the record."""
        nu, L = self.B.shape[1], gains.predictor_gain
        z, error = states[0], []
        into = inputs[..., :nu] @ (self.B - L @ self.D).T + inputs[..., nu:] @ L.T + self.b - L @ self.d
        closed = (self.A - L @ self.C).T
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(len(states) - 1):
                z = z @ closed + into[k]
                error.append(z - states[k + 1])
            square = np.square(error[len(error) // 3 :]).mean(axis=(0, 1))
        return float(np.log(square + np.finfo(float).tiny).mean())

    def expected_errors(
        self, gains: SteadyState, P0: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Error variances to be expected at each time after a start, were the plant affine and its noise the only one.

        Those of the Kalman filter, but never less than a share of what the stationary observer
        reaches: with very good sensors the filter forgets its start in a step or two, which no
        observer with a prescribed contraction can follow and which would drown everything else.

        Parameters
        ----------
        gains : SteadyState
            Of the stationary observer.
        P0 : numpy.ndarray
            (nstates, nstates) covariance of the start.
        steps : int
            How far.

        Returns
        -------
        predicted, filtered : numpy.ndarray
            (steps + 1, nstates).
        stationary : numpy.ndarray
            (nstates, nstates) predicted covariance of the stationary observer at the end.
        """

        def recursion(gain_of):
            P, predicted, filtered = P0, [], []
            for _ in range(steps + 1):
                K = gain_of(P)
                reduced = np.eye(len(P)) - K @ self.C
                corrected = reduced @ P @ reduced.T + K @ self.R @ K.T
                predicted.append(np.diag(P))
                filtered.append(np.diag(corrected))
                last, P = P, self.A @ corrected @ self.A.T + self.Q
            return np.array(predicted), np.array(filtered), last

        observer = recursion(lambda P: gains.filter_gain)
        kalman = recursion(lambda P: np.linalg.solve(self.C @ P @ self.C.T + self.R, self.C @ P).T)
        expected = [np.maximum(k, TRANSIENT_SHARE * o) for k, o in zip(kalman[:2], observer[:2], strict=True)]
        # nor does a start that is known exactly make the first samples infinitely important
        predicted, filtered = (np.maximum(e, TRANSIENT_SHARE * e[-1]) for e in expected)
        return predicted, filtered, observer[2]


def _pace(rate):
    """Spectral radius below which a linear start may contract, for a contraction rate: strictly faster than it."""
    # of a rate next to 1 the reserve is a share of what is left to 1
    return STABILITY_RESERVE * rate if rate == 1 else max(STABILITY_RESERVE * rate, 1 - 1.5 * (1 - rate))


class Design(NamedTuple):
    """A stationary Kalman filter of an affine model, and what it is the filter for.

    Attributes
    ----------
    affine : AffineModel
        The model.
    steady : SteadyState
        Its gains.
    process_cov : numpy.ndarray
        (nstates, nstates), for which they are optimal.
    rate : float
        Prescribed degree of stability of the gains; 1 where they are the optimum.
    contraction_rate : float
        For which the observer is designed.
    """

    affine: AffineModel
    steady: SteadyState
    process_cov: np.ndarray
    rate: float
    contraction_rate: float

    @property
    def radius(self) -> float:
        """Spectral radius of the predictor's error dynamics A - L C."""
        return float(np.abs(np.linalg.eigvals(self.affine.A - self.steady.predictor_gain @ self.affine.C)).max())
