"""Combinators against what they are made of, by hand, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import key, random_params

import rnn_jax as rnn

pytestmark = pytest.mark.usefixtures("x64")
T, D, H = 5, 3, 4


def inputs(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(key(seed), shape, float)


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_stack_feeds_each_layer_to_the_next() -> None:
    layers = [rnn.lstm(D, 6), rnn.gru(6, 2), rnn.elman(2, H)]
    params = random_params(rnn.stack(layers))
    state, ys = rnn.unroll(rnn.stack(layers), params, None, inputs(T, D))
    expected = inputs(T, D)
    for layer, own, final in zip(layers, params, state, strict=True):
        last, expected = rnn.unroll(layer, own, None, expected)
        jax.tree.map(close, final, last)
    close(ys, expected)


def test_stack_layers_are_drawn_apart() -> None:
    one, two = rnn.stack([rnn.elman(H, H), rnn.elman(H, H)]).init(key(0))
    assert jnp.abs(one.w_h - two.w_h).max() > 0.1


def test_readout_is_an_affine_map_and_an_activation() -> None:
    cell = rnn.gru(D, H)
    net = rnn.readout(cell, 2, activation=jnp.tanh)
    params = random_params(net)
    hs = np.asarray(rnn.unroll(cell, params.cell, None, inputs(T, D))[1])
    close(
        rnn.unroll(net, params, None, inputs(T, D))[1],
        np.tanh(hs @ np.asarray(params.w_y) + np.asarray(params.b_y)),
    )
    plain = rnn.readout(cell, 2, bias=False)
    without = params._replace(b_y=None)
    close(rnn.unroll(plain, without, None, inputs(T, D))[1], hs @ np.asarray(params.w_y))


def test_what_readout_and_embed_draw() -> None:
    net = rnn.readout(rnn.embed(rnn.gru(50, H), 40, 50), 30, hidden_size=H)
    params, other = net.init(key(0)), net.init(key(1))
    assert not params.b_y.any()
    limit = (6 / (H + 30)) ** 0.5
    assert 0.9 * limit < jnp.abs(params.w_y).max() <= limit
    table = np.asarray(params.cell.table)
    np.testing.assert_allclose([table.mean(), table.std()], [0, 1], atol=0.1)  # 2000 normal numbers
    assert (params.w_y != other.w_y).all()
    assert (params.cell.table != other.cell.table).all()
    twos = rnn.readout(rnn.gru(D, H), 2, w_init=jax.nn.initializers.constant(2.0)).init(key(0))
    assert (twos.w_y == 2).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_readout_finds_the_size_and_dtype_of_any_cell(dtype: Any) -> None:
    cell = rnn.stack([rnn.lstm(D, 6, dtype=dtype), rnn.residual(rnn.elman(6, 6, dtype=dtype))])
    tokens = rnn.embed(cell, 10, D)
    noisy = rnn.dropout(tokens, 0.5, key(3))
    for net in (cell, tokens, noisy):
        params = rnn.readout(net, 2).init(key(0))
        assert params.w_y.shape == (6, 2)
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_readout_asks_for_a_size_that_it_cannot_find() -> None:
    """A cell that takes a pair, which no single array stands for."""
    cell = rnn.gru(D, H)
    paired = cell._replace(project=lambda params, x: cell.project(params, x["a"] + x["b"]))
    with pytest.raises(ValueError, match="hidden_size"):
        rnn.readout(paired, 2).init(key(0))
    net = rnn.readout(paired, 2, hidden_size=H)
    xs = {"a": inputs(T, D), "b": inputs(T, D)}
    assert rnn.unroll(net, net.init(key(0)), None, xs)[1].shape == (T, 2)


def test_embed_and_one_hot_look_up_rows() -> None:
    tokens = jnp.array([3, 0, 4, 4, 1])
    cell = rnn.lstm(D, H)
    reader = rnn.embed(cell, 5, D)
    params = random_params(reader)
    expected = rnn.unroll(cell, params.cell, None, params.table[tokens])[1]
    close(rnn.unroll(reader, params, None, tokens)[1], expected)

    cell = rnn.lstm(5, H)
    params = random_params(cell)
    expected = rnn.unroll(cell, params, None, jnp.eye(5)[tokens])[1]
    close(rnn.unroll(rnn.one_hot(cell, 5), params, None, tokens)[1], expected)


def test_residual_adds_the_input() -> None:
    cell = rnn.gru(H, H)
    params = random_params(cell)
    xs = inputs(T, H)
    state, ys = rnn.unroll(rnn.residual(cell), params, None, xs)
    plain_state, plain = rnn.unroll(cell, params, None, xs)
    close(ys, xs + plain)
    close(state, plain_state)


CELLS = rnn.lstm(D, H), rnn.gru(D, 2)


def both_ways(xs: Any, params: Any, **options: Any) -> Any:
    return rnn.bidirectional(*CELLS, params, None, xs, **options)


@pytest.fixture
def pair(x64: None) -> Any:
    return tuple(random_params(cell) for cell in CELLS)


def test_bidirectional_reads_both_ways(pair: Any) -> None:
    xs = inputs(T, D)
    (left, right), ys = both_ways(xs, pair)
    close(ys[:, :H], rnn.unroll(CELLS[0], pair[0], None, xs)[1])
    close(ys[:, H:], rnn.unroll(CELLS[1], pair[1], None, xs[::-1])[1][::-1])
    close(left.h, ys[-1, :H])
    close(right, ys[0, H:])


def test_bidirectional_starts_at_the_last_valid_step(pair: Any) -> None:
    xs = inputs(T, D).at[3:].set(jnp.nan)
    (left, right), ys = both_ways(xs, pair, mask=rnn.length_mask(3, T))
    (short_left, short_right), short = both_ways(xs[:3], pair)
    close(ys, jnp.pad(short, [(0, 2), (0, 0)]))
    close(left.c, short_left.c)
    close(right, short_right)


def test_bidirectional_keeps_packed_sequences_apart(pair: Any) -> None:
    """Two sequences with padding between and after them, in one row."""
    one, two = inputs(2, D, seed=2), inputs(3, D, seed=3)
    hole = jnp.full((2, D), jnp.nan)
    xs = jnp.concatenate([one, hole, two, hole])
    mask = jnp.array([1, 1, 0, 0, 1, 1, 1, 0, 0], bool)
    reset = jnp.array([1, 0, 0, 0, 1, 0, 0, 0, 0], bool)
    states, ys = both_ways(xs, pair, mask=mask, reset=reset)
    (_, last), first = both_ways(one, pair)
    (other, _), second = both_ways(two, pair)
    close(ys[mask], jnp.concatenate([first, second]))
    assert bool((ys[~mask] == 0).all())
    close(states[0].h, other.h)
    close(states[1], last)


def test_bidirectional_continues_from_states(pair: Any) -> None:
    xs = inputs(T, D)
    state = rnn.LSTMState(h=inputs(H, seed=2), c=inputs(H, seed=3)), inputs(2, seed=4)
    ys = rnn.bidirectional(*CELLS, pair, state, xs)[1]
    close(ys[:, :H], rnn.unroll(CELLS[0], pair[0], state[0], xs)[1])
    close(ys[:, H:], rnn.unroll(CELLS[1], pair[1], state[1], xs, reverse=True)[1])


def test_encoder_state_starts_the_decoder() -> None:
    """Many to many out of step: the gradient reaches the encoder through its state alone."""
    encoder, decoder = rnn.lstm(D, H), rnn.readout(rnn.lstm(2, H), 2)
    params = random_params(encoder), random_params(decoder)

    def loss(params: Any) -> Any:
        state, _ = rnn.unroll(encoder, params[0], None, inputs(T, D))
        return rnn.unroll(decoder, params[1], state, inputs(3, 2))[1].sum()

    gradient = jax.grad(loss)(params)
    step = 1e-6
    direction = random_params(encoder, 9)
    ahead, behind = (
        loss((jax.tree.map(lambda p, d, s=s: p + s * d, params[0], direction), params[1]))
        for s in (step, -step)
    )
    slope = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient[0], direction))
    assert abs(slope) > 1e-3
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-6)


def test_summary_counts_every_number() -> None:
    net = rnn.readout(rnn.stack([rnn.lstm(D, H), rnn.gru(H, 2)]), 5)
    table = rnn.summary(net.init(key(0)))
    count = sum(p.size for p in jax.tree.leaves(net.init(key(0))))
    assert table.splitlines()[-1].split() == ["total", f"{count:,}"]
    assert ".cell[0].w_h" in table
    assert "(4, 16)" in table


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_a_tied_readout_reads_and_writes_with_one_table(bias: bool, both: bool) -> None:
    half = rnn.gru(H, H // 2, dtype=float)
    inner = rnn.two_way(half, half) if both else rnn.gru(H, H, dtype=float)
    reader = rnn.embed(inner, 7, H)
    tied, apart = (rnn.readout(reader, 7, bias=bias, tied=t, hidden_size=H) for t in (True, False))
    params = random_params(tied)
    assert params.w_y is None
    tokens = jnp.array([3, 1, 6, 0, 3])

    def run(net: Any, params: Any) -> jax.Array:
        step = net.run if both else lambda *a: rnn.unroll(net, *a)
        return step(params, None, tokens)[1]

    given = params._replace(w_y=params.cell.table.T)
    close(run(tied, params), run(apart, given))
    loss = lambda net: lambda p: (run(net, p) ** 3).sum()  # noqa: E731
    got, parts = jax.grad(loss(tied))(params), jax.grad(loss(apart))(given)
    np.testing.assert_allclose(got.cell.table, parts.cell.table + parts.w_y.T, rtol=1e-9)


@pytest.mark.parametrize(
    "cell", [rnn.gru(3, 4), rnn.one_hot(rnn.gru(7, 4), 7), rnn.embed(rnn.gru(3, 4), 7, 3)]
)
def test_what_cannot_be_tied_is_refused(cell: rnn.Cell) -> None:
    with pytest.raises(ValueError, match="tied: got a cell with"):
        rnn.readout(cell, 7, tied=True).init(key(0))
