"""Flax linen: `RNN` over its cells, which have one Dense a gate."""

from functools import partial
from importlib import import_module
from typing import Any

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered
from rnn_jax import interop

CELLS = {"elman": "SimpleCell", "lstm": "OptimizedLSTMCell", "gru_reset_after": "GRUCell"}


def layer(case: Case, D: int) -> Layer:
    linen: Any = import_module("flax.linen")
    cell = getattr(linen, CELLS[case.cell])(case.H)

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        rnn = linen.RNN(cell, reverse=reverse, keep_order=True)
        return rnn.apply({"params": {"cell": weights}}, xs, seq_lengths=lengths)

    return Layer(partial(interop.dump, "linen", CELLS[case.cell]), run)


PEER = layered("Flax linen", "flax", layer, CELLS)
