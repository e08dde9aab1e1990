"""Start-up signals: an observer forgets its start as a Kalman filter does."""

import control as ct
import numpy as np
import pytest
import torch

import estimators as est
import plants


@pytest.fixture(scope="module")
def linear():
    setting = plants.scenario("mass_spring_damper")
    observer = est.R2DNObserver(setting.model)
    observer.initialise(setting.simulate(512, 100, seed=0))
    return setting, observer, setting.simulate(64, 120, seed=1)


def test_untrained_observer_of_a_linear_plant_is_the_kalman_filter_from_the_first_sample_on(linear):
    setting, observer, data = linear
    kalman = est.run(est.KalmanFilter(setting.model, setting.noise), data)
    own = est.run(observer, data)
    spread = data["x"].values.std((0, 1))
    for kind in ("predicted", "filtered"):
        # parameters are float32, and the signals are cut where a thousandth is left
        assert np.abs((own[kind] - kalman[kind]).values / spread).max() < 5e-3


def test_without_the_signals_it_would_take_longer(linear):
    _, observer, data = linear
    _, u, y = plants.to_tensors(data)
    start = observer.init(np.zeros((len(y), 2)))
    x = data["x"].values[:, :15]
    with_signals, without = (
        np.sqrt(np.mean((observer.estimate_sequence(s, u, y).filtered.numpy()[:, :15] - x) ** 2, (0, 1)))
        for s in (start, start._replace(startup=None))
    )
    assert (without > 1.2 * with_signals).all()


def test_what_a_start_changes_is_what_forgetting_says(linear):
    _, observer, data = linear
    startup, (_, u, y) = observer.startup, plants.to_tensors(data)
    v, _, _ = observer.coordinates.network_input(u[:1], y[:1])
    v, change = v.transpose(0, 1), torch.tensor([[0.01, -0.02]], dtype=torch.float64)
    one, two = (startup.signals(startup.init(z), v, None)[0][:, 0] for z in (0 * change, change))
    bound = startup.forgetting(len(v)) @ np.abs(change.numpy()[0])
    difference = np.abs((two - one).numpy())
    assert (difference <= bound + 1e-12).all()
    single = torch.tensor([[0.01, 0.0]], dtype=torch.float64)  # one component: the bound is reached
    moved = startup.signals(startup.init(single), v, None)[0][:, 0]
    np.testing.assert_allclose(
        np.abs((moved - one).numpy())[:, 1:], startup.forgetting(len(v))[:, 1:, 0] * 0.01, atol=1e-12
    )


def test_signals_are_bounded_whatever_is_measured_and_end(linear):
    _, observer, data = linear
    startup, (_, u, y) = observer.startup, plants.to_tensors(data)
    v, _, _ = observer.coordinates.network_input(u, 1e4 * y)
    found, state = startup.signals(startup.init(torch.zeros(len(y), 2, dtype=torch.float64)), v.transpose(0, 1), None)
    assert (found.abs().numpy() <= startup.largest(len(found))[:, None] * (1 + 1e-12)).all()
    assert startup.length < len(found) and not found[startup.length :].any()
    assert state.step == startup.length


def test_nothing_is_corrected_where_nothing_was_measured(linear):
    _, observer, data = linear
    startup, (_, u, y) = observer.startup, plants.to_tensors(data)
    v, _, _ = observer.coordinates.network_input(u, y)
    start = startup.init(torch.zeros(len(y), 2, dtype=torch.float64))
    blind = torch.ones(y.shape[1], len(y), 1, dtype=torch.bool)
    found, _ = startup.signals(start, v.transpose(0, 1), None, blind)
    assert not found[..., 1:].any()


def test_a_slow_plant_gets_the_rate_it_needs():
    """Time constant 500 samples, hardly driven: no gain forgets at 0.99 without following the noise."""
    system = ct.ss([[-0.002]], [[0.002]], [[1]], 0, name="slow")
    model = plants.discretize(system, 1.0)
    noise = plants.GaussianNoise([1e-8], [0.01])
    data = plants.simulate(model, trajectories=64, steps=300, noise=noise, seed=0)
    observer = est.R2DNObserver(model, nfeedback=2, hidden=(4,))
    observer.initialise(data)
    assert 0.99 < observer.contraction_rate < 1
    assert est.certify(observer).verdict == "proved"
    chosen = observer.contraction_rate
    observer.fit(data, updates=3, one_step_updates=3, horizon=20, progress=False)  # designs again, and must not warn
    assert observer.contraction_rate == chosen
    with pytest.warns(UserWarning, match="slower than the contraction rate 0.9 asked for"):
        est.R2DNObserver(model, nfeedback=2, hidden=(4,), contraction_rate=0.9).initialise(data)
