"""Unbiased online recurrent optimization: the influence of the params as one random product."""

from typing import Any

import jax.numpy as jnp

from rnn_jax._types import Array, Cell
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import Draw, StepLoss, signs

Trace = tuple[Array, Array]  # s [n], theta [P]: their product stands for M [n, P]
EPSILON = 1e-7  # the first trace is zero, and 0 / 0 would be NaN


def uoro(cell: Cell, loss: StepLoss, *, draw: Draw = signs) -> Online:
    """An unbiased estimate of the gradient at every step, in the memory of the params.

    M_t is replaced by s theta^T whose mean it is; with random signs nu:

    s' = a rho_0 + nu rho_1,  theta' = theta / rho_0 + nu^T I_t / rho_1,  a = D_t s
    rho_0^2 = |theta| / |a|,  rho_1^2 = |nu^T I_t| / |nu|

    The loss of a step sees its own I_t exactly; only the past is estimated. Two backward passes
    and one forward pass through each step, memory n + P. The variance grows with n and T.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      draw: ``(key, shape, dtype) -> nu`` with zero mean and the identity as covariance, symmetric
        about zero.

    Returns:
      `Online`: called as `bptt`, with a `key`; or one step at a time.

    Raises:
      TypeError: no key; otherwise as `unroll`.

    Example:
      h_2 = w_h w_x + 3 w_x at w_h = 1/2, w_x = 1: the mean of many draws nears the gradient.

      >>> import jax
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> value_and_grad = uoro(cell, lambda y, w: w * y[0])
      >>> xs, last = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> draws = jax.vmap(lambda k: value_and_grad(params, None, xs, last, key=k)[1])(keys)
      >>> print(draws.w_x.mean().round(1), draws.w_h.mean().round(1))
      3.5 1.0

    References:
      Tallec, Ollivier. Unbiased online recurrent optimization. 2017.
    """

    def init(origin: Origin, step: Step, key: Any) -> Trace:
        nu = draw(key, step.h.shape, step.h.dtype)
        theta = origin.pull(nu)
        return jnp.where(jnp.any(theta != 0), nu, jnp.zeros_like(nu)), theta

    def update(step: Step, trace: Trace, key: Any) -> tuple[Trace, Array]:
        s, theta = trace
        nu = draw(key, s.shape, s.dtype)
        a = step.push(jnp.zeros_like(theta), s)[0]
        b = step.pull(nu, 0.0)[0]
        r, c = step.loss_gradient()
        past, now = balance(a, theta), balance(nu, b)
        return (a * past + nu * now, theta / past + b / now), r + (c @ s) * theta

    return Online("uoro", cell, loss, Rule(init, update), draws=True)


def balance(a: Array, b: Array) -> Array:
    """The factor by which a must grow, and b shrink, so that both have the same norm."""
    return jnp.sqrt((jnp.linalg.norm(b) + EPSILON) / (jnp.linalg.norm(a) + EPSILON))
