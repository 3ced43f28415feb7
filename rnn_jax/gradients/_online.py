"""Online algorithms: what each step needs is carried forward, so that a stream needs no end."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary_as
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import StepLoss, across, guarded, needed, select
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
    """What makes an online algorithm: all else is the same for each of them."""

    init: Callable[[Origin, Step, Key | None], Any]  # -> trace
    update: Callable[[Step, Any, Key | None], tuple[Any, Array]]  # -> (trace, grads [P])


class Online:
    """An online algorithm, for a whole sequence or one step at a time.

    ``((total, state), grads) = algorithm(params, state, xs, targets, mask=, reset=, key=)`` sums
    over a sequence at the same params, as `bptt`. One step at a time, with constant memory:

        carry = algorithm.init(params, x, state, key=key)
        carry, info = algorithm.update(params, carry, x, target)

    `init` takes any input of one step, for its shape. `info` is ``(loss, grads, y)``: the loss of
    this step and its gradient, which an optimizer may use at once. The influence of the past was
    then made with older params, and differs from that of the new ones by the order of the rate.
    """

    def __init__(
        self, name: str, cell: Cell, loss: StepLoss, rule: Callable[[Step], Rule], *, draws: bool
    ) -> None:
        self.name, self.cell, self.loss = name, cell, loss
        self._make_rule, self._draws = rule, draws
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
        flags = {"mask": mask, "reset": reset}
        flags = {k: _checks.time_flags(k, f, T) for k, f in flags.items() if f is not None}
        first = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), (xs, targets))
        first = vary_as(first, (xs, targets))
        carry = self.init(params, first[0], state, key=key)
        xs, targets = _sequence.padded((xs, targets), flags.get("mask"))

        def step(before: Any, now: Any) -> tuple[Any, None]:
            carry, total, grads = before
            x, target, flags = now
            carry, info = self.update(params, carry, x, target, **flags)
            return (carry, total + info.loss, jax.tree.map(jnp.add, grads, info.grads)), None

        info = jax.eval_shape(self.update, params, carry, *first)[1]
        zeros = jnp.zeros((), info.loss.dtype), jax.tree.map(jnp.zeros_like, params)
        start = vary_as((carry, *zeros), (params, carry, xs, targets, flags))
        (carry, total, grads), _ = jax.lax.scan(step, start, (xs, targets, flags))
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

    def _rule(self, step: Step) -> Rule:
        """The rule for these shapes: what it finds out about the cell, it finds out once."""
        arrays = step.params, step.state, step.x
        key = jax.tree.structure(arrays), *((a.shape, a.dtype) for a in jax.tree.leaves(arrays))
        if key not in self._rules:
            self._rules[key] = self._make_rule(step)
        return self._rules[key]

    def _step(
        self, params: Params, state: State, x: Any, target: Any, valid: Array | None = None
    ) -> Step:
        return Step(self.cell, self.loss, params, state, x, target, valid)
