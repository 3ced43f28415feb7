"""Layers of other libraries, one file a library, each beside the same layer of rnn_jax.

A file has `LIBRARY`, the module that must be importable, and `LAYERS`: a name and a function
``(rng) -> Peer``. It imports the library inside functions, so that it can be collected without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import rnn_jax

T, D, H = 6, 3, 4


class Peer(NamedTuple):
    """A layer with random weights in another library, and its counterpart here.

    The map of the weights is a function, so the gradient of our layer reaches the weights of the
    other library through it, and every one of them is compared in its own layout.
    """

    weights: Any  # in the layout of the other library
    state: Any  # in ours
    xs: Any
    theirs: Callable  # (weights, state, xs, cotangents) -> ((state, ys), gradients), as `vjp`
    to_params: Callable  # (weights) -> params
    ours: Callable  # (params, state, xs) -> (state, ys)
    tolerance: float = 1e-10


def single(
    rng: np.random.Generator,
    cell: rnn_jax.Cell,
    weights: Any,
    theirs: Callable,
    to_params: Callable,
    tolerance: float = 1e-10,
) -> Peer:
    """A peer of one cell over one sequence; theirs: (weights, state, xs) -> (state, ys)."""
    state = cell.init_state(jax.eval_shape(cell.init, jax.random.key(0)))
    return Peer(
        weights=randomize(rng, weights),
        state=randomize(rng, state),
        xs=rng.normal(size=(T, D)),
        theirs=vjp(theirs),
        to_params=to_params,
        ours=partial(rnn_jax.unroll, cell),
        tolerance=tolerance,
    )


def vjp(function: Callable) -> Callable:
    """The outputs of ``function(weights, state, xs)``, and the gradients for given cotangents."""

    @jax.jit
    def outputs_and_gradients(weights: Any, state: Any, xs: Any, cotangents: Any) -> Any:
        outputs, pullback = jax.vjp(function, weights, state, xs)
        return outputs, pullback(cotangents)

    return outputs_and_gradients


def randomize(rng: np.random.Generator, tree: Any) -> Any:
    """The same shapes with random numbers: no zero, no symmetry."""
    return jax.tree.map(lambda a: 0.5 * rng.normal(size=np.shape(a)), tree)
