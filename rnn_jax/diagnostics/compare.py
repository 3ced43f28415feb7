"""A gradient algorithm against another one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Key, Params, State
from rnn_jax.diagnostics._norm import norm
from rnn_jax.gradients._types import ValueAndGrad
from rnn_jax.gradients._vector import ravel


class Agreement(NamedTuple):
    """How estimates g of a gradient agree with the reference r; each field is [] float."""

    norm: Array  # ||r||
    bias: Array  # ||mean g - r||
    bias_error: Array  # sqrt(variance / K): about what `bias` is where there is none
    variance: Array  # of g, summed over its entries
    cosine: Array  # mean of g . r / (||g|| ||r||)
    cosine_error: Array  # standard error of that mean
    norm_ratio: Array  # mean of ||g|| / ||r||
    norm_ratio_error: Array  # standard error of that mean


class Comparison(NamedTuple):
    """Result of `compare`; it prints as a table."""

    params: Params  # pytree like params, with an `Agreement` in place of each array
    whole: Agreement  # of all params as one vector

    def __str__(self) -> str:
        leaves = jax.tree_util.tree_leaves_with_path(
            self.params, is_leaf=lambda a: isinstance(a, Agreement)
        )
        rows = [(jax.tree_util.keystr(path) or ".", a) for path, a in leaves]
        if jnp.ndim(self.whole.norm):
            return f"{len(rows)} arrays, mapped over {jnp.shape(self.whole.norm)}"
        table: list[tuple[str, ...]] = [
            ("", "norm", "bias / norm", "std / norm", "cosine", "norm ratio")
        ]
        table += [(name, *_cells(a)) for name, a in [*rows, ("all", self.whole)]]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in table
        )


def compare(
    algorithm: ValueAndGrad,
    reference: ValueAndGrad,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    keys: Key,
    *,
    mask: Array | None = None,
) -> Comparison:
    """The error of a gradient algorithm, array by array: bias, variance, angle and length.

    The algorithm runs once for each key on the same sequence, all at once; the reference, which
    should be exact, runs once.

    Args:
      algorithm, reference: what the functions of `rnn_jax.gradients` return.
      params, state, xs, targets, mask: as these take them.
      keys: [K] typed PRNG keys, K >= 2: ``jax.random.split(key, K)``. An algorithm that uses none
        gives K equal gradients.

    Returns:
      `Comparison`. The reference being zero, what is divided by its norm is NaN or inf. With a
      bias of b, the square of `bias` is on average b^2 + `bias_error`^2.

    Raises:
      ValueError: fewer than two keys; otherwise, and TypeError, as the algorithms.

    Example:
      A truncated gradient is the same for all keys, and biased:

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> xs, targets = jax.random.normal(jax.random.key(1), (2, 9, 3))
      >>> loss = lambda y, target: jnp.sum((y[:3] - target) ** 2)
      >>> print(compare(
      ...     rnn_jax.gradients.truncated_bptt(cell, loss, k1=1, k2=2),
      ...     rnn_jax.gradients.bptt(cell, loss),
      ...     params, None, xs, targets, jax.random.split(jax.random.key(2), 2),
      ... ))
            norm     bias / norm  std / norm          cosine      norm ratio
      .w_x    16  0.224 +- 0.000       0.000  0.975 +- 0.000  0.963 +- 0.000
      .w_h  8.41  0.131 +- 0.000       0.000  0.992 +- 0.000  1.034 +- 0.000
      .b       9  0.324 +- 0.000       0.000  0.964 +- 0.000  0.778 +- 0.000
      all   20.2  0.235 +- 0.000       0.000  0.972 +- 0.000  0.942 +- 0.000
    """
    if jnp.ndim(keys) != 1 or len(keys) < 2:
        raise ValueError(
            f"keys: got shape {jnp.shape(keys)}, expected [K] typed keys with K >= 2; a variance "
            "takes two"
        )

    def gradient(value_and_grad: ValueAndGrad, key: Key | None) -> Params:
        return value_and_grad(params, state, xs, targets, mask=mask, key=key)[1]

    @jax.jit
    def errors(keys: Key) -> Comparison:
        exact = gradient(reference, None)
        estimates = jax.vmap(lambda key: gradient(algorithm, key))(keys)
        return Comparison(jax.tree.map(_agreement, estimates, exact), _agreement(estimates, exact))

    return errors(keys)


def _agreement(estimates: Any, exact: Any) -> Agreement:
    g, r = jax.vmap(ravel)(estimates), ravel(exact)  # [K, p], [p]
    K, mean = len(g), g.mean(axis=0)
    variance = jnp.sum((g - mean[None]) ** 2) / (K - 1)

    def average(values: Array) -> tuple[Array, Array]:
        return values.mean(), values.std(ddof=1) / K**0.5

    lengths, length = norm(g), norm(r)
    return Agreement(
        length,
        norm(mean - r),
        jnp.sqrt(variance / K),
        variance,
        *average(g @ r / lengths / length),
        *average(lengths / length),
    )


def _cells(a: Agreement) -> list[str]:
    def pair(value: Array, error: Array) -> str:
        return f"{float(value):.3f} +- {float(error):.3f}"

    return [
        f"{float(a.norm):.3g}",
        pair(a.bias / a.norm, a.bias_error / a.norm),
        f"{float(jnp.sqrt(a.variance) / a.norm):.3f}",
        pair(a.cosine, a.cosine_error),
        pair(a.norm_ratio, a.norm_ratio_error),
    ]
