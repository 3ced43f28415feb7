"""Errors at the boundary: the argument, what was got, what was expected, what to do."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from nets import key

import rnn_jax as rnn

CELL = rnn.lstm(3, 4)
PARAMS = CELL.init(key(0))
XS = jnp.ones((5, 3))


def run(cell: rnn.Cell = CELL, params: Any = PARAMS, state: Any = None, xs: Any = XS, **o: Any):
    return rnn.unroll(cell, params, state, xs, **o)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"xs": jnp.ones((2, 5, 3))}, ValueError, r"x: got .*\(5, 3\), expected \(3,\).*vmap"),
        ({"xs": jnp.ones((5, 2))}, ValueError, r"x: got .*\(2,\), expected \(3,\)"),
        ({"xs": jnp.ones((5, 3), int)}, TypeError, "x: got dtype int32, expected float32"),
        ({"xs": jnp.ones((5, 3), jnp.bfloat16)}, TypeError, "x: got dtype bfloat16"),
        ({"xs": jnp.array(1.0)}, ValueError, "xs: got a scalar"),
        ({"xs": ()}, ValueError, "xs: got no array"),
        ({"xs": (XS, XS[:2])}, ValueError, r"xs: got different numbers.*'xs\[1\]': 2"),
        ({"mask": jnp.ones(4, bool)}, ValueError, r"mask: got shape \(4,\), expected \(5,\)"),
        ({"mask": jnp.ones((2, 5), bool)}, ValueError, r"mask: got .*vmap"),
        ({"mask": jnp.array(3)}, ValueError, r"mask: got shape \(\)"),
        ({"mask": jnp.ones(5)}, TypeError, "mask: got dtype float32.*length_mask"),
        ({"reset": jnp.ones(5, int)}, TypeError, "reset: got dtype int32"),
        (
            {"state": rnn.LSTMState(h=jnp.zeros(4), c=jnp.zeros(7))},
            ValueError,
            r"state\.c: got shape \(7,\), expected \(4,\).*init_state",
        ),
        ({"state": jnp.zeros(4)}, ValueError, "state: got the structure .*LSTMState"),
        (
            {"state": rnn.LSTMState(h=jnp.zeros((2, 4)), c=jnp.zeros((2, 4)))},
            ValueError,
            r"state\.h: got shape \(2, 4\).*vmap",
        ),
        (
            {"state": rnn.LSTMState(h=jnp.zeros(4, jnp.bfloat16), c=jnp.zeros(4))},
            TypeError,
            r"state\.h: got dtype bfloat16, expected float32",
        ),
        ({"params": rnn.gru(3, 4).init(key(0))}, ValueError, "params: got the structure .*GRU"),
        (
            {"params": rnn.lstm(3, 5).init(key(0))},
            ValueError,
            r"params\.w_x: got shape \(3, 20\), expected \(3, 16\)",
        ),
        (
            {"params": rnn.lstm(3, 4, bias=False).init(key(0))},
            ValueError,
            "params: got the structure",
        ),
    ],
)
def test_unroll_refuses(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run(**arguments)


def test_the_path_inside_a_stack_is_named() -> None:
    deep = rnn.readout(rnn.stack([rnn.gru(3, 4), rnn.gru(4, 2)]), 6)
    params = deep.init(key(0))
    wrong = params._replace(cell=(params.cell[0], params.cell[0]))
    with pytest.raises(ValueError, match=r"params\.cell\[1\]\.w_x: got shape \(3, 12\)"):
        run(deep, wrong)


def test_layers_that_do_not_fit_are_named() -> None:
    deep = rnn.stack([rnn.gru(3, 4), rnn.gru(5, 2)])
    with pytest.raises(ValueError, match=r"layer 1 of the stack: x: got .*\(4,\), expected \(5,\)"):
        run(deep, deep.init(key(0)))


def test_tokens_are_integers_without_axes() -> None:
    for reader in (rnn.embed(CELL, 7, 3), rnn.one_hot(rnn.lstm(7, 4), 7)):
        params = reader.init(key(0))
        with pytest.raises(TypeError, match="x: got dtype float32, expected integer tokens"):
            run(reader, params, xs=jnp.ones(5))
        with pytest.raises(ValueError, match=r"x: got .*\(2,\), expected \(\)"):
            run(reader, params, xs=jnp.ones((5, 2), int))


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", True, None])
def test_nonsense_sizes(size: Any) -> None:
    for make in (
        lambda: rnn.readout(CELL, size),
        lambda: rnn.embed(CELL, size, 3),
        lambda: rnn.one_hot(CELL, size),
    ):
        with pytest.raises((TypeError, ValueError), match=r"(output_size|num_tokens): got"):
            make()


def test_an_empty_stack_and_an_uneven_residual() -> None:
    with pytest.raises(ValueError, match="cells: got none"):
        rnn.stack([])
    with pytest.raises(ValueError, match="residual: got an output of shape"):
        run(rnn.residual(CELL))


def test_a_bias_initializer_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"shape: got \(9,\), expected \(4H,\)"):
        rnn.gru(2, 3, b_init=rnn.initializers.forget_bias()).init(key(0))
    with pytest.raises(ValueError, match="max_lag"):
        rnn.initializers.chrono(2)


def test_errors_are_the_same_under_jit() -> None:
    with pytest.raises(ValueError, match="mask: got shape"):
        jax.jit(run)(mask=jnp.ones(4, bool))
