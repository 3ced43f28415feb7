"""Many to one: the last valid output, means and maxima, and nets that read both ways."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from nets import key, random_params

import rnn_jax as rnn

T, H = 6, 4
MASKS = {
    "all": [1, 1, 1, 1, 1, 1],
    "padded": [1, 1, 1, 0, 0, 0],
    "holes": [0, 1, 0, 0, 1, 0],
    "none": [0, 0, 0, 0, 0, 0],
}
POOLS: dict[str, Any] = {
    "last": (rnn.last, lambda ys: ys[-1]),
    "mean": (rnn.mean_over_time, lambda ys: ys.mean(0)),
    "max": (rnn.max_over_time, lambda ys: ys.max(0)),
    "both_ends": (
        partial(rnn.both_ends, forward_size=3),
        lambda ys: np.concatenate([ys[-1, :3], ys[0, 3:]]),
    ),
}


def outputs(*shape: int) -> jax.Array:
    return jax.random.normal(key(0), shape) - 2.0  # most of them below the zero of padding


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("which", MASKS)
def test_only_valid_steps_count(name: str, which: str) -> None:
    """Values and gradients, with NaN at the others; without a valid step all is zero."""
    pool, plain = POOLS[name]
    mask = np.array(MASKS[which], bool)
    ys = jnp.where(jnp.asarray(mask)[:, None], outputs(T, H), jnp.nan)
    got = pool(ys, jnp.asarray(mask))
    expected = plain(np.asarray(ys)[mask]) if mask.any() else np.zeros(H)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    slopes = jax.grad(lambda ys: pool(ys, jnp.asarray(mask)).sum())(ys)
    assert not slopes[~mask].any()
    np.testing.assert_allclose(slopes.sum(axis=0), float(mask.any()) * np.ones(H), rtol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_without_a_mask_all_steps_count(name: str) -> None:
    pool, plain = POOLS[name]
    np.testing.assert_allclose(pool(outputs(T, H)), plain(np.asarray(outputs(T, H))), rtol=1e-6)
    assert not pool(outputs(0, H)).any()
    assert not pool(outputs(0, H), jnp.zeros(0, bool)).any()


@pytest.mark.parametrize("name", POOLS)
def test_transforms(name: str) -> None:
    pool, _ = POOLS[name]
    batch, masks = outputs(4, T, H), jnp.array(list(MASKS.values()), bool)
    value = jax.value_and_grad(lambda ys: jax.vmap(pool)(ys, masks).var())
    one_by_one = jnp.stack([pool(ys, mask) for ys, mask in zip(batch, masks, strict=True)])
    expected, slopes = value(batch)
    np.testing.assert_allclose(expected, one_by_one.var(), rtol=1e-6)
    mesh = jax.make_mesh((2,), ("b",), (AxisType.Auto,))
    split = PartitionSpec("b")
    sharded = jax.shard_map(jax.vmap(pool), mesh=mesh, in_specs=(split, split), out_specs=split)
    got, got_slopes = jax.value_and_grad(lambda ys: sharded(ys, masks).var())(batch)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(got_slopes, slopes, rtol=1e-5, atol=1e-7)


def test_the_mean_of_half_precision_does_not_overflow() -> None:
    ys, mask = jnp.full((5000, 2), 60_000, jnp.float16), rnn.length_mask(4000, 5000)
    got = rnn.mean_over_time(ys, mask)
    assert got.dtype == jnp.float16
    np.testing.assert_array_equal(got, ys[0])


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"mask: got shape \(5,\), expected \(6,\)"):
        rnn.last(outputs(T, H), jnp.ones(5, bool))
    with pytest.raises(TypeError, match="length_mask"):
        rnn.mean_over_time(outputs(T, H), jnp.ones(T))
    with pytest.raises(ValueError, match="H = 5 has no half"):
        rnn.both_ends(outputs(T, 5))
    with pytest.raises(ValueError, match="expected less than H = 4"):
        rnn.both_ends(outputs(T, H), forward_size=4)


# Nets that read both ways


V = 9
LOWER, UPPER = rnn.two_way(rnn.gru(3, 2), rnn.lstm(3, 3)), rnn.two_way(rnn.gru(5, 4), rnn.gru(5, 2))


def test_a_net_of_two_ways_is_its_layers_by_hand() -> None:
    tokens, mask = jnp.array([3, 1, 4, 1, 5, 8]), rnn.length_mask(4, T)
    net = rnn.readout(rnn.embed(rnn.stack([LOWER, rnn.elman(5, 5), UPPER]), V, 3), 2)
    params = random_params(net)
    (lower, middle, upper), options = params.cell.cell, {"mask": mask, "segment": 2}
    cells = rnn.gru(3, 2), rnn.lstm(3, 3)
    below, ys = rnn.bidirectional(*cells, lower, None, params.cell.table[tokens], **options)
    between, ys = rnn.unroll(rnn.elman(5, 5), middle, None, ys, **options)
    above, ys = rnn.bidirectional(rnn.gru(5, 4), rnn.gru(5, 2), upper, None, ys, **options)
    expected = jnp.where(mask[:, None], ys @ params.w_y + params.b_y[None], 0)
    state, got = net.run(params, None, tokens, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, (below, between, above))
    again = net.run(params, net.init_state(params), tokens, **options)[1]
    np.testing.assert_array_equal(again, got)
    other = net.run(params, jax.tree.map(jnp.ones_like, state), tokens, **options)[1]
    assert bool((other != got)[:4].any(axis=1).all())


def test_one_hot_serves_nets_of_two_ways() -> None:
    tokens = jnp.array([2, 0, 1])
    params = random_params(LOWER)
    expected = LOWER.run(params, None, jnp.eye(3)[tokens])[1]
    np.testing.assert_array_equal(rnn.one_hot(LOWER, 3).run(params, None, tokens)[1], expected)


def test_both_ends_of_a_padded_sequence_are_those_of_the_short_one() -> None:
    params, xs = random_params(LOWER), outputs(T, 3)
    state, ys = LOWER.run(params, None, xs.at[4:].set(jnp.nan), mask=rnn.length_mask(4, T))
    short = LOWER.run(params, None, xs[:4])[1]
    got = rnn.both_ends(ys, rnn.length_mask(4, T), forward_size=2)
    np.testing.assert_allclose(got, jnp.concatenate([short[-1, :2], short[0, 2:]]), rtol=1e-6)
    np.testing.assert_array_equal(got, jnp.concatenate([state[0], state[1].h]))


def test_layers_of_two_ways_are_drawn_apart() -> None:
    one, two = rnn.two_way(rnn.gru(3, 4), rnn.gru(3, 4)).init(key(0))
    assert bool((one.w_x != two.w_x).all())
