"""Data-parallel training: two processes find what one finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import estimators as est
import plants
from tests.estimators.train_in_parallel import train

ROOT = Path(__file__).parents[2]


def test_two_gloo_processes_give_the_single_process_result(tmp_path):
    files = [str(tmp_path / name) for name in ("observer.safetensors", "checkpoint.safetensors")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(ROOT / "tests/estimators/train_in_parallel.py"), *files],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, history = train()
    together = est.load(files[0], plants.scenario("duffing").model)
    assert history.best_update > 0  # something was learned
    for one, two in zip(alone.network.parameters(), together.network.parameters(), strict=True):
        # sums in another order, twenty updates; files hold what the network holds
        torch.testing.assert_close(one, two.to(one.dtype), rtol=1e-7, atol=1e-8)
    assert Path(files[1]).exists()


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    from estimators import training

    monkeypatch.setattr(training, "_is_distributed", lambda: True)
    monkeypatch.setattr(training.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes that share it, got 8"):
        train()
