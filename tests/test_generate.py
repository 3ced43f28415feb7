"""Sampling: exactly the tokens asked for, each fed back, from the distribution that was asked."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from rnn_jax import generate

V = 7


def make(name="gru", dtype=jnp.float32, scale=2.0):
    factory = rnn_jax.ALL_CELLS[name]
    cell = rnn_jax.readout(rnn_jax.one_hot(factory(V, 5, dtype=dtype), V), V, hidden_size=5)
    params = jax.tree.map(lambda p: scale * p, cell.init(jax.random.key(3)))
    return cell, params


def advance(cell, params, state, token):
    return cell.step(params, state, cell.project(params, jnp.asarray(token, jnp.int32)))


@pytest.mark.parametrize("name", rnn_jax.ALL_CELLS)
def test_greedy_is_the_argmax_of_each_step_fed_back(name):
    cell, params = make(name)
    state, expected, token = cell.init_state(params), [], 4
    for _ in range(9):
        state, logits = advance(cell, params, state, token)
        token = int(np.argmax(logits))
        expected.append(token)
    got_state, tokens = generate.greedy(cell, params, None, 4, 9)
    assert tokens.tolist() == expected
    assert len(set(expected)) > 1  # a constant answer would prove nothing
    for a, b in zip(jax.tree.leaves(got_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 6])
def test_exactly_length_tokens_and_steps(length):
    counter = rnn_jax.Cell(
        init=lambda key: (),
        init_state=lambda params: jnp.int32(0),
        project=lambda params, token: jax.nn.one_hot((token + 1) % V, V),
        step=lambda params, state, z: (state + 1, 50.0 * z),
    )
    state, tokens = generate.sample(counter, (), None, 2, length, jax.random.key(0))
    assert tokens.shape == (length,)
    assert tokens.dtype == jnp.int32
    assert int(state) == length
    assert tokens.tolist() == [(3 + t) % V for t in range(length)]


def test_split_greedy_equals_whole():
    cell, params = make()
    whole_state, whole = generate.greedy(cell, params, None, 1, 12)
    state, first = generate.greedy(cell, params, None, 1, 5)
    state, second = generate.greedy(cell, params, state, first[-1], 7)
    assert [*first.tolist(), *second.tolist()] == whole.tolist()
    np.testing.assert_array_equal(state, whole_state)


def test_the_state_matters():
    cell, params = make()
    other = jnp.array([3.0, -3.0, 3.0, 3.0, -3.0])
    a = generate.greedy(cell, params, None, 1, 8)[1]
    b = generate.greedy(cell, params, other, 1, 8)[1]
    assert a.tolist() != b.tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    cell, params = make()
    logits = advance(cell, params, cell.init_state(params), 3)[1]
    expected = np.asarray(jax.nn.softmax(logits / temperature))
    n = 20_000

    def draw(key):
        return generate.sample(cell, params, None, 3, 1, key, temperature=temperature)[1][0]

    tokens = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), n))
    got = np.bincount(tokens, minlength=V) / n
    error = np.sqrt(expected * (1 - expected) / n)  # of a binomial frequency
    assert (abs(got - expected) < 5 * error + 1e-9).all()


def test_later_tokens_have_fresh_noise_and_the_new_context():
    cell, params = make(scale=0.1)  # nearly uniform
    tokens = generate.sample(cell, params, None, 3, 3000, jax.random.key(0))[1]
    pairs = np.bincount(np.asarray(tokens[:-1]) * V + np.asarray(tokens[1:]), minlength=V * V)
    assert pairs.min() > 20  # a key used twice would repeat itself, leaving most pairs out


def test_same_key_same_text_other_key_other_text():
    cell, params = make(scale=0.1)

    def write(seed):
        return generate.sample(cell, params, None, 3, 40, jax.random.key(seed))[1].tolist()

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_jit_vmap_over_states_tokens_and_a_traced_temperature():
    cell, params = make()
    states = jax.random.normal(jax.random.key(1), (4, 5))
    keys = jax.random.split(jax.random.key(2), 4)
    temperatures = jnp.array([0.3, 1.0, 1.5, 3.0])

    def one(state, token, key, temperature):
        return generate.sample(
            cell, params, state, token, 6, key, temperature=temperature, top_k=4, top_p=0.9
        )

    start = jnp.arange(4, dtype=jnp.int32)
    _, batch = jax.jit(jax.vmap(one))(states, start, keys, temperatures)
    for b in range(4):
        _, alone = one(states[b], start[b], keys[b], temperatures[b])
        assert batch[b].tolist() == alone.tolist()


def test_low_temperature_is_greedy():
    cell, params = make()
    cold = generate.sample(cell, params, None, 1, 20, jax.random.key(0), temperature=1e-4)[1]
    assert cold.tolist() == generate.greedy(cell, params, None, 1, 20)[1].tolist()


def test_sampling_respects_top_k_and_top_p():
    cell, params = make(scale=0.3)
    for options, allowed in (({"top_k": 2}, 2), ({"top_p": 0.3}, None)):
        state, token = cell.init_state(params), 3
        tokens = generate.sample(cell, params, None, 3, 200, jax.random.key(4), **options)[1]
        seen = set()
        for new in tokens.tolist():
            state, logits = advance(cell, params, state, token)
            order = np.argsort(-np.asarray(logits))
            p = np.asarray(jax.nn.softmax(logits))[order]
            k = allowed or int(np.searchsorted(np.cumsum(p), 0.3) + 1)
            assert new in order[:k]
            seen.add(list(order).index(new))
            token = new
        assert len(seen) > 1


def test_top_p_counts_the_probabilities_at_the_temperature():
    cell, params = make()
    logits = np.asarray(advance(cell, params, cell.init_state(params), 3)[1])
    order = np.argsort(-logits)

    def nucleus(temperature):
        p = np.asarray(jax.nn.softmax(logits / temperature))[order]
        return set(order[: np.searchsorted(np.cumsum(p), 0.6) + 1].tolist())

    @jax.vmap
    def draw(key):
        return generate.sample(cell, params, None, 3, 1, key, temperature=4.0, top_p=0.6)[1][0]

    tokens = draw(jax.random.split(jax.random.key(0), 500))
    assert set(tokens.tolist()) == nucleus(4.0) > nucleus(1.0)


@pytest.mark.parametrize("name", ["lstm", "layer_norm_gru"])
def test_half_precision(name):
    cell, params = make(name, jnp.bfloat16)
    tokens = generate.sample(cell, params, None, 3, 30, jax.random.key(0), top_p=0.9)[1]
    assert tokens.dtype == jnp.int32
    assert 0 <= tokens.min() <= tokens.max() < V


def test_half_precision_draws_from_all_that_top_p_allows():
    flat = rnn_jax.Cell(
        init=lambda key: (),
        init_state=lambda params: (),
        project=lambda params, token: jnp.zeros(1000, jnp.bfloat16),
        step=lambda params, state, z: (state, z),
    )
    n = 2000
    tokens = generate.sample(flat, (), None, 0, n, jax.random.key(0), top_p=0.5)[1]
    assert 490 <= tokens.max() <= 500
    assert abs(float(tokens.mean()) - 249.5) < 4 * 500 / (12 * n) ** 0.5  # four standard errors


def test_a_noisy_cell_can_write():
    cell = rnn_jax.dropout(rnn_jax.gru(V, V), 0.5, jax.random.key(0))
    reader = rnn_jax.one_hot(cell, V)
    params = reader.init(jax.random.key(1))
    state, tokens = generate.greedy(reader, params, None, 3, 5)
    assert tokens.shape == (5,)
    assert not (jax.random.key_data(state.key) == jax.random.key_data(jax.random.key(0))).all()


def test_filter_against_numpy():
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits = rng.normal(size=9).astype(np.float32)
        k = int(rng.integers(1, 12))
        top_p = float(rng.uniform(0.05, 0.999))
        order = np.argsort(-logits)[:k]
        p = np.exp(logits[order].astype(np.float64))
        cumulative = np.cumsum(p / p.sum())
        if abs(cumulative - top_p).min() < 1e-5:
            continue
        kept = set(order[: np.searchsorted(cumulative, top_p) + 1])
        got = np.asarray(generate.filter_logits(jnp.asarray(logits), top_k=k, top_p=top_p))
        assert set(np.flatnonzero(np.isfinite(got))) == kept
        np.testing.assert_array_equal(got[list(kept)], logits[list(kept)])
        assert np.isneginf(np.delete(got, list(kept))).all()


def test_filter_edges():
    logits = jnp.array([[1.0, 1.0, 1.0, 0.0], [-jnp.inf, 2.0, -jnp.inf, 2.0]])
    finite = lambda **how: np.isfinite(generate.filter_logits(logits, **how)).tolist()  # noqa: E731
    assert finite(top_k=2) == [[True, True, False, False], [False, True, False, True]]  # ties
    assert finite(top_k=1) == [[True, False, False, False], [False, True, False, False]]
    assert finite(top_p=1e-6) == finite(top_k=1)
    assert finite(top_p=1e-60) == finite(top_k=1)  # 0 in float32
    np.testing.assert_array_equal(generate.filter_logits(logits, top_k=4), logits)
    np.testing.assert_array_equal(generate.filter_logits(logits, top_k=99), logits)
    np.testing.assert_array_equal(generate.filter_logits(logits, top_p=1.0), logits)
    np.testing.assert_array_equal(generate.filter_logits(logits), logits)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"length": -1}, "length"),
    ],
)
def test_options_out_of_range(how, error):
    cell, params = make()
    arguments = {"length": 5, **how}
    length = arguments.pop("length")
    with pytest.raises(ValueError, match=error):
        generate.sample(cell, params, None, 3, length, jax.random.key(0), **arguments)


def test_a_stream_draws_anew_at_each_token():
    cell, params = make()

    def draw(n, seed, **options):
        tokens = generate.stream(cell, params, None, 1, jax.random.key(seed), **options)
        return [int(token) for token in itertools.islice(tokens, n)]

    long = draw(40, 0, temperature=5.0)
    assert len(set(long)) > 3
    assert draw(15, 0, temperature=5.0) == long[:15]  # a longer text begins as a shorter one
    assert draw(40, 1, temperature=5.0) != long
    greedy = generate.greedy(cell, params, None, 1, 12)[1].tolist()
    assert draw(12, 3, temperature=0) == greedy
    assert draw(12, 4, top_k=1) == greedy
    with pytest.raises(ValueError, match="temperature: got -1"):
        draw(1, 0, temperature=-1)


def written(rows):
    """The tokens of each row, after which there is nothing."""
    ends = [int((row >= 0).sum()) for row in rows]
    for row, end in zip(rows, ends, strict=True):
        assert (row[:end] >= 0).all()
        assert (row[end:] == -1).all()
    return [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("stop", [2, (2,), [5, 2]])
def test_nothing_follows_a_stop_token(stop):
    """The text is that without `stop`, cut after the first; in a batch, under jit, and streamed."""
    cell, params = make(scale=0.5)
    keys, start = jax.random.split(jax.random.key(0), 63), jnp.arange(63, dtype=jnp.int32) % V
    ends = np.ravel(stop)

    def one(token, key, stop=()):
        return generate.sample(cell, params, None, token, 12, key, temperature=1.2, stop=stop)

    _, whole = jax.vmap(one)(start, keys)
    states, batch = jax.jit(jax.vmap(lambda token, key: one(token, key, stop)))(start, keys)
    cut = [
        row[: next((t + 1 for t, token in enumerate(row) if token in ends), 12)]
        for row in whole.tolist()
    ]
    assert written(np.asarray(batch)) == cut
    assert len({len(row) for row in cut}) > 4
    assert max(map(len, cut)) == 12 > min(map(len, cut)) == 1
    for b in range(6):  # the state has read all but the last token
        tokens = [int(start[b]), *cut[b][:-1]]
        expected, _ = rnn_jax.unroll(cell, params, None, jnp.array(tokens, jnp.int32))
        np.testing.assert_allclose(states[b], expected, rtol=1e-5, atol=1e-6)


def test_greedy_and_streams_stop():
    cell, params = make()
    whole = generate.greedy(cell, params, None, 4, 9)[1].tolist()
    stop = whole[3]
    end = whole.index(stop) + 1
    tokens = generate.greedy(cell, params, None, 4, 9, stop=stop)[1]
    assert written(np.asarray(tokens)[None]) == [whole[:end]]
    streamed = generate.stream(cell, params, None, 4, jax.random.key(0), temperature=0, stop=stop)
    assert [int(token) for token in itertools.islice(streamed, 9)] == whole[:end]


def test_an_ended_text_stays_empty_and_a_prompt_ends_nothing():
    cell, params = make()
    state, tokens = generate.greedy(cell, params, jnp.ones(5), -1, 4, stop=0)
    assert tokens.tolist() == [-1] * 4
    np.testing.assert_array_equal(state, jnp.ones(5))
    first = generate.greedy(cell, params, None, 3, 1)[1][0]
    assert generate.greedy(cell, params, None, 3, 2, stop=3)[1][0] == first


def test_stop_tokens_are_checked():
    cell, params = make()
    with pytest.raises(ValueError, match=r"stop: got \(7,\), expected tokens from 0 to 6"):
        generate.greedy(cell, params, None, 0, 3, stop=V)
    with pytest.raises(TypeError, match="stop: got 'a'"):
        generate.greedy(cell, params, None, 0, 3, stop="a")
