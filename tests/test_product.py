"""The primitives of a loop against the operations that they stand for, under every transform."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rnn_jax._product import outer_p, product, shifted

T, I, O = 5, 3, 4
Case = tuple[Any, Any, tuple[Any, ...]]  # ours, what it stands for, arguments


def draw(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape) + len(shape)), shape, float)


def expanded(x: jax.Array, b: jax.Array) -> jax.Array:
    return x + b.reshape((1,) * (x.ndim - 1) + b.shape)


def given_transpose(x: jax.Array, w: jax.Array) -> jax.Array:
    return product(x, w, w.T)


def outer(x: jax.Array, y: jax.Array) -> jax.Array:
    return outer_p.bind(x, y, precision=None)


def sum_of_outers(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def cases() -> dict[str, Case]:
    return {
        "vector @ w": (product, jnp.matmul, (draw(I), draw(I, O))),
        "matrix @ w": (product, jnp.matmul, (draw(6, I), draw(I, O))),
        "tensor @ w": (product, jnp.matmul, (draw(2, 6, I), draw(I, O))),
        "matrix @ w, w.T given": (given_transpose, jnp.matmul, (draw(6, I), draw(I, O))),
        "matrix + b": (shifted, expanded, (draw(6, O), draw(O))),
        "tensor + b": (shifted, expanded, (draw(2, 6, O), draw(O))),
        "outer of matrices": (outer, sum_of_outers, (draw(6, I), draw(6, O))),
    }


with jax.enable_x64(True):
    CASES = cases()
pytestmark = pytest.mark.usefixtures("x64")
every_case = pytest.mark.parametrize("name", CASES)


def is_float(a: jax.Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def of_floats(f: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """`f` as a function of its floating arguments alone, and these."""

    def g(*floats: Any) -> Any:
        left = iter(floats)
        return f(*(next(left) if is_float(a) else a for a in args))

    return g, tuple(a for a in args if is_float(a))


def derivatives(f: Any, *args: Any) -> Any:
    """Value and slope, their gradients, and the slope of the gradient, of a curved loss."""
    g, floats = of_floats(f, args)
    every, tangents = tuple(range(len(floats))), tuple(jnp.cos(a) for a in floats)

    def loss(*floats: Any) -> Any:
        y = g(*floats)
        return (jnp.sin(y) * jnp.arange(1.0, y.size + 1).reshape(y.shape)).sum()

    def slope(*floats: Any) -> Any:
        return jax.jvp(loss, floats, tangents)[1]

    grad = jax.grad(loss, every)
    curvature = jax.jvp(grad, floats, tangents)[1]
    return g(*floats), slope(*floats), grad(*floats), jax.grad(slope, every)(*floats), curvature


def assert_same(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-12)


def stacked(a: jax.Array, count: int, axis: int) -> jax.Array:
    """Different copies of an argument along a new axis; of an index, different indices."""
    copies = [a + 0.3 * i * jnp.sin(a) if is_float(a) else a - i for i in range(count)]
    return jnp.stack(copies, axis)


def assert_agree(name: str, in_axes: Any) -> None:
    """All derivatives under `jax.vmap` over `in_axes`, the inner one last."""

    def both(*args: Any) -> Any:
        results = []
        for f in CASES[name][:2]:
            run = functools.partial(derivatives, f)
            for axes in reversed(in_axes):
                run = jax.vmap(run, axes)
            results.append(run(*args))
        return results

    args = list(CASES[name][2])
    for count, axes in zip((2, 3), reversed(in_axes), strict=False):
        for i, axis in enumerate(axes):
            args[i] = args[i] if axis is None else stacked(args[i], count, axis)
    assert_same(*jax.jit(both)(*args))


@every_case
def test_equals_what_it_stands_for(name: str) -> None:
    ours, plain, args = CASES[name]
    assert_agree(name, ())
    assert_same(ours(*args), plain(*args))


@every_case
def test_derivatives_equal_finite_differences(name: str) -> None:
    ours, _, args = CASES[name]
    check_grads(*of_floats(ours, args), order=2, modes=("fwd", "rev"))


@every_case
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (-1, 0)], ids=str)
def test_vmap(name: str, in_axes: Any) -> None:
    assert_agree(name, [in_axes])


@pytest.mark.parametrize("name", ["matrix @ w", "matrix + b"])
@pytest.mark.parametrize("in_axes", [(0, None), (0, 0)], ids=["batches", "seeds"])
def test_nested_vmap(name: str, in_axes: Any) -> None:
    """Over examples, and then over a second axis of examples, or over seeds."""
    assert_agree(name, [in_axes, (0, None)])


def test_an_axis_of_vmap_goes_behind_time() -> None:
    """What the primitives are for: a batch [B, T, I] is read as [T, B, I]."""
    for op, x, other in (
        (product, draw(T, I), draw(I, O)),
        (shifted, draw(T, O), draw(O)),
    ):
        batch = stacked(x, 6, 0)
        jaxpr = jax.make_jaxpr(jax.vmap(op, (0, None)))(batch, other)
        shapes = [e.invars[0].aval.shape for e in jaxpr.eqns if "rnn" in e.primitive.name]
        assert shapes == [(T, 6, x.shape[1])]


def test_the_gradient_of_a_matrix_is_one_product() -> None:
    """Over all leading axes, without a transposition of the cotangents."""
    x, w = draw(T, 6, I), draw(I, O)
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: product(x, w).sum()))(w)
    names = [e.primitive.name for e in jaxpr.eqns if e.outvars[0].aval.shape != (O, I)]
    assert names.count("rnn_outer") == 1
    assert "transpose" not in names


def test_the_given_transpose_has_no_influence_of_its_own() -> None:
    x, w = draw(I), draw(I, O)
    _, slope = jax.jvp(lambda w_t: product(x, w, w_t), (w.T,), (jnp.ones_like(w.T),))
    assert_same(slope, jnp.zeros(O))


def test_arguments_without_a_tangent() -> None:
    x, w, b = draw(6, I), draw(I, O), draw(O)

    def loss(f: Any, *args: Any) -> Any:
        return jnp.sin(f(*args)).sum()

    for argument in (0, 1):
        grad = jax.grad(lambda a, k=argument: loss(product, *((a, w) if k == 0 else (x, a))))
        plain = jax.grad(lambda a, k=argument: loss(jnp.matmul, *((a, w) if k == 0 else (x, a))))
        assert_same(grad((x, w)[argument]), plain((x, w)[argument]))
    y = x @ w
    assert_same(jax.grad(lambda y: loss(shifted, y, b))(y), jnp.cos(expanded(y, b)))
    assert_same(jax.grad(lambda b: loss(shifted, y, b))(b), jnp.cos(expanded(y, b)).sum(0))
    unused = jax.grad(lambda x, w, b: (shifted(product(x, w), b), x.sum())[1], (0, 1, 2))(x, w, b)
    assert_same(unused, (jnp.ones_like(x), jnp.zeros_like(w), jnp.zeros_like(b)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_case
def test_keeps_the_dtype(name: str, dtype: str) -> None:
    ours, plain, args = CASES[name]
    low = tuple(a.astype(dtype) if is_float(a) else a for a in args)

    def loss(f: Any, *floats: Any) -> Any:
        return jnp.sin(f(*floats)).sum()

    def value_and_grad(f: Any) -> Any:
        g, floats = of_floats(f, low)
        every = tuple(range(len(floats)))
        return g(*floats), jax.grad(lambda *floats: loss(g, *floats), every)(*floats)

    tolerance = {"float32": 1e-6, "bfloat16": 0.05}[dtype]
    got, expected = jax.tree.leaves(value_and_grad(ours)), jax.tree.leaves(value_and_grad(plain))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(g.astype(float), e.astype(float), rtol=tolerance, atol=tolerance)


def test_precision_is_that_of_the_context() -> None:
    x, w = draw(6, I), draw(I, O)
    grad = jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), (0, 1))
    with jax.default_matmul_precision("highest"):
        text = jax.jit(grad).lower(x, w).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all("HIGHEST" in line for line in products)
    assert "HIGHEST" not in jax.jit(lambda *a: grad(*a)).lower(x, w).as_text()
