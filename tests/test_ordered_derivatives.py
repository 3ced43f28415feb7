"""Sweeps by hand: each against something computed in another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments import ordered_derivatives as ordered

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", list(ordered.FUNCTIONS))
def test_slopes_are_the_derivatives(name: str) -> None:
    f, slopes = ordered.FUNCTIONS[name]
    arguments = [0.7, -1.3][: 2 if name in ("add", "multiply") else 1]
    expected = jax.grad(lambda args: f(jnp, *args))(list(map(jnp.array, arguments)))
    np.testing.assert_allclose(slopes(*arguments), expected, rtol=1e-14)


def test_a_list_by_hand() -> None:
    """T = sin(x y) + x."""
    inputs: ordered.System = [("input", ()), ("input", ())]
    system = [*inputs, ("multiply", (0, 1)), ("sine", (2,)), ("add", (3, 0))]
    x, y = 0.4, 1.7
    z = ordered.evaluate(system, [x, y])
    np.testing.assert_allclose(z[2:], [x * y, np.sin(x * y), np.sin(x * y) + x])
    slopes = ordered.partials(system, z)
    F = ordered.backward(slopes)
    np.testing.assert_allclose(F, [y * np.cos(x * y) + 1, x * np.cos(x * y), np.cos(x * y), 1, 1])
    value, count = ordered.perturbation(slopes, 1)  # x does not move, nor does the last add's
    assert value == pytest.approx(F[1])
    assert count == 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sweep_is_jax_grad_is_perturbation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = ordered.random_system(rng, 5, 30)
    values = rng.normal(size=5)
    slopes = ordered.partials(system, ordered.evaluate(system, values))
    F = ordered.backward(slopes)
    forward = [ordered.perturbation(slopes, i)[0] for i in range(len(F))]
    np.testing.assert_allclose(F, ordered.by_jax(system, values), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(F, forward, rtol=1e-12, atol=1e-14)
    read = {i for _, reads in system for i in reads}
    assert read == set(range(len(F) - 1))  # all but the target is read
    assert [bool(reads) for _, reads in system[:6]] == [False] * 5 + [True]


def test_the_net_with_lags_swept_by_hand_is_bptt() -> None:
    found = ordered.sweep_lags(seed=1, T=9)
    assert max(found["gap"].values()) < 1e-12


def test_the_sweep_by_hand_is_a_finite_difference() -> None:
    cell = ordered.net(2, 3, 2)
    weights = cell.init(jax.random.key(3))
    X = np.random.default_rng(0).normal(size=(4, 2))
    targets = np.random.default_rng(1).normal(size=(4, 2))
    F, _ = ordered.sweep(weights, X, targets)
    flat, restore = ravel_pytree(weights)

    @jax.jit
    def error(flat: jax.Array) -> jax.Array:
        _, ys = rnn_jax.unroll(cell, restore(flat), None, X)
        return jnp.sum((ys - targets) ** 2) / 2

    moves = 1e-5 * np.eye(len(flat))
    slopes = [float(error(flat + move) - error(flat - move)) / 2e-5 for move in moves]
    np.testing.assert_allclose(ravel_pytree(F)[0], slopes, atol=1e-9)
    assert all(np.abs(f).max() > 1e-3 for f in F)


def test_verdicts_can_be_negative() -> None:
    config = ordered.Config(inputs=2, entries=4)
    found = {"ordered": ordered.sweep_a_list(config), "lags": ordered.sweep_lags(0, T=3)}
    assert ordered.summary(found, config).count(": reproduced") == 2
    found["ordered"]["gap_perturbation"] = 1e-3
    found["lags"]["gap"]["F_X"] = 1e-3
    assert ordered.summary(found, config).count(": NOT reproduced") == 2
