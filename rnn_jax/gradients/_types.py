"""What the gradient algorithms share: the signature, and the sum of a loss over valid steps."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Key, Params, State

StepLoss: TypeAlias = Callable[[Any, Any], Array]  # (y, target) -> [] float


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
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]: ...


def total_loss(loss: StepLoss, ys: Any, targets: Any, mask: Array | None) -> Array:
    """The sum of a loss over the valid steps; the targets of the others may be anything."""
    if mask is None:
        return jax.vmap(loss)(ys, targets).sum()

    losses = jax.vmap(loss)(ys, targets)
    return jnp.where(mask, losses, jnp.zeros_like(losses)).sum()
