"""Online algorithms: what each step needs is carried forward, so that a stream needs no end."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary_as
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import (
    StepLoss,
    across,
    added,
    fitting,
    guarded,
    needed,
    rounded,
    select,
    zeros,
)
from rnn_jax.gradients._vector import gradient
from rnn_jax.unroll import restarted


class OnlineState(NamedTuple):
    """What the next step needs; its size does not depend on how many steps there were."""

    state: State  # of the cell
    trace: Any  # how the state depends on the params
    key: Key | None  # of the algorithms that draw


class OnlineInfo(NamedTuple):
    """What an observer wants of one step."""

    loss: Array  # [], 0 where the step is masked
    grads: Params  # the gradient of this loss
    y: Any  # the output of the cell


class Rule(NamedTuple):
    """What makes an online algorithm: all else is the same for each of them.

    Masks, resets, sequences, keys and the gradient as a pytree are the work of `Online`; a rule
    sees real vectors: h, [n], all floats of the state, and theta, [P], all floats of the params.

    Attributes:
      init: ``(origin, step, key) -> trace``, before the first step and after a reset: how the
        initial state, an `Origin`, depends on theta. `step` is a `Step` with an input of the right
        shape and no target. `key` is None where nothing is drawn.
      update: ``(step, trace, key) -> (trace, grads)``: the trace after the `Step`, of the same
        shapes and dtypes as before, and the gradient of the loss of this step by theta, [P].
    """

    init: Callable[[Origin, Step, Key | None], Any]
    update: Callable[[Step, Any, Key | None], tuple[Any, Array]]


class Online:
    """An online algorithm, for a whole sequence or one step at a time.

    ``((total, state), grads) = algorithm(params, state, xs, targets, mask=, reset=, key=)`` sums
    over a sequence at the same params, as `bptt`. One step at a time, with constant memory:

        carry = algorithm.init(params, x, state, key=key)
        carry, info = algorithm.update(params, carry, x, target)

    `init` takes any input of one step, for its shape. `info` is ``(loss, grads, y)``: the loss of
    this step and its gradient, which an optimizer may use at once. The influence of the past was
    then made with older params, and differs from that of the new ones by the order of the rate.

    Args:
      name: for messages.
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      rule: a `Rule`, or ``(step) -> Rule`` for one that first finds out something about the cell;
        it is made once for each set of shapes.
      draws: whether the rule wants keys; then `key` must be given.

    Raises:
      ValueError, TypeError: as `unroll`; the rule returns a trace of another structure, shape or
        dtype, or a gradient that is not [P].

    Example:
      The past forgotten (truncation after one step), in two lines:

      >>> import rnn_jax
      >>> from rnn_jax.gradients import Online, Rule
      >>> now_only = Rule(
      ...     init=lambda origin, step, key: (),
      ...     update=lambda step, trace, key: ((), step.loss_gradient()[0]),
      ... )
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = Online("now_only", cell, lambda y, w: w * y[0], now_only)
      >>> xs, last = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])  # h_2 = w_h w_x + 3 w_x
      >>> print(value_and_grad(params, None, xs, last)[1].w_x)
      [[3.]]
    """

    def __init__(
        self,
        name: str,
        cell: Cell,
        loss: StepLoss,
        rule: Rule | Callable[[Step], Rule],
        *,
        draws: bool = False,
    ) -> None:
        self.name, self.cell, self.loss = name, cell, loss
        self._make_rule = (lambda step: rule) if isinstance(rule, Rule) else rule
        self._draws = draws
        self._rules: dict[Any, Rule] = {}

    def init(
        self, params: Params, x: Any, state: State | None = None, *, key: Key | None = None
    ) -> OnlineState:
        """The carry before the first step; `key` for the algorithms that draw."""
        params, x = jax.tree.map(jnp.asarray, (params, x))
        _sequence.check_params(self.cell, params)
        if self._draws:
            key = needed(key, self.name)
            _checks.typed_key(key)
            key, now = jax.random.split(key)
        else:
            key = now = None
        origin = self._origin(params, state)
        step = self._step(params, origin.state, x, None)
        return OnlineState(origin.state, self._rule(step).init(origin, step, now), key)

    def update(
        self,
        params: Params,
        carry: OnlineState,
        x: Any,
        target: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[OnlineState, OnlineInfo]:
        """One step. `mask`, `reset`: [] bool, as one step of those of `unroll`."""
        params, x, target = jax.tree.map(jnp.asarray, (params, x, target))
        old, key, now, again = carry, carry.key, None, None
        if self._draws:
            key, now, again = jax.random.split(needed(carry.key, self.name), 3)
        if reset is not None:
            origin = self._origin(params, None)
            step = self._step(params, origin.state, x, None)
            trace = self._rule(step).init(origin, step, again)
            state = restarted(reset, origin.state, carry.state)
            carry = OnlineState(state, select(reset, trace, carry.trace), key)
        step = self._step(params, carry.state, x, target, mask)
        trace, grads = self._rule(step).update(step, carry.trace, now)
        self._check_rule(step, carry.trace, trace, grads)
        (_, loss), (state, y) = step.value()
        new = OnlineState(state, trace, key)
        if mask is not None:
            new = select(mask, new, old)
            loss, grads, y = guarded((loss, grads, y), mask)
        return new, OnlineInfo(loss, gradient(grads, params), y)

    def __call__(
        self,
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]:
        """The sum over a sequence; shapes and errors as `bptt`."""
        named = {"mask": mask, "reset": reset, "key": key}
        result: tuple[tuple[Array, State], Params]
        result = across(self._run)(params, state, xs, targets, **named)
        return result

    def _run(
        self,
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None,
        reset: Array | None,
        key: Key | None,
    ) -> tuple[tuple[Array, State], Params]:
        T = _checks.time_steps(xs)
        fitting(targets, T)
        flags = {"mask": mask, "reset": reset}
        flags = {k: _checks.time_flags(k, f, T) for k, f in flags.items() if f is not None}
        first = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), (xs, targets))
        first = vary_as(first, (xs, targets))
        carry = self.init(params, first[0], state, key=key)
        xs, targets = _sequence.padded((xs, targets), flags.get("mask"))

        def step(before: Any, now: Any) -> tuple[Any, None]:
            carry, sums = before
            x, target, flags = now
            carry, info = self.update(params, carry, x, target, **flags)
            return (carry, added(sums, (info.loss, info.grads))), None

        info = jax.eval_shape(self.update, params, carry, *first)[1]
        one = info.loss, params
        start = vary_as((carry, zeros(one)), (params, carry, xs, targets, flags))
        (carry, sums), _ = jax.lax.scan(step, start, (xs, targets, flags))
        total, grads = rounded(sums, one)
        return (total, carry.state), grads

    def _origin(self, params: Params, state: State | None) -> Origin:
        make = functools.partial(_sequence.initial, self.cell)
        initial = make(params)
        if state is None:
            return Origin(params, initial, make)
        state = jax.tree.map(jnp.asarray, state)
        hint = "It comes from the init_state of this cell; map a batch of states with jax.vmap."
        _checks.same_shapes("state", state, initial, hint, dtypes=True)
        return Origin(params, state, None)

    def _check_rule(self, step: Step, before: Any, after: Any, grads: Any) -> None:
        hint = f"The trace of {self.name} stays of one type, that which its init returns."
        _checks.same_shapes("trace", after, before, hint, dtypes=True)
        if jnp.shape(grads) != step.theta.shape:
            raise ValueError(
                f"grads: got shape {jnp.shape(grads)} from the update of {self.name}, expected "
                f"{step.theta.shape}, a number for each float of the params (step.theta)"
            )

    def _rule(self, step: Step) -> Rule:
        """The rule for these shapes: what it finds out about the cell, it finds out once."""
        arrays = step.params, step.state, step.x
        key = jax.tree.structure(arrays), *map(jax.typeof, jax.tree.leaves(arrays))
        if key not in self._rules:
            self._rules[key] = self._make_rule(step)
        return self._rules[key]

    def _step(
        self, params: Params, state: State, x: Any, target: Any, valid: Array | None = None
    ) -> Step:
        return Step(self.cell, self.loss, params, state, x, target, valid)
