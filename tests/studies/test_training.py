"""The studies' training loop: resumable, honest about time, loud about trouble."""

import math

import numpy as np
import pytest
import torch

from tutorials.studies.training import History, cosine, plateau, staircase, train


def line(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 1)


def losses_of(network):
    def losses(epoch):
        rng = np.random.default_rng(epoch)
        for _ in range(3):
            x = torch.from_numpy(rng.standard_normal((16, 2))).float()
            yield (network(x) - x.sum(1, keepdim=True)).square().mean()

    return losses


def run(network, epochs, checkpoint=None, **more):
    return train(
        network,
        losses_of(network),
        epochs=epochs,
        learning_rate=cosine(0.05, 8),
        clip=10.0,
        checkpoint=checkpoint,
        progress=False,
        **more,
    )


def test_training_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    whole, first, second = line(), line(), line(1)
    right = run(whole, 8)
    run(first, 5, tmp_path / "c.safetensors")
    history = run(second, 8, tmp_path / "c.safetensors")
    assert history.loss == right.loss
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_another_experiment_is_refused(tmp_path):
    run(line(), 1, tmp_path / "c.safetensors", settings={"width": 3})
    with pytest.raises(ValueError, match="settings"):
        run(line(), 2, tmp_path / "c.safetensors", settings={"width": 4})


def test_loss_that_is_not_finite_stops_the_training():
    network = line()
    with pytest.raises(FloatingPointError, match="epoch 0"):
        train(
            network,
            lambda epoch: iter([network.weight.sum() * math.inf]),
            epochs=2,
            learning_rate=lambda h: 1e-3,
            progress=False,
        )


def test_scores_are_taken_before_and_after_every_epoch():
    scores = iter(range(10))
    assert run(line(), 3, score=lambda: next(scores)).test == [0, 1, 2, 3]


def test_schedules():
    def after(*loss):
        return History(loss=list(loss))

    assert staircase(1.0, 2)(after(1, 1, 1, 1)) == pytest.approx(1e-2)
    assert staircase(1.0, 1)(after(*[1] * 20)) == 1e-6
    rate = plateau(1.0, patience=2)
    assert rate(after(3, 2, 1)) == 1.0
    assert rate(after(1, 1, 1)) == 1.0
    assert rate(after(1, 1, 1, 1)) == pytest.approx(0.1)
    assert rate(after(1, 1, 1, 1, 1, 1, 1)) == pytest.approx(0.01)
    assert cosine(1.0, 10)(after()) == pytest.approx(1.001)
