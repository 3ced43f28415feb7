"""How often gates are shut or open."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.unroll import unroll


class GateSaturation(NamedTuple):
    """Result of `gate_saturation`."""

    shut: Any  # pytree like the gates, [H] each: share of the valid steps near 0
    open: Any  # the same, near 1


def gate_saturation(
    cell: Cell,
    gates: Callable[[Params, State, Any], Any],
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    margin: float = 0.1,
) -> GateSaturation:
    """The share of steps in which each unit of a gate is below `margin`, or above 1 - `margin`.

    A gate that is always open or shut passes no gradient to its own weights.

    Args:
      cell: any `Cell`.
      gates: ``(params, state, z) -> pytree of arrays`` with values from 0 to 1. A cell does not
        show its gates, so you write down those that you want to see, with the arguments of
        ``cell.step``: the state before the step, and the projected input.
      params, state, xs, mask, reset: as in `rnn_jax.unroll`.
      margin: 0 <= margin < 0.5.

    Returns:
      `GateSaturation`; zero where no step is valid. The mean over units and gates, or over a batch
      that `jax.vmap` adds, is yours to take.

    Raises:
      ValueError: `margin` is out of range; otherwise, and TypeError, as `rnn_jax.unroll`.

    Example:
      The gates of `rnn_jax.lstm` and of the `rnn_jax.gru` kinds, whose parts stand side by side:

      >>> import rnn_jax
      >>> def lstm_gates(params, state, z):
      ...     i, f, _, o = jnp.split(jax.nn.sigmoid(z + state.h @ params.w_h), 4)
      ...     return {"input": i, "forget": f, "output": o}
      >>> def gru_gates(params, h, z):
      ...     rz, n = z
      ...     r, z = jnp.split(jax.nn.sigmoid(rz + h @ params.w_h[:, : rz.size]), 2)
      ...     return {"reset": r, "update": z}
      >>> cell = rnn_jax.lstm(3, 4, b_init=rnn_jax.initializers.forget_bias(5.0))
      >>> params = cell.init(jax.random.key(0))
      >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
      >>> result = gate_saturation(cell, lstm_gates, params, None, xs)
      >>> for name in result.open:
      ...     print(f"{name}: open {result.open[name].mean():.2f} of the time")
      forget: open 0.96 of the time
      input: open 0.01 of the time
      output: open 0.01 of the time

      In a stack, a layer has its part of params and state; z belongs to the first one.

    References:
      Karpathy, Johnson, Fei-Fei. Visualizing and understanding recurrent networks. 2015.
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin: got {margin}, expected a number with 0 <= margin < 0.5")

    def step(params: Params, old: State, z: Any) -> tuple[State, Any]:
        return cell.step(params, old, z)[0], gates(params, old, z)

    _, inputs = _steps.prepare(cell, params, state, xs, mask, reset)
    watched = cell._replace(step=step)
    _, values = unroll(watched, params, state, inputs.xs, mask=mask, reset=reset, plan=_steps.PLAIN)
    count = jnp.maximum(inputs.valid.sum(), 1)

    def share(flags: Array) -> Array:
        valid = inputs.valid.reshape((-1,) + (1,) * (flags.ndim - 1))
        return (flags & valid).sum(axis=0) / count

    return GateSaturation(
        jax.tree.map(lambda a: share(a < margin), values),
        jax.tree.map(lambda a: share(a > 1 - margin), values),
    )
