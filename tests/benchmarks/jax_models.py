"""R2DN and REN in JAX, structured as the published implementation runs them: the yardstick of `rollout.py`.

Direct parameters are mapped to explicit ones once a sequence, then a jitted `lax.scan` steps the
model as it is defined: nothing is fused, every sandwich layer is two products and its scalings, the
output is computed in the step. The equilibrium layer of the REN is solved row by row, with the
implicit-function rule as its derivative; the published code unrolls these rows when tracing, which
compiles for minutes and runs the same arithmetic.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

EPS = float(np.finfo(np.float32).eps)


def norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(x)) + EPS)


def cayley(XY):
    n = XY.shape[1]
    U, V = XY[:n], XY[n:]
    Z = U - U.T + V.T @ V
    eye = jnp.eye(n)
    inverse = jnp.linalg.inv(eye + Z)
    return inverse @ (eye - Z), (-2 * V @ inverse).T


def sandwich_explicit(layer):
    A_T, B = cayley(layer["a"] / norm(layer["XY"]) * layer["XY"])
    return {"A_T": A_T, "B": B, "psi": jnp.exp(jnp.clip(layer["d"], -20, 20)), "b": layer["b"]}


def network(layers, h):
    root = jnp.sqrt(2.0)
    for index, layer in enumerate(layers):
        if index == len(layers) - 1:
            return h @ layer["B"].T + layer["b"]
        pre = root * h @ ((1 / layer["psi"])[:, None] * layer["B"]).T + layer["b"]
        h = root * jax.nn.relu(pre) @ (layer["A_T"] * layer["psi"]).T


def _shared_H(params, extra):
    X, p = params["X"], params["p"]
    return p**2 * (X.T @ X) / norm(X) ** 2 + extra + EPS * jnp.eye(X.shape[0])


def r2dn_explicit(params):
    B1, C1 = params["B1"], params["C1"]
    nx = params["Y"].shape[0]
    H = _shared_H(params, jax.scipy.linalg.block_diag(C1.T @ C1, B1 @ B1.T))
    E = (H[:nx, :nx] + H[nx:, nx:] + params["Y"] - params["Y"].T) / 2
    layers = [sandwich_explicit(layer) for layer in params["network"]]
    return params | {"A": jnp.linalg.solve(E, H[nx:, :nx]), "B1": jnp.linalg.solve(E, B1), "network": layers}


def r2dn_step(e, x, u):
    w = network(e["network"], x @ e["C1"].T + u @ e["D12"].T + e["bv"])
    following = x @ e["A"].T + w @ e["B1"].T + u @ e["B2"].T + e["bx"]
    if "C2" not in e:
        return following, x
    return following, x @ e["C2"].T + w @ e["D21"].T + u @ e["D22"].T + e["by"]


@jax.custom_vjp
def equilibrium(D11, v):
    """w = relu(D11 w + v), D11 strictly lower triangular, row by row; v (batch, nv)."""

    def row(i, w):
        return w.at[:, i].set(jax.nn.relu(w @ D11[i] + v[:, i]))

    return jax.lax.fori_loop(0, v.shape[1], row, jnp.zeros_like(v))


def _equilibrium_forward(D11, v):
    w = equilibrium(D11, v)
    return w, (D11, w)


def _equilibrium_backward(saved, g):
    D11, w = saved
    slope = (w > 0).astype(w.dtype)
    # (I - J D11)' z = g row by row from the last, and dL/dv = J z
    matrix = jnp.eye(D11.shape[0]) - slope[:, :, None] * D11[None]
    z = jax.lax.linalg.triangular_solve(
        matrix, g[..., None], left_side=True, lower=True, transpose_a=True, unit_diagonal=True
    )[..., 0]
    dv = slope * z
    return jnp.tril(dv.T @ w, -1), dv


equilibrium.defvjp(_equilibrium_forward, _equilibrium_backward)


def ren_explicit(params):
    nx, nv = params["Y1"].shape[0], params["D12"].shape[0]
    H = _shared_H(params, 0.0)
    a, b = nx, nx + nv
    E = (H[:a, :a] + H[b:, b:] + params["Y1"] - params["Y1"].T) / 2
    inverse_lambda = 2 / jnp.diag(H[a:b, a:b])
    solve = partial(jnp.linalg.solve, E)
    return params | {
        "A": solve(H[b:, :a]),
        "B1": solve(H[b:, a:b]),
        "B2": solve(params["B2"]),
        "C1": -inverse_lambda[:, None] * H[a:b, :a],
        "D11": -inverse_lambda[:, None] * jnp.tril(H[a:b, a:b], -1),
        "D12": inverse_lambda[:, None] * params["D12"],
    }


def ren_step(e, x, u):
    w = equilibrium(e["D11"], x @ e["C1"].T + u @ e["D12"].T + e["bv"])
    following = x @ e["A"].T + w @ e["B1"].T + u @ e["B2"].T + e["bx"]
    if "C2" not in e:
        return following, x
    return following, x @ e["C2"].T + w @ e["D21"].T + u @ e["D22"].T + e["by"]


def rollout(explicit, step, params, x0, u):
    """(time, batch, nu) to (time, batch, ny) and the last state."""
    e = explicit(params)
    x, y = jax.lax.scan(lambda x, u: step(e, x, u), x0, u)
    return y, x


def compiled(kind):
    """Jitted forward, and jitted gradient of mean(x_T^2) + mean(y^2), of 'r2dn' or 'ren'."""
    run = partial(rollout, *{"r2dn": (r2dn_explicit, r2dn_step), "ren": (ren_explicit, ren_step)}[kind])

    def loss(params, x0, u):
        y, x = run(params, x0, u)
        return jnp.mean(jnp.square(x)) + jnp.mean(jnp.square(y))

    return jax.jit(run), jax.jit(jax.value_and_grad(loss))


def from_torch(module, identity_output):
    """Parameters of one of our modules as the tree used here."""
    tree = {}
    for name, value in module.named_parameters():
        array = jnp.asarray(value.detach().cpu().numpy())
        if name.startswith("network.layers."):
            index, key = name.removeprefix("network.layers.").split(".")
            layers = tree.setdefault("network", [])
            while len(layers) <= int(index):
                layers.append({"d": jnp.zeros(())})
            layers[int(index)][key] = array
        else:
            tree[name] = array
    if identity_output:
        for name in ("C2", "D21", "D22", "by"):
            tree.pop(name, None)
    return tree
