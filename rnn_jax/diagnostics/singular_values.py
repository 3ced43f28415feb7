"""Singular values of products of many matrices, whose entries no float could hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array
from rnn_jax.diagnostics._norm import norm

SWEEPS = 30  # it takes 5 to 10


class Rows(NamedTuple):
    """A matrix with rows of any size: exp(log) * unit."""

    log: Array  # [n], -inf for a row of zeros
    unit: Array  # [n, m], each row of length 1 or 0


def singular_values(jacobians: Array) -> Array:
    """Logarithms of the singular values of D_T ... D_t for every t: how far a change at t carries.

    The product itself is never made: its singular values grow apart exponentially, and those below
    1e-7 (float32) of the largest would be rounding errors. Instead, from the last step back,

    (D_T ... D_{t+1})^T = Q S V^T  gives  (D_T ... D_t)^T = (D_t^T Q) S V^T = Q' S' J^T V^T

    where the rotations J make the columns of D_t^T Q S orthogonal (one-sided Jacobi), and V is not
    needed. S is kept as logarithms, and the rotations take only the ratios of its entries.

    Accuracy: the result is that of matrices D_t which are each off by a few machine epsilons,
    whatever the condition number of their product. The smallest singular value is as good as the
    largest: the error of a logarithm is about epsilon times the sum of the condition numbers of the
    single D_t (1e-3 after 300 random 6 x 6 matrices in float32), and more only where steps undo
    the growth of others, so that rounding the D_t has that effect already. A singular value that
    is zero in exact arithmetic comes out as -inf, or as what rounding leaves. (Adding up
    log |R[i, i]| of QR decompositions, as `lyapunov_exponents` does, gives the growth per step of
    long products, not the singular values.) No derivative is defined.

    Args:
      jacobians: [T, n, n] float, those of `jacobians`.

    Returns:
      [T, n]; at t the logarithms for dh_T/dh_{t-1}, the largest first. The logarithm of the
      condition number is ``log[:, 0] - log[:, -1]``.

    Raises:
      ValueError: the shape is another.

    Example:
      Here the raw product overflows, and its smaller singular value underflows:

      >>> D = jnp.broadcast_to(jnp.diag(jnp.array([10.0, 0.1])), (50, 2, 2))
      >>> print(singular_values(D)[0].round(2), (50 * jnp.log(10.0)).round(2))
      [ 115.13 -115.13] 115.13

    References:
      Hestenes. Inversion of matrices by biorthogonalization and related results. 1958.
      Demmel, Veselic. Jacobi's method is more accurate than QR. 1992.
    """
    D = jnp.asarray(jacobians)
    if D.ndim != 3 or D.shape[1] != D.shape[2]:
        raise ValueError(
            f"jacobians: got shape {D.shape}, expected [T, n, n]; map a batch with jax.vmap"
        )
    n = D.shape[1]
    count = n + n % 2  # rows come in pairs; one of zeros may be needed
    log = jnp.where(jnp.arange(count) < n, 0, -jnp.inf).astype(D.dtype)

    def back(rows: Rows, D: Array) -> tuple[Rows, Array]:
        rows = _orthogonal(_rows(rows.log, rows.unit @ D))
        return rows, rows.log[:n]

    return jax.lax.scan(back, Rows(log, jnp.eye(count, n, dtype=D.dtype)), D, reverse=True)[1]


def _rows(log: Array, rows: Array) -> Rows:
    length = norm(rows)
    some = length > 0
    safe = jnp.where(some, length, jnp.ones_like(length))
    return Rows(jnp.where(some, log + jnp.log(safe), -jnp.inf), rows / safe[:, None])


def _orthogonal(rows: Rows) -> Rows:
    """Rotates pairs of rows until all are orthogonal, and puts the longest first."""
    others = jnp.roll(jnp.arange(1, rows.log.size), 1)
    order = jnp.concatenate([jnp.arange(1), others])  # the next round of a round-robin tournament
    tolerance = jnp.sqrt(jnp.finfo(rows.log.dtype).eps)  # convergence is quadratic

    def turn(_: Array, carry: tuple[Rows, Array]) -> tuple[Rows, Array]:
        rows, worst = carry
        rows, cosine = _rotate(rows)
        return jax.tree.map(lambda a: a[order], rows), jnp.maximum(worst, cosine)

    def sweep(carry: tuple[Rows, Array, Array]) -> tuple[Rows, Array, Array]:
        rows, worst, sweeps = carry
        rows, worst = jax.lax.fori_loop(0, others.size, turn, (rows, jnp.zeros_like(worst)))
        return rows, worst, sweeps + 1

    def going_on(carry: tuple[Rows, Array, Array]) -> Array:
        return (carry[1] > tolerance) & (carry[2] < SWEEPS)

    start = rows, jnp.full_like(tolerance, jnp.inf), jnp.array(0)
    rows = jax.lax.while_loop(going_on, sweep, start)[0]
    order = jnp.argsort(rows.log, descending=True)
    return jax.tree.map(lambda a: a[order], rows)


def _rotate(rows: Rows) -> tuple[Rows, Array]:
    """Makes row k orthogonal to row n-1-k for all k; the largest cosine that there was."""
    half = rows.log.size // 2
    a, b = jax.tree.map(lambda r: r[:half], rows), jax.tree.map(lambda r: r[half:][::-1], rows)
    swap = b.log > a.log
    a, b = _exchange(swap, a, b)  # the longer one first
    shrink = jnp.where(b.log == -jnp.inf, -jnp.inf, b.log - a.log)  # log of the ratio r <= 1
    cosine = jnp.sum(a.unit * b.unit, axis=1)
    r = jnp.exp(shrink)
    eta = -jnp.expm1(2 * shrink) / 2
    bottom = eta + jnp.sqrt(eta**2 + (cosine * r) ** 2)
    g = jnp.where(cosine == 0, 0, cosine / jnp.where(bottom == 0, 1, bottom))  # tangent / r
    c = jax.lax.rsqrt(1 + (g * r) ** 2)
    longer = _rows(a.log, c[:, None] * (a.unit + (g * r**2)[:, None] * b.unit))
    shorter = _rows(b.log, c[:, None] * (b.unit - g[:, None] * a.unit))
    a, b = _exchange(swap, longer, shorter)  # each to its own place, so that all pairs meet
    together = jax.tree.map(lambda a, b: jnp.concatenate([a, b[::-1]]), a, b)
    return together, jnp.max(jnp.abs(cosine), initial=0)


def _exchange(flags: Array, a: Rows, b: Rows) -> tuple[Rows, Rows]:
    def pick(a: Rows, b: Rows) -> Rows:
        unit = jnp.where(flags[:, None], b.unit, a.unit)
        return Rows(jnp.where(flags, b.log, a.log), unit)

    return pick(a, b), pick(b, a)
