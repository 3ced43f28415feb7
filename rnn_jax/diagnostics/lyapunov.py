"""How fast small differences of the state grow or shrink."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.gradients._vector import ravel, unravel


class Lyapunov(NamedTuple):
    """Result of `lyapunov_exponents`."""

    exponents: Array  # [k], per step, natural logarithm, the largest first once T is long enough
    growth: Array  # [T, k], the terms that they are the mean of, warm-up included


def lyapunov_exponents(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    k: int | None = None,
    warmup: int = 0,
    mask: Array | None = None,
) -> Lyapunov:
    """The k largest Lyapunov exponents: the mean growth per step of k-dimensional volumes.

    D_t Q_{t-1} = Q_t R_t (the QR decomposition),  lambda_i = mean_t log |R_t[i, i]|

    Below 0, differences and gradients vanish; above, they explode (chaos). An error of order
    1 / T is left, of the time that Q takes to find its directions; `warmup` leaves that time out.
    Products with D_t are made without D_t, so that k exponents take k forward derivatives a step.
    The result can be differentiated, which is what gradient flossing does.

    Args:
      cell: any `Cell`.
      params, state, xs, mask: as in `rnn_jax.unroll`.
      k: how many, 1 <= k <= n; None for all n. Q starts as the same random frame each time.
      warmup: the first steps, which move the state and Q, but do not count.

    Returns:
      `Lyapunov`; masked steps do not count. Directions that are lost (D_t singular) have -inf.

    Raises:
      ValueError: `k` or `warmup` is out of range; otherwise, and TypeError, as `rnn_jax.unroll`.

    Example:
      The exponents of a linear network are log |eigenvalues of W|:

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(2, 2, activation=jax.nn.identity, bias=False)
      >>> w_h = jnp.array([[0.5, 1.0], [0.0, 2.0]])
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(2), w_h=w_h, b=None)
      >>> result = lyapunov_exponents(cell, params, None, jnp.zeros((60, 2)), warmup=20)
      >>> print(result.exponents.round(4))
      [ 0.6931 -0.6931]

    References:
      Benettin, Galgani, Giorgilli, Strelcyn. Lyapunov characteristic exponents for smooth
      dynamical systems and for Hamiltonian systems. 1980.
      Vogt, Puelma Touzel, Shlizerman, Lajoie. On Lyapunov exponents for RNNs. 2022.
      Engelken. Gradient flossing. 2023.
    """
    state, inputs = _steps.prepare(cell, params, state, xs, mask, None)
    vector, T = ravel(state), inputs.valid.size
    n = vector.size
    k = n if k is None else _checks.positive_int("k", k)
    if k > n:
        raise ValueError(f"k: got {k}, expected at most {n}, the number of floats in the state")
    if not 0 <= warmup < max(T, 1):
        raise ValueError(f"warmup: got {warmup} with T = {T}, expected 0 <= warmup < T")

    def advance(carry: tuple[State, Array], now: _steps.Inputs) -> tuple[Any, Array]:
        old, Q = carry

        def run(v: Array) -> tuple[Array, State]:
            new, _ = _steps.step(cell, params, unravel(v, old), now)
            return ravel(new), new

        _, push, new = jax.linearize(run, ravel(old), has_aux=True)
        Q, R = jnp.linalg.qr(jax.vmap(push, in_axes=1, out_axes=1)(Q))
        return (new, Q), jnp.log(jnp.abs(jnp.diagonal(R)))

    Q, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (n, k), vector.dtype))
    _, growth = jax.lax.scan(advance, (state, Q), inputs)
    counts = (inputs.valid & (jnp.arange(T) >= warmup))[:, None]
    total = jnp.sum(jnp.where(counts, growth, jnp.zeros_like(growth)), axis=0)
    return Lyapunov(total / jnp.maximum(counts.sum(), 1).astype(total.dtype), growth)
