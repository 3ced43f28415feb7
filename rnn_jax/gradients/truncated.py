"""Backpropagation through time, cut after a number of steps."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary_as
from rnn_jax.gradients._types import (
    StepLoss,
    ValueAndGrad,
    across,
    added,
    fitting,
    rounded,
    total_loss,
    zeros,
)
from rnn_jax.gradients.bptt import bptt
from rnn_jax.unroll import unroll


def truncated_bptt(cell: Cell, loss: StepLoss, k1: int, k2: int) -> ValueAndGrad:
    """Every `k1` steps, the last `k1` losses are propagated back through at most `k2` steps.

    ``k1 = k2 = k`` is the common kind: chunks of k steps, the state carried over and the gradient
    cut at the border; a loss then reaches back between 1 and k steps. ``k1 = 1`` lets each loss
    reach back k2 steps. Exact where k2 >= T; elsewhere biased, since it leaves out every influence
    over more than k2 steps.

    All windows use the same params: the result is one gradient, the sum over the windows. Time
    grows with T (1 + k2 / k1), the memory for going back with k2, whatever T.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      k1: steps between two backward passes, at least 1.
      k2: steps that a backward pass goes back, at least k1.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key=None) -> ((total,
      state), grads)``, as `bptt`; the total and the state are exact.

    Raises:
      ValueError: k1 or k2 is out of range; otherwise as `unroll`.

    Example:
      h_t = w h_{t-1} + x_t with x = (1, 0, 0) and the loss h_3 = w^2, so dL/dw = h_2 + w h_1 = 2 w.
      Cut after one step, the second term is missing.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> xs, last = jnp.array([[1.0], [0.0], [0.0]]), jnp.array([0.0, 0.0, 1.0])
      >>> for k2 in (1, 2, 3):
      ...     value_and_grad = truncated_bptt(cell, lambda y, w: w * y[0], k1=1, k2=k2)
      ...     print(k2, value_and_grad(params, None, xs, last)[1].w_h)
      1 [[0.5]]
      2 [[1.]]
      3 [[1.]]

    References:
      Williams, Peng. An efficient gradient-based algorithm for on-line training of recurrent
      network trajectories. 1990 (there BPTT(h; h') with h = k2, h' = k1).
    """
    k1, k2 = _checks.positive_int("k1", k1), _checks.positive_int("k2", k2)
    if k2 < k1:
        raise ValueError(f"k2: got {k2} with k1 = {k1}, expected at least k1")

    @across
    def value_and_grad(
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]:
        del key
        T = _checks.time_steps(xs)
        fitting(targets, T)
        valid = jnp.ones(T, bool) if mask is None else _checks.time_flags("mask", mask, T)
        xs, targets = _sequence.padded((xs, targets), None if mask is None else valid)
        restart = None if reset is None else _checks.time_flags("reset", reset, T)
        if T == 0:
            return bptt(cell, loss)(params, state, xs, targets, mask=mask)

        def steps(start: Array, length: int) -> tuple[Any, Any, Array, Any]:
            """A piece of the sequence; what lies outside of it is masked."""
            t = start + jnp.arange(length, dtype=jnp.int32)
            at = jnp.clip(t, 0, T - 1)
            found = jax.tree.map(lambda a: a[at], (xs, targets, restart))
            return *found[:2], valid[at] & (t >= 0) & (t < T), found[2]

        def window(params: Params, old: State, start: Array) -> tuple[Array, State]:
            if state is None:  # a learned initial state has a gradient too
                learned = _sequence.initial(cell, params)
                old = jax.tree.map(lambda a, b: jnp.where(start <= 0, a, b), learned, old)
            window_xs, window_targets, now, again = steps(start, k2)
            final, ys = unroll(cell, params, old, window_xs, mask=now, reset=again)
            last = jnp.arange(k2) >= k2 - k1
            return total_loss(loss, ys, window_targets, now & last), final

        def block(carry: Any, start: Array) -> tuple[Any, State]:
            """Windows overlap, but begin k1 steps apart: so far goes the state before them."""
            old, sums = carry
            (value, final), grad = jax.value_and_grad(window, has_aux=True)(params, old, start)
            next_xs, _, now, again = steps(start, k1)
            following, _ = unroll(cell, params, old, next_xs, mask=now, reset=again)
            return (following, added(sums, (value, grad))), final

        first = _sequence.initial(cell, params) if state is None else state
        starts = jnp.arange(k1, T + k1, k1, dtype=jnp.int32) - k2
        shape, _ = jax.eval_shape(window, params, first, starts[0])
        one = shape, jax.tree.map(jnp.asarray, params)
        start = vary_as((first, zeros(one)), (params, first, xs, targets, valid, restart))
        (_, sums), finals = jax.lax.scan(block, start, starts)
        total, grads = rounded(sums, one)
        return (total, jax.tree.map(lambda a: a[-1], finals)), grads

    return value_and_grad
