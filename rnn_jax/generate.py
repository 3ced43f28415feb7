"""Generation: what a cell predicts is sampled and fed back as its next input."""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, vary, varying_axes
from rnn_jax.unroll import unroll

Allowed = Callable[[State], Array] | None


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
    allowed: Allowed = None,
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
      allowed: ``(state) -> [V] bool``, the tokens that may come next, where `state` is that of the
        cell after the last token was read; None for all. Where it allows none, the text has ended.
        What it needs to remember of the text, a cell around `cell` keeps in its state.

    Returns:
      ``(state, tokens)``: tokens [length] int32. Both go back in to continue:
      ``sample(cell, params, state, tokens[-1], ...)``. After an end, all is -1, which
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
      >>> state, tokens = sample(
      ...     successor, (), None, 2, 6, jax.random.key(0), allowed=lambda state: jnp.arange(5) < 4
      ... )
      >>> print(4 in tokens)
      False

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
    return _write(cell, params, state, token, keys, draw, _tokens(stop), allowed)


def greedy(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    length: int,
    *,
    stop: int | Sequence[int] = (),
    allowed: Allowed = None,
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

    return _write(cell, params, state, token, steps, choose, _tokens(stop), allowed)


class Beams(NamedTuple):
    """The texts that `beam` found, the best first."""

    tokens: Array  # [K, length] int32, -1 after the end
    scores: Array  # [K], the log-probabilities over the length penalty; -inf: there is no such text
    log_probabilities: Array  # [K], natural logarithm


def beam(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    length: int,
    *,
    width: int,
    stop: int | Sequence[int] = (),
    length_penalty: float = 0.0,
    allowed: Allowed = None,
) -> Beams:
    """The likeliest texts, of those that a beam of `width` texts comes across.

    At each step every text of the beam is continued by every token, and the best `width` of all are
    kept. A text that has ended keeps its score and its place as long as no better one comes.
    A beam of 1 is `greedy`; one as wide as the number of all texts finds the best for certain.

    score(y) = log p(y) / ((5 + |y|) / 6)^length_penalty

    Args:
      cell, params, state, token, stop, allowed: as in `sample`.
      length: the longest text; one that has not ended by then is scored as it is.
      width: K.
      length_penalty: float >= 0, may be traced. 0 ranks by the probability alone, which favours
        short texts; 0.6 to 1 is usual in translation. The stop token counts in ``|y|``.

    Returns:
      `Beams`, best first. `score` of a text is its entry of `log_probabilities`, in which the
      tokens that `allowed` forbids have their share.

    Raises:
      ValueError: an option is out of range.

    Example:
      A cell that most likely repeats a token, and may end the text with token 0:

      >>> chain = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: jnp.log(0.4 * jax.nn.one_hot(token, 3) + 0.2),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> found = beam(chain, (), None, 1, 2, width=2, stop=0)
      >>> for tokens, p in zip(found.tokens.tolist(), jnp.exp(found.log_probabilities)):
      ...     print(tokens, f"{p:.2f}")
      [1, 1] 0.36
      [0, -1] 0.20

    References:
      Graves. Sequence transduction with recurrent neural networks. 2012 (beam search).
      Wu et al. Google's neural machine translation system. 2016 (the length penalty).
    """
    K = _checks.positive_int("width", width)
    if isinstance(length_penalty, int | float) and not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty: got {length_penalty}, expected a number of at least 0")
    penalty = jnp.asarray(length_penalty, jnp.float32)
    ends = jnp.array(_tokens(stop), jnp.int32)
    given = token
    state, token = _start(cell, params, state, token)
    axes = varying_axes((params, state, token, penalty))
    params, state, token, penalty = vary((params, state, token, penalty), axes)
    repeat = lambda leaf: jnp.broadcast_to(leaf, (K, *jnp.shape(leaf)))  # noqa: E731

    def scored(sums: Array, sizes: Array) -> Array:
        return sums / ((5.0 + sizes.astype(sums.dtype)) / 6.0) ** penalty.astype(sums.dtype)

    def step(texts: Any, position: Array) -> tuple[Any, None]:
        states, last, tokens, sums, sizes, ended = texts

        def one(state: State, token: Array) -> tuple[State, Array, Array]:
            new, logits = _predict(cell, params, state, token)
            _check_tokens(given if allowed is None else 0, stop, logits.shape[-1])
            chances = jax.nn.log_softmax(logits)
            if allowed is None:
                return new, chances, jnp.array(False)
            may = allowed(new)
            return new, _only(may, chances), ~may.any()

        new_states, chances, stuck = jax.vmap(one)(states, jnp.where(ended, 0, last))
        V, ended = chances.shape[1], ended | stuck
        stays = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf).astype(chances.dtype)
        ways = sums.astype(chances.dtype)[:, None] + jnp.where(ended[:, None], stays, chances)
        longer = sizes + (~ended).astype(jnp.int32)
        ranks, best = jax.lax.top_k(scored(ways, longer[:, None]).ravel(), min(K, K * V))
        parent, chosen = best // V, (best % V).astype(jnp.int32)
        of_parent = lambda leaf: leaf[parent]  # noqa: E731
        over, sizes = ended[parent], longer[parent]
        chosen = jnp.where(over | (ranks == -jnp.inf), -1, chosen)
        states = jax.tree.map(
            lambda new, old: jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), old, new),
            *(jax.tree.map(of_parent, s) for s in (new_states, states)),
        )
        tokens = tokens[parent].at[:, position].set(chosen)
        sums = ways.ravel()[best].astype(sums.dtype)
        over = over | jnp.isin(chosen, ends) | (chosen < 0)
        return (states, chosen, tokens, sums, sizes, over), None

    kept = jax.eval_shape(lambda: _predict(cell, params, state, token)[1]).dtype
    n = _length(length)
    sums = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf).astype(kept)
    texts = (
        jax.tree.map(repeat, state), repeat(token), jnp.full((K, n), -1, jnp.int32), sums,
        jnp.zeros(K, jnp.int32), repeat(token < 0),
    )  # fmt: skip
    texts = vary(texts, axes)
    (_, _, tokens, sums, sizes, _), _ = jax.lax.scan(step, texts, jnp.arange(n))
    return Beams(tokens, scored(sums, sizes), sums)


def score(cell: Cell, params: Params, state: State | None, token: Any, tokens: Any) -> Array:
    """The logarithm of the probability that a net gives to a text.

    log p = sum_t log softmax(logits_t)[tokens_t], where logits_t come from all before it

    Args:
      cell, params, state, token: as in `sample`.
      tokens: [T] int, the text that follows `token`; what comes after a -1 does not count, so that
        what `sample`, `greedy` and `beam` return can be scored.

    Returns:
      [] float, at most 0; NaN for a token that is not in the vocabulary.

    Raises:
      ValueError: `tokens` is not [T].
      TypeError: they are not integers.

    Example:
      >>> fair = Cell(
      ...     init=lambda key: (),
      ...     init_state=lambda params: (),
      ...     project=lambda params, token: jnp.zeros(6),
      ...     step=lambda params, state, z: (state, z),
      ... )
      >>> print(f"1 in {1 / jnp.exp(score(fair, (), None, 0, jnp.array([3, 1, 4]))):.1f}")
      1 in 216.0
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(
            f"tokens: got shape {tokens.shape}, expected [T]; add a batch axis with jax.vmap"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens: got dtype {tokens.dtype}, expected integers")
    state, token = _start(cell, params, state, token)
    tokens = tokens.astype(jnp.int32)
    mask = jnp.cumsum(tokens < 0) == 0
    read = jnp.concatenate([token[None], tokens[:-1]])
    _, logits = unroll(cell, params, state, jnp.where(mask, read, 0), mask=mask)
    chances = jax.nn.log_softmax(_wide(logits))
    each = jnp.take_along_axis(chances, jnp.where(mask, tokens, 0)[:, None], axis=1)[:, 0]
    each = jnp.where(tokens < logits.shape[1], each, jnp.nan)
    return jnp.where(mask, each, 0.0).sum()


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
    allowed: Allowed = None,
) -> Iterator[Array]:
    """Writes without end, or to a stop token, one token at a time, for who does not want to wait.

    The step is compiled once for each cell, so a short text begins as a longer one would. Take as
    many as you want: ``itertools.islice(stream(...), 100)``.

    Args:
      cell, params, state, token, key, top_k, top_p, allowed: as in `sample`.
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
    write = _compiled(cell, temperature == 0, top_k, top_p, allowed)
    state, token = _start(cell, params, state, token)
    warmth = jnp.float32(temperature)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected a number of at least 0")
    ends = _tokens(stop)
    while True:
        key, now = jax.random.split(key)
        state, token = write(params, state, token, now, warmth)
        if allowed is not None and int(token) < 0:
            return
        yield token
        if ends and int(token) in ends:
            return


@functools.lru_cache(maxsize=32)
def _compiled(
    cell: Cell, most_likely: bool, top_k: int | None, top_p: float | None, allowed: Allowed
) -> Any:
    def write(params: Params, state: State, token: Array, key: Key, temperature: Array) -> Any:
        if most_likely:
            state, tokens = greedy(cell, params, state, token, 1, allowed=allowed)
        else:
            options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            state, tokens = sample(cell, params, state, token, 1, key, allowed=allowed, **options)
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


def _check_tokens(given: Any, stop: int | Sequence[int], V: int) -> None:
    stops = _tokens(stop)
    if not stops:  # with stop tokens, -1 is an ended text
        _checks.within("token", given, V)
    if not all(0 <= token < V for token in stops):
        raise ValueError(f"stop: got {stops}, expected tokens from 0 to {V - 1}")


def _predict(cell: Cell, params: Params, state: State, token: Array) -> tuple[State, Array]:
    result = cell.step(params, state, cell.project(params, token))
    state, logits = _checks.stepped(result, state)
    return state, _wide(logits)


def _wide(logits: Array) -> Array:
    if jnp.finfo(logits.dtype).bits < 32:  # too coarse to add up probabilities
        logits = logits.astype(jnp.float32)
    return logits


def _only(allowed: Array, logits: Array) -> Array:
    if jnp.shape(allowed) != logits.shape or jnp.result_type(allowed) != jnp.bool_:
        raise ValueError(
            f"allowed: got {jnp.result_type(allowed)}{[*jnp.shape(allowed)]}, expected "
            f"bool{[*logits.shape]}, whether each token may come next"
        )
    return jnp.where(allowed, logits, -jnp.inf)


def _write(
    cell: Cell,
    params: Params,
    state: State | None,
    token: Any,
    inputs: Any,
    choose: Callable[[Array, Any], Array],
    stop: tuple[int, ...],
    allowed: Allowed,
) -> tuple[State, Array]:
    def step(carry: tuple[State, Array], x: Any) -> tuple[tuple[State, Array], Array]:
        state, logits = _predict(cell, params, *carry)
        _check_tokens(given, stop, logits.shape[-1])
        token = choose(logits, x).astype(jnp.int32)
        return (state, token), token

    def step_or_rest(carry: Any, x: Any) -> Any:
        old, token, ended = carry
        new, logits = _predict(cell, params, old, jnp.where(ended, 0, token))
        _check_tokens(given if allowed is None else 0, stop, logits.shape[-1])
        if allowed is not None:
            may = allowed(new)
            logits = _only(may, logits)
            ended = ended | ~may.any()
            logits = jnp.where(ended, jnp.zeros_like(logits), logits)
        token = choose(logits, x).astype(jnp.int32)
        state = jax.tree.map(lambda n, o: jnp.where(ended, o, n), new, old)
        token = jnp.where(ended, -1, token)
        return (state, token, ended | jnp.isin(token, jnp.array(stop, jnp.int32))), token

    given = token
    state, token = _start(cell, params, state, token)
    axes = varying_axes((params, state, token, inputs))
    params, state, token = vary((params, state, token), axes)
    if not stop and allowed is None:
        (state, _), tokens = jax.lax.scan(step, (state, token), inputs)
        return state, tokens
    start: Any = (state, token, token < 0)
    (state, *_), tokens = jax.lax.scan(step_or_rest, start, inputs)
    return state, tokens
