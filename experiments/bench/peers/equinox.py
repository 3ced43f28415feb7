"""Equinox: a cell for one sequence in `lax.scan`, mapped over the batch, as its examples do."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered
from rnn_jax import interop

CELLS = {"lstm": "LSTMCell", "gru_reset_after": "GRUCell"}


def layer(case: Case, D: int) -> Layer:
    equinox: Any = import_module("equinox")
    cell = getattr(equinox.nn, CELLS[case.cell])(D, case.H, key=jax.random.key(0))

    def convert(p: Any) -> Any:
        arrays = interop.dump("equinox", CELLS[case.cell], p)
        get = lambda cell: [getattr(cell, name) for name in arrays]  # noqa: E731
        return equinox.tree_at(get, cell, list(arrays.values()))

    def run(cell: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = cell(x, state)
            return state, state[0] if case.cell == "lstm" else state

        h = jnp.zeros(case.H)
        state = (h, h) if case.cell == "lstm" else h
        return jax.vmap(lambda xs: jax.lax.scan(step, state, xs, reverse=reverse)[1])(xs)

    return Layer(convert, run)


PEER = layered("Equinox", "equinox", layer, CELLS, lengths=False)
