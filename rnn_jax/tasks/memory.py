"""Synthetic tasks that ask for memory: each is ``task(key, ...) -> Batch``, drawn anew from a key.

A call makes one sequence; a batch of B is ``jax.vmap(lambda k: task(k, ...))(split(key, B))``.
Every call has the same shapes, so that a draw costs no compilation and can stand inside a training
step: sequences of different lengths are padded, and `Batch.mask` says what is valid. Only the steps
of `Batch.scored` have an answer; `loss` and `wrong` count these alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, losses
from rnn_jax._types import Array, Key
from rnn_jax.unroll import length_mask


class Batch(NamedTuple):
    """One sequence, or with `jax.vmap` a batch of them, each array with a leading axis B."""

    xs: Array  # [T, D] float, or [T] int32 tokens
    targets: Array  # [T, O] float, or [T] int32 classes; anything where not scored
    mask: Array  # [T] bool, valid steps: the mask of `rnn_jax.unroll`
    scored: Array  # [T] bool, steps whose target counts; never outside the mask


def loss(ys: Array, batch: Batch) -> Array:
    """Mean over the scored steps: cross-entropy of classes in nats, squared error of numbers.

    Args:
      ys: [..., O], the outputs of a net: logits where the targets are classes.
      batch: a step, a sequence or a batch of them; ``...`` are the axes of its mask.

    Returns:
      [] float.

    Example:
      >>> batch = parity(jax.random.key(0), 5)
      >>> print(loss(jnp.zeros((5, 2)), batch).round(4))
      0.6931
    """
    measure = losses.cross_entropy if _classes(batch) else losses.squared_error
    return measure(ys, batch.targets, batch.scored)


def wrong(ys: Array, batch: Batch, tolerance: float = 0.2) -> Array:
    """Whether a sequence has a scored step of the wrong class, or one that is too far off.

    Args:
      ys: [..., T, O], the outputs of a net.
      batch: a sequence or a batch of them; ``[..., T]`` are the axes of its mask.
      tolerance: numbers that are no further off are right.

    Returns:
      [...] bool.

    Example:
      >>> batch = parity(jax.random.key(0), 5, shortest=5)
      >>> print(batch.targets, wrong(jnp.array([[1.0, 0.0]] * 5), batch))
      [1 0 0 1 0] True
    """
    if _classes(batch):
        bad = ys.argmax(axis=-1).astype(batch.targets.dtype) != batch.targets
    else:
        bad = (jnp.abs(ys - batch.targets) > tolerance).any(axis=-1)
    return (bad & batch.scored).any(axis=-1)


def adding(key: Key, length: int) -> Batch:
    """Adds two numbers out of many: one is marked in each half, the target is their sum.

    xs: [T, 2], a number uniform in [0, 1] and a marker, 1 or 0; targets: [T, 1], scored at the last
    step. Always answering 1 gives a mean squared error of 1/6.

    Args:
      key: PRNG key.
      length: T, at least 2.

    Raises:
      ValueError: `length` is too small.

    Example:
      >>> batch = adding(jax.random.key(0), 6)
      >>> for value, mark in batch.xs:
      ...     print("%.2f %d" % (value, mark), end="  ")
      0.84 0  0.18 0  0.23 1  0.12 1  0.19 0  0.72 0
      >>> print("%.2f" % batch.targets[-1, 0], batch.scored)
      0.35 [False False False False False  True]

    References:
      Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear units.
      2015.
      Arjovsky, Shah, Bengio. Unitary evolution recurrent neural networks. 2016 (a mark in each
      half).
    """
    T = _at_least("length", length, 2)
    k_value, k_first, k_second = jax.random.split(key, 3)
    values = jax.random.uniform(k_value, (T,))
    first = jax.random.randint(k_first, (), 0, T // 2)
    second = jax.random.randint(k_second, (), T // 2, T)
    t = jnp.arange(T)
    marks = ((t == first) | (t == second)).astype(values.dtype)
    total = values[first] + values[second]
    return _answer_at_end(jnp.stack([values, marks], axis=1), total[None], T)


def adding_1997(key: Key, length: int) -> Batch:
    """The adding problem as it was posed first: of random length, with numbers of either sign.

    xs: [length + length // 10, 2], numbers X uniform in [-1, 1] and a marker: 1 at one of the first
    10 steps and at another one of the first length / 2 - 1, -1 at the first and the last step, 0
    elsewhere. The target 0.5 + (X1 + X2) / 4, in [0, 1], is scored at the last step; an answer that
    is less than 0.04 off is right. Where the first step is marked, its marker is 1 and its number
    0: so the paper is read here, which says that always two are marked.

    Args:
      key: PRNG key.
      length: the least length, at least 22; it is uniform from there to a tenth more.

    Raises:
      ValueError: `length` is too small.

    Example:
      >>> batch = adding_1997(jax.random.key(0), 100)
      >>> print(batch.xs.shape, batch.mask.sum(), batch.scored.argmax())
      (110, 2) 110 109

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (experiment 4).
    """
    L = _at_least("length", length, 22)
    k_length, k_value, k_first, k_second = jax.random.split(key, 4)
    actual = jax.random.randint(k_length, (), L, L + L // 10 + 1)
    values = jax.random.uniform(k_value, (L + L // 10,), minval=-1.0)
    first = jax.random.randint(k_first, (), 0, 10)
    second = jax.random.randint(k_second, (), 0, L // 2 - 2)
    second = second + (second >= first).astype(int)  # another one, all others equally likely
    t = jnp.arange(len(values))
    marked = (t == first) | (t == second)
    ends = (t == 0) | (t == actual - 1)
    values = jnp.where(marked & (t == 0), 0.0, values)
    marks = jnp.where(ends & ~marked, -1.0, marked.astype(values.dtype))
    total = jnp.where(marked, values, 0.0).sum()
    xs = jnp.stack([values, marks], axis=1)
    return _answer_at_end(xs, 0.5 + total[None] / 4, actual)


def copying(key: Key, delay: int, symbols: int = 8, items: int = 10) -> Batch:
    """Repeats a list of symbols after a delay.

    The tokens are `items` symbols 0 to symbols - 1, delay - 1 blanks (token `symbols`), a delimiter
    (token symbols + 1) and `items` blanks; the targets are blanks, and the list over the last
    `items` steps. Every step is scored. Without memory the best mean cross-entropy is
    items ln(symbols) / (delay + 2 items) nats.

    Args:
      key: PRNG key.
      delay: steps from the end of the list to its repetition, at least 1.
      symbols: S; there are S + 2 tokens, and S + 1 classes of targets.
      items: length of the list.

    Raises:
      ValueError: a size is not positive.

    Example:
      >>> batch = copying(jax.random.key(0), 4, symbols=5, items=3)
      >>> print(batch.xs, batch.targets)
      [4 0 2 5 5 5 6 5 5 5] [5 5 5 5 5 5 5 4 0 2]

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (the family).
      Arjovsky, Shah, Bengio. Unitary evolution recurrent neural networks. 2016 (this form).
    """
    delay = _checks.positive_int("delay", delay)
    blank = _checks.positive_int("symbols", symbols)
    n = _checks.positive_int("items", items)
    T = delay + 2 * n
    listed = jax.random.randint(key, (n,), 0, blank, jnp.int32)
    blanks = jnp.full(T, blank, jnp.int32)
    xs = blanks.at[:n].set(listed).at[delay + n - 1].set(blank + 1)
    everywhere = jnp.ones(T, bool)
    return Batch(xs, blanks.at[T - n :].set(listed), everywhere, everywhere)


def temporal_order(key: Key, length: int) -> Batch:
    """Which of two symbols came at two places, in which order: four classes.

    Tokens 0 and 1 are the symbols that count, one of them at a step in [T/10, 2T/10) and one in
    [5T/10, 6T/10); the others, 2 to 5, are noise. The class, first + 2 second, is scored at the
    last step. Guessing is right in 1 of 4.

    Args:
      key: PRNG key.
      length: T, at least 10.

    Raises:
      ValueError: `length` is too small.

    Example:
      >>> batch = temporal_order(jax.random.key(3), 20)
      >>> print(batch.xs, batch.targets[-1])
      [2 5 4 0 4 4 5 2 4 5 0 3 3 3 5 2 5 4 5 4] 0

    References:
      Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (see `temporal_order_1997`).
    """
    T = _at_least("length", length, 10)
    k_noise, k_place, k_symbol = jax.random.split(key, 3)
    places = jax.random.randint(k_place, (2,), 0, T // 10) + jnp.array([T // 10, T // 2])
    symbols = jax.random.randint(k_symbol, (2,), 0, 2, jnp.int32)
    xs = jax.random.randint(k_noise, (T,), 2, 6, jnp.int32).at[places].set(symbols)
    return _answer_at_end(xs, symbols[0] + 2 * symbols[1], T)


def temporal_order_1997(key: Key, length: int, symbols: int = 2) -> Batch:
    """The order of two or three symbols, of two kinds, among distractors: four or eight classes.

    Tokens: 0 to 3 are distractors, 4 and 5 are X and Y, 6 begins and 7 ends the sequence. X or Y
    stands, for a length of 100 to 110, between steps 10 and 20 and between 50 and 60; with three
    symbols between 10 and 20, 33 and 43, 66 and 76. The class, the binary number of the symbols
    with X = 0, Y = 1 and the first as the highest digit, is scored at the last step.

    Args:
      key: PRNG key.
      length: the least length, at least 30; it is uniform from there to a tenth more.
      symbols: 2 (experiment 6a) or 3 (6b).

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> batch = temporal_order_1997(jax.random.key(1), 30)
      >>> print(batch.xs)
      [6 0 2 0 1 1 5 1 1 0 0 0 0 3 1 4 3 0 1 2 2 3 1 2 3 1 1 0 2 3 0 3 7]
      >>> print(batch.mask.sum(), batch.targets[-1])
      33 2

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (experiments 6a and 6b).
    """
    L = _at_least("length", length, 30)
    if symbols not in (2, 3):
        raise ValueError(f"symbols: got {symbols}, expected 2 or 3")
    k_length, k_noise, k_place, k_kind = jax.random.split(key, 4)
    actual = jax.random.randint(k_length, (), L, L + L // 10 + 1)
    percents = (10, 50) if symbols == 2 else (10, 33, 66)
    earliest = jnp.array([L * percent // 100 for percent in percents])
    places = earliest + jax.random.randint(k_place, (symbols,), 0, L // 10 + 1)
    kinds = jax.random.randint(k_kind, (symbols,), 0, 2, jnp.int32)
    xs = jax.random.randint(k_noise, (L + L // 10,), 0, 4, jnp.int32)
    xs = xs.at[places].set(4 + kinds).at[0].set(6).at[actual - 1].set(7)
    digits = jnp.array([2**i for i in reversed(range(symbols))], jnp.int32)
    return _answer_at_end(xs, (kinds * digits).sum(dtype=jnp.int32), actual)


def latching(key: Key, length: int, signal: int = 3, variance: float = 0.2) -> Batch:
    """Holds one bit against noise: which of two sequences began?

    xs: [length + length // 10, 1]: the first `signal` steps are all 1 (class 1) or all -1 (class
    0), the others are Gaussian noise; the class is scored at the last step.

    Args:
      key: PRNG key.
      length: the least length, uniform from there to a tenth more.
      signal: N, the steps that tell the class, at most `length`.
      variance: of the noise.

    Raises:
      ValueError: a size is out of range.

    Example:
      >>> batch = latching(jax.random.key(0), 5, signal=2)
      >>> print(*("%.2f" % x for x in batch.xs[:, 0]), batch.targets[-1])
      -1.00 -1.00 -0.18 -0.35 0.17 0

    References:
      Bengio, Simard, Frasconi. Learning long-term dependencies with gradient descent is difficult.
      1994.
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (experiment 3a).
    """
    L = _at_least("length", length, _checks.positive_int("signal", signal))
    k_length, k_class, k_noise = jax.random.split(key, 3)
    actual = jax.random.randint(k_length, (), L, L + L // 10 + 1)
    kind = jax.random.randint(k_class, (), 0, 2, jnp.int32)
    noise = variance**0.5 * jax.random.normal(k_noise, (L + L // 10,))
    level = (2 * kind - 1).astype(noise.dtype)
    xs = jnp.where(jnp.arange(len(noise)) < signal, level, noise)
    return _answer_at_end(xs[:, None], kind, actual)


def parity(key: Key, length: int, shortest: int = 1) -> Batch:
    """Whether the number of ones so far is odd, at every step.

    xs: [T, 1], fair bits as 0 and 1; targets: [T], the running parity. Train with short sequences
    and test with long ones: only a net that has found the two-state machine goes on.

    Args:
      key: PRNG key.
      length: T, the greatest length.
      shortest: the least length; it is uniform between the two.

    Raises:
      ValueError: the lengths are not 1 <= shortest <= length.

    Example:
      >>> batch = parity(jax.random.key(0), 8, shortest=8)
      >>> print(batch.xs[:, 0].astype(int), batch.targets)
      [1 1 0 1 1 1 1 0] [1 0 0 1 0 1 0 0]

    References:
      Hochreiter, Schmidhuber. Long short-term memory. 1997 (as one that guessing solves).
      Graves. Adaptive computation time for recurrent neural networks. 2016.
    """
    T = _at_least("length", length, _checks.positive_int("shortest", shortest))
    k_length, k_bits = jax.random.split(key)
    bits = jax.random.bernoulli(k_bits, 0.5, (T,))
    mask = length_mask(jax.random.randint(k_length, (), shortest, T + 1), T)
    odd = jnp.cumsum(bits.astype(jnp.int32)) % 2
    return Batch(bits.astype(float)[:, None], odd.astype(jnp.int32), mask, mask)


def anbn(key: Key, largest: int, smallest: int = 1) -> Batch:
    """Predicts the next symbol of a string a^n b^n, with n uniform from `smallest` to `largest`.

    Tokens: 0 begins and ends the string, 1 is a, 2 is b; targets: the next token. While a's are
    read, nobody can tell; scored are the steps that read a b, where the rest of the string is
    known: n - 1 more b's, and then the end. So the net has to count.

    Args:
      key: PRNG key.
      largest: greatest n; T = 2 largest + 1.
      smallest: least n.

    Raises:
      ValueError: the numbers are not 1 <= smallest <= largest.

    Example:
      >>> batch = anbn(jax.random.key(0), 3, smallest=2)
      >>> print(batch.xs, batch.targets, batch.scored.astype(int))
      [0 1 1 1 2 2 2] [1 1 1 2 2 2 0] [0 0 0 0 1 1 1]

    References:
      Gers, Schmidhuber. LSTM recurrent networks learn simple context-free and context-sensitive
      languages. 2001.
    """
    most = _at_least("largest", largest, _checks.positive_int("smallest", smallest))
    n = jax.random.randint(key, (), smallest, most + 1)
    t = jnp.arange(2 * most + 2)
    string = jnp.where(t <= n, 1, 2) * ((t > 0) & (t <= 2 * n)).astype(int)
    xs, targets = string[:-1].astype(jnp.int32), string[1:].astype(jnp.int32)
    return Batch(xs, targets, t[:-1] <= 2 * n, xs == 2)


def _classes(batch: Batch) -> bool:
    return jnp.issubdtype(batch.targets.dtype, jnp.integer)


def _answer_at_end(xs: Array, target: Array, length: Any) -> Batch:
    """One target, for the last of `length` valid steps."""
    T = len(xs)
    targets = jnp.broadcast_to(target[None], (T, *target.shape))
    return Batch(xs, targets, length_mask(length, T), jnp.arange(T) == length - 1)


def _at_least(name: str, value: Any, least: int) -> int:
    if _checks.positive_int(name, value) < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
    return int(value)
