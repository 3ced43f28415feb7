"""How a train state and a batch lie on the devices of a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec


def of(mesh: Mesh | None) -> Any:
    """The mesh that was given, or else the one of `jax.set_mesh`; None if there is neither.

    Its axes are of the kind over which XLA divides the work by itself.

    Raises:
      ValueError: it has more than two axes.
    """
    if mesh is None:
        try:
            mesh = jax.sharding.get_mesh()
        except ValueError:  # inside jit, where only its shape is known
            shape = jax.sharding.get_abstract_mesh()
            return None if shape.empty or AxisType.Explicit in shape.axis_types else shape
    if mesh.empty:
        return None
    if len(mesh.axis_names) > 2:
        raise ValueError(
            f"mesh: got axes {mesh.axis_names}, expected one, over which the batch is split, and "
            "at most a second one, over which the units of the weights are"
        )
    return divided_by_xla(mesh)


def shardings(train_state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Where each leaf of a train state lies: see `rnn_jax.train.shardings`."""
    nets = train_state.step.ndim  # 1 for nets side by side, which have an axis more
    rows, units = (*mesh.axis_names, None)[:2]

    def rest(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*_over(leaf, mesh, units, leaf.ndim - 1, nets)))

    def carry(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*_over(leaf, mesh, rows, nets, nets)))

    found = jax.tree.map(rest, train_state._replace(carry=None))
    return found._replace(carry=jax.tree.map(carry, train_state.carry))


def split(
    batch: Any, mesh: Mesh | AbstractMesh, axes: Any, *, stacked: bool = False, parts: int = 1
) -> Any:
    """The shardings of a batch: each leaf is split along its batch axis.

    Args:
      batch: a pytree of arrays.
      mesh: the first axis is that of the batch.
      axes: as `in_axes` of `jax.vmap`.
      stacked: each leaf is a stack of batches.
      parts: how many processes give a part of each batch.

    Raises:
      ValueError: the devices cannot have equal parts.
    """
    rows = mesh.axis_names[0]

    def one(path: Any, axis: int | None, leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)[int(stacked) :]
        if axis is None or not shape:
            return NamedSharding(mesh, PartitionSpec())
        if axis >= len(shape) or shape[axis] * parts % mesh.shape[rows]:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)}: got shape {shape}, expected an axis {axis} "
                f"that is a multiple of {mesh.shape[rows]}, the devices along {rows!r}. Take "
                "another batch size; or say in batch_axes which axis of each leaf is the batch, "
                "None for a leaf that has none."
            )
        return NamedSharding(mesh, PartitionSpec(*[None] * (axis + stacked), rows))

    def part(path: Any, axis: int | None, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda p, leaf: one((*path, *p), axis, leaf), tree)

    is_none = lambda axis: axis is None  # noqa: E731
    return jax.tree_util.tree_map_with_path(part, axes, batch, is_leaf=is_none)


def constrain(tree: Any, shardings: Any) -> Any:
    """Inside a jitted function: the leaves lie so."""
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def place(leaf: Any, sharding: Any) -> jax.Array:
    """A copy of an array on the devices of a sharding, also where other processes have some.

    Each process gives the whole array, and the same numbers.
    """
    if _is_key(leaf):
        return _wrapped(leaf, place(jax.random.key_data(leaf), sharding))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding, may_alias=False)
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def brought(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on the devices of a mesh: as it lies there, or else as `sharding` says."""
    if not isinstance(leaf, jax.Array) or leaf.sharding.device_set != sharding.device_set:
        return place(leaf, sharding)
    return _without_types(leaf)


def _without_types(leaf: jax.Array) -> jax.Array:
    """The same array, without a mesh that makes its layout a part of its type."""
    old = leaf.sharding
    if not isinstance(old, NamedSharding) or AxisType.Explicit not in old.mesh.axis_types:
        return leaf
    if _is_key(leaf):  # `device_put` takes no keys that other processes have a part of
        return _wrapped(leaf, _without_types(jax.random.key_data(leaf)))
    return jax.device_put(leaf, NamedSharding(divided_by_xla(old.mesh), old.spec))


def divided_by_xla(mesh: Any) -> Any:
    """The same mesh with axes over which XLA divides the work by itself."""
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(mesh.axis_sizes, mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wrapped(key: jax.Array, data: jax.Array) -> jax.Array:
    """Keys of the kind of `key` where their data lie."""
    impl, place = jax.random.key_impl(key), data.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(*place.spec[: key.ndim]))
    wrap = jax.jit(lambda data: jax.random.wrap_key_data(data, impl=impl), out_shardings=place)
    return wrap(data)


def _over(
    leaf: Any, mesh: Mesh | AbstractMesh, name: str | None, axis: int, first: int
) -> list[str | None]:
    """`name` at an axis that can be split evenly, else at none."""
    parts = mesh.shape.get(name, 1)
    if parts == 1 or not first <= axis < leaf.ndim or leaf.shape[axis] % parts:
        return []
    return [None] * axis + [name]
