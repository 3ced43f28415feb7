"""Batches of examples: shuffled epochs that follow from the step alone, folds, padding."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import _checks
from rnn_jax._types import Array, Key

_ROUNDS = 24  # twice as many as it takes until no statistic of small permutations shows a pattern


class Rows(NamedTuple):
    """Which examples, as positions in the data; for K folds with a leading axis K."""

    indices: Array  # int32 [n], or [K, n]; behind the first `size` of them it repeats
    size: Array  # int32 [], or [K]

    @property
    def mask(self) -> Array:
        """Bool like `indices`: false for what repeats."""
        shape = self.indices.shape
        place = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        return place < self.size[..., None]


class Folds(NamedTuple):
    """For each of K folds, the rows to train on and those that are held out."""

    train: Rows
    held_out: Rows


class Order(NamedTuple):
    """In which order the examples are read; for K folds with a leading axis K in each field."""

    key: Key  # the source of all shuffling
    rows: Rows | None  # None: all examples


class Shuffled(NamedTuple):
    """Examples and the order in which they are read; ``Shuffled(None, 0)`` is its in_axes."""

    examples: Any  # a pytree of arrays with a leading axis N
    order: Order


def shuffled(examples: Any, seed: int, rows: Rows | None = None) -> Shuffled:
    """Examples to be read in a new order in each epoch; for `minibatch`.

    Args:
      examples: a pytree of arrays with a leading axis N.
      seed: of the order.
      rows: the examples to take, ``folds(...).train`` for instance; None for all. With a leading
        axis K there are K orders of one set of examples, which is stored once.

    Raises:
      ValueError: the arrays have different lengths, or none.

    Example:
      >>> data = shuffled({"x": jnp.arange(5) * 10}, seed=0)
      >>> batch_at = minibatch(2)
      >>> print([batch_at(data, step)["x"].tolist() for step in range(5)])
      [[10, 40], [0, 30], [20, 40], [10, 20], [30, 0]]

      Two folds side by side, for ``jax.vmap`` over nets:

      >>> data = shuffled(jnp.arange(5) * 10, 0, folds(5, 2).train)
      >>> batch_at = jax.vmap(minibatch(2), in_axes=(Shuffled(None, 0), None))
      >>> print(batch_at(data, 0).tolist(), batch_at(data, 1).tolist())
      [[0, 40], [30, 10]] [[0, 40], [20, 10]]
    """
    examples = jax.tree.map(jnp.asarray, examples)
    N = _length(examples)
    key = jax.random.key(seed, impl="threefry2x32")  # the same order under any setting
    if rows is not None:
        rows = Rows(*(jnp.asarray(array, jnp.int32) for array in _check_rows(rows, N)))
        key = jax.random.split(key, len(rows.size)) if rows.size.ndim else key
    return Shuffled(examples, Order(key, rows))


def minibatch(size: int) -> Callable[[Shuffled, Array], Any]:
    """``batch_at(data, step)``, the `batch_at` of `rnn_jax.train.make_train`.

    The batches read the examples one epoch after the other and drop nothing: each epoch has every
    example once, in an order that follows from the seed and the number of the epoch, and a batch
    may span the end of one and the start of the next, or several. The order is computed for the
    examples of the batch alone, at a cost that does not grow with N.

    Args:
      size: B, examples in a batch, also more than N.

    Returns:
      A function of `Shuffled` data and a step, int32 [] and possibly traced: the examples with a
      leading axis B. It works in `jax.vmap` over the order, the step or the data.

    References:
      Viet Tung Hoang, Ben Morris, Phillip Rogaway: "An enciphering scheme based on a card shuffle"
      (2012), the "swap or not" shuffle, in which one position can be followed alone.
    """
    B = _checks.positive_int("size", size)

    def batch_at(data: Shuffled, step: Array) -> Any:
        at = _rows_at(data.order, _length(data.examples), B, step)
        return jax.tree.map(lambda array: array[at], data.examples)

    return batch_at


class Positioned:
    """An iterator without an end, whose batch follows from its position alone.

    A subclass has `at`, and passes on the numbers that a position is only good for.
    """

    def __init__(self, **sizes: int) -> None:
        self._sizes, self._step = sizes, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        batch = self.at(self._step)
        self._step += 1
        return batch

    def at(self, step: int) -> Any:
        """Batch number `step`, from 0; the position stays."""
        raise NotImplementedError

    def get_state(self) -> dict[str, int]:
        """The position, a JSON value, for `set_state` and for `Checkpoints.save(position=)`."""
        return {"step": self._step} | self._sizes

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave, of data of the same sizes and seed."""
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, int) or step < 0 or state != {"step": step} | self._sizes:
            raise ValueError(
                f"state: got {state!r:.200}, expected a position from get_state of data with "
                f"{self._sizes}"
            )
        self._step = step


class Batches(Positioned):
    """The batches of `minibatch`, from arrays on the host: for those larger than memory.

    An iterator without an end, for `rnn_jax.train.fit`. Batch number `step` is that of
    ``minibatch(size)(shuffled(examples, seed), step)``, to the bit. No more is read than a batch
    of arrays that are mapped, as ``numpy.load(path, mmap_mode="r")`` makes them.

    Args:
      examples: a pytree of NumPy arrays with a leading axis N.
      size: B, examples in a batch.
      seed: of the order.
      part: ``(i, n)`` for process i of n that compute together: it reads its part, B / n examples,
        as ``make_train(mesh=)`` takes them. The position is the same in all, and good for any n.

    Raises:
      ValueError: the arrays have different lengths, or none; or a batch cannot be split into n
        equal parts.

    Example:
      >>> batches = Batches(np.arange(5) * 10, size=2)
      >>> print([next(batches).tolist() for _ in range(3)], batches.get_state())
      [[10, 40], [0, 30], [20, 40]] {'step': 3, 'size': 2, 'examples': 5, 'seed': 0}
    """

    def __init__(
        self, examples: Any, size: int, seed: int = 0, *, part: tuple[int, int] = (0, 1)
    ) -> None:
        B = _checks.positive_int("size", size)
        super().__init__(size=B, examples=_length(examples), seed=seed)
        self.examples = examples
        self._mine = part_of(size, part)
        self._order = shuffled(np.zeros(1, bool), seed).order

    def at(self, step: int) -> Any:
        """Batch number `step`, from 0; the position stays."""
        B, N, _ = self._sizes.values()
        rows = np.asarray(_rows_at_step(self._order, N, B, np.uint32(step)))[self._mine]
        return jax.tree.map(lambda array: np.asarray(array[rows]), self.examples)


class Bucketed(Positioned):
    """Padded batches of sequences of like length, so that little is spent on padding.

    An iterator without an end, for `rnn_jax.train.fit`. The sequences are dealt out to a few
    buckets by length, with the borders that pad the least; a batch comes from one bucket and is
    padded to the longest sequence of that bucket, so that there are as many shapes to compile as
    buckets. Every bucket reads its sequences epoch after epoch, each time in another order, and
    buckets follow each other in random order, each as often as it has sequences.

    Args:
      sequences: N sequences of integers; or a tuple of k lists of N, as the sources and targets of
        a translation, which are padded each to its own longest.
      size: B, sequences in a batch.
      buckets: how many there are at most.
      seed: of the order.

    Attributes:
      waste: the share of the padded steps among all steps, over all sequences.
      shapes: for each bucket the lengths that its sequences are padded to, and how many it has.

    Raises:
      ValueError: no sequences, or lists of different lengths.

    Example:
      >>> texts = [[1] * n for n in (1, 2, 2, 9, 9, 8)]
      >>> batches = Bucketed(texts, size=2, buckets=2)
      >>> print(batches.shapes, f"{batches.waste:.2f}")
      [(2, 3), (9, 3)] 0.06
      >>> tokens, lengths, index = next(batches)
      >>> print(tokens.shape, lengths, index)
      (2, 9) [8 9] [5 3]
    """

    def __init__(
        self,
        sequences: Any,
        size: int,
        *,
        buckets: int = 6,
        seed: int = 0,
    ) -> None:
        several = isinstance(sequences, tuple)
        lists = sequences if several else (sequences,)
        counts = {len(found) for found in lists}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(
                f"sequences: got lists of {sorted(counts)}, expected one or more of each, the same "
                "number"
            )
        lengths = np.array([[len(row) for row in found] for found in lists], np.int32)
        B = _checks.positive_int("size", size)
        super().__init__(size=B, examples=lengths.shape[1], seed=seed)
        self._several, self._seed = several, seed
        bucket = _dealt(lengths.max(axis=0), _checks.positive_int("buckets", buckets))
        self._rows = [np.flatnonzero(bucket == b) for b in np.unique(bucket)]
        self._tokens = [
            [np.asarray(pad([found[i] for i in rows])[0]) for found in lists] for rows in self._rows
        ]
        self._lengths = [lengths[:, rows] for rows in self._rows]
        self._orders = [shuffled(np.zeros(1), seed + b).order for b in range(len(self._rows))]
        shapes = [tuple(t.shape[1] for t in tokens) for tokens in self._tokens]
        self.shapes = [(*shape, len(rows)) for shape, rows in zip(shapes, self._rows, strict=True)]
        padded = sum(t.size for tokens in self._tokens for t in tokens)
        self.waste = 1 - int(lengths.sum(dtype=np.int64)) / max(padded, 1)
        self._batches = np.array([max(1, round(len(rows) / size)) for rows in self._rows])

    @property
    def epoch(self) -> int:
        """Batches in which about every sequence comes once."""
        return int(self._batches.sum())

    def at(self, step: int) -> Any:
        """Batch number `step`, from 0; the position stays.

        Returns:
          ``(tokens, lengths, index)``: [B, T] int32 padded with 0, [B] int32, and which of the
          sequences they are, [B] int32. With k lists, tokens and lengths are tuples of k.
        """
        epoch, place = divmod(step, self.epoch)
        turns = np.repeat(np.arange(len(self._rows)), self._batches)
        turns = np.random.default_rng([self._seed, epoch]).permutation(turns)
        b = turns[place]
        nth = epoch * int(self._batches[b]) + int((turns[:place] == b).sum())
        n = len(self._rows[b])
        at = np.asarray(_rows_at_step(self._orders[b], n, self._sizes["size"], np.uint32(nth)))
        tokens = tuple(t[at] for t in self._tokens[b])
        lengths = tuple(n[at] for n in self._lengths[b])
        index = self._rows[b][at].astype(np.int32)
        return (tokens, lengths, index) if self._several else (tokens[0], lengths[0], index)


def _dealt(lengths: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each length: the borders with the least padding, by dynamic programming."""
    sizes, counts = np.unique(lengths, return_counts=True)
    n, total = len(sizes), np.concatenate([[0], np.cumsum(counts)])
    # cost[b][j]: the least number of steps for the first j sizes in b buckets.
    cost = np.concatenate([[0.0], np.full(n, np.inf)])
    cuts = []
    for _ in range(min(buckets, n)):
        ways = cost[:n, None] + np.where(
            np.arange(n)[:, None] < np.arange(1, n + 1),
            (total[None, 1:] - total[:n, None]) * sizes[None, :],
            np.inf,
        )
        cuts.append(np.concatenate([[0], ways.argmin(axis=0)]))
        cost = np.concatenate([[0.0], ways.min(axis=0)])
    borders, j = [], n
    for cut in reversed(cuts):
        borders.append(sizes[j - 1])
        j = int(cut[j])
        if j == 0:
            break
    return np.searchsorted(np.sort(borders), lengths)


def part_of(size: int, part: tuple[int, int]) -> slice:
    """Which of the `size` rows of a batch are those of process i of n, ``part = (i, n)``."""
    i, n = part
    if not 0 <= i < n or size % n:
        raise ValueError(
            f"part: got {part} of a batch of {size}, expected (i, n) with 0 <= i < n, and n a "
            f"divisor of {size}"
        )
    return slice(i * size // n, (i + 1) * size // n)


def laps(steps: Array | int, size: int, length: Array | int) -> tuple[Array, Array]:
    """``divmod(steps * size, length)``, exact though the product may exceed 32 bits.

    Args:
      steps: [] int, from 0 to 2^32 - 1.
      size: a positive number below 2^31.
      length: [] int, from 1 to 2^31 - 1.

    Returns:
      ``(lap, place)``, uint32 []; `lap` modulo 2^32.

    Example:
      >>> lap, place = laps(2_000_000_000, 1000, 1_000_003)
      >>> print(lap, place, int(lap) * 1_000_003 + int(place))
      1999994 18 2000000000000
    """
    n = jnp.asarray(length).astype(jnp.uint32)
    whole, rest = jnp.divmod(jnp.asarray(steps).astype(jnp.uint32), n)
    lap, place = jnp.zeros_like(n), jnp.zeros_like(n)
    for bit in f"{size:b}":  # rest * size by doubling: no sum reaches 2 n
        lap, place = _forward(2 * lap, place, place, n)
        if bit == "1":
            lap, place = _forward(lap, place, rest, n)
    return whole * size + lap, place


def folds(labels: Any, k: int, seed: int = 0, *, groups: Any = None) -> Folds:
    """Splits examples into `k` parts; each is held out once, and the others are trained on.

    With labels, each part has its share of every label (stratified): without groups, the parts
    differ by at most one example in size and for each label. With groups, the examples of a group
    are in one part, and the parts are as alike in size and labels as a greedy choice makes them.

    Args:
      labels: [N], one for each example, numbers or strings; or N alone, where there are none.
      k: K, from 2 to N. N, or the number of groups, leaves one out each time.
      seed: of the split.
      groups: [N], numbers or strings: who spoke, say.

    Returns:
      `Folds` with a leading axis K. The folds may differ in size by one or, with groups, more:
      shorter rows repeat from their start, which `Rows.mask` leaves out.

    Raises:
      ValueError: `k` does not fit the number of examples or groups; or lengths differ.

    Example:
      >>> train, held_out = folds(["a", "b", "a", "b", "a"], 2)
      >>> print(train.indices.tolist(), train.size.tolist())
      [[3, 4, 3], [0, 1, 2]] [2, 3]
      >>> print(held_out.indices.tolist(), held_out.mask.tolist())
      [[0, 1, 2], [3, 4, 3]] [[True, True, True], [True, True, False]]
    """
    labels = np.zeros(labels, np.int32) if isinstance(labels, int | np.integer) else labels
    kinds = _numbered("labels", labels)
    members = None if groups is None else _numbered("groups", groups)
    if members is not None and len(members) != len(kinds):
        raise ValueError(f"groups: got {len(members)}, expected {len(kinds)}, one for each example")
    what, limit = "examples", len(kinds)
    if members is not None:
        what, limit = "groups", int(members.max(initial=-1)) + 1
    if not 2 <= k <= limit:
        raise ValueError(f"k: got {k} folds, expected 2 to {limit}, the number of {what}")
    rng = np.random.default_rng(seed)
    part = _deal(kinds, k, rng) if members is None else _share_out(kinds, members, k, rng)
    return Folds(
        _rows([np.flatnonzero(part != fold) for fold in range(k)]),
        _rows([np.flatnonzero(part == fold) for fold in range(k)]),
    )


def pad(sequences: Iterable[Any], length: int | None = None) -> tuple[Array, Array]:
    """Sequences of tokens as one padded batch.

    Args:
      sequences: B sequences of integers, any lengths.
      length: T; None for that of the longest.

    Returns:
      ``(tokens, lengths)``: [B, T] int32 with zeros behind each end, and [B] int32, from which
      `rnn_jax.length_mask` makes the mask.

    Raises:
      ValueError: a sequence is longer than `length`.

    Example:
      >>> tokens, lengths = pad([[1, 2, 3], [], [4]])
      >>> print(tokens, lengths)
      [[1 2 3]
       [0 0 0]
       [4 0 0]] [3 0 1]
    """
    rows = [np.asarray(row, np.int32) for row in sequences]
    longest = max((len(row) for row in rows), default=0)
    T = longest if length is None else length
    if longest > T:
        raise ValueError(f"sequences: got one of length {longest}, expected at most {T}")
    tokens = np.zeros((len(rows), T), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32)


def _rows_at(order: Order, N: Array | int, B: int, step: Array) -> Array:
    """Which examples a batch has; int32 [B]."""
    key, rows = order
    n = jnp.asarray(N).astype(jnp.uint32) if rows is None else rows.size.astype(jnp.uint32)
    epoch, place = laps(step, B, n)
    later, at = jnp.divmod(place + jnp.arange(B, dtype=jnp.uint32), n)
    at = _shuffle(key, epoch + later, at, n).astype(jnp.int32)
    return at if rows is None else rows.indices[at]


_rows_at_step = jax.jit(_rows_at, static_argnums=2)


def _forward(lap: Array, place: Array, by: Array, n: Array) -> tuple[Array, Array]:
    over = place + by >= n
    return lap + over.astype(jnp.uint32), place + by - jnp.where(over, n, jnp.uint32(0))


def _shuffle(key: Key, epoch: Array, at: Array, n: Array) -> Array:
    """Where position `at` of 0 to n - 1 goes in `epoch`; uint32 [B].

    A round pairs x with k - x modulo n, for a random k, and swaps the two if a coin of theirs says
    so; that is one to one whatever the coins are.
    """
    words = jax.random.bits(key, (_ROUNDS, 2), jnp.uint32)

    def one(at: Array, word: Array) -> tuple[Array, None]:
        pairing, coins = word
        k = _mix(epoch ^ pairing) % n
        partner = jnp.where(k >= at, k - at, k + (n - at))
        coin = _mix(jnp.maximum(at, partner) ^ _mix(epoch ^ coins)) & 1
        return jnp.where(coin == 1, partner, at), None

    # A loop that XLA sees: written out, the fusions of JAX 0.12 repeat each round for each of its
    # uses, 4^24 in all, and the program never compiles.
    return jax.lax.scan(one, at, words)[0]


def _mix(x: Array) -> Array:
    """A hash, one to one on uint32 ("lowbias32" of Chris Wellons)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _deal(kinds: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The part of each example: sorted by kind, in random order within, and dealt like cards."""
    order = rng.permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    part = np.empty(len(kinds), np.int32)
    part[order] = np.arange(len(kinds)) % k
    return part


def _share_out(
    kinds: np.ndarray, members: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """The part of each example; the largest group comes first and goes where its kinds are few."""
    table = np.zeros((members.max() + 1, kinds.max() + 1))
    np.add.at(table, (members, kinds), 1.0)
    order = rng.permutation(len(table))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    parts, total = np.zeros((k, table.shape[1])), table.sum(0)
    chosen = np.empty(len(table), np.int32)
    for group in order:
        crowded = parts @ (table[group] / total)
        chosen[group] = part = np.lexsort((parts.sum(1), crowded))[0]
        parts[part] += table[group]
    return chosen[members]


def _rows(indices: list[np.ndarray]) -> Rows:
    longest = max(map(len, indices))
    index = np.stack([np.resize(row, longest) for row in indices])
    count = [len(row) for row in indices]
    return Rows(jnp.asarray(index, jnp.int32), jnp.asarray(count, jnp.int32))


def _numbered(name: str, values: Any) -> np.ndarray:
    """Each value by its number among the distinct ones."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{name}: got shape {values.shape}, expected [N], one for each example")
    return np.unique(values, return_inverse=True)[1]


def _length(examples: Any) -> int:
    """N, which the leading axes of all arrays agree on."""
    shapes = {
        jax.tree_util.keystr(path): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
    }
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) != 1 or lengths <= {None, 0}:
        raise ValueError(
            f"examples: got arrays of shape {shapes}, expected one or more with a leading axis N, "
            "the same for all and not 0"
        )
    return next(iter(shapes.values()))[0]


def _check_rows(rows: Rows, N: int) -> tuple[np.ndarray, np.ndarray]:
    indices, size = np.asarray(rows.indices), np.asarray(rows.size)
    if indices.ndim not in (1, 2) or indices.shape[:-1] != size.shape:
        raise ValueError(
            f"rows: got indices {indices.shape} and size {size.shape}, expected [n] and [], or, "
            "for folds, [K, n] and [K]"
        )
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= N:
        raise ValueError(
            f"rows: got indices from {indices.min()} to {indices.max()}, expected 0 to {N - 1}, as "
            f"there are {N} examples"
        )
    if size.min(initial=1) < 1 or size.max(initial=0) > indices.shape[-1]:
        raise ValueError(f"rows: got size {size}, expected 1 to {indices.shape[-1]}")
    return indices, size
