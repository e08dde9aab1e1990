"""Estimators as python-control systems and in ONNX: the same numbers."""

import control as ct
import numpy as np
import pytest

import estimators as est
import plants

STEPS = 1000


def record(setting, seed=3):
    data = setting.simulate(1, STEPS, seed)
    return data["u"].values[0], data["y"].values[0].copy()


def observer_of(name, **settings):
    setting = plants.scenario(name)
    observer = est.R2DNObserver(setting.model, nfeedback=6, hidden=(12,), **settings)
    observer.fit(setting.simulate(128, 60, seed=0), updates=20, one_step_updates=20, horizon=30, progress=False)
    return setting, observer


@pytest.fixture(scope="module", params=["pendulum", "van_der_pol", "quadruple_tank"])
def trained(request):
    return observer_of(request.param)


def by_library(estimator, x0, P0, u, y):
    state, found = estimator.init(x0, P0), {"predicted": [], "filtered": []}
    for k in range(len(y)):
        state, estimate = estimator.step(state, u[k], y[k])
        for kind, values in found.items():
            if getattr(estimate, kind) is not None:
                values.append(getattr(estimate, kind).numpy())
    return {kind: np.array(values) for kind, values in found.items() if values}


def by_control(estimator, kind, x0, P0, u, y):
    system = est.to_control(estimator, kind)
    times = np.arange(len(y)) * estimator.model.dt
    signals = np.concatenate([u, y], axis=1).T
    return ct.input_output_response(system, times, signals, est.control_state(estimator, x0, P0)).outputs.T


class TestControl:
    def test_observer_agrees_over_a_thousand_steps(self, trained):
        setting, observer = trained
        u, y = record(setting)
        x0 = setting.model.operating_region.state_centre + 0.1
        found = by_library(observer, x0, None, u, y)
        for kind, values in found.items():
            np.testing.assert_allclose(by_control(observer, kind, x0, None, u, y), values, rtol=0, atol=1e-9)

    def test_filter_along_an_observer_agrees(self, trained):
        setting, observer = trained
        u, y = (part[:300] for part in record(setting))
        along = est.ExogenousKalmanFilter(setting.model, setting.noise, observer)
        x0, P0 = setting.model.operating_region.state_centre + 0.1, np.full(setting.model.nstates, 0.3)
        found = by_library(along, x0, P0, u, y)
        for kind, values in found.items():
            np.testing.assert_allclose(by_control(along, kind, x0, P0, u, y), values, rtol=0, atol=1e-9)

    def test_corrected_filter_agrees(self):
        setting = plants.scenario("pendulum")
        u, y = (part[:300] for part in record(setting))
        corrected = est.LearnedCorrection(
            est.ExtendedKalmanFilter(setting.model, setting.noise), nstates=4, nfeedback=4, hidden=(8,)
        )
        corrected.fit(setting.simulate(20, 30, seed=0), updates=10, learning_rate=0.05, progress=False)
        found = by_library(corrected, [0.2, 0.1], [0.3, 1.0], u, y)
        for kind, values in found.items():
            np.testing.assert_allclose(by_control(corrected, kind, [0.2, 0.1], [0.3, 1.0], u, y), values, atol=1e-9)

    @pytest.mark.parametrize("make", [est.ExtendedKalmanFilter, est.UnscentedKalmanFilter])
    def test_filters_agree(self, make):
        setting = plants.scenario("pendulum")
        u, y = record(setting)
        estimator, P0 = make(setting.model, setting.noise), [0.3, 1.0]
        for kind, values in by_library(estimator, [0.2, 0.0], P0, u, y).items():
            got = by_control(estimator, kind, [0.2, 0.0], P0, u, y)
            np.testing.assert_allclose(got, values, rtol=0, atol=1e-9)

    def test_linear_and_network_observers_agree(self):
        setting = plants.scenario("mass_spring_damper")
        network = est.R2DN(2, 2, 2, nfeedback=4, hidden=(8,), identity_output=True)
        u, y = record(setting)
        for estimator in (
            est.LuenbergerObserver(setting.model, [[0.3], [0.5]], form="predictor"),
            est.NetworkObserver(setting.model, network),
        ):
            got = by_control(estimator, "predicted", [0.1, 0.0], None, u, y)
            np.testing.assert_allclose(got, by_library(estimator, [0.1, 0.0], None, u, y)["predicted"], atol=1e-9)
            with pytest.raises(ValueError, match="no filtered estimate"):
                est.to_control(estimator, "filtered")

    def test_estimate_feedback_in_an_interconnection_is_the_loop_by_hand(self, trained_pair):
        """Plant, observer and a state feedback, joined by the names of their signals."""
        observer, _ = trained_pair
        model, gain = observer.model, np.array([2.0, 0.5])
        plant = ct.nlsys(
            lambda t, x, u, p: model.step(x, u).numpy(),
            lambda t, x, u, p: model.output(x, [0.0]).numpy(),
            states=2,
            inputs=["torque"],
            outputs=["angle"],
            dt=model.dt,
            name="sampled",
        )
        feedback = ct.nlsys(
            None,
            lambda t, x, u, p: [-gain @ u],
            inputs=["theta_hat", "omega_hat"],
            outputs=["torque"],
            dt=model.dt,
            name="feedback",
        )
        estimator = est.to_control(observer, name="observer")
        loop = ct.interconnect([plant, estimator, feedback], inputs=[], outputs=["torque", "theta_hat"])
        times = np.arange(200) * model.dt
        start = np.concatenate([[1.0, 0.0], est.control_state(observer, [0.0, 0.0])])
        response = ct.input_output_response(loop, times, 0, start)
        x, state, torques = np.array([1.0, 0.0]), observer.init([0.0, 0.0]), []
        predicted = np.zeros(2)
        for _ in times:
            u = np.array([-gain @ predicted])
            torques.append(u[0])
            y = model.output(x, u)
            state, _ = observer.step(state, u, y)
            predicted = observer.coordinates.to_plant(state.predicted).numpy()
            x = model.step(x, u).numpy()
        np.testing.assert_allclose(response.outputs[0], torques, rtol=0, atol=1e-9)

    def test_bad_input(self, trained_pair):
        observer, _ = trained_pair
        with pytest.raises(ValueError, match="kind must be 'predicted' or 'filtered', got 'smoothed'"):
            est.to_control(observer, "smoothed")
        setting = plants.scenario("pendulum")
        with pytest.raises(TypeError, match="a ParticleFilter cannot become a python-control system"):
            est.to_control(est.ParticleFilter(setting.model, setting.noise, particles=10))
        with pytest.raises(ValueError, match=r"x0 must be one state, \(nstates,\), got shape \(3, 2\)"):
            est.control_state(observer, np.zeros((3, 2)))
        with pytest.raises(ValueError, match="P0 is missing"):
            est.control_state(est.ExtendedKalmanFilter(setting.model, setting.noise), [0, 0])


class TestONNX:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    def run(self, observer, path, x0, u, y):
        import onnxruntime

        est.export_onnx(observer, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {part.name for part in session.get_inputs()}
        belief, found = est.control_state(observer, x0), {"predicted": [], "filtered": []}
        for k in range(len(y)):
            given = {"belief": belief, "u": u[k], "y": y[k]}
            belief, predicted, filtered = session.run(None, {n: v for n, v in given.items() if n in wanted})
            found["predicted"].append(predicted)
            found["filtered"].append(filtered)
        return found, session.get_modelmeta().custom_metadata_map

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    def test_agrees_over_a_thousand_steps_with_gaps(self, trained, tmp_path):
        setting, observer = trained
        u, y = record(setting)
        y[np.random.default_rng(0).random(y.shape) < 0.1] = np.nan
        y[:2] = np.nan
        x0 = setting.model.operating_region.state_centre + 0.1
        found, meta = self.run(observer, tmp_path / "observer.onnx", x0, u, y)
        for kind, values in by_library(observer, x0, None, u, y).items():
            np.testing.assert_allclose(np.array(found[kind]), values, rtol=0, atol=1e-6)
        assert meta["plant"] == setting.model.name and float(meta["dt"]) == setting.model.dt
        assert meta["states"].split(",") == list(setting.model.state_labels)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    def test_follows_an_angle_past_whole_turns(self, trained_pair, tmp_path):
        observer, _ = trained_pair
        u = np.zeros((300, 1))
        y = (np.linspace(2.5, 20.0, 300)[:, None] + np.pi) % (2 * np.pi) - np.pi
        found, _ = self.run(observer, tmp_path / "observer.onnx", np.array([-2.5, 0.0]), u, y)
        expected = by_library(observer, np.array([-2.5, 0.0]), None, u, y)
        np.testing.assert_allclose(np.array(found["filtered"]), expected["filtered"], rtol=0, atol=1e-6)

    def test_bad_input(self, trained_pair, tmp_path):
        setting = plants.scenario("pendulum")
        with pytest.raises(TypeError, match="observer must be an R2DNObserver, got ExtendedKalmanFilter"):
            est.export_onnx(est.ExtendedKalmanFilter(setting.model, setting.noise), tmp_path / "x.onnx")
        with pytest.raises(ValueError, match="there is no folder"):
            est.export_onnx(trained_pair[0], tmp_path / "nowhere" / "x.onnx")
        with pytest.raises(ValueError, match="has not seen data yet"):
            est.export_onnx(est.R2DNObserver(setting.model), tmp_path / "x.onnx")
