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
    one = loss(predictions[1, 2][None], wanted[1, 2][None])
    np.testing.assert_allclose(one, each[1, 2], rtol=1e-5)


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


def test_logits_of_one_step() -> None:
    logits, label = draw(2, O), jnp.array(1)
    expected = by_hand("cross_entropy", logits, np.asarray(label))
    np.testing.assert_allclose(losses.cross_entropy(logits, label), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error"])
def test_a_lone_axis_is_refused(name: str) -> None:
    """Eight steps of one output, or one step of eight? They differ by a factor of eight."""
    loss = getattr(losses, name)
    with pytest.raises(ValueError, match=r"predictions: got shape \(8,\), expected \[\.\.\., O\]"):
        loss(jnp.ones(8), jnp.zeros(8))
    ratio = loss(jnp.ones((1, 8)), jnp.zeros((1, 8))) / loss(jnp.ones((8, 1)), jnp.zeros((8, 1)))
    np.testing.assert_allclose(ratio, 8, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (5, 1), (1, 3), (3, 5), (1, 5, 3)])
@every_loss
def test_nothing_broadcasts(name: str, shape: tuple[int, ...]) -> None:
    wanted = jnp.zeros(shape, int if name == "cross_entropy" else float)
    with pytest.raises(ValueError, match=r"targets: got shape .* expected"):
        getattr(losses, name)(jnp.zeros((5, 3)), wanted)


@every_loss
def test_dtypes_that_are_refused(name: str) -> None:
    loss, wanted = getattr(losses, name), targets(name)
    with pytest.raises(TypeError, match=r"(logits|predictions): got dtype int32, expected floats"):
        loss(jnp.zeros((B, T, O), int), wanted)
    with pytest.raises(TypeError, match=r"targets: got .*dtype complex64"):
        loss(draw(2, B, T, O), wanted.astype(np.complex64))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_])
def test_labels_of_cross_entropy_are_integers(dtype: jax.typing.DTypeLike) -> None:
    with pytest.raises(TypeError, match=r"targets: got labels of dtype .*, expected integers"):
        losses.cross_entropy(draw(2, B, T, O), jnp.zeros((B, T), dtype))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error"])
def test_targets_of_any_dtype(name: str, dtype: jax.typing.DTypeLike) -> None:
    loss = getattr(losses, name)
    wanted = jax.random.bernoulli(key(1), 0.5, (T, O))
    expected = loss(draw(2, T, O), wanted.astype(jnp.float32))
    assert loss(draw(2, T, O), wanted.astype(dtype)) == expected


def bad_labels(name: str, dtype: jax.typing.DTypeLike, value: float) -> tuple[jax.Array, jax.Array]:
    classes = 200
    shape = (T,) if name == "cross_entropy" else (T, classes)
    good = jnp.ones(shape, dtype)
    at = (2,) if name == "cross_entropy" else (2, 1)
    return jnp.asarray(draw(2, T, classes)), good.at[at].set(jnp.asarray(value, dtype))


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [
        ("cross_entropy", jnp.int32, 200),
        ("cross_entropy", jnp.int32, -1),
        ("cross_entropy", jnp.int32, -100),
        ("cross_entropy", jnp.int8, -1),
        ("cross_entropy", jnp.uint8, 255),
        ("cross_entropy", jnp.uint32, 2**32 - 1),
        ("binary_cross_entropy", jnp.float32, 1.5),
        ("binary_cross_entropy", jnp.float32, -0.1),
        ("binary_cross_entropy", jnp.float32, np.nan),
        ("binary_cross_entropy", jnp.int32, 2),
    ],
)
def test_labels_out_of_range(name: str, dtype: jax.typing.DTypeLike, value: float) -> None:
    """Known: an error that names the place. In a jit: NaN, for this step alone. Masked: nothing."""
    loss, (logits, wanted) = getattr(losses, name), bad_labels(name, dtype, value)
    with pytest.raises(ValueError, match=r"targets\[2(, 1)?\]: got .*, expected labels"):
        loss(logits, wanted)
    total, gradient = jax.jit(jax.value_and_grad(loss))(logits, wanted)
    assert np.isnan(total)
    bad = np.isnan(np.asarray(gradient)).any(1)
    np.testing.assert_array_equal(bad, np.arange(T) == 2)
    mask = jnp.arange(T) != 2
    got, gradient = jax.value_and_grad(loss)(logits, wanted, mask)
    rest = np.delete(np.arange(T), 2)
    np.testing.assert_allclose(got, loss(logits[rest], wanted[rest]), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_small_integers_name_many_classes() -> None:
    logits = jnp.asarray(draw(2, T, 300))
    got = losses.cross_entropy(logits, jnp.full(T, 120, jnp.int8))
    assert got == losses.cross_entropy(logits, jnp.full(T, 120))


@every_loss
def test_all_is_well_under_debug_nans(name: str) -> None:
    logits = jnp.asarray(draw(2, B, T, O))
    with jax.debug_nans(True):
        value, _ = jax.value_and_grad(getattr(losses, name))(logits, targets(name))
        assert np.isfinite(value)


@pytest.mark.parametrize("masked", [True, False])
def test_penalties_are_means_over_units_and_valid_steps(masked: bool) -> None:
    ys = draw(0, B, T, O).astype(np.float64)
    mask = MASK.copy() if masked else np.ones_like(MASK)
    mask[1, 2] = not masked
    noisy = np.where(mask[..., None], ys, np.nan) if masked else ys
    squares = [ys[b, t] ** 2 for b in range(B) for t in range(T) if mask[b, t]]
    changes = [
        (ys[b, t] - ys[b, t - 1]) ** 2
        for b in range(B) for t in range(1, T) if mask[b, t] and mask[b, t - 1]
    ]  # fmt: skip
    given = jnp.asarray(mask) if masked else None
    got = losses.activation_penalty(jnp.asarray(noisy, jnp.float32), given)
    np.testing.assert_allclose(got, np.mean(squares), rtol=1e-6)
    got = losses.slowness_penalty(jnp.asarray(noisy, jnp.float32), given)
    np.testing.assert_allclose(got, np.mean(changes), rtol=1e-6)
    slopes = jax.grad(lambda y: losses.slowness_penalty(y, given))(jnp.asarray(noisy, jnp.float32))
    assert jnp.isfinite(slopes).all()


def test_penalties_of_nothing_and_of_what_has_no_time() -> None:
    assert losses.slowness_penalty(jnp.ones((1, 3))) == 0
    assert losses.slowness_penalty(jnp.ones((4, 3)), jnp.zeros(4, bool)) == 0
    assert losses.activation_penalty(jnp.ones((4, 3)), jnp.zeros(4, bool)) == 0
    with pytest.raises(ValueError, match=r"ys: got shape \(3,\)"):
        losses.slowness_penalty(jnp.ones(3))
