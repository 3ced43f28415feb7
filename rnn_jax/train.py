"""Training: a jitted update, many of them in a dispatch, and the loop on the host."""

import contextlib
import inspect
import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rnn_jax import _checks, _mesh, processes
from rnn_jax._types import Array, Key, Params, State, wide
from rnn_jax.gradients._types import ValueAndGrad

Loss: TypeAlias = Callable[[Params, State, Any, Key], tuple[Array, State]]
_BatchGradient: TypeAlias = Callable[[Params, State, Any, Key], tuple[tuple[Array, State], Params]]
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
    """What one update reports; a run of n updates reports arrays of n.

    Those of K nets side by side are [K, n].
    """

    loss: Array  # f32 [n], before the update
    grad_norm: Array  # f32 [n], global norm of the gradient, before any clipping
    skipped: Array  # bool [n]


class Gradient(NamedTuple):
    """A gradient of your own for `make_train`, in the place of a loss."""

    # (params, carry, batch, key) -> ((mean loss, new carry), gradient of the mean loss)
    value_and_grad: _BatchGradient


class Diverged(RuntimeError):
    """Too many updates in a row were skipped.

    Attributes:
      step: the first update of that row.
      train_state: the state when training stopped, without anything from the skipped updates.
    """

    def __init__(self, message: str, step: int, train_state: TrainState) -> None:
        super().__init__(message)
        self.step = step
        self.train_state = train_state


@dataclass(frozen=True)
class Run:
    """A compiled run of updates: ``train_state, metrics = run(train_state, data)``.

    Attributes:
      steps_per_call: updates in a call, unless the call asks for fewer.
      compiled: the jitted function, ``(train_state, data, steps) -> (train_state, metrics)``.
      takes_batches: the data of a call are its batches, stacked: `make_train` had no `batch_at`.
      mesh: the devices that share the work; None for those of `jax.set_mesh`, or else one device.
      batch_axes: which axis of each leaf of a batch is split over the devices.
    """

    steps_per_call: int
    compiled: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]] = field(repr=False)
    takes_batches: bool = False
    mesh: Mesh | None = None
    batch_axes: Any = 0

    def __call__(
        self, train_state: TrainState, data: Any, steps: int | None = None
    ) -> tuple[TrainState, Metrics]:
        """Tries `steps` updates, 1 to `steps_per_call` (the default), without compiling anew.

        `train_state` is donated: its arrays are gone, use those of the one that comes back.
        """
        steps = self.steps_per_call if steps is None else steps
        if not 0 < steps <= self.steps_per_call:
            raise ValueError(
                f"steps: got {steps}, expected 1 to {self.steps_per_call}, the steps_per_call of "
                "make_train"
            )
        mesh = _mesh.of(self.mesh)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            train_state, data = self.placed(train_state, data)
            train_state, metrics = self.compiled(train_state, data, np.int32(steps))
        if steps < self.steps_per_call:
            metrics = Metrics(*(rows[..., :steps] for rows in metrics))
        return train_state, metrics

    def placed(self, train_state: TrainState, data: Any) -> tuple[TrainState, Any]:
        """The state and the data on the devices of the mesh, if there is one; `fit` does it once.

        What lies on them already stays as it is. Of data that are batches each process gives its
        own part; all other data, and the state, are given whole by each, and are the same.
        """
        mesh = _mesh.of(self.mesh)
        if mesh is None:
            return train_state, data

        state = jax.tree.map(_mesh.brought, train_state, _mesh.shardings(train_state, mesh))
        if self.takes_batches:
            parts = _mesh.split(
                data, mesh, self.batch_axes, stacked=True, parts=jax.process_count()
            )
            return state, jax.tree.map(jax.make_array_from_process_local_data, parts, data)
        everywhere = NamedSharding(mesh, PartitionSpec())
        return state, jax.tree.map(lambda leaf: _mesh.brought(leaf, everywhere), data)


def init(
    params: Params,
    carry: State,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state before the first update.

    Args:
      params: what is trained, a pytree of floating-point arrays.
      carry: the recurrent state before the first window, for the whole batch; None if there is
        nothing to carry.
      optimizer: any optax transformation.
      key: PRNG key, the source of all randomness in the updates.
      mesh: the devices on which it lies, by default those of `jax.set_mesh`. In ``jax.jit(lambda
        key: init(net.init(key), ...))`` no device ever holds more than its part.

    Returns:
      A `TrainState` of copies: a run donates it and leaves `params`, `carry` and `key` alone.
      ``jax.eval_shape(train.init, ...)`` gives its shapes at no cost, to restore a checkpoint.
    """
    zero = jnp.zeros((), jnp.int32)
    with _optax_promotion():
        opt_state = optimizer.init(params)
    state = TrainState(zero, params, opt_state, carry, key, zero, zero)
    mesh = _mesh.of(mesh)
    state = jax.tree.map(_own, state)
    if mesh is None:
        return state
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state))
    return jax.tree.map(
        jax.lax.with_sharding_constraint if traced else _mesh.brought,
        state,
        _mesh.shardings(state, mesh),
    )


def shardings(train_state: TrainState, mesh: Mesh | AbstractMesh) -> TrainState:
    """Where each leaf of a train state lies on a mesh: what `init` and `make_train` do by default.

    Args:
      train_state: arrays, or their shapes, from ``jax.eval_shape(lambda: init(...))``.
      mesh: its first axis has the batch: each leaf of the carry is split along its leading axis.
        Its second axis, if there is one, has the units: params, and what the optimizer keeps of
        them, are split along their last axis. What cannot be split evenly, and all the rest, lies
        on every device.

    Returns:
      A `TrainState` of `jax.sharding.NamedSharding`, for ``jax.jit(out_shardings=)`` or, beside the
      shapes, for the argument `like` of `Checkpoints.restore`.

    Example:
      >>> mesh = jax.sharding.AbstractMesh((4, 2), ("batch", "units"))  # needs no devices
      >>> state = init({"w": jnp.ones((3, 4))}, jnp.ones((8, 5)), optax.sgd(0.1), jax.random.key(0))
      >>> where = shardings(state, mesh)
      >>> print(where.params["w"].spec, where.carry.spec, where.key.spec)
      P(None, 'units') P('batch',) P()
    """
    return _mesh.shardings(train_state, _mesh.divided_by_xla(mesh))


def step_of(train_state: TrainState) -> int:
    """Updates tried so far; those of nets side by side are the same for all."""
    return int(np.ravel(train_state.step)[0])


def make_train(
    loss: Loss | ValueAndGrad | Gradient,
    batch_at: Callable[[Any, Array], Any] | None,
    optimizer: optax.GradientTransformation,
    *,
    steps_per_call: int = 1,
    mesh: Mesh | None = None,
    batch_axes: Any = 0,
) -> Run:
    """Compiles `steps_per_call` updates into one dispatch.

    The update at step s is a function of the train state and the data alone: its batch is
    ``batch_at(data, s)``, its key is ``fold_in(key, s)``. How the steps are cut into calls changes
    no bit of the result. No gradient flows through the carry: this is truncated BPTT.

    Any gradient algorithm may take the place of the loss, such as ``gradients.snap(cell, loss,
    n=1)``. A batch is then ``(xs, targets)``, ``(xs, targets, mask)`` or ``(xs, targets, mask,
    reset)``, each with a leading axis B, the carry is the states of its B sequences (or None, if
    each sequence starts anew), and what is reported and descended is the mean over all valid steps.

    An update is skipped if the loss, the norm of the gradient, or anything in the new params or the
    new carry that was finite is not finite any more: params, optimizer and carry stay as they were,
    it is counted, and the step number goes on to the next batch.

    Args:
      loss: ``(params, carry, batch, key) -> (mean loss, new carry)``; a scalar, and a pytree like
        `carry`. Or what a function of `rnn_jax.gradients` returns. Or a `Gradient` of your own.
      batch_at: ``(data, step) -> batch``, pure, traced inside jit. None, if `fit` is to take the
        batches from an iterator on the host.
      optimizer: the one that `init` was given. Those that want the loss or the function itself
        (plateau schedules, line searches) get ``value``, ``grad`` and ``value_fn``.
      steps_per_call: many save the overhead of dispatch, few answer a signal sooner.
      mesh: the devices that share the work, by default those of `jax.set_mesh`: each computes with
        its part of the batch, and the gradients are added up. The result is that of one device, but
        for the order of sums. Where the mesh has a second axis, the weights are split over it: see
        `shardings`. The devices may belong to several processes (`jax.distributed`), each of which
        makes the same calls.
      batch_axes: which axis of each leaf of a batch is the batch, as `in_axes` of `jax.vmap`; None
        for a leaf that all devices need whole.

    Returns:
      A `Run`: ``run(train_state, data) -> (train_state, metrics)``, with metrics for each update.

    Raises:
      ValueError, TypeError: at the first call, if the new carry is not like the old one, or the
        devices cannot have equal parts of a batch.

    Example:
      A line through two points:

      >>> def loss(params, carry, batch, key):
      ...     x, y = batch
      ...     return (params["w"] * x + params["b"] - y) ** 2, carry
      >>> def batch_at(data, step):
      ...     return jax.tree.map(lambda column: column[step % 2], data)
      >>> optimizer = optax.sgd(0.3)
      >>> run = make_train(loss, batch_at, optimizer, steps_per_call=50)
      >>> params = {"w": jnp.array(0.0), "b": jnp.array(0.0)}
      >>> state = init(params, None, optimizer, jax.random.key(0))
      >>> data = (jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0]))  # y = 2 x + 1
      >>> state, metrics = run(state, data)
      >>> print([f"{x:.2f}" for x in metrics.loss[:3]], f"{state.params['w']:.2f}")
      ['1.00', '5.76', '1.08'] 2.00
    """
    steps_per_call = _checks.positive_int("steps_per_call", steps_per_call)
    grad, mesh = _gradient_of(loss), None if mesh is None else _mesh.of(mesh)
    transform = optax.with_extra_args_support(optimizer)

    def update(old: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(old.key, old.step)
        (value, carry), grads = grad(old.params, old.carry, batch, key)
        carry = jax.tree.map(jnp.asarray, carry)
        _checks.same_shapes("carry", carry, old.carry, _CARRY_HINT, dtypes=True)
        with _optax_promotion():
            updates, opt_state = transform.update(
                grads,
                old.opt_state,
                old.params,
                value=value,
                grad=grads,
                value_fn=lambda params: grad(params, old.carry, batch, key)[0][0],
            )
            params = optax.apply_updates(old.params, updates)
            norm = _global_norm(grads)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        good &= _stays_finite((params, carry), (old.params, old.carry))
        params, opt_state, carry = jax.tree.map(
            lambda new, before: jnp.where(good, new, before),
            (params, opt_state, carry),
            (old.params, old.opt_state, old.carry),
        )
        bad = (~good).astype(jnp.int32)
        in_row = (old.skipped_in_row + 1) * bad
        state = TrainState(
            old.step + 1, params, opt_state, carry, old.key, old.skipped + bad, in_row
        )
        return state, Metrics(value.astype(jnp.float32), norm.astype(jnp.float32), ~good)

    # The number of steps is known only at run time, so XLA cannot unroll the loop or treat a short
    # one in another way: one executable, and the same bits, for chunks of any length.
    def run(state: TrainState, data: Any, steps: Array) -> tuple[TrainState, Metrics]:
        here = mesh or jax.sharding.get_abstract_mesh()

        def body(i: Array, loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state = loop[0]
            batch = (
                jax.tree.map(lambda batches: batches[i], data)
                if batch_at is None
                else batch_at(data, state.step)
            )
            if not here.empty:
                batch = _mesh.constrain(batch, _mesh.split(batch, here, batch_axes))
            state, row = update(state, batch)
            return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), loop[1], row)

        dtypes = Metrics(jnp.float32, jnp.float32, jnp.bool_)
        empty = jax.tree.map(lambda dtype: jnp.zeros(steps_per_call, dtype), dtypes)
        state, metrics = jax.lax.fori_loop(0, steps, body, (state, empty))
        if not here.empty:  # a layout that stays, so that no call compiles anew
            state = _mesh.constrain(state, _mesh.shardings(state, here))
        return state, metrics

    compiled = jax.jit(run, donate_argnums=0)
    return Run(steps_per_call, compiled, batch_at is None, mesh, batch_axes)


def over_batch(algorithm: ValueAndGrad) -> _BatchGradient:
    """A gradient algorithm of one sequence, for the mean over the valid steps of a batch.

    `make_train` does this by itself; for a `Gradient` of your own around it.

    Args:
      algorithm: what a function of `rnn_jax.gradients` returns.

    Returns:
      ``(params, carry, batch, key) -> ((mean loss, carry), gradient)``, where a batch is ``(xs,
      targets)``, ``(xs, targets, mask)`` or ``(xs, targets, mask, reset)``, each with a leading
      axis B, the last two possibly None, and the carry is B states, or None.
    """

    def value_and_grad(params: Params, carry: State, batch: Any, key: Key) -> Any:
        xs, targets, *flags = batch
        named = dict(zip(("mask", "reset"), flags, strict=False))
        B, T = jax.tree.leaves(xs)[0].shape[:2]

        def one(state: State, xs: Any, targets: Any, named: Any, key: Key) -> Any:
            return algorithm(params, state, xs, targets, **named, key=key)

        keys = jax.random.split(key, B)
        (totals, carries), grads = jax.vmap(one)(carry, xs, targets, named, keys)
        mask = named.get("mask")
        steps = jnp.int32(B * T) if mask is None else jnp.sum(mask, dtype=jnp.int32)

        def mean_of(a: Array) -> Array:
            total = _wide(a).sum(axis=0)
            return (total / jnp.maximum(steps, 1).astype(total.dtype)).astype(a.dtype)

        mean, grads = jax.tree.map(mean_of, (totals, grads))
        return (mean, None if carry is None else carries), grads

    return value_and_grad


def side_by_side(run: Run, data_axes: Any = None) -> Run:
    """The same updates for K nets at once, in one compiled call: seeds, folds, settings.

    Every leaf of the train state has a leading axis K, as ``jax.vmap(lambda key: init(...))(keys)``
    makes it; `fit`, `step_of` and `Checkpoints` take it as it is. Each net has the numbers that it
    would have alone, but for the rounding of products of other shapes.

    Args:
      run: from `make_train`.
      data_axes: as `in_axes` of `jax.vmap`, for the data: None if all nets read the same; 0, or a
        pytree of 0 and None, where each net reads its own, as the folds of a cross-validation do.

    Returns:
      A `Run` whose metrics are [K, n].

    Example:
      >>> def loss(params, carry, batch, key):
      ...     return (params - batch) ** 2, carry
      >>> optimizer = optax.sgd(0.5)
      >>> one = make_train(loss, lambda data, step: data, optimizer, steps_per_call=3)
      >>> run = side_by_side(one, data_axes=0)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> state = jax.vmap(lambda key: init(jnp.zeros(()), None, optimizer, key))(keys)
      >>> state, metrics = run(state, jnp.array([1.0, 2.0]))
      >>> print(state.params, metrics.loss.shape, step_of(state))
      [1. 2.] (2, 3) 3
    """
    many = jax.vmap(run.compiled, in_axes=(0, data_axes, None))
    return replace(run, compiled=jax.jit(many, donate_argnums=0))


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
    """Trains until step number `steps`; the state that comes back is that after a whole step.

    Args:
      run: from `make_train`.
      train_state: from `init` or a checkpoint. It is donated: use the one that comes back.
      data: what `batch_at` reads. For a run without `batch_at`, an iterator of batches, pytrees of
        arrays: one is taken for each update, and when a hook is called, those of
        all updates so far and no others, so that its position can be saved with the train state.
        Training ends where the iterator does. Batches may differ in shape, as those of
        `rnn_jax.tasks.batches.Bucketed` do: there is one compilation for each shape.
      steps: the step number to reach, counted from the first update ever: the same call resumes.
      every: pairs ``(k, hook)``: ``hook(train_state)`` is called after each step that is a
        multiple of k. It may read the state (evaluate, save, sample), not keep it: the next chunk
        takes its arrays.
      on_metrics: called as ``on_metrics(step, metrics)`` for each chunk, in order and before the
        hooks of its last step: `metrics` are NumPy arrays, the first row is of update `step`.
      stop: asked before each chunk; true ends the training (see `stop_on_signals`).
      deadline: a `time.monotonic()` after which no further chunk starts.
      max_skipped_in_row: so many skipped updates in a row raise `Diverged`.
      in_flight: chunks that may be under way on the device while the host goes on.

    Returns:
      The train state; its `step` is less than `steps` if `stop` or `deadline` ended the training.

    Raises:
      Diverged: too many updates in a row were skipped; of nets side by side, those of each.
      rnn_jax.processes.Lost: another process, with which this one trains, has ended.
      TypeError: the run takes batches, and `data` is no iterator.

    Example:
      Save at every 100th step and at the end, which Ctrl-C may bring about earlier::

          with stop_on_signals() as stop:
              state = fit(run, state, data, steps=1000, every=[(100, checkpoints.save)], stop=stop)
          checkpoints.save(state)
    """
    for k, _ in every:
        _checks.positive_int("every", k)
    limit = _checks.positive_int("max_skipped_in_row", max_skipped_in_row)
    in_flight = _checks.positive_int("in_flight", in_flight)
    if run.takes_batches and not isinstance(data, Iterator):
        raise TypeError(
            f"data: got {type(data).__name__}, expected an iterator of batches, since make_train "
            "was given no batch_at"
        )
    if not run.takes_batches:
        train_state, data = run.placed(train_state, data)
    step, in_row = step_of(train_state), np.asarray(train_state.skipped_in_row)
    asked = _Asked(stop, deadline, in_flight)
    pending: deque[tuple[int, Metrics]] = deque()

    def report(leave: int) -> None:
        nonlocal in_row
        while len(pending) > leave:
            first, metrics = pending.popleft()
            metrics = jax.device_get(metrics)
            if on_metrics is not None:
                on_metrics(first, metrics)
            for i, skipped in enumerate(np.moveaxis(metrics.skipped, -1, 0)):
                in_row = np.where(skipped, in_row + 1, 0)
                if in_row.min() >= limit:
                    raise _diverged(first + i, int(in_row.min()), metrics, i, train_state)

    with processes.noticing():
        while step < steps:
            if asked():
                break
            chunk = min(run.steps_per_call, steps - step, *(k - step % k for k, _ in every))
            parts = [(data, chunk)]
            if run.takes_batches:
                batches = list(itertools.islice(data, chunk))
                if not batches:
                    break
                parts = _stacked(batches, run.steps_per_call)
            for given, count in parts:
                train_state, metrics = run(train_state, given, count)
                pending.append((step, metrics))
                step += count
            hooks = [hook for k, hook in every if step % k == 0]
            report(leave=0 if hooks else in_flight - 1)
            for hook in hooks:
                hook(train_state)
        report(leave=0)
        asked.settle()
    return train_state


class _Asked:
    """Whether to stop before the next chunk; several processes stop before the same one.

    They agree while the device computes, so that what one is asked becomes known to all after the
    chunks that are under way.
    """

    def __init__(self, stop: Callable[[], bool] | None, deadline: float | None, wait: int) -> None:
        self._stop, self._deadline, self._wait = stop, deadline, wait
        self._known: deque[Array] = deque()

    def __call__(self) -> bool:
        late = self._deadline is not None and monotonic() >= self._deadline
        asked = late or (self._stop is not None and self._stop())
        if jax.process_count() == 1:
            return asked
        number = getattr(self._stop, "received", None) or 0
        self._known.append(processes.largest(max(int(asked), number)))
        if len(self._known) < self._wait:
            return False
        found = int(self._known.popleft())
        self._tell(found)
        return found > 0

    def settle(self) -> None:
        """From here on a `Stop` says the same in every process, whenever the signal came."""
        if jax.process_count() > 1 and isinstance(self._stop, Stop):
            self._tell(int(processes.largest(self._stop.received or 0)))

    def _tell(self, found: int) -> None:
        if found > 1 and isinstance(self._stop, Stop):
            self._stop.received = self._stop.received or signal.Signals(found)


@dataclass
class Stop:
    """False until a signal asks to stop: ``stop()``; ``stop.received`` says which one did."""

    received: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.received is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Makes SIGINT and SIGTERM ask for an end at the next whole step, inside the ``with``.

    A second Ctrl-C interrupts at once, with the usual `KeyboardInterrupt`. The handlers that were
    there before come back at the end. For the main thread, which is where Python handles signals.

    Yields:
      A `Stop`, for the argument `stop` of `fit`.

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
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _gradient_of(loss: Any) -> _BatchGradient:
    if isinstance(loss, Gradient):
        return loss.value_and_grad
    try:
        key = inspect.signature(loss).parameters.get("key")
    except (TypeError, ValueError):  # a callable that Python cannot look into
        key = None
    if key is not None and key.kind is key.KEYWORD_ONLY:
        return over_batch(loss)
    return jax.value_and_grad(loss, has_aux=True)


def _stacked(batches: list[Any], length: int) -> list[tuple[Any, int]]:
    """What a call takes, and how many batches of it count, for each run of batches of one shape.

    The last batch fills up, so that every call with these shapes has the same number of them.
    """

    def shapes(batch: Any) -> list[tuple[int, ...]]:
        return [np.shape(leaf) for leaf in jax.tree.leaves(batch)]

    parts = []
    for _, alike in itertools.groupby(batches, shapes):
        given = list(alike)
        filled = given + given[-1:] * (length - len(given))
        stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])  # noqa: E731
        parts.append((jax.tree.map(stack, *filled), len(given)))
    return parts


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
    return x.astype(wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _stays_finite(new: Any, old: Any) -> Array:
    """False if a finite number became inf or NaN; an inf that was always there is allowed."""
    good = jnp.array(True)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            good &= jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b))
    return good


def _diverged(
    step: int, in_row: int, metrics: Metrics, row: int, train_state: TrainState
) -> Diverged:
    first = step - in_row + 1
    loss, norm = metrics.loss[..., row], metrics.grad_norm[..., row]
    return Diverged(
        f"step {first}: from this one on, {in_row} updates in a row were skipped because the loss "
        f"or the gradient was not finite (at step {step}: loss {loss}, gradient norm {norm}). "
        f"The parameters are those from before step {first}. Try a "
        "lower learning rate, a warm-up, or optax.clip_by_global_norm before the optimizer; look "
        f"at the data of step {first}; or go on from an earlier checkpoint.",
        first,
        train_state,
    )
