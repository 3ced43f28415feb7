"""How much the gradients of single examples differ, measured by their mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Params
from rnn_jax.gradients._vector import ravel


class NoiseScale(NamedTuple):
    """Result of `noise_scale`; each field is [] float."""

    signal: Array  # |G|^2, of the true gradient; an estimate without bias, so it may be below 0
    noise: Array  # tr(Sigma), of the covariance of one example's gradient; without bias too
    scale: Array  # noise / signal, the simple noise scale: a batch size
    snr: Array  # signal / noise, of one example


def noise_scale(grads: Params) -> NoiseScale:
    """The simple noise scale tr(Sigma) / |G|^2, from B gradients of single examples.

    tr(Sigma) = sum_b ||g_b - mean||^2 / (B - 1),  |G|^2 = ||mean||^2 - tr(Sigma) / B

    Batches much smaller than the scale are mostly noise; much larger ones are mostly the same
    gradient again. Over the keys of one fixed batch instead of over examples, it measures the
    noise of a stochastic estimator alone.

    Args:
      grads: a pytree of float arrays with the leading axis B >= 2, such as
        ``jax.vmap(value_and_grad, in_axes=(None, None, 0, 0))(params, None, xs, targets)[1]``.

    Returns:
      `NoiseScale`.

    Raises:
      ValueError: fewer than two gradients, or arrays with different leading axes.

    Example:
      Two examples whose gradients are (1, 0) and (3, 0):

      >>> signal, noise, scale, snr = noise_scale({"w": jnp.array([1.0, 3.0]), "b": jnp.zeros(2)})
      >>> print(signal, noise, scale.round(4), snr)
      3.0 2.0 0.6667 1.5

    References:
      McCandlish, Kaplan, Amodei et al. An empirical model of large-batch training. 2018.
    """
    sizes = {jnp.shape(g)[:1] for g in jax.tree.leaves(grads)}
    if len(sizes) != 1 or next(iter(sizes), ()) in ((), (0,), (1,)):
        raise ValueError(
            f"grads: got leading axes {sorted(sizes)}, expected one B >= 2 for all arrays; "
            "jax.vmap a value_and_grad over examples"
        )
    g = jax.vmap(ravel)(grads)  # [B, p]
    B, mean = len(g), g.mean(axis=0)
    noise = jnp.sum((g - mean[None]) ** 2) / (B - 1)
    signal = jnp.sum(mean**2) - noise / B
    return NoiseScale(signal, noise, noise / signal, signal / noise)
