"""The same weights in another library give the same outputs, states and gradients."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import equinox, haiku, linen, nnx, vjp

import rnn_jax
from rnn_jax import interop

LAYERS = [(module, name) for module in (linen, nnx, equinox, haiku) for name in module.LAYERS]


@pytest.fixture
def settings() -> Any:
    """float64, and for the peers JAX's usual promotion."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("library", "layer"), LAYERS, ids=lambda x: getattr(x, "__name__", x))
def test_same_outputs_states_and_gradients(library: ModuleType, layer: str) -> None:
    """And there and back: our params are what they were, to the bit."""
    pytest.importorskip(library.LIBRARY)
    rng = np.random.default_rng(3)
    peer = library.LAYERS[layer](rng)
    inputs = peer.weights, peer.state, peer.xs

    def ours(weights: Any, state: Any, xs: Any) -> Any:
        params = interop.load(peer.library, peer.layer, weights)
        return rnn_jax.unroll(peer.cell, params, state, xs)

    shapes = jax.eval_shape(ours, *jax.tree.map(jnp.asarray, inputs))
    cotangents = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes)
    got, expected = vjp(ours)(*inputs, cotangents), peer.theirs(*inputs, cotangents)
    assert_close(got, expected, 1e-10)

    params = interop.load(peer.library, peer.layer, peer.weights)
    again = interop.load(peer.library, peer.layer, interop.dump(peer.library, peer.layer, params))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        if layer == "LSTM" and a.ndim == 1:  # Haiku adds 1 to a bias, which rounds
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-16)
        else:
            np.testing.assert_array_equal(a, b)
    written = interop.dump(peer.library, peer.layer, params)
    assert jax.tree.structure(written) == jax.tree.structure(dict(peer.weights))


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    paths, tree = jax.tree_util.tree_flatten_with_path(got)
    assert tree == jax.tree.structure(expected)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert np.abs(a).max() > 1e-3, f"{jax.tree_util.keystr(path)} shows nothing"
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=jax.tree_util.keystr(path))
