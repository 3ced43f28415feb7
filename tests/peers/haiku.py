"""Haiku: gates i g f o and z r n, 1 added to f in the forward pass, z and 1 - z exchanged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "haiku"


def vanilla(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:  # two biases
        x, h = w["vanilla_rnn/linear"], w["vanilla_rnn/linear_1"]
        return rnn_jax.ElmanParams(w_x=x["w"], w_h=h["w"], b=x["b"] + h["b"])

    cell = rnn_jax.elman(D, H, activation=jax.nn.relu)
    return _peer(rng, "VanillaRNN", cell, to_params)


def lstm(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:  # one matrix for x and h
        i, g, f, o = jnp.split(w["lstm/linear"]["w"], 4, axis=1)
        w_x, w_h = jnp.split(jnp.concatenate([i, f, g, o], axis=1), [D])
        i, g, f, o = jnp.split(w["lstm/linear"]["b"], 4)
        return rnn_jax.LSTMParams(w_x, w_h, b=jnp.concatenate([i, f + 1, g, o]), w_c=None)

    return _peer(rng, "LSTM", rnn_jax.lstm(D, H), to_params)


def gru(rng: np.random.Generator) -> Peer:
    def reorder(w: Any) -> Any:  # sigma(-a) = 1 - sigma(a)
        z, r, n = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([r, -z, n], axis=-1)

    def to_params(w: Any) -> Any:
        w = w["gru"]
        return rnn_jax.GRUParams(reorder(w["w_i"]), reorder(w["w_h"]), reorder(w["b"]), b_n=None)

    return _peer(rng, "GRU", rnn_jax.gru(D, H), to_params)


def _peer(rng: np.random.Generator, name: str, cell: rnn_jax.Cell, to_params: Callable) -> Peer:
    import haiku

    def run(state: Any, xs: Any) -> Any:
        state = haiku.LSTMState(state.h, state.c) if name == "LSTM" else state
        ys, state = haiku.dynamic_unroll(getattr(haiku, name)(H), xs, state)
        return rnn_jax.LSTMState(state.hidden, state.cell) if name == "LSTM" else state, ys

    layer = haiku.without_apply_rng(haiku.transform(run))
    shape = jnp.zeros(H)
    state = rnn_jax.LSTMState(shape, shape) if name == "LSTM" else shape
    weights = layer.init(jax.random.key(0), state, jnp.zeros((2, D)))
    return single(rng, cell, weights, layer.apply, to_params)


LAYERS = {"VanillaRNN": vanilla, "LSTM": lstm, "GRU": gru}
