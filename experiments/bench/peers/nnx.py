"""Flax nnx: `RNN` over its cells, with one Dense for all gates of x and one for those of h."""

from functools import partial
from importlib import import_module
from typing import Any

import jax

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered
from rnn_jax import interop

CELLS = {"elman": "SimpleCell", "lstm": "OptimizedLSTMCell"}  # its GRU lacks a bias of ours


def layer(case: Case, D: int) -> Layer:
    nnx: Any = import_module("flax.nnx")
    cell = getattr(nnx, CELLS[case.cell])(D, case.H, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(cell, nnx.Param, ...)

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        new = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(weights))
        rnn = nnx.RNN(nnx.merge(graph, new, rest), reverse=reverse, keep_order=True)
        return rnn(xs, seq_lengths=lengths)

    return Layer(partial(interop.dump, "nnx", CELLS[case.cell]), run)


PEER = layered("Flax nnx", "flax", layer, CELLS)
