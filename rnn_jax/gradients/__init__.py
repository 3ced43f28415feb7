"""Gradient algorithms: the derivative of a sum of losses over time, for any cell.

They share one signature, and call `rnn_jax.unroll` or `cell.step`; no cell knows of them:

    value_and_grad = algorithm(cell, loss)
    (total, state), grads = value_and_grad(params, state, xs, targets, mask=None, key=None)

`loss` is ``(y, target) -> scalar`` of one step, `total` its sum over the valid steps, `grads` a
pytree like `params`. No gradient is returned for `state`: the state that comes back goes back in
for the next window. A batch: ``jax.vmap(value_and_grad, in_axes=(None, 0, 0, 0))``.
"""

from rnn_jax.gradients.bptt import bptt
from rnn_jax.gradients.truncated import truncated_bptt

EXACT = {"bptt": bptt}
APPROXIMATE = {"truncated_bptt": truncated_bptt}

__all__ = ["APPROXIMATE", "EXACT", "bptt", "truncated_bptt"]
