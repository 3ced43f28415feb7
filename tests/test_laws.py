"""Laws of `unroll` that hold for every cell and every combinator, in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, NOISY, D, key, random_inputs, random_params

import rnn_jax as rnn

T = 6
WEIGHTS = jnp.sin(jnp.arange(1.0, T + 1))
pytestmark = pytest.mark.usefixtures("x64")
every_net = pytest.mark.parametrize("name", NETS)
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])

unroll = jax.jit(rnn.unroll, static_argnums=0, static_argnames="reverse")


@functools.partial(jax.jit, static_argnums=0)
def loop(cell: rnn.Cell, params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
    """The definition: one step after the other, no scan."""
    ys = []
    for x in xs:
        state, y = cell.step(params, state, cell.project(params, x))
        ys.append(y)
    return state, jnp.stack(ys)


def weighted(ys: jax.Array, weights: jax.Array) -> jax.Array:
    """A loss to which every step and every unit contributes differently."""
    units = jnp.cos(jnp.arange(ys.shape[1], dtype=ys.dtype))
    return weights.astype(ys.dtype) @ ys @ units


@functools.partial(jax.jit, static_argnums=0, static_argnames="reverse")
def gradients(
    cell: rnn.Cell, params: Any, xs: Any, weights: Any, *, mask: Any = None, **options: Any
) -> Any:
    """((loss, (state, ys)), (gradient of params, gradient of xs))"""

    def loss(params: Any, xs: Any) -> Any:
        state, ys = rnn.unroll(cell, params, None, xs, mask=mask, **options)
        return weighted(ys, weights), (state, ys)

    return jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)(params, xs)


def assert_close(got: Any, expected: Any, atol: float = 1e-12) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape
        assert g.dtype == e.dtype
        if g.dtype == jax.dtypes.float0:
            continue
        if jnp.issubdtype(g.dtype, jax.dtypes.prng_key):
            g, e = jax.random.key_data(g), jax.random.key_data(e)
        np.testing.assert_allclose(np.asarray(g), np.asarray(e), rtol=0, atol=atol)


def setup(name: str, *shape: int) -> tuple[rnn.Cell, Any, jax.Array]:
    cell = NETS[name]
    return cell, random_params(cell), random_inputs(name, *shape)


def map_floats(f: Any, tree: Any) -> Any:
    return jax.tree.map(lambda a: f(a) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def random_state(cell: rnn.Cell, params: Any) -> Any:
    """Floats drawn, keys and counters as they are."""
    return map_floats(
        lambda s: s + jax.random.normal(key(5), s.shape, s.dtype), cell.init_state(params)
    )


def poisoned(xs: jax.Array, where: jax.Array) -> jax.Array:
    """NaN and inf in the steps `where`; tokens, which cannot be NaN, are out of range there."""
    if jnp.issubdtype(xs.dtype, jnp.integer):
        return jnp.where(where, 10**6, xs)
    bad = jnp.where(jnp.arange(xs.shape[0]) % 2 == 0, jnp.nan, jnp.inf)
    return jnp.where(where[:, None], bad[:, None], xs)


@every_net
def test_scan_is_the_loop(name: str) -> None:
    cell, params, xs = setup(name, T)
    state = random_state(cell, params)
    expected = loop(cell, params, state, xs)
    assert_close(unroll(cell, params, state, xs), expected)
    assert_close(rnn.unroll(cell, params, state, xs), expected)


@every_net
def test_the_past_and_its_order_matter(name: str) -> None:
    """A negative control: a net without a recurrence would pass many of these laws."""
    cell, params, xs = setup(name, T)
    last = unroll(cell, params, None, xs)[1][-1]
    shuffled = jnp.concatenate([jnp.roll(xs[:-1], 1, axis=0), xs[-1:]])
    assert jnp.abs(last - unroll(cell, params, None, shuffled)[1][-1]).max() > 1e-6


@every_net
def test_split_is_the_whole(name: str) -> None:
    cell, params, xs = setup(name, T)
    whole_state, whole = unroll(cell, params, None, xs)
    state, first = unroll(cell, params, None, xs[:3])
    state, second = unroll(cell, params, state, xs[3:])
    assert_close((state, jnp.concatenate([first, second])), (whole_state, whole), atol=1e-14)


@every_net
def test_reverse_twice_is_the_identity(name: str) -> None:
    cell, params, xs = setup(name, T)
    state, ys = unroll(cell, params, None, xs)
    reversed_state, reversed_ys = unroll(cell, params, None, xs[::-1], reverse=True)
    assert_close((reversed_state, reversed_ys[::-1]), (state, ys))


@every_net
def test_vmap_is_the_loop(name: str) -> None:
    """Over two batch axes with lengths, and over params."""
    cell, params, xs = setup(name, 2, 3, T)
    masks = rnn.length_mask(jnp.array([[0, 2, T], [5, 1, 3]]), T)

    @jax.jit
    def run(params: Any, xs: Any, mask: Any) -> Any:
        return rnn.unroll(cell, params, None, xs, mask=mask)

    batches = jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (None, 0, 0)))(params, xs, masks)
    for i, j in np.ndindex(2, 3):
        one = jax.tree.map(lambda a, i=i, j=j: a[i, j], batches)
        assert_close(one, run(params, xs[i, j], masks[i, j]))

    several = [random_params(cell, seed) for seed in (3, 4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    both = jax.jit(jax.vmap(run, (0, None, None)))(stacked, xs[0, 2], masks[0, 2])
    for i, own in enumerate(several):
        one = jax.tree.map(lambda a, i=i: a[i], both)
        assert_close(one, run(own, xs[0, 2], masks[0, 2]))


@every_net
@each_direction
def test_padding_never_matters(name: str, reverse: bool) -> None:
    """NaN in masked steps reaches nothing; what is left is the unpadded net."""
    cell, params, xs = setup(name, T)
    for valid in (jnp.array([0, 1, 2]), jnp.array([1, 4, 5])):
        mask = jnp.zeros(T, bool).at[valid].set(True)
        (loss, (state, ys)), (of_params, of_xs) = gradients(
            cell, params, poisoned(xs, ~mask), WEIGHTS, mask=mask, reverse=reverse
        )
        short = gradients(cell, params, xs[valid], WEIGHTS[valid], reverse=reverse)
        if of_xs.dtype != jax.dtypes.float0:
            assert bool((of_xs[~mask] == 0).all())
            of_xs = of_xs[valid]
        else:
            of_xs = of_xs[np.asarray(valid)]
        assert bool((ys[~mask] == 0).all())
        assert_close(((loss, (state, ys[valid])), (of_params, of_xs)), short)


@every_net
@each_direction
def test_nothing_valid_returns_the_initial_state(name: str, reverse: bool) -> None:
    cell, params, xs = setup(name, T)
    nothing = jnp.zeros(T, bool)
    (loss, (state, ys)), (of_params, _) = gradients(
        cell, params, poisoned(xs, ~nothing), WEIGHTS, mask=nothing, reverse=reverse
    )
    assert float(loss) == 0
    assert_close(state, cell.init_state(params), atol=0)
    assert bool((ys == 0).all())
    assert_close(of_params, jax.tree.map(jnp.zeros_like, of_params), atol=0)


@every_net
def test_length_zero(name: str) -> None:
    cell, params, xs = setup(name, T)
    state = random_state(cell, params)
    whole_ys = jax.eval_shape(functools.partial(rnn.unroll, cell), params, state, xs)[1]
    empty_state, ys = unroll(cell, params, state, xs[:0])
    assert_close(empty_state, state, atol=0)
    assert (ys.shape, ys.dtype) == ((0, *whole_ys.shape[1:]), whole_ys.dtype)


@pytest.mark.parametrize("name", [n for n in NETS if n not in NOISY])
@each_direction
def test_reset_starts_anew(name: str, reverse: bool) -> None:
    """Packed sequences equal the sequences one by one, in outputs and in gradients."""
    cell, params, xs = setup(name, T)
    reset = jnp.zeros(T, bool).at[2 if reverse else 3].set(True)
    (loss, (state, ys)), packed = gradients(cell, params, xs, WEIGHTS, reset=reset, reverse=reverse)
    first, second = (
        gradients(cell, params, xs[part], WEIGHTS[part], reverse=reverse)
        for part in (slice(3), slice(3, T))
    )
    assert_close(loss, first[0][0] + second[0][0])
    assert_close(state, (first if reverse else second)[0][1][0])
    assert_close(ys, jnp.concatenate([first[0][1][1], second[0][1][1]]))
    assert_close(packed[0], jax.tree.map(jnp.add, first[1][0], second[1][0]))


@every_net
def test_nan_does_not_get_past_a_reset(name: str) -> None:
    cell, params, xs = setup(name, T)
    broken = map_floats(lambda s: jnp.full_like(s, jnp.nan), cell.init_state(params))
    reset = jnp.zeros(T, bool).at[2].set(True)
    _, ys = unroll(cell, params, broken, xs, reset=reset)
    assert bool(jnp.isnan(ys[:2]).any(axis=1).all())
    assert bool(jnp.isfinite(ys[2:]).all())


@every_net
def test_a_reset_in_padding_is_ignored(name: str) -> None:
    cell, params, xs = setup(name, T)
    reset = jnp.zeros(T, bool).at[jnp.array([2, T - 1])].set(True)
    without = unroll(cell, params, None, xs, mask=~reset)
    assert_close(unroll(cell, params, None, xs, mask=~reset, reset=reset), without)


@pytest.mark.parametrize("name", ["dropout", "zoneout"])
def test_noise_goes_on_through_a_reset(name: str) -> None:
    cell, params, _ = setup(name)
    xs = jnp.broadcast_to(random_inputs(name, 1), (T, D))
    _, ys = unroll(cell, params, None, xs, reset=jnp.ones(T, bool))
    assert len(np.unique(np.asarray(ys).round(9), axis=0)) > 1


@every_net
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_that_of_the_params(name: str, dtype: str) -> None:
    cell, params, xs = setup(name, T)
    exact = unroll(cell, params, None, xs)[1]
    low_params, low_xs = map_floats(lambda a: a.astype(dtype), (params, xs))
    result = gradients(cell, low_params, low_xs, WEIGHTS)
    floats = [a for a in jax.tree.leaves(result) if jnp.issubdtype(a.dtype, jnp.floating)]
    assert {a.dtype.name for a in floats} == {dtype}
    assert all(bool(jnp.isfinite(a).all()) for a in floats)
    ys = result[0][1][1]
    tolerance = {"float32": 1e-5, "bfloat16": 0.2}[dtype]
    np.testing.assert_allclose(ys.astype(float), exact, rtol=0, atol=tolerance)


@every_net
def test_traces_once(name: str) -> None:
    cell, params, xs = setup(name, T)
    traces = {"project": 0, "step": 0}

    def counted(part: str) -> Any:
        def call(*args: Any) -> Any:
            traces[part] += 1
            return getattr(cell, part)(*args)

        return call

    watched = cell._replace(project=counted("project"), step=counted("step"))
    run = jax.jit(lambda params, state, xs, mask: rnn.unroll(watched, params, state, xs, mask=mask))
    state, _ = run(params, cell.init_state(params), xs, rnn.length_mask(4, T))
    first = dict(traces)
    run(params, state, xs + xs, rnn.length_mask(2, T))
    assert traces == first, "a second call traced again"
    assert max(first.values()) < 3 * T, "the loop is unrolled in Python"


@functools.partial(jax.jit, static_argnums=0)
def derivatives(loss: Any, params: Any, tangent: Any, weights: Any) -> Any:
    return jax.jvp(lambda p: jax.value_and_grad(loss)(p, weights), (params,), (tangent,))


@every_net
def test_every_transform_agrees(name: str) -> None:
    """grad, jvp, forward over reverse and jax.checkpoint against the Python loop.

    For losses on all outputs, the last, the last two and the first.
    """
    cell, params, xs = setup(name, 3)
    tangent = random_params(cell, 7)

    def looped(params: Any, weights: Any) -> Any:
        return weighted(loop(cell, params, cell.init_state(params), xs)[1], weights)

    def scanned(params: Any, weights: Any) -> Any:
        return weighted(rnn.unroll(cell, params, None, xs)[1], weights)

    remat = jax.checkpoint(scanned)
    for outputs in ([1.0, -2.0, 0.5], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]):
        weights = jnp.array(outputs)
        expected = derivatives(looped, params, tangent, weights)
        assert_close(derivatives(scanned, params, tangent, weights), expected, atol=1e-11)
        assert_close(derivatives(remat, params, tangent, weights), expected, atol=1e-11)
    (_, gradient), (slope, curvature) = expected
    along = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, tangent))
    np.testing.assert_allclose(along, slope, rtol=1e-11)
    assert max(float(jnp.abs(c).max()) for c in jax.tree.leaves(curvature)) > 1e-3


@every_net
def test_an_output_does_not_see_the_future(name: str) -> None:
    cell, params, xs = setup(name, T)
    if jnp.issubdtype(xs.dtype, jnp.integer):
        pytest.skip("tokens have no gradient")
    for step in (T - 1, 2, 0):
        _, (_, of_xs) = gradients(cell, params, xs, jnp.zeros(T).at[step].set(1.0))
        reached = jnp.abs(of_xs).max(axis=1) > 0
        assert reached.tolist() == [t <= step for t in range(T)]
