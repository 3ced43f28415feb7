"""Masked losses over sequences: the mean over valid entries, whatever the padding holds.

Every loss takes predictions with any leading axes ([T], [B, T], ...) and a mask of those axes. The
mean is over all valid entries together, so short sequences in a batch count for less than long
ones. With nothing valid the loss is 0. Padding, NaN and inf included, reaches neither the loss nor
a gradient. All is computed in float32 or wider, and the result has the dtype of the predictions.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from rnn_jax._types import Array, wide


def cross_entropy(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean of -log softmax(logits)[label], in nats.

    Args:
      logits: [..., O] float.
      labels: [...] int, 0 <= label < O.
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError: shapes do not fit.
      TypeError: the mask is not bool.

    Example:
      >>> logits = jnp.array([[0.0, 0.0], [jnp.nan, jnp.nan]])
      >>> print(cross_entropy(logits, jnp.array([1, 0]), jnp.array([True, False])).round(4))
      0.6931
    """
    return _masked_mean(
        optax.losses.softmax_cross_entropy_with_integer_labels, logits, labels, mask, 1
    )


def binary_cross_entropy(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean over valid steps of the sum over outputs of the Bernoulli -log likelihood, in nats.

    Args:
      logits: [..., O] float.
      labels: [..., O] float in [0, 1].
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError: shapes do not fit.
      TypeError: the mask is not bool.

    Example:
      >>> print(binary_cross_entropy(jnp.zeros((3, 2)), jnp.ones((3, 2))).round(4))
      1.3863
    """

    def loss(logits: Array, labels: Array) -> Array:
        return optax.losses.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)

    return _masked_mean(loss, logits, labels, mask, 0)


def squared_error(predictions: Array, targets: Array, mask: Array | None = None) -> Array:
    """Mean over valid steps of the sum over outputs of (prediction - target)^2.

    Args:
      predictions: [..., O] float.
      targets: [..., O] float.
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError: shapes do not fit.
      TypeError: the mask is not bool.

    Example:
      >>> print(squared_error(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.zeros((2, 2))))
      7.0
    """

    def loss(predictions: Array, targets: Array) -> Array:
        return optax.losses.squared_error(predictions, targets).sum(axis=-1)

    return _masked_mean(loss, predictions, targets, mask, 0)


def _masked_mean(
    loss: Callable[[Array, Array], Array],
    predictions: Array,
    targets: Array,
    mask: Array | None,
    target_axes_missing: int,
) -> Array:
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    expected = predictions.shape[: predictions.ndim - target_axes_missing]
    if predictions.ndim == 0 or targets.shape != expected:
        raise ValueError(
            f"targets: got shape {targets.shape} for predictions of shape {predictions.shape}, "
            f"expected {expected}"
        )
    dtype = predictions.dtype
    predictions = predictions.astype(wide(dtype))
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(predictions.dtype)
    if mask is None:
        return loss(predictions, targets).mean().astype(dtype)
    mask = jnp.asarray(mask)
    if mask.shape != predictions.shape[:-1]:
        raise ValueError(f"mask: got shape {mask.shape}, expected {predictions.shape[:-1]}")
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask: got dtype {mask.dtype}, expected bool")
    predictions = jnp.where(mask[..., None], predictions, jnp.zeros_like(predictions))
    target_mask = mask if target_axes_missing else mask[..., None]
    targets = jnp.where(target_mask, targets, jnp.zeros_like(targets))
    losses = jnp.where(mask, loss(predictions, targets), jnp.zeros((), predictions.dtype))
    count = jnp.maximum(mask.sum(), 1).astype(losses.dtype)
    return (losses.sum() / count).astype(dtype)
