"""A gradient algorithm against another one, as a whole and lag by lag."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax._types import Array, Cell, Key, Params, State
from rnn_jax.diagnostics import _steps
from rnn_jax.diagnostics._norm import norm
from rnn_jax.diagnostics.lag import gradients_by_lag
from rnn_jax.gradients._types import StepLoss, ValueAndGrad, guarded
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
        rows = _rows(self)
        if jnp.ndim(self.whole.norm):
            return f"{len(rows) - 1} arrays, mapped over {jnp.shape(self.whole.norm)}"
        head = "", "norm", "bias / norm", "std / norm", "cosine", "norm ratio"
        return _table([head, *((name, *_cells(a)) for name, a in rows)])


class ComparisonByLag(NamedTuple):
    """Result of `compare_by_lag`; it prints as a table of biases over the norm of all params."""

    params: Params  # pytree like params, with an `Agreement` of [T] arrays for each array
    whole: Agreement  # [T], of all params as one vector

    def __str__(self) -> str:
        rows = _rows(self)
        if jnp.ndim(self.whole.norm) != 1:
            return f"{len(rows) - 1} arrays, mapped over {jnp.shape(self.whole.norm)[:-1]}"
        head = "lag", "norm", *(name for name, _ in rows)
        bias = jnp.stack([a.bias for _, a in rows], axis=1) / self.whole.norm[:, None]
        numbers = zip(self.whole.norm.tolist(), bias.tolist(), strict=True)
        lines = [
            (f"{k}", f"{n:.3g}", *(f"{b:.3f}" for b in row)) for k, (n, row) in enumerate(numbers)
        ]
        return _table([head, *lines])


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
    _check(keys)

    def gradient(value_and_grad: ValueAndGrad, key: Key | None) -> Params:
        return value_and_grad(params, state, xs, targets, mask=mask, key=key)[1]

    @jax.jit
    def errors(keys: Key) -> Comparison:
        exact = gradient(reference, None)
        estimates = jax.vmap(lambda key: gradient(algorithm, key))(keys)
        return Comparison(jax.tree.map(_agreement, estimates, exact), _agreement(estimates, exact))

    return errors(keys)


def compare_by_lag(
    algorithm: Callable[[Cell, StepLoss], ValueAndGrad],
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    keys: Key,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> ComparisonByLag:
    """At which lag, and for which array, a gradient algorithm is off.

    The algorithm runs on the last k + 1 steps before each loss, from the state that they begin
    with; what the longer of two such windows adds is what it makes of lag k, and is held against
    `gradients_by_lag`. So it works for every algorithm, at the price of T^2 runs for each key. One
    that draws does so anew in each window: the variance here leaves out how the noise in one long
    run goes from loss to loss. That is in the variance of `compare`.

    Args:
      algorithm: what makes it, such as ``lambda cell, loss: gradients.snap(cell, loss, n=1)``.
      cell, loss, params, state, xs, targets, mask, reset: as `gradients_by_lag` takes them.
      keys: as `compare` takes them.

    Returns:
      `ComparisonByLag`; a lag without any gradient divides by zero.

    Raises:
      ValueError: fewer than two keys; otherwise as the algorithm.
      TypeError: `algorithm` makes none; otherwise as the algorithm.

    Example:
      What truncation after two steps leaves out, and what the diagonal of the Jacobian does:

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> xs, targets = jax.random.normal(jax.random.key(1), (2, 4, 3))
      >>> sequence = params, None, xs, targets, jax.random.split(jax.random.key(2), 2)
      >>> loss = lambda y, target: jnp.sum((y[:3] - target) ** 2)
      >>> truncated = lambda cell, loss: rnn_jax.gradients.truncated_bptt(cell, loss, k1=1, k2=2)
      >>> print(compare_by_lag(truncated, cell, loss, *sequence))
      lag   norm   .w_x   .w_h     .b    all
      0     10.5  0.000  0.000  0.000  0.000
      1     5.71  0.000  0.000  0.000  0.000
      2     2.45  0.434  0.126  0.892  1.000
      3    0.719  0.217  0.000  0.976  1.000
      >>> snap = lambda cell, loss: rnn_jax.gradients.snap(cell, loss, n=1)
      >>> print(compare_by_lag(snap, cell, loss, *sequence))
      lag   norm   .w_x   .w_h     .b    all
      0     10.5  0.000  0.000  0.000  0.000
      1     5.71  0.492  0.138  0.627  0.809
      2     2.45  0.309  0.093  0.775  0.839
      3    0.719  0.142  0.000  0.638  0.654
    """
    _check(keys)

    def weighted(y: Any, target: tuple[Any, Array]) -> Array:
        l = loss(y, target[0])
        return jnp.where(target[1], l, jnp.zeros_like(l))

    try:
        inspect.signature(algorithm).bind(cell, weighted)
    except TypeError as error:
        raise TypeError(
            f"algorithm: got {algorithm!r}, which does not take a cell and a loss; expected "
            "what makes an algorithm, such as gradients.rtrl, not one that is made"
        ) from error
    value_and_grad = algorithm(cell, weighted)

    @jax.jit
    def errors(params: Params, keys: Key) -> ComparisonByLag:
        exact = gradients_by_lag(cell, loss, params, state, xs, targets, mask=mask, reset=reset)
        start, inputs = _steps.prepare(cell, params, state, xs, mask, reset, learned=state is None)
        before, valid = _steps.states_before(cell, params, start, inputs), inputs.valid
        steps, number = jnp.arange(valid.size), jnp.cumsum(valid)

        def window(k: Array, t: Array, key: Key) -> Params:
            """The gradient of the loss at t, with respect to the params of lags up to k."""
            inside = valid & (steps <= t) & (number[t] - number <= k)
            old = jax.tree.map(lambda a: a[jnp.argmax(inside)], before)
            now = jax.tree.map(jnp.asarray, targets), steps == t
            grads = value_and_grad(
                params, old, inputs.xs, now, mask=inside, reset=inputs.reset, key=key
            )[1]
            return guarded(grads, valid[t])

        def up_to(k: Array) -> Params:
            """[K, ...], the sum over all losses."""
            own = jax.vmap(lambda key: jax.random.split(key, valid.size))(keys)
            over_t = jax.vmap(window, in_axes=(None, 0, 0))
            grads = jax.vmap(over_t, in_axes=(None, None, 0))(k, steps, own)
            return jax.tree.map(lambda g: g.sum(axis=1), grads)

        sums = jax.tree.map(lambda g: jnp.zeros((0, len(keys), *g.shape[1:]), g.dtype), exact)
        if valid.size:
            sums = jax.lax.map(up_to, steps)
        estimates = jax.tree.map(lambda a: jnp.diff(a, axis=0, prepend=jnp.zeros_like(a[:1])), sums)
        agreement = jax.vmap(_agreement)
        return ComparisonByLag(
            jax.tree.map(agreement, estimates, exact), agreement(estimates, exact)
        )

    return errors(jax.tree.map(jnp.asarray, params), keys)


def _check(keys: Key) -> None:
    if jnp.ndim(keys) != 1 or len(keys) < 2:
        raise ValueError(
            f"keys: got shape {jnp.shape(keys)}, expected [K] typed keys with K >= 2; a variance "
            "takes two"
        )


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


def _rows(found: Comparison | ComparisonByLag) -> list[tuple[str, Agreement]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        found.params, is_leaf=lambda a: isinstance(a, Agreement)
    )
    rows = [(jax.tree_util.keystr(path) or ".", a) for path, a in leaves]
    return [*rows, ("all", found.whole)]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
