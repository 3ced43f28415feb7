"""Gradient algorithms: the derivative of a sum of losses over time, for any cell.

They share one signature, and call `rnn_jax.unroll` or `cell.step`; no cell knows of them:

    value_and_grad = algorithm(cell, loss)
    (total, state), grads = value_and_grad(
        params, state, xs, targets, mask=None, reset=None, key=None
    )

`loss` is ``(y, target) -> scalar`` of one step, `total` its sum over the valid steps, `grads` a
pytree like `params`. No gradient is returned for `state`: the state that comes back goes back in
for the next window. A batch: ``jax.vmap(value_and_grad, in_axes=(None, 0, 0, 0))``. Those that
draw take a `key`.

The online ones also go one step at a time, with constant memory, for ever:

    carry = algorithm(cell, loss).init(params, x, state, key=key)
    carry, info = algorithm(cell, loss).update(params, carry, x, target, mask=None, reset=None)

One that cannot keep its word says so, inside of `jit` too: `deer` and `implicit` give nothing but
NaN where they found no solution, and `newton` and `equilibria`, which take the same sequence, say
what was found: ``.converged``.

Your own: a `Rule` says what is carried and how a `Step` moves it; ``Online(name, cell, loss,
rule)`` is then worth as much as any algorithm here.

`REGISTER` says of each what it is, what it needs and what it costs, and `table()` prints it;
`EXACT` and `APPROXIMATE` are its two halves.
"""

from rnn_jax.gradients._online import Online, OnlineInfo, OnlineState, Rule
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients.bptt import bptt
from rnn_jax.gradients.check import GradientReport, check_gradients
from rnn_jax.gradients.deer import Newton, deer, newton
from rnn_jax.gradients.forward_gradient import forward_gradient
from rnn_jax.gradients.implicit import Equilibria, equilibria, implicit
from rnn_jax.gradients.kronecker import kf_rtrl, ok
from rnn_jax.gradients.local import e_prop, lstm_1997, rflo
from rnn_jax.gradients.random_truncation import artbp, randomized_telescope
from rnn_jax.gradients.register import APPROXIMATE, EXACT, REGISTER, Entry, table
from rnn_jax.gradients.rtrl import rtrl
from rnn_jax.gradients.snap import elementwise_rtrl, snap
from rnn_jax.gradients.truncated import truncated_bptt
from rnn_jax.gradients.uoro import uoro

__all__ = [
    "APPROXIMATE",
    "EXACT",
    "REGISTER",
    "Entry",
    "Equilibria",
    "GradientReport",
    "Newton",
    "Online",
    "OnlineInfo",
    "OnlineState",
    "Origin",
    "Rule",
    "Step",
    "artbp",
    "bptt",
    "check_gradients",
    "deer",
    "e_prop",
    "elementwise_rtrl",
    "equilibria",
    "forward_gradient",
    "implicit",
    "kf_rtrl",
    "lstm_1997",
    "newton",
    "ok",
    "randomized_telescope",
    "rflo",
    "rtrl",
    "snap",
    "table",
    "truncated_bptt",
    "uoro",
]
