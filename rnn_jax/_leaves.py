"""The leaves of a pytree as arrays to store, what each of them was, and back to the bit."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import _mesh, processes

Entry = dict[str, Any]  # of one leaf: path, looks, number, stored (dtype and shape), prng

_NUMBERS = (bool, int, float, complex)
_ARRAYS = (jax.Array, np.ndarray, np.generic)
_LONG = (np.dtype(np.longdouble), np.dtype(np.clongdouble))  # differ between machines


def pack(tree: Any) -> tuple[dict[str, np.ndarray], list[Entry]]:
    """Arrays by number, and for each leaf what it was; empty arrays are in the entries alone."""
    arrays, about = {}, []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        where = name(path)
        looks = _looks(where, leaf)
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = processes.whole(jax.random.key_data(leaf) if is_key else leaf)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        entry: Entry = {"path": where, "looks": looks, "number": str(number)}
        entry["stored"] = [str(array.dtype), list(array.shape)]
        entry["prng"] = str(jax.random.key_impl(leaf)) if is_key else None
        about.append(entry)
        if array.size:
            arrays[str(number)] = array
    return arrays, about


def broadcast(arrays: dict[str, np.ndarray], entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The arrays of process 0, to the bit, in every process."""
    if jax.process_count() == 1:
        return arrays
    found = {}
    for number, (dtype, shape) in {e["number"]: e["stored"] for e in entries}.items():
        length = math.prod(shape) * np.dtype(dtype).itemsize
        if length:
            sent = arrays[number].tobytes() if number in arrays else b""
            found[number] = np.frombuffer(processes.broadcast(sent, length), dtype).reshape(shape)
    return found


def match(source: Path, about: Iterable[Entry], like: Any) -> list[Entry]:
    """The entry of each leaf of `like`; raises where the two differ.

    What `like` has None for is asked for by nobody.
    """
    nones, leaves = [], {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(like, is_leaf=lambda x: x is None):
        if leaf is None:
            nones.append(name(path))
        else:
            leaves[name(path)] = leaf
    entries = {entry["path"]: entry for entry in about}
    asked = [where for where in entries if not any(_within(where, part) for part in nones)]
    for where in [*leaves, *asked]:
        got = entries[where]["looks"] if where in entries else "nothing"
        expected = _looks(where, leaves[where]) if where in leaves else "nothing"
        if _as_array(got) != _as_array(expected):
            raise ValueError(
                f"{where}: got {got} in the checkpoint {source}, expected {expected}. It belongs "
                "to another model or optimizer: build the one that it was saved with, start a new "
                "run, or, to read the other parts alone, give None for this one, as in "
                "like=state._replace(opt_state=None)."
            )
    return [entries[where] for where in leaves]


def unpack(arrays: dict[str, np.ndarray], entry: Entry, like: Any) -> Any:
    """One leaf, where and as what `like` is: an array on its device, a NumPy array or a number."""
    dtype, shape = entry["stored"]
    array = arrays[entry["number"]] if math.prod(shape) else np.zeros(shape, dtype)
    was_number = entry["looks"].startswith("Python")
    if was_number and type(like) in _NUMBERS:
        return array.item()
    if isinstance(like, np.ndarray | np.generic):
        return array[()] if isinstance(like, np.generic) else array
    place = (
        like.sharding if getattr(like, "committed", True) and hasattr(like, "sharding") else None
    )
    if was_number:
        return _put(entry["path"], np.asarray(array.item(), like.dtype), place)
    if entry["prng"] is None:
        return _put(entry["path"], array, place)
    key = jax.random.wrap_key_data(jax.device_put(array, may_alias=False), impl=entry["prng"])
    return key if place is None else _mesh.place(key, place)


def name(path: Any) -> str:
    """A path inside the pytree, for people."""
    return "train_state" + jax.tree_util.keystr(path)


def _put(where: str, array: np.ndarray, place: Any) -> jax.Array:
    put = jax.device_put(array, may_alias=False) if place is None else _mesh.place(array, place)
    if put.dtype != array.dtype:
        raise ValueError(
            f"{where}: got {array.dtype} in the checkpoint, which JAX makes {put.dtype}. Turn on "
            "jax_enable_x64, or give a NumPy array in `like` to get one."
        )
    return put


def _within(where: str, part: str) -> bool:
    return where == part or where.startswith((part + ".", part + "["))


def _looks(where: str, leaf: Any) -> str:
    """What has to agree; a leaf that cannot be stored is refused."""
    if type(leaf) in _NUMBERS and np.asarray(leaf).dtype != object:
        return f"Python {type(leaf).__name__}"
    if isinstance(leaf, (*_ARRAYS, jax.ShapeDtypeStruct)) and _is_numeric(leaf.dtype):
        return f"{leaf.dtype}{list(leaf.shape)}"
    kind = f" of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else ""
    raise TypeError(
        f"{where}: got {type(leaf).__name__}{kind} {str(leaf)[:50]!r}, expected an array or a "
        "number, of at most 64 bits, or None. Keep text and the like beside the checkpoints; a "
        "class of your own is a pytree after jax.tree_util.register_dataclass."
    )


def _is_numeric(dtype: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return dtype not in _LONG and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _as_array(looks: str) -> str:
    """A Python number may come back as the array that JAX makes of it, and the reverse."""
    for number in _NUMBERS:
        if looks == f"Python {number.__name__}":
            return f"{jnp.result_type(number)}[]"
    return looks
