"""The textbook: `lax.scan` over a batch, one product for all gates, nothing else."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered


def elman(p: Any, state: Any, x: Any) -> Any:
    (h,) = state
    return (jnp.tanh(x @ p.w_x + h @ p.w_h + p.b),)


def lstm(p: Any, state: Any, x: Any) -> Any:
    h, c = state
    i, f, g, o = jnp.split(x @ p.w_x + h @ p.w_h + p.b, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(p: Any, state: Any, x: Any) -> Any:
    (h,) = state
    H = h.shape[-1]
    a = x @ p.w_x + p.b
    r, z = jnp.split(jax.nn.sigmoid(a[..., : 2 * H] + h @ p.w_h[:, : 2 * H]), 2, axis=-1)
    n = jnp.tanh(a[..., 2 * H :] + (r * h) @ p.w_h[:, 2 * H :])
    return (z * h + (1 - z) * n,)


def gru_reset_after(p: Any, state: Any, x: Any) -> Any:
    (h,) = state
    a_r, a_z, a_n = jnp.split(x @ p.w_x + p.b, 3, axis=-1)
    u_r, u_z, u_n = jnp.split(h @ p.w_h, 3, axis=-1)
    r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
    n = jnp.tanh(a_n + r * (u_n + p.b_n))
    return (z * h + (1 - z) * n,)


STEPS = {"elman": elman, "lstm": lstm, "gru": gru, "gru_reset_after": gru_reset_after}


def layer(case: Case, D: int) -> Layer:
    step = STEPS[case.cell]

    def run(params: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        def body(old: Any, inputs: Any) -> Any:
            t, x = inputs
            new = step(params, old, x)
            if lengths is not None:
                valid = (t < lengths)[:, None]
                new = tuple(jnp.where(valid, n, o) for n, o in zip(new, old, strict=True))
            return new, new[0]

        T, B, _ = xs.shape
        state = (jnp.zeros((B, case.H)),) * (2 if case.cell == "lstm" else 1)
        return jax.lax.scan(body, state, (jnp.arange(T), xs), reverse=reverse)[1]

    return Layer(lambda params: params, run)


PEER = layered("textbook scan", None, layer, STEPS, time_major=True)
