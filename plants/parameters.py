"""Parameters of a python-control system as its states or inputs, so that they can be estimated."""

from collections.abc import Mapping

import control as ct
import numpy as np


def parameters_as_states(sys, values: Mapping[str, float]) -> ct.NonlinearIOSystem:
    """Return the system with constant states for some of its parameters, for joint estimation.

    A filter of the result estimates states and parameters together. How fast a parameter may drift is its
    process noise; zero means a constant.

    Parameters
    ----------
    sys : control.NonlinearIOSystem
        Made by ``control.nlsys``; not modified.
    values : mapping
        Name of each parameter to a typical value, at which it is checked to matter.

    Returns
    -------
    control.NonlinearIOSystem
        States are those of `sys`, then the parameters; inputs and outputs are the same. A dataset of the plant becomes
        one of this by ``from_arrays(model, y=data["y"].values, u=data["u"].values)``.

    Raises
    ------
    TypeError
        `sys` has no parameters: a linear system, or an interconnection (replace its block instead).
    ValueError
        A parameter that changes neither states nor outputs.

    Examples
    --------
    >>> import control as ct
    >>> decay = ct.nlsys(lambda t, x, u, params: [-params["rate"] * x[0]], None, states=1, outputs=1, inputs=0,
    ...                  params={"rate": 2.0})
    >>> parameters_as_states(decay, {"rate": 2.0}).state_labels
    ['x[0]', 'rate']
    """
    names, update, output = _checked(sys, values)
    n = sys.nstates
    discrete = sys.dt != 0

    def update_all(t, x, u, params):
        rates = update(t, x[:n], u, {**params, **{name: x[n + i] for i, name in enumerate(names)}})
        return [*rates, *(x[n + i] if discrete else 0 * x[n + i] for i in range(len(names)))]

    def output_all(t, x, u, params):
        return output(t, x[:n], u, {**params, **{name: x[n + i] for i, name in enumerate(names)}})

    return ct.nlsys(
        update_all,
        output_all,
        states=[*sys.state_labels, *names],
        inputs=sys.input_labels or 0,
        outputs=sys.output_labels,
        dt=sys.dt,
        params=dict(sys.params),
        name=sys.name,
    )


def parameters_as_inputs(sys, values: Mapping[str, float]) -> ct.NonlinearIOSystem:
    """Return the system with inputs for some of its parameters; see :func:`parameters_as_states`.

    Parameters
    ----------
    sys : control.NonlinearIOSystem
        Made by ``control.nlsys``; not modified.
    values : mapping
        Name of each parameter to a typical value.

    Returns
    -------
    control.NonlinearIOSystem
        Inputs are those of `sys`, then the parameters.

    Raises
    ------
    TypeError, ValueError
        As for `parameters_as_states`.
    """
    names, update, output = _checked(sys, values)
    m = sys.ninputs

    def with_values(function):
        return lambda t, x, u, params: function(
            t, x, u[:m], {**params, **{name: u[m + i] for i, name in enumerate(names)}}
        )

    return ct.nlsys(
        with_values(update),
        with_values(output),
        states=sys.state_labels,
        inputs=[*sys.input_labels, *names],
        outputs=sys.output_labels,
        dt=sys.dt,
        params=dict(sys.params),
        name=sys.name,
    )


def with_parameters(sys, values: Mapping[str, float]) -> ct.NonlinearIOSystem:
    """Return the system with other values stored for some of its parameters; see :func:`parameters_as_states`.

    Parameters
    ----------
    sys : control.NonlinearIOSystem
        Made by ``control.nlsys``; not modified.
    values : mapping
        Name of each parameter to its value.

    Returns
    -------
    control.NonlinearIOSystem

    Raises
    ------
    TypeError, ValueError
        As for `parameters_as_states`.
    """
    _checked(sys, values)
    return ct.nlsys(
        sys.updfcn,
        sys.outfcn,
        states=sys.state_labels,
        inputs=sys.input_labels or 0,
        outputs=sys.output_labels,
        dt=sys.dt,
        params={**sys.params, **{name: float(value) for name, value in values.items()}},
        name=sys.name,
    )


def _checked(sys, values):
    if not isinstance(sys, ct.NonlinearIOSystem) or isinstance(sys, ct.StateSpace | ct.InterconnectedSystem):
        raise TypeError(
            f"{type(sys).__name__} has no parameters to estimate: it needs a system made by control.nlsys; of an "
            "interconnection, do it to the block before interconnecting"
        )
    update, output = sys.updfcn, sys.outfcn or (lambda t, x, u, params: x)
    # at several orders of magnitude: exp(-8750 / T) is zero unless T is hundreds
    rng = np.random.default_rng(0)
    x, u = (
        rng.uniform(0.5, 1.5, (2, 32, sys.nstates + (sys.ninputs or 0))) * np.repeat(10.0 ** np.arange(4), 8)[:, None]
    )
    for name, value in values.items():

        def at(number, name=name):
            params, n, m = {**sys.params, **values, name: number}, sys.nstates, sys.ninputs
            with np.errstate(all="ignore"):
                return np.concatenate(
                    [
                        np.ravel(f(0.7, a[:n], b[:m], params))
                        for a, b in zip(x, u, strict=True)
                        for f in (update, output)
                    ]
                )

        if np.array_equal(at(float(value)), at(1.1 * float(value) + 0.01), equal_nan=True):
            known = f"; it stores {sorted(sys.params)}" if sys.params else ""
            raise ValueError(f"parameter {name!r} changes neither the states nor the outputs of {sys.name!r}{known}")
    return list(values), update, output
