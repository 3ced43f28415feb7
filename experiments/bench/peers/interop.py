"""Cells of other libraries under our `unroll`: converted to ours, and wrapped as they are.

The gradient is by their weights, in their layout, in both.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax

import rnn_jax
from experiments.bench.case import Case
from experiments.bench.entry import Layer, Peer, layered
from experiments.bench.peers import equinox, haiku, linen, nnx
from rnn_jax import interop

Wrap = Callable[[Case, int], Any]  # (case, D) -> a Cell whose params are their weights


def unrolled(cell: Any) -> Callable[..., Any]:
    def run(weights: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
        def one(xs: Any, n: Any) -> Any:
            mask = None if n is None else rnn_jax.length_mask(n, xs.shape[0])
            return rnn_jax.unroll(cell, weights, None, xs, mask=mask, reverse=reverse)[1]

        return jax.vmap(one)(xs, lengths)

    return run


def converted(case: Case, D: int) -> Layer:
    """Weights of linen, brought into our cell inside of what is differentiated."""
    name = linen.CELLS[case.cell]
    run = unrolled(rnn_jax.ALL_CELLS[case.cell](D, case.H))
    return Layer(
        partial(interop.dump, "linen", name),
        lambda weights, *rest: run(interop.load("linen", name, weights), *rest),
    )


def of_linen(case: Case, D: int) -> Any:
    module = import_module("flax.linen")
    return interop.wrap_linen(getattr(module, linen.CELLS[case.cell])(case.H), D)


def of_nnx(case: Case, D: int) -> Any:
    module: Any = import_module("flax.nnx")
    cell = getattr(module, nnx.CELLS[case.cell])(D, case.H, rngs=module.Rngs(0))
    return interop.wrap_nnx(cell, D)[0]


def of_haiku(case: Case, D: int) -> Any:
    module = import_module("haiku")
    return interop.wrap_haiku(lambda: getattr(module, haiku.CELLS[case.cell])(case.H), D)


def of_equinox(case: Case, D: int) -> Any:
    module: Any = import_module("equinox")
    cell = getattr(module.nn, equinox.CELLS[case.cell])(D, case.H, key=jax.random.key(0))
    return interop.wrap_equinox(cell)[0]


def _wrapped(title: str, library: str, like: Any, wrap: Wrap) -> Peer:
    def layer(case: Case, D: int) -> Layer:
        return Layer(like.layer(case, D).convert, unrolled(wrap(case, D)))

    return layered(title, library, layer, like.CELLS)


PEERS = (
    layered("linen, converted", "flax", converted, linen.CELLS),
    _wrapped("linen, wrapped", "flax", linen, of_linen),
    _wrapped("nnx, wrapped", "flax", nnx, of_nnx),
    _wrapped("Haiku, wrapped", "haiku", haiku, of_haiku),
    _wrapped("Equinox, wrapped", "equinox", equinox, of_equinox),
    nnx.PEER,
)
