"""Haiku: gates i g f o and z r n, 1 added to f in the forward pass, z and 1 - z exchanged."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "haiku"


def peer(rng: np.random.Generator, name: str) -> Peer:
    import haiku

    def run(state: Any, xs: Any) -> Any:
        state = haiku.LSTMState(state.h, state.c) if name == "LSTM" else state
        ys, state = haiku.dynamic_unroll(getattr(haiku, name)(H), xs, state)
        return rnn_jax.LSTMState(state.hidden, state.cell) if name == "LSTM" else state, ys

    layer = haiku.without_apply_rng(haiku.transform(run))
    shape = jnp.zeros(H)
    state = rnn_jax.LSTMState(shape, shape) if name == "LSTM" else shape
    weights = layer.init(jax.random.key(0), state, jnp.zeros((2, D)))
    return single(rng, "haiku", name, weights, layer.apply)


LAYERS = {name: partial(peer, name=name) for name in ("VanillaRNN", "LSTM", "GRU")}
