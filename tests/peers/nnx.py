"""Flax nnx: its OptimizedLSTMCell and GRUCell hold all gates in one Dense for x and one for h."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, single

LIBRARY = "flax.nnx"


def peer(rng: np.random.Generator, name: str) -> Peer:
    from flax import nnx

    layer = getattr(nnx, name)(D, H, dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def theirs(weights: Any, state: Any, xs: Any) -> Any:
        new = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(weights))
        carry = (state.c, state.h) if "LSTM" in name else state
        carry, ys = jax.lax.scan(nnx.merge(graph, new, rest), carry, xs)
        return rnn_jax.LSTMState(h=carry[1], c=carry[0]) if "LSTM" in name else carry, ys

    return single(rng, "nnx", name, nnx.to_pure_dict(params), theirs)


LAYERS = {
    name: partial(peer, name=name)
    for name in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")
}
