"""What the gradient algorithms share: the signature, and the sum of a loss over valid steps."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from rnn_jax import _sequence
from rnn_jax._types import Array, Key, Params, State, is_float, vary, varying_axes, wide

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
        varied, pull = jax.vjp(lambda params: vary(params, axes), params)
        _, state, xs, targets, named = vary(given, axes)
        result, grads = value_and_grad(varied, state, xs, targets, **named)
        return result, pull(grads)[0]

    return run


def fitting(targets: Any, steps: int) -> None:
    """Checks that there is a target for each time step; one taken twice would go unnoticed."""
    for path, a in jax.tree_util.tree_leaves_with_path(targets):
        if jnp.shape(a)[:1] != (steps,):
            raise ValueError(
                f"targets{jax.tree_util.keystr(path)}: got shape {jnp.shape(a)}, expected "
                f"({steps}, ...), one for each time step of xs. For a batch, map over targets with "
                "jax.vmap."
            )


def scalar(loss: StepLoss) -> StepLoss:
    """A loss that is checked: y [1] and a target [] would broadcast, y [O] and [O, 1] too."""

    def checked(y: Any, target: Any) -> Array:
        value = loss(y, target)
        if jnp.shape(value) != ():
            raise ValueError(
                f"loss: got a result of shape {jnp.shape(value)} for one step, expected a scalar: "
                "sum or average over the outputs, and see that y and target have one shape"
            )
        return value

    return checked


def total_loss(loss: StepLoss, ys: Any, targets: Any, mask: Array | None) -> Array:
    """The sum of a loss over the valid steps; the targets of the others may be anything."""
    fitting(targets, jax.tree.leaves(ys)[0].shape[0])
    loss = scalar(loss)
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


@jax.jit  # NaN made outside of it would stop `jax_debug_nans` where all is well
def or_nan(flag: Array, tree: Any) -> Any:
    """`tree`, or NaN in the place of all its floats."""
    return jax.tree.map(
        lambda a: jnp.where(flag, a, jnp.full_like(a, jnp.nan)) if is_float(a) else a, tree
    )


def added(total: Any, more: Any) -> Any:
    """A running sum of `zeros` and what comes; in half precision it would stop growing at 256."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more)


def zeros(tree: Any) -> Any:
    """Where a running sum begins: like `tree`, in single precision or wider."""
    return jax.tree.map(lambda a: jnp.zeros_like(a, wide(a.dtype) if is_float(a) else None), tree)


def rounded(total: Any, like: Any) -> Any:
    """A running sum in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), total, like)


def signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random signs, the noise of least variance with the identity as its covariance."""
    return jax.random.rademacher(key, shape, dtype)


def needed(key: Key | None, name: str) -> Key:
    """The key of an algorithm that draws."""
    if key is None:
        raise TypeError(f"key: got None, but {name} draws; pass key=jax.random.key(seed)")
    return key
