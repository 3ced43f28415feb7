"""The gradient along random directions, forward."""

from typing import Any

import jax

from rnn_jax import _checks
from rnn_jax._types import Array, Cell
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import Draw, StepLoss, signs

Trace = tuple[Array, Array]  # directions [K, P], and how the state moves along them [K, n]


def forward_gradient(
    cell: Cell, loss: StepLoss, *, directions: int = 1, draw: Draw = signs
) -> Online:
    """An unbiased estimate of the gradient from forward-mode derivatives alone.

    dL/dtheta ~ mean over K directions v of (dL/dtheta . v) v

    One forward pass with its derivative for each direction, memory K (n + P). The directions stay
    the same for a whole sequence. With signs and one direction, the standard deviation of the
    whole gradient is sqrt(P - 1) times its norm: of use for few params, and to check others.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      directions: K.
      draw: ``(key, shape, dtype) -> v`` with zero mean and the identity as covariance.

    Returns:
      `Online`: called as `bptt`, with a `key`; or one step at a time.

    Raises:
      ValueError: `directions` is not positive.
      TypeError: no key; otherwise as `unroll`.

    Example:
      >>> import jax.numpy as jnp
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = forward_gradient(cell, lambda y, target: y[0], directions=1000)
      >>> xs, key = jnp.array([[1.0], [3.0]]), jax.random.key(0)
      >>> grads = value_and_grad(params, None, xs, xs, key=key)[1]  # of 4 w_x + w_h w_x
      >>> print(grads.w_x.round(), grads.w_h.round())
      [[6.]] [[1.]]

    References:
      Baydin, Pearlmutter, Syme, Wood, Torr. Gradients without backpropagation. 2022.
    """
    K = _checks.positive_int("directions", directions)

    def init(origin: Origin, step: Step, key: Any) -> Trace:
        v = draw(key, (K, step.theta.size), step.theta.dtype)
        return v, jax.vmap(origin.push)(v)

    def update(step: Step, trace: Trace, key: Any) -> tuple[Trace, Array]:
        v, s = trace
        s, slopes = jax.vmap(step.push)(v, s)
        return (v, s), slopes.astype(v.dtype) @ v / K

    return Online("forward_gradient", cell, loss, lambda step: Rule(init, update), draws=True)
