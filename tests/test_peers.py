"""The same weights in another library give the same outputs, states and gradients."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import equinox, haiku, keras, linen, nnx, pytorch, vjp

LAYERS = [
    (module, name)
    for module in (linen, nnx, equinox, haiku, keras, pytorch)
    for name in module.LAYERS
]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """float64, and for the peers JAX's usual promotion; Keras on JAX without a file in $HOME."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("library", "layer"), LAYERS, ids=lambda x: getattr(x, "__name__", x))
def test_same_outputs_states_and_gradients(library: ModuleType, layer: str) -> None:
    pytest.importorskip(library.LIBRARY)
    rng = np.random.default_rng(3)
    peer = library.LAYERS[layer](rng)
    inputs = peer.weights, peer.state, peer.xs

    def ours(weights: Any, state: Any, xs: Any) -> Any:
        return peer.ours(peer.to_params(weights), state, xs)

    shapes = jax.eval_shape(ours, *jax.tree.map(jnp.asarray, inputs))
    cotangents = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes)
    got, expected = vjp(ours)(*inputs, cotangents), peer.theirs(*inputs, cotangents)
    assert_close(got, expected, peer.tolerance)


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    paths, tree = jax.tree_util.tree_flatten_with_path(got)
    assert tree == jax.tree.structure(expected)
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        assert np.abs(a).max() > 1e-3, f"{jax.tree_util.keystr(path)} shows nothing"
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=jax.tree_util.keystr(path))
