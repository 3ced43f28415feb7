"""Flax linen: one Dense a gate, the state of an LSTM is (c, h)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "flax.linen"


def peer(rng: np.random.Generator, name: str) -> Peer:
    import flax.linen

    layer = getattr(flax.linen, name)(features=H)
    carry = layer.initialize_carry(jax.random.key(0), (D,))
    weights = layer.init(jax.random.key(0), carry, jnp.ones(D))["params"]

    def theirs(weights: Any, state: Any, xs: Any) -> Any:
        carry = (state.c, state.h) if "LSTM" in name else state
        carry, ys = jax.lax.scan(partial(layer.apply, {"params": weights}), carry, xs)
        return rnn_jax.LSTMState(h=carry[1], c=carry[0]) if "LSTM" in name else carry, ys

    return single(rng, "linen", name, weights, theirs)


LAYERS = {
    name: partial(peer, name=name)
    for name in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")
}
