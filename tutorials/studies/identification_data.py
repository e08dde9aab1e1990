"""Records for system identification: measured sets read from a path, and a measured and a simulated pendulum."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import savgol_filter

import estimators as est
import plants

PENDULUM = Path(__file__).parents[2] / "tests" / "data" / "dfki_simple_pendulum" / "energy_shaping_data_measured.csv"
F16_PERIOD, F16_TRAINED, F16_BURN = 8192, 6144, 2048
REST = 250
"""Samples after a cut in the measured pendulum's record that are not scored."""


@dataclass(frozen=True)
class Record:
    """Sequences to train on and to test on, in the data's own units.

    Attributes
    ----------
    name, unit : str
        Of the record, and of its scored output.
    dt : float
        Sample time, s.
    train_u, train_y : numpy.ndarray
        (sequence, time, ninputs) and (sequence, time, noutputs).
    burn : int
        Samples at the start of every training sequence without loss: there the state is found.
    lag : int
        How many first samples of inputs and outputs a model may see to choose its state; 0: it starts at zero.
    unbroken : tuple
        (time, ninputs) and (time, noutputs) of the longest stretch that training may see.
    tests : dict
        ``{name: (u, y, scored)}``, (sequence, time, ...), and the (time,) mask of the samples that count.
    others : dict
        Errors of other methods on the first test, in `unit`, with where they are from.
    """

    name: str
    unit: str
    dt: float
    train_u: np.ndarray
    train_y: np.ndarray
    burn: int
    lag: int
    unbroken: tuple
    tests: dict
    others: dict


def f16(path) -> Record:
    """F-16 ground vibration, one multisine record: force and voltage to an acceleration, 400 Hz.

    The record is one period of 8192 samples four times over. Training sees the first three quarters of a period, tests
    the last quarter, whose inputs are new; the first period, with its transient, only serves to reach the steady state.

    Parameters
    ----------
    path : path-like
        File f-16.txt of wilsonrljr/sysidentpy-data, or its folder.
    """
    path = Path(path)
    table = np.loadtxt(path / "f16_gvt_small" / "f-16.txt" if path.is_dir() else path, delimiter=",")
    if table.shape != (4 * F16_PERIOD, 3):
        raise ValueError(f"{path} must hold {4 * F16_PERIOD} rows of force, voltage, acceleration, got {table.shape}")
    u, y = table[:, :2], table[:, 2:]
    half = F16_TRAINED // 2
    starts = [k * F16_PERIOD + part * half for k in (1, 2, 3) for part in (0, 1)]
    parts = [slice(s - F16_BURN, s + half) for s in starts]
    scored = np.arange(len(u)) % F16_PERIOD >= F16_TRAINED
    scored[:F16_PERIOD] = False
    floor = np.stack([y[k * F16_PERIOD : (k + 1) * F16_PERIOD, 0] for k in (1, 2, 3)])[:, F16_TRAINED:]
    noise = float(np.sqrt(floor.var(axis=0, ddof=1).mean()))
    return Record(
        "f16",
        "of the record",
        1 / 400,
        np.stack([u[p] for p in parts]),
        np.stack([y[p] for p in parts]),
        F16_BURN,
        0,
        (u[F16_PERIOD : F16_PERIOD + F16_TRAINED], y[F16_PERIOD : F16_PERIOD + F16_TRAINED]),
        {"last quarter of the period": (u[None], y[None], scored)},
        {"noise from period to period (floor)": noise},
    )


def tanks(path) -> Record:
    """Cascaded tanks, pump voltage to the lower level, 4 s: estimation set to train on, validation set to test on.

    Official protocol: the first four samples of the test may be used to find the state; all samples are scored. The
    published figures were printed as MSE in one place and circulate as RMSE.

    Parameters
    ----------
    path : path-like
        File dataBenchmark.csv, or the folder that holds cascaded_tanks.
    """
    path = Path(path)
    table = pd.read_csv(path / "cascaded_tanks" / "dataBenchmark.csv" if path.is_dir() else path)
    u, y, v, z = (table[c].to_numpy()[:, None] for c in ("uEst", "yEst", "uVal", "yVal"))
    length, every = 512, 32
    starts = range(0, len(u) - length + 1, every)
    figures = {"BLA": 0.757, "Volterra": 0.540, "PNLSS-I": 0.450, "NLSS2": 0.343}
    return Record(
        "tanks",
        "V",
        4.0,
        np.stack([u[s : s + length] for s in starts]),
        np.stack([y[s : s + length] for s in starts]),
        0,
        4,
        (u, y),
        {"validation set": (v[None], z[None], np.ones(len(v), bool))},
        {f"{name}, published figure, if it is an RMSE": value for name, value in figures.items()},
    )


def pendulum(reduced: bool = False) -> Record:
    """Simulate the catalogue's measured pendulum from rest, torque to angle, 50 Hz: multisines and steps."""
    system = plants.measured_pendulum(offset=0.0)
    limit = 0.8  # N m: it swings to 100 degrees; from 0.9 on it goes over the top
    model = plants.discretize(
        system, 0.02, substeps=8, operating_region={"position": (-2, 2), "velocity": (-8, 8), "torque": (-limit, limit)}
    )
    noise = plants.GaussianNoise([1e-12, 1e-12], [0.0029**2 / 12])
    count, steps, trained, rng = 8 if reduced else 32, 800, 512, np.random.default_rng(0)
    signals = plants.signals.multisine(0.05, 2.0, 20), plants.signals.steps(2.0)
    drawn = [signal(np.arange(steps) * model.dt, count + 16, rng) for signal in signals]
    inputs = limit * np.concatenate(drawn, axis=1).T[..., None]
    data = plants.simulate(
        model,
        trajectories=len(inputs),
        steps=steps,
        inputs=inputs,
        seed=0,
        noise=noise,
        initial_mean=[0.0, 0.0],
        initial_cov=[1e-12, 1e-12],
    )
    u, y = (data[name].values.reshape(2, count + 16, steps, 1) for name in "uy")
    everything = np.ones(steps, bool)
    tests = {name: (u[k, count:], y[k, count:], everything) for k, name in enumerate(("multisine", "steps"))}
    u, y = (a[:, :count, :trained].reshape(-1, trained, 1) for a in (u, y))
    return Record("pendulum", "rad", 0.02, u, y, 0, 0, (u[0], y[0]), tests, {})


def measured_rate() -> Record:
    """Angular rate of DFKI's measured pendulum from torque and angle, 200 Hz: a virtual sensor.

    The swing-up stays near the unstable upright for most of the record, where no model that forgets its start can
    reproduce the angle from the torque alone; so the angle is an input too, as sine, cosine and difference quotient.
    Trained on the first 12 s, tested on the other 8 s; reference: the angle's smoothed derivative (window 15, order 3).
    """
    table = pd.read_csv(PENDULUM)
    angle, dt, cut = table["position"].to_numpy(), 0.005, 2400
    rate = savgol_filter(angle, 15, 3, deriv=1, delta=dt)[:, None]
    quotient = np.diff(angle, prepend=angle[0]) / dt
    u = np.stack([table["torque"].to_numpy(), np.sin(angle), np.cos(angle), quotient], 1)
    burn, length = 100, 500
    starts = range(0, cut - burn - length + 1, 100)
    scored = np.zeros(len(u), bool)
    scored[cut + REST : -50] = True

    def error(estimate):
        return float(np.sqrt(np.square(estimate - rate[:, 0])[scored].mean()))

    setting = plants.scenario("measured_pendulum")
    data = plants.from_arrays(
        setting.model,
        y=angle[:, None],
        u=table[["torque"]].to_numpy(),
        initial_mean=[angle[0], 0.0],
        initial_cov=[1e-4, 1e-2],
    )
    found = est.run(est.ExtendedKalmanFilter(setting.model, setting.noise), data)
    return Record(
        "measured rate",
        "rad/s",
        dt,
        np.stack([u[s : s + burn + length] for s in starts]),
        np.stack([rate[s : s + burn + length] for s in starts]),
        burn,
        0,
        (u[:cut], rate[:cut]),
        {"last 8 s": (u[None], rate[None], scored)},
        {
            "difference quotient": error(quotient),
            "rate of the motor driver": error(table["velocity"].to_numpy()),
            "EKF with the identified model, filtered": error(found["filtered"].values[0, :, 1]),
        },
    )
