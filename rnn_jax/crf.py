"""Linear-chain conditional random field: tags that are right together, not one by one.

The score of tags y for a sequence with one score u_t[k] for each step and tag, from a net:

  s(y) = start[y_1] + sum_t u_t[y_t] + sum_t A[y_{t-1}, y_t] + stop[y_T],   p(y) = exp s(y) / Z

Sums over all taggings take T K^2 operations. A masked step is no step: the tags on both its sides
are neighbours, and what it holds, NaN included, reaches neither a value nor a gradient. With no
valid step there is one tagging, the empty one. All functions take one sequence; `jax.vmap` adds a
batch. They compute in float32 or wider.

A net that is trained on the likelihood:

>>> import rnn_jax
>>> from rnn_jax import crf
>>> tagger = rnn_jax.readout(rnn_jax.gru(4, 8), 3)
>>> params = tagger.init(jax.random.key(0)), crf.init(jax.random.key(1), 3)
>>> xs, tags = jax.random.normal(jax.random.key(2), (6, 4)), jnp.array([0, 1, 2, 0, 1, 2])
>>> def loss(params):
...     _, scores = rnn_jax.unroll(tagger, params[0], None, xs)
...     return -crf.log_likelihood(params[1], scores, tags)
>>> step = jax.jit(lambda p: jax.tree.map(lambda p, g: p - 0.3 * g, p, jax.grad(loss)(p)))
>>> for _ in range(40):
...     params = step(params)
>>> _, scores = rnn_jax.unroll(tagger, params[0], None, xs)
>>> print(crf.decode(params[1], scores)[0])
[0 1 2 0 1 2]

References:
  Lafferty, McCallum, Pereira. Conditional random fields. 2001.
  Huang, Xu, Yu. Bidirectional LSTM-CRF models for sequence tagging. 2015.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks
from rnn_jax._types import Array, Key, vary, varying_axes, wide

FORBIDDEN = -1e4
"""The score of what `Allowed` forbids: its probability is 0 and its gradient too, where an infinite
score would make every gradient NaN."""


class CRFParams(NamedTuple):
    """Scores of neighbouring tags."""

    transitions: Array  # [K, K], from the tag of the row to the tag of the column
    start: Array  # [K]
    stop: Array  # [K]


class Allowed(NamedTuple):
    """What may occur; all bool."""

    transitions: Array  # [K, K], from the tag of the row to the tag of the column
    start: Array  # [K]
    stop: Array  # [K]


def init(key: Key, num_tags: int, dtype: Any = jnp.float32) -> CRFParams:
    """Small random scores, uniform in -0.1 to 0.1.

    Args:
      key: PRNG key.
      num_tags: K.
      dtype: of the scores.
    """
    K = _checks.positive_int("num_tags", num_tags)
    keys = jax.random.split(key, 3)
    draw = lambda key, shape: jax.random.uniform(key, shape, dtype, -0.1, 0.1)  # noqa: E731
    return CRFParams(draw(keys[0], (K, K)), draw(keys[1], (K,)), draw(keys[2], (K,)))


def bio(labels: Sequence[str]) -> Allowed:
    """What the scheme of beginnings and insides allows: I-x follows B-x or I-x and nothing else.

    Args:
      labels: the names of the K tags: ``O``, ``B-x`` and ``I-x`` for any kind x.

    Raises:
      ValueError: a name that is none of these.

    Example:
      >>> print(bio(["O", "B-place", "I-place"]).transitions)
      [[ True  True False]
       [ True  True  True]
       [ True  True  True]]
    """
    for label in labels:
        if label != "O" and label[:2] not in ("B-", "I-"):
            raise ValueError(f"labels: got {label!r}, expected O, B-... or I-...")
    opens = jnp.array([not label.startswith("I-") for label in labels])
    same = jnp.array([[a != "O" and a[2:] == b[2:] for b in labels] for a in labels])
    return Allowed(opens[None] | same, opens, jnp.ones(len(labels), bool))


def log_likelihood(
    params: CRFParams,
    scores: Array,
    tags: Array,
    mask: Array | None = None,
    allowed: Allowed | None = None,
) -> Array:
    """log p(tags), in nats; its negative is the loss.

    Args:
      params: scores of neighbouring tags.
      scores: u, [T, K] float.
      tags: [T] int, 0 <= tag < K; those of masked steps are not looked at.
      mask: [T] bool, None for all valid.
      allowed: what may occur; None for everything.

    Returns:
      [] float; at or below about -1e4 for tags that are not allowed.

    Raises:
      ValueError: shapes do not fit.
      TypeError: `tags` are not integers, or the mask is not bool.

    Example:
      With all scores 0, each of the 2^3 taggings has the same probability:

      >>> params = CRFParams(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
      >>> print(log_likelihood(params, jnp.zeros((3, 2)), jnp.array([0, 1, 1])), jnp.log(1 / 8))
      -2.0794415 -2.0794415
    """
    scores, tags = jnp.asarray(scores), jnp.asarray(tags)
    chain = _chain(params, scores, mask, allowed)
    if tags.shape != scores.shape[:1]:
        raise ValueError(f"tags: got shape {tags.shape}, expected {scores.shape[:1]}")
    if not jnp.issubdtype(tags.dtype, jnp.integer):
        raise TypeError(f"tags: got dtype {tags.dtype}, expected integers")

    chosen = _total(chain, vary(tags, varying_axes(chain)))
    return (chosen - _log_partition(chain)).astype(scores.dtype)


def log_partition(
    params: CRFParams, scores: Array, mask: Array | None = None, allowed: Allowed | None = None
) -> Array:
    """log Z, the logarithm of the sum of exp s(y) over all taggings.

    Args, Raises: as in `log_likelihood`.

    Returns:
      [] float.

    Example:
      >>> params = CRFParams(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
      >>> print(log_partition(params, jnp.zeros((3, 2))), jnp.log(8))
      2.0794415 2.0794415
    """
    scores = jnp.asarray(scores)
    return _log_partition(_chain(params, scores, mask, allowed)).astype(scores.dtype)


def marginals(
    params: CRFParams, scores: Array, mask: Array | None = None, allowed: Allowed | None = None
) -> Array:
    """p(y_t = k) for each step and tag: the derivative of log Z in the scores.

    Args, Raises: as in `log_likelihood`.

    Returns:
      [T, K] float; each valid row sums to 1, masked rows are 0.

    Example:
      The second step is surely 1, and 1 may not follow 0, so the first one is 1 as well:

      >>> params = CRFParams(jnp.array([[0.0, FORBIDDEN], [0.0, 0.0]]), jnp.zeros(2), jnp.zeros(2))
      >>> print(marginals(params, jnp.array([[0.0, 0.0], [FORBIDDEN, 0.0]])))
      [[0. 1.]
       [0. 1.]]
    """
    scores = jnp.asarray(scores)
    chain = _chain(params, scores, mask, allowed)
    by_score = jax.grad(lambda u: _log_partition(chain._replace(u=u)))(chain.u)
    return by_score.astype(scores.dtype)


def decode(
    params: CRFParams, scores: Array, mask: Array | None = None, allowed: Allowed | None = None
) -> tuple[Array, Array]:
    """The tags with the greatest score, by the algorithm of Viterbi.

    Args, Raises: as in `log_likelihood`.

    Returns:
      ``(tags, score)``: [T] int32, 0 in masked steps, and s(tags), []. Of equal scores, the lower
      tag wins, from the last step to the first.

    Example:
      The second step alone would be 0; but 0 may not follow 1.

      >>> params = CRFParams(jnp.array([[0.0, 0.0], [-9.0, 0.0]]), jnp.zeros(2), jnp.zeros(2))
      >>> tags, score = decode(params, jnp.array([[0.0, 3.0], [1.0, 0.0], [0.0, 2.0]]))
      >>> print(tags, score)
      [1 1 1] 5.0

    References:
      Viterbi. Error bounds for convolutional codes and an asymptotically optimum decoding
      algorithm. 1967.
    """
    scores = jnp.asarray(scores)
    chain = _chain(params, scores, mask, allowed)
    last, origins = _forward(chain, jnp.max)
    end = jnp.argmax(last).astype(jnp.int32)

    def back(tag: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        origin, valid = now
        return origin[tag], jnp.where(valid, tag, 0)

    tags = jax.lax.scan(back, end, (origins, chain.mask), reverse=True)[1]
    return tags, jnp.where(chain.mask.any(), last[end], 0).astype(scores.dtype)


class _Chain(NamedTuple):
    """What all sums over taggings need, checked and in a wide dtype."""

    u: Array  # [T, K]
    transitions: Array  # [K, K]
    start: Array  # [K]
    stop: Array  # [K]
    mask: Array  # [T] bool


def _chain(params: CRFParams, scores: Array, mask: Any, allowed: Allowed | None) -> _Chain:
    scores = jnp.asarray(scores)
    K = params.start.shape[0]
    if scores.ndim != 2 or scores.shape[1] != K:
        raise ValueError(
            f"scores: got shape {scores.shape}, expected [T, {K}], one score for each step and "
            "tag; add a batch axis with jax.vmap"
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores: got dtype {scores.dtype}, expected a float")
    T = scores.shape[0]
    mask = jnp.ones(T, bool) if mask is None else _checks.time_flags("mask", mask, T)
    dtype = wide(jnp.promote_types(scores.dtype, jnp.result_type(params.start)))
    given = [jnp.asarray(a, dtype) for a in params]
    if allowed is not None:
        pairs = zip(CRFParams._fields, allowed, given, strict=True)
        given = [_forbid(name, jnp.asarray(may), a) for name, may, a in pairs]
    transitions, start, stop = given
    chain = _Chain(scores.astype(dtype), transitions, start, stop, mask)
    return vary(chain, varying_axes(chain))


def _forbid(name: str, may: Array, scores: Array) -> Array:
    if may.shape != scores.shape or may.dtype != jnp.bool_:
        raise ValueError(
            f"allowed.{name}: got {may.dtype}{[*may.shape]}, expected bool{[*scores.shape]}"
        )
    return jnp.where(may, scores, FORBIDDEN)


def _forward(chain: _Chain, join: Callable[..., Array]) -> tuple[Array, Array]:
    """`join` of the scores of all beginnings that end in each tag, stop included; and for each step
    and tag the best tag before it."""
    K = chain.start.shape[0]
    itself = jnp.arange(K, dtype=jnp.int32)

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> Any:
        a, begun = carry
        u, valid = now
        paths = a[:, None] + chain.transitions
        new = u + jnp.where(begun, join(paths, axis=0), chain.start)
        origin = jnp.where(valid & begun, jnp.argmax(paths, axis=0).astype(jnp.int32), itself)
        return (jnp.where(valid, new, a), begun | valid), origin

    first = vary((jnp.zeros_like(chain.start), jnp.array(False)), varying_axes(chain))
    (a, _), origins = jax.lax.scan(step, first, (chain.u, chain.mask))
    return a + chain.stop, origins


def _log_partition(chain: _Chain) -> Array:
    last, _ = _forward(chain, jax.nn.logsumexp)
    return jnp.where(chain.mask.any(), jax.nn.logsumexp(last), 0)


def _total(chain: _Chain, tags: Array) -> Array:
    """s(tags)."""

    def step(carry: tuple[Array, Array], now: Any) -> tuple[tuple[Array, Array], Array]:
        before, begun = carry
        u, tag, valid = now
        enter = jnp.where(begun, chain.transitions[before, tag], chain.start[tag])
        carry = jnp.where(valid, tag, before), begun | valid
        return carry, jnp.where(valid, enter + u[tag], 0)

    first = vary((jnp.zeros((), tags.dtype), jnp.array(False)), varying_axes(chain))
    (last, begun), added = jax.lax.scan(step, first, (chain.u, tags, chain.mask))
    return added.sum() + jnp.where(begun, chain.stop[last], 0)
