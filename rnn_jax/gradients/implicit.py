"""The gradient of a net that settles: through the equilibrium, not through the way to it."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary_as
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._types import StepLoss, ValueAndGrad, across, guarded, nan_unless, select
from rnn_jax.gradients._vector import gradient
from rnn_jax.unroll import restarted


def implicit(
    cell: Cell,
    loss: StepLoss,
    *,
    terms: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> ValueAndGrad:
    """Each input is held until the state no longer changes; the loss sees the equilibrium.

    h* = f(h*, x_t),  dl_t/dtheta = dl/dtheta + dl/dh (1 - D)^-1 I  at h*

    So a sequence of T inputs is a sequence of T equilibria; each is looked for from the one before
    and, where there is only one, does not depend on it. Exact for the equilibrium, whatever the
    number of iterations; memory n^2, time n^3 an input.

    Args:
      cell: any `Cell`; what is not float in its state (counters, keys) is held while it settles.
      loss: ``(y, target) -> scalar`` at an equilibrium.
      terms: None solves the linear system; K adds up K terms of its Neumann series
        1 + D + D^2 + ..., which is truncated backpropagation at the equilibrium through K + 1
        steps: biased, 0 being the cheapest.
      tolerance: settled is what changes by no more than this times (1 + its size) in a step;
        default: the 3/4 power of the precision of the dtype.
      max_iterations: steps to wait.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key=None) -> ((total,
      state), grads)``, as `bptt`; all NaN where some state did not settle. `key` is not used.

    Raises:
      ValueError: `terms` or `max_iterations` out of range; otherwise as `unroll`.

    Example:
      h = w h + x settles at x / (1 - w): for w = 1/2 and x = 3 that is 6, and dh/dw = 12.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> value_and_grad = implicit(cell, lambda y, target: y[0])
      >>> (total, h), grads = value_and_grad(params, None, jnp.array([[3.0]]), jnp.zeros(1))
      >>> print("%.3f %.3f" % (total, grads.w_h[0, 0]))
      6.000 12.000

    References:
      Almeida. A learning rule for asynchronous perceptrons with feedback in a combinatorial
      environment. 1987. Pineda. Generalization of back-propagation to recurrent neural networks.
      1987. Bai, Kolter, Koltun. Deep equilibrium models. 2019.
    """
    limit = _checks.positive_int("max_iterations", max_iterations)
    if terms is not None and (isinstance(terms, bool) or terms < 0):
        raise ValueError(f"terms: got {terms}, expected None, or a number of terms from 0 on")

    def settle(step: Step) -> tuple[Step, Array]:
        dtype = step.h.dtype
        eps = float(jnp.finfo(dtype).eps) ** 0.75 if tolerance is None else tolerance

        def going(carry: Any) -> Array:
            _, change, i = carry
            return (change > eps) & (i < limit)

        def iterate(carry: Any) -> Any:
            h, _, i = carry
            new = step.hidden(step.theta, h)
            return new, jnp.max(jnp.abs(new - h) / (1 + jnp.abs(new))), i + 1

        start = step.h, jnp.full((), jnp.inf, dtype), jnp.array(0)
        start = vary_as(start, (step.theta, step.h, step.x))
        h, change, _ = jax.lax.while_loop(going, iterate, start)
        return step.at(h), change <= eps

    def slope(step: Step) -> Array:
        r, c = step.loss_gradient()
        if terms is None:
            D = step.jacobians()[1]
            lam = jnp.linalg.solve(jnp.eye(c.size, dtype=c.dtype) - D.T, c)
            return r + step.pull(lam, 0.0)[0]
        for _ in range(terms):
            grads, back = step.pull(c, 0.0)
            r, c = r + grads, back
        return r

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
        valid = jnp.ones(T, bool) if mask is None else _checks.time_flags("mask", mask, T)
        xs, targets = _sequence.padded((xs, targets), None if mask is None else valid)
        again = jnp.zeros(T, bool) if reset is None else _checks.time_flags("reset", reset, T)
        initial = _sequence.initial(cell, params)
        first = initial if state is None else jax.tree.map(jnp.asarray, state)

        def one(old: State, now: Any) -> Any:
            x, target, valid, again = now
            start = restarted(again, initial, old)
            settled, found = settle(Step(cell, loss, params, start, x, target, valid))
            (_, value), (new, _) = settled.value()
            new = select(valid, new, old)
            value, grads = guarded((value, slope(settled)), valid)
            return new, (value, grads, found | ~valid)

        final, (values, grads, found) = jax.lax.scan(one, first, (xs, targets, valid, again))
        result = (values.sum(), final), gradient(grads.sum(0), params)
        return nan_unless(found.all(), result)

    return value_and_grad
