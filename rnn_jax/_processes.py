"""Several processes that compute together: what one of them finds, all of them know."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Found = TypeVar("Found")


def first(work: Callable[[], Found]) -> Found:
    """What `work` gives in process 0, where alone it runs; its error is raised in every process."""
    if jax.process_count() == 1:
        return work()
    outcome = _outcome(work) if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(outcome))))
    outcome = outcome or bytes(length)
    result, error = pickle.loads(
        multihost_utils.broadcast_one_to_all(np.frombuffer(outcome, np.uint8)).tobytes()
    )
    if error is not None:
        raise error
    return result


def each(work: Callable[[], Found]) -> list[Found]:
    """What `work` gives in each process, in every one of them.

    An error in one is raised in every process: none goes on alone and waits for the others.
    """
    if jax.process_count() == 1:
        return [work()]
    outcome = _outcome(work)
    lengths = multihost_utils.process_allgather(np.int32(len(outcome)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(outcome)] = np.frombuffer(outcome, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    found = [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
    errors = {process: error for process, (_, error) in enumerate(found) if error is not None}
    if errors:
        mine = errors.get(jax.process_index())
        process, theirs = next(iter(errors.items()))
        raise mine or type(theirs)(f"process {process}: {theirs}")
    return [result for result, _ in found]


def largest(value: int) -> jax.Array:
    """The largest of the integers that the processes give, int32 []; computed while one goes on."""
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    one_each = NamedSharding(mesh, PartitionSpec("devices"))
    mine = jax.make_array_from_callback(
        (len(jax.devices()),), one_each, lambda _: np.full(1, value, np.int32)
    )
    return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))(mine)


def whole(array: Any) -> np.ndarray:
    """An array of any layout in the memory of every process."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _outcome(work: Callable[[], Any]) -> bytes:
    """The result and the error of `work`, one of them None."""
    try:
        return pickle.dumps((work(), None))
    except Exception as error:
        try:
            pickle.loads(found := pickle.dumps((None, error)))
        except Exception:  # an error that cannot be sent as what it is
            found = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
        return found
