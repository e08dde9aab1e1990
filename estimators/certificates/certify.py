"""One door to every certificate."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product as pairs

import numpy as np
import scipy.linalg
import xarray as xr

from estimators.certificates.basin import MOST_TRAJECTORIES, certify_basin
from estimators.certificates.common_metric import certify_region
from estimators.certificates.dissipation import EPS
from estimators.certificates.feedforward import network_bound
from estimators.certificates.linear_matrix import certify_matrices
from estimators.certificates.loops import Loop
from estimators.certificates.refine import fastest, gains, overall_gain, refine_loop
from estimators.certificates.result import Certificate
from estimators.certificates.rigorous import positive_definite_margin
from estimators.certificates.update_map import UpdateMap
from estimators.correction import LearnedCorrection
from estimators.gaussian.exogenous import ExogenousKalmanFilter
from estimators.gaussian.filter import GaussianFilter
from estimators.gaussian.kalman import KalmanFilter, steady_state
from estimators.luenberger import LuenbergerObserver
from estimators.metrics import errors
from estimators.network_observer import NetworkObserver
from estimators.networks.lipschitz import LipschitzNetwork
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.recurrent import Recurrent
from estimators.networks.ren import RENMatrices
from estimators.observer import R2DNObserver
from estimators.startup import Startup
from plants.schema import to_tensors, validate

MOST_GAINS = 64
"""With more pairs of channels than these the states are taken together."""


def certify(subject, dataset: xr.Dataset | None = None, *, region: Mapping | None = None) -> Certificate:
    """Say whether an estimator forgets its start, how fast, in which metric, and how strongly noise moves it.

    What is claimed, and how it is checked, depends on the subject:

    - **R2DN observer, R2DN, REN, explicit matrices**: the contraction inequality (mathematics.md, 3-5) in the designed
      metric and at the designed rate, with the Lipschitz bound or supply rate if there is one; `bound` is the smallest
      rate that this metric is proved for. An observer's or network's evidence also holds the smallest rate in any
      metric (see :func:`refine`), and its `gains`.
    - **NetworkObserver**: its network.
    - **LearnedCorrection**: its filter, as below, since it forgets what the filter forgets; the evidence holds what is
      proved of its network.
    - **Luenberger observer or Kalman filter of a linear plant**: the same for its closed loop; of a Kalman filter, in
      its steady state.
    - **LipschitzNetwork**: its Lipschitz constant.
    - **anything else with a constant update, over a region**: a StateSpaceModel or discrete python-control system (an
      observer whose inputs are u and y, or a plant), a LuenbergerObserver of a nonlinear plant, a function
      ``(x, u, y) -> x_next``. A metric is sought that contracts the Jacobians at sampled points; enclosures of the
      Jacobian then prove it where the plant is small enough to cover (``'proved'``), else fresh points test it
      (``'sampled'``, with the share of the region it may fail on). Before that, pairs of runs that do not
      approach each other are sought (``'refuted'``, with starts and inputs); neither is ``'inconclusive'``. All
      of it holds while both runs are in the region.
    - **a Gaussian filter of a nonlinear plant, on a dataset**: no certificate, since its gain depends on its estimate,
      but from which displaced starts it found back (``'sampled'``, or ``'refuted'`` with the start). Of an
      ExogenousKalmanFilter the evidence also holds what is proved of its reference, and how much of a difference along
      the reference is left at the end of the record.

    ``'proved'`` means that every rounding error of the check is bounded, for the float64 matrices as the
    observer steps with; rounding of its own steps is not part of the claim. Contraction alone is not tracking: with
    `dataset` the evidence of an observer holds the correctness residual, how far one step from the true state misses
    the model's next state.

    Parameters
    ----------
    subject : object
        As above.
    dataset : xarray.Dataset, optional
        Trajectories with true states: for the correctness residual of an observer, the starts and data of a filter;
        over a region, they have to lie in it.
    region : mapping, optional
        ``{label: (lower, upper)}`` of states, inputs and, for an observer of a plant, outputs. Labels left out of a
        StateSpaceModel are as in its operating region. For a function ``{'x': (lower, upper), 'u': ..., 'y': ...}``
        with arrays.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError
        A subject that none of these is.
    ValueError
        Matrices that are not finite or not what the claim presupposes, an observer without data; an empty region, or
        one that the data leave; a region for a subject whose certificate is global.
    """
    observers = R2DNObserver | NetworkObserver
    anywhere = (
        R2DNMatrices
        | RENMatrices
        | LipschitzNetwork
        | Recurrent
        | observers
        | GaussianFilter
        | ExogenousKalmanFilter
        | LearnedCorrection
    )
    if region is not None and isinstance(subject, anywhere):
        raise ValueError(f"region is not for a {type(subject).__name__}, of which nothing is said about a region")
    if isinstance(subject, R2DNMatrices | RENMatrices):
        return certify_matrices(subject)
    if isinstance(subject, LipschitzNetwork):
        return _lipschitz(subject)
    if isinstance(subject, Recurrent):
        return _recurrent(subject)
    if isinstance(subject, observers):
        certificate = _observer(subject) if isinstance(subject, R2DNObserver) else _recurrent(subject.network)
        if dataset is not None:
            certificate.evidence["correctness residual (RMS per state)"] = correctness_residual(subject, dataset)
        return certificate
    if isinstance(subject, LearnedCorrection):
        certificate, network = certify(subject.filter, dataset), _recurrent(subject.network)
        certificate.evidence["network behind the filter"] = (
            f"{network.property}: {network.verdict}, {network.bound:.6f} a step for the same signals of the filter"
        )
        return certificate
    if isinstance(subject, LuenbergerObserver | KalmanFilter) and subject.model.matrices is not None:
        return _linear(subject)
    if isinstance(subject, GaussianFilter | ExogenousKalmanFilter):
        if dataset is None:
            raise ValueError(
                f"a {type(subject).__name__} of a nonlinear plant has no certificate: give a dataset, to see from "
                "which starts on it the filter finds back"
            )
        certificate = certify_basin(subject, dataset)
        if isinstance(subject, ExogenousKalmanFilter):
            certificate.evidence.update(_along_reference(subject, dataset))
        return certificate
    update = UpdateMap.of(subject, region)
    if dataset is not None:
        update.check_inside(dataset)
    return certify_region(update)


def _along_reference(subject, dataset):
    """Evidence about an ExogenousKalmanFilter beyond its basin."""
    found = {}
    if isinstance(subject.reference, R2DNObserver | NetworkObserver):
        theirs = certify(subject.reference)
        found["reference"] = f"{theirs.property}: {theirs.verdict}, {theirs.bound:.6f} a step"
    if "initial_mean" in dataset and "initial_cov" in dataset:
        left = subject.forgetting(dataset.isel(trajectory=slice(MOST_TRAJECTORIES)))
        found["left of a difference along the reference"] = f"at most {float(left[:, -1].max()):.3g} after the record"
    return found


def refine(subject, rate: float | None = None) -> Certificate:
    """For an observer or network as it is: the smallest rate of contraction, or the best metric at a rate.

    Contraction is a property of the system, the designed metric only one witness of it: with the matrices
    fixed, others may show a smaller rate, or contain less overshoot.

    Parameters
    ----------
    subject : R2DNObserver, NetworkObserver, R2DN, REN, their matrices, or LuenbergerObserver or KalmanFilter of a
        linear plant. What `certify` proves.
    rate : float, optional
        Find the metric of least condition number at this rate (a semidefinite programme, small systems). Default: the
        smallest rate there is a metric for (Riccati equations, any size).

    Returns
    -------
    Certificate
        Proved like the rest.

    Raises
    ------
    TypeError, ValueError
        As for `certify`; `rate` below the smallest or above 1; a subject that is not proved to begin with.
    """
    if rate is not None and not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate!r}")
    scale = 1.0
    subject = subject.network if isinstance(subject, NetworkObserver) else subject
    if isinstance(subject, LuenbergerObserver | KalmanFilter):
        designed, loop, P = linear_start(subject)
    else:
        matrices = subject.explicit() if isinstance(subject, R2DNObserver | Recurrent) else subject
        if isinstance(subject, R2DNObserver):
            scale = np.ones(subject.nstates)
            scale[: subject.model.nstates] = subject.coordinates.state_scale.numpy()
        designed = certify(matrices)
        loop, P = Loop.of(matrices), designed.metric
    if designed.verdict != "proved":
        raise ValueError(f"nothing to refine: {designed}")
    found = refine_loop(loop, P, designed.bound, rate)
    return Certificate(
        found.property,
        found.verdict,
        found.bound,
        found.margin,
        _in_units(found.metric, scale),
        evidence=found.evidence,
    )


def _in_units(P, scale):
    return P / (scale * np.reshape(scale, (-1, 1)))


def certify_parts(matrices: R2DNMatrices, coordinates: dict, startup: Startup, plant: dict) -> Certificate:
    """Certify an observer given by its matrices, as read from a file without its plant.

    Parameters
    ----------
    matrices : R2DNMatrices
        In the observer's coordinates.
    coordinates, plant : dict
        As in :class:`estimators.observer_file.ObserverFile`.
    startup : Startup
        Its start-up signals.
    """
    found, table = certify_matrices(matrices), None
    scale = np.ones(len(matrices.A))
    own = coordinates["state_scale"].numpy()
    scale[: len(own)] = own
    if found.verdict == "proved":
        loop = Loop.of(matrices)
        found.evidence["smallest rate in any metric"] = fastest(loop, found.metric, found.bound)[0]
        table = _gains(
            loop,
            found.metric,
            ("filtered", "predicted"),
            (plant["states"], plant["inputs"], plant["outputs"]),
            np.concatenate([own, own]),
            coordinates["input_scale"].numpy(),
        )
    found.evidence["holds"] = (
        f"for runs with the same start-up signals: from step {startup.length} on always, before that for the same told "
        f"start; they forget it at {startup.radius:.4f} a step"
    )
    metric = _in_units(found.metric, scale)
    return replace(found, metric=metric, gains=table)


def _observer(observer):
    model = observer.model
    plant = {"states": model.state_labels, "inputs": model.input_labels, "outputs": model.output_labels}
    found = certify_parts(observer.explicit(), observer.coordinates.tensors(), observer.startup, plant)
    if observer.coordinates.follows_turns:
        found.evidence["gains hold"] = "while no measured angle passes half a turn, where its frame changes"
    return found


def _gains(loop, P, kinds, labels, output_scale, input_scale):
    """From each measurement to each estimate; the states together, in units of `output_scale`, where they are many."""
    states, plant_inputs, measured = labels
    inputs = {label: len(plant_inputs) + j for j, label in enumerate(measured)}
    dims, n = ("kind", "state", "measurement"), len(states)
    if len(kinds) * n * len(inputs) <= MOST_GAINS:
        outputs = [((kind, s), [k * n + i]) for (k, kind), (i, s) in pairs(enumerate(kinds), enumerate(states))]
        units = [output_scale[i] for _, (i,) in outputs]
    else:
        outputs = [((kind, "all, scaled"), list(range(k * n, k * n + n))) for k, kind in enumerate(kinds)]
        units = [1.0] * len(kinds)
    return gains(loop, P, inputs, outputs, units, input_scale, dims)


def _recurrent(network):
    matrices = network.explicit()
    found = certify_matrices(matrices)
    if found.verdict != "proved":
        return found
    loop, P = Loop.of(matrices), found.metric
    _, _, nu, ny = loop.sizes
    found.evidence["smallest rate in any metric"] = fastest(loop, P, found.bound)[0]
    found.evidence["smallest Lipschitz bound from input to output"] = overall_gain(loop, P)
    if nu * ny > MOST_GAINS:
        return found
    inputs, outputs = {f"u[{j}]": j for j in range(nu)}, [((f"y[{i}]",), [i]) for i in range(ny)]
    table = gains(loop, P, inputs, outputs, np.ones(ny), np.ones(nu), ("output", "input"))
    return Certificate(
        found.property, found.verdict, found.bound, found.margin, P, evidence=found.evidence, gains=table
    )


def _lipschitz(network):
    layers = network.explicit()
    if not all(
        np.isfinite(part.detach().cpu().numpy()).all() for layer in layers for part in layer if part is not None
    ):
        raise ValueError("the network holds values that are not finite")
    found = network_bound(layers, network.linear_output)
    bound = float(network.bound * found * (1 + 4 * EPS))
    evidence = {"designed bound": network.bound, "excess of the stored layers": found - 1}
    return Certificate("Lipschitz bound, from input to output", "proved", bound, float("nan"), None, evidence=evidence)


def linear_start(subject):
    """Form the closed loop of a linear observer, and a certificate in the metric of a Lyapunov equation."""
    model = subject.model
    if model.matrices is None:
        raise TypeError(f"the plant {model.name!r} is not linear: give region=, where its Jacobians are looked at")
    if isinstance(subject, KalmanFilter):
        noise = subject.noise
        A, _, C, _ = model.matrices
        gain, form = steady_state(A, C, noise.process_cov, noise.measurement_cov).filter_gain, "filter"
        what = "contraction of the Kalman filter in its steady state"
    else:
        gain, form = subject.gain.numpy(), subject.form
        what = "contraction of the linear observer"
    if bool(model.state_is_angle.any() or model.output_is_angle.any()):
        what += ", while its angles are not wrapped"
    loop = Loop.linear(model.matrices, gain, form)
    values, vectors = np.linalg.eig(loop.A)
    fast = int(np.abs(values).argmax())
    radius = float(np.abs(values[fast]))
    evidence = {"spectral radius": radius}
    inequality = loop.contraction()
    for rate in ((3 * radius + 1) / 4, (radius + 3) / 4) if radius < 1 else ():
        for P in inequality.metrics(rate, model.operating_region.state_width):
            here = inequality.with_metric(P)
            result = here.prove(rate)
            if result.verdict == "proved":
                bound = here.smallest_rate(rate)
                return Certificate(what, "proved", bound, result.margin, P, evidence=evidence), loop, P
    evidence["direction"] = np.real(vectors[:, fast])
    # eigenvalues may be far off; a quadratic form that decreases along all runs, yet is negative somewhere, is proof
    verdict = "refuted" if _grows(inequality) else "inconclusive"
    return Certificate(what, verdict, radius, 1 - radius, None, evidence=evidence), loop, None


def _grows(inequality):
    """Prove that a linear system does not tend to zero: V = x'Px decreases on every run and is negative somewhere."""
    A = inequality.into
    try:
        P = scipy.linalg.solve_discrete_lyapunov(A.T, np.eye(len(A)))
    except (np.linalg.LinAlgError, ValueError):
        return False
    P = (P + P.T) / 2
    if not np.isfinite(P).all():
        return False
    value, error = inequality.with_metric(P).at(1.0)
    return positive_definite_margin(value, error) > 0 and np.linalg.eigvalsh(P)[0] < -1e-9 * np.abs(P).max()


def _linear(subject):
    found, loop, P = linear_start(subject)
    if found.verdict != "proved":
        return found
    model, kinds = subject.model, ("filtered", "predicted")
    if len(loop.C2) == model.nstates:
        kinds = ("predicted",)
    rate, here = fastest(loop, P, found.bound)
    scale = np.ones(len(loop.C2)), np.ones(loop.B2.shape[1])
    table = _gains(loop, P, kinds, (model.state_labels, model.input_labels, model.output_labels), *scale)
    return Certificate(
        found.property, "proved", rate, here.prove(rate).margin, here.P, evidence=found.evidence, gains=table
    )


def correctness_residual(observer: R2DNObserver | NetworkObserver, dataset: xr.Dataset) -> np.ndarray:
    """RMS over data of the observer's step from the true state minus the model's, per state, in the plant's units.

    The measurement is the noise-free one, y = h(x, u), and the start-up signal has faded: a correct observer has
    residual zero.
    """
    validate(dataset, observer.model, states=True)
    x, u, _ = to_tensors(dataset)
    x, u = x.flatten(0, 1), u.flatten(0, 1)
    y, state = observer.model.output(x, u), observer.init(x)
    if isinstance(observer, NetworkObserver):
        predicted = observer.step(state, u, y)[0].x
    else:
        predicted = observer.coordinates.to_plant(observer.step(state._replace(startup=None), u, y)[0].predicted)
    return np.sqrt(np.mean(np.square(errors(observer.model, predicted, observer.model.step(x, u))), axis=0))
