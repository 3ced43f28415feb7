"""The gradient of a net that settles: through the equilibrium, not through the way to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary_as
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._types import (
    StepLoss,
    ValueAndGrad,
    across,
    fitting,
    guarded,
    or_nan,
    select,
)
from rnn_jax.gradients._vector import gradient
from rnn_jax.unroll import restarted


class Equilibria(NamedTuple):
    """Where the state of a net comes to rest under each input."""

    states: State  # [T, ...]
    iterations: Array  # [T] int, steps waited
    converged: Array  # [T] bool; true for a masked step


def equilibria(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> Equilibria:
    """The states h* = f(h*, x_t) that `implicit` differentiates, and whether they were found.

    h <- f(h, x_t) until it changes no more, then one step of Newton's method, whose next step would
    tell how far away h* still is: a net that creeps has not arrived where it hardly moves.

    Args:
      cell: any `Cell`; what is not float in its state (counters, keys) is held while it settles.
      params, state, xs, mask, reset: as in `unroll`.
      tolerance: settled is what changes by no more than this times (1 + its size) in a step, and is
        no further than that from h*; default: the 3/4 power of the precision of the dtype.
      max_iterations: steps to wait for each input.

    Returns:
      `Equilibria`. Where `converged` is false the state is the last one tried, and `implicit` is
      NaN. It cannot be differentiated in reverse mode; `implicit` gives the gradient.

    Raises:
      ValueError: `max_iterations` is not positive; otherwise as `unroll`.

    Example:
      h = w h + x settles at x / (1 - w) for |w| < 1, and nowhere for w = 2:

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> found = equilibria(cell, params, None, jnp.array([[3.0]]))
      >>> print(f"{found.states[0, 0]:.3f}", found.converged)
      6.000 [ True]
      >>> twice = params._replace(w_h=4 * params.w_h)
      >>> print(equilibria(cell, twice, None, jnp.array([[3.0]])).converged)
      [False]
    """
    limit = _checks.positive_int("max_iterations", max_iterations)

    def found(step: Step) -> tuple[Step, Any]:
        step, iterations, settled = _settle(step, tolerance, limit)
        step, close = _arrive(step, tolerance)
        return step, (iterations, settled & close)

    def nothing(y: Any, target: Any) -> Array:
        return jnp.zeros(())

    said = _over(found, cell, nothing, params, state, xs, None, mask, reset)[1]
    return Equilibria(*said)


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
      state), grads)``, as `bptt`; all NaN where some state did not settle, or settled where no
      gradient exists (1 - D singular): ``equilibria(...).converged`` says under which input. `key`
      is not used.

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

    def found(step: Step) -> tuple[Step, Any]:
        step, _, settled = _settle(step, tolerance, limit)
        if terms is None:
            step, close = _arrive(step, tolerance)
            settled &= close
        r, c = step.loss_gradient()
        if terms is None:
            lam = jnp.linalg.solve(_slope(step).T, c)
            r = r + step.pull(lam, 0.0)[0]
        for _ in range(terms or 0):
            grads, back = step.pull(c, 0.0)
            r, c = r + grads, back
        return step, (step.value()[0][1], r, settled)

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
        params = jax.tree.map(jnp.asarray, params)
        final, (_, values, grads, settled) = _over(
            found, cell, loss, params, state, xs, targets, mask, reset
        )
        result = (values.sum(), final), gradient(grads.sum(0), params)
        return or_nan(settled.all(), result)

    return value_and_grad


def _over(
    found: Callable[[Step], tuple[Step, Any]],
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    mask: Array | None,
    reset: Array | None,
) -> tuple[State, Any]:
    """The last equilibrium, and what `found` says of each; its last word is true where masked."""
    params, xs, targets = jax.tree.map(jnp.asarray, (params, xs, targets))
    T = _checks.time_steps(xs)
    fitting(targets, T)
    valid = jnp.ones(T, bool) if mask is None else _checks.time_flags("mask", mask, T)
    again = jnp.zeros(T, bool) if reset is None else _checks.time_flags("reset", reset, T)
    xs, targets = _sequence.padded((xs, targets), None if mask is None else valid)
    initial = _sequence.initial(cell, params)
    first = initial if state is None else jax.tree.map(jnp.asarray, state)
    _checks.same_shapes("state", first, initial, "It comes from init_state.", dtypes=True)

    def one(old: State, now: Any) -> Any:
        x, target, valid, again = now
        start = restarted(again, initial, old)
        settled, (*said, close) = found(Step(cell, loss, params, start, x, target, valid))
        new = select(valid, settled.value()[1][0], old)
        return new, (new, *guarded(said, valid), close | ~valid)

    final, (states, *said) = jax.lax.scan(one, first, (xs, targets, valid, again))
    return final, (states, *said)


def _settle(step: Step, tolerance: float | None, limit: int) -> tuple[Step, Array, Array]:
    """The step from where the state no longer changes, the iterations, whether that is so."""
    eps = _tolerance(step, tolerance)

    def going(carry: Any) -> Array:
        _, change, i = carry
        return (change > eps) & (i < limit)

    def iterate(carry: Any) -> Any:
        h, _, i = carry
        new = step.hidden(step.theta, h)
        return new, jnp.max(jnp.abs(new - h) / (1 + jnp.abs(new)), initial=0.0), i + 1

    start = step.h, jnp.full((), jnp.inf, step.h.dtype), jnp.array(0)
    start = vary_as(start, (step.theta, step.h, step.x))
    h, change, iterations = jax.lax.while_loop(going, iterate, start)
    return step.at(h), iterations, change <= eps


def _arrive(step: Step, tolerance: float | None) -> tuple[Step, Array]:
    """A Newton step from where the state settled, and whether a second one would not go far."""

    def ahead(step: Step) -> Array:
        return jnp.linalg.solve(_slope(step), step.hidden(step.theta, step.h) - step.h)

    arrived = step.at(step.h + ahead(step))
    distance = jnp.max(jnp.abs(ahead(arrived)) / (1 + jnp.abs(arrived.h)), initial=0.0)
    return arrived, distance <= _tolerance(step, tolerance)


def _slope(step: Step) -> Array:
    """1 - D, [n, n]."""
    return jnp.eye(step.h.size, dtype=step.h.dtype) - step.jacobians()[1]


def _tolerance(step: Step, tolerance: float | None) -> float:
    return float(jnp.finfo(step.h.dtype).eps) ** 0.75 if tolerance is None else tolerance
