import warnings

import control as ct
import numpy as np
import pytest
import scipy.integrate
import torch

import plants
from plants.sampling import SUBSTEP_TOLERANCE
from tests.plants.user_plants import SYSTEMS
from tests.small_plants import CATALOGUE
from tests.tolerances import ROUNDING, TRACED_JACOBIAN, TRACED_VALUE


def quietly(system, dt=0.01, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return plants.discretize(system, dt, **settings)


@pytest.fixture(scope="module", params=SYSTEMS)
def user_plant(request):
    system, jacobian, route = SYSTEMS[request.param]
    return system, jacobian, route, quietly(system, method="euler")


def column_by_column(system, x, u):
    """The plant's own function, one point at a time; the blocks of the loop with their own parameters."""
    if system.name == "loop":
        return np.stack([[-1.0 * a + v - b, -7.0 * b + a] for (a, b), (v,) in zip(x, u, strict=True)])
    return np.stack(
        [np.asarray(system.updfcn(0.0, xi, ui, system.params), dtype=float) for xi, ui in zip(x, u, strict=True)]
    )


def test_user_plant_values_match_the_function_itself(user_plant):
    system, _, _, model = user_plant
    rng = np.random.default_rng(1)
    x, u = rng.uniform(-1, 1, (101, model.nstates)), rng.uniform(-1, 1, (101, model.ninputs))
    # one Euler step is x + dt f(x, u): the derivative itself is seen
    derivative = (model.step(x, u).numpy() - x) / model.dt
    truth = column_by_column(system, x, u)
    np.testing.assert_allclose(derivative, truth, rtol=0, atol=TRACED_VALUE * max(1, np.abs(truth).max()))


@pytest.mark.parametrize("name", [name for name, (_, jacobian, _) in SYSTEMS.items() if jacobian is not None])
def test_user_plant_jacobians_match_analytic_ones(name):
    system, jacobian, _ = SYSTEMS[name]
    model = quietly(system, method="euler")
    rng = np.random.default_rng(2)
    x, u = rng.uniform(-0.9, 0.9, (11, model.nstates)), rng.uniform(-0.4, 0.4, (11, model.ninputs))
    A, *_ = model.linearize(x, u)
    found = (A.numpy() - np.eye(model.nstates)) / model.dt
    np.testing.assert_allclose(
        found, np.stack([jacobian(a, b) for a, b in zip(x, u, strict=True)]), rtol=0, atol=TRACED_JACOBIAN
    )


def test_user_plant_reaches_its_route(user_plant):
    assert user_plant[3].jacobian_source == user_plant[2]


def test_nearly_all_styles_are_better_than_finite_differences():
    routes = [route for _, _, route in SYSTEMS.values()]
    assert sum(route != "finite difference" for route in routes) >= len(routes) - 2


def test_batch_equals_loop(user_plant):
    *_, model = user_plant
    rng = np.random.default_rng(3)
    x, u = rng.uniform(-1, 1, (2, 3, model.nstates)), rng.uniform(-1, 1, (2, 3, model.ninputs))
    for method in (model.step, model.output, lambda a, b: model.linearize(a, b)[0]):
        together = method(x, u)
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(together[i, j], method(x[i, j], u[i, j]), rtol=ROUNDING, atol=ROUNDING)


def test_mass_matrix_jacobian_matches_central_differences():
    model = quietly(SYSTEMS["mass_matrix"][0])
    x, u, h = np.array([0.3, -0.4, 0.5, 0.1]), np.array([0.2]), 1e-6
    A, *_ = model.linearize(x, u)
    numeric = np.stack(
        [(model.step(x + h * e, u) - model.step(x - h * e, u)).numpy() / (2 * h) for e in np.eye(4)], axis=-1
    )
    np.testing.assert_allclose(A, numeric, atol=1e-9)  # central differences of a smooth map at h = 1e-6


def test_fallback_is_loud_and_says_why():
    with pytest.warns(UserWarning, match=r"branch_on_state.*could not be traced.*central differences"):
        model = plants.discretize(SYSTEMS["branch_on_state"][0], 0.01)
    assert not model.vectorised


def test_equal_parameter_names_stay_apart_in_a_loop():
    system = SYSTEMS["loop"][0]
    model = quietly(system)
    A, B, C, _ = model.linearize([0, 0], [0])
    exact = plants.discretize(ct.ss([[-1, -1], [1, -7]], [[1], [0]], [[0, 1]], 0), 0.01).linearize([0, 0], [0])
    for found, right in zip((A, B, C), exact, strict=False):
        np.testing.assert_allclose(
            found, right, atol=1e-8
        )  # RK4 at 0.01, fastest mode 7/s: (0.07)^5 / 120, against the matrix exponential


def test_linear_blocks_and_overrides_in_an_interconnection():
    plant = ct.ss([[0, 1], [-1, -0.2]], [[0], [1]], [[1, 0]], 0, name="plant", inputs=["u"], outputs=["y"])
    lag = ct.nlsys(
        lambda t, x, u, p: [p["a"] * (u[0] - x[0])],
        lambda t, x, u, p: [x[0]],
        states=1,
        inputs=["e"],
        outputs=["u"],
        name="lag",
        params={"a": 2.0},
    )
    sum_block = ct.summing_junction(["r", "-y"], "e")
    closed = ct.interconnect([plant, lag, sum_block], inputs=["r"], outputs=["y"], name="closed")
    model = quietly(closed, method="euler")
    rng = np.random.default_rng(0)
    for x, r in zip(rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), strict=True):
        np.testing.assert_allclose((model.step(x, r).numpy() - x) / 0.01, closed.dynamics(0, x, r), rtol=0, atol=1e-10)
        np.testing.assert_allclose(model.output(x, r), closed.output(0, x, r), rtol=ROUNDING)
    changed = ct.interconnect([plant, lag, sum_block], inputs=["r"], outputs=["y"], params={"a": 5.0})
    step = quietly(changed, method="euler").step([0, 0, 1.0], [0.0])
    assert step[2].item() == pytest.approx(1 - 0.05)


def test_algebraic_loop_is_refused():
    gain = ct.nlsys(None, lambda t, x, u, p: [0.5 * u[0]], inputs=["a"], outputs=["b"], name="gain")
    integrator = ct.ss([[0]], [[1]], [[1]], 1, inputs=["b"], outputs=["a"], name="integrator")
    loop = ct.interconnect(
        [gain, integrator], inputs=["r"], outputs=["a"], inplist=["gain.a"], outlist=["integrator.a"]
    )
    with pytest.raises(ValueError, match="algebraic loop"):
        quietly(loop)


@pytest.mark.parametrize("name", CATALOGUE)
def test_sampled_plant_agrees_with_a_tight_ode_solver(name):
    setting = plants.scenario(name)
    model = setting.model
    # 1e-5: one RK4 step of 4 s on tanks with time constants from 23 s
    tolerance = 1e-5 if model.nstates == 4 and name == "quadruple_tank" else SUBSTEP_TOLERANCE
    x, u = model.operating_region.sample(5, seed=0)
    if setting.system.dt:  # discrete: the function itself
        for xi, ui, got in zip(x, u, model.step(x, u).numpy(), strict=True):
            np.testing.assert_allclose(got, setting.system.dynamics(0, xi, ui), rtol=1e-12)
        return
    for xi, ui, got in zip(x, u, model.step(x, u).numpy(), strict=True):
        exact = scipy.integrate.solve_ivp(
            lambda t, z, v=ui: setting.system.dynamics(t, z, v),
            (0, model.dt),
            xi,
            rtol=1e-11,
            atol=1e-12,
            method="LSODA",
        ).y[:, -1]
        assert np.abs((got - exact) / model.operating_region.state_width).max() < tolerance


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue_is_differentiable_without_tracing(name):
    assert plants.scenario(name).model.jacobian_source in ("linear", "autodiff")


def test_coarse_integration_warns_with_a_sufficient_number_of_substeps():
    stiff = ct.nlsys(
        lambda t, x, u, p: [-50 * x[0]], lambda t, x, u, p: [x[0]], inputs=0, outputs=1, states=1, name="stiff"
    )
    with pytest.warns(UserWarning, match=r"use substeps=(\d+)") as caught:
        plants.discretize(stiff, 0.1)
    enough = int(str(caught[0].message).split("substeps=")[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = plants.discretize(stiff, 0.1, substeps=enough)
    assert model.step([1.0]).item() == pytest.approx(np.exp(-5), abs=2 * SUBSTEP_TOLERANCE)


def test_transfer_function_is_realised_aloud():
    with pytest.warns(UserWarning, match="transfer function"):
        model = plants.discretize(ct.tf([1], [1, 0.5, 1]), 0.1)
    A, B, C, D = (m.numpy() for m in model.linearize([0, 0], [0]))
    exact = ct.c2d(ct.tf([1], [1, 0.5, 1]), 0.1)
    z = np.exp(0.3j)
    np.testing.assert_allclose((C @ np.linalg.solve(z * np.eye(2) - A, B) + D)[0, 0], exact(z), rtol=1e-9)


def test_time_varying_plant_gets_the_time():
    system = ct.nlsys(lambda t, x, u, p: [np.cos(t)], lambda t, x, u, p: [x[0] + t], inputs=0, outputs=1, states=1)
    model = quietly(system, 0.1)
    assert model.step([0.0], t=1.0).item() == pytest.approx(np.sin(1.1) - np.sin(1.0), abs=1e-8)
    assert model.output([1.0], t=2.0).item() == pytest.approx(3.0)


def test_inputs_of_any_dtype_and_shape_are_widened():
    model = plants.scenario("pendulum").model
    reference = model.step([0.5, 1.0], [1.0])
    for x in (np.array([0.5, 1.0], dtype=np.float32), [0.5, 1], torch.tensor([0.5, 1.0])):
        torch.testing.assert_close(model.step(x, np.array([1])), reference, rtol=0, atol=0)
    assert model.step(np.ones((2, 3, 2)), np.ones((3, 1))).shape == (2, 3, 2)


class TestBadInput:
    def test_wrong_shape_names_argument_and_sizes(self):
        with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 2\), got \(3,\)"):
            plants.scenario("pendulum").model.step([1, 2, 3], [0])
        with pytest.raises(ValueError, match=r"u is missing.*torque"):
            plants.scenario("pendulum").model.step([1, 2])

    def test_not_a_system(self):
        with pytest.raises(TypeError, match="python-control"):
            plants.discretize("pendulum", 0.1)

    @pytest.mark.parametrize("dt", [0, -1, float("nan"), "fast", True])
    def test_sample_time(self, dt):
        with pytest.raises(ValueError, match="dt must be a positive number"):
            plants.discretize(plants.pendulum(), dt)

    def test_function_that_raises(self):
        def broken(t, x, u, params):
            raise KeyError("mass")

        with pytest.raises(ValueError, match="update function of 'broken' raised KeyError"):
            plants.discretize(ct.nlsys(broken, None, inputs=1, outputs=2, states=2, name="broken"), 0.1)

    def test_function_that_returns_the_wrong_length(self):
        with pytest.raises(ValueError, match=r"'short' returned an array of shape \(1,\), needed \(2,\)"):
            plants.discretize(
                ct.nlsys(lambda t, x, u, p: [x[0]], None, inputs=1, outputs=2, states=2, name="short"), 0.1
            )

    def test_function_that_is_nowhere_finite(self):
        with pytest.raises(ValueError, match="operating_region"):
            plants.discretize(
                ct.nlsys(lambda t, x, u, p: [np.log(x[0] - 100)], None, inputs=0, outputs=1, states=1), 0.1
            )

    def test_unknown_labels(self):
        with pytest.raises(ValueError, match=r"angle_states must be a list out of \['theta', 'omega'\]"):
            plants.discretize(plants.pendulum(), 0.1, angle_states=["phi"])
        with pytest.raises(ValueError, match="operating_region names"):
            plants.discretize(plants.pendulum(), 0.1, operating_region={"phi": (0, 1)})
        with pytest.raises(ValueError, match="lower < upper"):
            plants.discretize(plants.pendulum(), 0.1, operating_region={"theta": (1, -1)})

    def test_region_that_is_no_box(self):
        for wrong in ({"theta": 1}, {"theta": ("a", "b")}):
            with pytest.raises(ValueError, match="lower < upper"):
                plants.discretize(plants.pendulum(), 0.1, operating_region=wrong)
        with pytest.raises(TypeError, match="must be a mapping"):
            plants.discretize(plants.pendulum(), 0.1, operating_region=[(-1, 1)])

    def test_function_that_is_not_finite_everywhere_is_said(self):
        tank = ct.nlsys(lambda t, x, u, p: [-np.sqrt(x[0]) + u[0]], None, inputs=1, outputs=1, states=1, name="tank")
        with pytest.warns(UserWarning, match=r"'tank' is not finite at \d of 7 random points"):
            plants.discretize(tank, 0.01)

    def test_unknown_plant(self):
        with pytest.raises(ValueError, match=r"unknown plant 'pendulun'; the catalogue has .*pendulum"):
            plants.scenario("pendulun")
