"""Measurement noise chosen against an observer: what a worst-case bound is to be compared with."""

import numpy as np
import torch
import xarray as xr

from estimators.certificates.tracker import Tracker
from estimators.networks.rollout import Recursion, rollout
from plants.schema import to_tensors

TRAJECTORIES, ROUNDS = 64, 4


def worst_errors(tracker: Tracker, observer, model, dataset: xr.Dataset, noise: np.ndarray) -> np.ndarray:
    """Largest settled errors found with noise at its bounds, signs by the gradient of the last error, (kind, state).

    Lower bounds of what noise within its bounds can do; for a linear observer the largest possible on the record.

    Parameters
    ----------
    tracker : Tracker
        Of the observer.
    observer : R2DNObserver or LuenbergerObserver
        Started at the true states.
    model : StateSpaceModel
        The plant.
    dataset : xarray.Dataset
        Trajectories with true states.
    noise : numpy.ndarray
        (noutputs,) bounds, in the plant's units.
    """
    x, u, _ = (part[:TRAJECTORIES] for part in to_tensors(dataset))
    y, n, scale = model.output(x, u), model.nstates, torch.from_numpy(tracker.state_scale)
    coordinates = getattr(observer, "coordinates", None)
    if coordinates is None:
        loop = tracker.loop
        M, N = (
            torch.from_numpy(np.hstack([a, b, np.zeros((len(a), 1))]))
            for a, b in ((loop.A, loop.B2), (loop.C2, loop.D22))
        )
        matrices, v = Recursion("relu", M, N, None, None, ()), torch.cat([u, y], -1)
        scaled = x
    else:
        x = coordinates.in_frame_of(x, u, y)
        matrices, scaled = observer.explicit().collapse(), coordinates.from_plant(x)
        v, _ = observer.settled_input(u, y)
    v, truth = v.transpose(0, 1).contiguous(), scaled.transpose(0, 1)
    start = torch.nn.functional.pad(scaled[:, 0], (0, len(matrices.M) - n))
    steady = slice(-max(1, len(v) // 4), None)
    bound = torch.from_numpy(noise / tracker.output_scale)
    worst = np.zeros((len(tracker.kinds), n))

    def errors(change):
        moved = torch.cat(
            [
                v[..., : tracker.noise_columns[0]],
                v[..., tracker.noise_columns] + change,
                v[..., tracker.noise_columns[-1] + 1 :],
            ],
            -1,
        )
        _, out = rollout(matrices, start, moved)
        parts = [out[..., k * n : (k + 1) * n] for k in range(len(tracker.kinds))]
        return [
            p - truth if kind == "filtered" else p[:-1] - truth[1:]
            for kind, p in zip(tracker.kinds, parts, strict=True)
        ]

    for k in range(len(tracker.kinds)):
        for i in range(n):
            change, sign = torch.zeros(*v.shape[:2], len(bound), dtype=torch.float64), None
            for _ in range(ROUNDS):
                change.requires_grad_()
                error = errors(change)[k][..., i]
                worst[k, i] = max(worst[k, i], float(error[steady].detach().abs().max()))
                if sign is None:  # half of the trajectories each way
                    sign = torch.where(torch.arange(error.shape[1]) % 2 == 0, 1.0, -1.0).double()
                (gradient,) = torch.autograd.grad((error[-1] * sign).sum(), change)
                change = (torch.sign(gradient) * bound).detach()
            with torch.no_grad():
                worst[k, i] = max(worst[k, i], float(errors(change)[k][steady, :, i].abs().max()))
    return worst * scale.numpy()
