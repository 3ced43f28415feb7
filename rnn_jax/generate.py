"""Generation: what a cell predicts is sampled and fed back as its next input."""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary, varying_axes


def sample(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    length: int,
    key: Key,
    *,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] = (),
) -> tuple[State, Array]:
    """Writes `length` tokens, each drawn from what the cell predicts after the one before.

    token_{t+1} ~ softmax(filter(logits_t / temperature)), where state_t, logits_t come from
    token_t and state_{t-1}

    Args:
      cell: any `Cell` that reads tokens and whose output is the logits [V].
      params: the params of `cell`.
      state: the state before `token` is read; None means ``cell.init_state(params)``.
      token: [] int, the last token of the prompt.
      length: the number of tokens to write, at least 0.
      key: typed PRNG key.
      temperature: [] float > 0, may be traced. Below 1 is safer: the likely becomes likelier, the
        text more correct and more alike; above 1 is bolder, with more variety and more mistakes.
        Its limit at 0 is `greedy`.
      top_k, top_p: as in `filter_logits`.
      stop: the token, or the tokens, that end the text. The one that is drawn is the last of the
        text; one that is given as `token` ends nothing.

    Returns:
      ``(state, tokens)``: tokens [length] int32. Both go back in to continue:
      ``sample(cell, params, state, tokens[-1], ...)``. With `stop`, all after the end is -1, which
      is no token: ``tokens >= 0`` is the mask, and ``(tokens >= 0).sum()`` the length; the state
      is that of the end, and a text that goes on from the token -1 stays empty.

    Raises:
      ValueError: an option is out of range.

    Example:
      A cell that predicts the token after the one that it read:

      >>> successor = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: 20.0 * jax.nn.one_hot((token + 1) % 5, 5),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> state, tokens = sample(successor, (), None, 2, 6, jax.random.key(0))
      >>> print(tokens)
      [3 4 0 1 2 3]
      >>> state, tokens = sample(successor, (), None, 2, 6, jax.random.key(0), stop=0)
      >>> print(tokens, (tokens >= 0).sum())
      [ 3  4  0 -1 -1 -1] 3

    References:
      Fan, Lewis, Dauphin. Hierarchical neural story generation. 2018 (top-k).
      Holtzman et al. The curious case of neural text degeneration. 2019 (top-p, "nucleus").
    """
    if isinstance(temperature, int | float) and not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature: got {temperature}, expected a number above 0; greedy is its limit at 0"
        )

    def draw(logits: Array, key: Key) -> Array:
        scaled = logits / jnp.asarray(temperature, logits.dtype)
        return jax.random.categorical(key, filter_logits(scaled, top_k=top_k, top_p=top_p))

    keys = jax.random.split(key, _length(length))
    return _write(cell, params, state, token, keys, draw, _tokens(stop))


def greedy(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    length: int,
    *,
    stop: int | Sequence[int] = (),
) -> tuple[State, Array]:
    """Writes `length` tokens, each the most likely one after the one before.

    Arguments and result are those of `sample`.

    Example:
      >>> repeat = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: jax.nn.one_hot(token, 5),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> state, tokens = greedy(repeat, (), None, 2, 4)
      >>> print(tokens)
      [2 2 2 2]
    """
    steps = jnp.zeros(_length(length))

    def choose(logits: Array, _: Any) -> Array:
        return jnp.argmax(logits)

    return _write(cell, params, state, token, steps, choose, _tokens(stop))


def stream(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    key: Key,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] = (),
) -> Iterator[Array]:
    """Writes without end, or to a stop token, one token at a time, for who does not want to wait.

    The step is compiled once for each cell, so a short text begins as a longer one would. Take as
    many as you want: ``itertools.islice(stream(...), 100)``.

    Args:
      cell, params, state, token, key, top_k, top_p: as in `sample`.
      temperature: float >= 0, as in `sample`; 0 takes the most likely token each time, as `greedy`
        does.
      stop: the token, or the tokens, that end the text; the last one that comes is one of them.

    Yields:
      [] int32, the next token.

    Raises:
      ValueError: an option is out of range, when the first token is asked for.

    Example:
      >>> import itertools
      >>> successor = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: 20.0 * jax.nn.one_hot((token + 1) % 5, 5),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> tokens = stream(successor, (), None, 2, jax.random.key(0))
      >>> print([int(token) for token in itertools.islice(tokens, 6)])
      [3, 4, 0, 1, 2, 3]
    """
    write = _compiled(cell, temperature == 0, top_k, top_p)
    state, token = _start(cell, params, state, token)
    warmth = jnp.float32(temperature)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected a number of at least 0")
    ends = _tokens(stop)
    while True:
        key, now = jax.random.split(key)
        state, token = write(params, state, token, now, warmth)
        yield token
        if ends and int(token) in ends:
            return


@functools.lru_cache(maxsize=32)
def _compiled(cell: Cell, most_likely: bool, top_k: int | None, top_p: float | None) -> Any:
    def write(params: Params, state: State, token: Array, key: Key, temperature: Array) -> Any:
        if most_likely:
            state, tokens = greedy(cell, params, state, token, 1)
        else:
            options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            state, tokens = sample(cell, params, state, token, 1, key, **options)
        return state, tokens[0]

    return jax.jit(write)


def filter_logits(logits: Array, *, top_k: int | None = None, top_p: float | None = None) -> Array:
    """Forbids the unlikely: logits outside the `top_k` most likely, then `top_p`, become -inf.

    Args:
      logits: [..., V] float.
      top_k: keep exactly the k most likely (all, where k >= V); of equals, the first.
      top_p: of these, keep the fewest most likely whose probabilities add up to at least p;
        0 < p <= 1. The most likely is always kept.

    Returns:
      [..., V] float.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> logits = jnp.array([0.0, 3.0, 2.0, 1.0])  # probabilities 0.03, 0.64, 0.24, 0.09
      >>> print(filter_logits(logits, top_k=2))
      [-inf   3.   2. -inf]
      >>> print(filter_logits(logits, top_p=0.9))
      [-inf   3.   2.   1.]
    """
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected a probability with 0 < top_p <= 1")
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    if top_k is not None:
        logits = jnp.where(rank < _checks.positive_int("top_k", top_k), logits, -jnp.inf)
    if top_p is not None and top_p < 1:
        ordered = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        keep = jnp.take_along_axis(before < top_p, rank, axis=-1) | (rank == 0)
        logits = jnp.where(keep, logits, -jnp.inf)
    return logits


def _start(cell: Cell, params: Params, state: State | None, token: Any) -> tuple[State, Array]:
    given = _sequence.initial(cell, params) if state is None else jax.tree.map(jnp.asarray, state)
    return given, jnp.asarray(token, jnp.int32)


def _length(length: int) -> int:
    return length if length == 0 else _checks.positive_int("length", length)


def _tokens(stop: int | Sequence[int]) -> tuple[int, ...]:
    several: Any = stop if isinstance(stop, Sequence) or hasattr(stop, "__len__") else (stop,)
    try:
        return tuple(operator.index(token) for token in several)
    except TypeError:
        raise TypeError(f"stop: got {stop!r}, expected a token or a sequence of tokens") from None


def _write(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    inputs: Any,
    choose: Callable[[Array, Any], Array],
    stop: tuple[int, ...],
) -> tuple[State, Array]:
    def step(carry: tuple[State, Array], x: Any) -> tuple[tuple[State, Array], Array]:
        state, token = carry
        result = cell.step(params, state, cell.project(params, token))
        state, logits = _checks.stepped(result, state)
        if not stop:  # with stop tokens, -1 is an ended text
            _checks.within("token", given, logits.shape[-1])
        if not all(0 <= token < logits.shape[-1] for token in stop):
            raise ValueError(f"stop: got {stop}, expected tokens from 0 to {logits.shape[-1] - 1}")
        if jnp.finfo(logits.dtype).bits < 32:  # too coarse to add up probabilities
            logits = logits.astype(jnp.float32)
        token = choose(logits, x).astype(jnp.int32)
        return (state, token), token

    def step_or_rest(carry: Any, x: Any) -> Any:
        old, token, ended = carry
        (new, token), _ = step((old, jnp.where(ended, 0, token)), x)
        state = jax.tree.map(lambda n, o: jnp.where(ended, o, n), new, old)
        token = jnp.where(ended, -1, token)
        return (state, token, ended | jnp.isin(token, jnp.array(stop, jnp.int32))), token

    given = token
    state, token = _start(cell, params, state, token)
    axes = varying_axes((params, state, token, inputs))
    params, state, token = vary((params, state, token), axes)
    if not stop:
        (state, _), tokens = jax.lax.scan(step, (state, token), inputs)
        return state, tokens
    start: Any = (state, token, token < 0)
    (state, *_), tokens = jax.lax.scan(step_or_rest, start, inputs)
    return state, tokens
