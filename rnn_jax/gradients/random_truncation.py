"""Truncation at random places, weighted so that the mean is the whole gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Key, Params, State, is_float, vary_as
from rnn_jax.gradients._types import StepLoss, ValueAndGrad, across, needed, total_loss
from rnn_jax.gradients.truncated import truncated_bptt
from rnn_jax.unroll import unroll


def artbp(cell: Cell, loss: StepLoss, *, length: float = 16.0, alpha: float = 4.0) -> ValueAndGrad:
    """Anticipated reweighted truncated backpropagation: unbiased, cut into random pieces.

    dL/dh_t = dl_t/dh_t + (0 if cut before t + 1 else dL/dh_{t+1} dh_{t+1}/dh_t / (1 - c_{t+1}))

    A cut falls before step t with probability c_t = (alpha - 1) / ((alpha - 2) length + s), s steps
    after the last cut: pieces of about `length` steps, some much longer. What gets past a place
    where it might have been cut is enlarged accordingly. The variance is finite where influences
    decay.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      length: mean length of a piece, in steps, at least 2.
      alpha: above 3; the lower, the heavier the tail of the lengths.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key) -> ((total,
      state), grads)``, as `bptt`, whose time and memory it has on a sequence that is given as a
      whole.

    Raises:
      ValueError: `length` or `alpha` out of range.
      TypeError: no key; otherwise as `unroll`.

    Example:
      h_3 = w^2 as in `truncated_bptt`, so that dL/dw = h_2 + w h_1 = 1: the mean of many draws.

      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> xs, last = jnp.array([[1.0], [0.0], [0.0]]), jnp.array([0.0, 0.0, 1.0])
      >>> value_and_grad = artbp(cell, lambda y, w: w * y[0], length=2.5)
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> draws = jax.vmap(lambda k: value_and_grad(params, None, xs, last, key=k)[1].w_h)(keys)
      >>> print(draws.min(), draws.mean().round(1))
      0.5 1.0

    References:
      Tallec, Ollivier. Unbiasing truncated backpropagation through time. 2017.
    """
    if not length >= 2:
        raise ValueError(f"length: got {length}, expected at least 2 steps")
    if not alpha > 3:
        raise ValueError(
            f"alpha: got {alpha}, expected more than 3, below it the variance is infinite"
        )
    weighted = weighted_bptt(cell, loss)

    @across
    def value_and_grad(
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]:
        xs = jax.tree.map(jnp.asarray, xs)
        keys = jax.random.split(needed(key, "artbp"), _checks.time_steps(xs))

        def step(s: Array, key: Key) -> tuple[Array, tuple[Array, Array]]:
            c = (alpha - 1) / ((alpha - 2) * length + s)
            cut = jax.random.bernoulli(key, c)
            return jnp.where(cut, jnp.ones_like(s), s + 1), (cut, c)

        cuts, c = jax.lax.scan(step, vary_as(jnp.ones(()), keys), keys)[1]
        weights = jnp.where(cuts, jnp.zeros_like(c), 1 / (1 - c))
        return weighted(weights, params, state, xs, targets, mask, reset)

    return value_and_grad


def weighted_bptt(cell: Cell, loss: StepLoss) -> Any:
    """Backpropagation in which what goes back from step t to the one before is multiplied."""

    def project(params: Params, inputs: Any) -> Any:
        x, weight = inputs
        return cell.project(params, x), weight

    def step(params: Params, state: State, z: Any) -> tuple[State, Any]:
        z, weight = z
        old = jax.tree.map(lambda a: _weighted(a, weight), state)
        return cell.step(params, old, z)

    net = cell._replace(project=project, step=step)

    def run(
        weights: Array,
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        mask: Array | None,
        reset: Array | None,
    ) -> Any:
        first = jnp.arange(len(weights)) == 0  # an initial state is always reached
        first = first if reset is None else first | reset
        inputs = xs, jnp.where(first, jnp.ones_like(weights), weights)

        def total(params: Params) -> tuple[Array, State]:
            final, ys = unroll(net, params, state, inputs, mask=mask, reset=reset)
            return total_loss(loss, ys, targets, mask), final

        return jax.value_and_grad(total, has_aux=True)(params)

    return run


def _weighted(a: Array, weight: Array) -> Array:
    if not is_float(a):
        return a
    return _scale(a, weight.astype(a.dtype))


@jax.custom_jvp
def _scale(a: Array, weight: Array) -> Array:
    """a, with `weight` times its derivative."""
    return a


@_scale.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] * primals[1]


def randomized_telescope(
    cell: Cell, loss: StepLoss, *, roulette: bool = False, decay: float = 0.5
) -> ValueAndGrad:
    """A truncated gradient of random horizon, plus what shorter ones leave out: unbiased.

    With G_i the gradient of `truncated_bptt` in chunks of k = 2^i steps, the last with k >= T, the
    gradient is the telescope sum of G_i - G_{i-1}. One horizon N is drawn with probability q(N):
    the difference G_N - G_{N-1} counts 1 / q(N) times; or (Russian roulette) all differences up to
    N count, each over the probability that N is at least its own.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      roulette: add all differences up to N, instead of one.
      decay: q(N + 1) / q(N), above 0.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key) -> ((total,
      state), grads)``, as `bptt`. Under `vmap` over keys all horizons are computed.

    Raises:
      ValueError: `decay` is not positive.
      TypeError: no key; otherwise as `unroll`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 0.5), b=None)
      >>> xs, last = jnp.array([[1.0], [0.0], [0.0]]), jnp.array([0.0, 0.0, 1.0])
      >>> value_and_grad = randomized_telescope(cell, lambda y, w: w * y[0])
      >>> keys = jax.random.split(jax.random.key(0), 3000)
      >>> draws = jax.vmap(lambda k: value_and_grad(params, None, xs, last, key=k)[1].w_h)(keys)
      >>> print(draws.mean().round(1))
      1.0

    References:
      Beatson, Adams. Efficient optimization of loops and limits with randomized telescoping sums.
      2019.
    """
    if not decay > 0:
        raise ValueError(f"decay: got {decay}, expected more than 0")

    @across
    def value_and_grad(
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]:
        key, params = needed(key, "randomized_telescope"), jax.tree.map(jnp.asarray, params)
        terms = telescope(cell, loss, params, state, xs, targets, mask, reset)
        q = decay ** jnp.arange(len(terms), dtype=jnp.zeros(()).dtype)
        q = vary_as(q / q.sum(), key)
        chosen = jax.random.categorical(key, jnp.log(q))
        at_least = jnp.cumsum(q[::-1])[::-1]

        def horizon(N: int) -> Any:
            picked = range(N + 1) if roulette else [N]
            value, grads = None, jax.tree.map(jnp.zeros_like, params)
            for i in picked:
                value, term = terms[i]()
                weight = 1 / (at_least[i] if roulette else q[i])
                grads = jax.tree.map(lambda g, d, w=weight: g + w.astype(d.dtype) * d, grads, term)
            return value, grads

        return jax.lax.switch(chosen, [lambda N=N: horizon(N) for N in range(len(terms))])

    return value_and_grad


def telescope(
    cell: Cell,
    loss: StepLoss,
    params: Params,
    state: State | None,
    xs: Any,
    targets: Any,
    mask: Array | None,
    reset: Array | None,
) -> list[Any]:
    """Functions that give ``((total, state), G_i - G_{i-1})``."""
    T = _checks.time_steps(jax.tree.map(jnp.asarray, xs))

    def G(k: int) -> Any:
        run = truncated_bptt(cell, loss, k1=k, k2=k)
        return run(params, state, xs, targets, mask=mask, reset=reset)

    def term(i: int) -> Any:
        value, grads = G(2**i)
        if i:
            grads = jax.tree.map(jnp.subtract, grads, G(2 ** (i - 1))[1])
        return value, grads

    return [lambda i=i: term(i) for i in range(max(1, T - 1).bit_length() + (T > 1))]
