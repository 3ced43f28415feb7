"""Time: a cell over a sequence, with masks, resets, either direction, and little memory."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rnn_jax import _checks, _deferred, _segments, _sequence
from rnn_jax._jaxprs import Program
from rnn_jax._types import Array, Cell, Params, State, vary, varying_axes

UNTRACEABLE = "the cell looks at the numbers of its params, so it cannot be traced with others"


class Plan(NamedTuple):
    """How `unroll` runs the loop. It changes the time and the memory, and no number but rounding.

    Attributes:
      project: "before" the loop, for all steps at once; "inside" it, step by step, which keeps the
        projections in the cache and out of memory; "auto": as the backend likes it (inside on a
        CPU, if the projection has nothing but products, biases and rows; else before).
      defer: make each weight gradient after the backward loop, one product over all steps, instead
        of adding to it at every step. Weights that cannot be deferred are not; see `explain`.
      steps: time steps in one turn of the loop, as ``unroll`` of `jax.lax.scan`.
    """

    project: str = "auto"
    defer: bool = True
    steps: int = 1


def unroll(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    segment: int | None = None,
    budget: int | None = None,
    plan: Plan = Plan(),  # noqa: B008
) -> tuple[State, Any]:
    """Runs a cell over one sequence: ``state, ys = unroll(cell, params, None, xs)``.

    z_t = project(params, x_t);  state_t, y_t = step(params, state_{t-1}, z_t)

    A batch is one line:
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
      segment: keep for the backward pass the states between segments of so many steps alone, and
        run each segment again there: O(segment + T / segment) memory, least at about sqrt(T), for
        one more forward pass.
      budget: bytes that the backward pass of one sequence may keep; the longest segments that fit
        are taken, none if all fits. A batch of B sequences keeps B times as much.
      plan: how the loop is run; the default is what measured best (`experiments.bench --plans`).

    Returns:
      ``(state, ys)``: the state after the last step run, and the outputs [T, H].

    Raises:
      ValueError: shapes do not fit the cell or each other; both `segment` and `budget`, or one
        that is too small.
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
    loop = _prepare(cell, params, state, xs, mask, reset, plan)

    def run(state: State, inputs: Any) -> tuple[State, Any]:
        return _run(loop, state, inputs, reverse)

    segment = _segment(loop, segment, budget, reverse)
    if segment is None:
        return run(loop.state, loop.inputs)
    return _segments.scan(run, loop.state, loop.inputs, loop.steps, segment, reverse)


class _Parts(NamedTuple):
    project: str  # "before" or "inside" the loop
    deferred: tuple[str, ...]  # params whose gradient is made after the backward loop
    in_loop: dict[str, str]  # params whose gradient is made step by step, and why


class Explanation(_Parts):
    """What `unroll` does with a cell; it prints as a few lines.

    Attributes:
      project: "before" or "inside" the loop.
      deferred: params whose gradient is made after the backward loop.
      in_loop: params whose gradient is made step by step, and why.
      segment: steps that the backward pass runs again at a time; None if it keeps what it needs.
    """

    segment: int | None = None

    def __str__(self) -> str:
        lines = [f"projection: {self.project} the loop"]
        lines += [f"backward: segments of {self.segment} steps"] if self.segment else []
        lines += [f"params{path}: gradient deferred" for path in self.deferred]
        lines += [
            f"params{path}: gradient in the loop ({why})" for path, why in self.in_loop.items()
        ]
        return "\n".join(lines)


def explain(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    segment: int | None = None,
    budget: int | None = None,
    plan: Plan = Plan(),  # noqa: B008
) -> Explanation:
    """Says how `unroll` would run with these arguments, without running it.

    Args, errors: as `unroll`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.layer_norm_elman(3, 4)
      >>> print(explain(cell, cell.init(jax.random.key(0)), None, jnp.ones((5, 3))))
      projection: inside the loop
      params.w_x: gradient deferred
      params.w_h: gradient deferred
      params.b: gradient deferred
      params.gain: gradient in the loop (it is used in mul, not in x @ w, x + b or w[token])
    """
    loop = _prepare(cell, params, state, xs, mask, reset, plan)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    project = "inside" if loop.inside else "before"
    segment = _segment(loop, segment, budget, reverse)
    if why := _plain(plan):
        return _explained(segment, project, (), dict.fromkeys(paths, why))
    found = _program(loop, jax.eval_shape(loop.project, loop.inputs), loop.state)
    if found is None:
        return _explained(segment, project, (), dict.fromkeys(paths, UNTRACEABLE))
    in_loop = {paths[i]: why for i, why in found.reasons.items()}
    return _explained(segment, project, tuple(paths[i] for i in found.leaves), in_loop)


def _explained(segment: int | None, *parts: Any) -> Explanation:
    explanation = Explanation(*parts)
    explanation.segment = segment
    return explanation


class _Loop(NamedTuple):
    """Checked arguments, and the functions that run over them."""

    params: Params
    initial: State
    state: State
    inputs: tuple[Any, Array | None, Array | None]  # xs, mask, reset
    steps: int
    project: Any  # inputs of some steps -> what body reads in these steps
    body: Any  # (params, initial, state, one step of it) -> (state, y)
    inside: bool
    plan: Plan


def _prepare(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    mask: Array | None,
    reset: Array | None,
    plan: Plan,
) -> _Loop:
    if plan.project not in ("auto", "before", "inside"):
        raise ValueError(f"plan.project: got {plan.project!r}, expected auto, before or inside")
    params, xs = jax.tree.map(jnp.asarray, (params, xs))
    steps = _checks.time_steps(xs)
    mask = None if mask is None else _checks.time_flags("mask", mask, steps)
    reset = None if reset is None else _checks.time_flags("reset", reset, steps)
    state = jax.tree.map(jnp.asarray, state)
    _sequence.check_params(cell, params)
    axes = varying_axes((params, state, xs, mask, reset))
    params, state, xs = vary((params, state, xs), axes)
    initial = vary(_sequence.initial(cell, params), axes)
    if state is None:
        state = initial
    else:
        hint = "It comes from the init_state of this cell; map a batch of states with jax.vmap."
        _checks.same_shapes("state", state, initial, hint, dtypes=True)
    xs = _sequence.padded(xs, mask)

    found = _traced(cell.project, params, _one_step(xs))
    inside = plan.project == "inside" or (
        plan.project == "auto"
        and jax.default_backend() == "cpu"
        and found is not None
        and not found.reasons
        # more than one row, such as a table of all tokens, is made once for all steps
        and all(len(site.out.shape) == 1 for site in found.sites)
    )

    def project(inputs: Any) -> Any:
        if inside:
            return inputs
        xs, mask, reset = inputs
        one = partial(cell.project, params)
        if found is not None and not _plain(plan):
            one = partial(found.run, None, params)
        return jax.vmap(one)(xs), mask, reset

    def body(
        params: Params, initial: State, old: State, inputs: tuple[Any, Array | None, Array | None]
    ) -> tuple[State, Any]:
        z, valid, restart = inputs
        z = cell.project(params, z) if inside else z
        state = old if restart is None else restarted(restart, initial, old)
        new, y = _checks.stepped(cell.step(params, state, z), state)
        if valid is None:
            return new, y
        return (
            jax.tree.map(lambda n, o: jnp.where(valid, n, o), new, old),
            jax.tree.map(lambda a: jnp.where(valid, a, jnp.zeros_like(a)), y),
        )

    return _Loop(params, initial, state, (xs, mask, reset), steps, project, body, inside, plan)


def _segment(loop: _Loop, segment: int | None, budget: int | None, reverse: bool) -> int | None:
    """Steps in a segment; None where the whole sequence is one."""
    if budget is not None:
        if segment is not None:
            raise ValueError("segment, budget: got both, expected one of them")

        def run(state: State, inputs: Any) -> tuple[State, Any]:
            return _run(loop, state, inputs, reverse)

        segment = _segments.within(budget, run, loop.state, loop.inputs, loop.steps)
    if segment is None or _checks.positive_int("segment", segment) >= loop.steps:
        return None
    return segment


def _run(loop: _Loop, state: State, inputs: Any, reverse: bool) -> tuple[State, Any]:
    xs = loop.project(inputs)
    program = None if _plain(loop.plan) else _program(loop, xs, state)
    if program is not None:
        return _deferred.scan(
            program,
            loop.params,
            loop.initial,
            state,
            xs,
            reverse=reverse,
            unroll=loop.plan.steps,
        )

    def step(old: State, x: Any) -> tuple[State, Any]:
        return loop.body(loop.params, loop.initial, old, x)

    return jax.lax.scan(step, state, xs, reverse=reverse, unroll=loop.plan.steps)


def _plain(plan: Plan) -> str:
    """Why the loop is a plain `jax.lax.scan`; empty if it is not."""
    if not plan.defer:
        return "the plan does not defer"
    if jax.sharding.get_abstract_mesh().explicit_axes:
        return "the mesh has explicit axes; with AxisType.Auto it can be deferred"
    return ""


def _program(loop: _Loop, xs: Any, state: State) -> Program | None:
    return _traced(loop.body, loop.params, loop.initial, state, _one_step(xs))


def _traced(function: Callable[..., Any], *args: Any) -> Program | None:
    """The operations of a function; None where it looks at the numbers of its params."""
    try:
        return Program(function, *args)
    except jax.errors.JAXTypeError:  # the plain scan knows the params, or says what is wrong
        return None


def _one_step(inputs: Any) -> Any:
    def one(a: Array) -> Any:
        kind, shape = jax.typeof(a), a.shape[1:]
        if not kind.manual_axis_type.varying:
            return jax.ShapeDtypeStruct(shape, a.dtype)
        mesh = NamedSharding(kind.sharding.mesh, PartitionSpec(*[None] * len(shape)))
        axes = kind.manual_axis_type
        return jax.ShapeDtypeStruct(shape, a.dtype, sharding=mesh, manual_axis_type=axes)

    return jax.tree.map(one, inputs)


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
    if length.dtype.itemsize < 4:  # a small integer type may not hold T
        length = length.astype(jnp.int32)
    shape = (*length.shape, steps)
    return jax.lax.broadcasted_iota(length.dtype, shape, length.ndim) < length[..., None]


def restarted(restart: Array, initial: State, old: State) -> State:
    """The state before a step that may be the first of an episode; PRNG keys go on."""

    def select(new: Array, kept: Array) -> Array:
        is_key = jnp.issubdtype(kept.dtype, jax.dtypes.prng_key)
        return kept if is_key else jnp.where(restart, new, kept)

    return jax.tree.map(select, initial, old)
