"""Haiku: `dynamic_unroll`, time first; gates i g f o and z r n, z and 1 - z exchanged."""

from functools import partial
from importlib import import_module
from typing import Any

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered
from rnn_jax import interop

CELLS = {"lstm": "LSTM", "gru": "GRU"}  # its VanillaRNN has a relu and no tanh


def layer(case: Case, D: int) -> Layer:
    haiku: Any = import_module("haiku")

    def unroll(xs: Any, reverse: bool) -> Any:
        cell = getattr(haiku, CELLS[case.cell])(case.H)
        return haiku.dynamic_unroll(cell, xs, cell.initial_state(xs.shape[1]), reverse=reverse)[0]

    apply = haiku.without_apply_rng(haiku.transform(unroll)).apply

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        return apply(weights, xs, reverse)

    return Layer(partial(interop.dump, "haiku", CELLS[case.cell]), run)


PEER = layered("Haiku", "haiku", layer, CELLS, lengths=False, time_major=True)
