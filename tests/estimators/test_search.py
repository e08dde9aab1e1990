"""Search for the settings of an observer."""

import numpy as np
import pytest

import estimators as est
import plants

SHORT = {"updates": 8, "one_step_updates": 4, "progress": False}


@pytest.fixture(scope="module")
def problem():
    setting = plants.scenario("duffing")
    return setting.model, setting.simulate(32, 60, seed=0), setting.simulate(16, 60, seed=1)


def test_the_best_trial_is_returned_and_can_be_trained_on(problem):
    model, train, validation = problem
    found = est.search(model, train, validation, trials=4, **SHORT)
    assert len(found.table) == 4 and found.loss == found.table["loss"].min() == found.table["loss"][0]
    observer = est.R2DNObserver(model, **found.settings)
    history = observer.fit(train, validation, **SHORT, **found.fit)
    assert min(history.validation_loss) == pytest.approx(found.loss, rel=1e-6)
    defaults = est.R2DNObserver(model)
    history = defaults.fit(train, validation, **SHORT)
    # the first trial is the defaults, so the search is never worse than they are
    assert found.loss <= min(history.validation_loss) * (1 + 1e-6)


def test_the_same_seed_finds_the_same(problem):
    model, train, validation = problem
    one, two = (est.search(model, train, validation, trials=3, seed=5, **SHORT) for _ in range(2))
    assert one.settings == two.settings
    np.testing.assert_array_equal(one.table["loss"], two.table["loss"])


def test_bad_input(problem):
    model, train, validation = problem
    with pytest.raises(ValueError, match="trials must be a positive integer, got 0"):
        est.search(model, train, validation, trials=0)
    with pytest.raises(ValueError, match="every trial failed; the first: "):
        est.search(model, train.isel(time=slice(0, 2)), validation, trials=2, **SHORT)
