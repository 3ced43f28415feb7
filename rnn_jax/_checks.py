"""Boundary checks, from static shapes: what was got, what was expected, what to do."""

import operator
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax._types import Array


def positive_int(name: str, value: Any) -> int:
    """Returns `value` as an int, or raises for anything but a positive whole number."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected a positive integer") from None
    if isinstance(value, bool) or number <= 0:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")
    return number


def probability(name: str, value: float) -> float:
    """Returns `value` if it can be a rate of dropping: 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: got {value}, expected a rate with 0 <= rate < 1")
    return value


def input_vector(x: Array, size: int, dtype: Any) -> None:
    """Checks the input of one time step, which has no batch axis, against a cell."""
    if jnp.shape(x) != (size,):
        raise ValueError(
            f"x: got one time step of shape {jnp.shape(x)}, expected ({size},), the input_size of "
            "the cell. A sequence is [T, D] without a batch axis; add one with "
            "jax.vmap(unroll, in_axes=(None, None, None, 0))."
        )
    if jnp.result_type(x) != dtype:
        raise TypeError(
            f"x: got dtype {jnp.result_type(x)}, expected {dtype}, the dtype of the params. "
            "Cast one of the two; nothing is converted silently."
        )


def token(x: Array) -> Array:
    """Returns one token, an integer without axes, in a type that holds any size of vocabulary."""
    if jnp.shape(x) != ():
        raise ValueError(
            f"x: got one time step of shape {jnp.shape(x)}, expected (), an integer token. A "
            "sequence is [T]; add a batch axis with jax.vmap."
        )
    if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        raise TypeError(f"x: got dtype {jnp.result_type(x)}, expected integer tokens")
    x = jnp.asarray(x)
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def within(name: str, values: Any, end: int, mask: Any = None) -> None:
    """Raises for integers outside of 0 to end - 1, where they are known already and valid."""
    if isinstance(values, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():  # known numbers stay known where something is traced
        numbers = jnp.asarray(values)
        numbers = numbers.astype(jnp.int32) if numbers.dtype.itemsize < 4 else numbers
        bad = (numbers < 0) | (numbers >= end)
        bad = bad if mask is None else bad & mask
        got = numbers[jnp.unravel_index(jnp.argmax(bad), bad.shape)] if bad.any() else None
    if got is not None:
        raise ValueError(f"{name}: got {got}, expected 0 to {end - 1}")


def typed_key(key: Any) -> None:
    """Checks a PRNG key: new-style, and one."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key: got {key!r}, expected a typed PRNG key, jax.random.key(seed)")
    if key.shape != ():
        raise TypeError(
            f"key: got keys of shape {key.shape}, expected one; map over keys with jax.vmap"
        )


def same_shapes(name: str, got: Any, expected: Any, hint: str, *, dtypes: bool = False) -> None:
    """Checks the structure and the shapes of a pytree, and names the first leaf that differs."""
    got_def: Any = jax.tree.structure(got)
    expected_def: Any = jax.tree.structure(expected)
    if got_def != expected_def:
        raise ValueError(
            f"{name}: got the structure {_short(got_def)}, expected {_short(expected_def)}. {hint}"
        )
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), leaf in zip(paths, jax.tree.leaves(got), strict=True):
        where = name + jax.tree_util.keystr(path)
        if jnp.shape(leaf) != want.shape:
            raise ValueError(f"{where}: got shape {jnp.shape(leaf)}, expected {want.shape}. {hint}")
        if dtypes and leaf.dtype != want.dtype:
            raise TypeError(f"{where}: got dtype {leaf.dtype}, expected {want.dtype}. {hint}")


def stepped(result: Any, old: Any) -> tuple[Any, Any]:
    """Returns what the step of a cell gave, or says how a user's own cell breaks the contract."""
    if not isinstance(result, tuple) or hasattr(result, "_fields") or len(result) != 2:
        size = f" of {len(result)}" if isinstance(result, tuple) else ""
        raise TypeError(
            f"cell.step: got a {type(result).__name__}{size}, expected a pair: (state, y), the new "
            "state first"
        )
    state, y = result
    state = jax.tree.map(lambda a: a if hasattr(a, "dtype") else jnp.asarray(a), state)
    hint = "The step of a cell returns a state like the one that init_state makes."
    same_shapes("cell.step: state", state, old, hint, dtypes=True)
    return state, y


def time_steps(xs: Any) -> int:
    """Returns T, the length of the leading axis that all leaves of `xs` share."""
    leaves = jax.tree_util.tree_leaves_with_path(xs)
    if not leaves:
        raise ValueError("xs: got no array, expected a sequence of shape [T, D]")
    lengths = {}
    for path, leaf in leaves:
        if leaf.ndim == 0:
            where = "xs" + jax.tree_util.keystr(path)
            raise ValueError(f"{where}: got a scalar, expected a sequence of shape [T, D]")
        lengths["xs" + jax.tree_util.keystr(path)] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"xs: got different numbers of time steps: {lengths}, expected one T")
    return next(iter(lengths.values()))


def time_flags(name: str, flags: Any, steps: int) -> Array:
    """Returns a boolean flag for each time step, or raises for another shape or dtype."""
    flags = jnp.asarray(flags)
    if flags.shape != (steps,):
        raise ValueError(
            f"{name}: got shape {flags.shape}, expected ({steps},), one flag for each time step of "
            f"xs. For a batch, map over {name} with jax.vmap too."
        )
    if flags.dtype != jnp.bool_:
        raise TypeError(
            f"{name}: got dtype {flags.dtype}, expected bool. Lengths become a mask with "
            "rnn_jax.length_mask(length, T)."
        )
    return flags


def _short(treedef: Any) -> str:
    text = str(treedef).removeprefix("PyTreeDef(").removesuffix(")")
    return text if len(text) <= 200 else text[:200] + "..."
