"""The two classifiers of README.md, Keras's and ours, are one: same weights, same numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_readme import README, blocks

import rnn_jax


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """On JAX, and without a file in $HOME."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("keras")


def ours() -> dict[str, Any]:
    code = next(code for _, code in blocks(README, "python") if "both_ends(" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_classifier_reads_both_ways_and_no_padding() -> None:
    names = ours()
    logit, params = names["logit"], names["params"]
    tokens = jnp.array([5, 3, 8, 0, 0])
    value = logit(params, tokens)
    np.testing.assert_allclose(logit(params, tokens[:3]), value, rtol=1e-5)
    assert value != 0
    for t in range(3):  # the first and the last token are seen
        assert abs(logit(params, tokens.at[t].set(9)) - value) > 1e-4
    one, two = (logit(params, tokens, jax.random.key(seed)) for seed in range(2))
    assert one != two


def test_same_numbers_as_keras(keras: Any) -> None:
    """The logits of sequences of four lengths, padded."""
    names, code = ours(), blocks(README, "py")[0][1]
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 1000, (4, 7))
    for row, length in zip(tokens, (7, 4, 1, 6), strict=True):
        row[length:] = 0
    there: dict[str, Any] = {"keras": keras}
    exec(code, there)
    model = there["model"]
    model.build((None, 7))
    weights = [0.3 * rng.normal(size=w.shape).astype(np.float32) for w in model.weights]
    model.set_weights(weights)
    table, *rest = map(jnp.asarray, weights)
    lstms = [rnn_jax.LSTMParams(*rest[n : n + 3], w_c=None) for n in range(0, 12, 3)]
    w, b, w_y, b_y = rest[12:]
    net = rnn_jax.EmbedParams((tuple(lstms[:2]), tuple(lstms[2:])), table)
    params = {"net": net, "w": w, "b": b, "w_y": w_y, "b_y": b_y}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, names["params"])
    got = jax.vmap(names["logit"], in_axes=(None, 0))(params, jnp.asarray(tokens))
    expected = np.asarray(model(tokens, training=False))
    assert expected.std() > 0.01
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
