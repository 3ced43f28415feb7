"""The synthetic tasks, each against a reading of its definition."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax.tasks import memory
from rnn_jax.tasks.memory import Batch

B = 400
TASKS: dict[str, Any] = {
    "adding": partial(memory.adding, length=7),
    "adding_1997": partial(memory.adding_1997, length=30),
    "copying": partial(memory.copying, delay=4, symbols=3, items=2),
    "temporal_order": partial(memory.temporal_order, length=23),
    "temporal_order_1997": partial(memory.temporal_order_1997, length=40),
    "temporal_order_1997_6b": partial(memory.temporal_order_1997, length=40, symbols=3),
    "latching": partial(memory.latching, length=20, signal=2, variance=0.04),
    "parity": partial(memory.parity, length=9, shortest=6),
    "anbn": partial(memory.anbn, largest=5, smallest=2),
}


def draw(name: str) -> Batch:
    batch = jax.jit(jax.vmap(TASKS[name]))(jax.random.split(jax.random.key(1), B))
    return Batch(*map(np.asarray, batch))


def at_end(batch: Batch) -> np.ndarray:
    """The lengths; every sequence has one answer, at its end."""
    lengths = batch.mask.sum(axis=1)
    assert (batch.mask == (np.arange(batch.mask.shape[1]) < lengths[:, None])).all()
    assert (batch.scored.sum(axis=1) == 1).all()
    assert (batch.scored.argmax(axis=1) == lengths - 1).all()
    return lengths


def answers(batch: Batch) -> np.ndarray:
    return np.asarray(batch.targets)[np.asarray(batch.scored)]


def test_adding() -> None:
    batch = draw("adding")
    assert (at_end(batch) == 7).all()
    values, marks = batch.xs[..., 0], batch.xs[..., 1]
    assert (marks[:, :3].sum(axis=1) == 1).all()
    assert (marks[:, 3:].sum(axis=1) == 1).all()
    assert (marks.sum(axis=0) > 0).all()
    assert set(np.unique(marks)) == {0, 1}
    assert (values >= 0).all()
    np.testing.assert_allclose(values.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(answers(batch)[:, 0], (values * marks).sum(axis=1), rtol=1e-6)
    # Var of the sum of two uniform numbers: 2 / 12; the standard error is about 0.01.
    np.testing.assert_allclose(((answers(batch) - 1) ** 2).mean(), 1 / 6, atol=0.04)


def test_adding_1997() -> None:
    batch = draw("adding_1997")
    lengths = at_end(batch)
    assert set(lengths) == {30, 31, 32, 33}
    places = []
    for (values, marks), length, target in zip(
        batch.xs.transpose(0, 2, 1), lengths, answers(batch)[:, 0], strict=True
    ):
        marked = np.flatnonzero(marks == 1)
        assert len(marked) == 2
        assert marked.min() < 10
        assert marks[length - 1] == -1
        assert (marks[0], values[0]) == (1, 0) if 0 in marked else marks[0] == -1
        assert not marks[1 : length - 1][(marks[1 : length - 1] != 1)].any()
        np.testing.assert_allclose(target, 0.5 + values[marked].sum() / 4, rtol=1e-5)
        places += list(marked)
    assert set(places) == set(range(14))
    assert batch.xs[..., 0].min() < -0.9
    np.testing.assert_allclose(batch.xs[..., 0].mean(), 0, atol=0.03)


def test_copying() -> None:
    batch = draw("copying")
    listed = batch.xs[:, :2]
    assert set(np.unique(listed)) == {0, 1, 2}
    for xs, targets, symbols in zip(batch.xs, batch.targets, listed, strict=True):
        assert list(xs) == [*symbols, 3, 3, 3, 4, 3, 3]
        assert list(targets) == [3] * 6 + list(symbols)
    assert batch.mask.all()
    assert batch.scored.all()


def test_temporal_order() -> None:
    batch = draw("temporal_order")
    assert (at_end(batch) == 23).all()
    seen = [np.flatnonzero(xs < 2) for xs in batch.xs]
    assert {len(at) for at in seen} == {2}
    assert {at[0] for at in seen} == {2, 3}
    assert {at[1] for at in seen} == {11, 12}
    classes = [xs[at] @ [1, 2] for xs, at in zip(batch.xs, seen, strict=True)]
    assert (answers(batch) == classes).all()
    assert set(classes) == {0, 1, 2, 3}
    assert set(np.unique(batch.xs)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(("symbols", "starts"), [(2, (4, 20)), (3, (4, 13, 26))])
def test_temporal_order_1997(symbols: int, starts: tuple[int, ...]) -> None:
    batch = draw("temporal_order_1997" + ("_6b" if symbols == 3 else ""))
    lengths = at_end(batch)
    assert set(lengths) == {40, 41, 42, 43, 44}
    places: list[set[int]] = [set() for _ in starts]
    for xs, length, kind in zip(batch.xs, lengths, answers(batch), strict=True):
        assert xs[0] == 6
        assert xs[length - 1] == 7
        inside = xs[1 : length - 1]
        assert inside.max() <= 5
        at = 1 + np.flatnonzero(inside >= 4)
        assert kind == int("".join(str(xs[t] - 4) for t in at), base=2)
        for seen, t in zip(places, at, strict=True):
            seen.add(int(t))
    assert places == [set(range(t, t + 5)) for t in starts]
    assert set(answers(batch)) == set(range(2**symbols))


def test_latching() -> None:
    batch = draw("latching")
    assert set(at_end(batch)) == {20, 21, 22}
    xs = batch.xs[..., 0]
    assert (xs[:, :2] == np.where(answers(batch) == 1, 1, -1)[:, None]).all()
    np.testing.assert_allclose(xs[:, 2:].std(), 0.2, atol=0.01)
    np.testing.assert_allclose(xs[:, 2:].mean(), 0, atol=0.01)
    np.testing.assert_allclose(answers(batch).mean(), 0.5, atol=0.1)


def test_parity() -> None:
    batch = draw("parity")
    lengths = batch.mask.sum(axis=1)
    assert set(lengths) == {6, 7, 8, 9}
    assert (batch.mask == (np.arange(9) < lengths[:, None])).all()
    assert (batch.scored == batch.mask).all()
    assert (batch.targets == batch.xs[..., 0].cumsum(axis=1) % 2).all()
    np.testing.assert_allclose(batch.xs.mean(), 0.5, atol=0.04)
    assert set(np.unique(batch.xs)) == {0, 1}


def test_anbn() -> None:
    batch = draw("anbn")
    sizes = set()
    for xs, targets, mask, scored in zip(*batch, strict=True):
        n = int((xs == 1).sum())
        string = [0] + [1] * n + [2] * n + [0]
        assert list(xs[mask]) == string[:-1]
        assert list(targets[mask]) == string[1:]
        assert list(np.flatnonzero(scored)) == list(range(n + 1, 2 * n + 1))
        sizes.add(n)
    assert sizes == {2, 3, 4, 5}


@pytest.mark.parametrize("name", TASKS)
def test_pure_jittable_and_of_fixed_types(name: str, x64: None) -> None:
    task, keys = TASKS[name], jax.random.split(jax.random.key(0), 3)
    one, two, three = (jax.jit(task)(k) for k in keys)
    same = partial(np.testing.assert_allclose, rtol=1e-12)
    jax.tree.map(same, one, task(keys[0]))
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), b) for b in (one, two, three)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert any((one.xs != other.xs).any() for other in (two, three))
    T = len(one.mask)
    assert len(one.xs) == len(one.targets) == len(one.scored) == T
    assert one.mask.dtype == one.scored.dtype == bool
    assert not (one.scored & ~one.mask).any()
    for array in (one.xs, one.targets):
        assert array.dtype == (jnp.int32 if array.ndim == 1 else jnp.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(memory.adding, length=1), "length: got 1, expected at least 2"),
        (partial(memory.adding_1997, length=21), "length: got 21, expected at least 22"),
        (partial(memory.copying, delay=0), "delay: got 0"),
        (partial(memory.copying, delay=3, items=-1), "items: got -1"),
        (partial(memory.temporal_order, length=9), "length: got 9, expected at least 10"),
        (partial(memory.temporal_order_1997, length=29), "length: got 29"),
        (partial(memory.temporal_order_1997, length=50, symbols=4), "symbols: got 4"),
        (partial(memory.latching, length=2), "length: got 2, expected at least 3"),
        (partial(memory.parity, length=2, shortest=3), "length: got 2, expected at least 3"),
        (partial(memory.anbn, largest=1, smallest=2), "largest: got 1, expected at least 2"),
    ],
)
def test_what_is_out_of_range_is_said(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


def test_loss_and_wrong_count_scored_steps_alone() -> None:
    scored = jnp.array([[False, True, True], [False, True, False]])
    classes = Batch(scored, jnp.array([[1, 0, 1], [1, 0, 1]], jnp.int32), scored, scored)
    ys = jax.nn.one_hot(jnp.array([[0, 0, 0], [0, 0, 0]]), 2)
    assert memory.wrong(ys, classes).tolist() == [True, False]
    right, off = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
    assert float(memory.loss(ys, classes)) == pytest.approx((2 * right + off) / 3, rel=1e-6)
    numbers = classes._replace(targets=classes.targets.astype(float)[..., None])
    near = jnp.array([[[9.0], [0.1], [1.19]], [[9.0], [0.21], [0.0]]])
    assert memory.wrong(near, numbers).tolist() == [False, True]
    assert memory.wrong(near, numbers, tolerance=0.1).tolist() == [True, True]
    squares = 0.1**2 + 0.19**2 + 0.21**2
    assert float(memory.loss(near, numbers)) == pytest.approx(squares / 3, rel=1e-5)
    one = jax.tree.map(lambda a: a[0, 2], numbers)  # a step
    assert float(memory.loss(near[0, 2], one)) == pytest.approx(0.19**2, rel=1e-5)
