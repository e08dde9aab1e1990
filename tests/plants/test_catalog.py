"""What the catalogue promises of every plant, and what is special about some."""

from dataclasses import replace

import control as ct
import numpy as np
import pytest

import estimators as est
import plants
from tests.small_plants import CATALOGUE


@pytest.mark.parametrize("name", CATALOGUE)
def test_scenario_simulates_within_its_region_and_documents_itself(name):
    setting = plants.scenario(name)
    data = setting.simulate(64, 200, seed=5)
    region, x = setting.model.operating_region, data["x"].values
    # most of the time; starts and noise are Gaussian
    inside = (x >= region.state_lower) & (x <= region.state_upper) | setting.model.state_is_angle.numpy()
    if name not in ("measured_pendulum", "measured_double_pendulum"):  # which turn over
        assert inside.mean((0, 1)).min() > 0.9
    assert setting.description and isinstance(setting.system, ct.InputOutputSystem)
    labels = (*setting.model.state_labels, *setting.model.input_labels, *setting.model.output_labels)
    assert not any("[" in label for label in labels), "signals of a catalogue plant have names"


def test_growth_model_is_the_published_one():
    model = plants.scenario("growth_model").model
    x = np.array([[-3.0], [0.5], [12.0]])
    k = 4
    published = x / 2 + 25 * x / (1 + x**2) + 8 * np.cos(1.2 * k)
    np.testing.assert_allclose(model.step(x, np.full((3, 1), np.cos(1.2 * k))).numpy(), published, rtol=1e-12)
    np.testing.assert_allclose(model.output(x, np.zeros((3, 1))).numpy(), x**2 / 20, rtol=1e-12)


def test_falling_body_has_the_published_drag_in_feet():
    model = plants.scenario("falling_body").system
    altitude, speed, ballistic = 2e5, 1.5e4, 1e-3
    drag = np.exp(-5e-5 * altitude) * speed**2 * ballistic
    rates = model.dynamics(0, [altitude / 1e4, speed / 1e4, ballistic / 1e-3], [])
    np.testing.assert_allclose(rates, [-speed / 1e4, -drag / 1e4, 0], rtol=1e-12)


def test_lorenz_has_its_fixed_points():
    system = plants.lorenz63()
    c = np.sqrt(8 / 3 * 27)
    for point in ([0, 0, 0], [c, c, 27], [-c, -c, 27]):
        np.testing.assert_allclose(system.dynamics(0, point, []), 0, atol=1e-12)


def test_reactor_has_the_published_operating_point():
    """Concentration 0.5 mol/L and 350 K with the coolant at 300 K (textbook, rounded)."""
    rates = plants.stirred_tank_reactor().dynamics(0, [0.5, 350.0], [300.0])
    assert abs(rates[0]) < 1e-3 and abs(rates[1]) < 0.2


def test_slow_sensors_measure_at_their_own_rate():
    slow, fast = plants.scenario("bicycle_slow_receiver"), plants.scenario("bicycle")
    for condition in ("nominal", "wrong start", "parameters 10 %"):
        got, full = (plants.CONDITIONS[condition].simulate(setting, 3, 25, seed=1) for setting in (slow, fast))
        np.testing.assert_array_equal(got["x"], full["x"])
        np.testing.assert_array_equal(got["y"][..., 2], full["y"][..., 2])
        np.testing.assert_array_equal(got["y"][:, ::10], full["y"][:, ::10])
        assert np.isnan(got["y"].values[:, np.arange(25) % 10 != 0, :2]).all()
    with pytest.raises(ValueError, match="every names 'gps'"):
        replace(slow, every={"gps": 10})
    with pytest.raises(ValueError, match=r"every\['compass'\] must be a positive integer, got 0"):
        replace(slow, every={"compass": 0})


def test_motor_turns_as_published():
    """Locked at 90 degrees, phase b makes no torque and phase a brakes; turning, the magnet induces 0.1 V s/rad."""
    motor = plants.synchronous_motor()
    rates = motor.dynamics(0, [2.0, 3.0, 0.0, np.pi / 2], [0.0, 0.0])
    np.testing.assert_allclose(rates, [-1.9 * 2 / 0.003, -1.9 * 3 / 0.003, -1.5 * 0.1 * 2 / 1.8e-4, 0], atol=1e-9)
    rates = motor.dynamics(0, [0.0, 0.0, 10.0, np.pi / 2], [0.0, 0.0])
    np.testing.assert_allclose(rates, [0.1 * 10 / 0.003, 0, -0.001 * 10 / 1.8e-4, 10], atol=1e-9)


def test_sensors_have_choices_and_say_so():
    with pytest.raises(ValueError, match="sensor must be 'angle' or 'displacement', got 'camera'"):
        plants.pendulum(sensor="camera")
    with pytest.raises(ValueError, match="sensor must be 'bearing' or 'range', got 'radar'"):
        plants.loitering_target("radar")


@pytest.mark.parametrize("name", ["growth_model", "bearings_only", "range_only"])
def test_an_extended_kalman_filter_is_far_from_what_particles_reach(name):
    setting = plants.scenario(name)
    data = setting.simulate(24, 60, seed=3)
    filters = {
        "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise),
        "particles": est.ParticleFilter(setting.model, setting.noise, particles=400),
    }
    rmse = est.benchmark(filters, data)["rmse"].sel(kind="predicted", phase="transient")
    ratio = (rmse.sel(estimator="EKF") / rmse.sel(estimator="particles")).values
    assert ratio.max() > 1.1
