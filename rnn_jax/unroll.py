"""Time: a cell over a sequence, with masks, resets and either direction."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Params, State


def unroll(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[State, Any]:
    """Runs a cell over one sequence: ``state, ys = unroll(cell, params, None, xs)``.

    z_t = project(params, x_t);  state_t, y_t = step(params, state_{t-1}, z_t)

    The projections of all steps are computed at once, before the loop. A batch is one line:
    ``jax.vmap(lambda xs: unroll(cell, params, None, xs))(batch)``, and lengths are a mask:
    ``mask=length_mask(length, T)``.

    Args:
      cell: any `Cell`.
      params: the params of `cell`.
      state: the state before the first step; None means ``cell.init_state(params)``. The state
        that comes back goes back in to continue the sequence.
      xs: [T, D], or a pytree of arrays with the leading axis T; T may be 0.
      mask: [T] bool. Where false, the state is carried through unchanged and y is zero; nothing
        in such a step, NaN and inf included, reaches an output or a gradient.
      reset: [T] bool. Where true, the state is ``cell.init_state(params)`` before the step (the
        first one of an episode, or of a packed sequence), by selection: a NaN before it does not
        get past it. A PRNG key in the state goes on through a reset, so that noise does not
        repeat. Ignored where the mask is false.
      reverse: run from the last step to the first; `ys` stays in the order of `xs`, and `reset`
        applies before step t in the order of running.

    Returns:
      ``(state, ys)``: the state after the last step run, and the outputs [T, H].

    Raises:
      ValueError: shapes do not fit the cell or each other.
      TypeError: dtypes do not.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.eye(1), b=jnp.zeros(1))
      >>> xs = jnp.array([[1.0], [2.0], [3.0], [jnp.nan]])
      >>> state, ys = unroll(cell, params, None, xs, mask=length_mask(3, 4))
      >>> print(state, ys.ravel())
      [6.] [1. 3. 6. 0.]
      >>> state, ys = unroll(cell, params, None, xs[:3], reset=jnp.array([False, True, False]))
      >>> print(state, ys.ravel())
      [5.] [1. 2. 5.]
    """
    xs = jax.tree.map(jnp.asarray, xs)
    steps = _checks.time_steps(xs)
    mask = None if mask is None else _checks.time_flags("mask", mask, steps)
    reset = None if reset is None else _checks.time_flags("reset", reset, steps)
    _checks.same_shapes(
        "params",
        params,
        jax.eval_shape(cell.init, jax.random.key(0)),
        "They come from the init of this cell; map stacked params over their axis with jax.vmap.",
    )
    initial = cell.init_state(params)
    if state is None:
        state = initial
    else:
        state = jax.tree.map(jnp.asarray, state)
        hint = "It comes from the init_state of this cell; map a batch of states with jax.vmap."
        _checks.same_shapes("state", state, initial, hint, dtypes=True)
    if mask is not None:  # guard the input: 0 * NaN in a backward pass would be NaN
        xs = jax.tree.map(lambda x: _where(mask, x, jnp.zeros_like(x)), xs)

    def body(old: State, inputs: tuple[Any, Array | None, Array | None]) -> tuple[State, Any]:
        z, valid, restart = inputs
        state = old if restart is None else _restart(restart, initial, old)
        new, y = cell.step(params, state, z)
        if valid is None:
            return new, y
        return (
            jax.tree.map(lambda n, o: jnp.where(valid, n, o), new, old),
            jax.tree.map(lambda a: jnp.where(valid, a, jnp.zeros_like(a)), y),
        )

    zs = jax.vmap(cell.project, in_axes=(None, 0))(params, xs)
    return jax.lax.scan(body, state, (zs, mask, reset), reverse=reverse)


def length_mask(length: Any, steps: int) -> Array:
    """The mask of a sequence of `length` valid steps that was padded to `steps`.

    Args:
      length: int, or an int array of any shape.
      steps: T.

    Returns:
      bool, [..., T]: true where t < length.

    Example:
      >>> print(length_mask(jnp.array([0, 2, 3]), 3))
      [[False False False]
       [ True  True False]
       [ True  True  True]]
    """
    length = jnp.asarray(length)
    shape = (*length.shape, steps)
    return jax.lax.broadcasted_iota(length.dtype, shape, length.ndim) < length[..., None]


def _where(flags: Array, a: Array, b: Array) -> Array:
    return jnp.where(flags.reshape(flags.shape + (1,) * (a.ndim - 1)), a, b)


def _restart(restart: Array, initial: State, old: State) -> State:
    def select(new: Array, kept: Array) -> Array:
        is_key = jnp.issubdtype(kept.dtype, jax.dtypes.prng_key)
        return kept if is_key else jnp.where(restart, new, kept)

    return jax.tree.map(select, initial, old)
