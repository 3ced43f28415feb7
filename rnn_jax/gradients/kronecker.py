"""RTRL with the influence of each weight matrix as a sum of Kronecker products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Key
from rnn_jax.gradients import _products
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Origin, Step
from rnn_jax.gradients._types import Draw, StepLoss, signs
from rnn_jax.gradients.uoro import balance


class Factors(NamedTuple):
    """The influence of one weight [m, k], as a sum of r Kronecker products."""

    A: Array  # [r, m], beside the operand
    B: Array  # [r, n, k], beside the result


class Trace(NamedTuple):
    """The influence of all params."""

    factors: list[Factors]  # of each product x @ w
    exact: Array  # [n, P'], of all other params


def kf_rtrl(cell: Cell, loss: StepLoss, *, draw: Draw = signs) -> Online:
    """RTRL with one Kronecker product for each weight matrix: unbiased, of little variance.

    A weight acts as z = u W, so that its I_t is the Kronecker product of u and Z = dh'/dz. With
    a random sign c:  A' = p A + c q u,  B' = D B / p + c Z / q,
    p^2 = |D B| / |A|,  q^2 = |Z| / |u|

    The loss of a step sees its own I_t exactly. Params that are used otherwise than in ``x @ w``
    and ``w[token]``, as biases and gains are, and a learned initial state keep their exact
    influence. Time n^3 a step, memory n k + m for each [m, k] matrix: n^2 for a layer.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      draw: ``(key, shape, dtype)`` -> random signs.

    Returns:
      `Online`: called as `bptt`, with a `key`; or one step at a time.

    Raises:
      TypeError: no key; otherwise as `unroll`.

    Example:
      >>> import jax
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = kf_rtrl(cell, lambda y, target: (y[0] - target) ** 2)
      >>> xs, targets = jnp.array([[1.0], [3.0]]), jnp.array([1.0, 4.0])
      >>> print(value_and_grad(params, None, xs, targets, key=jax.random.key(0))[1].w_h)
      [[2.]]

    References:
      Mujika, Meier, Steger. Approximating real-time recurrent learning with random Kronecker
      factors. 2018.
    """

    def join(old: Factors, u: Array, Z: Array, key: Key) -> Factors:
        c = draw(key, (), u.dtype)
        A, B = old.A[0], old.B[0]
        past, now = balance(A, B.ravel()), c * balance(u, Z.ravel())
        return Factors((A * past + u * now)[None], (B / past + Z / now)[None])

    return _kronecker("kf_rtrl", cell, loss, 1, join)


def ok(cell: Cell, loss: StepLoss, *, rank: int = 1, draw: Draw = signs) -> Online:
    """RTRL with the unbiased Kronecker sum of least variance for each weight matrix.

    Every step adds the term u (x) Z of `kf_rtrl` to `rank` terms, and brings the rank + 1 terms
    back to `rank`: the large singular values stay, and the tail is replaced by a random matrix
    with it as its mean. Time n^3 and rank^2 n k a step; memory rank times that of `kf_rtrl`.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      rank: terms of each sum.
      draw: ``(key, shape, dtype)`` -> random signs.

    Returns:
      `Online`: called as `bptt`, with a `key`; or one step at a time.

    Raises:
      ValueError: `rank` is not positive.
      TypeError: no key; otherwise as `unroll`.

    Example:
      Two weights to one unit have an influence of two numbers, for which rank 2 is enough.

      >>> import jax
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(2, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((2, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = ok(cell, lambda y, w: w * y[0], rank=2)
      >>> xs, last = jnp.array([[1.0, 3.0], [0.0, 1.0]]), jnp.array([0.0, 1.0])
      >>> grads = value_and_grad(params, None, xs, last, key=jax.random.key(0))[1]
      >>> print("%.4f %.4f" % tuple(grads.w_x.ravel()))
      2.0000 7.0000

    References:
      Benzing, Gauy, Mujika, Martinsson, Steger. Optimal Kronecker-sum approximation of real time
      recurrent learning. 2019.
    """
    r = _checks.positive_int("rank", rank)

    def join(old: Factors, u: Array, Z: Array, key: Key) -> Factors:
        A = jnp.concatenate([old.A, u[None]])
        B = jnp.concatenate([old.B, Z[None]]).reshape(r + 1, -1)
        if min(A.shape[1], B.shape[1]) <= r:  # the matrix itself has no higher rank
            A, B = _compressed(A, B, r)
        else:
            A, B = _reduced(A, B, draw(key, (r + 1,), u.dtype))
        return Factors(A, B.reshape(r, *Z.shape))

    return _kronecker("ok", cell, loss, r, join)


def _kronecker(name: str, cell: Cell, loss: StepLoss, r: int, join: Any) -> Online:
    def rule(first: Step) -> Rule:
        found = _products.probe(first)

        def init(origin: Origin, step: Step, key: Any) -> Trace:
            dtype, n = step.h.dtype, step.h.size
            shapes = [(s.height, *s.out.shape) for s in found.sites]
            factors = [
                Factors(jnp.zeros((r, m), dtype), jnp.zeros((r, n, k), dtype)) for m, k in shapes
            ]
            return Trace(factors, origin.jacobian()[:, _products.columns(step.params, found)])

        def update(step: Step, old: Trace, key: Any) -> tuple[Trace, Array]:
            D = step.jacobians()[1]
            products, exact = _products.products(step, found)
            keys = jax.random.split(key, max(1, len(products)))
            factors = [
                join(Factors(f.A, jnp.einsum("ij,rjk->rik", D, f.B)), *product, keys[i])
                for i, (f, product) in enumerate(zip(old.factors, products, strict=True))
            ]
            now, c = step.loss_gradient()
            past = [jnp.einsum("rm,j,rjk->mk", f.A, c, f.B) for f in old.factors]
            grads = now + _products.gradient(step, found, past, c @ old.exact)
            return Trace(factors, D @ old.exact + exact), grads

        return Rule(init, update)

    return Online(name, cell, loss, rule, draws=True)


def _core(A: Array, B: Array) -> Any:
    """``sum_i A_i (x) B_i = U diag(s) V``, with the singular values s from the largest down."""
    Q_A, R_A = jnp.linalg.qr(A.T)
    Q_B, R_B = jnp.linalg.qr(B.T)
    U, s, V = jnp.linalg.svd(R_A @ R_B.T, full_matrices=False)
    return Q_A @ U, s, Q_B @ V.T


def _compressed(A: Array, B: Array, r: int) -> tuple[Array, Array]:
    """The same sum of r + 1 terms in r terms, where its rank allows it."""
    U, s, V = _core(A, B)
    pad = [(0, 0), (0, r - s.size)]
    return jnp.pad(U * s[None], pad).T, jnp.pad(V, pad).T


def _reduced(A: Array, B: Array, c: Array) -> tuple[Array, Array]:
    """A random sum of r terms whose mean is the given sum of r + 1: that of least variance.

    With S the sum of the singular values of the tail, k the terms left for it, and the unit vector
    z_i^2 = 1 - k s_i / S, the tail becomes S / k c (1 - z z^T) c for random signs c. It has rank k,
    and the mean diag(s), since off the diagonal the signs average out.
    """
    U, s, V = _core(A, B)
    r = s.size - 1
    tails = jnp.cumsum(s[::-1])[::-1]  # [r + 1], the sum from i on
    left = r - jnp.arange(r)  # terms left for the tail that begins at i
    start = jnp.argmax(left.astype(s.dtype) * s[:-1] <= tails[:-1])
    k, S = left[start].astype(s.dtype), tails[start]
    in_tail = jnp.arange(r + 1) >= start
    share = jnp.where(S > 0, k * s / jnp.where(S > 0, S, jnp.ones_like(S)), k / (k + 1))
    zero = jnp.zeros_like(s)
    z = jnp.where(in_tail, jnp.sqrt(jnp.maximum(1 - share, zero)), zero)
    weight = jnp.sqrt(jnp.where(in_tail, S / k, s)) * c
    w = z.at[-1].add(1)  # the reflection that sends the last unit vector to -z
    basis = jnp.eye(r + 1, dtype=s.dtype)[:, :r] - jnp.outer(w, w[:r]) * 2 / (w @ w)
    basis = weight[:, None] * basis
    return (U @ basis).T, (V @ basis).T
