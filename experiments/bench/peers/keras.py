"""Keras on the JAX backend: gates i f c o and z r h; two rows of biases with reset after."""

import os
import tempfile
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "elman": ("SimpleRNN", {}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"reset_after": False}),
    "gru_reset_after": ("GRU", {"reset_after": True}),
}


def layer(case: Case, D: int) -> Layer:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERAS_HOME", tempfile.gettempdir())  # it would write into $HOME
    keras: Any = import_module("keras")
    kind, options = CELLS[case.cell]

    def make(reverse: bool) -> Any:
        rnn = getattr(keras.layers, kind)(
            case.H, return_sequences=True, go_backwards=reverse, **options
        )
        rnn.build((case.B, case.T, D))
        return rnn, [variable.value for variable in rnn.non_trainable_variables]

    layers = [make(reverse) for reverse in (False, True)]

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        rnn, rest = layers[reverse]
        mask = None if lengths is None else jnp.arange(case.T) < lengths[:, None]
        ys, _ = rnn.stateless_call(weights, rest, xs, mask=mask)
        return jnp.flip(ys, 1) if reverse else ys

    def convert(p: Any) -> Any:
        if "gru" not in case.cell:
            return [p.w_x, p.w_h, p.b]
        b_h = jnp.zeros_like(p.b)
        b = p.b if p.b_n is None else jnp.stack([p.b, b_h.at[-case.H :].set(p.b_n)])
        return [_reorder(a) for a in (p.w_x, p.w_h, b)]

    return Layer(convert, run)


def _reorder(a: Any) -> Any:
    r, z, n = jnp.split(a, 3, axis=-1)
    return jnp.concatenate([z, r, n], axis=-1)


PEER = layered("Keras", "keras", layer, CELLS)
