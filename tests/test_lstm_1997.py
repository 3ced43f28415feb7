"""The first LSTM: its net, its gradient, and when it has learned."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lstm_1997
from experiments.harness import search
from experiments.lstm_1997 import Config
from rnn_jax.gradients import bptt


@pytest.mark.parametrize(
    ("name", "weights"), [("adding", 93), ("temporal_order", 156), ("two_sequences", 102)]
)
def test_the_first_lstm(name: str, weights: int, x64: None) -> None:
    """As many weights as published, its step in NumPy, and its truncated gradient."""
    problem = lstm_1997.PROBLEMS[name]
    model = lstm_1997.make_model(problem)
    params = model.init(jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(params)) == weights
    given = problem.input_gates + problem.output_gates
    assert params.b[: len(given)].tolist() == list(given)
    drawn = np.concatenate([a.ravel() for a in jax.tree.leaves(params)])
    assert (np.abs(drawn) <= 0.1).sum() == weights - len(given)
    params = jax.tree.map(lambda a: jnp.where(jnp.abs(a) <= 0.1, 10 * a, a), params)

    blocks = len(problem.input_gates)
    cells, units = problem.cells * blocks, (2 + problem.cells) * blocks
    rng = np.random.default_rng(0)
    h, c, z = rng.normal(size=units), rng.normal(size=cells), rng.normal(size=units)
    state, y = model.step(params, lstm_1997.State(jnp.array(h), jnp.array(c)), jnp.array(z))

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    net = z + h @ np.asarray(params.w_h)
    for j in range(cells):
        block = j // problem.cells
        gates = sigmoid(net[block]), sigmoid(net[blocks + block])
        new = c[j] + gates[0] * (4 * sigmoid(net[2 * blocks + j]) - 2)
        np.testing.assert_allclose(state.c[j], new, rtol=1e-12)
        out = gates[1] * (2 * sigmoid(new) - 1)
        np.testing.assert_allclose(state.h[2 * blocks + j], out, rtol=1e-12)
    np.testing.assert_allclose(state.h[: 2 * blocks], sigmoid(net[: 2 * blocks]), rtol=1e-12)
    out = np.asarray(state.h[2 * blocks :]) @ params.w_y
    out = out + params.b_y if problem.output_bias else out
    np.testing.assert_allclose(y, out if name == "adding" else sigmoid(out), rtol=1e-12)

    def cut(params: Any, state: lstm_1997.State, z: Any) -> Any:
        return model.step(params, state._replace(h=jax.lax.stop_gradient(state.h)), z)

    batch = lstm_1997.sequence(problem, jax.random.key(1), 30)
    by_bptt = jax.jit(bptt(model._replace(step=cut), lstm_1997.loss))
    (total, _), by_hand = by_bptt(params, None, batch.xs, batch, mask=batch.mask)
    moved = {}
    for gradient in lstm_1997.GRADIENTS:
        update = jax.jit(lstm_1997.make_update(problem, 30, gradient))
        new, error = update(params, jax.random.key(1))
        moved[gradient] = jax.tree.map(lambda p, n: (p - n) / problem.rate, params, new)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-13), moved["truncated"], by_hand
    )
    assert jnp.abs(moved["full"].w_h - by_hand.w_h).max() > 1e-6
    if name == "adding":
        assert error == pytest.approx(float(jnp.sqrt(2 * total)), rel=1e-9)


def test_success_of_1997_is_2000_right_ones_in_a_row_with_a_small_mean() -> None:
    problem = lstm_1997.PROBLEMS["adding"]  # right below 0.04, mean below 0.01
    errors = np.full((5000, 4), 0.009)
    errors[:500, 0] = 1.0
    errors[700, 1] = errors[4000, 1] = 0.04
    errors[:, 2] = 0.011
    errors[[1500, 3400], 3] = 0.5
    assert lstm_1997.first_success(errors, problem).tolist() == [2500, 2701, 0, 0]
    assert not lstm_1997.first_success(errors[:1999], problem).any()


def test_two_sequences_are_judged_by_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the errors in training were; the last of them decide for the other problems."""
    errors = np.full((2, lstm_1997.NEW), 0.009)
    errors[1, 0] = 0.2  # with a mean below 0.01 still

    def make_test(problem: Any, length: int, key: Any, count: int) -> Any:
        return lambda nets: errors

    monkeypatch.setattr(lstm_1997, "make_test", make_test)
    config = Config(seeds=2, updates=2)

    def row(problem: lstm_1997.ProblemName) -> search.Row:
        it = lstm_1997.find(config, 30, problem, "truncated")
        return it.rows(list(search.run(it, budget=2))[-1])[0]

    assert row("two_sequences")["solved_at"] == [2, 0]
    assert row("two_sequences")["wrong_of_2560"] == [0, 1]
    assert row("temporal_order")["solved_at"] == [0, 0]
