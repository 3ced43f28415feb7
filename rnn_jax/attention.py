"""Attention: at each step a cell looks at a memory, such as the outputs of an encoder.

The memory is part of the state, so masks, streaming, generation and all gradient algorithms work
as they do for any other cell. A cell is made for one number of places S; its params know nothing
of S and serve cells for any other one.

An encoder and a decoder, for a source of up to 9 tokens, of which 7 are valid here:

>>> import rnn_jax
>>> from rnn_jax import attention
>>> encoder = rnn_jax.embed(rnn_jax.gru(4, 8), 20, 4)
>>> attend = attention.additive(rnn_jax.gru(5 + 8, 6), places=9, memory_size=8)
>>> decoder = rnn_jax.readout(rnn_jax.embed(attend, 30, 5), 30)
>>> keys = jax.random.split(jax.random.key(0))
>>> params = encoder.init(keys[0]), decoder.init(keys[1])
>>> source, mask = jnp.arange(9), jnp.arange(9) < 7
>>> _, annotations = rnn_jax.unroll(encoder, params[0], None, source, mask=mask)
>>> state = attention.start(attend, params[1].cell.cell, annotations, mask)
>>> state, logits = rnn_jax.unroll(decoder, params[1], state, jnp.array([1, 5, 2]))
>>> print(logits.shape, state.weights.shape, bool((state.weights[7:] == 0).all()))
(3, 30) (9,) True

References:
  Bahdanau, Cho, Bengio. Neural machine translation by jointly learning to align and translate.
  2015.
  Luong, Pham, Manning. Effective approaches to attention-based neural machine translation. 2015.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, initializers
from rnn_jax._types import Array, Cell, Initializer, Key, Params, State
from rnn_jax.combine import _dtype, _output


class Memory(NamedTuple):
    """What a cell can look at; S places."""

    keys: Array  # [S, A], what the scores are made of, computed once for each memory
    values: Array  # [S, M]
    mask: Array  # [S] bool, false where there is nothing


class AttentionState(NamedTuple):
    """State of a cell with attention."""

    cell: State
    memory: Memory
    output: Array  # [O], the last output, which input feeding reads; [0] where nothing reads it
    weights: Array  # [S], where the last step looked; they sum to 1, or are 0 without a valid place


class AttentionParams(NamedTuple):
    """Weights of a cell with attention; None for those that the kind of score does not have."""

    cell: Params
    w_key: Array | None  # [M, A]
    w_query: Array | None  # [H, A]
    v: Array | None  # [A]
    w_out: Array | None  # [M + H, O]


def additive(
    cell: Cell,
    *,
    places: int,
    memory_size: int,
    size: int | None = None,
    query: Callable[[State], Array] | None = None,
    w_init: Initializer = initializers.glorot_uniform(),
) -> Cell:
    """Attention of Bahdanau: the state before the step looks, and what it sees is an input.

    e_j = v . tanh(s_{t-1} W_query + m_j W_key);  a = softmax(e) over the valid places
    c = sum_j a_j m_j;  s_t, y_t = cell(s_{t-1}, [x_t, c])

    Args:
      cell: a cell of input size D + M.
      places: S.
      memory_size: M.
      size: A, units of the score; None for H, the size of s.
      query: ``(state of cell) -> s`` [H]; None for the hidden array of the last layer.
      w_init: initializer of the three matrices.

    Returns:
      A `Cell` with `AttentionParams` and `AttentionState`; x: [D]; y: that of `cell`. Its initial
      state has an empty memory: c is zero. `start` fills it.

    Raises:
      ValueError: a size is not positive; the input of `cell` is not D + M (when it is run).

    Example:
      >>> import rnn_jax
      >>> cell = additive(rnn_jax.lstm(2 + 3, 4), places=4, memory_size=3)
      >>> params = cell.init(jax.random.key(0))
      >>> state = start(cell, params, jnp.ones((4, 3)))
      >>> state, ys = rnn_jax.unroll(cell, params, state, jnp.ones((5, 2)))
      >>> print(ys.shape, state.weights)
      (5, 4) [0.25 0.25 0.25 0.25]
    """
    S, M = _sizes(places, memory_size)
    look_from = query or _hidden

    def init(key: Key) -> AttentionParams:
        k_cell, k_key, k_query, k_v = jax.random.split(key, 4)
        params = cell.init(k_cell)
        H, dtype = look_from(cell.init_state(params)).shape[0], _dtype(params)
        A = H if size is None else _checks.positive_int("size", size)
        w_key, w_query = w_init(k_key, (M, A), dtype), w_init(k_query, (H, A), dtype)
        v = w_init(k_v, (A, 1), dtype)[:, 0]
        return AttentionParams(params, w_key, w_query, v, None)

    def init_state(params: AttentionParams) -> AttentionState:
        return _empty(cell, params, S, M, 0)

    def step(
        params: AttentionParams, state: AttentionState, x: Array
    ) -> tuple[AttentionState, Array]:
        weights, context = _look(params, state.memory, look_from(state.cell))
        z = cell.project(params.cell, jnp.concatenate([x, context]))
        new, y = cell.step(params.cell, state.cell, z)
        return state._replace(cell=new, weights=weights), y

    return Cell(init, init_state, lambda params, x: x, step)


def multiplicative(
    cell: Cell,
    *,
    places: int,
    memory_size: int,
    score: str = "general",
    output_size: int | None = None,
    input_feeding: bool = True,
    hidden_size: int | None = None,
    w_init: Initializer = initializers.glorot_uniform(),
) -> Cell:
    """Attention of Luong: the output of the step looks, and what it sees is joined to it.

    s_t, h = cell(s_{t-1}, [x_t, y_{t-1}])      with input feeding; without, cell(s_{t-1}, x_t)
    "dot":     e_j = h . m_j                    M = H
    "general": e_j = h . (m_j W_key)
    "concat":  e_j = v . tanh(h W_query + m_j W_key)
    a = softmax(e) over the valid places;  c = sum_j a_j m_j;  y_t = tanh([c, h] W_out)

    Args:
      cell: a cell of input size D + O with input feeding, or D; its output is h: [H].
      places: S.
      memory_size: M.
      score: "dot", "general" or "concat".
      output_size: O; None for H.
      input_feeding: whether the cell reads its last output beside x.
      hidden_size: H; needed only where it cannot be told from the cell.
      w_init: initializer of the matrices.

    Returns:
      A `Cell` with `AttentionParams` and `AttentionState`; x: [D], y: [O].

    Raises:
      ValueError: a size is not positive, an unknown score, or "dot" where M is not H.

    Example:
      >>> import rnn_jax
      >>> cell = multiplicative(rnn_jax.gru(2 + 4, 4), places=6, memory_size=3)
      >>> params = cell.init(jax.random.key(0))
      >>> state = start(cell, params, jnp.ones((6, 3)), jnp.arange(6) < 4)
      >>> state, ys = rnn_jax.unroll(cell, params, state, jnp.ones((5, 2)))
      >>> print(ys.shape, state.weights)
      (5, 4) [0.25 0.25 0.25 0.25 0.   0.  ]
    """
    S, M = _sizes(places, memory_size)
    if score not in ("dot", "general", "concat"):
        raise ValueError(f"score: got {score!r}, expected 'dot', 'general' or 'concat'")

    def init(key: Key) -> AttentionParams:
        k_cell, k_key, k_query, k_v, k_out = jax.random.split(key, 5)
        params = cell.init(k_cell)
        H, dtype = _output(cell, params, hidden_size)
        O = H if output_size is None else _checks.positive_int("output_size", output_size)
        if score == "dot" and M != H:
            raise ValueError(
                f"memory_size: got {M}, expected {H}, the size of the output of the cell, for the "
                "score 'dot'; 'general' takes any"
            )
        concat = score == "concat"
        return AttentionParams(
            cell=params,
            w_key=None if score == "dot" else w_init(k_key, (M, H), dtype),
            w_query=w_init(k_query, (H, H), dtype) if concat else None,
            v=w_init(k_v, (H, 1), dtype)[:, 0] if concat else None,
            w_out=w_init(k_out, (M + H, O), dtype),
        )

    def init_state(params: AttentionParams) -> AttentionState:
        assert params.w_out is not None
        return _empty(cell, params, S, M, params.w_out.shape[1] if input_feeding else 0)

    def project(params: AttentionParams, x: Array) -> Any:
        return x if input_feeding else cell.project(params.cell, x)

    def step(
        params: AttentionParams, state: AttentionState, z: Any
    ) -> tuple[AttentionState, Array]:
        if input_feeding:
            z = cell.project(params.cell, jnp.concatenate([z, state.output]))
        new, h = cell.step(params.cell, state.cell, z)
        weights, context = _look(params, state.memory, h)
        y = jnp.tanh(jnp.concatenate([context, h]) @ params.w_out)  # type: ignore[operator]
        return AttentionState(new, state.memory, y if input_feeding else state.output, weights), y

    return Cell(init, init_state, project, step)


def start(
    cell: Cell,
    params: AttentionParams,
    values: Array,
    mask: Array | None = None,
    state: State | None = None,
) -> AttentionState:
    """The state of a cell with attention that has a memory.

    Args:
      cell: from `additive` or `multiplicative`.
      params: its params.
      values: [S, M], such as the outputs of an encoder.
      mask: [S] bool, false where there is nothing; None for all valid. What stands there, NaN
        included, reaches neither an output nor a gradient.
      state: the initial state of the cell inside; None for its own.

    Returns:
      The state before the first step.

    Raises:
      ValueError: `values` or `mask` has another shape than the cell was made for.
    """
    empty = cell.init_state(params)
    values = jnp.asarray(values)
    expected = empty.memory.values.shape
    if values.shape != expected:
        raise ValueError(
            f"values: got shape {values.shape}, expected {expected}, the places and the "
            "memory_size of the cell; add a batch axis with jax.vmap"
        )
    S = expected[0]
    mask = jnp.ones(S, bool) if mask is None else _checks.time_flags("mask", mask, S)
    values = jnp.where(mask[:, None], values, jnp.zeros_like(values))
    keys = values if params.w_key is None else values @ params.w_key
    inside = empty.cell if state is None else state
    return empty._replace(cell=inside, memory=Memory(keys, values, mask))


def _sizes(places: int, memory_size: int) -> tuple[int, int]:
    return (
        _checks.positive_int("places", places),
        _checks.positive_int("memory_size", memory_size),
    )


def _empty(cell: Cell, params: AttentionParams, S: int, M: int, fed: int) -> AttentionState:
    dtype = _dtype(params.cell)
    A = M if params.w_key is None else params.w_key.shape[1]
    memory = Memory(jnp.zeros((S, A), dtype), jnp.zeros((S, M), dtype), jnp.zeros(S, bool))
    start = cell.init_state(params.cell)
    return AttentionState(start, memory, jnp.zeros(fed, dtype), jnp.zeros(S, dtype))


def _look(params: AttentionParams, memory: Memory, query: Array) -> tuple[Array, Array]:
    """Weights [S] and what they see, [M]."""
    if params.v is None or params.w_query is None:
        scores = memory.keys @ query
    else:
        scores = jnp.tanh(memory.keys + (query @ params.w_query)[None]) @ params.v
    weights = jax.nn.softmax(scores, where=memory.mask)
    return weights, weights @ memory.values


def _hidden(state: State) -> Array:
    """The h of the last layer: (h, c) has it first, a stack of layers last."""
    while isinstance(state, tuple):
        state = state[0] if hasattr(state, "_fields") else state[-1]
    if getattr(state, "ndim", None) != 1:
        raise ValueError(
            "query: got None, and the state of the cell does not say which of its arrays looks. "
            "Pass query=lambda state: ..., [H]."
        )
    return state
