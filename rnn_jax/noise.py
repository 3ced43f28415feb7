"""Stochastic combinators: the randomness lives in the state, evaluation uses the plain cell.

The key that a factory takes is put into the state that its `init_state` makes, and the params are
those of the plain cell. A net is built once; `with_key` gives each update and each sequence a key
of its own:

    jax.vmap(lambda key, xs: unroll(with_key(net, key), params, None, xs))(keys, batch)
"""

from collections.abc import Callable, Sequence
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
        return redraw(plain.init_state(params), key)

    if not hasattr(plain, "run"):
        return plain._replace(init_state=init_state)

    def run(params: Params, state: State | None, xs: Any, **options: Any) -> tuple[State, Any]:
        start = init_state(params) if state is None else state
        return plain.run(params, start, xs, **options)

    return plain._replace(init_state=init_state, run=run)


def redraw(state: State, key: Key) -> State:
    """The same state with noise drawn anew from `key`: what `with_key` does at the start.

    For a state that is carried from window to window, where a mask that holds for a sequence
    (``variational=True``) is to hold for a window.

    Args:
      state: the state of any net.
      key: typed PRNG key, may be traced.

    Returns:
      `state`, each PRNG key in it replaced by another one.

    Raises:
      TypeError: `key` is not one typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> net = rnn_jax.dropout(rnn_jax.gru(2, 8), 0.5, jax.random.key(0), variational=True)
      >>> params, xs = net.init(jax.random.key(1)), jnp.ones((4, 2))
      >>> state, first = rnn_jax.unroll(net, params, None, xs)
      >>> _, same = rnn_jax.unroll(net, params, state, xs)
      >>> _, other = rnn_jax.unroll(net, params, redraw(state, jax.random.key(2)), xs)
      >>> print([bool(((ys == 0) == (first == 0)).all()) for ys in (same, other)])
      [True, False]
    """
    _checks.typed_key(key)
    leaves, tree = jax.tree.flatten(state)
    for n, leaf in enumerate(leaves):
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaves[n] = jax.random.split(jax.random.fold_in(key, n), leaf.shape)
    return jax.tree.unflatten(tree, leaves)


def drop(x: Array, rate: float, key: Key, *, shared: int | Sequence[int] = ()) -> Array:
    """Sets entries of an array to zero and divides the others by 1 - rate.

    Args:
      x: any shape, float.
      rate: probability of dropping an entry, 0 <= rate < 1.
      key: typed PRNG key.
      shared: the axes along which one decision holds for all: that of time for variational
        dropout of vectors [T, B, D]; axis 1 of a table of words [V, D] to drop words, whole rows.

    Returns:
      The shape and the dtype of `x`.

    Raises:
      ValueError: `rate` out of range.
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> table = jnp.ones((4, 3))
      >>> print(drop(table, 0.5, jax.random.key(0), shared=1))
      [[0. 0. 0.]
       [0. 0. 0.]
       [2. 2. 2.]
       [2. 2. 2.]]

    References:
      Gal, Ghahramani. A theoretically grounded application of dropout in recurrent neural
      networks. 2016 (one mask for all steps; whole words of the table).
    """
    keep = 1.0 - _checks.probability("rate", rate)
    _checks.typed_key(key)
    axes = {axis % x.ndim for axis in ((shared,) if isinstance(shared, int) else shared)}
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    kept = jax.random.bernoulli(key, keep, shape)
    return jnp.where(kept, x / keep, jnp.zeros_like(x))


def drop_tokens(tokens: Array, rate: float, key: Key, *, unknown: int) -> Array:
    """Word dropout: replaces tokens by the unknown one, so that the net learns to do without.

    Args:
      tokens: any shape, integers.
      rate: probability of replacing a token, 0 <= rate < 1.
      key: typed PRNG key.
      unknown: the token that stands for words that are not known.

    Returns:
      The shape and the dtype of `tokens`.

    Raises:
      ValueError: `rate` out of range.
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> print(drop_tokens(jnp.array([5, 6, 7, 8]), 0.5, jax.random.key(1), unknown=0))
      [0 6 0 0]

    References:
      Iyyer, Manjunatha, Boyd-Graber, Daume. Deep unordered composition rivals syntactic methods
      for text classification. 2015.
    """
    _checks.probability("rate", rate)
    _checks.typed_key(key)
    dropped = jax.random.bernoulli(key, rate, tokens.shape)
    return jnp.where(dropped, jnp.asarray(unknown, tokens.dtype), tokens)


def drop_connect(params: Params, rate: float, key: Key) -> Params:
    """DropConnect on the recurrent weights: `drop` of each w_h in a pytree of params.

    Call it once for each update, in the loss, before the batch: all steps and all sequences then
    share one draw. Evaluation takes the params as they are.

    Args:
      params: those of any net, whose recurrent matrices are named w_h, as in all cells of this
        library.
      rate: probability of dropping a weight, 0 <= rate < 1.
      key: typed PRNG key.

    Returns:
      `params` with other values of w_h.

    Raises:
      ValueError: `rate` out of range, or there is no w_h.
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> net = rnn_jax.stack([rnn_jax.lstm(2, 100), rnn_jax.gru(100, 100)])
      >>> params = net.init(jax.random.key(0))
      >>> dropped = drop_connect(params, 0.5, jax.random.key(1))
      >>> print([0.48 < (p.w_h == 0).mean() < 0.52 for p in dropped])
      [Array(True, dtype=bool), Array(True, dtype=bool)]

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus. Regularization of neural networks using DropConnect. 2013.
      Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. 2017.
    """
    _checks.probability("rate", rate)
    _checks.typed_key(key)
    found = 0

    def weight(path: Any, leaf: Array) -> Array:
        nonlocal found
        name = path[-1] if path else None
        if getattr(name, "name", getattr(name, "key", None)) != "w_h":
            return leaf
        found += 1
        return drop(leaf, rate, jax.random.fold_in(key, found))

    dropped = jax.tree_util.tree_map_with_path(weight, params)
    if not found:
        raise ValueError("params: got none named w_h, expected those of a net with such weights")
    return dropped


class SampledState(NamedTuple):
    """State of `scheduled_sampling`."""

    state: State  # of the plain cell
    key: Key
    rate: Array  # [], the probability of reading a prediction
    drawn: Array  # [] int32, what was predicted last; -1 before the first


def scheduled_sampling(cell: Cell, rate: float, key: Key) -> Cell:
    """Lets a net that predicts the next token read its own predictions now and then.

    token_t is replaced, with probability `rate`, by one drawn from softmax(logits_{t-1}), so that
    the net learns to go on from its own mistakes. No gradient goes through the draw.

    Args:
      cell: any cell that reads tokens and whose output is the logits.
      rate: the probability of reading a prediction; 0 is teacher forcing, 1 writes freely. It is
        part of the state: ``state._replace(rate=...)`` lets it rise while training.
      key: typed PRNG key that the initial state will hold, see `with_key`.

    Returns:
      A `Cell` with the params of `cell` and `SampledState`. Evaluation runs the plain cell.

    Raises:
      ValueError: `rate` out of range.
      TypeError: `key` is not a typed PRNG key.

    Example:
      >>> import rnn_jax
      >>> successor = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: 50.0 * jax.nn.one_hot((token + 1) % 5, 5),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> free = scheduled_sampling(successor, 1.0, jax.random.key(0))
      >>> _, logits = rnn_jax.unroll(free, (), None, jnp.array([2, 2, 2, 2]))
      >>> print(logits.argmax(axis=1))
      [3 4 0 1]

    References:
      Bengio, Vinyals, Jaitly, Shazeer. Scheduled sampling for sequence prediction with recurrent
      neural networks. 2015.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, expected a probability from 0 to 1")
    _checks.typed_key(key)

    def init_state(params: Params) -> SampledState:
        state = cell.init_state(params)
        return SampledState(state, key, jnp.float32(rate), jnp.int32(-1))

    def step(params: Params, old: SampledState, token: Array) -> tuple[SampledState, Array]:
        following, coin, now = jax.random.split(old.key, 3)
        own = jax.random.bernoulli(coin, old.rate) & (old.drawn >= 0)
        token = jnp.where(own, old.drawn.astype(token.dtype), token)
        state, logits = cell.step(params, old.state, cell.project(params, token))
        drawn = jax.random.categorical(now, jax.lax.stop_gradient(logits)).astype(jnp.int32)
        return SampledState(state, following, old.rate, drawn), logits

    return Cell(cell.init, init_state, lambda params, token: token, step)


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
