"""Flax linen: `RNN` over its cells, which have one Dense a gate."""

from importlib import import_module
from typing import Any

import jax.numpy as jnp

from experiments.bench.case import Case
from experiments.bench.entry import Layer, layered

CELLS = {"elman": "SimpleCell", "lstm": "OptimizedLSTMCell", "gru_reset_after": "GRUCell"}


def layer(case: Case, D: int) -> Layer:
    linen: Any = import_module("flax.linen")
    cell = getattr(linen, CELLS[case.cell])(case.H)

    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        rnn = linen.RNN(cell, reverse=reverse, keep_order=True)
        return rnn.apply({"params": {"cell": weights}}, xs, seq_lengths=lengths)

    return Layer({"elman": elman, "lstm": lstm, "gru_reset_after": gru}[case.cell], run)


def elman(p: Any) -> Any:
    return {"i": {"kernel": p.w_x, "bias": p.b}, "h": {"kernel": p.w_h}}


def lstm(p: Any) -> Any:
    return gates("ii if ig io", kernel=p.w_x) | gates("hi hf hg ho", kernel=p.w_h, bias=p.b)


def gru(p: Any) -> Any:
    weights = gates("ir iz in", kernel=p.w_x, bias=p.b) | gates("hr hz hn", kernel=p.w_h)
    weights["hn"]["bias"] = p.b_n
    return weights


def gates(names: str, **arrays: Any) -> dict[str, dict[str, Any]]:
    """The arrays of all gates, cut into one dictionary a gate."""
    each = names.split()
    cut = {name: jnp.split(array, len(each), axis=-1) for name, array in arrays.items()}
    return {gate: {name: cut[name][k] for name in cut} for k, gate in enumerate(each)}


PEER = layered("Flax linen", "flax", layer, CELLS)
