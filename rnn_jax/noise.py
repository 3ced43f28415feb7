"""Stochastic combinators: the randomness lives in the state, evaluation uses the plain cell.

The key that a factory takes is put into the state that its `init_state` makes, and the params are
those of the plain cell. A net is built once; `with_key` gives each update and each sequence a key
of its own:

    jax.vmap(lambda key, xs: unroll(with_key(net, key), params, None, xs))(keys, batch)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Key, Params, State


class NoisyState(NamedTuple):
    """State of `dropout` and `zoneout`."""

    state: State  # of the plain cell
    key: Key


Net = TypeVar("Net", bound=tuple)


def with_key(net: Net, key: Key) -> Net:
    """The same net, whose initial state holds noise drawn from `key`.

    Without it, every run that starts with ``state=None`` starts from the key that the net was
    built with, and drops the same units. Give each update and each sequence of a batch a key.

    Args:
      net: a `Cell` or a `rnn_jax.TwoWay`, of any depth, that was built once; without noise in it,
        nothing changes.
      key: typed PRNG key, may be traced.

    Returns:
      `net` with another `init_state`: each PRNG key of its state, wherever it is, is drawn from
      `key`, each another one. ``with_key(net, key).init_state(params)`` is the state itself.

    Raises:
      TypeError: `key` is not one typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> net = rnn_jax.dropout(rnn_jax.gru(2, 8), 0.5, jax.random.key(0))
      >>> params, batch = net.init(jax.random.key(1)), jnp.ones((3, 4, 2))
      >>> def run(key, xs):
      ...     return rnn_jax.unroll(with_key(net, key), params, None, xs)[1]
      >>> ys = jax.vmap(run)(jax.random.split(jax.random.key(2), 3), batch)
      >>> print(bool(((ys[0] == 0) == (ys[1] == 0)).all()))
      False
    """
    _checks.typed_key(key)
    plain: Any = net

    def init_state(params: Params) -> State:
        leaves, tree = jax.tree.flatten(plain.init_state(params))
        for n, leaf in enumerate(leaves):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                leaves[n] = jax.random.split(jax.random.fold_in(key, n), leaf.shape)
        return jax.tree.unflatten(tree, leaves)

    if not hasattr(plain, "run"):
        return plain._replace(init_state=init_state)

    def run(params: Params, state: State | None, xs: Any, **options: Any) -> tuple[State, Any]:
        start = init_state(params) if state is None else state
        return plain.run(params, start, xs, **options)

    return plain._replace(init_state=init_state, run=run)


def dropout(cell: Cell, rate: float, key: Key, *, variational: bool = False) -> Cell:
    """Drops outputs of a cell: y_t * m_t / (1 - rate), each m zero with probability `rate`.

    The recurrent connections are left alone. In a stack, wrap each layer whose output is to be
    dropped: ``stack([dropout(lstm(D, H), 0.2, k1), dropout(lstm(H, H), 0.2, k2)])``.

    Args:
      cell: any cell.
      rate: probability of dropping a unit, 0 <= rate < 1.
      key: typed PRNG key that the initial state will hold. Training draws anew by
        `rnn_jax.with_key`, see the example.
      variational: one mask for the whole sequence instead of one for each step.

    Returns:
      A `Cell` with the params of `cell` and `NoisyState`.

    Raises:
      ValueError: `rate` out of range.
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(2, 1000)
      >>> params = cell.init(jax.random.key(0))
      >>> noisy = dropout(cell, 0.25, jax.random.key(1), variational=True)
      >>> state, ys = rnn_jax.unroll(noisy, params, None, jnp.ones((3, 2)))
      >>> print(((ys == 0).mean(axis=1) > 0.2).all(), ((ys[0] == 0) == (ys[2] == 0)).all())
      True True

      A loss for training: the net is built once, each update and each sequence has its own key,
      and evaluation runs the plain cell with the same params:

      >>> def loss(params, batch, key):
      ...     def run(key, xs):
      ...         return rnn_jax.unroll(rnn_jax.with_key(noisy, key), params, None, xs)[1]
      ...     return jnp.mean(jax.vmap(run)(jax.random.split(key, len(batch)), batch) ** 2)
      >>> batch = jnp.ones((4, 3, 2))
      >>> first, second = (loss(params, batch, jax.random.key(n)) for n in range(2))
      >>> print(first != second)
      True

    References:
      Zaremba, Sutskever, Vinyals. Recurrent neural network regularization. 2014.
      Gal, Ghahramani. A theoretically grounded application of dropout in recurrent neural
      networks. 2016 (variational).
    """
    keep = 1.0 - _checks.probability("rate", rate)
    _checks.typed_key(key)

    def step(params: Params, old: NoisyState, z: Any) -> tuple[NoisyState, Any]:
        following, now = (old.key, old.key) if variational else jax.random.split(old.key)
        state, y = cell.step(params, old.state, z)
        leaves, tree = jax.tree.flatten(y)
        keys = jax.random.split(now, len(leaves))
        dropped = [
            jnp.where(jax.random.bernoulli(k, keep, leaf.shape), leaf / keep, jnp.zeros_like(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return NoisyState(state, following), jax.tree.unflatten(tree, dropped)

    def init_state(params: Params) -> NoisyState:
        return NoisyState(cell.init_state(params), key)

    return Cell(cell.init, init_state, cell.project, step)


def zoneout(cell: Cell, rate: Any, key: Key) -> Cell:
    """Keeps units of the state at their previous value, each with probability `rate`.

    s_t = m_t * s_{t-1} + (1 - m_t) * step(s_{t-1}, x_t), each m one with probability `rate`

    Args:
      cell: a cell whose output is one of the arrays of its state, as in all cells of this
        library.
      rate: 0 <= rate < 1, one for all of the state, or a pytree of rates like the state:
        ``LSTMState(h=0.05, c=0.5)``.
      key: typed PRNG key that the initial state will hold.

    Returns:
      A `Cell` with the params of `cell` and `NoisyState`; y is the kept or new output.
      For evaluation the paper uses the expectation, `zoneout_mean`, with the same params.

    Raises:
      ValueError: `rate` out of range; the output is not part of the state (when it is run).
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(2, 1000)
      >>> params = cell.init(jax.random.key(0))
      >>> noisy = zoneout(cell, 0.25, jax.random.key(1))
      >>> state, ys = rnn_jax.unroll(noisy, params, None, jnp.ones((1, 2)))
      >>> print(0.2 < (ys == 0).mean() < 0.3)
      True

    References:
      Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden activations. 2016.
    """
    jax.tree.map(lambda r: _checks.probability("rate", r), rate)
    _checks.typed_key(key)

    def step(params: Params, old: NoisyState, z: Any) -> tuple[NoisyState, Array]:
        following, now = jax.random.split(old.key)
        leaves, tree = jax.tree.flatten(old.state)
        keys = jax.tree.unflatten(tree, list(jax.random.split(now, len(leaves))))

        def mix(rate: float, new: Array, kept: Array, key: Key) -> Array:
            return jnp.where(jax.random.bernoulli(key, rate, new.shape), kept, new)

        state, y = _mix_state(cell, rate, mix, params, old.state, z, keys)
        return NoisyState(state, following), y

    def init_state(params: Params) -> NoisyState:
        return NoisyState(cell.init_state(params), key)

    return Cell(cell.init, init_state, cell.project, step)


def zoneout_mean(cell: Cell, rate: Any) -> Cell:
    """The expectation of `zoneout` over its masks, which the paper evaluates with.

    s_t = rate * s_{t-1} + (1 - rate) * step(s_{t-1}, x_t)

    Args, errors and reference are those of `zoneout`; params and state are those of `cell`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.eye(1), w_h=jnp.eye(1), b=None)
      >>> state, ys = rnn_jax.unroll(zoneout_mean(cell, 0.25), params, None, jnp.ones((2, 1)))
      >>> print(ys.ravel())
      [0.75 1.5 ]
    """
    jax.tree.map(lambda r: _checks.probability("rate", r), rate)

    def mix(rate: float, new: Array, kept: Array) -> Array:
        return rate * kept + (1 - rate) * new

    def step(params: Params, old: State, z: Any) -> tuple[State, Array]:
        return _mix_state(cell, rate, mix, params, old, z)

    return cell._replace(step=step)


def _mix_state(
    cell: Cell,
    rate: Any,
    mix: Callable[..., Array],
    params: Params,
    old: State,
    z: Any,
    *rest: Any,
) -> tuple[State, Array]:
    new, y = cell.step(params, old, z)
    if isinstance(rate, int | float):
        rate = jax.tree.map(lambda _: rate, new)

    def mix_floats(rate: float, new: Array, *args: Any) -> Array:
        return mix(rate, new, *args) if jnp.issubdtype(new.dtype, jnp.inexact) else new

    mixed = jax.tree.map(mix_floats, rate, new, old, *rest)
    for before, after in zip(jax.tree.leaves(new), jax.tree.leaves(mixed), strict=True):
        if y is before:
            return mixed, after
    raise ValueError(
        "cell: its output is not one of the arrays of its state, so that zoneout cannot reach it. "
        "Apply zoneout first, and readout, dropout and the like to its result."
    )
