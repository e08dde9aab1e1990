"""One of the processes that ``torchrun`` starts in test_parallel_training; the first writes what was found."""

import sys

import torch
from torch import distributed

import estimators as est
import plants


def train(**settings):
    """Train a small observer, always the same."""
    setting = plants.scenario("duffing")
    observer = est.R2DNObserver(setting.model, nfeedback=4, hidden=(8,))
    observer.network.double()  # in float32 Adam makes the sign of a rounding a step
    history = observer.fit(
        setting.simulate(32, 50, seed=0),
        updates=15,
        one_step_updates=5,
        horizon=20,
        batch=8,
        progress=False,
        **settings,
    )
    return observer, history


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    observer, history = train(checkpoint=sys.argv[2])
    everyone = [None] * distributed.get_world_size()
    vector = torch.nn.utils.parameters_to_vector(observer.network.parameters()).detach()
    distributed.all_gather_object(everyone, vector)
    assert all(torch.equal(one, everyone[0]) for one in everyone)
    if distributed.get_rank() == 0:
        observer.save(sys.argv[1])
    distributed.destroy_process_group()
