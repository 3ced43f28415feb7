"""Stochastic combinators: what they drop, how often, and that nothing repeats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import key, random_params

import rnn_jax as rnn

T, D, H = 50, 3, 40
CELL = rnn.lstm(D, H)


@pytest.fixture
def params() -> Any:
    return random_params(CELL)


@pytest.fixture
def xs() -> jax.Array:
    return jax.random.normal(key(1), (T, D))


def test_dropout_drops_or_scales(params: Any, xs: jax.Array) -> None:
    plain = rnn.unroll(CELL, params, None, xs)[1]
    state, ys = rnn.unroll(rnn.dropout(CELL, 0.3, key(2)), params, None, xs)
    dropped = ys == 0
    np.testing.assert_allclose(ys[~dropped], (plain / 0.7)[~dropped], rtol=1e-5)
    error = 4 * (0.3 * 0.7 / dropped.size) ** 0.5  # four standard errors
    assert abs(float(dropped.mean()) - 0.3) < error
    repeats = (dropped[1:] == dropped[:-1]).mean()
    assert abs(float(repeats) - (0.3**2 + 0.7**2)) < 4 * 0.5 / dropped.size**0.5
    np.testing.assert_allclose(state.state.h, plain[-1], rtol=1e-5)


def test_variational_dropout_keeps_one_mask_for_the_sequence(params: Any, xs: jax.Array) -> None:
    noisy = rnn.dropout(CELL, 0.3, key(2), variational=True)
    state, first = rnn.unroll(noisy, params, None, xs[:20])
    _, second = rnn.unroll(noisy, params, state, xs[20:])
    dropped = np.concatenate([first, second]) == 0
    assert bool((dropped == dropped[0]).all())
    assert 0 < int(dropped[0].sum()) < H


def test_each_sequence_of_a_batch_has_its_own_noise(params: Any, xs: jax.Array) -> None:
    @jax.vmap
    def run(key: jax.Array) -> jax.Array:
        return rnn.unroll(rnn.dropout(CELL, 0.5, key), params, None, xs[:3])[1]

    one, two = run(jax.random.split(key(2)))
    assert bool(((one == 0) != (two == 0)).any())


def test_dropout_is_the_plain_cell_on_average() -> None:
    """The mean over keys, within five standard errors that its own spread gives."""
    cell = rnn.elman(2, 3)
    params = random_params(cell)
    xs = jax.random.normal(key(3), (2, 2))

    @jax.vmap
    def run(key: jax.Array) -> jax.Array:
        return rnn.unroll(rnn.dropout(cell, 0.25, key), params, None, xs)[1]

    draws = run(jax.random.split(key(4), 4000))
    plain = rnn.unroll(cell, params, None, xs)[1]
    error = 5 * draws.std(axis=0) / 4000**0.5
    assert bool((jnp.abs(draws.mean(axis=0) - plain) < error).all())
    assert float(error.max()) < 0.1


def test_zoneout_keeps_units(params: Any, xs: jax.Array) -> None:
    """One step from a known state: each unit is the old one or the new one, h and c apart."""
    start = rnn.LSTMState(h=jnp.full(H, 2.0), c=jnp.full(H, 3.0))
    new = CELL.step(params, start, CELL.project(params, xs[0]))[0]
    rate = rnn.LSTMState(h=0.2, c=0.7)
    noisy = rnn.zoneout(CELL, rate, key(2))

    @jax.vmap
    def step(key: jax.Array) -> Any:
        return noisy.step(params, rnn.NoisyState(start, key), noisy.project(params, xs[0]))

    state, ys = step(jax.random.split(key(5), 500))
    for leaf, old, fresh, share in zip(state.state, start, new, rate, strict=True):
        kept = np.asarray(leaf) == np.asarray(old)
        np.testing.assert_allclose(leaf, np.where(kept, old, fresh), rtol=1e-6)
        assert abs(float(kept.mean()) - share) < 4 * (share * (1 - share) / kept.size) ** 0.5
    np.testing.assert_array_equal(ys, state.state.h)
    agreement = float(((state.state.h == 2.0) == (state.state.c == 3.0)).mean())
    assert abs(agreement - (0.2 * 0.7 + 0.8 * 0.3)) < 0.03


def test_zoneout_leaves_counters_alone(xs: jax.Array) -> None:
    plain = rnn.elman(D, H)

    def step(params: Any, state: Any, z: Any) -> Any:
        h, y = plain.step(params, state[0], z)
        return (h, state[1] + 1), y

    counted = plain._replace(
        init_state=lambda params: (plain.init_state(params), jnp.array(0)), step=step
    )
    params = plain.init(key(0))
    noisy, _ = rnn.unroll(rnn.zoneout(counted, 0.5, key(1)), params, None, xs)
    mean, _ = rnn.unroll(rnn.zoneout_mean(counted, 0.5), params, None, xs)
    assert int(noisy.state[1]) == int(mean[1]) == T


def test_zoneout_mean_is_the_expectation(params: Any, xs: jax.Array) -> None:
    start = rnn.LSTMState(h=jnp.full(H, 2.0), c=jnp.full(H, 3.0))
    new = CELL.step(params, start, CELL.project(params, xs[0]))[0]
    mean = rnn.zoneout_mean(CELL, rnn.LSTMState(h=0.2, c=0.7))
    state, y = mean.step(params, start, mean.project(params, xs[0]))
    np.testing.assert_allclose(state.h, 0.2 * 2.0 + 0.8 * new.h, rtol=1e-6)
    np.testing.assert_allclose(state.c, 0.7 * 3.0 + 0.3 * new.c, rtol=1e-6)
    np.testing.assert_array_equal(y, state.h)


def test_evaluation_uses_the_plain_cell_with_the_same_params(xs: jax.Array) -> None:
    noisy = rnn.stack([rnn.dropout(CELL, 0.5, key(1)), rnn.zoneout(rnn.gru(H, 2), 0.1, key(2))])
    plain = rnn.stack([CELL, rnn.gru(H, 2)])
    same = jax.tree.map(jnp.array_equal, noisy.init(key(3)), plain.init(key(3)))
    assert all(jax.tree.leaves(same))


def test_rate_zero_is_the_plain_cell(params: Any, xs: jax.Array) -> None:
    plain = rnn.unroll(CELL, params, None, xs)[1]
    for noisy in (rnn.dropout(CELL, 0.0, key(1)), rnn.zoneout(CELL, 0.0, key(1))):
        np.testing.assert_array_equal(rnn.unroll(noisy, params, None, xs)[1], plain)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_nonsense_rates(rate: float) -> None:
    for make in (rnn.dropout, rnn.zoneout):
        with pytest.raises(ValueError, match="rate: got"):
            make(CELL, rate, key(0))


def test_old_style_and_batched_keys_are_refused() -> None:
    for wrong in (jnp.zeros(2, jnp.uint32), 0, jax.random.split(key(0))):
        with pytest.raises(TypeError, match="key: got"):
            rnn.dropout(CELL, 0.1, wrong)


def test_zoneout_wants_an_output_that_is_state(params: Any, xs: jax.Array) -> None:
    wrong = rnn.zoneout(rnn.dropout(CELL, 0.1, key(0)), 0.1, key(1))
    with pytest.raises(ValueError, match="Apply zoneout first"):
        rnn.unroll(wrong, params, None, xs)


def masks_of(run: Any, *args: Any) -> np.ndarray:
    return np.asarray(run(*args)) == 0


def test_with_key_gives_each_update_and_each_sequence_its_own_mask() -> None:
    """A net that was built once, in a batch, under jit; the params are those of the plain net."""
    cell = rnn.elman(2, H)
    net = rnn.stack([rnn.dropout(cell, 0.5, key(1)), rnn.dropout(rnn.elman(H, H), 0.5, key(1))])
    params = net.init(key(0))
    batch = jnp.ones((3, 4, 2))

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        def one(key: jax.Array, xs: jax.Array) -> jax.Array:
            return rnn.unroll(rnn.with_key(net, key), params, None, xs)[1]

        return jax.vmap(one)(jax.random.split(key, 3), batch)

    first, again, second = (masks_of(run, key(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    rows = np.concatenate([first, second]).reshape(-1, H)
    assert len(np.unique(rows, axis=0)) == len(rows)
    below, above = rnn.with_key(net, key(5)).init_state(params)
    assert bool(jax.random.key_data(below.key).tolist() != jax.random.key_data(above.key).tolist())


def test_with_key_leaves_all_but_the_noise_alone(params: Any) -> None:
    plain = rnn.with_key(CELL, key(3)).init_state(params)
    jax.tree.map(np.testing.assert_array_equal, plain, CELL.init_state(params))
    batch = rnn.dropout(CELL, 0.5, key(1))
    many = batch._replace(
        init_state=lambda p: batch.init_state(p)._replace(key=jax.random.split(key(1), 4))
    )
    keys = rnn.with_key(many, key(3)).init_state(params).key
    assert keys.shape == (4,)
    assert len({tuple(k) for k in jax.random.key_data(keys).tolist()}) == 4
    with pytest.raises(TypeError, match="typed PRNG key"):
        rnn.with_key(CELL, jax.random.PRNGKey(0))


def test_with_key_serves_nets_that_read_both_ways() -> None:
    net = rnn.two_way(rnn.dropout(rnn.gru(2, H), 0.5, key(1)), rnn.gru(2, H))
    params = net.init(key(0))
    one, two = (
        masks_of(lambda k: rnn.with_key(net, k).run(params, None, jnp.ones((3, 2)))[1], key(seed))
        for seed in (2, 3)
    )
    assert bool((one[:, :H] != two[:, :H]).any())
    assert not one[:, H:].any()


def test_a_readout_learns_from_every_unit() -> None:
    """The key of an update reaches the mask: in 50 updates no unit is left out."""
    net = rnn.readout(rnn.dropout(rnn.lstm(3, 64), 0.5, key(1)), 1)
    params = net.init(key(0))

    @jax.jit
    def seen(key: jax.Array) -> jax.Array:
        def loss(params: Any) -> jax.Array:
            def one(key: jax.Array, xs: jax.Array) -> jax.Array:
                return rnn.unroll(rnn.with_key(net, key), params, None, xs)[1][-1]

            xs = jax.random.normal(key, (4, 1, 3))
            return (jax.vmap(one)(jax.random.split(key, 4), xs) ** 2).sum()

        return (jax.grad(loss)(params).w_y != 0).any(axis=1)

    assert jnp.stack([seen(key(i)) for i in range(50)]).any(axis=0).all()


def test_drop_drops_or_scales_and_shares_one_decision_along_axes() -> None:
    x = 1.0 + jax.random.uniform(key(1), (30, 20, 40))
    for shared, axes in ((), ()), (0, (0,)), (-1, (2,)), ((0, 1), (0, 1)):
        dropped = rnn.drop(x, 0.3, key(2), shared=shared)
        gone = np.asarray(dropped == 0)
        np.testing.assert_allclose(
            np.asarray(dropped)[~gone], np.asarray(x)[~gone] / 0.7, rtol=1e-6
        )
        one = gone.max(axis=axes, keepdims=True)
        assert (gone == one).all()
        assert abs(one.mean() - 0.3) < 5 * np.sqrt(0.21 / one.size)
        for axis in {0, 1, 2} - set(axes):
            assert (gone != np.take(gone, [0], axis)).any()
    np.testing.assert_array_equal(rnn.drop(x, 0.0, key(2)), x)


def test_tokens_are_dropped_to_the_unknown_one() -> None:
    tokens = jax.random.randint(key(1), (100, 50), 1, 9)
    dropped = rnn.drop_tokens(tokens, 0.2, key(2), unknown=0)
    gone = np.asarray(dropped == 0)
    assert abs(gone.mean() - 0.2) < 5 * np.sqrt(0.16 / gone.size)
    np.testing.assert_array_equal(np.asarray(dropped)[~gone], np.asarray(tokens)[~gone])
    assert dropped.dtype == tokens.dtype


@pytest.mark.parametrize("name", rnn.ALL_CELLS)
def test_drop_connect_drops_recurrent_weights_alone(name: str) -> None:
    layers = [rnn.ALL_CELLS[name](D, H), rnn.ALL_CELLS[name](H, H)]
    net = rnn.readout(rnn.embed(rnn.stack(layers), 9, D), 5, hidden_size=H)
    params = net.init(key(0))
    dropped = rnn.drop_connect(params, 0.5, key(1))
    kept = []
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(dropped), strict=True
    ):
        if jax.tree_util.keystr(path).endswith(".w_h"):
            gone = np.asarray(new == 0)
            assert abs(gone.mean() - 0.5) < 5 * 0.5 / np.sqrt(gone.size)
            np.testing.assert_allclose(np.asarray(new)[~gone], 2 * np.asarray(old)[~gone])
            kept.append(gone)
        else:
            np.testing.assert_array_equal(new, old)
    assert len(kept) == 2
    assert (kept[0] != kept[1]).any()
    with pytest.raises(ValueError, match="none named w_h"):
        rnn.drop_connect({"w": jnp.ones(3)}, 0.5, key(1))


def test_redrawn_noise_leaves_the_rest_of_the_state(params: Any, xs: jax.Array) -> None:
    noisy = rnn.stack([rnn.dropout(CELL, 0.3, key(2), variational=True), rnn.lstm(H, H)])
    both = (params, random_params(rnn.lstm(H, H)))
    state, _ = rnn.unroll(noisy, both, None, xs)
    fresh = rnn.redraw(state, key(3))
    assert (jax.random.key_data(fresh[0].key) != jax.random.key_data(state[0].key)).any()
    jax.tree.map(np.testing.assert_array_equal, fresh[0].state, state[0].state)
    jax.tree.map(np.testing.assert_array_equal, fresh[1], state[1])
    other = rnn.redraw(state, key(4))
    assert (jax.random.key_data(fresh[0].key) != jax.random.key_data(other[0].key)).any()


def test_scheduled_sampling_mixes_true_tokens_with_drawn_ones() -> None:
    successor = rnn.Cell(
        init=lambda key: (),
        init_state=lambda params: (),
        project=lambda params, token: 50.0 * jax.nn.one_hot((token + 1) % 9, 9),
        step=lambda params, state, z: (state, z),
    )
    net = rnn.scheduled_sampling(successor, 0.25, key(0))
    tokens = jnp.full(4000, 5)
    _, logits = rnn.unroll(net, (), None, tokens)
    read = np.asarray(logits.argmax(axis=1) - 1) % 9
    assert read[0] == 5
    own = read[1:] != 5  # it reads 6 after a 5 that it was given
    assert abs(own.mean() - 0.25) < 0.04
    before = read[:-1]
    assert (read[1:][own] == (before[own] + 1) % 9).all()
    net = rnn.scheduled_sampling(successor, 0.0, key(0))
    state = net.init_state(())._replace(rate=jnp.float32(1.0))
    _, logits = rnn.unroll(net, (), state, jnp.full(5, 5))
    assert logits.argmax(axis=1).tolist() == [6, 7, 8, 0, 1]


def test_no_gradient_goes_through_what_is_drawn() -> None:
    """The reader of its own words has the gradient of the same words, given."""
    cell = rnn.readout(rnn.embed(rnn.gru(3, 4), 6, 3), 6)
    params = jax.tree.map(lambda p: 3 * p, cell.init(key(0)))
    net = rnn.scheduled_sampling(cell, 1.0, key(1))

    def total(net: rnn.Cell, tokens: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            _, logits = rnn.unroll(net, params, None, tokens)
            return rnn.losses.cross_entropy(logits, tokens * 0 + 2), logits

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = total(net, jnp.array([1, 1, 1, 1]))
    words, state = [1], net.init_state(params)
    for _ in range(3):
        state, _ = net.step(params, state, jnp.int32(1))
        words.append(int(state.drawn))
    given, same = total(cell, jnp.array(words))
    np.testing.assert_allclose(logits, same, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, given)


@pytest.mark.parametrize(
    "call",
    [
        lambda rate, k: rnn.drop(jnp.ones(3), rate, k),
        lambda rate, k: rnn.drop_tokens(jnp.ones(3, int), rate, k, unknown=0),
        lambda rate, k: rnn.drop_connect(CELL.init(key(0)), rate, k),
        lambda rate, k: rnn.scheduled_sampling(CELL, rate, k),
    ],
)
def test_rates_and_keys_of_what_is_dropped(call: Any) -> None:
    with pytest.raises(ValueError, match=r"rate: got 1\.5"):
        call(1.5, key(0))
    with pytest.raises(TypeError, match="key"):
        call(0.5, jnp.zeros(2, jnp.uint32))
