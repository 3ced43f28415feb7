"""Backpropagation through time."""

from typing import Any

import jax

from rnn_jax._types import Array, Cell, Key, Params, State
from rnn_jax.gradients._types import StepLoss, ValueAndGrad, total_loss
from rnn_jax.unroll import unroll


def bptt(
    cell: Cell, loss: StepLoss, *, segment: int | None = None, budget: int | None = None
) -> ValueAndGrad:
    """The exact gradient, by reverse-mode differentiation of the unrolled net.

    dL/dtheta = sum_t dL/dh_t dh_t/dtheta,  dL/dh_t = dl_t/dh_t + dL/dh_{t+1} dh_{t+1}/dh_t

    Time and memory grow linearly with T; memory holds what every step needs to go back, or, with a
    `segment` or a `budget`, the states between segments, for one more forward pass.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      segment: steps in a segment, as in `unroll`.
      budget: bytes that may be kept, as in `unroll`.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key=None) -> ((total,
      state), grads)`` for one sequence; xs: [T, D], targets: [T, ...], mask, reset: [T] bool as in
      `unroll`. `key` is not used.

    Raises:
      ValueError, TypeError: as `unroll`.

    Example:
      h_t = w h_{t-1} + x_t with w = 2 and the squared error of the last of two steps: h_2 = w + 3,
      so that d(h_2 - 4)^2/dw = 2 (h_2 - 4) h_1 = 2.

      >>> import jax.numpy as jnp
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = bptt(cell, lambda y, target: target[0] * (y[0] - target[1]) ** 2)
      >>> targets = jnp.array([[0.0, 0.0], [1.0, 4.0]])
      >>> (total, h), grads = value_and_grad(params, None, jnp.array([[1.0], [3.0]]), targets)
      >>> print(total, h, grads.w_h)
      1.0 [5.] [[2.]]

    References:
      Werbos. Backpropagation through time: what it does and how to do it. 1990.
      Chen, Xu, Zhang, Guestrin. Training deep nets with sublinear memory cost. 2016 (segments).
    """

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

        def total(params: Params) -> tuple[Array, State]:
            final, ys = unroll(
                cell, params, state, xs, mask=mask, reset=reset, segment=segment, budget=budget
            )
            return total_loss(loss, ys, targets, mask), final

        return jax.value_and_grad(total, has_aux=True)(params)

    return value_and_grad
