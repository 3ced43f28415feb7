"""The linear chain against the enumeration of all taggings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rnn_jax import crf

T, K = 5, 3


def case(seed=0, dtype=jnp.float64, steps=T):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    params = crf.CRFParams(draw(K, K), draw(K), draw(K))
    return params, draw(steps, K), jnp.asarray(rng.integers(0, K, steps), jnp.int32)


def score(params, scores, tags):
    """s(y), a loop."""
    A, start, stop = (np.asarray(a, np.float64) for a in params)
    scores = np.asarray(scores, np.float64)
    total = start[tags[0]] + stop[tags[-1]]
    total += sum(scores[t, k] for t, k in enumerate(tags))
    return total + sum(A[j, k] for j, k in itertools.pairwise(tags))


def everything(params, scores):
    return {y: score(params, scores, y) for y in itertools.product(range(K), repeat=len(scores))}


def log_sum(values):
    values = np.array(list(values))
    return values.max() + np.log(np.exp(values - values.max()).sum())


MASKS = {
    "all": [True] * T,
    "padded": [True, True, True, False, False],
    "holes": [False, True, False, True, True],
    "one": [False, False, True, False, False],
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.usefixtures("x64")
def test_enumeration(name):
    """With NaN in the padding, and a wrong tag there."""
    mask = np.array(MASKS[name])
    params, scores, tags = case()
    valid, right = scores[mask], tuple(np.asarray(tags)[mask])
    totals = everything(params, valid)
    log_z = log_sum(totals.values())
    scores = jnp.where(mask[:, None], scores, jnp.nan)
    tags = jnp.where(mask, tags, (jnp.roll(tags, 1) + 1) % K)

    args = params, scores, tags, jnp.asarray(mask)
    np.testing.assert_allclose(crf.log_likelihood(*args), totals[right] - log_z, rtol=1e-12)
    np.testing.assert_allclose(crf.log_partition(params, scores, args[3]), log_z, rtol=1e-12)

    best = max(totals, key=totals.get)
    found, total = crf.decode(params, scores, args[3])
    assert tuple(np.asarray(found)[mask]) == best
    assert not np.asarray(found)[~mask].any()
    np.testing.assert_allclose(total, totals[best], rtol=1e-12)

    expected = np.zeros((T, K))
    for y, s in totals.items():
        expected[np.flatnonzero(mask), list(y)] += np.exp(s - log_z)
    np.testing.assert_allclose(crf.marginals(params, scores, args[3]), expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing_to_the_bit():
    params, scores, tags = case()
    grad = jax.value_and_grad(crf.log_likelihood, argnums=(0, 1))
    value, (by_params, by_scores) = grad(params, scores, tags, jnp.ones(T, bool))
    padded = jnp.concatenate([scores, jnp.full((2, K), jnp.nan)])
    mask = jnp.arange(T + 2) < T
    again, (same_params, same_scores) = grad(params, padded, jnp.pad(tags, (0, 2)), mask)
    assert value == again
    for a, b in zip(by_params, same_params, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(by_scores, same_scores[:T])
    assert not same_scores[T:].any()


@pytest.mark.usefixtures("x64")
def test_the_gradient_by_finite_differences():
    params, scores, tags = case(1)
    mask = jnp.asarray(MASKS["holes"])
    loss = lambda params, scores: crf.log_likelihood(params, scores, tags, mask)  # noqa: E731
    check_grads(loss, (params, scores), order=2, modes=["fwd", "rev"])


@pytest.mark.parametrize("into_2", [1, 0])
@pytest.mark.usefixtures("x64")
def test_what_is_forbidden_has_no_probability_and_no_gradient(into_2):
    """Some neighbours; and one tag wholly."""
    params, scores, tags = case(2)
    allowed = crf.Allowed(
        np.array([[1, 1, 0], [1, 1, into_2], [0, 1, into_2]], bool),
        np.array([1, 1, 0], bool),
        np.array([0, 1, 1], bool),
    )

    def may(y):
        inside = all(allowed.transitions[j, k] for j, k in itertools.pairwise(y))
        return inside and allowed.start[y[0]] and allowed.stop[y[-1]]

    totals = {y: s for y, s in everything(params, scores).items() if may(y)}
    log_z = log_sum(totals.values())
    np.testing.assert_allclose(
        crf.log_partition(params, scores, allowed=allowed), log_z, rtol=1e-12
    )
    best = max(totals, key=totals.get)
    assert tuple(crf.decode(params, scores, allowed=allowed)[0].tolist()) == best
    tags = jnp.asarray(min(totals, key=totals.get))
    value, by = jax.value_and_grad(crf.log_likelihood)(params, scores, tags, None, allowed)
    np.testing.assert_allclose(value, min(totals.values()) - log_z, rtol=1e-12)
    for a, ok in zip(by, allowed, strict=True):
        assert np.isfinite(a).all()
        assert not np.asarray(a)[~np.asarray(ok)].any()
    assert crf.log_likelihood(params, scores, jnp.array([2, 0, 2, 0, 0]), None, allowed) < -9000


def test_bio():
    labels = ["O", "B-a", "I-a", "B-b", "I-b"]
    allowed = crf.bio(labels)
    pairs = {(a, b) for i, a in enumerate(labels) for j, b in enumerate(labels)
             if not allowed.transitions[i, j]}  # fmt: skip
    assert pairs == {
        ("O", "I-a"), ("O", "I-b"), ("B-a", "I-b"), ("I-a", "I-b"), ("B-b", "I-a"), ("I-b", "I-a")
    }  # fmt: skip
    assert allowed.start.tolist() == [True, True, False, True, False]
    assert allowed.stop.all()
    with pytest.raises(ValueError, match="'L-a'"):
        crf.bio(["O", "L-a"])


@pytest.mark.parametrize("steps", [0, 3])
def test_no_valid_step(steps):
    params, scores, tags = case(steps=steps, dtype=jnp.float32)
    args = params, jnp.full_like(scores, jnp.inf), tags, jnp.zeros(steps, bool)
    value, by = jax.value_and_grad(crf.log_likelihood)(*args)
    assert value == 0
    assert not any(a.any() for a in by)
    found, total = crf.decode(params, args[1], args[3])
    assert total == 0
    assert found.tolist() == [0] * steps


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    """A long sequence in half precision has the likelihood of single precision, rounded."""
    params, scores, tags = case(steps=400, dtype=dtype)
    value, by = jax.value_and_grad(crf.log_likelihood)(params, scores, tags)
    assert value.dtype == by.start.dtype == dtype
    params, scores = jax.tree.map(lambda a: a.astype(jnp.float32), (params, scores))
    assert value == crf.log_likelihood(params, scores, tags).astype(dtype)


def test_transforms():
    """jit, vmap over a ragged batch, and two devices."""
    params, _, _ = case(dtype=jnp.float32)
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.normal(size=(4, T, K)), jnp.float32)
    tags = jnp.asarray(rng.integers(0, K, (4, T)), jnp.int32)
    mask = jnp.asarray(list(MASKS.values()))

    def loss(params, scores, tags, mask):
        many = jax.vmap(crf.log_likelihood, in_axes=(None, 0, 0, 0))
        return -many(params, scores, tags, mask).sum()

    value, by = jax.jit(jax.value_and_grad(loss))(params, scores, tags, mask)
    one = [crf.log_likelihood(params, *row) for row in zip(scores, tags, mask, strict=True)]
    np.testing.assert_allclose(value, -sum(one), rtol=1e-6)

    mesh = jax.make_mesh((2,), ("d",), (jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    shared = jax.shard_map(
        lambda *a: jax.lax.psum(loss(*a), "d"),
        mesh=mesh,
        in_specs=(P(), P("d"), P("d"), P("d")),
        out_specs=P(),
    )
    again, by_shared = jax.jit(jax.value_and_grad(shared))(params, scores, tags, mask)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for a, b in zip(by, by_shared, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    paths = jax.shard_map(
        jax.vmap(lambda s, m: crf.decode(params, s, m)[0]),
        mesh=mesh, in_specs=P("d"), out_specs=P("d"),
    )(scores, mask)  # fmt: skip
    assert paths.shape == (4, T)


BAD = {
    "another number of tags": (lambda p, u, y: crf.log_partition(p, u[:, :2]), "scores"),
    "a batch": (lambda p, u, y: crf.decode(p, u[None]), "vmap"),
    "integers": (lambda p, u, y: crf.decode(p, y[:, None] + jnp.zeros((1, K), int)), "dtype"),
    "fewer tags": (lambda p, u, y: crf.log_likelihood(p, u, y[:-1]), "tags"),
    "float tags": (lambda p, u, y: crf.log_likelihood(p, u, y.astype(float)), "expected integers"),
    "mask": (lambda p, u, y: crf.decode(p, u, jnp.ones(3, bool)), "mask"),
    "allowed": (
        lambda p, u, y: crf.decode(p, u, None, crf.bio(["O", "B-a"])), "allowed.transitions"
    ),
    "no tags": (lambda p, u, y: crf.init(jax.random.key(0), 0), "num_tags"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        act(*case(dtype=jnp.float32))
