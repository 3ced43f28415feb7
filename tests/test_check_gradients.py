"""`check_gradients` passes what is right and finds planted errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, key, random_inputs, random_params

import rnn_jax as rnn
from rnn_jax.gradients import check_gradients


@pytest.mark.parametrize("name", ["lstm", "stack", "user", "embed"])
def test_right_cells_pass(name: str) -> None:
    with jax.enable_x64(True):
        cell = NETS[name]
        params = random_params(cell)
        report = check_gradients(cell, params, random_inputs(name, 5))
        assert report, str(report)
        assert len(report.leaves) == len(jax.tree.leaves(params))
        table = np.stack(list(report.slopes.values()))
        assert table.shape == (4, len(report.leaves))
        assert np.abs(table).min() > 1e-6
        assert "WRONG" not in str(report)


def test_single_precision() -> None:
    cell = rnn.gru(3, 4)
    assert check_gradients(cell, cell.init(key(0)), jax.random.normal(key(1), (6, 3)))


def planted(rule: str, factor: float) -> rnn.Cell:
    """An Elman cell whose activation has a derivative that is made by hand."""
    if rule == "jvp":
        f: Any = jax.custom_jvp(jnp.tanh)
        f.defjvp(lambda p, t: (jnp.tanh(p[0]), factor * (1 - jnp.tanh(p[0]) ** 2) * t[0]))
    else:
        f = jax.custom_vjp(jnp.tanh)
        f.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, ct: (factor * (1 - y**2) * ct,))
    return rnn.elman(3, 4, activation=f)


@pytest.mark.parametrize("rule", ["jvp", "vjp"])
def test_a_planted_error_is_found(rule: str) -> None:
    with jax.enable_x64(True):
        xs = jax.random.normal(key(1), (6, 3), float)
        cell = planted(rule, 1.001)
        report = check_gradients(cell, cell.init(key(0)), xs)
        assert not report
        assert str(report).count("<- WRONG") == 3
        if rule == "jvp":  # a custom_vjp has no forward mode, which is said, and is no agreement
            assert check_gradients(planted(rule, 1.0), cell.init(key(0)), xs)
        else:
            right = check_gradients(planted(rule, 1.0), cell.init(key(0)), xs)
            assert "forward mode: no derivative" in str(right)
            assert "WRONG" not in str(right)


def test_a_cut_recurrence_is_found() -> None:
    """The gradient of one leaf only: the table says which."""
    with jax.enable_x64(True):
        whole = rnn.elman(3, 4)

        def step(params: Any, h: jax.Array, z: jax.Array) -> Any:
            h = jnp.tanh(z + h @ jax.lax.stop_gradient(params.w_h))
            return h, h

        cell = whole._replace(step=step)
        report = check_gradients(cell, cell.init(key(0)), jax.random.normal(key(1), (6, 3), float))
        wrong = [line.split()[0] for line in str(report).splitlines() if "WRONG" in line]
        assert wrong == ["params.w_h"]


def test_own_loss_and_state() -> None:
    with jax.enable_x64(True):
        cell = NETS["lstm"]
        params = random_params(cell)
        xs, targets = random_inputs("lstm", 5), jax.random.normal(key(3), (5, 4), float)
        state = jax.tree.map(lambda a: a + 0.5, cell.init_state(params))

        def loss(y: jax.Array, target: jax.Array) -> jax.Array:
            return jnp.sum((y - target) ** 2)

        given = check_gradients(cell, params, xs, targets, loss, state=state)
        assert given, str(given)
        other = check_gradients(cell, params, xs, targets, loss)
        assert not np.allclose(given.slopes["bptt"], other.slopes["bptt"])
        with pytest.raises(ValueError, match="targets: got some without a loss"):
            check_gradients(cell, params, xs, targets)
