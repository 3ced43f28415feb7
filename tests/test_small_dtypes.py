"""Lengths in small integers, numbers in half precision: nothing wraps around, nothing overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from rnn_jax import gradients, losses, train


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
def test_lengths_of_any_integer_type(dtype: type) -> None:
    steps = 70_000 if np.iinfo(dtype).bits == 16 else 300
    lengths = np.array([0, 5, 100], dtype)
    assert rnn_jax.length_mask(lengths, steps).sum(axis=1).tolist() == [0, 5, 100]


@pytest.mark.parametrize("n", [20_000, 70_000])  # the sum, and the count, are beyond 65504
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_losses_of_many_steps_in_half_precision(name: str, masked: bool, n: int) -> None:
    x = 3 * jax.random.normal(jax.random.key(0), (n, 5), jnp.float16)
    y = jnp.zeros(n, jnp.int32) if name == "cross_entropy" else jnp.ones((n, 5), jnp.float16)
    mask = jnp.arange(n, dtype=jnp.int32) % 7 > 0 if masked else None
    loss = getattr(losses, name)
    value, grads = jax.value_and_grad(lambda x: loss(1.0 * x, y, mask))(x)
    wide = y if name == "cross_entropy" else y.astype(jnp.float32)
    expected = loss(x.astype(jnp.float32), wide, mask)
    assert value.dtype == jnp.float16
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    assert jnp.isfinite(grads).all()
    assert float(jnp.abs(grads).max()) > 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["layer_norm_elman", "layer_norm_lstm", "layer_norm_gru"])
def test_layer_norm_in_half_precision_has_finite_gradients(name: str, dtype: type) -> None:
    cell = rnn_jax.ALL_CELLS[name](8, 32, dtype=dtype)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (5, 8), jnp.float32).astype(dtype)
    grads = jax.grad(lambda p: rnn_jax.unroll(cell, p, None, xs)[1].sum())(params)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == dtype
        assert jnp.isfinite(leaf).all()


def test_a_large_number_is_normalised() -> None:
    """Its square is beyond float16."""
    from rnn_jax.cells.layer_norm import normalize

    a = jnp.array([1000.0, -2000.0, 500.0], jnp.float16)
    wide = normalize(a.astype(jnp.float32))
    np.testing.assert_allclose(normalize(a), wide, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_training_in_half_precision_by_an_algorithm(dtype: type) -> None:
    """Many steps: neither their number nor the norm of the gradient is computed in 16 bits."""
    net = rnn_jax.readout(rnn_jax.elman(2, 3, dtype=dtype), 1, hidden_size=3)
    params = net.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (700, 100, 2), jnp.float32).astype(dtype)
    targets = jnp.ones((700, 100, 1), dtype)
    loss = lambda y, target: jnp.sum((y - target) ** 2)  # noqa: E731
    optimizer = optax.sgd(0.01)
    run = train.make_train(gradients.bptt(net, loss), lambda data, step: data, optimizer)
    _, metrics = run(train.init(params, None, optimizer, jax.random.key(2)), (xs, targets))
    assert not metrics.skipped[0]
    assert 0 < float(metrics.grad_norm[0]) < 10
    assert 0.1 < float(metrics.loss[0]) < 10


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["rtrl", "snap", "truncated_bptt"])
def test_gradients_of_many_steps_in_half_precision(name: str, dtype: jax.typing.DTypeLike) -> None:
    """A sum that is kept in half precision stops at 256 ones, or 2048."""
    add = rnn_jax.Cell(
        init=lambda key: jnp.ones(1, dtype),
        init_state=lambda w: jnp.zeros_like(w),
        project=lambda w, x: x,
        step=lambda w, h, x: (w * x, w * x),
    )
    entry = gradients.REGISTER[name]
    run = entry.algorithm(add, lambda y, target: y.sum(), **entry.options)
    T = 6000
    (total, _), grads = jax.jit(run)(jnp.ones(1, dtype), None, jnp.ones((T, 1), dtype), jnp.ones(T))
    assert abs(float(total) - T) < 0.01 * T
    assert abs(float(grads[0]) - T) < 0.01 * T
    assert total.dtype == grads.dtype == dtype
