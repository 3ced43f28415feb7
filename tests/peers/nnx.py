"""Flax nnx: its OptimizedLSTMCell and GRUCell hold all gates in one Dense for x and one for h."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "flax.nnx"


def simple(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.ElmanParams(
            w["dense_i"]["kernel"], w["dense_h"]["kernel"], w["dense_i"]["bias"]
        )

    return _peer(rng, "SimpleCell", rnn_jax.elman(D, H), to_params)


def lstm(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        hidden = [w["hi"], w["hf"], w["hg"], w["ho"]]
        inputs = [w["ii"], w["if_"], w["ig"], w["io"]]
        return rnn_jax.LSTMParams(
            w_x=jnp.concatenate([gate["kernel"] for gate in inputs], axis=1),
            w_h=jnp.concatenate([gate["kernel"] for gate in hidden], axis=1),
            b=jnp.concatenate([gate["bias"] for gate in hidden]),
            w_c=None,
        )

    return _peer(rng, "LSTMCell", rnn_jax.lstm(D, H), to_params)


def optimized_lstm(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.LSTMParams(
            w["dense_i"]["kernel"], w["dense_h"]["kernel"], w["dense_h"]["bias"], w_c=None
        )

    return _peer(rng, "OptimizedLSTMCell", rnn_jax.lstm(D, H), to_params)


def gru(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        b_n = jnp.zeros(H)  # nnx has no bias inside the reset
        return rnn_jax.GRUParams(
            w["dense_i"]["kernel"], w["dense_h"]["kernel"], w["dense_i"]["bias"], b_n
        )

    return _peer(rng, "GRUCell", rnn_jax.gru_reset_after(D, H), to_params)


def _peer(rng: np.random.Generator, name: str, cell: rnn_jax.Cell, to_params: Callable) -> Peer:
    from flax import nnx

    layer = getattr(nnx, name)(D, H, dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def theirs(weights: Any, state: Any, xs: Any) -> Any:
        new = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(weights))
        carry = (state.c, state.h) if "LSTM" in name else state
        carry, ys = jax.lax.scan(nnx.merge(graph, new, rest), carry, xs)
        return rnn_jax.LSTMState(h=carry[1], c=carry[0]) if "LSTM" in name else carry, ys

    return single(rng, cell, nnx.to_pure_dict(params), theirs, to_params)


LAYERS = {
    "SimpleCell": simple,
    "LSTMCell": lstm,
    "OptimizedLSTMCell": optimized_lstm,
    "GRUCell": gru,
}
