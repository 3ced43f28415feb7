"""A regularizer that keeps the length of the gradient on its way back in time."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Cell, Params, State, is_float
from rnn_jax.diagnostics import _steps
from rnn_jax.diagnostics._norm import norm
from rnn_jax.diagnostics.flow import gradient_flow
from rnn_jax.gradients._types import StepLoss
from rnn_jax.gradients._vector import ravel, unravel


def pascanu_regularizer(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> Array:
    """Omega = sum_t (||lam_t D_t|| / ||lam_t|| - 1)^2 with lam_t = dL/dh_t, D_t = dh_t/dh_{t-1}.

    A term to add to the loss, with a weight. It is small where a step back changes the length of
    the gradient little, in the direction that matters for L, and says nothing of others. Its own
    gradient holds the states and the lam_t constant and goes through the D_t alone, which is what
    the paper calls the immediate one.

    Args, errors: as `gradient_flow`.

    Returns:
      [] float. Masked steps, resets and steps with lam_t = 0 do not count. Of a batch, take the
      mean over `jax.vmap`.

    Example:
      h_t = h_{t-1} / 2 + x_t halves the gradient in each of three steps; d/dw sum (w - 1)^2 = -3.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> def omega(params):
      ...     xs, targets = jnp.ones((3, 1)), jnp.zeros(3)
      ...     return pascanu_regularizer(cell, lambda y, _: y[0], params, None, xs, targets)
      >>> value, grads = jax.value_and_grad(omega)(params)
      >>> print(value, grads.w_h)
      0.75 [[-3.]]

    References:
      Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013
      (equation 10 is its gradient).

    Elsewhere: the code that the authors published takes the ratio of the *squared* norms, and
    divides the sum by the number of steps with ||lam_t||^2 >= 1e-20. The paper's state is what
    goes into the nonlinearity, x_t = f(x_{t-1}) W + ..., so that D_t depends on W alone once the
    states are constant. `rnn_jax.elman` has the state h_t = f(...), whose D_t has the factor f' at
    a place that depends on all the weights; for the numbers of the paper, write the cell its way.
    """
    fixed, state, xs, targets = _constant((params, state, xs, targets))
    flow = gradient_flow(cell, loss, fixed, state, xs, targets, mask=mask, reset=reset)
    state, inputs = _steps.prepare(cell, fixed, state, xs, mask, reset)
    states = _steps.states_before(cell, fixed, state, inputs)

    def stretch(lam: Array, old: State, now: _steps.Inputs) -> Array:
        def run(v: Array) -> Array:
            return ravel(_steps.step(cell, params, unravel(v, old), now)[0])

        (back,) = jax.vjp(run, ravel(old))[1](lam)
        return norm(back)

    length = norm(flow.total)
    counts = inputs.valid & (length > 0)
    if inputs.reset is not None:
        counts &= ~inputs.reset
    length = jnp.where(counts, length, jnp.ones_like(length))
    unit = flow.total / length[:, None]
    terms = (jax.vmap(stretch)(unit, states, inputs) - 1) ** 2
    return jnp.sum(jnp.where(counts, terms, jnp.zeros_like(terms)))


def _constant(tree: Any) -> Any:
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if is_float(a) else a, arrays)
