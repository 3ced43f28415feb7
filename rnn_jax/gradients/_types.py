"""What the gradient algorithms share: the signature, and the sum of a loss over valid steps."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from rnn_jax import _sequence
from rnn_jax._types import Array, Key, Params, State, is_float, vary, varying_axes

StepLoss: TypeAlias = Callable[[Any, Any], Array]  # (y, target) -> [] float
Draw: TypeAlias = Callable[[Key, tuple[int, ...], Any], Array]  # (key, shape, dtype)


class ValueAndGrad(Protocol):
    """``((total, state), grads)`` of one sequence."""

    def __call__(
        self,
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]: ...


def across(value_and_grad: Any) -> Any:
    """An algorithm that works inside `jax.shard_map`: all that it reads varies over the same axes.

    The gradient has the type of the params: by params that all devices share, it is the sum of
    those of all devices, as `jax.grad` has it.
    """

    @functools.wraps(value_and_grad)
    def run(params: Params, state: State | None, xs: Any, targets: Any, **named: Any) -> Any:
        given = params, state, xs, targets, named
        given = jax.tree.map(jnp.asarray, given)
        axes = varying_axes(given)
        if not axes:
            return value_and_grad(*given[:4], **given[4])
        wide, pull = jax.vjp(lambda params: vary(params, axes), params)
        _, state, xs, targets, named = vary(given, axes)
        result, grads = value_and_grad(wide, state, xs, targets, **named)
        return result, pull(grads)[0]

    return run


def nan_unless(ok: Array, tree: Any) -> Any:
    """`tree`, or NaN in all its floats; made in one piece, so that nothing else sees a NaN."""

    @jax.jit
    def chosen(ok: Array, tree: Any) -> Any:
        nan = lambda a: jnp.where(ok, a, jnp.full_like(a, jnp.nan)) if is_float(a) else a  # noqa: E731
        return jax.tree.map(nan, tree)

    return chosen(ok, tree)


def total_loss(loss: StepLoss, ys: Any, targets: Any, mask: Array | None) -> Array:
    """The sum of a loss over the valid steps; the targets of the others may be anything."""
    if mask is None:
        return jax.vmap(loss)(ys, targets).sum()
    losses = jax.vmap(loss)(*_sequence.padded((ys, targets), mask))
    return jnp.where(mask, losses, jnp.zeros_like(losses)).sum()


def select(flag: Array, new: Any, old: Any) -> Any:
    """One of two pytrees; a NaN in the other does not get through."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


def guarded(tree: Any, valid: Array) -> Any:
    """Zeros where a step is not valid: 0 * NaN would be NaN."""
    return select(valid, tree, jax.tree.map(jnp.zeros_like, tree))


def signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random signs, the noise of least variance with the identity as its covariance."""
    return jax.random.rademacher(key, shape, dtype)


def needed(key: Key | None, name: str) -> Key:
    """The key of an algorithm that draws."""
    if key is None:
        raise TypeError(f"key: got None, but {name} draws; pass key=jax.random.key(seed)")
    return key
