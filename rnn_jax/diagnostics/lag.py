"""The gradient, split by lag: the number of steps between a loss and what it depends on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.diagnostics._norm import norm
from rnn_jax.diagnostics.flow import gradient_flow
from rnn_jax.gradients._types import StepLoss
from rnn_jax.gradients._vector import ravel, unravel


class Influence(NamedTuple):
    """Result of `influence`."""

    norms: Array  # [T, T], ||dl_{t+lag}/dh_t|| for each t and lag
    by_lag: Array  # [T], its sum over t


def influence(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> Influence:
    """How much of each loss reaches each earlier state: ||q_s D_s ... D_{t+1}||, lag = s - t.

    q_s = dl_s/dh_s through y_s alone, D_t = dh_t/dh_{t-1}

    A backward pass for each of the T losses, all at once: T times the cost of `gradient_flow`.

    Args, errors: as `gradient_flow`.

    Returns:
      `Influence`; lags count valid steps, and masked steps have zeros.

    Example:
      h_t = h_{t-1} / 2 + x_t and the losses h_t: each loses half at each step back.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> ones = jnp.ones((3, 1))
      >>> norms, by_lag = influence(cell, lambda y, _: y[0], params, None, ones, ones)
      >>> print(norms)
      [[1.   0.5  0.25]
       [1.   0.5  0.  ]
       [1.   0.   0.  ]]
      >>> print(by_lag, memory_horizon(by_lag))
      [3.   1.   0.25] 2
    """
    flow = gradient_flow(cell, loss, params, state, xs, targets, mask=mask, reset=reset)
    state, inputs = _steps.prepare(cell, params, state, xs, mask, reset)
    norms, _ = _by_lag(cell, loss, params, state, inputs, targets, weights=None)
    norms = jnp.concatenate([flow.immediate_norm[:, None], norms], axis=1)[:, : len(norms)]
    return Influence(norms, norms.sum(axis=0))


def gradients_by_lag(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> Params:
    """The gradient of the params, split by lag: sum_s dl_s/dh_s dh_s/dh_{s-lag} dh_{s-lag}/dtheta.

    The sum over all lags is the gradient; that over the lags below k is what `truncated_bptt` gives
    with k1 = 1, k2 = k. The differences between an algorithm and these partial sums say which
    lags it misses. A learned initial state counts as part of the first step.

    Args, errors: as `gradient_flow`. It takes T times the time of a gradient, and its memory.

    Returns:
      A pytree like params, each array with a leading axis T, the lag; lags count valid steps.

    Example:
      h_t = w h_{t-1} + x_t with w = 2, x = (1, 1, 1) and the loss h_3 = w^2 + w + 1:
      dL/dw = 2 w + 1 is h_2 = 3 at lag 0 and w h_1 = 2 at lag 1.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> xs, last = jnp.ones((3, 1)), jnp.array([0.0, 0.0, 1.0])
      >>> grads = gradients_by_lag(cell, lambda y, w: w * y[0], params, None, xs, last)
      >>> print(grads.w_h.ravel())
      [3. 2. 0.]
    """
    params = jax.tree.map(jnp.asarray, params)
    start, inputs = _steps.prepare(cell, params, state, xs, mask, reset, learned=state is None)
    return _by_lag(cell, loss, params, start, inputs, targets, weights=params)[1]


def memory_horizon(by_lag: Array, fraction: float = 0.95) -> Array:
    """The smallest lag such that the lags up to it hold `fraction` of the gradient.

    A truncation that keeps it has k2 = horizon + 1 steps.

    Args:
      by_lag: [..., T], not negative: what each lag holds, such as `Influence.by_lag`, its mean
        over a batch, or the norms of `gradients_by_lag`.
      fraction: 0 < fraction <= 1.

    Returns:
      [...] int; 0 where there is no gradient.

    Raises:
      ValueError: `fraction` is out of range, or there is no lag.

    Example:
      >>> print(memory_horizon(jnp.array([4.0, 3.0, 2.0, 1.0]), 0.7))
      1
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, expected a number with 0 < fraction <= 1")
    by_lag = jnp.asarray(by_lag)
    if by_lag.shape[-1:] in ((), (0,)):
        raise ValueError(f"by_lag: got shape {by_lag.shape}, expected [..., T] with T > 0")
    held = jnp.cumsum(by_lag, axis=-1)
    return jnp.argmax(held >= fraction * held[..., -1:], axis=-1)


def _by_lag(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State,
    inputs: _steps.Inputs,
    targets: Any,
    weights: Params | None,
) -> tuple[Array, Params]:
    """Norms of dl_{t+lag}/dh_t [T, T - 1] for lags from 1, and the gradients of `weights` by lag.

    `weights` are the params, or None where these are not asked for.
    """
    T = inputs.valid.size
    states = _steps.states_before(cell, params, state, inputs)

    def back(carry: Any, at: Any) -> tuple[Any, Array]:
        """From rows dl_{t+lag}/dh_t to dl_{t-1+lag}/dh_{t-1}; a masked step is no step."""
        rows, grads = carry
        old, now, valid, target = at

        def run(weights: Params, v: Array) -> tuple[Array, Array]:
            theta = params if weights is None else weights
            new, y = _steps.step(cell, theta, unravel(v, old), now)
            l = loss(y, target)
            return ravel(new), jnp.where(valid, l, jnp.zeros_like(l))

        (_, l), pull = jax.vjp(run, weights, ravel(old))
        own = (jnp.arange(T) == 0).astype(l.dtype)
        by_weights, earlier = jax.vmap(pull)((rows, own))
        earlier = jnp.concatenate([jnp.zeros_like(rows[:1]), earlier[:-1]])
        grads = jax.tree.map(jnp.add, grads, by_weights)
        return (jnp.where(valid, earlier, rows), grads), jnp.where(valid, norm(rows[1:]), 0)

    vector = ravel(state)
    rows = jnp.zeros((T, vector.size), vector.dtype)
    grads = jax.tree.map(lambda p: jnp.zeros((T, *p.shape), p.dtype), weights)
    at = states, inputs, inputs.valid, jax.tree.map(jnp.asarray, targets)
    (_, grads), norms = jax.lax.scan(back, (rows, grads), at, reverse=True)
    return norms, grads
