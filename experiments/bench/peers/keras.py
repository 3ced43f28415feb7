"""Keras on the JAX backend: gates i f c o and z r h; two rows of biases with reset after."""

import os
import tempfile
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered
from rnn_jax import interop

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
        name = "GRU reset_after" if options.get("reset_after") else kind
        return list(interop.dump("keras", name, p).values())

    return Layer(convert, run)


PEER = layered("Keras", "keras", layer, CELLS)
