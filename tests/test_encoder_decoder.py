"""Encoder and decoder: made of the parts that are there, blind to padding, taught and writing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import attention, generate
from rnn_jax.encoder_decoder import encoder_decoder, sampled, teacher_forced, written

KINDS = [None, "additive", "dot", "general", "concat"]
V, S, T = 7, 6, 5


def make(attend="additive", cell="lstm", both=True, seed=0):
    factory = rnn_jax.ALL_CELLS[cell]
    one = lambda H: factory(3, H)  # noqa: E731
    reader = rnn_jax.two_way(one(2), one(2)) if both else one(4)
    net = encoder_decoder(
        rnn_jax.embed(reader, 9, 3), factory, V, embedding=3, hidden_size=4, begin=0, attend=attend
    )
    params = net.init(jax.random.key(seed))
    return net, jax.tree.map(lambda p: 1.5 * p, params)


SOURCE, TARGET = jnp.array([3, 1, 4, 1, 5, 2]), jnp.array([2, 6, 5, 3, 1])
MASK, VALID = jnp.arange(S) < 4, jnp.arange(T) < 3


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("attend", KINDS)
def test_it_is_what_one_would_write_with_the_parts(attend, both):
    net, params = make(attend, both=both)
    run = rnn_jax.two_way(rnn_jax.lstm(3, 2), rnn_jax.lstm(3, 2)).run
    xs = params.encoder.table[SOURCE]
    if both:
        _, memory = run(params.encoder.cell, None, xs, mask=MASK)
        summary = jnp.concatenate([memory[3, :2], memory[0, 2:]])
    else:
        _, memory = rnn_jax.unroll(rnn_jax.lstm(3, 4), params.encoder.cell, None, xs, mask=MASK)
        summary = memory[3]
    numbers = jnp.tanh(summary @ params.w_start + params.b_start)
    state = rnn_jax.LSTMState(numbers[:4], numbers[4:])
    if attend == "additive":
        cell = attention.additive(rnn_jax.lstm(3 + 4, 4), places=S, memory_size=4)
    elif attend:
        cell = attention.multiplicative(
            rnn_jax.lstm(3 + 4, 4), places=S, memory_size=4, score=attend
        )
    else:
        cell = rnn_jax.lstm(3, 4)
    inside = params.decoder.cell
    if attend:
        state = attention.start(cell, inside.cell, memory, MASK, state)
    read = inside.table[jnp.array([0, 2, 6, 5, 3])]
    _, hs = rnn_jax.unroll(cell, inside.cell, state, read)
    expected = hs @ params.decoder.w_y + params.decoder.b_y[None]
    got = teacher_forced(net, params, SOURCE, TARGET, MASK)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("attend", KINDS)
def test_what_stands_in_the_padding_changes_no_bit(attend, cell):
    net, params = make(attend, cell)

    def loss(params, source):
        logits = teacher_forced(net, params, source, TARGET, MASK, VALID)
        return rnn_jax.losses.cross_entropy(logits, TARGET, VALID), logits

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    one, other = both(params, SOURCE), both(params, SOURCE.at[4:].set(jnp.array([8, 99])))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(one))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    other = both(params, SOURCE.at[3].set(7))
    assert one[0][0] != other[0][0]


@pytest.mark.parametrize("attend", KINDS)
def test_more_padding_changes_nothing(attend):
    net, params = make(attend)
    short = teacher_forced(net, params, SOURCE[:4], TARGET)
    for places in (5, 6, 9, 16, 33):
        source = jnp.zeros(places, jnp.int32).at[:4].set(SOURCE[:4])
        long = teacher_forced(net, params, source, TARGET, jnp.arange(places) < 4)
        np.testing.assert_allclose(long, short, rtol=2e-6, atol=2e-6)


def test_sampling_at_rate_0_is_teacher_forcing_and_at_1_it_is_writing():
    net, params = make()
    key = jax.random.key(3)
    forced = teacher_forced(net, params, SOURCE, TARGET, MASK)
    at = lambda rate, target: sampled(  # noqa: E731
        net, params, SOURCE, target, rate, key, MASK
    )
    np.testing.assert_allclose(at(0.0, TARGET), forced, rtol=1e-5, atol=1e-6)
    free, other = at(1.0, TARGET), at(1.0, TARGET[::-1])
    np.testing.assert_array_equal(free, other)  # it does not see the target
    assert not np.allclose(free, forced)
    half = jax.jit(at)(jnp.float32(0.5), TARGET)
    assert not np.allclose(half, forced)
    np.testing.assert_allclose(half[0], forced[0], rtol=1e-5, atol=1e-6)  # nothing written yet


def test_what_is_sampled_follows_the_softmax():
    net, params = make()
    target = TARGET[:2]

    def second(key):
        return sampled(net, params, SOURCE, target, 1.0, key)[1]

    keys = jax.random.split(jax.random.key(0), 4000)
    seen = jax.jit(jax.vmap(second))(keys)
    first = teacher_forced(net, params, SOURCE, target)[0]
    after = jnp.stack([teacher_forced(net, params, SOURCE, jnp.array([v, 0]))[1] for v in range(V)])
    which = np.argmin(((np.asarray(seen)[:, None] - np.asarray(after)) ** 2).sum(-1), axis=1)
    p = np.asarray(jax.nn.softmax(first))
    got = np.bincount(which, minlength=V) / len(keys)
    assert (abs(got - p) < 5 * np.sqrt(p * (1 - p) / len(keys)) + 1e-9).all()


@pytest.mark.parametrize("attend", [None, "additive", "general"])
def test_it_learns_to_turn_a_text_around_and_writes_it(attend):
    """Batched, masked, jitted; then written greedily and by a beam, token for token."""
    import optax

    net = encoder_decoder(
        rnn_jax.embed(rnn_jax.two_way(rnn_jax.gru(8, 16), rnn_jax.gru(8, 16)), 5, 8), rnn_jax.gru,
        5, embedding=8, hidden_size=32, begin=0, attend=attend,
    )  # fmt: skip
    texts = [(a, b, c) for a in (2, 3, 4) for b in (2, 3, 4) for c in (2, 3, 4)]
    texts += [(a, b) for a in (2, 3, 4) for b in (2, 3, 4)]
    source = jnp.array([[*t, *[0] * (4 - len(t))] for t in texts])
    target = jnp.array([[*t[::-1], 1, *[0] * (3 - len(t))] for t in texts])
    n = jnp.array([len(t) for t in texts])
    mask, valid = (jax.vmap(rnn_jax.length_mask, (0, None))(n + i, 4) for i in (0, 1))
    params, optimizer = net.init(jax.random.key(0)), optax.adam(2e-2)

    def loss(params):
        forced = lambda *pair: teacher_forced(net, params, *pair)  # noqa: E731
        logits = jax.vmap(forced)(source, target, mask, valid)
        return rnn_jax.losses.cross_entropy(logits, target, valid)

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    carry = params, optimizer.init(params)
    (params, _), losses = jax.lax.scan(step, carry, length=150)
    assert losses[-1] < 0.02 < losses[0]

    def write(source, mask):
        decoder, state = net.decoder(4), net.start(params, source, mask)
        start = decoder, params.decoder, state, net.begin
        greedy = generate.greedy(*start, 6, stop=1)[1]
        return greedy, written(net, params, source, 6, mask, width=3, stop=1)

    tokens, beams = jax.jit(jax.vmap(write))(source, mask)
    for text, row, found in zip(texts, tokens.tolist(), beams.tokens[:, 0].tolist(), strict=True):
        assert [t for t in row if t >= 0] == [*text[::-1], 1]
        assert found == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attend": "hard"}, "attend: got 'hard'"),
        ({"begin": 7}, "begin"),
        ({"hidden_size": 0}, "hidden_size: got 0"),
        ({"embedding": -1}, "embedding: got -1"),
        ({"attend": "dot", "hidden_size": 5}, "memory_size: got 4"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    chosen = {"embedding": 3, "hidden_size": 4, "begin": 0} | options
    with pytest.raises(ValueError, match=message):
        encoder_decoder(rnn_jax.gru(3, 4), rnn_jax.gru, V, **chosen).init(jax.random.key(0))


@pytest.mark.parametrize("attend", [None, "general"])
def test_noise_is_drawn_from_the_key_and_leaves_the_params_alone(attend):
    def cell(input_size, hidden_size, rate=0.5):
        plain = rnn_jax.gru(input_size, hidden_size)
        return rnn_jax.dropout(plain, rate, jax.random.key(0), variational=True) if rate else plain

    def made(rate, of_encoder=None):
        own = rate if of_encoder is None else of_encoder
        both = rnn_jax.two_way(cell(3, 2, own), cell(3, 2, own))
        return encoder_decoder(
            rnn_jax.embed(both, 9, 3), lambda D, H: cell(D, H, rate), V, embedding=3,
            hidden_size=4, begin=0, attend=attend, memory_size=4,
        )  # fmt: skip

    noisy, plain = made(0.5), made(0.0)
    params = noisy.init(jax.random.key(1))
    assert jax.tree.structure(params) == jax.tree.structure(plain.init(jax.random.key(1)))
    forced = lambda net, key: teacher_forced(net, params, SOURCE, TARGET, MASK, key=key)  # noqa: E731
    keys = [jax.random.key(i) for i in (1, 1, 2)]
    one, same, other = (forced(noisy, key) for key in keys)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    for alone in (made(0.5, 0.0), made(0.0, 0.5)):  # the decoder's noise, and the encoder's
        assert not np.allclose(forced(alone, keys[0]), forced(alone, keys[2]))
    np.testing.assert_array_equal(forced(plain, keys[0]), forced(plain, None))
    nearly = made(1e-7)
    np.testing.assert_allclose(forced(nearly, keys[0]), forced(plain, None), rtol=1e-5, atol=1e-6)
