"""The gradient of the loss with respect to the state at each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.diagnostics._norm import norm
from rnn_jax.gradients import _output
from rnn_jax.gradients._types import StepLoss, total_loss
from rnn_jax.gradients._vector import ravel, unravel
from rnn_jax.unroll import unroll


class GradientFlow(NamedTuple):
    """Result of `gradient_flow`; n is the number of floats in the state."""

    total: Array  # [T, n], dL/dh_t
    immediate: Array  # [T, n], dl_t/dh_t through y_t alone
    total_norm: Array  # [T]
    immediate_norm: Array  # [T]


def gradient_flow(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> GradientFlow:
    """The gradient of L = sum_t l_t with respect to the state after each step.

    dL/dh_t = dl_t/dh_t + dL/dh_{t+1} dh_{t+1}/dh_t
    (total  = immediate + what comes back through the step after)

    Zeros are added to each state, once where y_t is made from it and once where the next step
    reads it, and L is differentiated with respect to them: one backward pass, whatever the cell.
    A y_t that is made from other things than h_t (from h_{t-1}, say) counts in what comes back.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      params, state, xs, mask, reset: as in `rnn_jax.unroll`.
      targets: [T, ...].

    Returns:
      `GradientFlow`; zero at masked steps, which make no state.

    Raises:
      ValueError, TypeError: as `rnn_jax.unroll`; the cell makes state and output inside one
        `jax.checkpoint`, `jax.lax.cond` or the like.

    Example:
      h_t = h_{t-1} / 2 + x_t and the loss h_4: the gradient halves at each step back.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> last = jnp.array([0.0, 0.0, 0.0, 1.0])
      >>> flow = gradient_flow(cell, lambda y, w: w * y[0], params, None, jnp.ones((4, 1)), last)
      >>> print(flow.total_norm, flow.immediate_norm)
      [0.125 0.25  0.5   1.   ] [0. 0. 0. 1.]

    References:
      Bengio, Simard, Frasconi. Learning long-term dependencies with gradient descent is
      difficult. 1994.
      Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
    """
    state, inputs = _steps.prepare(cell, params, state, xs, mask, reset)
    xs, mask, reset = inputs
    vector = ravel(state)
    zeros = jnp.zeros((inputs.valid.size, vector.size), vector.dtype)

    def total(by_output: Array, by_next: Array) -> Array:
        _, ys = unroll(
            _nudged(cell),
            params,
            state,
            (xs, by_output, by_next),
            mask=mask,
            reset=reset,
            plan=_steps.PLAIN,
        )
        return total_loss(loss, ys, targets, mask)

    immediate, back = jax.grad(total, (0, 1))(zeros, zeros)
    both = immediate + back
    return GradientFlow(both, immediate, norm(both), norm(immediate))


def _nudged(cell: Cell) -> Cell:
    """`cell` with vectors added to the new state: as its output sees it, as the next step does."""

    def project(params: Params, inputs: Any) -> Any:
        x, by_output, by_next = inputs
        return cell.project(params, x), by_output, by_next

    def step(params: Params, old: State, inputs: Any) -> tuple[State, Any]:
        z, by_output, by_next = inputs
        new, output = _output.separate(cell.step, params, old, z)
        y = output(unravel(ravel(new) + by_output, new))
        return unravel(ravel(new) + by_next, new), y

    return cell._replace(project=project, step=step)
