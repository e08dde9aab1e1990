"""The reaction-diffusion plant, and observers of any contracting network on it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import estimators as est
import plants
from estimators.networks import long_memory
from tutorials.studies import reaction_diffusion as study


def test_plant_is_the_equation_it_names():
    """Against a stiff solver of the semi-discrete equation; explicit Euler's error is first order in its step."""
    system, dz = plants.reaction_diffusion(), 0.2
    z = np.linspace(0, 10, 51)
    x = 0.4 + 0.3 * np.cos(np.pi * z / 5)
    x[0] = x[-1] = 0.9

    def slope(t, inside):
        xi = np.concatenate([[0.9], inside, [0.9]])
        i = xi[1:-1]
        return (xi[:-2] + xi[2:] - 2 * i) / dz**2 + i * (1 - i) * (i - 0.5) / 2

    right = solve_ivp(slope, (0, 2), x[1:-1], method="BDF", rtol=1e-9, atol=1e-11).y[:, -1]
    for _ in range(100):
        x = np.asarray(system.updfcn(0.0, x, np.array([0.9]), {}))
    np.testing.assert_allclose(x[1:-1], right, atol=5e-4)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_plant_rests_where_the_reaction_is_zero(level):
    system = plants.reaction_diffusion(updates=4)
    np.testing.assert_allclose(system.updfcn(0.0, np.full(51, level), np.array([level]), {}), level, atol=1e-15)
    assert system.dt == pytest.approx(0.016)


def test_plant_refuses_unstable_steps():
    with pytest.raises(ValueError, match="courant"):
        plants.reaction_diffusion(courant=0.6)
    with pytest.raises(ValueError, match="nodes"):
        plants.reaction_diffusion(nodes=2)


def test_records_are_the_models_own_trajectories():
    model, _ = study.setting("corrected")
    data = study.record(model, 2, 30, 1.0, 0.5, None, 0)
    x, u, y = plants.to_tensors(data)
    torch.testing.assert_close(model.step(x[:, :-1], u[:, :-1]), x[:, 1:], atol=1e-13, rtol=0)
    torch.testing.assert_close(model.output(x, u), y, atol=0, rtol=0)
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1


def network_of(kind, model):
    generator, sizes = torch.Generator().manual_seed(0), (model.ninputs + model.noutputs, model.nstates, model.nstates)
    if kind == "R2DN":
        return est.R2DN(*sizes, nfeedback=4, hidden=(6,), identity_output=True, generator=generator)
    return est.REN(*sizes, nfeedback=5, identity_output=True, activation="relu", generator=generator)


@pytest.mark.parametrize("kind", ["R2DN", "REN"])
class TestNetworkObserver:
    def test_batch_streaming_and_network_agree(self, kind):
        setting = plants.scenario("van_der_pol")
        data, network = setting.simulate(3, 25, seed=0), network_of(kind, setting.model)
        observer = est.NetworkObserver(setting.model, network)
        found = est.run(observer, data)["predicted"].values
        _, u, y = plants.to_tensors(data)
        start = torch.from_numpy(data["initial_mean"].values)
        with torch.no_grad():
            right, _ = network.double()(torch.cat([u, y], -1), start.expand(3, -1))
        np.testing.assert_allclose(found, right.numpy(), atol=1e-10)
        for begin in (start, start.expand(3, -1)):
            state = observer.init(begin)
            for k in range(5):
                now = (slice(None), k) if begin.ndim == 2 else (0, k)
                state, estimate = observer.step(state, u[now], y[now])
                shown = found[:, k] if begin.ndim == 2 else found[0, k]
                np.testing.assert_allclose(estimate.predicted.numpy(), shown, atol=1e-10)
        assert estimate.filtered is None

    def test_certificate_is_that_of_the_network_and_residual_stands_beside_it(self, kind):
        setting = plants.scenario("van_der_pol")
        network = network_of(kind, setting.model)
        observer, data = est.NetworkObserver(setting.model, network), setting.simulate(3, 25, seed=0)
        found, own = est.certify(observer, data), est.certify(network)
        assert (found.verdict, found.bound) == ("proved", own.bound)
        x, u, _ = plants.to_tensors(data)
        explicit = network.explicit()
        after, _ = explicit.step(x, torch.cat([u, setting.model.output(x, u)], -1))
        error = (after - setting.model.step(x, u)).detach().square().mean((0, 1)).sqrt()
        np.testing.assert_allclose(found.evidence["correctness residual (RMS per state)"], error, rtol=1e-9)
        assert est.refine(observer).bound <= own.bound * (1 + 1e-6)

    def test_unfit_inputs_are_named(self, kind):
        setting = plants.scenario("van_der_pol")
        network, pendulum = network_of(kind, setting.model), plants.scenario("pendulum").model
        with pytest.raises(TypeError, match="model must be"):
            est.NetworkObserver(network, network)
        with pytest.raises(TypeError, match="network must be"):
            est.NetworkObserver(setting.model, "R2DN")
        with pytest.raises(ValueError, match="identity_output"):
            est.NetworkObserver(plants.scenario("quadruple_tank").model, network)
        with pytest.raises(ValueError, match="angles"):
            est.NetworkObserver(pendulum, network_of(kind, pendulum))
        observer = est.NetworkObserver(setting.model, network)
        with pytest.raises(ValueError, match="NaN"):
            observer.step(observer.init([0.0, 0.0]), [0.0] * setting.model.ninputs, [math.nan])
        with pytest.raises(TypeError, match="state must be"):
            observer.step(None, [0.0], [0.0])
        with pytest.raises(ValueError, match="region"):
            est.certify(observer, region={"x[0]": (0, 1)})


def test_affine_fit_is_the_linearisation_where_data_do_not_excite():
    """Two decaying states of a linear plant that always start equal: regression alone cannot tell them apart."""
    import control as ct

    from estimators.coordinates import Coordinates
    from estimators.design import AffineModel

    A = np.diag([0.9, 0.9, 0.5])
    model = plants.discretize(ct.ss(A, [[1.0], [1.0], [0.0]], [[1.0, 0.0, 1.0]], [[0.0]], True), dt=1.0)
    noise = plants.GaussianNoise([0.0, 0.0, 1e-4], [1e-4])
    data = plants.simulate(
        model, trajectories=20, steps=40, seed=0, noise=noise, initial_mean=[1.0, 1.0, 0.0], initial_cov=[0.0, 0.0, 1.0]
    )
    x = plants.to_tensors(data)[0]
    coordinates = Coordinates.from_data(model, data)
    fit = AffineModel.fit(model, data, x, coordinates)
    s = coordinates.state_scale.numpy()
    np.testing.assert_allclose(fit.A * np.outer(s, 1 / s), A, atol=1e-9)


@pytest.mark.parametrize("seed", [339, 340])
def test_long_memory_start_is_proved_even_with_a_pole_drawn_next_to_one(seed):
    network = est.R2DN(1, 10, 1, nfeedback=5, hidden=(6,), dtype=torch.float64)
    long_memory(network, torch.Generator().manual_seed(seed))  # 339 draws a decay of 5e-9
    assert est.certify(network).verdict == "proved"


def test_scores_are_what_they_are_called():
    truth = np.full((2, 3, 5, 4), 2.0)
    np.testing.assert_allclose(study.nrmse(truth + 0.5, truth), np.full((2, 3), 0.25))
    model, _ = study.setting("corrected")
    data = study.record(model, 1, study.BATCH + 1, 0.2, 0.5, None, 0)
    network = est.R2DN(2, 51, 51, nfeedback=2, hidden=(3,), identity_output=True)
    losses = [loss.item() for loss in study.one_step_losses(network, data, 0, "cpu")(0)]
    # float32 in training, float64 in the score
    assert losses == pytest.approx([study.one_step_loss(est.NetworkObserver(model, network), data)], rel=1e-4)


def test_ours_starts_as_a_filter_of_data_that_it_leaves_as_they_are():
    model, _ = study.setting("corrected")
    data = study.record(model, 1, 4001, 0.0, 0.0, None, 0)
    before = data.copy(deep=True)
    observer, training, validation = study.ours(model, data, 0)
    assert data.identical(before)
    assert (training.sizes["trajectory"], validation.sizes["trajectory"]) == (7, 1)
    observer.initialise(training)
    # one step of the linear start misses the nonlinear plant by little: 51 states of size about 0.5
    assert study.one_step_loss(observer, data) < 1e-4


def test_training_of_ours_is_kept_and_that_of_other_settings_refused(tmp_path):
    model, _ = study.setting("corrected")
    data = study.record(model, 1, 4001, 0.0, 0.0, None, 0)
    settings = {"updates": 1, "seed": 0, "case": "corrected", "steps": 4000}
    first, seconds = study.train_ours("ours", settings, model, data, tmp_path, False)
    again, same = study.train_ours("ours", settings, model, data, tmp_path, False)
    assert seconds == same
    assert torch.equal(first.explicit().A, again.explicit().A)
    with pytest.raises(ValueError, match="other settings"):
        study.train_ours("ours", settings | {"case": "noisy"}, model, data, tmp_path, False)
