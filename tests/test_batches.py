"""Batches: each epoch has every example once, whatever the sizes; folds; padding."""

import collections
import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_jax import train
from rnn_jax.tasks import batches
from rnn_jax.tasks.batches import Batches, Rows, Shuffled, folds, minibatch, pad, shuffled

LARGE = 2**31 - 1


@functools.cache
def drawn(size: int) -> Any:
    """Batches of several steps, compiled once for each number of examples."""
    return jax.jit(jax.vmap(minibatch(size), in_axes=(None, 0)))


def read(data: Shuffled, size: int, first: int, count: int) -> np.ndarray:
    """All examples of `count` steps, one behind the other."""
    steps = jnp.arange(first, first + count, dtype=jnp.uint32)
    return np.asarray(drawn(size)(data, steps)).ravel()


# ---- epochs


@pytest.mark.parametrize(
    ("N", "size"), [(1, 1), (1, 3), (2, 3), (3, 2), (5, 5), (7, 23), (10, 4), (64, 9), (1001, 130)]
)
def test_each_epoch_has_every_example_once(N: int, size: int) -> None:
    epochs = 12
    stream = read(shuffled(jnp.arange(N), seed=N), size, 0, -(-epochs * N // size))
    stream = stream[: epochs * N].reshape(epochs, N)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(N), (epochs, 1)))
    if N > 9:
        assert len({tuple(epoch) for epoch in stream}) == epochs
        assert not (np.diff(stream, axis=1) == 1).all(axis=1).any()


@pytest.mark.parametrize(("N", "size"), [(10, 4), (1_000_003, 4096), (3, 1000), (997, 1)])
def test_after_long_training_too(N: int, size: int) -> None:
    """The position is steps * size, beyond 32 bits; around the last step an epoch is whole."""
    last = 2**32 - 1
    data = shuffled(jnp.arange(N), seed=1)
    count = min(-(-2 * N // size) + 1, 2500)
    first = last - count
    behind = -(first * size) % N  # of the first of these steps, before an epoch begins
    stream = read(data, size, first, count)[behind : behind + N]
    assert len(stream) == N
    assert len(np.unique(stream)) == N


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, LARGE), st.integers(1, LARGE))
def test_laps_are_exact(steps: int, size: int, length: int) -> None:
    with jax.disable_jit():  # nothing is compiled for each size
        lap, place = batches.laps(jnp.uint32(steps), size, jnp.int32(length))
    expected = divmod(steps * size, length)
    assert (int(lap), int(place)) == (expected[0] % 2**32, expected[1])


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    examples = {"x": jnp.arange(37), "y": (jnp.arange(74.0).reshape(37, 2),)}
    whole = read(shuffled(examples["x"], 3), 8, 0, 30)
    assert read(shuffled(examples["x"], 3), 8, 17, 13).tolist() == whole[17 * 8 :].tolist()
    assert read(shuffled(examples["x"], 4), 8, 0, 30).tolist() != whole.tolist()
    with jax.default_prng_impl("rbg"):
        assert read(shuffled(examples["x"], 3), 8, 0, 30).tolist() == whole.tolist()
    batch = minibatch(8)(shuffled(examples, 3), jnp.int32(5))
    assert batch["x"].tolist() == whole[40:48].tolist()
    assert batch["y"][0].shape == (8, 2)
    np.testing.assert_array_equal(batch["y"][0][:, 0], 2.0 * np.asarray(batch["x"]))


def surprise(counts: np.ndarray) -> float:
    """Chi squared of equally likely cells, in standard deviations above its mean."""
    mean, freedom = counts.mean(), counts.size - 1
    return float((((counts - mean) ** 2 / mean).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("N", [2, 3, 4, 5])
def test_every_order_is_equally_likely(N: int) -> None:
    orders = list(itertools.permutations(range(N)))
    stream = read(shuffled(jnp.arange(N), 0), N, 0, 300 * len(orders)).reshape(-1, N)
    found = collections.Counter(map(tuple, stream.tolist()))
    assert surprise(np.array([found[order] for order in orders])) < 4


def test_neighbours_and_epochs_are_independent() -> None:
    N, epochs = 100, 3000
    stream = read(shuffled(jnp.arange(N), 1), N, 0, epochs).reshape(epochs, N).astype(int)
    along, across = np.diff(stream, axis=1) % N, np.diff(stream, axis=0) % N
    assert surprise(np.bincount(along.ravel())[1:]) < 4
    assert surprise(np.bincount(across.ravel())) < 4
    assert surprise(np.bincount(stream[:, 0])) < 4
    both = np.corrcoef(stream[:, 3], stream[:, 77])[0, 1]
    assert abs(both + 1 / (N - 1)) < 4 / math.sqrt(epochs)


def test_training_resumes_from_its_step() -> None:
    """A line through points, in batches that do not divide their number."""
    x = jax.random.normal(jax.random.key(0), (23,))

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return jnp.mean((params["w"] * batch[0] - batch[1]) ** 2), carry

    optimizer = optax.sgd(0.1)
    run = train.make_train(loss, minibatch(7), optimizer, steps_per_call=5)
    data = shuffled((x, 3 * x), 0)

    def begin() -> train.TrainState:
        return train.init({"w": jnp.zeros(())}, None, optimizer, jax.random.key(0))

    whole = train.fit(run, begin(), data, steps=60)
    half = train.fit(run, begin(), data, steps=31)
    again = train.fit(run, half, shuffled((x, 3 * x), 0), steps=60)
    assert float(whole.params["w"]) == float(again.params["w"])
    assert abs(float(whole.params["w"]) - 3) < 0.01


@pytest.mark.parametrize(("N", "size"), [(37, 8), (5, 12), (40, 8)])
def test_batches_from_the_host_are_those_of_the_device(N: int, size: int, tmp_path: Path) -> None:
    """From a mapped file, whole or in parts, and from any position on."""
    np.save(tmp_path / "x.npy", np.arange(3.0 * N).reshape(N, 3))
    examples = {"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "y": np.arange(N)}
    source = Batches(examples, size, seed=3)
    parts = [Batches(examples, size, 3, part=(i, 4)) for i in range(4)]
    shuffle, at = shuffled(jax.tree.map(np.asarray, examples), 3), minibatch(size)
    for step in range(12):
        expected = at(shuffle, jnp.int32(step))
        batch = next(source)
        assert type(batch["x"]) is np.ndarray  # in memory, and nothing else is
        for name in examples:
            np.testing.assert_array_equal(batch[name], expected[name])
            joined = np.concatenate([part.at(step)[name] for part in parts])
            np.testing.assert_array_equal(joined, expected[name])
    state = json.loads(json.dumps(source.get_state()))
    other = Batches(examples, size, 3, part=(1, 2))
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["y"], next(source)["y"][size // 2 :])
    for wrong in ({}, None, state | {"seed": 4}, state | {"step": -1}, state | {"size": size + 1}):
        with pytest.raises(ValueError, match="expected a position from get_state"):
            other.set_state(wrong)
    for part in ((4, 4), (-1, 4), (0, 7), (0, 0)):
        with pytest.raises(ValueError, match="part: got"):
            Batches(examples, size, part=part)


def test_what_cannot_be_shuffled() -> None:
    for examples in ({}, jnp.zeros(()), jnp.zeros((0, 3)), (jnp.zeros(3), jnp.zeros(4))):
        with pytest.raises(ValueError, match=r"^examples: got arrays of shape .* leading axis N"):
            shuffled(examples, 0)
    with pytest.raises(ValueError, match="positive"):
        minibatch(0)
    ints = functools.partial(np.array, dtype=np.int32)
    for rows, message in (
        (Rows(ints([0, 1, 5]), ints(3)), "got indices from 0 to 5, expected 0 to 4"),
        (Rows(ints([0, -1]), ints(2)), "got indices from -1 to 0"),
        (Rows(ints([0, 1]), ints(3)), "got size 3, expected 1 to 2"),
        (Rows(ints([0, 1]), ints(0)), "got size 0"),
        (Rows(ints([[0, 1]]), ints(2)), r"got indices \(1, 2\) and size \(\)"),
        (Rows(ints([0, 1]), ints([2])), r"got indices \(2,\) and size \(1,\)"),
    ):
        with pytest.raises(ValueError, match=f"^rows: {message}"):
            shuffled(jnp.arange(5), 0, rows)


# ---- folds


def chosen(rows: Rows) -> list[list[int]]:
    """The rows of each fold, without what repeats."""
    mask, found = np.asarray(rows.mask), []
    for indices, valid, size in zip(np.asarray(rows.indices), mask, rows.size, strict=True):
        assert valid.sum() == size
        assert valid[:size].all()
        np.testing.assert_array_equal(indices, np.resize(indices[:size], len(indices)))
        found.append(indices[:size].tolist())
    return found


def check_split(split: batches.Folds, N: int) -> np.ndarray:
    """Each example is held out once and trained on in all other folds; returns its fold."""
    trained, held_out = chosen(split.train), chosen(split.held_out)
    fold = np.full(N, -1)
    for k, (mine, others) in enumerate(zip(held_out, trained, strict=True)):
        assert sorted(mine + others) == list(range(N))
        assert mine
        assert others
        fold[mine] = k
    assert (fold >= 0).all()
    return fold


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.data())
def test_folds_are_stratified(labels: list[int], data: st.DataObject) -> None:
    N = len(labels)
    k, seed = data.draw(st.integers(2, N)), data.draw(st.integers(0, 99))
    fold = check_split(folds([f"label {label}" for label in labels], k, seed), N)
    for examples in (np.ones(N, bool), *(np.array(labels) == label for label in set(labels))):
        counts = np.bincount(fold[examples], minlength=k)
        assert counts.max() - counts.min() <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=2), st.data())
def test_groups_stay_together(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    labels, groups = zip(*pairs, strict=True)
    distinct = len(set(groups))
    if distinct < 2:
        return
    k, seed = data.draw(st.integers(2, distinct)), data.draw(st.integers(0, 99))
    fold = check_split(folds(labels, k, seed, groups=[f"g{g}" for g in groups]), len(pairs))
    for group in set(groups):
        assert len(set(fold[np.array(groups) == group])) == 1


def test_groups_are_shared_out_evenly() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 1000)
    labels = (groups % 3 + rng.integers(0, 2, 1000)) % 3
    fold = check_split(folds(labels, 5, 1, groups=groups), 1000)
    for examples in (labels >= 0, labels == 0, labels == 1, labels == 2):
        counts = np.bincount(fold[examples], minlength=5)
        assert counts.max() - counts.min() <= 0.15 * counts.mean()


def test_folds_of_a_number_and_leave_one_out() -> None:
    fold = check_split(folds(23, 4, 7), 23)
    assert sorted(np.bincount(fold)) == [5, 6, 6, 6]
    assert (fold != check_split(folds(23, 4, 8), 23)).any()
    assert (fold == check_split(folds(23, 4, 7), 23)).all()
    assert (fold != np.arange(23) % 4).any()
    split = folds(9, 9)
    assert sorted(map(len, chosen(split.held_out))) == [1] * 9
    check_split(split, 9)


def test_what_cannot_be_split() -> None:
    for k in (1, 0, 6):
        with pytest.raises(ValueError, match=f"k: got {k} folds, expected 2 to 5.* of examples"):
            folds(5, k)
    with pytest.raises(ValueError, match="k: got 3 folds, expected 2 to 2, the number of groups"):
        folds(5, 3, groups=[1, 1, 2, 2, 2])
    with pytest.raises(ValueError, match="groups: got 4, expected 5"):
        folds(5, 2, groups=[1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"labels: got shape \(2, 2\)"):
        folds(np.ones((2, 2)), 2)


def test_nets_side_by_side_read_their_own_folds() -> None:
    """Only the order has a leading axis; the examples are there once."""
    N, k, size = 11, 4, 5
    split = folds(N, k, 3)
    data = shuffled(jnp.arange(N) * 10, 2, split.train)
    batch_at = jax.jit(jax.vmap(minibatch(size), in_axes=(Shuffled(None, 0), None)))
    got = np.stack([batch_at(data, jnp.int32(step)) for step in range(40)], axis=1)
    assert got.shape == (k, 40, size)
    for net, (mine, size_k) in enumerate(zip(chosen(split.train), split.train.size, strict=True)):
        stream = got[net].ravel()
        stream = stream[: len(stream) // int(size_k) * int(size_k)].reshape(-1, int(size_k))
        assert (np.sort(stream, axis=1) == 10 * np.array(mine)).all()
        one = Rows(split.train.indices[net], split.train.size[net])
        alone = data._replace(order=data.order._replace(key=data.order.key[net], rows=one))
        assert minibatch(size)(alone, 7).tolist() == got[net, 7].tolist()
    place = [[chosen(split.train)[k].index(x // 10) for x in got[k, 0]] for k in (0, 1)]
    assert place[0] != place[1]  # another order, not only other examples


# ---- padding


def test_pad() -> None:
    rows = [[5, 1, 2], [], [7], [3, 3]]
    tokens, lengths = pad(iter(rows), 5)
    assert tokens.shape == (4, 5)
    assert lengths.tolist() == [3, 0, 1, 2]
    for row, padded, length in zip(rows, tokens, lengths, strict=True):
        assert padded[:length].tolist() == row
        assert (padded[length:] == 0).all()
    assert pad(rows)[0].shape == (4, 3)
    assert pad([])[0].shape == (0, 0)
    with pytest.raises(ValueError, match="length 3, expected at most 2"):
        pad(rows, 2)


def some_texts(seed: int = 0, n: int = 300) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 99, rng.geometric(0.12)).tolist() for _ in range(n)]


@pytest.mark.parametrize("buckets", [1, 3, 6, 50])
def test_buckets_pad_every_sequence_to_the_longest_of_its_bucket(buckets: int) -> None:
    texts = some_texts()
    found = batches.Bucketed(texts, 8, buckets=buckets)
    seen, steps, padded = set(), 0, 0
    for step in range(3 * found.epoch):
        tokens, lengths, index = found.at(step)
        assert tokens.shape == (8, tokens.shape[1])
        assert tokens.shape[1] in [shape[0] for shape in found.shapes]
        for row, length, i in zip(tokens, lengths, index, strict=True):
            assert row[:length].tolist() == texts[i]
            assert not row[length:].any()
        seen |= set(index.tolist())
        steps, padded = steps + lengths.sum(), padded + tokens.size
    assert seen == set(range(len(texts)))
    assert len(found.shapes) <= buckets
    assert sum(count for *_, count in found.shapes) == len(texts)
    whole = sum(longest * count for longest, count in found.shapes)
    assert found.waste == pytest.approx(1 - sum(map(len, texts)) / whole)
    assert abs(1 - steps / padded - found.waste) < 0.05


def test_buckets_are_those_that_waste_least() -> None:
    texts = some_texts(n=40)
    sizes = sorted({len(t) for t in texts})

    def waste(borders: tuple[int, ...]) -> float:
        padded = sum(min(b for b in (*borders, sizes[-1]) if b >= len(t)) for t in texts)
        return 1 - sum(map(len, texts)) / padded

    best = min(waste(c) for c in itertools.combinations(sizes[:-1], 2))
    assert batches.Bucketed(texts, 4, buckets=3).waste == pytest.approx(best)


def test_eight_buckets_of_pairs_waste_less_than_a_tenth() -> None:
    """Sources and targets whose lengths go together, as in a translation; see the README."""
    rng = np.random.default_rng(1)
    source = [[1] * n for n in 2 + rng.negative_binomial(5, 0.6, 5000)]
    target = [
        [2] * max(1, len(s) + int(d))
        for s, d in zip(source, rng.integers(-1, 2, 5000), strict=True)
    ]
    found = batches.Bucketed((source, target), 32, buckets=8)
    assert found.waste < 0.2
    (s, t), (ns, nt), index = found.at(3)
    assert [len(source[i]) for i in index] == ns.tolist()
    assert [len(target[i]) for i in index] == nt.tolist()
    assert ((s == 1).sum(axis=1) == ns).all()
    assert ((t == 2).sum(axis=1) == nt).all()


def test_a_position_among_buckets_is_found_again() -> None:
    texts = some_texts()
    one, other = (batches.Bucketed(texts, 8, seed=5) for _ in range(2))
    for _ in range(70):
        next(one)
    other.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(60):
        jax.tree.map(np.testing.assert_array_equal, next(one), next(other))
    with pytest.raises(ValueError, match="state: got"):
        batches.Bucketed(texts, 8, seed=6).set_state(one.get_state())
    order = [batches.Bucketed(texts, 8, seed=s).at(0)[2].tolist() for s in range(3)]
    assert order[0] != order[1] != order[2]
    shapes = [
        [batches.Bucketed(texts, 8, seed=s).at(i)[0].shape for i in range(30)] for s in range(2)
    ]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize("texts", [[], ([[1]], [[1], [2]]), ([], [])])
def test_what_cannot_be_dealt_into_buckets(texts: Any) -> None:
    with pytest.raises(ValueError, match="sequences: got lists of"):
        batches.Bucketed(texts, 2)
