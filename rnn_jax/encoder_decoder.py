"""Encoder and decoder: one net reads a sequence, another writes one, of any other length.

The encoder may read anything and either way; the decoder reads what it has written so far, looks
at the outputs of the encoder by attention, or starts from a summary of them and has nothing else.
The result is made of cells, so that `rnn_jax.unroll`, `rnn_jax.generate` and every gradient
algorithm work on it.

A translator from tokens below 20 to tokens below 30, in which 0 begins a text and 1 ends it:

>>> import jax, jax.numpy as jnp
>>> import rnn_jax
>>> from rnn_jax import generate
>>> encoder = rnn_jax.embed(rnn_jax.two_way(rnn_jax.gru(8, 16), rnn_jax.gru(8, 16)), 20, 8)
>>> net = encoder_decoder(encoder, rnn_jax.gru, 30, embedding=8, hidden_size=16, begin=0)
>>> params = net.init(jax.random.key(0))
>>> source, mask = jnp.arange(9), jnp.arange(9) < 7

Training, by teacher forcing:

>>> target, valid = jnp.array([5, 2, 1, 0]), jnp.arange(4) < 3
>>> logits = teacher_forced(net, params, source, target, mask, valid)
>>> print(logits.shape, rnn_jax.losses.cross_entropy(logits, target, valid) > 0)
(4, 30) True

Use, by a beam; or `start` reads the source, and what follows is as for any net that writes.

>>> found = written(net, params, source, 12, mask, width=4, stop=1)
>>> decoder, state = net.decoder(9), net.start(params, source, mask)
>>> _, tokens = generate.greedy(decoder, params.decoder, state, net.begin, 12, stop=1)
>>> print(found.tokens.shape, tokens.shape, state.weights.shape)
(4, 12) (12,) (9,)

References:
  Sutskever, Vinyals, Le. Sequence to sequence learning with neural networks. 2014.
  Bahdanau, Cho, Bengio. Neural machine translation by jointly learning to align and translate.
  2015.
  Luong, Pham, Manning. Effective approaches to attention-based neural machine translation. 2015.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, attention, generate, initializers, over_time
from rnn_jax._remember import remembered
from rnn_jax._types import Array, Cell, Key, Params, State
from rnn_jax.combine import TwoWay, _output, embed, readout
from rnn_jax.noise import SampledState, redraw, scheduled_sampling, with_key
from rnn_jax.unroll import unroll


class EncoderDecoderParams(NamedTuple):
    """Weights of `encoder_decoder`."""

    encoder: Params
    decoder: Params  # of ``net.decoder(places)``, whatever the number of places
    w_start: Array  # [M, n], from the summary of the source to the n numbers of the first state
    b_start: Array  # [n]


class EncoderDecoder(NamedTuple):
    """A net that reads one sequence and writes another, made by `encoder_decoder`.

    Attributes:
      init: ``(key) -> EncoderDecoderParams``.
      start: ``(params, source, mask=None, key=None) -> state`` of the decoder, when it has seen the
        source: [S, ...] and [S] bool. What padded places hold reaches nothing. With a key, the
        noise in encoder and decoder, such as `rnn_jax.dropout`, is drawn from it.
      decoder: ``(places) -> Cell``, for sources of S places: tokens in, logits [V] out; its params
        are ``params.decoder``.
      begin: the token that the decoder reads first.
    """

    init: Callable[[Key], EncoderDecoderParams]
    start: Callable[..., State]
    decoder: Callable[[int], Cell]
    begin: int


def encoder_decoder(
    encoder: Cell | TwoWay,
    cell: Callable[[int, int], Cell],
    num_tokens: int,
    *,
    embedding: int,
    hidden_size: int,
    begin: int,
    attend: str | None = "additive",
    memory_size: int | None = None,
) -> EncoderDecoder:
    """Joins an encoder to a decoder that writes tokens.

    s_0 = tanh(summary W_start + b_start), where the summary is the output of the encoder at the
    last valid step, or of both directions at their ends; s_0 is all numbers of the decoder's state.

    Args:
      encoder: any net; its outputs [S, M] are the memory.
      cell: ``(input_size, hidden_size) -> Cell`` for the decoder: `rnn_jax.lstm`, `rnn_jax.gru`, or
        a function that wraps one in `rnn_jax.dropout`; noise leaves the params as they are.
      num_tokens: V, tokens that the decoder reads and writes.
      embedding: D, numbers in the vector of a token.
      hidden_size: H of the decoder.
      begin: the token that the decoder reads first, 0 <= begin < V.
      attend: "additive" (Bahdanau), "dot", "general" or "concat" (Luong, with input feeding), or
        None for no attention: all that the decoder knows of the source is then s_0.
      memory_size: M; needed only where it cannot be told from the encoder.

    Returns:
      An `EncoderDecoder`.

    Raises:
      ValueError: a size is not positive, an unknown `attend`, `begin` out of range, or M cannot be
        told (when it is initialised).
    """
    V, D, H = (
        _checks.positive_int(name, value)
        for name, value in (
            ("num_tokens", num_tokens), ("embedding", embedding), ("hidden_size", hidden_size),
        )
    )  # fmt: skip
    if attend not in (None, "additive", "dot", "general", "concat"):
        raise ValueError(
            f"attend: got {attend!r}, expected 'additive', 'dot', 'general', 'concat' or None"
        )
    _checks.within("begin", begin, V)
    M, dtype = _output(encoder, jax.eval_shape(encoder.init, jax.random.key(0)), memory_size)

    def cell_for(places: int) -> Cell:
        if attend is None:
            return cell(D, H)
        if attend == "additive":
            return attention.additive(cell(D + M, H), places=places, memory_size=M)
        return attention.multiplicative(
            cell(D + H, H), places=places, memory_size=M, score=attend, hidden_size=H
        )

    @remembered
    def decoder(places: int) -> Cell:
        return readout(embed(cell_for(places), V, D), V, hidden_size=H)

    def empty(params: Params, places: int) -> State:
        """The decoder's first state, before the source is known."""
        state = cell_for(places).init_state(params.cell.cell)
        return state if attend is None else state.cell

    def init(key: Key) -> EncoderDecoderParams:
        k_encoder, k_decoder, k_start = jax.random.split(key, 3)
        write = decoder(1).init(k_decoder)
        n = sum(leaf.size for leaf in filter(_is_number, jax.tree.leaves(empty(write, 1))))
        w = initializers.glorot_uniform()(k_start, (M, n), dtype)
        return EncoderDecoderParams(encoder.init(k_encoder), write, w, jnp.zeros(n, dtype))

    def start(
        params: EncoderDecoderParams,
        source: Any,
        mask: Array | None = None,
        key: Key | None = None,
    ) -> State:
        keys = None if key is None else jax.random.split(key)
        reader = encoder if keys is None else with_key(encoder, keys[0])
        run = reader.run if isinstance(reader, TwoWay) else partial(unroll, reader)
        _, outputs = run(params.encoder, None, source, mask=mask)
        ends = over_time.both_ends if isinstance(encoder, TwoWay) else over_time.last
        numbers = jnp.tanh(ends(outputs, mask) @ params.w_start + params.b_start)
        leaves, tree = jax.tree.flatten(empty(params.decoder, len(outputs)))
        for i, leaf in enumerate(leaves):
            if _is_number(leaf):
                own, numbers = jnp.split(numbers, [leaf.size])
                leaves[i] = own.reshape(leaf.shape)
        state = jax.tree.unflatten(tree, leaves)
        state = state if keys is None else redraw(state, keys[1])
        if attend is None:
            return state
        joined = cell_for(len(outputs))
        return attention.start(joined, params.decoder.cell.cell, outputs, mask, state)

    return EncoderDecoder(init, start, decoder, begin)


def teacher_forced(
    net: EncoderDecoder,
    params: EncoderDecoderParams,
    source: Any,
    target: Array,
    source_mask: Array | None = None,
    target_mask: Array | None = None,
    key: Key | None = None,
) -> Array:
    """What the decoder predicts at each step after it has read the true tokens before.

    Args:
      net: from `encoder_decoder`.
      params: its params.
      source: [S, ...], what the encoder reads.
      target: [T] int, the tokens to predict, without the one that begins and with the one that
        ends a text.
      source_mask, target_mask: [S] and [T] bool, None for all valid.
      key: typed PRNG key for the noise in the net, None where there is none.

    Returns:
      [T, V], logits; zero at padded steps.
    """
    decoder, state = (
        net.decoder(_checks.time_steps(source)),
        net.start(params, source, source_mask, key),
    )
    read = _read(net, target)
    return unroll(decoder, params.decoder, state, read, mask=target_mask)[1]


def sampled(
    net: EncoderDecoder,
    params: EncoderDecoderParams,
    source: Any,
    target: Array,
    rate: Any,
    key: Key,
    source_mask: Array | None = None,
    target_mask: Array | None = None,
) -> Array:
    """`teacher_forced`, but that each token read is the decoder's own with probability `rate`.

    The net learns to go on after its own mistakes, see `rnn_jax.scheduled_sampling`. At rate 0 it
    is `teacher_forced`.

    Args:
      rate: [] float, 0 to 1, may be traced: let it rise while training.
      key: typed PRNG key.

    The other arguments and the result are those of `teacher_forced`.
    """
    noise, coins = jax.random.split(key)
    decoder = scheduled_sampling(net.decoder(_checks.time_steps(source)), 0.0, coins)
    start = net.start(params, source, source_mask, noise)
    state = SampledState(start, coins, jnp.asarray(rate, jnp.float32), jnp.int32(-1))
    read = _read(net, target)
    return unroll(decoder, params.decoder, state, read, mask=target_mask)[1]


def written(
    net: EncoderDecoder,
    params: EncoderDecoderParams,
    source: Any,
    length: int,
    source_mask: Array | None = None,
    *,
    width: int = 1,
    **options: Any,
) -> generate.Beams:
    """The likeliest texts for a source, found by a beam; of width 1 the greedy one.

    Args:
      net, params, source, source_mask: as in `teacher_forced`.
      length: the longest text.
      width: texts in the beam.
      **options: `stop`, `length_penalty` and `allowed` of `rnn_jax.generate.beam`.

    Returns:
      `rnn_jax.generate.Beams`, the best first. A batch is made by `jax.vmap`.
    """
    state, decoder = net.start(params, source, source_mask), net.decoder(_checks.time_steps(source))
    return generate.beam(decoder, params.decoder, state, net.begin, length, width=width, **options)


def _read(net: EncoderDecoder, target: Array) -> Array:
    """The token before each of the target."""
    return jnp.concatenate([jnp.full_like(target[:1], net.begin), target[:-1]])


def _is_number(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
