"""Time over devices: each device has a part of the steps of every sequence of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rnn_jax import _checks, _mesh
from rnn_jax._types import Array, Cell, Params, State, vary
from rnn_jax.unroll import unroll


def unroll_over_devices(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mesh: Mesh,
    mask: Array | None = None,
    reset: Array | None = None,
    group: int = 1,
    segment: int | None = None,
) -> tuple[State, Any]:
    """Runs a cell over a batch of sequences whose steps lie on several devices.

    A pipeline: while device d reads its part of the steps of sequence b, device d - 1 reads its
    part of sequence b + 1, and each hands its state on. Outputs and gradients are those of
    ``jax.vmap`` over `rnn_jax.unroll`, and each of N devices holds one N-th of the steps: of the
    inputs, the outputs, and what the gradient keeps. M groups of sequences take M + N - 1 turns, in
    N - 1 of which a device waits.

    Args:
      cell: any cell.
      params: its params; every device has them all.
      state: B states, leaves [B, ...]; None for those of `cell.init_state`.
      xs: a batch of B sequences, leaves [B, T, ...]; T is a multiple of N. Where they lie over
        the devices already, ``PartitionSpec(None, axis)``, nothing is moved.
      mesh: N devices along its only axis.
      mask: [B, T] bool, as in `unroll`; also to fill T up to a multiple of N.
      reset: [B, T] bool, as in `unroll`.
      group: sequences that a device runs together. More of them make larger matrix products and
        fewer, longer turns.
      segment: as in `unroll`.

    Returns:
      ``(state, ys)``: leaves [B, ...], and [B, T, ...] with the steps over the devices.

    Raises:
      ValueError: T is not a multiple of N, or B not one of `group`; the mesh has several axes; as
        in `unroll`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.gru(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> xs = jax.random.normal(jax.random.key(1), (2, 8, 3))
      >>> mesh = jax.make_mesh((1,), ("time",))
      >>> state, ys = unroll_over_devices(cell, params, None, xs, mesh=mesh)
      >>> print(state.shape, ys.shape)
      (2, 4) (2, 8, 4)

    References:
      Yanping Huang et al.: "GPipe: efficient training of giant neural networks using pipeline
      parallelism" (2019), there over layers, here over time.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(
            f"mesh: got axes {mesh.axis_names}, expected one, along which the steps are split; "
            "make one of the same devices for this call"
        )
    axis, N = mesh.axis_names[0], mesh.devices.size
    B, T = _sizes(xs, N, group)
    M = B // group
    if state is None:
        first = cell.init_state(params)
        state = jax.tree.map(lambda a: jnp.broadcast_to(a, (B, *a.shape)), first)

    def grouped(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(M, group, *a.shape[1:]), tree)

    def part(params: Params, states: State, inputs: Any) -> tuple[State, Any]:
        """Of one device; `inputs` are its steps of all groups."""
        device = jax.lax.axis_index(axis)

        def one(state: State, inputs: Any) -> tuple[State, Any]:
            xs, mask, reset = inputs
            return unroll(cell, params, state, xs, mask=mask, reset=reset, segment=segment)

        def turn(handed: State, number: Array) -> tuple[State, Any]:
            at = jnp.clip(number - device, 0, M - 1)
            begun, now = jax.tree.map(lambda a: a[at], (states, inputs))
            state = jax.tree.map(lambda a, b: jnp.where(device == 0, a, b), begun, handed)
            state, ys = jax.vmap(one)(state, now)
            return jax.tree.map(handed_on, state), (state, ys)

        def handed_on(leaf: Array) -> Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = handed_on(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            return jax.lax.ppermute(leaf, axis, [(d, d + 1) for d in range(N - 1)])

        handed = vary(jax.tree.map(lambda a: a[0], states), frozenset({axis}))
        _, found = jax.lax.scan(turn, handed, jnp.arange(M + N - 1, dtype=jnp.int32))
        # Group m was on this device in turn m + device.
        ends, ys = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, device, M, axis=0), found)
        return jax.tree.map(lambda a: a[None], ends), ys

    everywhere, over_time = PartitionSpec(), PartitionSpec(None, None, axis)
    run = jax.shard_map(
        part,
        mesh=_mesh.divided_by_xla(mesh),
        in_specs=(everywhere, everywhere, over_time),
        out_specs=(PartitionSpec(axis), over_time),
    )
    ends, ys = run(params, grouped(state), grouped((xs, mask, reset)))
    state = jax.tree.map(lambda a: a[-1].reshape(B, *a.shape[3:]), ends)
    return state, jax.tree.map(lambda a: a.reshape(B, T, *a.shape[3:]), ys)


def _sizes(xs: Any, N: int, group: int) -> tuple[int, int]:
    """B and T."""
    group = _checks.positive_int("group", group)
    shapes = {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(xs)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"xs: got leaves {shapes}, expected [B, T, ...], the same B and T for all")
    B, T = next(iter(shapes))
    if T % N:
        raise ValueError(
            f"xs: got T = {T} steps, expected a multiple of {N}, the devices; fill the sequences "
            "up and give a mask"
        )
    if B % group:
        raise ValueError(f"group: got {group}, expected a divisor of the {B} sequences")
    return B, T
