"""How fast EKF and UKF are: beside filterpy and dynamax, on the same plants, with the same numbers.

    python -m tests.benchmarks.filters [--threads 1] [--rounds 7] [--seconds 20] [--parts agree stream batch states ...]

First every library filters the same records and the filtered means and covariances are compared, all steps. Then, in
one run, every round visits every contestant in a new order; printed are medians, and ratios to ours above 1 where ours
is faster. Only ratios within a run mean something.

Ours: `step` for one sample, `estimate_sequence` for records; square roots; predicted and filtered means and
covariances. filterpy (2.0, whose UKF redraws its points after adding Q; 1.4.5 does not): NumPy, one trajectory at a
time, the step and its Jacobian by hand; more trajectories are extrapolated. dynamax: `vmap` over trajectories, jitted
for the shape, compilation not timed, 64 bits; Jacobians by jacfwd, full covariances; filtered means and covariances
and the log-likelihood. `--threads` sets torch's and pins the process to as many cores, since XLA sizes its pool by
them. A library that is missing is left out, and said so; torchfilter is not on PyPI and has no row.
"""

import argparse
import importlib.metadata
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import control as ct
import numpy as np
import torch

import estimators as est
import plants

try:
    import filterpy.kalman as fp
except ImportError:
    fp = None
try:
    import dynamax.nonlinear_gaussian_ssm as dynamax
    import jax
    import jax.numpy as jnp
    from dynamax.nonlinear_gaussian_ssm import inference_ekf, inference_ukf
    from dynamax.utils.utils import psd_solve
except ImportError:
    dynamax = None

ALPHA, BETA, KAPPA = 1.0, 2.0, 0.0
"""Spread of the sigma points: all three libraries mean the same by it, lambda = alpha^2 (n + kappa) - n."""

OURS = {"EKF": est.ExtendedKalmanFilter, "UKF": partial(est.UnscentedKalmanFilter, alpha=ALPHA, beta=BETA, kappa=KAPPA)}
TOLERANCE = {"filterpy": 1e-8, "dynamax": 1e-6, "dynamax, exact": 1e-8}
"""dynamax adds 1e-9 to the diagonal of the innovation covariance when solving; 'exact' is without."""


class Plant(NamedTuple):
    """A plant as each library needs it."""

    model: plants.StateSpaceModel
    noise: plants.GaussianNoise
    rhs: Callable  # rhs(xp, x, u), dx/dt of one state in the namespace xp, an array or a list
    jacobian: Callable  # jacobian(x), its derivative to x by hand, in NumPy
    measured: list  # indices of the measured states


def pendulum(angles=False):
    """Build the catalogue's pendulum; without declared angles, since the others do not know of any."""
    setting = plants.scenario("pendulum")
    p = setting.system.params
    inertia, stiffness = p["m"] * p["l"] ** 2, p["g"] / p["l"]

    def rhs(xp, x, u):
        return [x[1], (u[0] - p["b"] * x[1]) / inertia - stiffness * xp.sin(x[0])]

    def jacobian(x):
        return np.array([[0.0, 1.0], [-stiffness * np.cos(x[0]), -p["b"] / inertia]])

    plain = plants.discretize(setting.system, setting.dt, operating_region=setting.operating_region)
    return Plant(setting.model if angles else plain, setting.noise, rhs, jacobian, [0])


def chain(n):
    """Build n coupled first-order cells with a sine each, driven at one end, measured at both."""
    coupling = np.diag(np.full(n, -2.0)) + np.eye(n, k=1) + np.eye(n, k=-1)

    def rhs(xp, x, u):
        return xp.concatenate([u, x[:-1]]) - 2 * x + xp.concatenate([x[1:], 0 * x[:1]]) - xp.sin(x)

    def jacobian(x):
        return coupling - np.diag(np.cos(x))

    system = ct.nlsys(
        lambda t, x, u, params: rhs(plants.array_namespace(x), x, u),
        lambda t, x, u, params: [x[0], x[-1]],
        **{"name": f"chain of {n}", "states": n, "inputs": 1, "outputs": 2},
    )
    noise = plants.GaussianNoise([0.05**2] * n, [0.2**2] * 2)
    return Plant(plants.discretize(system, 0.1), noise, rhs, jacobian, [0, n - 1])


def rk4(xp, plant, x, u):
    """Advance one state by a sample, with the arithmetic of `plants.discretize`."""
    h = plant.model.dt

    def f(x):
        return xp.asarray(plant.rhs(xp, x, u))

    k1 = f(x)
    k2 = f(x + (h / 2) * k1)
    k3 = f(x + (h / 2) * k2)
    return x + (h / 6) * (k1 + 2 * (k2 + k3) + f(x + h * k3))


def rk4_jacobian(plant, x, u):
    """Advance one state, and differentiate by hand: (n,) and (n, n)."""
    h, eye = plant.model.dt, np.eye(len(x))

    def f(x, slope):
        return np.asarray(plant.rhs(np, x, u)), plant.jacobian(x) @ slope

    k1, K1 = f(x, eye)
    k2, K2 = f(x + (h / 2) * k1, eye + (h / 2) * K1)
    k3, K3 = f(x + (h / 2) * k2, eye + (h / 2) * K2)
    k4, K4 = f(x + h * k3, eye + h * K3)
    return x + (h / 6) * (k1 + 2 * (k2 + k3) + k4), eye + (h / 6) * (K1 + 2 * (K2 + K3) + K4)


def record(plant, batch, steps):
    """Simulate: the start's mean and covariance, u (batch, steps, nu) and y (batch, steps, ny)."""
    data = plants.simulate(plant.model, trajectories=batch, steps=steps, seed=0, noise=plant.noise)
    _, u, y = plants.to_tensors(data)
    return data["initial_mean"].values, data["initial_cov"].values, u.numpy(), y.numpy()


def ours_sequence(kind, plant, mean, cov, u, y):
    """Filter of ours over records: a function that returns means and covariances."""
    estimator = OURS[kind](plant.model, plant.noise)
    state, u, y = estimator.init(np.broadcast_to(mean, (len(y), len(mean))), cov), torch.tensor(u), torch.tensor(y)

    def call():
        estimate = estimator.estimate_sequence(state, u, y)
        return estimate.filtered.numpy(), estimate.filtered_cov.numpy()

    return call


def ours_step(kind, plant, mean, cov):
    """Streaming filter of ours: ``step(u, y)`` for one sample."""
    estimator = OURS[kind](plant.model, plant.noise)
    state = estimator.init(mean, cov)

    def step(u, y):
        nonlocal state
        state, estimate = estimator.step(state, u, y)
        return estimate.filtered, estimate.filtered_cov

    return step


def filterpy_step(kind, plant, mean, cov):
    """Streaming filter of filterpy: ``step(u, y)`` for one sample, update and then predict."""
    measured, common = plant.measured, {"dim_x": len(mean), "dim_z": len(plant.measured)}
    H = np.eye(len(mean))[measured]
    if kind == "EKF":

        class Extended(fp.ExtendedKalmanFilter):
            def predict_x(self, u=0):
                self.x, self.F = rk4_jacobian(plant, self.x, u)

        kalman = Extended(**common)
        update = partial(kalman.update, HJacobian=lambda x: H, Hx=lambda x: x[measured])
    else:
        points = fp.MerweScaledSigmaPoints(len(mean), ALPHA, BETA, KAPPA)
        functions = {"fx": lambda x, dt, u: rk4(np, plant, x, u), "hx": lambda x: x[measured]}
        kalman = fp.UnscentedKalmanFilter(dt=plant.model.dt, points=points, **functions, **common)
        kalman.sigmas_f = points.sigma_points(mean, cov)  # an update before the first predict: they would be zero
        update = kalman.update
    kalman.x, kalman.P = mean.copy(), cov.copy()
    kalman.Q, kalman.R = plant.noise.process_cov, plant.noise.measurement_cov

    def step(u, y):
        update(y)
        filtered = kalman.x, kalman.P
        kalman.predict(u=u)
        return filtered

    return step


def filterpy_sequence(kind, plant, mean, cov, u, y):
    """Filter of filterpy over records, one after the other."""

    def call():
        estimates = []
        for one_u, one_y in zip(u, y, strict=True):
            step = filterpy_step(kind, plant, mean, cov)
            estimates.append([step(a, b) for a, b in zip(one_u, one_y, strict=True)])
        return tuple(np.array([[e[i] for e in one] for one in estimates]) for i in (0, 1))

    return call


def dynamax_sequence(kind, plant, mean, cov, u, y):
    """Filter of dynamax over records; u is shifted, since its transition to k takes the input of k."""
    parameters = dynamax.ParamsNLGSSM(
        initial_mean=jnp.asarray(mean),
        initial_covariance=jnp.asarray(cov),
        dynamics_function=lambda x, u: rk4(jnp, plant, x, u),
        dynamics_covariance=jnp.asarray(plant.noise.process_cov),
        emission_function=lambda x, u: jnp.stack([x[i] for i in plant.measured]),
        emission_covariance=jnp.asarray(plant.noise.measurement_cov),
    )
    fields = ["filtered_means", "filtered_covariances"]

    def one(u, y):
        if kind == "EKF":
            return dynamax.extended_kalman_filter(parameters, y, inputs=u, output_fields=fields)
        points = dynamax.UKFHyperParams(ALPHA, BETA, KAPPA)
        return dynamax.unscented_kalman_filter(parameters, y, points, inputs=u, output_fields=fields)

    run, u, y = jax.jit(jax.vmap(one)), jnp.asarray(np.roll(u, 1, axis=1)), jnp.asarray(y)

    def call():
        found = jax.block_until_ready(run(u, y))
        return np.asarray(found.filtered_means), np.asarray(found.filtered_covariances)

    return call


def contestants(kind, plant, batch, steps, alone=3):
    """Functions by name, and what their times are to be multiplied with; filterpy has `alone` trajectories."""
    mean, cov, u, y = record(plant, batch, steps)
    calls = {"ours": (ours_sequence(kind, plant, mean, cov, u, y), 1)}
    if dynamax is not None:
        calls["dynamax"] = dynamax_sequence(kind, plant, mean, cov, u, y), 1
    if fp is not None:
        few = min(batch, alone)
        calls["filterpy"] = filterpy_sequence(kind, plant, mean, cov, u[:few], y[:few]), batch / few
    return calls


def agreement(plant, batch, steps):
    """Print the largest difference to ours in filtered means and covariances; raise where it is too large."""
    print(f"\nlargest difference to ours, {plant.model.name}, {batch} trajectories x {steps} steps")
    for kind in OURS:
        found = {name: call() for name, (call, _) in contestants(kind, plant, batch, steps, alone=batch).items()}
        if dynamax is not None:
            exact = {"psd_solve": partial(psd_solve, diagonal_boost=0.0)}
            with mock.patch.dict(vars(inference_ekf), exact), mock.patch.dict(vars(inference_ukf), exact):
                found["dynamax, exact"] = dynamax_sequence(kind, plant, *record(plant, batch, steps))()
        ours = found.pop("ours")
        for name, values in found.items():
            errors = [np.abs(a - b).max() for a, b in zip(values, ours, strict=True)]
            print(f"  {kind} {name:15} means {errors[0]:.1e}, covariances {errors[1]:.1e}", flush=True)
            assert max(errors) <= TOLERANCE[name], f"{kind} of {name} disagrees with ours on {plant.model.name}"


def race(calls, rounds, seconds):
    """Median seconds of every function from interleaved rounds; each stops after `seconds`, but runs at least once."""
    for function, _ in calls.values():
        function()  # compilation and caches
    times, order, rng = {name: [] for name in calls}, list(calls), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            if sum(times[name]) < seconds:
                began = time.perf_counter()
                calls[name][0]()
                times[name].append(time.perf_counter() - began)
    return {name: calls[name][1] * statistics.median(t) for name, t in times.items()}


def stream(samples, rounds):
    """Print the time of one sample, one trajectory: correction and prediction."""
    print(f"\none step, one trajectory, {rounds} x {samples} calls: median / 99 % [us], and the median over ours")
    for plant, with_angles in ((pendulum(), pendulum(angles=True)), (chain(20), None)):
        mean, cov, u, y = record(plant, 1, samples)
        for kind in OURS:
            steps = {"ours": ours_step(kind, plant, mean, cov)}
            if with_angles is not None:
                steps["ours, angle declared"] = ours_step(kind, with_angles, mean, cov)
            if fp is not None:
                steps["filterpy"] = filterpy_step(kind, plant, mean, cov)
            times = {name: [] for name in steps}

            def walk(step, taken, u=u[0], y=y[0]):
                for a, b in zip(u, y, strict=True):
                    began = time.perf_counter()
                    step(a, b)
                    taken.append(time.perf_counter() - began)

            race({name: (partial(walk, step, times[name]), 1) for name, step in steps.items()}, rounds, np.inf)
            for name, taken in times.items():
                (middle, late), ratio = np.quantile(taken, (0.5, 0.99)), np.median(taken) / np.median(times["ours"])
                row = f"{name:21}{1e6 * middle:9.1f} / {1e6 * late:9.1f}{ratio:8.2f}"
                print(f"  {plant.model.name:12} {kind} {row}", flush=True)


def table(title, cases, unit, rounds, seconds):
    """Print times and ratios of cases (number of `unit`, plant, batch, steps)."""
    print(f"\n{title}: median [ms] (over ours); filterpy extrapolated")
    for number, plant, batch, steps in cases:
        for kind in OURS:
            found = race(contestants(kind, plant, batch, steps), rounds, seconds)
            row = "".join(f"  {name} {1e3 * t:10.2f} ({t / found['ours']:7.2f})" for name, t in found.items())
            print(f"  {number:5} {unit} {kind}{row}", flush=True)


def limit_threads(threads):
    """Hold torch, XLA and BLAS to as many cores; before JAX makes its pool."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        for task in os.listdir("/proc/self/task"):  # threads that BLAS has started, too
            os.sched_setaffinity(int(task), sorted(os.sched_getaffinity(0))[-threads:])


def main():
    """Run it all."""
    parts = ("agree", "stream", "batch", "states", "trajectories")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch and XLA, by pinning to as many cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="a contestant stops after so long in one row")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--states", type=int, nargs="+", default=[2, 5, 10, 20, 50, 100])
    parser.add_argument("--trajectories", type=int, nargs="+", default=[1, 10, 100, 1000, 10000])
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    print(f"torch {torch.__version__}: {torch.get_num_threads()} threads")
    for name, module in (("filterpy", fp), ("dynamax", dynamax), ("jax", dynamax)):
        print(name, "is missing: its rows are left out" if module is None else importlib.metadata.version(name))
    if dynamax is not None:
        jax.config.update("jax_enable_x64", True)
    timing = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    if "agree" in arguments.parts:
        agreement(pendulum(), 5, 200)
        agreement(chain(5), 5, 200)
    if "stream" in arguments.parts:
        stream(300, arguments.rounds)
    if "batch" in arguments.parts:
        table("pendulum, 500 steps", [(1000, pendulum(), 1000, 500)], "records", **timing)
    if "states" in arguments.parts:
        table("chain, 100 x 50 steps", [(n, chain(n), 100, 50) for n in arguments.states], "states", **timing)
    if "trajectories" in arguments.parts:
        table("pendulum, 50 steps", [(n, pendulum(), n, 50) for n in arguments.trajectories], "records", **timing)


if __name__ == "__main__":
    main()
