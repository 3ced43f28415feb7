"""Local rules: a parameter acts on the unit that it feeds, and no further through others."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _sequence
from rnn_jax._jaxprs import Program
from rnn_jax._types import Array, Cell, Key, Params, State, is_float, vary_as
from rnn_jax.gradients import _products, _sparse
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._types import StepLoss, ValueAndGrad, total_loss
from rnn_jax.unroll import Plan, unroll


def rflo(cell: Cell, loss: StepLoss, *, leak: float, feedback: Array | None = None) -> Online:
    """Random feedback local online learning: the past decays at one given rate.

    P_t = leak P_{t-1} + I_t,  dL_t/dtheta = q_t P_t + dl_t/dtheta

    with the immediate influence I_t as in `snap` with n = 1; q_t is dl_t/dh_t, or dl_t/dy_t B for
    a fixed feedback matrix B. It is made for leaky units h' = leak h + (1 - leak) f(h W + z),
    where it equals `e_prop`. Biased; exact where W is zero.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      leak: what a unit keeps of its own state in a step, 0 <= leak <= 1.
      feedback: B, [O, n], for an output [O] and n numbers of the state; None for the gradient.

    Returns:
      `Online`: called as `bptt`, or one step at a time with `init` and `update`.

    Raises:
      ValueError: `leak` out of range; otherwise as `unroll`.

    Example:
      A unit that keeps a half: h_2 = x_1 / 2 + x_2, so that dh_2/dw = x_1 / 2 + x_2 too.

      >>> import rnn_jax
      >>> def step(w, h, z):
      ...     h = 0.5 * h + z
      ...     return h, h
      >>> leaky = rnn_jax.Cell(lambda key: jnp.ones(1), jnp.zeros_like, lambda w, x: w * x, step)
      >>> value_and_grad = rflo(leaky, lambda y, w: w * y[0], leak=0.5)
      >>> xs, last = jnp.array([[3.0], [1.0]]), jnp.array([0.0, 1.0])
      >>> print(value_and_grad(jnp.ones(1), None, xs, last)[1])
      [2.5]

    References:
      Murray. Local online learning in recurrent networks with random feedback. 2019.
      Lillicrap, Cownden, Tweed, Akerman. Random synaptic feedback weights support error
      backpropagation for deep learning. 2016 (the feedback matrix).
    """
    if not 0 <= leak <= 1:
        raise ValueError(f"leak: got {leak}, expected 0 <= leak <= 1")

    def rule(step: Step) -> Rule:
        found = _sparse.pattern(step)
        influence = _sparse.Influence(found, _sparse.reach(found, 1))
        return _sparse.rule(influence, lambda step, M: influence.add(step, leak * M), feedback)

    return Online("rflo", cell, loss, rule, draws=False)


def e_prop(cell: Cell, loss: StepLoss, *, feedback: Array | None = None) -> Online:
    """Eligibility propagation: the past reaches on within a unit, not through recurrent weights.

    eps_t = d_t eps_{t-1} + I_t,  dL_t/dtheta = q_t eps_t + dl_t/dtheta

    d_t is the derivative of the step by the old state with all ``h @ w`` held constant: f_t for the
    memory of an LSTM, z_t for a GRU, the leak of a leaky unit. q_t is dl_t/dh_t, or dl_t/dy_t B
    for a fixed feedback matrix B. Biased; exact where the recurrent weights are zero. Without
    feedback the result is that of `lstm_1997`, which goes back in time instead.

    Args:
      cell: a `Cell` whose recurrent weights are used as ``h @ w``, as in all of this library.
      loss: ``(y, target) -> scalar`` of one step.
      feedback: B, [O, n], for an output [O] and n numbers of the state; None for the gradient.

    Returns:
      `Online`: called as `bptt`, or one step at a time with `init` and `update`.

    Raises:
      ValueError: no recurrent ``h @ w`` is found in the cell; `snap` takes any cell.

    Example:
      A simple recurrent unit keeps nothing outside of its weight: only the last step counts.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = e_prop(cell, lambda y, w: w * y[0])
      >>> xs, last = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])  # h_2 = w_h w_x + 3 w_x
      >>> print(value_and_grad(params, None, xs, last)[1].w_x)
      [[3.]]

    References:
      Bellec, Scherr, Subramoney, Hajek, Salaj, Legenstein, Maass. A solution to the learning
      dilemma for recurrent networks of spiking neurons. 2020.
    """

    def rule(first: Step) -> Rule:
        found = _products.probe(first)
        held = _recurrent(first, found, "e_prop")

        def constant(step: Step) -> Step:
            return step.replaced(_holding(step, found, held))

        pattern = _sparse.pattern(first)
        decay = _sparse.pattern(first, constant).D
        mask = _sparse.reach(pattern._replace(D=decay), None)
        influence = _sparse.Influence(pattern._replace(D=decay), mask)

        def following(step: Step, M: Array) -> Array:
            D = influence.state_jacobian(constant(step))
            return influence.add(step, influence.moved(D, M))

        return _sparse.rule(influence, following, feedback)

    return Online("e_prop", cell, loss, rule, draws=False)


def lstm_1997(cell: Cell, loss: StepLoss) -> ValueAndGrad:
    """The truncated gradient of the original LSTM: errors that leave a memory cell are cut.

    Backpropagation through time in which no recurrent ``h @ w`` feels the state before, only the
    params: the error flows back in time through c alone, and in a `gru` through z * h; in a simple
    recurrent net it sees one step. Biased; exact where the recurrent weights are zero.

    Args:
      cell: a `Cell` whose recurrent weights are used as ``h @ w``, as in all of this library. What
        an output layer or the next layer reads must be an array of the new state as it stands:
        ``y @ w_y`` counts as recurrent where y is made beside the state out of the old one.
      loss: ``(y, target) -> scalar`` of one step.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key=None) -> ((total,
      state), grads)``, as `bptt`. `key` is not used.

    Raises:
      ValueError: no recurrent ``h @ w`` is found in the cell; `truncated_bptt` takes any cell.

    Example:
      As `e_prop`: of h_2 = w_h w_x + 3 w_x the first term came through a recurrent weight.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = lstm_1997(cell, lambda y, w: w * y[0])
      >>> xs, last = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> print(value_and_grad(params, None, xs, last)[1].w_x)
      [[3.]]

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997.
    """

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
        params, xs = jax.tree.map(jnp.asarray, (params, xs))
        x = vary_as(jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), xs), xs)
        first = Step(cell, loss, params, _sequence.initial(cell, params), x, None)
        found = _products.probe(first)
        held = _recurrent(first, found, "lstm_1997")

        def step(params: Params, state: State, x: Any) -> tuple[State, Any]:
            now = Step(cell, loss, params, state, x, None)
            return _holding(now, found, held)(params, state)

        cut = cell._replace(project=lambda params, x: x, step=step)

        def total(params: Params) -> tuple[Array, State]:
            plan = Plan(defer=False)
            final, ys = unroll(cut, params, state, xs, mask=mask, reset=reset, plan=plan)
            return total_loss(loss, ys, targets, mask), final

        return jax.value_and_grad(total, has_aux=True)(params)

    return value_and_grad


def _recurrent(step: Step, found: Program, name: str) -> list[int]:
    held = _products.recurrent(step, found)
    if not held:
        raise ValueError(
            f"cell: {name} cuts the recurrent products h @ w, and found none in this cell; "
            "expected w to be an array of the params. For any cell: snap, truncated_bptt."
        )
    return held


def _holding(step: Step, found: Program, held: list[int]) -> Any:
    """The net of a step in which the operands of some products do not feel the old state.

    The params they do feel: in (r * h) @ w_n, those of the reset gate r.
    """
    found = _products.current(step, found)

    def net(params: Params, state: State) -> tuple[State, Any]:
        constant: dict[int, Array] = {}
        leaves = jax.tree.leaves(params)

        def record(k: int, x: Array) -> Array:
            constant[k] = x
            return found.sites[k].plain(leaves, x)

        def replay(k: int, x: Array) -> Array:
            return found.sites[k].plain(leaves, constant[k] if k in held else x)

        still = jax.tree.map(lambda a: jax.lax.stop_gradient(a) if is_float(a) else a, state)
        found.run(record, params, still, step.x)
        return found.run(replay, params, state, step.x)

    return net
