"""Many to one: what is left of the outputs of a sequence when time is gone.

`rnn_jax.unroll` gives zero at padded steps, so ``ys[-1]`` of a padded sequence is zero. These take
the mask. What a step that is not valid holds, NaN and inf included, reaches neither the result nor
a gradient; without any valid step the result is zero. A batch is ``jax.vmap(last)(ys, masks)``.
"""

import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, wide


def last(ys: Array, mask: Array | None = None) -> Array:
    """The output at the last valid step.

    Args:
      ys: [T, ...], the outputs of one sequence.
      mask: [T] bool, None for all valid.

    Returns:
      [...], in the dtype of `ys`: ``ys[-1]`` without a mask.

    Raises:
      ValueError, TypeError: `ys` is a scalar; the mask is not bool or not [T].

    Example:
      >>> ys = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
      >>> print(last(ys), last(ys, jnp.array([True, True, False])))
      [0. 0.] [3. 4.]
    """
    mask = _mask(ys, mask)
    return _at(ys, mask, jnp.max(jnp.where(mask, jnp.arange(len(ys)), 0), initial=0))


def both_ends(ys: Array, mask: Array | None = None, *, forward_size: int | None = None) -> Array:
    """Of a net that reads both ways, the output of each direction when it has read everything.

    That is the last valid step of the forward cell and the first valid step of the backward one:
    at the last valid step the backward cell has read one input.

    Args:
      ys: [T, H], the outputs of `rnn_jax.bidirectional` or `rnn_jax.two_way`.
      mask: [T] bool, None for all valid.
      forward_size: how many of the H come from the forward cell; None for half.

    Returns:
      [H], in the dtype of `ys`.

    Raises:
      ValueError, TypeError: `forward_size` is not below H, or is needed; as in `last`.

    Example:
      >>> ys = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
      >>> print(both_ends(ys, jnp.array([True, True, False])))
      [3. 2.]
    """
    mask = _mask(ys, mask)
    H = ys.shape[-1]
    if forward_size is None and H % 2:
        raise ValueError(f"forward_size: got None, and H = {H} has no half. Pass forward_size=...")
    size = H // 2 if forward_size is None else _checks.positive_int("forward_size", forward_size)
    if size >= H:
        raise ValueError(f"forward_size: got {size}, expected less than H = {H}")
    backward = last(ys[::-1, ..., size:], mask[::-1])
    return jnp.concatenate([last(ys[..., :size], mask), backward], axis=-1)


def mean_over_time(ys: Array, mask: Array | None = None) -> Array:
    """The mean over the valid steps, added up in float32 or wider.

    Args, errors: those of `last`; `ys` is floating-point.

    Returns:
      [...], in the dtype of `ys`: ``ys.mean(axis=0)`` without a mask.

    Example:
      >>> ys = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
      >>> print(mean_over_time(ys, jnp.array([True, True, False])))
      [2. 3.]
    """
    mask = _mask(ys, mask)
    valid = jnp.where(_wide_as(mask, ys), ys, jnp.zeros_like(ys)).astype(wide(ys.dtype))
    count = jnp.maximum(mask.sum(), 1).astype(valid.dtype)
    return (valid.sum(axis=0) / count).astype(ys.dtype)


def max_over_time(ys: Array, mask: Array | None = None) -> Array:
    """The largest value of each output over the valid steps.

    Args, errors: those of `last`; `ys` is floating-point.

    Returns:
      [...], in the dtype of `ys`: ``ys.max(axis=0)`` without a mask.

    Example:
      >>> ys = jnp.array([[-1.0, -4.0], [-3.0, -2.0], [0.0, 0.0]])
      >>> print(max_over_time(ys, jnp.array([True, True, False])))
      [-1. -2.]
    """
    mask = _mask(ys, mask)
    lowest = jnp.full_like(ys, -jnp.inf)
    largest = jnp.where(_wide_as(mask, ys), ys, lowest).max(axis=0, initial=-jnp.inf)
    return jnp.where(mask.any(), largest, jnp.zeros_like(largest))


def _mask(ys: Array, mask: Array | None) -> Array:
    steps = _checks.time_steps(ys)
    return jnp.ones(steps, bool) if mask is None else _checks.time_flags("mask", mask, steps)


def _wide_as(mask: Array, ys: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (ys.ndim - 1))


def _at(ys: Array, mask: Array, step: Array) -> Array:
    if not len(ys):
        return jnp.zeros(ys.shape[1:], ys.dtype)
    return jnp.where(mask.any(), ys[step], jnp.zeros_like(ys[0]))
