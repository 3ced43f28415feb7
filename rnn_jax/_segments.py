"""Time cut into segments: the backward pass keeps the states between them and runs each again."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import State, is_float

Run = Callable[[State, Any], tuple[State, Any]]  # (state, inputs) -> (state, ys)


def scan(
    run: Run, state: State, inputs: Any, steps: int, segment: int, reverse: bool
) -> tuple[State, Any]:
    """`run` over one segment after the other; the last in time may be shorter."""
    count, left = divmod(steps, segment)
    cut = steps - left
    again = jax.checkpoint(run, prevent_cse=False)
    whole = jax.tree.map(lambda a: a[:cut].reshape(count, segment, *a.shape[1:]), inputs)
    short = jax.tree.map(lambda a: a[cut:], inputs)
    tail = []
    if left and reverse:
        state, ys = jax.checkpoint(run)(state, short)
        tail = [ys]
    state, ys = jax.lax.scan(again, state, whole, reverse=reverse)
    ys = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), ys)
    if left and not reverse:
        state, end = jax.checkpoint(run)(state, short)
        tail = [end]
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), ys, *tail)


def within(budget: int, run: Run, state: State, inputs: Any, steps: int) -> int | None:
    """The longest segment with which the backward pass keeps `budget` bytes; None for no segments.

    S steps keep a + b S bytes, and the states between segments c T / S.
    """
    budget = _checks.positive_int("budget", budget)
    if steps < 2:
        return None
    one, two = (_kept(run, state, inputs, length) for length in (1, 2))
    b, a = two - one, 2 * one - two
    c = sum(_bytes(leaf) for leaf in jax.tree.leaves(state))
    room = budget - a
    if b * steps <= room:
        return None
    if room <= 0 or room**2 < 4 * b * c * steps:
        best = max(1, round(math.sqrt(c * steps / b)))
        least = a + b * best + math.ceil(c * steps / best)
        raise ValueError(
            f"budget: got {budget} bytes, expected at least {least} for {steps} steps; that takes "
            f"segments of {best}. A shorter sequence, or truncated_bptt, needs less."
        )
    return max(1, int((room + math.sqrt(room**2 - 4 * b * c * steps)) / (2 * b)))


def _kept(run: Run, state: State, inputs: Any, length: int) -> int:
    """Bytes that reverse mode keeps of a run of `length` steps, told by tracing alone."""

    def pullback(state: State, inputs: Any) -> Any:
        part = jax.tree.map(lambda a: a[:length], inputs)
        leaves = jax.tree.leaves((state, part))
        tree: Any = jax.tree.structure((state, part))
        floats = [a for a in leaves if is_float(a)]

        def outputs(*values: Any) -> list[Any]:
            given = iter(values)
            out = run(*tree.unflatten([next(given) if is_float(a) else a for a in leaves]))
            return [a for a in jax.tree.leaves(out) if is_float(a)]

        return jax.vjp(outputs, *floats)[1]

    return sum(_bytes(a) for a in jax.tree.leaves(jax.eval_shape(pullback, state, inputs)))


def _bytes(a: Any) -> int:
    return math.prod(a.shape) * a.dtype.itemsize
