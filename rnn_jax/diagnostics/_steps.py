"""One step of a sequence, with all that `unroll` means by masks and resets, and the states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.unroll import Plan, unroll

PLAIN = Plan(defer=False)  # gradients of params are not what is asked for


class Inputs(NamedTuple):
    """What `unroll` reads, of a sequence or of one step."""

    xs: Any  # [T, D] or [D]
    mask: Array | None  # [T] or [] bool
    reset: Array | None  # [T] or [] bool

    @property
    def valid(self) -> Array:  # [T] or []
        if self.mask is not None:
            return self.mask
        return jnp.ones(jax.tree.leaves(self.xs)[0].shape[:1], bool)


def prepare(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    mask: Any,
    reset: Any,
    learned: bool = False,
) -> tuple[State, Inputs]:
    """The state to start from, and the inputs, checked.

    With `learned`, the first step begins with a reset: it makes the initial state from the params.
    """
    xs = jax.tree.map(jnp.asarray, xs)
    T = _checks.time_steps(xs)
    mask = None if mask is None else _checks.time_flags("mask", mask, T)
    reset = None if reset is None else _checks.time_flags("reset", reset, T)
    if state is None:
        state = _sequence.initial(cell, params)
    inputs = Inputs(_sequence.padded(xs, mask), mask, reset)
    if learned:
        first = inputs.valid & (jnp.cumsum(inputs.valid) == 1)
        inputs = inputs._replace(reset=first if reset is None else first | reset)
    return jax.tree.map(jnp.asarray, state), inputs


def step(cell: Cell, params: Params, state: State, now: Inputs) -> tuple[State, Any]:
    """``state, y`` of one step: an unroll of length one."""
    xs, mask, reset = jax.tree.map(lambda a: a[None], now)
    state, ys = unroll(cell, params, state, xs, mask=mask, reset=reset, plan=PLAIN)
    return state, jax.tree.map(lambda a: a[0], ys)


def states_before(cell: Cell, params: Params, state: State, inputs: Inputs) -> State:
    """The state before each step, with a leading axis T."""

    def advance(old: State, now: Inputs) -> tuple[State, State]:
        return step(cell, params, old, now)[0], old

    return jax.lax.scan(advance, state, inputs)[1]
