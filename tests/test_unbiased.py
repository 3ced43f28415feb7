"""Unbiased estimates, proved by going through all that can be drawn, and their variance."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import key
from test_algorithms import distance, flat
from test_gradients import loss

import rnn_jax as rnn
from rnn_jax import gradients
from rnn_jax.gradients import random_truncation

pytestmark = pytest.mark.usefixtures("x64")


def learned_start() -> rnn.Cell:
    """Two units, one of them in a product, with a start that is learned."""

    def init(k: jax.Array) -> dict[str, jax.Array]:
        return {"w": jax.random.normal(k, (2, 2), float), "start": jnp.array([0.4, -0.7], float)}

    def step(params: Any, h: jax.Array, x: jax.Array) -> Any:
        h = jnp.tanh(x + h @ params["w"])
        return h, h

    return rnn.Cell(init, lambda params: params["start"], lambda params, x: x, step)


TINY = {
    "elman": (rnn.elman(1, 2), 1),
    "lstm": (rnn.lstm(2, 1), 2),
    "embed": (rnn.embed(rnn.elman(1, 2), 3, 1), 0),
    "readout": (rnn.readout(rnn.gru(1, 2), 1), 1),
    "start": (learned_start(), 2),
}


def problem(name: str, T: int) -> Any:
    cell, size = TINY[name]
    params = jax.tree.map(lambda a: a + 0.2, cell.init(key(4)))
    if size:
        xs = jax.random.normal(key(1), (T, size), float)
    else:
        xs = jax.random.randint(key(1), (T,), 0, 3)
    y = jax.eval_shape(functools.partial(rnn.unroll, cell), params, None, xs)[1]
    return cell, params, xs, jax.random.normal(key(2), y.shape, y.dtype)


def all_draws(make: Any, name: str, T: int) -> Any:
    """The estimates for all signs that an online algorithm can draw, [2^k] each.

    `make(cell, loss, draw)` builds the algorithm. Signs that come too late to matter, those of the
    last step, are left as they are.
    """
    cell, params, xs, targets = problem(name, T)
    used: list[int] = []

    def estimate(signs: jax.Array) -> Any:
        used.clear()

        def draw(_: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            size = int(np.prod(shape))
            begin = sum(used)
            used.append(size)
            return signs[begin : begin + size].reshape(shape).astype(dtype)

        fixed = make(cell, loss, lambda _, shape, dtype: jnp.ones(shape, dtype))
        algorithm = make(cell, loss, draw)
        carry, grads = algorithm.init(params, xs[0], key=key(0)), None
        for t in range(T):
            rule = algorithm if t < T - 1 else fixed
            carry, info = rule.update(params, carry, xs[t], targets[t])
            grads = info.grads if grads is None else jax.tree.map(jnp.add, grads, info.grads)
        return grads

    jax.eval_shape(estimate, jnp.ones(100))
    count = sum(used)
    assert 2 <= count <= 13
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=count)))
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)[1]
    return jax.jit(jax.vmap(estimate))(signs), expected


def online(name: str, **options: Any) -> Any:
    algorithm = getattr(gradients, name)
    return lambda cell, loss, draw: algorithm(cell, loss, draw=draw, **options)


@pytest.mark.parametrize(
    ("algorithm", "options", "name", "T"),
    [
        ("uoro", {}, "elman", 5),
        ("uoro", {}, "lstm", 5),
        ("uoro", {}, "readout", 5),
        ("uoro", {}, "start", 4),
        ("kf_rtrl", {}, "elman", 5),
        ("kf_rtrl", {}, "lstm", 5),
        ("kf_rtrl", {}, "readout", 3),
        ("kf_rtrl", {}, "embed", 4),
        ("kf_rtrl", {}, "start", 5),
        ("ok", {"rank": 1}, "elman", 4),
        ("ok", {"rank": 1}, "start", 5),
        ("ok", {"rank": 1}, "embed", 4),
        ("forward_gradient", {}, "elman", 3),
        ("forward_gradient", {}, "start", 3),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_the_mean_of_all_draws_is_the_gradient(
    algorithm: str, options: dict[str, Any], name: str, T: int
) -> None:
    estimates, expected = all_draws(online(algorithm, **options), name, T)
    mean = jax.tree.map(lambda a: a.mean(0), estimates)
    assert distance(mean, expected) < 1e-12
    spread = jax.tree.map(lambda a: a.std(0), estimates)
    assert flat(spread).max() > 1e-3 * np.abs(flat(expected)).max()  # it is no exact method


def random_terms(count: int, m: int, k: int) -> Any:
    a = jax.random.normal(key(5), (count, m), float)
    b = jax.random.normal(key(6), (count, k), float)
    return a * jnp.array([3.0, 1.0, 0.3, 0.5])[:count, None], b


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_reduction_is_unbiased_and_of_least_variance(r: int) -> None:
    """Over all signs; the variance is the known optimum, S^2 / k - the squares of the tail."""
    from rnn_jax.gradients import kronecker

    A, B = random_terms(r + 1, 5, 7)
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=r + 1)))
    a, b = jax.vmap(lambda c: kronecker._reduced(A, B, c))(signs)
    assert a.shape == (2 ** (r + 1), r, 5)
    products = jnp.einsum("srm,srk->smk", a, b)
    exact = A.T @ B
    assert distance(products.mean(0), exact) < 1e-12
    s = np.linalg.svd(np.asarray(exact), compute_uv=False)[: r + 1]
    start = next(i for i in range(r) if (r - i) * s[i] <= s[i:].sum())
    tail = s[start:]
    optimum = tail.sum() ** 2 / (r - start) - (tail**2).sum()
    variance = ((products - exact[None]) ** 2).sum((1, 2)).mean()
    np.testing.assert_allclose(variance, optimum, rtol=1e-9)


def test_rank_enough_is_exact() -> None:
    cell, params, xs, targets = problem("elman", 6)
    got = jax.jit(gradients.ok(cell, loss, rank=2))(params, None, xs, targets, key=key(0))
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)
    assert distance(got[1], expected[1]) < 1e-12


def cut_patterns(T: int, length: float, alpha: float) -> Iterator[tuple[float, np.ndarray]]:
    """The probability and the weights of each way to cut; a cut before the first step is none."""
    for cuts in itertools.product([False, True], repeat=T):
        probability, weights, s = 1.0, [], 1.0
        for cut in cuts:
            c = (alpha - 1) / ((alpha - 2) * length + s)
            probability *= c if cut else 1 - c
            weights.append(0.0 if cut else 1 / (1 - c))
            s = 1.0 if cut else s + 1
        yield probability, np.array(weights)


@pytest.mark.parametrize("name", ["lstm", "start"])
def test_artbp_over_all_cuts(name: str) -> None:
    T, length, alpha = 5, 3.0, 3.5
    cell, params, xs, targets = problem(name, T)
    probabilities, weights = map(np.array, zip(*cut_patterns(T, length, alpha), strict=True))
    run = random_truncation.weighted_bptt(cell, loss)
    reset = jnp.zeros(T, bool).at[3].set(name == "start")  # the start is reached once more
    estimates = jax.jit(jax.vmap(lambda w: run(w, params, None, xs, targets, None, reset)[1]))(
        weights
    )
    mean = jax.tree.map(lambda a: jnp.tensordot(probabilities, a, 1), estimates)
    bptt = jax.jit(gradients.bptt(cell, loss))
    expected = bptt(params, None, xs, targets, reset=reset)[1]
    assert distance(mean, expected) < 1e-12

    all_cut = jax.tree.map(lambda a: a[-1], estimates)  # but for the start, which is always reached
    one_step = jax.jit(gradients.truncated_bptt(cell, loss, k1=1, k2=1))
    assert distance(all_cut, one_step(params, None, xs, targets, reset=reset)[1]) < 1e-12
    assert distance(all_cut, expected) > 1e-2

    drawn = jax.jit(
        jax.vmap(
            lambda k: gradients.artbp(cell, loss, length=length, alpha=alpha)(
                params, None, xs, targets, reset=reset, key=k
            )[1]
        )
    )(jax.random.split(key(7), 300))
    possible = np.unique(
        np.round(estimates["w"][:, 0, 0] if name == "start" else estimates.w_h[:, 0, 0], 9)
    )
    seen = np.round(drawn["w"][:, 0, 0] if name == "start" else drawn.w_h[:, 0, 0], 9)
    assert np.isin(seen, possible).all()
    total = flat(jax.tree.map(lambda a: a.mean(0), drawn)) - flat(expected)
    bound = 5 * flat(jax.tree.map(lambda a: a.std(0), drawn)) / np.sqrt(300) + 1e-9
    assert (np.abs(total) < bound).all()


@pytest.mark.parametrize("roulette", [False, True])
def test_telescope_over_all_horizons(roulette: bool) -> None:
    T, decay = 3, 0.6  # horizons 1, 2, 4
    cell, params, xs, targets = problem("lstm", T)
    G = [
        flat(
            jax.jit(gradients.truncated_bptt(cell, loss, k1=k, k2=k))(params, None, xs, targets)[1]
        )
        for k in (1, 2, 4)
    ]
    terms = [G[0]] + [b - a for a, b in itertools.pairwise(G)]
    q = decay ** np.arange(3)
    q /= q.sum()
    if roulette:
        weighted = [d / q[i:].sum() for i, d in enumerate(terms)]
        outcomes = [sum(weighted[: N + 1]) for N in range(3)]
    else:
        outcomes = [d / w for d, w in zip(terms, q, strict=True)]
    exact = flat(jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)[1])
    np.testing.assert_allclose(sum(w * o for w, o in zip(q, outcomes, strict=True)), exact)

    run = gradients.randomized_telescope(cell, loss, roulette=roulette, decay=decay)
    many = jax.jit(jax.vmap(lambda k: run(params, None, xs, targets, key=k)[1]))
    drawn = many(jax.random.split(key(8), 400))
    drawn = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], drawn)) for i in range(400)])
    which = [[np.allclose(d, o, rtol=1e-9) for o in outcomes] for d in drawn]
    counts = np.array(which).sum(0)
    assert counts.sum() == 400
    assert (np.abs(counts - 400 * q) < 5 * np.sqrt(400 * q * (1 - q))).all()


def test_the_noise_of_one_direction() -> None:
    """sqrt(P - 1) times the gradient, exactly, over all signs."""
    estimates, expected = all_draws(online("forward_gradient"), "elman", 4)
    draws = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], estimates)) for i in range(2**8)])
    g = flat(expected)
    noise = np.sqrt(((draws - g) ** 2).sum(1).mean()) / np.linalg.norm(g)
    np.testing.assert_allclose(noise, np.sqrt(g.size - 1), rtol=1e-9)


def test_variance_falls_as_published() -> None:
    """UORO > KF-RTRL > OK of rank 1 > OK of rank 4, a tanh net of 8 units over 20 steps."""
    cell = rnn.elman(3, 8)
    params, T = cell.init(key(0)), 20
    xs = jax.random.normal(key(1), (T, 3), float)
    targets = jax.random.normal(key(2), (T, 8), float)
    exact = flat(jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)[1])

    def spread(algorithm: Any) -> float:
        run = jax.vmap(lambda k: algorithm(params, None, xs, targets, key=k)[1])
        draws = jax.jit(run)(jax.random.split(key(3), 64))
        draws = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], draws)) for i in range(64)])
        return float(np.sqrt(((draws - exact) ** 2).sum(1).mean()) / np.linalg.norm(exact))

    noise = [
        spread(gradients.uoro(cell, loss)),
        spread(gradients.kf_rtrl(cell, loss)),
        spread(gradients.ok(cell, loss, rank=1)),
        spread(gradients.ok(cell, loss, rank=4)),
    ]
    assert noise[0] > 1.5 * noise[1] > noise[2] > 2 * noise[3]


def test_nonsense() -> None:
    cell, *_ = TINY["elman"]
    for algorithm, options, message in (
        ("ok", {"rank": 0}, "rank: got 0"),
        ("forward_gradient", {"directions": -1}, "directions: got -1"),
        ("artbp", {"length": 1}, "length: got 1, expected at least 2"),
        ("artbp", {"alpha": 2.5}, "alpha: got 2.5, expected more than 3"),
        ("randomized_telescope", {"decay": 0.0}, "decay: got 0.0, expected more than 0"),
        ("snap", {"n": 0}, "n: got 0"),
        ("rflo", {"leak": 1.5}, "leak: got 1.5"),
        ("implicit", {"terms": -1}, "terms: got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(gradients, algorithm)(cell, loss, **options)
