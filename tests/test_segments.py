"""Segments: the numbers of the plain unroll with the memory of the root of its length."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, NOISY, H, key, random_inputs, random_params

import rnn_jax as rnn
from rnn_jax import _segments
from rnn_jax._types import is_float

T = 7
nets = pytest.mark.parametrize("name", ["lstm", "stack", "user", "embed", "dropout"])


def gradient(name: str, cell: rnn.Cell, reverse: bool, **options: Any) -> Any:
    """Loss, final state and gradient of a masked sequence with a reset in the middle."""
    params, xs = random_params(cell), random_inputs(name, T)
    flags = {"mask": jnp.arange(T) != 2, "reset": jnp.arange(T) == 4}

    def loss(params: Any) -> Any:
        state, ys = rnn.unroll(cell, params, None, xs, reverse=reverse, **flags, **options)
        units = jnp.sin(jnp.arange(1.0, 1.0 + ys.size)).reshape(ys.shape)
        return (units * ys).sum(), [a for a in jax.tree.leaves(state) if is_float(a)]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@nets
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.usefixtures("x64")
def test_segments_change_no_number(name: str, reverse: bool) -> None:
    cell = NETS[name]
    expected = gradient(name, cell, reverse)
    for segment in (1, 3, T - 1, T + 1):
        got = gradient(name, cell, reverse, segment=segment)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=f"segment {segment}")


@pytest.mark.usefixtures("x64")
def test_segments_of_a_noisy_net_see_the_same_noise() -> None:
    cell = NOISY["zoneout"]
    whole = rnn.unroll(cell, random_params(cell), None, random_inputs("zoneout", T))
    cut = rnn.unroll(cell, random_params(cell), None, random_inputs("zoneout", T), segment=2)
    np.testing.assert_allclose(cut[1], whole[1], atol=1e-14)
    assert (jax.random.key_data(cut[0].key) == jax.random.key_data(whole[0].key)).all()


def kept(steps: int, **options: Any) -> int:
    """Bytes that XLA needs for the gradient of a loss of the last state."""
    cell = rnn.lstm(3, 32)
    params, xs = cell.init(key(0)), jnp.ones((steps, 3))
    loss = lambda p: rnn.unroll(cell, p, None, xs, **options)[0].h.sum()  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_root_of_the_length() -> None:
    plain = [kept(steps) for steps in (256, 4096)]
    cut = [kept(256, segment=16), kept(4096, segment=64)]
    assert plain[1] > 12 * plain[0]
    assert cut[1] < 6 * cut[0]
    assert cut[1] < plain[1] / 10


def test_the_budget_is_kept_by_the_longest_segments_that_fit() -> None:
    cell = rnn.lstm(3, 8)
    params, xs = cell.init(key(0)), jnp.ones((1000, 3))
    run = lambda state, xs: rnn.unroll(cell, params, state, xs)  # noqa: E731
    state = cell.init_state(params)
    per_state = 2 * 8 * xs.dtype.itemsize

    def total(segment: int) -> float:
        inside = _segments._kept(run, state, xs, segment)
        return inside + per_state * 1000 / segment

    whole = _segments._kept(run, state, xs, 1000)
    assert _segments.within(whole, run, state, xs, 1000) is None
    for budget in (whole - 1, whole // 4, whole // 10):
        segment = _segments.within(budget, run, state, xs, 1000)
        assert segment is not None
        assert total(segment) <= budget < total(segment + 1)


def test_a_budget_that_is_too_small_says_what_is_needed() -> None:
    cell = rnn.gru(3, 8)
    params, xs = cell.init(key(0)), jnp.ones((1000, 3))
    with pytest.raises(ValueError, match=r"budget: got 100 bytes, expected at least (\d+)") as info:
        rnn.unroll(cell, params, None, xs, budget=100)
    least = int(str(info.value).split("at least ")[1].split()[0])
    _, ys = rnn.unroll(cell, params, None, xs, budget=least)
    np.testing.assert_allclose(ys, rnn.unroll(cell, params, None, xs)[1], rtol=1e-6)


@pytest.mark.parametrize("options", [{"segment": 0}, {"budget": -1}, {"segment": 2, "budget": 9}])
def test_bad_segments(options: dict[str, int]) -> None:
    cell = rnn.elman(3, H)
    with pytest.raises(ValueError, match=r"segment|budget"):
        rnn.unroll(cell, cell.init(key(0)), None, jnp.ones((5, 3)), **options)


@pytest.mark.usefixtures("x64")
def test_bptt_takes_segments() -> None:
    cell = rnn.gru(3, H)
    params, xs, targets = random_params(cell), random_inputs("gru", T), jnp.ones((T, H))
    loss = lambda y, target: ((y - target) ** 2).sum()  # noqa: E731
    expected = rnn.gradients.bptt(cell, loss)(params, None, xs, targets)
    for options in ({"segment": 3}, {"budget": 3000}):
        got = rnn.gradients.bptt(cell, loss, **options)(params, None, xs, targets)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
