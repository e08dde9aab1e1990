"""How fast R2DN rollouts are: against the step-by-step definition, REN, LSTM, the same models in JAX, and bare GEMMs.

    python -m tests.benchmarks.rollout [--rounds 7] [--out rollout.png] [--no-growth]

One run, in which every round visits every contestant in a new order: one untimed call, by which caches and sleeping
threads settle, then a timed one. Prints medians, fastest times, and ratios of both, since a shared machine slows down
and recovers within seconds. JAX comes with the extra `bench`; without it its rows are left out, and said so. Only
ratios within a run mean something.
"""

import argparse
import random
import statistics
import time
from itertools import pairwise

import numpy as np
import torch

import estimators as est
from estimators.networks import long_memory
from estimators.networks.rollout import rollout
from estimators.networks.streaming import Stream
from tutorials.studies.identification import LSTM
from tutorials.studies.training import count

try:
    import jax

    from tests.benchmarks import jax_models
except ImportError:
    jax = None

HORIZON = 128
SIZES = {
    "PDE observer": {"nu": 2, "nx": 51, "ny": 51, "nv": 50, "hidden": (96,) * 4, "identity": True, "ren": 200},
    "F-16": {"nu": 2, "nx": 75, "ny": 3, "nv": 75, "hidden": (87,) * 3, "identity": False, "ren": 150},
    "timing study": {"nu": 1, "nx": 1, "ny": 1, "nv": 32, "hidden": (64,) * 4, "identity": False, "ren": 182},
}


def build(size):
    """R2DN and REN of a size, from the long-memory start, which is the published one for training."""
    common = {"identity_output": size["identity"], "activation": "relu", "generator": torch.Generator().manual_seed(0)}
    r2dn = est.R2DN(size["nu"], size["nx"], size["ny"], nfeedback=size["nv"], hidden=size["hidden"], **common)
    ren = est.REN(size["nu"], size["nx"], size["ny"], nfeedback=size["ren"], **common)
    for network in (r2dn, ren):
        long_memory(network, torch.Generator().manual_seed(1))
    return r2dn, ren


def floor(size, batch, steps):
    """Bare matrix products of a rollout and of its backward pass: two functions."""
    nx, nz, widths = size["nx"], size["nx"] + size["nu"] + 1, size["hidden"]
    shapes = [(nz, widths[0]), *pairwise(widths), (widths[-1], nx), (nz, nx)]
    readout = [] if size["identity"] else [(nz, size["ny"]), (widths[-1], size["ny"])]

    def products(rows, pairs):
        return [(torch.randn(rows, m), torch.randn(m, n), torch.empty(rows, n)) for m, n in pairs]

    forwards, outputs = products(batch, shapes), products(steps * batch, readout)
    back = [(n, m if m != nz else nx) for m, n in reversed(shapes)]
    backwards, output_backwards = products(batch, back), products(steps * batch, [(n, m) for m, n in readout])
    weights = [
        (torch.randn(steps * batch, n).t(), torch.randn(steps * batch, m), torch.empty(n, m))
        for m, n in shapes + readout
    ]

    def forward():
        for _ in range(steps):
            for a, b, c in forwards:
                torch.mm(a, b, out=c)
        for a, b, c in outputs:
            torch.mm(a, b, out=c)

    def both():
        forward()
        for _ in range(steps):
            for a, b, c in backwards:
                torch.mm(a, b, out=c)
        for a, b, c in output_backwards + weights:
            torch.mm(a, b, out=c)

    return forward, both


def quiet(call):
    """Wrap a function to run without a graph."""

    def run():
        with torch.no_grad():
            return call()

    return run


def loss(y, x):
    """Mean of x_T^2 plus mean of y^2, the published timing loss."""
    return y.square().mean() + x.square().mean()


def contestants(size, batch, slow=True):
    """Pairs (forward, forward and backward) by name."""
    r2dn, ren = build(size)
    u, x0 = torch.randn(batch, HORIZON, size["nu"]), torch.zeros(batch, size["nx"])
    lstm = LSTM(size["nu"], size["ny"], count(r2dn))
    recursion = r2dn.collapsed()
    bare = recursion._replace(
        **{k: None if (a := getattr(recursion, k)) is None else a.detach() for k in "MNFJ"},
        layers=tuple(a.detach().requires_grad_() for a in recursion.layers),
    )

    def definition():
        explicit, x, outputs = r2dn._matrices(torch.float32, metric=False), x0, []
        for k in range(HORIZON):
            x, y = explicit.step(x, u[:, k])
            outputs.append(y)
        return torch.stack(outputs), x

    def alone():
        x, y = rollout(bare, x0, u.transpose(0, 1))
        return y, x

    calls = {"R2DN collapsed": lambda: r2dn(u), "R2DN collapsed, rollout alone": alone}
    if slow:
        calls |= {"R2DN step by step": definition, "REN": lambda: ren(u), "LSTM": lambda: lstm(u)}
    pairs = {name: (quiet(call), lambda call=call: loss(*call()).backward()) for name, call in calls.items()}
    pairs["bare GEMMs"] = floor(size, batch, HORIZON)
    if jax is not None and slow:
        ju, jx = jax.numpy.asarray(u.transpose(0, 1).contiguous().numpy()), jax.numpy.asarray(x0.numpy())
        for name, module in (("JAX R2DN", r2dn), ("JAX REN", ren)):
            tree = jax_models.from_torch(module, size["identity"])
            forward, both = jax_models.compiled(name.removeprefix("JAX ").lower())
            y = forward(tree, jx, ju)[0]
            with torch.no_grad():
                np.testing.assert_allclose(np.asarray(y), module(u)[0].transpose(0, 1), atol=2e-3)  # the same model
            pairs[name] = tuple(lambda f=f, tree=tree: jax.block_until_ready(f(tree, jx, ju)) for f in (forward, both))
    return pairs, (count(r2dn), count(ren), count(lstm))


def race(pairs, rounds):
    """(median, fastest) seconds of every function, from interleaved rounds in random order."""
    times = {(name, k): [] for name in pairs for k in (0, 1)}
    order, rng = list(times), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name, k in order:
            function = pairs[name][k]
            function()
            began = time.perf_counter()
            function()
            times[name, k].append(time.perf_counter() - began)
    return {name: [(statistics.median(t), min(t)) for t in (times[name, 0], times[name, 1])] for name in pairs}


def table(name, batch, rounds, slow=True):
    """Print one size and batch."""
    pairs, (a, b, c) = contestants(SIZES[name], batch, slow)
    found = race(pairs, rounds)
    parameters = f"parameters: R2DN {a}, REN {b}, LSTM {c}" if slow else f"parameters: R2DN {a}"
    print(f"\n{name}, batch {batch}, horizon {HORIZON}, float32, {torch.get_num_threads()} threads; {parameters}")
    print(f"  {'median (fastest) of':32}{'forward [ms]':>18}{'both [ms]':>18}{'/ ours':>24}{'/ bare GEMMs':>24}")
    for key, measured in found.items():
        row = "".join(f"{1e3 * median:9.1f} ({1e3 * least:6.1f})" for median, least in measured)
        for base in ("R2DN collapsed", "bare GEMMs"):
            ratios = [[x / y for x, y in zip(t, o, strict=True)] for t, o in zip(measured, found[base], strict=True)]
            row += "  " + "".join(f"{median:5.2f} ({least:5.2f})" for median, least in ratios)
        print(f"  {key:32}{row}", flush=True)


def growth(rounds):
    """Fastest time against horizon, batch and width at the PDE size; returns {quantity: (values, forward, both)}."""
    size, curves = SIZES["PDE observer"], {}

    def calls(network, batch, steps, checkpoint=False):
        u = torch.randn(batch, steps, size["nu"])
        return quiet(lambda: network(u)), lambda: loss(*network(u, checkpoint=checkpoint)).backward()

    def of_width(n):
        return build(size | {"hidden": (n,) * 4})[0]

    network, horizons = build(size)[0], [128 * 2**k for k in range(7)]
    for name, values, make in (
        ("horizon", horizons, lambda n: calls(network, 64, n)),
        ("horizon, checkpointed", horizons, lambda n: calls(network, 64, n, True)),
        ("batch", [4**k for k in range(7)], lambda n: calls(network, n, HORIZON)),
        ("width", [16, 32, 64, 128, 256, 512], lambda n: calls(of_width(n), 64, HORIZON)),
    ):
        found = race({n: make(n) for n in values}, rounds)
        forward, both = ([found[n][k][1] for n in values] for k in (0, 1))
        curves[name] = values, forward, both
        times = (f"{n}: {1e3 * f:.1f}/{1e3 * b:.1f}" for n, f, b in zip(*curves[name], strict=True))
        print(f"\nforward/both [ms] against {name}, PDE size: " + ", ".join(times), flush=True)
        if name.startswith("horizon"):
            slopes = [np.polyfit(np.log(values), np.log(t), 1)[0] for t in (forward, both)]
            print(f"  log-log slope: forward {slopes[0]:.3f}, both {slopes[1]:.3f}", flush=True)
    return curves


def plot(curves, path):
    """Draw the growth curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    for axis, name in zip(axes, ("horizon", "batch", "width"), strict=True):
        values, forward, both = curves[name]
        axis.loglog(values, forward, "o-", label="forward")
        axis.loglog(values, both, "s-", label="forward and backward")
        if name == "horizon":
            axis.loglog(values, curves["horizon, checkpointed"][2], "^--", label="... checkpointed")
        axis.set(xlabel=name, ylabel="seconds", title=f"R2DN, PDE size, against {name}")
        axis.legend()
        axis.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"\nwrote {path}")


def latency(samples=5000):
    """Distribution of one streaming step at the PDE size, beside its bare products and filterpy's EKF step."""
    from filterpy.kalman import ExtendedKalmanFilter

    size = SIZES["PDE observer"]
    network, rng = build(size)[0], np.random.default_rng(0)
    kalman = ExtendedKalmanFilter(dim_x=size["nx"], dim_z=2)
    H = np.eye(2, size["nx"])

    def filterpy():
        kalman.predict()
        kalman.update(np.zeros(2), lambda x: H, lambda x: H @ x)

    print(f"\none step, batch 1, PDE size, {samples} calls: median / 90 % / 99 % [us]")
    with torch.no_grad():
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            recursion = network.explicit().collapse().to(dtype)
            x, u = (rng.normal(size=n).astype(name) for n in (size["nx"], size["nu"]))
            matrices = [a.numpy().copy() for a in (*recursion.weights, recursion.F, recursion.M)]
            work = [(m, np.ones(m.shape[1], name), np.empty(len(m), name)) for m in matrices]
            stream = Stream(recursion)
            rows = {
                f"streaming step, {name}": lambda s=stream, x=x, u=u: s.step(x, u),
                f"bare matrix-vector products, {name}": lambda w=work: [np.dot(m, v, out=o) for m, v, o in w],
            }
            if name == "float64":
                rows["filterpy EKF predict and update"] = filterpy
            medians = []
            for row, call in rows.items():
                times = np.empty(samples if "EKF" not in row else samples // 10)
                for k in range(len(times)):
                    began = time.perf_counter()
                    call()
                    times[k] = time.perf_counter() - began
                medians.append(np.median(times))
                print(f"  {row:40}" + " / ".join(f"{1e6 * q:.1f}" for q in np.quantile(times, (0.5, 0.9, 0.99))))
            print(f"  ratio to the bare products: {medians[0] / medians[1]:.2f}", flush=True)


def main():
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="rollout.png")
    parser.add_argument("--no-growth", action="store_true")
    arguments = parser.parse_args()
    if jax is None:
        print("JAX is not installed: its rows are left out (pip install -e '.[bench]')")
    for name in SIZES:
        table(name, 64, arguments.rounds)
    for name in ("PDE observer", "F-16"):
        table(name, 1024, max(3, arguments.rounds // 2), slow=False)
    latency()
    if not arguments.no_growth:
        plot(growth(max(3, arguments.rounds // 2)), arguments.out)


if __name__ == "__main__":
    main()
