"""Masked losses over sequences: the mean over valid entries, whatever the padding holds.

Every loss takes predictions with any leading axes ([T], [B, T], ...) and a mask of those axes. The
mean is over all valid entries together, so short sequences in a batch count for less than long
ones. With nothing valid the loss is 0. Padding, NaN and inf included, reaches neither the loss nor
a gradient. All is computed in float32 or wider, and the result has the dtype of the predictions.

The last axis of `squared_error` and `binary_cross_entropy` is that of the outputs, which are added
up: T numbers are [T, 1], and one step of O outputs is [1, O]; a lone axis is refused.

A target that cannot be (a label outside of 0 <= label < O, a probability outside of [0, 1]) is an
error where its value is known. Inside of `jit` it makes that loss, and the gradient of that step,
NaN: mask it instead, whatever it is.
"""

from collections.abc import Callable

import jax
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
      ValueError: shapes do not fit; a label that is known is out of range.
      TypeError: the logits are not floats, the labels not integers, the mask not bool.

    Example:
      >>> logits = jnp.array([[0.0, 0.0], [jnp.nan, jnp.nan]])
      >>> print(cross_entropy(logits, jnp.array([1, 0]), jnp.array([True, False])).round(4))
      0.6931
    """
    logits, labels = _floats("logits", logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"targets: got labels of dtype {labels.dtype}, expected integers, 0 <= label < O; for "
            "a probability of each output: binary_cross_entropy, or optax.losses"
        )
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which O fits into
    if logits.ndim == 0:
        raise ValueError("logits: got a scalar, expected [..., O]")
    O = logits.shape[-1]
    wrong = (labels < 0) | (labels >= O)
    _known("targets", labels, wrong, mask, f"labels with 0 <= label < {O}")

    def loss(logits: Array, labels: Array) -> Array:
        each = optax.losses.softmax_cross_entropy_with_integer_labels
        inside = jnp.clip(labels, 0, O - 1)
        return _nan_where(labels != inside, each(logits, inside))

    return _masked_mean(loss, logits, labels, mask, 1)


def binary_cross_entropy(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean over valid steps of the sum over outputs of the Bernoulli -log likelihood, in nats.

    Args:
      logits: [..., O] float.
      labels: [..., O] in [0, 1], floats, integers or bool.
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError: shapes do not fit; a label that is known is out of range.
      TypeError: the logits are not floats, the labels complex, the mask not bool.

    Example:
      >>> print(binary_cross_entropy(jnp.zeros((3, 2)), jnp.ones((3, 2))).round(4))
      1.3863
    """

    logits = _floats("logits", logits)
    labels = _outputs(logits, labels, mask)
    _known("targets", labels, ~((labels >= 0) & (labels <= 1)), mask, "labels between 0 and 1")

    def loss(logits: Array, labels: Array) -> Array:
        each = optax.losses.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)
        return _nan_where(~((labels >= 0) & (labels <= 1)).all(axis=-1), each)

    return _masked_mean(loss, logits, labels, mask, 0)


def squared_error(predictions: Array, targets: Array, mask: Array | None = None) -> Array:
    """Mean over valid steps of the sum over outputs of (prediction - target)^2.

    Args:
      predictions: [..., O] float.
      targets: [..., O], floats, integers or bool.
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError: shapes do not fit.
      TypeError: the predictions are not floats, the targets complex, the mask not bool.

    Example:
      >>> print(squared_error(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.zeros((2, 2))))
      7.0
    """

    def loss(predictions: Array, targets: Array) -> Array:
        return optax.losses.squared_error(predictions, targets).sum(axis=-1)

    predictions = _floats("predictions", predictions)
    return _masked_mean(loss, predictions, _outputs(predictions, targets, mask), mask, 0)


def activation_penalty(ys: Array, mask: Array | None = None) -> Array:
    """Activation regularization (AR): the mean of y^2 over all units of all valid steps.

    It keeps outputs small. AWD-LSTM adds 2 times this of the last layer's outputs, after dropout.

    Args:
      ys: [..., H] float, such as [T, H] or [B, T, H].
      mask: [...] bool, None for all valid.

    Returns:
      [] float.

    Raises:
      ValueError, TypeError: as in `squared_error`.

    Example:
      >>> print(activation_penalty(jnp.array([[1.0, 1.0], [3.0, 1.0]])))
      3.0

    References:
      Merity, McCann, Socher. Revisiting activation regularization for language RNNs. 2017.
    """
    ys = _floats("ys", ys)
    return squared_error(ys, jnp.zeros_like(ys), mask) / jnp.asarray(ys.shape[-1], ys.dtype)


def slowness_penalty(ys: Array, mask: Array | None = None) -> Array:
    """Temporal activation regularization (TAR): the mean of (y_t - y_{t-1})^2 over all units.

    It makes outputs change slowly. AWD-LSTM adds this of the last layer's outputs, before dropout.

    Args:
      ys: [..., T, H] float; time is the last axis but one.
      mask: [..., T] bool, None for all valid. Two steps count where both are valid.

    Returns:
      [] float; 0 for a single step.

    Raises:
      ValueError, TypeError: as in `squared_error`; `ys` has no axis of time.

    Example:
      >>> print(slowness_penalty(jnp.array([[1.0, 1.0], [3.0, 1.0]])))
      2.0

    References:
      Merity, McCann, Socher. Revisiting activation regularization for language RNNs. 2017.
    """
    ys = _floats("ys", ys)
    if ys.ndim < 2:
        raise ValueError(f"ys: got shape {ys.shape}, expected [..., T, H]")
    both = None if mask is None else mask[..., 1:] & mask[..., :-1]
    if ys.shape[-2] == 1:
        both = jnp.zeros((*ys.shape[:-2], 0), bool)  # a mean of nothing is 0, not NaN
    size = jnp.asarray(ys.shape[-1], ys.dtype)
    return squared_error(ys[..., 1:, :], ys[..., :-1, :], both) / size


def _floats(name: str, a: Array) -> Array:
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise TypeError(f"{name}: got dtype {a.dtype}, expected floats")
    return a


def _outputs(predictions: Array, targets: Array, mask: Array | None) -> Array:
    """Targets of the shape of the predictions, as floats.

    A lone axis may be that of the steps or of the outputs: a mask of one step says which.
    """
    targets = jnp.asarray(targets)
    if mask is None and predictions.ndim == 1 == targets.ndim:
        raise ValueError(
            f"predictions: got shape {predictions.shape}, expected [..., O]: the last axis is "
            "added up as the outputs of a step. For a number at each step, write "
            "predictions[:, None] and targets[:, None]; for one step, predictions[None] and "
            "targets[None]."
        )
    _check_shape(predictions, targets, predictions.shape)
    if jnp.issubdtype(targets.dtype, jnp.complexfloating):
        raise TypeError(f"targets: got dtype {targets.dtype}, expected real numbers")
    return targets.astype(wide(predictions.dtype))


def _check_shape(predictions: Array, targets: Array, expected: tuple[int, ...]) -> None:
    if predictions.ndim == 0 or targets.shape != expected:
        raise ValueError(
            f"targets: got shape {targets.shape} for predictions of shape {predictions.shape}, "
            f"expected {expected}"
        )


def _known(name: str, values: Array, wrong: Array, mask: Array | None, expected: str) -> None:
    """Raises for a value that cannot be, if values and mask are known and have a shape to fit."""
    if any(isinstance(a, jax.core.Tracer) for a in (values, wrong, mask)):
        return
    if mask is not None:
        if jnp.shape(mask) != wrong.shape[: jnp.ndim(mask)]:
            return  # which is said elsewhere
        valid, axes = jnp.asarray(mask, bool), range(jnp.ndim(mask), wrong.ndim)
        wrong = wrong & jnp.expand_dims(valid, axes)
    if wrong.size and bool(wrong.any()):
        place = tuple(int(i) for i in jnp.unravel_index(wrong.argmax(), wrong.shape))
        raise ValueError(f"{name}{list(place)}: got {values[place]}, expected {expected}")


@jax.jit  # NaN made outside of it would stop `jax_debug_nans` where all is well
def _nan_where(wrong: Array, losses: Array) -> Array:
    """NaN, and NaN as the gradient."""
    nan = jnp.full_like(losses, jnp.nan)
    return losses * jnp.where(wrong, nan, jnp.ones_like(losses))


def _masked_mean(
    loss: Callable[[Array, Array], Array],
    predictions: Array,
    targets: Array,
    mask: Array | None,
    target_axes_missing: int,
) -> Array:
    _check_shape(predictions, targets, predictions.shape[: predictions.ndim - target_axes_missing])
    dtype = predictions.dtype
    predictions = predictions.astype(wide(dtype))
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
