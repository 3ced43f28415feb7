"""One step of a net and its loss as functions of real vectors, and their derivatives.

n: real numbers in the state; P: real numbers in the params; theta: [P]; h: [n], before the step;
D = dh'/dh: [n, n]; I = dh'/dtheta at fixed h: [n, P], the immediate influence.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._sequence import harmless
from rnn_jax._types import Array, Cell, Params, State, vary, varying_axes
from rnn_jax.gradients._output import separate
from rnn_jax.gradients._types import StepLoss, scalar
from rnn_jax.gradients._vector import ravel, unravel


class Step:
    """A step at given params, state and input; nothing is computed before it is asked for.

    What a `Rule` sees. With n floats in the state and P in the params, complex ones as pairs:

    - `theta`: [P], the params, and `h`: [n], the state before the step; `params`, `state`, `x`,
      `target` are the same and the rest as the cell takes them.
    - `jacobians()`: ``(I, D)``, I = dh'/dtheta at fixed h, [n, P], and D = dh'/dh, [n, n], for n
      backward passes; their products cost one pass each: ``push(theta, h)[0]`` is I theta + D h,
      ``pull(q, 0.0)`` is (q I, q D).
    - `loss_gradient()`: ``(dl/dtheta, dl/dh)`` through the whole step, [P] and [n].
    - `value()`: ``((h', loss), (new state, y))``; `error()`: dl/dy, [O].
    - `observe()`: ``(dl/dtheta, dl/dh, dl/dh')`` with the output as a function of all three.

    In a masked step `x` and `target` are stand-ins, and what the rule makes of them is dropped.
    """

    def __init__(
        self,
        cell: Cell,
        loss: StepLoss,
        params: Params,
        state: State,
        x: Any,
        target: Any,
        valid: Array | None = None,
    ) -> None:
        if valid is not None:
            x, target = harmless((x, target), valid)
        self.cell, self.loss = cell, scalar(loss)
        self.params, self.state, self.x, self.target = params, state, x, target
        self.theta, self.h = ravel(params), ravel(state)

    def replaced(self, net: Any) -> "Step":
        """The same step with another net: ``(params, state) -> (new state, y)``."""
        step = copy.copy(self)
        step.net = net  # type: ignore[method-assign]
        return step

    def at(self, h: Array) -> "Step":
        """The same step from another state."""
        step = copy.copy(self)
        step.h, step.state = h, unravel(h, self.state)
        return step

    def net(self, params: Params, state: State) -> tuple[State, Any]:
        """All of the step but its input."""
        result = self.cell.step(params, state, self.cell.project(params, self.x))
        return _checks.stepped(result, state)

    def run(self, theta: Array, h: Array) -> Any:
        state, y = self.net(unravel(theta, self.params), unravel(h, self.state))
        return (ravel(state), self.loss(y, self.target)), (state, y)

    def hidden(self, theta: Array, h: Array) -> Array:
        """The new state alone."""
        return ravel(self.net(unravel(theta, self.params), unravel(h, self.state))[0])

    def value(self) -> Any:
        """``((h', loss), (state', y))``."""
        return self.run(self.theta, self.h)

    def push(self, theta: Array, h: Array) -> tuple[Array, Array]:
        """``D h + I theta`` and the change of the loss, forward."""
        return jax.jvp(lambda *a: self.run(*a)[0], (self.theta, self.h), (theta, h))[1]

    def pull(self, h: Array, loss: Any) -> tuple[Array, Array]:
        """``(q I + r, q D + c)`` for q = h, with r, c the derivatives of `loss` times the loss."""
        (_, l), back = jax.vjp(lambda *a: self.run(*a)[0], self.theta, self.h)
        return back(vary((h, jnp.full_like(l, loss)), varying_axes(l)))

    def jacobians(self) -> tuple[Array, Array]:
        """``(I, D)``."""
        return jax.vmap(lambda row: self.pull(row, 0.0))(jnp.eye(self.h.size, dtype=self.h.dtype))

    def loss_gradient(self) -> tuple[Array, Array]:
        """``(dl/dtheta, dl/dh)`` at fixed theta and h before the step: [P], [n]."""
        return self.pull(jnp.zeros_like(self.h), 1.0)

    def error(self) -> Array:
        """dl/dy, [O] real."""
        y = self.value()[1][1]
        return ravel(jax.grad(self.loss)(y, self.target))

    def observe(self) -> tuple[Array, Array, Array]:
        """``(dl/dtheta, dl/dh, dl/dh')`` where the output is a function of all three.

        Of the new state, the output sees what the code of the cell passes on: y = h' W_y for
        ``y = h @ w_y``.
        """
        new = self.value()[1][0]

        def net(params: Params, old: State, _: tuple[()]) -> tuple[State, Any]:
            return self.net(params, old)

        def run(theta: Array, h: Array, after: Array) -> Array:
            params, old = unravel(theta, self.params), unravel(h, self.state)
            _, output = separate(net, params, old, ())
            return self.loss(output(unravel(after, new)), self.target)

        return jax.grad(run, argnums=(0, 1, 2))(self.theta, self.h, ravel(new))


class Origin(NamedTuple):
    """How the initial state depends on the params: not at all, where a state was given.

    What a `Rule` begins with: `jacobian()` is dh_0/dtheta, [n, P]; `pull` and `push` are its
    products with a vector, backward and forward.
    """

    params: Params
    state: State
    learned: Any  # params -> state, or None

    def pull(self, h: Array) -> Array:
        """[n] -> [P], backward through the initial state."""
        if self.learned is None:
            return jnp.zeros_like(ravel(self.params))
        start, back = jax.vjp(self._run, ravel(self.params))
        return back(vary(h, varying_axes(start)))[0]

    def push(self, theta: Array) -> Array:
        """[P] -> [n], forward."""
        if self.learned is None:
            return jnp.zeros_like(ravel(self.state))
        return jax.jvp(self._run, (ravel(self.params),), (theta,))[1]

    def jacobian(self) -> Array:
        """[n, P]."""
        h = ravel(self.state)
        return jax.vmap(self.pull)(jnp.eye(h.size, dtype=h.dtype))

    def _run(self, theta: Array) -> Array:
        return ravel(self.learned(unravel(theta, self.params)))
