"""Masked losses against a loop over the valid entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import key

from rnn_jax import length_mask, losses

B, T, O = 4, 5, 3
MASK = np.asarray(length_mask(jnp.array([0, 5, 2, 3]), T))


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.asarray(jax.random.normal(key(seed), shape))


def targets(name: str) -> np.ndarray:
    if name == "cross_entropy":
        return np.asarray(jax.random.randint(key(1), (B, T), 0, O))
    if name == "binary_cross_entropy":
        return np.asarray(jax.random.bernoulli(key(1), 0.4, (B, T, O)), np.float32)
    return draw(1, B, T, O)


def by_hand(name: str, prediction: np.ndarray, target: np.ndarray) -> float:
    if name == "cross_entropy":
        return float(np.log(np.exp(prediction).sum()) - prediction[target])
    if name == "binary_cross_entropy":
        p = 1 / (1 + np.exp(-prediction))
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).sum())
    return float(((prediction - target) ** 2).sum())


every_loss = pytest.mark.parametrize(
    "name", ["cross_entropy", "binary_cross_entropy", "squared_error"]
)


@every_loss
def test_mean_over_valid_entries(name: str) -> None:
    loss = getattr(losses, name)
    predictions, wanted = draw(2, B, T, O), targets(name)
    each = np.array(
        [[by_hand(name, predictions[b, t], wanted[b, t]) for t in range(T)] for b in range(B)]
    )
    np.testing.assert_allclose(loss(predictions, wanted), each.mean(), rtol=1e-5)
    got = loss(predictions, wanted, jnp.asarray(MASK))
    np.testing.assert_allclose(got, each[MASK].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        loss(predictions[1, 2], wanted[1, 2]), each[1, 2], rtol=1e-5
    )  # without any leading axis


@every_loss
def test_padding_reaches_nothing(name: str) -> None:
    loss = getattr(losses, name)
    wanted, mask = targets(name), jnp.asarray(MASK)
    holes = jnp.where(mask[..., None], draw(2, B, T, O), jnp.nan)
    if wanted.dtype.kind == "f":
        wanted = np.where(MASK[..., None], wanted, np.nan)
    else:
        wanted = np.where(MASK, wanted, 10**6)
    arguments = (0, 1) if wanted.dtype.kind == "f" else (0,)
    value, gradients = jax.value_and_grad(loss, arguments)(holes, wanted, mask)
    assert np.isfinite(value)
    for gradient in gradients:
        assert bool((gradient[~mask] == 0).all())
        assert bool((jnp.abs(gradient[mask]) > 0).all())


@every_loss
def test_nothing_valid_is_zero(name: str) -> None:
    loss = getattr(losses, name)
    none = jnp.zeros((B, T), bool)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(draw(2, B, T, O)), targets(name), none)
    assert float(value) == 0
    assert bool((gradient == 0).all())


@every_loss
def test_dtype_is_kept(name: str) -> None:
    loss = getattr(losses, name)
    wanted = jnp.asarray(targets(name))
    if wanted.dtype == jnp.float32:
        wanted = wanted.astype(jnp.bfloat16)
    predictions = jnp.asarray(draw(2, B, T, O), jnp.bfloat16)
    assert loss(predictions, wanted, jnp.asarray(MASK)).dtype == jnp.bfloat16


@every_loss
def test_errors_name_the_argument(name: str) -> None:
    loss = getattr(losses, name)
    wanted = targets(name)
    with pytest.raises(ValueError, match="targets: got shape"):
        loss(draw(2, B, T + 1, O), wanted)
    with pytest.raises(ValueError, match="mask: got shape"):
        loss(draw(2, B, T, O), wanted, jnp.ones((T, B), bool))
    with pytest.raises(TypeError, match="mask: got dtype"):
        loss(draw(2, B, T, O), wanted, jnp.ones((B, T)))
