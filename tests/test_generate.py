"""Sampling: exactly the tokens asked for, each fed back, from the distribution that was asked."""

import itertools
from typing import Any, NamedTuple

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


def log_probability(cell, params, first, tokens):
    """By a loop over the steps."""
    state, total, token = cell.init_state(params), 0.0, first
    for new in tokens:
        state, logits = advance(cell, params, state, token)
        total += float(jax.nn.log_softmax(logits.astype(jnp.float32))[new])
        token = new
    return total


def all_texts(length, end):
    """Every text of at most `length` tokens that ends with `end` or is cut off."""
    texts = [()]
    for _ in range(length):
        done = [text for text in texts if text[-1:] == (end,)]
        texts = done + [(*t, new) for t in texts if t[-1:] != (end,) for new in range(V)]
    return texts


def unpadded(tokens):
    return tuple(int(t) for t in tokens if t >= 0)


@pytest.mark.parametrize("name", rnn_jax.ALL_CELLS)
def test_a_beam_of_one_is_greedy(name):
    cell, params = make(name)
    for penalty in (0.0, 1.0):
        found = generate.beam(cell, params, None, 4, 9, width=1, stop=2, length_penalty=penalty)
        _, tokens = generate.greedy(cell, params, None, 4, 9, stop=2)
        assert found.tokens[0].tolist() == tokens.tolist()
        expected = log_probability(cell, params, 4, unpadded(tokens))
        np.testing.assert_allclose(found.log_probabilities[0], expected, rtol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
def test_a_wide_beam_is_exhaustive_search(penalty):
    cell, params = make(scale=1.0)
    texts = all_texts(3, end=2)
    chances = np.array([log_probability(cell, params, 4, text) for text in texts])
    sizes = np.array([len(text) for text in texts])
    scores = chances / ((5 + sizes) / 6) ** penalty
    order = np.argsort(-scores)
    found = generate.beam(
        cell, params, None, 4, 3, width=len(texts) + 5, stop=2, length_penalty=penalty
    )
    assert [unpadded(t) for t in found.tokens[: len(texts)]] == [texts[i] for i in order]
    np.testing.assert_allclose(found.scores[: len(texts)], scores[order], rtol=1e-4)
    np.testing.assert_allclose(found.log_probabilities[: len(texts)], chances[order], rtol=1e-4)
    np.testing.assert_allclose(np.exp(chances).sum(), 1, rtol=1e-5)  # they are all there are
    assert (np.asarray(found.scores[len(texts) :]) == -np.inf).all()
    assert (np.asarray(found.tokens[len(texts) :]) == -1)[:, -1].all()


def test_a_beam_finds_what_greedy_misses():
    """The likeliest first token leads to an even choice, the second likeliest to a sure one."""
    table = jnp.log(jnp.array([[0.0, 0.6, 0.4], [0.5, 0.25, 0.25], [0.02, 0.96, 0.02]]) + 1e-9)
    cell = rnn_jax.Cell(
        init=lambda key: (),
        init_state=lambda params: (),
        project=lambda params, token: table[token],
        step=lambda params, state, z: (state, z),
    )
    assert generate.greedy(cell, (), None, 0, 2)[1].tolist() == [1, 0]
    found = generate.beam(cell, (), None, 0, 2, width=2)
    assert found.tokens.tolist() == [[2, 1], [1, 0]]
    np.testing.assert_allclose(jnp.exp(found.log_probabilities), [0.384, 0.3], rtol=1e-5)


def test_what_has_ended_keeps_its_score_and_its_place():
    cell, params = make(scale=1.0)
    short = generate.beam(cell, params, None, 4, 1, width=V, stop=2)
    place = [t[0] for t in short.tokens.tolist()].index(2)
    for length in (2, 6):
        found = generate.beam(cell, params, None, 4, length, width=100, stop=2)
        real = found.scores > -np.inf
        texts = [unpadded(t) for t in found.tokens[real]]
        at = texts.index((2,))
        np.testing.assert_array_equal(found.log_probabilities[at], short.log_probabilities[place])
        assert len(set(texts)) == len(texts)  # and is there once


@pytest.mark.parametrize("name", rnn_jax.ALL_CELLS)
def test_score_is_the_sum_over_the_steps(name):
    cell, params = make(name)
    tokens = jnp.array([3, 1, 4, 1, 5])
    expected = log_probability(cell, params, 2, tokens.tolist())
    np.testing.assert_allclose(generate.score(cell, params, None, 2, tokens), expected, rtol=1e-4)
    ended = jnp.array([3, 1, 4, 1, 5, -1, 6, -1])
    np.testing.assert_allclose(generate.score(cell, params, None, 2, ended), expected, rtol=1e-4)
    assert np.isnan(generate.score(cell, params, None, 2, jnp.array([3, V])))


def test_beams_are_scored_as_texts_are():
    cell, params = make()
    found = generate.beam(cell, params, None, 4, 7, width=5, stop=(2, 3), length_penalty=0.6)

    def one(tokens):
        return generate.score(cell, params, None, 4, tokens)

    np.testing.assert_allclose(jax.vmap(one)(found.tokens), found.log_probabilities, rtol=1e-4)
    assert (np.diff(found.scores) <= 0).all()


def test_beams_in_jit_and_vmap():
    cell, params = make()
    states = jax.random.normal(jax.random.key(1), (4, 5))

    def one(state, token, penalty):
        return generate.beam(cell, params, state, token, 6, width=3, stop=2, length_penalty=penalty)

    start, penalties = jnp.arange(4, dtype=jnp.int32), jnp.array([0.0, 0.5, 1.0, 2.0])
    batch = jax.jit(jax.vmap(one))(states, start, penalties)
    for b in range(4):
        alone = one(states[b], start[b], penalties[b])
        assert batch.tokens[b].tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(batch.scores[b], alone.scores, rtol=1e-5)
    nothing = generate.beam(cell, params, None, -1, 3, width=2, stop=2)
    assert (nothing.tokens == -1).all()


class Counted(NamedTuple):
    state: Any
    last: Any


def counting(cell):
    """A cell that remembers the token that it has read, for constraints on the next."""

    def step(params, old, z):
        z, token = z
        state, logits = cell.step(params, old.state, z)
        return Counted(state, token), logits

    return rnn_jax.Cell(
        cell.init,
        lambda params: Counted(cell.init_state(params), jnp.int32(0)),
        lambda params, token: (cell.project(params, token), jnp.asarray(token, jnp.int32)),
        step,
    )


def rising(state):
    return jnp.arange(V) > state.last


@pytest.mark.parametrize("how", ["greedy", "sample", "stream", "beam"])
def test_only_allowed_tokens_are_written(how):
    cell, params = make(scale=0.3)
    cell, key = counting(cell), jax.random.key(1)
    if how == "greedy":
        tokens = generate.greedy(cell, params, None, 1, 8, allowed=rising)[1]
    elif how == "sample":
        tokens = generate.sample(cell, params, None, 1, 8, key, allowed=rising)[1]
    elif how == "stream":
        stream = generate.stream(cell, params, None, 1, key, allowed=rising)
        tokens = [int(t) for t in itertools.islice(stream, 20)]
        assert len(tokens) < 20
    else:
        tokens = generate.beam(cell, params, None, 1, 4, width=40, allowed=rising).tokens
        texts = [unpadded(t) for t in tokens]
        for text in texts:
            assert list(text) == sorted({*text} - {0, 1})
        assert (2, 3, 4, 5) in texts  # V - 1 = 6 of them: 2 to 6
        assert len([t for t in texts if len(t) == 4]) == 5
        return
    written = unpadded(tokens)
    assert list(written) == sorted({*written} - {0, 1})
    assert written[-1] == V - 1  # where nothing is allowed, the text ends


def test_constraints_renormalise_what_is_left():
    cell, params = make(scale=1.0)
    logits = np.array(advance(cell, params, cell.init_state(params), 3)[1])
    few = np.isin(np.arange(V), [1, 5])
    p = np.exp(logits) * few / (np.exp(logits) * few).sum()

    def draw(key):
        return generate.sample(
            cell, params, None, 3, 1, key, allowed=lambda state: jnp.asarray(few)
        )[1][0]

    tokens = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), 20_000))
    got = np.bincount(tokens, minlength=V) / 20_000
    assert (abs(got - p) < 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, p: generate.beam(c, p, None, 1, 3, width=0), "width: got 0"),
        (
            lambda c, p: generate.beam(c, p, None, 1, 3, width=2, length_penalty=-1.0),
            "length_penalty: got -1.0",
        ),
        (lambda c, p: generate.beam(c, p, None, 1, 3, width=2, stop=V), "stop: got"),
        (lambda c, p: generate.beam(c, p, None, V, 3, width=2), "token"),
        (lambda c, p: generate.score(c, p, None, 1, jnp.zeros((2, 3), int)), "tokens: got shape"),
        (
            lambda c, p: generate.greedy(c, p, None, 1, 3, allowed=lambda s: jnp.ones(2, bool)),
            "allowed: got",
        ),
    ],
)
def test_beams_and_scores_refuse(call, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        call(*make())
