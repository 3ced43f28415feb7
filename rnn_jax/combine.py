"""Combinators: cells in, a cell out, so that everything else works on the result."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Initializer, Key, Params, State, vary, varying_axes
from rnn_jax.unroll import unroll


class TwoWay(NamedTuple):
    """A net over whole sequences, made by `two_way`; it needs the future, so it is no `Cell`.

    `stack`, `embed`, `one_hot` and `readout` take it as they take a cell.

    Attributes:
      init: ``(key) -> params``.
      init_state: ``(params) -> state``.
      run: ``(params, state, xs, *, mask=None, reset=None, **options) -> (state, ys)``, with the
        arguments and the results of `rnn_jax.unroll`, but for `reverse`.
    """

    init: Callable[[Key], Params]
    init_state: Callable[[Params], State]
    run: Callable[..., tuple[State, Any]]


Net = TypeVar("Net", Cell, TwoWay)


def stack(cells: Sequence[Net]) -> Net:
    """A deep recurrent cell: the output of each layer is the input of the next.

    Args:
      cells: the layers, first to last; the input size of each is the output size of the one
        before. Layers of `two_way` too, with or without cells among them.

    Returns:
      A `Cell`, or a `TwoWay` where a layer is one; params and state are tuples with one entry a
      layer, y is that of the last layer.

    Raises:
      ValueError: no cells, or sizes that do not fit (when it is first run).

    Example:
      >>> import rnn_jax
      >>> deep = stack([rnn_jax.lstm(3, 8), rnn_jax.gru(8, 5)])
      >>> params = deep.init(jax.random.key(0))
      >>> state, ys = rnn_jax.unroll(deep, params, None, jnp.ones((7, 3)))
      >>> print(ys.shape, state[0].c.shape, state[1].shape)
      (7, 5) (8,) (5,)

    References:
      Graves, Mohamed, Hinton. Speech recognition with deep recurrent neural networks. 2013.
    """
    if not cells:
        raise ValueError("cells: got none, expected at least one layer")
    return _stack(tuple(cells))


@remembered
def _stack(cells: tuple[Any, ...]) -> Any:

    def init(key: Key) -> tuple[Params, ...]:
        keys = jax.random.split(key, len(cells))
        return tuple(cell.init(k) for cell, k in zip(cells, keys, strict=True))

    def init_state(params: tuple[Params, ...]) -> tuple[State, ...]:
        return tuple(cell.init_state(p) for cell, p in zip(cells, params, strict=True))

    def project(params: tuple[Params, ...], x: Any) -> Any:
        return cells[0].project(params[0], x)

    def step(
        params: tuple[Params, ...], state: tuple[State, ...], z: Any
    ) -> tuple[tuple[State, ...], Any]:
        first, y = cells[0].step(params[0], state[0], z)
        states = [first]
        for layer in range(1, len(cells)):
            try:
                z = cells[layer].project(params[layer], y)
            except ValueError as error:
                raise ValueError(f"layer {layer} of the stack: {error}") from error
            new, y = cells[layer].step(params[layer], state[layer], z)
            states.append(new)
        return tuple(states), y

    def run(
        params: tuple[Params, ...], state: tuple[State, ...] | None, xs: Any, **options: Any
    ) -> tuple[tuple[State, ...], Any]:
        states = []
        for layer, cell in enumerate(cells):
            run_layer = cell.run if isinstance(cell, TwoWay) else partial(unroll, cell)
            before = None if state is None else state[layer]
            after, xs = run_layer(params[layer], before, xs, **options)
            states.append(after)
        return tuple(states), xs

    if any(isinstance(cell, TwoWay) for cell in cells):
        return TwoWay(init, init_state, run)
    return Cell(init, init_state, project, step)


class ReadoutParams(NamedTuple):
    """Weights of `readout`."""

    cell: Params
    w_y: Array | None  # [H, O], None where it is tied to the table of an embedding
    b_y: Array | None  # [O], None without bias


@remembered
def readout(
    cell: Net,
    output_size: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.identity,
    bias: bool = True,
    tied: bool = False,
    w_init: Initializer = initializers.glorot_uniform(),
    hidden_size: int | None = None,
) -> Net:
    """The output layer: y_t = g(h_t W_y + b_y), where h_t is the output of `cell`.

    Args:
      cell: any cell, or `two_way` net, whose output is one array [H].
      output_size: O.
      activation: g, any function [O] -> [O]; the losses of `rnn_jax.losses` want logits, that is
        the identity.
      bias: whether there is b_y; it starts at zero.
      tied: W_y is the transposed table of `cell`, which must be the result of `embed` with V = O
        and D = H. One array is learned from both its uses.
      w_init: initializer of W_y; without effect where it is tied.
      hidden_size: H; needed only where it cannot be told from the cell.

    Returns:
      What `cell` is, with `ReadoutParams` and the state of `cell`; y: [O].

    Raises:
      ValueError: a size is not positive, or H cannot be told from the cell; tied to a cell without
        a table, or with one of another size (when its params are made).

    Example:
      >>> import rnn_jax
      >>> tagger = readout(rnn_jax.gru(3, 8), 5)
      >>> params = tagger.init(jax.random.key(0))
      >>> state, ys = rnn_jax.unroll(tagger, params, None, jnp.ones((7, 3)))
      >>> print(params.w_y.shape, ys.shape, state.shape)
      (8, 5) (7, 5) (8,)

      A language model in which the vector of a word is also the one that predicts it:

      >>> model = readout(embed(rnn_jax.lstm(8, 8), 100, 8), 100, tied=True)
      >>> params = model.init(jax.random.key(0))
      >>> print(params.w_y, params.cell.table.shape, params.b_y.shape)
      None (100, 8) (100,)

    References:
      Inan, Khosravi, Socher. Tying word vectors and word classifiers. 2016.
      Press, Wolf. Using the output embedding to improve language models. 2016.
    """
    size = _checks.positive_int("output_size", output_size)

    def init(key: Key) -> ReadoutParams:
        k_cell, k_y = jax.random.split(key)
        params = cell.init(k_cell)
        H, dtype = _output(cell, params, hidden_size)
        b_y = jnp.zeros(size, dtype) if bias else None
        if tied:
            table = getattr(getattr(params, "table", None), "shape", ())
            if table != (size, H):
                raise ValueError(
                    f"tied: got a cell with {f'a table of {table}' if table else 'no table'}, "
                    f"expected embed(...) with a table of {(size, H)}, output_size and hidden_size"
                )
            return ReadoutParams(cell=params, w_y=None, b_y=b_y)
        return ReadoutParams(cell=params, w_y=w_init(k_y, (H, size), dtype), b_y=b_y)

    def output(params: ReadoutParams, h: Array) -> Array:
        w_y: Any = params.cell.table.T if tied else params.w_y
        y = h @ w_y
        return activation(y if params.b_y is None else y + params.b_y)

    def init_state(params: ReadoutParams) -> State:
        return cell.init_state(params.cell)

    if isinstance(cell, TwoWay):

        def run(
            params: ReadoutParams,
            state: State,
            xs: Any,
            *,
            mask: Array | None = None,
            **options: Any,
        ) -> tuple[State, Array]:
            state, hs = cell.run(params.cell, state, xs, mask=mask, **options)
            ys = jax.vmap(partial(output, params))(hs)
            return state, ys if mask is None else jnp.where(mask[:, None], ys, jnp.zeros_like(ys))

        return TwoWay(init, init_state, run)

    def project(params: ReadoutParams, x: Any) -> Any:
        return cell.project(params.cell, x)

    def step(params: ReadoutParams, state: State, z: Any) -> tuple[State, Array]:
        state, h = cell.step(params.cell, state, z)
        return state, output(params, h)

    return Cell(init, init_state, project, step)


class EmbedParams(NamedTuple):
    """Weights of `embed`."""

    cell: Params
    table: Array  # [V, D]


@remembered
def embed(cell: Net, num_tokens: int, input_size: int) -> Net:
    """Lets a cell read tokens: x_t = table[token_t], a row of D learned numbers.

    Args:
      cell: a cell, or a `two_way` net, of input size D.
      num_tokens: V; tokens are integers with 0 <= token < V. Any other one reads NaN, so that all
        outputs after it are NaN.
      input_size: D.

    Returns:
      What `cell` is, with `EmbedParams` and the state of `cell`; x: [] integer.

    Raises:
      ValueError: a size is not positive.
      TypeError: the input is not an integer (when it is run).

    Example:
      >>> import rnn_jax
      >>> reader = embed(rnn_jax.gru(4, 8), 10, 4)
      >>> params = reader.init(jax.random.key(0))
      >>> state, ys = rnn_jax.unroll(reader, params, None, jnp.array([3, 1, 4, 1, 5]))
      >>> print(params.table.shape, ys.shape)
      (10, 4) (5, 8)
    """
    shape = (
        _checks.positive_int("num_tokens", num_tokens),
        _checks.positive_int("input_size", input_size),
    )

    def init(key: Key) -> EmbedParams:
        k_cell, k_table = jax.random.split(key)
        params = cell.init(k_cell)
        table = jax.random.normal(k_table, shape, _dtype(params))
        return EmbedParams(cell=params, table=table)

    def look_up(params: EmbedParams, token: Array) -> Array:
        token = _checks.token(token)
        return _known(token, shape[0], params.table[token])

    def init_state(params: EmbedParams) -> State:
        return cell.init_state(params.cell)

    if isinstance(cell, TwoWay):

        def run(params: EmbedParams, state: State, tokens: Array, **options: Any) -> Any:
            xs = jax.vmap(partial(look_up, params))(tokens)
            return cell.run(params.cell, state, xs, **options)

        return TwoWay(init, init_state, run)

    def project(params: EmbedParams, token: Array) -> Any:
        return cell.project(params.cell, look_up(params, token))

    def step(params: EmbedParams, state: State, z: Any) -> tuple[State, Any]:
        return cell.step(params.cell, state, z)

    return Cell(init, init_state, project, step)


@remembered
def one_hot(cell: Net, num_tokens: int) -> Net:
    """Lets a cell of input size V read tokens: x_t is 1 at token_t and 0 elsewhere.

    Args:
      cell: a cell, or a `two_way` net, of input size V.
      num_tokens: V; tokens are integers with 0 <= token < V. Any other one reads NaN, so that all
        outputs after it are NaN.

    Returns:
      What `cell` is, with its params and state; x: [] integer.

    Raises:
      ValueError: `num_tokens` is not positive.
      TypeError: the input is not an integer (when it is run).

    Example:
      >>> import rnn_jax
      >>> reader = one_hot(rnn_jax.gru(10, 8), 10)
      >>> params = reader.init(jax.random.key(0))
      >>> state, ys = rnn_jax.unroll(reader, params, None, jnp.array([3, 1, 4, 1, 5]))
      >>> print(ys.shape)
      (5, 8)
    """
    V = _checks.positive_int("num_tokens", num_tokens)

    def encode(params: Params, token: Array) -> Array:
        token = _checks.token(token)
        return _known(token, V, jax.nn.one_hot(token, V, dtype=_dtype(params)))

    if isinstance(cell, TwoWay):

        def run(params: Params, state: State, tokens: Array, **options: Any) -> Any:
            xs = jax.vmap(partial(encode, params))(tokens)
            return cell.run(params, state, xs, **options)

        return cell._replace(run=run)

    def project(params: Params, token: Array) -> Any:
        return cell.project(params, encode(params, token))

    return cell._replace(project=project)


@remembered
def residual(cell: Cell) -> Cell:
    """A skip connection around a cell whose input and output have the same size: y_t = x_t + h_t.

    Returns:
      A `Cell` with the params and the state of `cell`.

    Raises:
      ValueError: input and output differ in shape (when it is run).

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(3, 3)
      >>> params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
      >>> state, ys = rnn_jax.unroll(residual(cell), params, None, jnp.ones((2, 3)))
      >>> print(ys)
      [[1. 1. 1.]
       [1. 1. 1.]]

    References:
      He, Zhang, Ren, Sun. Deep residual learning for image recognition. 2015.
      Wu et al. Google's neural machine translation system. 2016 (between recurrent layers).
    """

    def project(params: Params, x: Array) -> tuple[Any, Array]:
        return cell.project(params, x), x

    def step(params: Params, state: State, z: tuple[Any, Array]) -> tuple[State, Array]:
        z, x = z
        state, y = cell.step(params, state, z)
        if y.shape != x.shape:
            raise ValueError(
                f"residual: got an output of shape {y.shape} for an input of shape {x.shape}, "
                "expected the same shape. Make hidden_size equal to input_size."
            )
        return state, x + y

    return Cell(cell.init, cell.init_state, project, step)


def bidirectional(
    forward: Cell,
    backward: Cell,
    params: tuple[Params, Params],
    state: tuple[State, State] | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    **options: Any,
) -> tuple[tuple[State, State], Array]:
    """Runs one cell from left to right and another from right to left over a whole sequence.

    y_t = [forward output at t, backward output at t]

    Not a cell, since it needs the future; the outputs are the input of the next layer. `two_way`
    is the same as a net with its own `init`, for `stack`, `embed`, `one_hot` and `readout`. Many to
    one: `rnn_jax.both_ends`.

    Args:
      forward: cell that runs from the first step to the last.
      backward: cell that runs from the last step to the first.
      params: the params of both, ``(forward.init(k1), backward.init(k2))``.
      state: the initial states of both; None means those of their `init_state`.
      xs: [T, D], or a pytree of arrays with the leading axis T.
      mask: [T] bool, as in `unroll`: the backward cell starts at the last valid step.
      reset: [T] bool, true at the first step of an episode; the backward cell is reset before
        the last valid step of each episode.
      **options: `segment`, `budget` and `plan` of `unroll`, for both cells.

    Returns:
      ``(states, ys)``: both final states (the backward one has just read the first step), and
      ys: [T, H of forward + H of backward].

    Raises:
      ValueError, TypeError: as in `unroll`.

    Example:
      >>> import rnn_jax
      >>> cells = rnn_jax.lstm(3, 4), rnn_jax.lstm(3, 5)
      >>> params = tuple(cell.init(jax.random.key(i)) for i, cell in enumerate(cells))
      >>> (left, right), ys = bidirectional(*cells, params, None, jnp.ones((7, 3)))
      >>> print(ys.shape, bool((ys[-1, :4] == left.h).all()), bool((ys[0, 4:] == right.h).all()))
      (7, 9) True True

    References:
      Schuster, Paliwal. Bidirectional recurrent neural networks. 1997.
    """
    first, second = (None, None) if state is None else state
    ends = None
    if reset is not None:
        steps = _checks.time_steps(xs)
        reset = _checks.time_flags("reset", reset, steps)
        ends = _next_valid(reset, mask)
    first, ys = unroll(forward, params[0], first, xs, mask=mask, reset=reset, **options)
    second, backward_ys = unroll(
        backward, params[1], second, xs, mask=mask, reset=ends, reverse=True, **options
    )
    return (first, second), jnp.concatenate([ys, backward_ys], axis=-1)


def deep_bidirectional(
    layers: Sequence[tuple[Cell, Cell]],
    params: Sequence[tuple[Params, Params]],
    state: Sequence[tuple[State, State]] | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    **options: Any,
) -> tuple[tuple[tuple[State, State], ...], Any]:
    """Layers of `bidirectional`, each of which reads the outputs of both directions of the last.

    Args:
      layers: one pair (forward, backward) a layer; from the second on with an input size of the H
        of both cells before together.
      params: a pair a layer.
      state: a pair a layer, or None.
      xs, mask, reset, options: as in `bidirectional`.

    Returns:
      ``(states, ys)``: a pair of final states a layer, and the ys of the last layer.

    Raises:
      ValueError: no layers; as in `unroll`.

    Example:
      >>> import rnn_jax
      >>> layers = [(rnn_jax.gru(3, 4),) * 2, (rnn_jax.gru(8, 5),) * 2]
      >>> params = [[c.init(jax.random.key(0)) for c in pair] for pair in layers]
      >>> print(deep_bidirectional(layers, params, None, jnp.ones((7, 3)))[1].shape)
      (7, 10)
    """
    if not layers:
        raise ValueError("layers: got none, expected at least one pair of cells")
    net = stack([two_way(forward, backward) for forward, backward in layers])
    params = tuple(tuple(pair) for pair in params)
    state = None if state is None else tuple(tuple(pair) for pair in state)
    return net.run(params, state, xs, mask=mask, reset=reset, **options)


@remembered
def two_way(forward: Cell, backward: Cell) -> TwoWay:
    """A layer of `bidirectional` as a net, which `stack`, `embed`, `one_hot` and `readout` take.

    Args:
      forward: cell that runs from the first step to the last.
      backward: cell that runs from the last step to the first.

    Returns:
      A `TwoWay`; params and state are pairs, ys: [T, H of forward + H of backward].

    Example:
      A tagger of tokens, two layers, each of which reads both ways:

      >>> import rnn_jax
      >>> lower = two_way(rnn_jax.gru(4, 3), rnn_jax.gru(4, 3))
      >>> upper = two_way(rnn_jax.gru(6, 5), rnn_jax.gru(6, 5))
      >>> tagger = readout(embed(stack([lower, upper]), 100, 4), 7)
      >>> params = tagger.init(jax.random.key(0))
      >>> state, ys = tagger.run(params, None, jnp.array([3, 1, 4, 1, 0]), mask=jnp.arange(5) < 4)
      >>> print(ys.shape, bool((ys[4] == 0).all()))
      (5, 7) True
    """

    def init(key: Key) -> tuple[Params, Params]:
        k_forward, k_backward = jax.random.split(key)
        return forward.init(k_forward), backward.init(k_backward)

    def init_state(params: tuple[Params, Params]) -> tuple[State, State]:
        return forward.init_state(params[0]), backward.init_state(params[1])

    return TwoWay(init, init_state, partial(bidirectional, forward, backward))


def _next_valid(reset: Array, mask: Array | None) -> Array:
    """For each step, the reset flag of the nearest later step that is valid."""

    def step(later: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        flag, valid = inputs
        return jnp.where(valid, flag, later), later

    if mask is None:
        return jnp.concatenate([reset[1:], jnp.zeros(min(1, len(reset)), bool)])
    valid = _checks.time_flags("mask", mask, len(reset))
    first = vary(jnp.array(False), varying_axes((reset, valid)))
    return jax.lax.scan(step, first, (reset, valid), reverse=True)[1]


def _known(token: Array, num_tokens: int, row: Array) -> Array:
    """The row of a token; NaN for one outside of the vocabulary, which has none."""
    return jnp.where((token >= 0) & (token < num_tokens), row, jnp.nan)


def _dtype(params: Params) -> Any:
    floats = [p.dtype for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.inexact)]
    return floats[0] if floats else jnp.zeros(()).dtype


def inputs(params: Params) -> list[Any]:
    """Shapes and dtypes of what a net with these params may take in one step.

    A net does not say what input it takes, so there is every size that its params have, and then
    all that is left where something of another size is joined to the input, and a token; the net
    itself refuses the wrong ones.
    """
    sizes = sorted({size for leaf in jax.tree.leaves(params) for size in leaf.shape})
    sizes += sorted({a - b for a in sizes for b in sizes if a > b}.difference(sizes))
    vectors = [jax.ShapeDtypeStruct((size,), _dtype(params)) for size in sizes]
    return [*vectors, jax.ShapeDtypeStruct((), jnp.int32)]


def _output(cell: Cell | TwoWay, params: Params, hidden_size: int | None) -> tuple[int, Any]:
    """Size and dtype of the output of a cell."""
    if hidden_size is not None:
        return _checks.positive_int("hidden_size", hidden_size), _dtype(params)

    def output(params: Params, x: Array) -> Any:
        if isinstance(cell, TwoWay):
            return cell.run(params, None, x[None])[1][0]
        return cell.step(params, cell.init_state(params), cell.project(params, x))[1]

    for x in inputs(params):
        try:
            y = jax.eval_shape(output, params, x)
        except (TypeError, ValueError):
            continue
        if getattr(y, "ndim", None) == 1:
            return y.shape[0], y.dtype
    raise ValueError(
        "hidden_size: got None, and the output size of this cell cannot be told from its params. "
        "Pass hidden_size=H."
    )
