"""Equinox: weights [gates * H, D], one bias, and a bias inside the reset of the GRU."""

from functools import partial
from typing import Any

import jax
import numpy as np

import rnn_jax
from peers import D, H, Peer, single
from rnn_jax import interop

LIBRARY = "equinox"


def peer(rng: np.random.Generator, name: str) -> Peer:
    import equinox

    layer = getattr(equinox.nn, name)(D, H, key=jax.random.key(0))
    leaves = list(interop.FORMATS["equinox", name].leaves)

    def theirs(weights: Any, state: Any, xs: Any) -> Any:
        where = lambda layer: [getattr(layer, leaf) for leaf in leaves]  # noqa: E731
        cell = equinox.tree_at(where, layer, [weights[leaf] for leaf in leaves])

        def step(state: Any, x: Any) -> Any:
            if name == "GRUCell":
                state = cell(x, state)
                return state, state
            state = rnn_jax.LSTMState(*cell(x, tuple(state)))
            return state, state.h

        return jax.lax.scan(step, state, xs)

    return single(rng, "equinox", name, {leaf: getattr(layer, leaf) for leaf in leaves}, theirs)


LAYERS = {name: partial(peer, name=name) for name in ("LSTMCell", "GRUCell")}
