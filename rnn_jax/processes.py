"""Several processes that compute together: what one of them finds, all of them know."""

import contextlib
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Found = TypeVar("Found")

_KINDS = {
    kind.__name__: kind
    for kind in (
        ValueError,
        TypeError,
        OSError,
        FileNotFoundError,
        BlockingIOError,
        PermissionError,
    )
}


class Elsewhere(RuntimeError):
    """What `first`, `each` and `together` raise for an error in another process.

    Where that is a `ValueError`, a `TypeError` or an `OSError`, they raise one of the same kind.
    """


class Lost(RuntimeError):
    """Another process has ended, or cannot be reached any more.

    What the last checkpoint has is safe; start all processes again.
    """


_PATIENCE = 30  # seconds
_LOST = re.compile("gloo|UNAVAILABLE|coordination service|connection (reset|closed)", re.IGNORECASE)


@contextlib.contextmanager
def noticing() -> Iterator[None]:
    """Inside the ``with``, what JAX raises where another process is gone is a `Lost`.

    `rnn_jax.train.fit`, `rnn_jax.checkpoint.Checkpoints` and the functions here do it themselves.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not _LOST.search(str(error)) or jax.process_count() == 1:
            raise
        why = " ".join(str(error).split())[:200]
        raise Lost(
            f"process {jax.process_index()}: another process has ended or cannot be reached any "
            f"more. What the last checkpoint has is safe; start all processes again ({why})"
        ) from error


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """Says so where the others have not come for long; what is gone is `Lost`."""
    note = (
        f"process {jax.process_index()} has waited {_PATIENCE} s for the others, each of which "
        "must make the same calls of rnn_jax.checkpoint, rnn_jax.train and rnn_jax.processes"
    )
    late = threading.Timer(_PATIENCE, print, [note], {"file": sys.stderr, "flush": True})
    late.daemon = True
    late.start()
    try:
        with noticing():
            yield
    finally:
        late.cancel()


def first(work: Callable[[], Found]) -> Found:
    """What `work` gives in process 0, where alone it runs: a JSON value, in every process.

    An error there is raised in every process.
    """
    if jax.process_count() == 1:
        return work()
    mine = _Outcome(work) if jax.process_index() == 0 else None
    sent = b"" if mine is None else mine.sent
    with _waiting():
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    told = broadcast(sent, length)
    if mine is not None and mine.error is not None:
        raise mine.error
    return _result(told, 0)


def each(work: Callable[[], Found]) -> list[Found]:
    """What `work` gives in each process, a JSON value: the list of all, in every process.

    An error in one is raised in every process: none goes on alone and waits for the others.
    """
    if jax.process_count() == 1:
        return [work()]
    mine = _Outcome(work)
    with _waiting():
        lengths = multihost_utils.process_allgather(np.int32(len(mine.sent)))
        padded = np.frombuffer(mine.sent.ljust(lengths.max()), np.uint8)
        rows = multihost_utils.process_allgather(padded)
    if mine.error is not None:
        raise mine.error
    return [_result(row.tobytes(), process) for process, row in enumerate(rows)]


def together(work: Callable[[], Found]) -> Found:
    """Runs `work` in each process, for what it gives here.

    An error in one is raised in every process, as by `each`.
    """
    found: list[Found] = []
    each(lambda: found.append(work()))
    return found[0]


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Inside the ``with``, an error in one of several processes ends it at once, after its message.

    The others notice within seconds: what they compute together raises `Lost`, which ends them
    here too. Without it, a process that fails first waits for the others to say goodbye, for five
    minutes, and they for what it should have sent. What the last checkpoint has is safe. In one
    process alone, nothing is different.

    Example:
      A training script::

          jax.distributed.initialize()
          with rnn_jax.processes.ending_together():
              main()
    """
    try:
        with noticing():
            yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else int(code is not None))


def broadcast(sent: bytes, length: int) -> bytes:
    """So many bytes of process 0; what the others give does not count."""
    if jax.process_count() == 1:
        return sent
    source = jax.process_index() == 0
    array = np.frombuffer(sent, np.uint8) if source else np.zeros(length, np.uint8)
    with _waiting():
        return multihost_utils.broadcast_one_to_all(array).tobytes()


def largest(value: int) -> jax.Array:
    """The largest of the integers that the processes give, int32 []; computed while one goes on."""
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    one_each = NamedSharding(mesh, PartitionSpec("devices"))
    mine = jax.make_array_from_callback(
        (len(jax.devices()),), one_each, lambda _: np.full(1, value, np.int32)
    )
    with jax.set_mesh(mesh):  # whichever the caller has set
        return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))(mine)


def whole(array: Any) -> np.ndarray:
    """An array of any layout in the memory of every process."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        with _waiting():
            return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


class _Outcome:
    """The result or the error of a piece of work, and how another process is told of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: Exception | None = None
        try:
            found: Any = {"result": work()}
        except Exception as error:
            self.error = error
            found = {"error": str(error), "kind": type(error).__name__}
        self.sent = json.dumps(found).encode()


def _result(sent: bytes, process: int) -> Any:
    """The result that a process tells of; its error is raised."""
    found = json.loads(sent)
    if "error" not in found:
        return found["result"]
    kind = _KINDS.get(found["kind"], Elsewhere)
    raise kind(f"process {process}: {found['error']}")
