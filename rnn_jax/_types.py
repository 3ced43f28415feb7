"""The contract: a cell is four pure functions over pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a typed PRNG key, `jax.random.key(seed)`
Params: TypeAlias = Any  # a pytree of arrays, usually a NamedTuple
State: TypeAlias = Any  # a pytree of arrays
Initializer: TypeAlias = Callable[[Key, tuple[int, ...], Any], Array]  # (key, shape, dtype)


def is_float(a: Any) -> bool:
    """Whether an array has a tangent: PRNG keys, integers and flags have none."""
    return jnp.issubdtype(a.dtype, jnp.inexact)


def wide(dtype: Any) -> Any:
    """A float dtype, single precision or wider: in half precision sums end and squares overflow."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of a `jax.shard_map` over which any array of `tree` varies."""
    types = [jax.typeof(a).manual_axis_type for a in jax.tree.leaves(tree)]
    return frozenset().union(*(t.varying for t in types))


def vary(tree: Any, axes: frozenset[str]) -> Any:
    """`tree` with all arrays varying over all `axes`; a loop needs one type for what it carries."""

    def cast(a: Array) -> Array:
        missing = tuple(axes - varying_axes(a))
        return jax.lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, tree)


def vary_as(tree: Any, like: Any) -> Any:
    """`tree` varying over all axes over which `like` does: what a loop over `like` starts with."""
    return vary(tree, varying_axes(like))


class Cell(NamedTuple):
    """A recurrent cell: what is computed at one time step of one sequence.

    ``step(params, state, project(params, x))`` is the textbook equation. It is split in two
    because the first half needs no past, so `rnn_jax.unroll` computes it for many steps at once.
    There is no batch axis: `jax.vmap` adds one.

    Attributes:
      init: ``(key) -> params``, a NamedTuple of arrays.
      init_state: ``(params) -> state``, zeros (or learned), in the dtype of the params.
      project: ``(params, x) -> z``, all that depends on the input alone; x: [D].
      step: ``(params, state, z) -> (state, y)``, the recurrence; y: [H].

    Example:
      A user's own cell, a leaky integrator ``h = a h + (1 - a) x``, is a first-class citizen:

      >>> import jax.numpy as jnp
      >>> import rnn_jax
      >>> def step(params, h, z):
      ...     h = params["a"] * h + (1 - params["a"]) * z
      ...     return h, h
      >>> leaky = rnn_jax.Cell(
      ...     init=lambda key: {"a": jnp.array(0.5)},
      ...     init_state=lambda params: jnp.zeros(2),
      ...     project=lambda params, x: x,
      ...     step=step,
      ... )
      >>> state, ys = rnn_jax.unroll(leaky, {"a": jnp.array(0.5)}, None, jnp.ones((3, 2)))
      >>> print(ys[:, 0])
      [0.5   0.75  0.875]
    """

    init: Callable[[Key], Params]
    init_state: Callable[[Params], State]
    project: Callable[[Params, Any], Any]
    step: Callable[[Params, State, Any], tuple[State, Any]]
