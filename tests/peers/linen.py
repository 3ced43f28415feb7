"""Flax linen: one Dense a gate, the state of an LSTM is (c, h)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "flax.linen"


def simple(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.ElmanParams(w["i"]["kernel"], w["h"]["kernel"], w["i"]["bias"])

    return _peer(rng, "SimpleCell", rnn_jax.elman(D, H), to_params)


def lstm(rng: np.random.Generator, layer: str = "LSTMCell") -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.LSTMParams(
            w_x=_beside(w, "ii if ig io", "kernel"),
            w_h=_beside(w, "hi hf hg ho", "kernel"),
            b=_beside(w, "hi hf hg ho", "bias"),
            w_c=None,
        )

    return _peer(rng, layer, rnn_jax.lstm(D, H), to_params)


def gru(rng: np.random.Generator) -> Peer:
    def to_params(w: Any) -> Any:
        return rnn_jax.GRUParams(
            w_x=_beside(w, "ir iz in", "kernel"),
            w_h=_beside(w, "hr hz hn", "kernel"),
            b=_beside(w, "ir iz in", "bias"),
            b_n=w["hn"]["bias"],
        )

    return _peer(rng, "GRUCell", rnn_jax.gru_reset_after(D, H), to_params)


def _beside(w: Any, gates: str, leaf: str) -> jax.Array:
    return jnp.concatenate([w[gate][leaf] for gate in gates.split()], axis=-1)


def _peer(rng: np.random.Generator, name: str, cell: rnn_jax.Cell, to_params: Callable) -> Peer:
    import flax.linen

    layer = getattr(flax.linen, name)(features=H)
    carry = layer.initialize_carry(jax.random.key(0), (D,))
    weights = layer.init(jax.random.key(0), carry, jnp.ones(D))["params"]

    def theirs(weights: Any, state: Any, xs: Any) -> Any:
        carry = (state.c, state.h) if "LSTM" in name else state
        carry, ys = jax.lax.scan(partial(layer.apply, {"params": weights}), carry, xs)
        return rnn_jax.LSTMState(h=carry[1], c=carry[0]) if "LSTM" in name else carry, ys

    return single(rng, cell, weights, theirs, to_params)


LAYERS = {
    "SimpleCell": simple,
    "LSTMCell": lstm,
    "OptimizedLSTMCell": partial(lstm, layer="OptimizedLSTMCell"),
    "GRUCell": gru,
}
