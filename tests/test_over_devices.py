"""Time over devices: the numbers of `unroll`, a part of the steps on each device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from nets import user_cell

import rnn_jax
from rnn_jax import unroll_over_devices

B, T, D, H = 4, 10, 3, 5
MESH = jax.make_mesh((2,), ("time",))


def batch(dtype: Any = jnp.float64) -> tuple[jax.Array, ...]:
    """Ragged, with holes, NaN in the padding, and resets, also at the border of two devices."""
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(keys[0], (B, T, D), dtype)
    mask = jax.random.bernoulli(keys[1], 0.7, (B, T)).at[1].set(False)
    mask = mask.at[2, T // 2 - 2 :].set(True)
    reset = jax.random.bernoulli(keys[2], 0.2, (B, T)).at[2, T // 2].set(True).at[2, 7].set(True)
    return jnp.where(mask[..., None], xs, jnp.nan), mask, reset


def is_float(a: jax.Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def value_and_grad(run: Any, params: Any, state: Any, xs: Any) -> Any:
    """Loss of outputs and last states, and the gradient of params, states and inputs."""

    def loss(params: Any, state: Any, xs: Any) -> Any:
        state, ys = run(params, state, xs)
        floats = filter(is_float, jax.tree.leaves((state, ys)))
        return sum((jnp.sin(a + 1.0) * a).sum() for a in floats), (state, ys)

    differentiable = state is not None and all(map(is_float, jax.tree.leaves(state)))
    which = (0, 1, 2) if differentiable else 0
    grad = jax.value_and_grad(loss, argnums=which, has_aux=True)
    return jax.jit(grad)(params, state, xs)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*rnn_jax.ALL_CELLS, "user"])
def test_outputs_and_gradients_are_those_of_unroll(name: str, x64: None) -> None:
    factory = rnn_jax.ALL_CELLS.get(name)
    cell = user_cell() if factory is None else factory(D, H, dtype=jnp.float64)
    params = cell.init(jax.random.key(1))
    xs, mask, reset = batch()
    one = cell.init_state(params)
    state = jax.tree.map(lambda a: jnp.stack([a + a.dtype.type(i) for i in range(B)]), one)

    def here(params: Any, state: Any, xs: Any) -> Any:
        run = lambda s, xs, m, r: rnn_jax.unroll(cell, params, s, xs, mask=m, reset=r)  # noqa: E731
        return jax.vmap(run)(state, xs, mask, reset)

    expected = value_and_grad(here, params, state, xs)
    for group in (1, 2, 4):

        def there(params: Any, state: Any, xs: Any, group: int = group) -> Any:
            return unroll_over_devices(
                cell, params, state, xs, mesh=MESH, mask=mask, reset=reset, group=group
            )

        assert_close(value_and_grad(there, params, state, xs), expected)


@pytest.mark.parametrize("segment", [None, 2])
def test_noise_state_and_segments(segment: int | None, x64: None) -> None:
    """A key in the state is handed on; without a state, all begin with that of the cell."""
    layer = rnn_jax.dropout(rnn_jax.gru(D, H, dtype=jnp.float64), 0.4, jax.random.key(2))
    cell = rnn_jax.stack([layer, rnn_jax.lstm(H, 3, dtype=jnp.float64)])
    params = cell.init(jax.random.key(1))
    xs, mask, _ = batch()
    keys = jax.random.split(jax.random.key(3), B)
    first = jax.vmap(lambda key: rnn_jax.with_key(cell, key).init_state(params))(keys)
    for state in (first, None):

        def there(params: Any, state: Any, xs: Any) -> Any:
            return unroll_over_devices(
                cell, params, state, xs, mesh=MESH, mask=mask, group=2, segment=segment
            )

        def here(params: Any, state: Any, xs: Any) -> Any:
            axes = (None if state is None else 0, 0, 0)
            run = lambda s, xs, m: rnn_jax.unroll(cell, params, s, xs, mask=m)  # noqa: E731
            return jax.vmap(run, in_axes=axes)(state, xs, mask)

        assert_close(
            value_and_grad(there, params, state, xs), value_and_grad(here, params, state, xs)
        )


def test_each_device_holds_its_part() -> None:
    """Of inputs, outputs, and what the gradient keeps, which grows with the steps alone."""
    cell = rnn_jax.lstm(D, 16)
    params = cell.init(jax.random.key(0))
    place = NamedSharding(MESH, PartitionSpec(None, "time"))
    xs = jax.device_put(np.ones((8, 400, D), np.float32), place)

    def loss(run: Any) -> Any:
        return lambda params, xs: (run(params, xs)[1] ** 2).sum()

    there = jax.grad(loss(lambda p, xs: unroll_over_devices(cell, p, None, xs, mesh=MESH)))
    here = jax.grad(loss(lambda p, xs: jax.vmap(lambda xs: rnn_jax.unroll(cell, p, None, xs))(xs)))
    held = [
        jax.jit(f).lower(params, x).compile().memory_analysis().temp_size_in_bytes
        for f, x in ((there, xs), (here, np.ones((8, 400, D), np.float32)))
    ]
    # 8 sequences in 9 turns; half of the steps.
    assert held[0] < 0.7 * held[1]
    _, ys = jax.jit(lambda p, xs: unroll_over_devices(cell, p, None, xs, mesh=MESH))(params, xs)
    assert {part.data.shape for part in ys.addressable_shards} == {(8, 200, 16)}


def test_inputs_of_any_kind() -> None:
    """Tokens, and a mesh of one device."""
    cell = rnn_jax.embed(rnn_jax.elman(D, H), 9, D)
    params = cell.init(jax.random.key(0))
    tokens = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T) % 9
    expected = jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs))(tokens)
    for mesh in (MESH, jax.make_mesh((1,), ("time",))):
        found = unroll_over_devices(cell, params, None, tokens, mesh=mesh)
        assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((B, 9, D), {}, "T = 9 steps, expected a multiple of 2"),
        ((B, T, D), {"group": 3}, "group: got 3, expected a divisor of the 4"),
        ((B, T, D), {"group": 0}, "group: got 0"),
        ((T,), {}, r"expected \[B, T, ...\]"),
        ((B, T, D), {"mesh": jax.make_mesh((1, 1), ("a", "b"))}, "axes"),
        ((B, T, D + 1), {}, "expected"),
    ],
)
def test_what_does_not_fit_is_said(shape: Any, options: Any, message: str) -> None:
    cell = rnn_jax.gru(D, H)
    params = cell.init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        unroll_over_devices(cell, params, None, jnp.zeros(shape), **{"mesh": MESH} | options)
