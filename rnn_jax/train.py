"""Training: a jitted update, many of them in a dispatch, and the loop on the host."""

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnn_jax import _checks
from rnn_jax._types import Array, Key, Params, State

Loss: TypeAlias = Callable[[Params, State, Any, Key], tuple[Array, State]]
Hook: TypeAlias = Callable[["TrainState"], Any]


class TrainState(NamedTuple):
    """All that training depends on; saved and restored, it goes on as if never stopped."""

    step: Array  # int32 [], updates tried so far; the position in the data follows from it alone
    params: Params
    opt_state: Any
    carry: State  # what the recurrent state hands from window to window; any pytree, may be None
    key: Key  # never changes: the key of an update is fold_in(key, step)
    skipped: Array  # int32 [], updates left out because something was not finite, in total
    skipped_in_row: Array  # int32 [], the same, since the last update that was applied


class Metrics(NamedTuple):
    """What one update reports; a run of n updates reports arrays of n."""

    loss: Array  # f32 [n], before the update
    grad_norm: Array  # f32 [n], global norm of the gradient, before any clipping
    skipped: Array  # bool [n]


class Diverged(RuntimeError):
    """Too many updates in a row were skipped.

    Attributes:
      step: the first update of that row.
      train_state: the state when training stopped; nothing in it is from a skipped update.
    """

    def __init__(self, message: str, step: int, train_state: TrainState) -> None:
        super().__init__(message)
        self.step = step
        self.train_state = train_state


@dataclass(frozen=True)
class Run:
    """``run(train_state, data, steps=None) -> (train_state, metrics)``, made by `make_train`."""

    steps_per_call: int
    compiled: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]] = field(repr=False)

    def __call__(
        self, train_state: TrainState, data: Any, steps: int | None = None
    ) -> tuple[TrainState, Metrics]:
        steps = self.steps_per_call if steps is None else steps
        if not 0 < steps <= self.steps_per_call:
            raise ValueError(
                f"steps: got {steps}, expected 1 to {self.steps_per_call}, the steps_per_call of "
                "make_train"
            )
        train_state, metrics = self.compiled(train_state, data, np.int32(steps))
        if steps < self.steps_per_call:
            metrics = Metrics(*(m[:steps] for m in metrics))
        return train_state, metrics


def init(
    params: Params, carry: State, optimizer: optax.GradientTransformation, key: Key
) -> TrainState:
    """The state before the first update; a copy, so that donating it leaves `params` alone."""
    zero = jnp.zeros((), jnp.int32)
    with _optax_promotion():
        opt_state = optimizer.init(params)
    state = TrainState(zero, params, opt_state, carry, key, zero, zero)
    return jax.tree.map(_own, state)


def make_train(
    loss: Loss,
    batch_at: Callable[[Any, Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    steps_per_call: int = 1,
) -> Run:
    """Compiles ``run(train_state, data) -> (train_state, metrics)``."""
    steps_per_call = _checks.positive_int("steps_per_call", steps_per_call)
    transform = optax.with_extra_args_support(optimizer)

    def update(old: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(old.key, old.step)
        batch = batch_at(data, old.step)
        grad = jax.value_and_grad(loss, has_aux=True)
        (value, carry), grads = grad(old.params, old.carry, batch, key)
        _checks.same_shapes("carry", carry, old.carry, _CARRY_HINT, dtypes=True)
        with _optax_promotion():
            updates, opt_state = transform.update(
                grads,
                old.opt_state,
                old.params,
                value=value,
                grad=grads,
                value_fn=lambda params: loss(params, old.carry, batch, key)[0],
            )
            params = optax.apply_updates(old.params, updates)
        norm = _global_norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        for new, before in ((params, old.params), (carry, old.carry)):
            good &= _stays_finite(new, before)
        bad = (~good).astype(jnp.int32)
        params, opt_state, carry = jax.tree.map(
            lambda new, before: jnp.where(good, new, before),
            (params, opt_state, carry),
            (old.params, old.opt_state, old.carry),
        )
        new_state = TrainState(
            step=old.step + 1,
            params=params,
            opt_state=opt_state,
            carry=carry,
            key=old.key,
            skipped=old.skipped + bad,
            skipped_in_row=(old.skipped_in_row + 1) * bad,
        )
        return new_state, Metrics(value.astype(jnp.float32), norm.astype(jnp.float32), ~good)

    # A loop with a count known only at run time: one executable for chunks of any length, so that
    # the numbers cannot depend on how the steps were chunked.
    def run(state: TrainState, data: Any, steps: Array) -> tuple[TrainState, Metrics]:
        n = steps_per_call
        empty = Metrics(jnp.zeros(n), jnp.zeros(n), jnp.zeros(n, bool))
        empty = Metrics(*(m.astype(d) for m, d in zip(empty, ("f4", "f4", "?"), strict=True)))

        def body(i: Array, loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, rows = loop
            state, row = update(state, data)
            return state, jax.tree.map(lambda a, x: a.at[i].set(x), rows, row)

        return jax.lax.fori_loop(0, steps, body, (state, empty))

    return Run(steps_per_call, jax.jit(run, donate_argnums=0))


def fit(
    run: Run,
    train_state: TrainState,
    data: Any,
    *,
    steps: int,
    every: Sequence[tuple[int, Hook]] = (),
    on_metrics: Callable[[int, Metrics], Any] | None = None,
    stop: Callable[[], bool] | None = None,
    deadline: float | None = None,
    max_skipped_in_row: int = 20,
    in_flight: int = 2,
) -> TrainState:
    """Trains until ``train_state.step == steps``, and returns the state after a whole step.

    Args:
      run: from `make_train`.
      train_state: from `init` or a checkpoint. It is donated: use the one that comes back.
      data: what `batch_at` reads.
      steps: the step number to reach, counted from the first update ever: the same call resumes.
      every: pairs ``(k, hook)``; ``hook(train_state)`` is called after each step that is a
        multiple of k. It may read the state (evaluate, save, sample) but not keep it.
      on_metrics: ``on_metrics(step, metrics)`` for each chunk, in order: `step` updates had been
        tried before it, the metrics are NumPy arrays with a row for each of its updates.
      stop: asked before each chunk; true ends the training (see `stop_on_signals`).
      deadline: a `time.monotonic()` after which no further chunk starts.
      max_skipped_in_row: so many skipped updates in a row raise `Diverged`.
      in_flight: chunks that may be under way on the device while the host goes on.
    """
    step = int(train_state.step)
    pending: deque[tuple[int, Metrics]] = deque()
    in_row = int(train_state.skipped_in_row)

    def report(keep: int) -> None:
        nonlocal in_row
        while len(pending) > keep:
            first, metrics = pending.popleft()
            metrics = jax.device_get(metrics)
            if on_metrics is not None:
                on_metrics(first, metrics)
            for i, skipped in enumerate(metrics.skipped):
                in_row = in_row + 1 if skipped else 0
                if in_row >= max_skipped_in_row:
                    raise _diverged(first + i, in_row, train_state)

    while step < steps:
        if (stop is not None and stop()) or (deadline is not None and monotonic() >= deadline):
            break
        n = min(run.steps_per_call, steps - step, *(k - step % k for k, _ in every))
        train_state, metrics = run(train_state, data, n)
        pending.append((step, metrics))
        step += n
        due = [hook for k, hook in every if step % k == 0]
        report(keep=0 if due else in_flight - 1)
        for hook in due:
            hook(train_state)
    report(keep=0)
    return train_state


@dataclass
class Stop:
    """False until a signal asks to stop: ``stop()``; ``stop.received`` says which one did."""

    received: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.received is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, at the next whole step; a second Ctrl-C interrupts at once.

    Example:
      >>> with stop_on_signals() as stop:
      ...     print(stop())
      ...     signal.raise_signal(signal.SIGTERM)
      ...     print(stop(), stop.received.name)
      False
      True SIGTERM
    """
    stop = Stop()

    def handler(number: int, frame: Any) -> None:
        if stop() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.received = signal.Signals(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield stop
    finally:
        for number, old in zip(signals, before, strict=True):
            signal.signal(number, old)


_CARRY_HINT = (
    "The loss returns (mean loss, new carry), and the new carry replaces the old one: same "
    "structure, shapes and dtypes."
)


@contextlib.contextmanager
def _optax_promotion() -> Iterator[None]:
    """Optax mixes int32 counters with floats, which a strict promotion of the user's forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _own(leaf: Any) -> Array:
    """A strongly typed copy, which shares its buffer with no other leaf."""
    leaf = jnp.asarray(leaf)
    return jnp.array(leaf, dtype=leaf.dtype, copy=True)


def _global_norm(tree: Any) -> Array:
    squares = [jnp.sum(jnp.square(jnp.abs(_wide(x)))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.stack(squares).sum()) if squares else jnp.zeros(())


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _stays_finite(new: Any, old: Any) -> Array:
    """False if a finite number became inf or NaN; an inf that was always there is allowed."""
    good = jnp.array(True)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            good &= jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b))
    return good


def _diverged(step: int, in_row: int, train_state: TrainState) -> Diverged:
    first = step - in_row + 1
    return Diverged(
        f"step {first}: from here on the loss or the gradient was not finite in {in_row} updates "
        f"in a row. They were skipped: the parameters are those after step {first - 1}. Try a "
        "lower learning rate, a warm-up, or clipping of the gradient's norm "
        "(optax.clip_by_global_norm), look at the batch of that step, or go on from the last "
        "checkpoint.",
        first,
        train_state,
    )
