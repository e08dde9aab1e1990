"""Shared, cheap fixtures."""

import os

# before torch is imported, and for the kernels of notebooks: matrices here are small, more threads gain nothing, and
# lose minutes where another process needs the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import estimators as est
import plants


def pytest_collection_modifyitems(items):
    """Notebooks take a minute or two each: the first alone is among the fast tests."""
    for item in items:
        if item.path.suffix == ".ipynb" and not item.path.name.startswith("01_"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def trained_pair():
    """A briefly trained observer of the pendulum, and test data."""
    setting = plants.scenario("pendulum")
    observer = est.R2DNObserver(setting.model, nfeedback=8, hidden=(16, 16))
    observer.fit(setting.simulate(256, 100, seed=0), updates=60, one_step_updates=60, horizon=50, progress=False)
    return observer, setting.simulate(32, 100, seed=2)
