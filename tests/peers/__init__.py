"""Layers of other libraries, one file a library, each beside the same layer of rnn_jax.

A file has `LIBRARY`, the module that must be importable, and `LAYERS`: a name and a function
``(rng) -> Peer``. It imports the library inside functions, so that it can be collected without.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import rnn_jax
from rnn_jax import interop

T, D, H = 6, 3, 4


class Peer(NamedTuple):
    """A layer with random weights in another library, and its counterpart here.

    The map of the weights is a function, so the gradient of our layer reaches the weights of the
    other library through it, and every one of them is compared in its own layout.
    """

    library: str
    layer: str
    weights: Any  # in the layout of the other library
    state: Any  # in ours
    xs: Any
    theirs: Callable  # (weights, state, xs, cotangents) -> ((state, ys), gradients), as `vjp`
    cell: rnn_jax.Cell


def single(
    rng: np.random.Generator, library: str, layer: str, weights: Any, theirs: Callable
) -> Peer:
    """A layer over one sequence; theirs: (weights, state, xs) -> (state, ys)."""
    options = {"activation": jax.nn.relu} if layer == "VanillaRNN" else {}
    cell = getattr(rnn_jax, interop.FORMATS[library, layer].cell)(D, H, **options)
    state = cell.init_state(jax.eval_shape(cell.init, jax.random.key(0)))
    return Peer(
        library,
        layer,
        weights=randomize(rng, weights),
        state=randomize(rng, state),
        xs=rng.normal(size=(T, D)),
        theirs=vjp(theirs),
        cell=cell,
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
