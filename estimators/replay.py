"""Measurements that arrive late: a fixed lag of beliefs is kept and replayed."""

from typing import Any, NamedTuple

import torch

from estimators.base import Estimate, Estimator, channels_of, check_measurement
from plants.arrays import as_tensor


class ReplayState(NamedTuple):
    """Belief with a memory.

    Attributes
    ----------
    now : object
        Belief of the estimator about the coming instant.
    past : tuple
        (belief, u, y) of the last instants, the oldest first.
    """

    now: Any
    past: tuple = ()


class Replay:
    """An estimator that takes in late measurements as if they had been on time.

    The estimates from then on are exactly those of a record in which the measurement was where it belongs: the
    steps since are made again, at most `lag` of them. Beliefs are immutable, so the memory costs no copies.

    Parameters
    ----------
    estimator : Estimator
        Any filter or observer.
    lag : int
        The longest delay, in samples: with 1, a measurement of the instant before the last step.

    Raises
    ------
    TypeError, ValueError
        Not an estimator; `lag` not a positive integer.
    """

    def __init__(self, estimator: Estimator, lag: int):
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimator must be a filter or an observer, got {type(estimator).__name__}")
        if isinstance(lag, bool) or not isinstance(lag, int) or lag < 1:
            raise ValueError(f"lag must be a positive integer, got {lag!r}")
        self.estimator, self.lag, self.model = estimator, lag, estimator.model

    def init(self, x0, P0=None) -> ReplayState:
        """Start the estimator; see its own ``init``."""
        return ReplayState(self.estimator.init(x0, P0))

    def step(self, state: ReplayState, u, y) -> tuple[ReplayState, Estimate]:
        """Use what has arrived of instant k; see the estimator's own ``step``."""
        u, y = (part.clone() for part in check_measurement(self.model, u, y))  # a caller may use its arrays again
        following, estimate = self.estimator.step(state.now, u, y)
        return ReplayState(following, (*state.past, (state.now, u, y))[-self.lag - 1 :]), estimate

    def late(self, state: ReplayState, y, *, delay: int, sensor=None) -> tuple[ReplayState, Estimate]:
        """Take in a measurement made `delay` steps before the last step.

        Parameters
        ----------
        state : ReplayState
            Belief after the last step.
        y : array_like
            (..., noutputs), or the channels of `sensor`; NaN where not measured.
        delay : int
            0 for the instant of the last step, 1 for the one before.
        sensor : str or sequence of str, optional
            Labels of the outputs that `y` holds.

        Returns
        -------
        state : ReplayState
            Belief about the coming instant.
        estimate : Estimate
            At the instant of the last step.

        Raises
        ------
        ValueError
            Older than the lag or than the start, no such output, or a channel that was measured already.
        """
        if not state.past:
            raise ValueError("nothing has been stepped yet, so nothing can be late")
        if isinstance(delay, bool) or not isinstance(delay, int) or not 0 <= delay < len(state.past):
            raise ValueError(
                f"delay must be an integer from 0 to {len(state.past) - 1} (lag {self.lag}, {len(state.past)} steps "
                f"kept), got {delay!r}"
            )
        labels = self.model.output_labels
        channels = list(range(len(labels))) if sensor is None else channels_of(sensor, labels)
        at = len(state.past) - 1 - delay
        belief, u, early = state.past[at]
        y = as_tensor(y, "y", len(channels), finite=False)
        late = y.new_full((*y.shape[:-1], len(labels)), torch.nan)
        late[..., channels] = y
        late, early = torch.broadcast_tensors(late, early)
        twice = ~torch.isnan(late) & ~torch.isnan(early)
        if bool(twice.any()):
            which = [labels[i] for i in twice.reshape(-1, len(labels)).any(0).nonzero().flatten()]
            raise ValueError(f"y: {which} of {delay} steps ago were measured already; give NaN for what is not new")
        merged = torch.where(torch.isnan(early), late, early)
        replayed = ReplayState(belief, state.past[:at])
        for _, inputs, measurement in ((belief, u, merged), *state.past[at + 1 :]):
            replayed, estimate = self.step(replayed, inputs, measurement)
        return replayed, estimate

    def estimate_sequence(self, state: ReplayState, u: torch.Tensor, y: torch.Tensor) -> Estimate:
        """Estimate a record, in which nothing is late; see the estimator's own ``estimate_sequence``."""
        return self.estimator.estimate_sequence(state.now, u, y)
