"""Real-time recurrent learning: the exact gradient, carried forward."""

from rnn_jax._types import Array, Cell, Key
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import StepLoss


def rtrl(cell: Cell, loss: StepLoss) -> Online:
    """The exact gradient at every step, without going back in time.

    M_t = D_t M_{t-1} + I_t,  dL_t/dtheta = dl_t/dh_{t-1} M_{t-1} + dl_t/dtheta

    with M = dh/dtheta: [n, P] for all n numbers of the state and all P of the params, D the
    derivative of a step by the state, I by the params. Memory n P, whatever T; time n^2 P a step:
    n^4 for a dense layer.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.

    Returns:
      `Online`: called as `bptt`, or one step at a time with `init` and `update`.

    Raises:
      ValueError, TypeError: as `unroll`.

    Example:
      As `bptt`, a step at a time: h_2 = w + 3 and d(h_2 - 4)^2/dw = 2 at w = 2.

      >>> import jax, jax.numpy as jnp
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> algorithm = rtrl(cell, lambda y, target: (y[0] - target) ** 2)
      >>> carry = algorithm.init(params, jnp.ones(1))
      >>> for x, target in (1.0, 1.0), (3.0, 4.0):
      ...     carry, info = algorithm.update(params, carry, jnp.array([x]), jnp.array(target))
      >>> print(info.loss, info.grads.w_h)
      1.0 [[2.]]

    References:
      Williams, Zipser. A learning algorithm for continually running fully recurrent neural
      networks. 1989.
    """

    def init(origin: Origin, step: Step, key: Key | None) -> Array:
        return origin.jacobian()

    def update(step: Step, M: Array, key: Key | None) -> tuple[Array, Array]:
        I, D = step.jacobians()
        r, c = step.loss_gradient()
        return D @ M + I, r + c @ M

    return Online("rtrl", cell, loss, Rule(init, update))
