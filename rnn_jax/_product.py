"""x @ w and x + b, with the derivatives in the forms that a loop over time wants.

The operations of JAX would do, but for three things that cost as much as the products themselves.
The transpose of a product makes the gradient of w as the transpose of ct^T x, which copies the
cotangents of all steps, the longest array there is; here it is x^T ct at once. A product with the
transpose of w inside a loop reads w across its rows each time; here w.T is made once. An axis that
`jax.vmap` adds goes in front, where the loop wants the batch behind time; here it goes there. None
of it changes a number.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from rnn_jax._types import Array, vary, varying_axes


def product(x: Array, w: Array, w_t: Array | None = None, *, precision: Any = None) -> Array:
    """x @ w: [..., I] times [I, O] of one dtype; `w_t` is w.T where it is there already."""
    x, w, w_t = _alike(x, w, w.T if w_t is None else w_t)
    return product_p.bind(x, w, w_t, precision=_precision() if precision is None else precision)


def _precision() -> Any:
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def shifted(x: Array, b: Array) -> Array:
    """x + b: [..., O] plus [O] of one dtype."""
    return shifted_p.bind(*_alike(x, b))


def _alike(*arrays: Array) -> tuple[Array, ...]:
    """Inside `jax.shard_map`: all varying over the same axes, which a primitive wants."""
    return vary(arrays, varying_axes(arrays))


def _product(x: Array, w: Array, w_t: Array, *, precision: Any) -> Array:
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


def _outer(x: Array, y: Array, *, precision: Any) -> Array:
    """The sum of x^T y over all leading axes: [..., I] and [..., O] make [I, O]."""
    leading = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((leading, leading), ((), ())), precision=precision)


def _shifted(x: Array, b: Array) -> Array:
    return x + jax.lax.expand_dims(b, range(x.ndim - 1))


def _primitive(name: str, compute: Any, place: int | None) -> Primitive:
    """`place` is where a batch axis of the first argument goes; None: in front, as usual."""
    primitive = Primitive(name)
    static = ("precision",) if compute in (_product, _outer) else ()
    primitive.def_impl(jax.jit(compute, static_argnames=static))

    def abstract(*args: Any, **options: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
        out = jax.eval_shape(lambda *args: compute(*args, **options), *shapes)
        # the rest of the type, such as the axes of a `jax.shard_map`, is that of the first
        sharding = NamedSharding(args[0].sharding.mesh, PartitionSpec(*[None] * out.ndim))
        return args[0].update(shape=out.shape, dtype=out.dtype, weak_type=False, sharding=sharding)

    def batch(args: Any, dims: Any, **options: Any) -> tuple[Array, int]:
        if place is None or any(d is not None for d in dims[1:]):  # a w for each example
            return jax.vmap(lambda *args: compute(*args, **options), dims)(*args), 0
        out = primitive.bind(jnp.moveaxis(args[0], dims[0], place), *args[1:], **options)
        return out, out.ndim + place

    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


product_p = _primitive("rnn_product", _product, -2)
shifted_p = _primitive("rnn_shifted", _shifted, -2)
outer_p = _primitive("rnn_outer", _outer, None)


def _product_jvp(primals: Any, tangents: Any, *, precision: Any) -> tuple[Array, Array]:
    (x, w, w_t), (dx, dw, dw_t) = primals, tangents
    terms = []
    if type(dx) is not ad.Zero:
        terms.append(product_p.bind(dx, w, w_t, precision=precision))
    if type(dw) is not ad.Zero:
        dw_t = ad.instantiate_zeros(dw_t)
        terms.append(product_p.bind(x, dw, dw_t, precision=precision))
    y = product_p.bind(x, w, w_t, precision=precision)
    return y, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(y)


def _product_transpose(ct: Any, x: Any, w: Any, w_t: Any, *, precision: Any) -> tuple[Any, ...]:
    if type(ct) is ad.Zero:
        return None, None, None
    if ad.is_undefined_primal(x):
        return product_p.bind(ct, w_t, w, precision=precision), None, None
    return None, outer_p.bind(x, ct, precision=precision), None


def _outer_x(ct: Array, x: Any, y: Array, *, precision: Any) -> Array:
    return product_p.bind(y, ct.T, ct, precision=precision)


def _outer_y(ct: Array, x: Array, y: Any, *, precision: Any) -> Array:
    return product_p.bind(x, ct, ct.T, precision=precision)


def _shifted_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    dx, db = tangents
    if type(db) is not ad.Zero:
        dx = shifted_p.bind(ad.instantiate_zeros(dx), db)
    return shifted_p.bind(*primals), dx


def _shifted_transpose(ct: Any, x: Any, b: Any) -> tuple[Any, Any]:
    if type(ct) is ad.Zero:
        return None, None
    return (
        ct if ad.is_undefined_primal(x) else None,
        jnp.sum(ct, axis=tuple(range(ct.ndim - 1))) if ad.is_undefined_primal(b) else None,
    )


ad.primitive_jvps[product_p] = _product_jvp
ad.primitive_transposes[product_p] = _product_transpose
ad.defbilinear(outer_p, _outer_x, _outer_y)
ad.primitive_jvps[shifted_p] = _shifted_jvp
ad.primitive_transposes[shifted_p] = _shifted_transpose
