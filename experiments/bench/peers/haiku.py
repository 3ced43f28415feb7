"""Haiku: `dynamic_unroll`, time first; gates i g f o and z r n, z and 1 - z exchanged."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered

CELLS = {"lstm": "LSTM", "gru": "GRU"}  # its VanillaRNN has a relu and no tanh


def layer(case: Case, D: int) -> Layer:
    haiku: Any = import_module("haiku")

    def unroll(xs: Any, reverse: bool) -> Any:
        cell = getattr(haiku, CELLS[case.cell])(case.H)
        return haiku.dynamic_unroll(cell, xs, cell.initial_state(xs.shape[1]), reverse=reverse)[0]

    apply = haiku.without_apply_rng(haiku.transform(unroll)).apply

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        return apply(weights, xs, reverse)

    return Layer({"lstm": lstm, "gru": gru}[case.cell], run)


def lstm(p: Any) -> Any:
    i, f, g, o = jnp.split(jnp.concatenate([p.w_x, p.w_h]), 4, axis=1)
    b_i, b_f, b_g, b_o = jnp.split(p.b, 4)  # the cell itself adds 1 to b_f
    w, b = jnp.concatenate([i, g, f, o], axis=1), jnp.concatenate([b_i, b_g, b_f - 1, b_o])
    return {"lstm/linear": {"w": w, "b": b}}


def gru(p: Any) -> Any:
    def reorder(a: jax.Array) -> jax.Array:  # sigma(-a) = 1 - sigma(a)
        r, z, n = jnp.split(a, 3, axis=-1)
        return jnp.concatenate([-z, r, n], axis=-1)

    return {"gru": {"w_i": reorder(p.w_x), "w_h": reorder(p.w_h), "b": reorder(p.b)}}


PEER = layered("Haiku", "haiku", layer, CELLS, lengths=False, time_major=True)
