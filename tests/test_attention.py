"""Attention against loops in NumPy, and against what an empty or padded memory must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax as rnn
from rnn_jax import attention, generate, gradients

S, T, D, H, M, A, O = 5, 4, 2, 3, 4, 6, 7
MASK = np.array([True, False, True, True, False])

MAKE = {
    "additive": lambda places=S: attention.additive(
        rnn.gru(D + M, H), places=places, memory_size=M, size=A
    ),
    "dot": lambda places=S: attention.multiplicative(
        rnn.lstm(D + O, M), places=places, memory_size=M, score="dot", output_size=O
    ),
    "general": lambda places=S: attention.multiplicative(
        rnn.elman(D + H, H), places=places, memory_size=M
    ),
    "concat": lambda places=S: attention.multiplicative(
        rnn.gru(D, H), places=places, memory_size=M, score="concat", input_feeding=False
    ),
}
every_kind = pytest.mark.parametrize("kind", MAKE)


def case(kind, dtype=jnp.float64):
    cell, rng = MAKE[kind](), np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), cell.init(jax.random.key(0))
    )
    values = jnp.asarray(rng.normal(size=(S, M)), dtype)
    return cell, params, values, jnp.asarray(rng.normal(size=(T, D)), dtype)


def run(cell, params, values, mask, xs, **options):
    state = attention.start(cell, params, values, mask)
    return rnn.unroll(cell, params, state, xs, **options)


def by_hand(kind, params, values, mask, xs):
    """The equations, one step and one place after the other."""
    inner = {
        "additive": rnn.gru(D + M, H),
        "dot": rnn.lstm(D + O, M),
        "general": rnn.elman(D + H, H),
        "concat": rnn.gru(D, H),
    }[kind]
    p, m = jax.tree.map(np.asarray, params), np.asarray(values)
    state, fed, ys, looked = inner.init_state(params.cell), 0, [], []
    fed = np.zeros({"dot": O, "general": H}.get(kind, 0))

    def look(query):
        scores = {}
        for j in np.flatnonzero(mask):
            if kind == "dot":
                scores[j] = query @ m[j]
            elif kind == "general":
                scores[j] = query @ (m[j] @ p.w_key)
            else:
                scores[j] = p.v @ np.tanh(query @ p.w_query + m[j] @ p.w_key)
        total = sum(np.exp(e) for e in scores.values())
        a = np.array([np.exp(scores[j]) / total if j in scores else 0.0 for j in range(S)])
        return a, sum(a[j] * m[j] for j in range(S))

    def advance(state, x):
        return inner.step(params.cell, state, inner.project(params.cell, jnp.asarray(x)))

    for x in np.asarray(xs):
        if kind == "additive":
            a, c = look(np.asarray(state))
            state, y = advance(state, np.concatenate([x, c]))
        else:
            state, h = advance(state, np.concatenate([x, fed]))
            a, c = look(np.asarray(h))
            y = np.tanh(np.concatenate([c, h]) @ p.w_out)
            fed = y if kind in ("dot", "general") else fed
        ys.append(np.asarray(y))
        looked.append(a)
    return np.array(ys), looked[-1]


@every_kind
@pytest.mark.usefixtures("x64")
def test_the_equations(kind):
    cell, params, values, xs = case(kind)
    ys, weights = by_hand(kind, params, values, MASK, xs)
    state, got = run(cell, params, values, jnp.asarray(MASK), xs)
    np.testing.assert_allclose(got, ys, atol=1e-13)
    np.testing.assert_allclose(state.weights, weights, atol=1e-13)


@every_kind
@pytest.mark.usefixtures("x64")
def test_what_stands_in_padding_changes_no_bit(kind):
    cell, params, values, xs = case(kind)

    def loss(params, values, mask):
        return jnp.sin(run(cell, params, values, mask, xs)[1]).sum()

    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    mask = jnp.asarray(MASK)
    expected = grad(params, jnp.where(mask[:, None], values, 0.0), mask)
    got = grad(params, jnp.where(mask[:, None], values, jnp.nan), mask)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not np.asarray(got[1][1])[~MASK].any()

    longer = MAKE[kind](S + 3)  # more places: the same but for the rounding of longer sums
    padded = jnp.concatenate([values, jnp.full((3, M), jnp.inf)])
    ys = run(longer, params, padded, jnp.pad(mask, (0, 3)), xs)[1]
    np.testing.assert_allclose(ys, run(cell, params, values, mask, xs)[1], atol=1e-14)


@every_kind
@pytest.mark.usefixtures("x64")
def test_a_memory_without_a_valid_place(kind):
    """The context is zero, as for the state that the cell makes by itself; all is finite."""
    cell, params, values, xs = case(kind)

    def loss(params, values, mask):
        state, ys = run(cell, params, values, mask, xs)
        return jnp.sin(ys).sum(), (state.weights, ys)

    nothing = jnp.zeros(S, bool)
    (_, (weights, ys)), (by_params, by_values) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        params, values, nothing
    )
    assert not weights.any()
    assert not by_values.any()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(by_params))
    np.testing.assert_allclose(rnn.unroll(cell, params, None, xs)[1], ys, atol=1e-15)


@every_kind
@pytest.mark.usefixtures("x64")
def test_exact_gradients_agree_in_the_memory_too(kind):
    """Forward mode, by what the memory of the state is: no algorithm knows of it."""
    cell, params, values, xs = case(kind)
    loss = lambda y, target: ((y - target) ** 2).sum()  # noqa: E731
    mask = jnp.array([True, True, False, True])
    targets = jnp.zeros((T, O if kind == "dot" else H))
    state = attention.start(cell, params, values, jnp.asarray(MASK))
    by_bptt = gradients.bptt(cell, loss)(params, state, xs, targets, mask=mask)
    by_rtrl = gradients.rtrl(cell, loss)(params, state, xs, targets, mask=mask)
    for a, b in zip(jax.tree.leaves(by_bptt[1]), jax.tree.leaves(by_rtrl[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@every_kind
def test_streaming_equals_the_whole(kind):
    cell, params, values, xs = case(kind, jnp.float32)
    state, first = run(cell, params, values, None, xs[:1])
    _, rest = rnn.unroll(cell, params, state, xs[1:])
    whole = run(cell, params, values, None, xs)[1]
    np.testing.assert_allclose(jnp.concatenate([first, rest]), whole, rtol=1e-6)


def test_a_batch_of_sources_is_one_vmap():
    cell, params, _, xs = case("general", jnp.float32)
    values = jax.random.normal(jax.random.key(3), (3, S, M))
    masks = rnn.length_mask(jnp.array([0, 2, S]), S)
    many = jax.jit(jax.vmap(lambda v, m: run(cell, params, v, m, xs)[1]))(values, masks)
    one = [run(cell, params, v, m, xs)[1] for v, m in zip(values, masks, strict=True)]
    np.testing.assert_allclose(many, jnp.stack(one), rtol=1e-5, atol=1e-6)


def test_a_decoder_that_writes():
    """Tokens, two layers and a readout around it; the state of the layers is what looks."""
    layers = rnn.stack([rnn.gru(4 + M, 5), rnn.lstm(5, H)])
    cell = attention.additive(layers, places=S, memory_size=M)
    decoder = rnn.readout(rnn.embed(cell, 9, 4), 9)
    params = decoder.init(jax.random.key(0))
    assert params.cell.cell.w_query.shape == (H, H)
    memory = jax.random.normal(jax.random.key(1), (S, M))
    inside = layers.init_state(params.cell.cell.cell)
    inside = jax.tree.map(lambda a: a + 0.5, inside)
    state = attention.start(cell, params.cell.cell, memory, state=inside)
    np.testing.assert_array_equal(state.cell[1].h, inside[1].h)
    state, tokens = generate.greedy(decoder, params, state, 0, 6)
    assert tokens.shape == (6,)
    np.testing.assert_allclose(state.weights.sum(), 1, rtol=1e-6)
    other = attention.start(cell, params.cell.cell, -3 * memory, state=inside)
    _, logits = rnn.unroll(decoder, params, other, tokens)
    assert abs(logits - rnn.unroll(decoder, params, state, tokens)[1]).max() > 1e-3


def test_it_learns_to_copy_backwards():
    """Each step has to look at another place: without the memory, nothing can be learned."""
    looking = attention.multiplicative(rnn.gru(6 + 8, 8), places=6, memory_size=12)
    cell = rnn.readout(looking, 6)
    params = cell.init(jax.random.key(0))

    def loss(params, key):
        tokens = jax.random.randint(key, (16, 6), 0, 6)
        places = jnp.eye(6)
        source = jnp.concatenate(
            [jax.nn.one_hot(tokens, 6), jnp.broadcast_to(places, (16, 6, 6))], axis=-1
        )

        def one(source):
            state = attention.start(looking, params.cell, source)
            return rnn.unroll(cell, params, state, places)[1]

        logits = jax.vmap(one)(source)
        return rnn.losses.cross_entropy(logits, tokens[:, ::-1])

    @jax.jit
    def update(params, slope, key):
        value, grads = jax.value_and_grad(loss)(params, key)
        slope = jax.tree.map(lambda s, g: 0.9 * s + g, slope, grads)
        return jax.tree.map(lambda p, s: p - 0.1 * s, params, slope), slope, value

    slope = jax.tree.map(jnp.zeros_like, params)
    for key in jax.random.split(jax.random.key(1), 400):
        params, slope, value = update(params, slope, key)
    assert value < 0.1, value


BAD = {
    "places": (lambda: attention.additive(rnn.gru(D, H), places=0, memory_size=M), "places"),
    "memory": (lambda: attention.additive(rnn.gru(D, H), places=S, memory_size=-1), "memory_size"),
    "size": (
        lambda: attention.additive(rnn.gru(D, H), places=S, memory_size=M, size=0).init(
            jax.random.key(0)
        ),
        "size",
    ),
    "score": (
        lambda: attention.multiplicative(rnn.gru(D, H), places=S, memory_size=M, score="cosine"),
        "'cosine'",
    ),
    "dot of other sizes": (
        lambda: attention.multiplicative(
            rnn.gru(D + H, H), places=S, memory_size=M, score="dot"
        ).init(jax.random.key(0)),
        "memory_size: got 4, expected 3",
    ),
    "another memory": (lambda: run(*case("general")[:2], jnp.ones((S + 1, M)), None, 0), "values"),
    "another mask": (
        lambda: run(*case("general")[:2], jnp.ones((S, M)), jnp.ones(3, bool), 0), "mask"
    ),
    "no hidden array": (
        lambda: attention.additive(
            rnn.Cell(lambda key: (), lambda params: {"a": jnp.ones(2)}, None, None),
            places=S,
            memory_size=M,
        ).init(jax.random.key(0)),
        "query",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, message = BAD[name]
    with jax.enable_x64(True), pytest.raises(ValueError, match=message):
        act()
