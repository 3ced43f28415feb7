"""Gradient algorithms against the Python loop, and truncation where it is and is not exact."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, key, random_inputs, random_params
from test_laws import assert_close, loop

import rnn_jax as rnn
from rnn_jax import gradients

T = 5
ALGORITHMS = {
    "bptt": gradients.bptt,
    "k1 < k2 < T": functools.partial(gradients.truncated_bptt, k1=2, k2=3),
    "chunks": functools.partial(gradients.truncated_bptt, k1=2, k2=2),
    "k2 > T": functools.partial(gradients.truncated_bptt, k1=2, k2=T + 2),
}
pytestmark = pytest.mark.usefixtures("x64")
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2) * (1.0 + target[0] ** 2)


def problem(name: str) -> Any:
    cell = NETS[name]
    params, xs = random_params(cell), random_inputs(name, T)
    y = jax.eval_shape(functools.partial(rnn.unroll, cell), params, None, xs)[1]
    return cell, params, xs, jax.random.normal(key(2), y.shape, y.dtype)


def looped(cell: rnn.Cell, xs: Any, targets: Any, cut: tuple[int, ...] = ()) -> Any:
    """The definition; the state is cut off from its past before the steps `cut`."""

    def total(params: Any) -> Any:
        state, value = cell.init_state(params), jnp.zeros(())
        for t in range(xs.shape[0]):
            if t in cut:
                state = jax.lax.stop_gradient(state)
            state, y = cell.step(params, state, cell.project(params, xs[t]))
            value += loss(y, targets[t])
        return value, state

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def apply(algorithm: str, cell: rnn.Cell, *args: Any, **options: Any) -> Any:
    return jax.jit(ALGORITHMS[algorithm](cell, loss))(*args, **options)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("bptt", name) for name in NETS]
    + [("k2 > T", name) for name in ("elman", "lstm", "stack", "user", "zoneout")],
)
def test_exact_ones_agree_with_the_loop(algorithm: str, name: str) -> None:
    cell, params, xs, targets = problem(name)
    expected = looped(cell, xs, targets)(params)
    assert_close(apply(algorithm, cell, params, None, xs, targets), expected, atol=1e-10)


@pytest.mark.parametrize("name", ["lstm", "stack", "user", "zoneout"])
def test_chunks_cut_the_state(name: str) -> None:
    cell, params, xs, targets = problem(name)
    expected = looped(cell, xs, targets, cut=(2, 4))(params)
    assert_close(apply("chunks", cell, params, None, xs, targets), expected, atol=1e-10)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 3), (2, 3), (3, 4), (2, 5)])
def test_each_loss_reaches_back_as_far_as_it_should(k1: int, k2: int) -> None:
    """Linear scalar net h' = a h + x: the influence of every step on every loss is known."""
    a, x = 0.7, np.array([0.3, -1.1, 0.8, 0.4, -0.6])
    cell = rnn.elman(1, 1, activation=jax.nn.identity, bias=False)
    params = rnn.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), a), b=None)
    algorithm = gradients.truncated_bptt(cell, lambda y, target: y[0] * target, k1=k1, k2=k2)
    weights = np.array([0.5, -0.2, 1.0, 0.7, 0.3])
    (total, state), grads = jax.jit(algorithm)(params, None, jnp.array(x)[:, None], weights)

    h = np.array([sum(a ** (t - s) * x[s] for s in range(t + 1)) for t in range(T)])
    expected = 0.0
    for t in range(T):
        end = (t // k1 + 1) * k1  # the backward pass of this loss starts there
        steps = [s for s in range(t + 1) if s >= end - k2]
        expected += weights[t] * sum(a ** (t - s) * (h[s - 1] if s else 0.0) for s in steps)
    np.testing.assert_allclose(grads.w_h[0, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(total, weights @ h, rtol=1e-12)
    np.testing.assert_allclose(state, h[-1:], rtol=1e-12)


@pytest.mark.parametrize("algorithm", ["k1 < k2 < T", "chunks"])
def test_truncation_differs_from_the_gradient(algorithm: str) -> None:
    cell, params, xs, targets = problem("lstm")
    (total, state), truncated = apply(algorithm, cell, params, None, xs, targets)
    (exact_total, exact_state), exact = apply("bptt", cell, params, None, xs, targets)
    assert_close((total, state), (exact_total, exact_state))
    assert float(jnp.abs(truncated.w_h - exact.w_h).max()) > 1e-3


@every_algorithm
@pytest.mark.parametrize("name", ["gru", "stack", "dropout"])
def test_padding_reaches_nothing(algorithm: str, name: str) -> None:
    cell, params, xs, targets = problem(name)
    length = 3
    mask = rnn.length_mask(length, T)
    holes = jnp.where(mask[:, None], xs, jnp.nan)
    empty = jnp.where(mask[:, None], targets, jnp.nan)
    padded = apply(algorithm, cell, params, None, holes, empty, mask=mask)
    assert_close(padded, apply(algorithm, cell, params, None, xs[:length], targets[:length]))


@every_algorithm
def test_the_state_goes_on(algorithm: str) -> None:
    """Two windows with the state handed over: the total of the whole, no gradient between."""
    cell, params, xs, targets = problem("lstm")
    (first, state), _ = apply(algorithm, cell, params, None, xs[:2], targets[:2])
    (second, state), _ = apply(algorithm, cell, params, state, xs[2:], targets[2:])
    (total, final), _ = apply("bptt", cell, params, None, xs, targets)
    assert_close((first + second, state), (total, final))


@every_algorithm
def test_a_batch_is_a_vmap(algorithm: str) -> None:
    cell, params, xs, targets = problem("gru")
    both = jnp.stack([xs, xs[::-1]]), jnp.stack([targets, -targets])
    run = ALGORITHMS[algorithm](cell, loss)
    batched = jax.jit(jax.vmap(run, in_axes=(None, None, 0, 0)))(params, None, *both)
    for i in range(2):
        one = apply(algorithm, cell, params, None, both[0][i], both[1][i])
        assert_close(jax.tree.map(lambda a, i=i: a[i], batched), one)


@every_algorithm
def test_no_steps(algorithm: str) -> None:
    cell, params, xs, targets = problem("lstm")
    (total, state), grads = apply(algorithm, cell, params, None, xs[:0], targets[:0])
    assert float(total) == 0
    assert_close(state, cell.init_state(params))
    assert_close(grads, jax.tree.map(jnp.zeros_like, params))


def test_nonsense_windows() -> None:
    with pytest.raises(ValueError, match="k2: got 2 with k1 = 3, expected at least k1"):
        gradients.truncated_bptt(NETS["gru"], loss, k1=3, k2=2)
    with pytest.raises(ValueError, match="k1: got 0"):
        gradients.truncated_bptt(NETS["gru"], loss, k1=0, k2=2)


def test_loop_of_the_laws_is_the_same_definition() -> None:
    cell, params, xs, targets = problem("gru")
    state, ys = loop(cell, params, cell.init_state(params), xs)
    (total, final), _ = looped(cell, xs, targets)(params)
    assert_close((jax.vmap(loss)(ys, targets).sum(), state), (total, final))
