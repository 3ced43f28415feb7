"""Equinox: a cell for one sequence in `lax.scan`, mapped over the batch, as its examples do."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered

CELLS = {"lstm": "LSTMCell", "gru_reset_after": "GRUCell"}


def layer(case: Case, D: int) -> Layer:
    equinox: Any = import_module("equinox")
    cell = getattr(equinox.nn, CELLS[case.cell])(D, case.H, key=jax.random.key(0))

    def convert(p: Any) -> Any:
        arrays = [p.w_x.T, p.w_h.T, p.b] + ([] if case.cell == "lstm" else [p.b_n])
        names = ["weight_ih", "weight_hh", "bias", "bias_n"][: len(arrays)]
        return equinox.tree_at(lambda cell: [getattr(cell, n) for n in names], cell, arrays)

    def run(cell: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = cell(x, state)
            return state, state[0] if case.cell == "lstm" else state

        h = jnp.zeros(case.H)
        state = (h, h) if case.cell == "lstm" else h
        return jax.vmap(lambda xs: jax.lax.scan(step, state, xs, reverse=reverse)[1])(xs)

    return Layer(convert, run)


PEER = layered("Equinox", "equinox", layer, CELLS, lengths=False)
