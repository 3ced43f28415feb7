"""The synthetic tasks, each against a reading of its definition, and the experiment on them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax as rnn
from experiments.harness.command import BadInput
from experiments.memory_tasks import __main__ as command
from experiments.memory_tasks import lstm_1997, models, report, search
from experiments.memory_tasks.config import Config, resolve
from rnn_jax.gradients import bptt
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


# The experiment.


def test_the_regulariser_is_its_formula(x64: None) -> None:
    """In NumPy, and its derivative by W alone by finite differences; lam by jax.grad."""
    task = models.TASKS["parity"](6)
    kind = models.GROUPS["tanh"][2]
    cell = models.hidden_cell(kind, task, 3)
    params = rnn.readout(cell, 2, hidden_size=3).init(jax.random.key(0))
    params = jax.tree.map(lambda a: a.astype(float), params)
    batch = jax.jit(partial(models.draw, task, size=4))(jax.random.key(1))
    plain = jax.jit(partial(models.gradient, cell))(params, batch)
    regularised = jax.jit(partial(models.regularised_gradient, cell))
    got, none = (regularised(params, batch, jnp.array(alpha)) for alpha in (3.0, 0.0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-14), none, plain)

    hs = np.asarray(jax.jit(partial(models.hidden, cell))(params, batch.xs, batch.mask))
    W = np.asarray(params.cell.w_h)
    q = jax.grad(lambda hs: models.loss(models.read(params, hs), batch))(jnp.asarray(hs))
    lams = np.array(q)
    for t in reversed(range(5)):  # backpropagation; the steps of the padding come last
        lams[:, t] += (lams[:, t + 1] * (1 - hs[:, t + 1] ** 2)) @ W.T

    def omega(W: np.ndarray) -> float:
        terms = [
            (np.linalg.norm((lam[t] * (1 - h[t] ** 2)) @ W.T) / np.linalg.norm(lam[t]) - 1) ** 2
            for lam, h, mask in zip(lams, hs, np.asarray(batch.mask), strict=True)
            for t in range(1, mask.sum())
        ]
        return float(np.mean(terms))

    numeric = np.zeros_like(W)
    for i in np.ndindex(*W.shape):
        nudge = np.zeros_like(W)
        nudge[i] = 1e-6
        numeric[i] = (omega(W + nudge) - omega(W - nudge)) / 2e-6
    np.testing.assert_allclose(got.cell.w_h - plain.cell.w_h, 3 * numeric, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.cell.w_x, plain.cell.w_x, rtol=1e-10)
    assert np.abs(numeric).max() > 0.01


def test_an_update_is_clipped_and_nothing_infinite_gets_in() -> None:
    task, group = models.TASKS["adding"](5), models.GROUPS["irnn"]
    optimizer = optax.sgd(1.0)
    nets = models.make_nets(group, task, 4, 2, optimizer, jax.random.key(0))
    net = jax.tree.map(lambda a: a[0], nets)
    update = jax.jit(models.make_update(group, task, 4, optimizer))

    def moved(net: models.Net) -> float:
        new, _ = update(net, jax.random.key(1))
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params, net.params)))

    free = moved(net._replace(clip=jnp.array(models.NEVER)))
    assert moved(net._replace(clip=jnp.array(free / 3))) == pytest.approx(free / 3, rel=1e-4)
    assert moved(net._replace(clip=jnp.array(free * 3))) == pytest.approx(free, rel=1e-4)
    broken = net.params._replace(b_y=jnp.full(1, 1e30))
    new, _ = update(net._replace(params=broken), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.params, broken)


def test_what_counts_as_wrong() -> None:
    scored = jnp.array([[False, True, True], [False, True, False]])
    batch = Batch(scored, jnp.array([[1, 0, 1], [1, 0, 1]]), scored, scored)
    ys = jax.nn.one_hot(jnp.array([[0, 0, 0], [0, 0, 0]]), 2)
    assert models.wrong(ys, batch._replace(targets=batch.targets.astype(jnp.int32))).tolist() == [
        True,
        False,
    ]
    near = jnp.array([[[9.0], [0.1], [1.19]], [[9.0], [0.21], [0.0]]])
    numbers = batch._replace(targets=batch.targets.astype(float)[..., None])
    assert models.wrong(near, numbers).tolist() == [False, True]


def test_a_search_ends_with_the_last_success_and_keeps_what_is_solved() -> None:
    speed = jnp.array([3, 1, 2])

    def update(net: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return (net[0] + net[1], net[1]), net[0]

    def solved(nets: Any, reports: Any, updates: int) -> np.ndarray:
        assert reports.shape == (2, 3)
        return np.where(np.asarray(nets[0]) >= 12, updates, 0)

    run = partial(
        search.search, "toy", (jnp.zeros(3, int), speed), update, solved, jax.random.key(0), chunk=2
    )
    found = run(budget=100)
    assert found.solved_at.tolist() == [4, 12, 6]
    assert found.nets[0].tolist() == [12, 12, 12]
    assert found.updates == 12
    assert run(budget=5).solved_at.tolist() == [4, 0, 6]
    assert run(budget=5).updates == 6
    assert run(budget=100, deadline=0.0).updates == 2


@pytest.mark.parametrize(
    ("name", "weights"), [("adding", 93), ("temporal order", 156), ("two sequences", 102)]
)
def test_the_first_lstm(name: str, weights: int, x64: None) -> None:
    """As many weights as published, its step in NumPy, and its truncated gradient."""
    problem = lstm_1997.PROBLEMS[name]
    model = lstm_1997.make_model(problem)
    params = model.init(jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(params)) == weights
    given = problem.input_gates + problem.output_gates
    assert params.cell.b[: len(given)].tolist() == list(given)
    drawn = np.concatenate([a.ravel() for a in jax.tree.leaves(params)])
    assert (np.abs(drawn) <= 0.1).sum() == weights - len(given)
    params = jax.tree.map(lambda a: jnp.where(jnp.abs(a) <= 0.1, 10 * a, a), params)

    cell, blocks = lstm_1997.memory_blocks(problem), len(problem.input_gates)
    cells, units = problem.cells * blocks, (2 + problem.cells) * blocks
    rng = np.random.default_rng(0)
    h, c, z = rng.normal(size=units), rng.normal(size=cells), rng.normal(size=units)
    state, y = cell.step(params.cell, lstm_1997.State(jnp.array(h), jnp.array(c)), jnp.array(z))

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    net = z + h @ np.asarray(params.cell.w_h)
    for j in range(cells):
        block = j // problem.cells
        gates = sigmoid(net[block]), sigmoid(net[blocks + block])
        new = c[j] + gates[0] * (4 * sigmoid(net[2 * blocks + j]) - 2)
        np.testing.assert_allclose(state.c[j], new, rtol=1e-12)
        np.testing.assert_allclose(y[j], gates[1] * (2 * sigmoid(new) - 1), rtol=1e-12)
    np.testing.assert_allclose(state.h, [*sigmoid(net[: 2 * blocks]), *y], rtol=1e-12)

    def cut(params: Any, state: lstm_1997.State, z: Any) -> Any:
        return cell.step(params, state._replace(h=jax.lax.stop_gradient(state.h)), z)

    reader = cell._replace(step=cut)
    reader = rnn.one_hot(reader, problem.inputs) if problem.tokens else reader
    activation = jax.nn.identity if name == "adding" else jax.nn.sigmoid
    reader = rnn.readout(
        reader,
        problem.outputs,
        activation=activation,
        bias=problem.output_bias,
        hidden_size=cells,
    )
    batch = problem.sample(jax.random.key(1), 30)
    targets = lstm_1997.wanted(problem, batch)

    def loss(y: Any, target: Any) -> jax.Array:
        return jnp.where(target[1], 0.5 * ((y - target[0]) ** 2).sum(), 0.0)

    args = (params, None, batch.xs, (targets, batch.scored))
    (total, _), by_hand = jax.jit(bptt(reader, loss))(*args, mask=batch.mask)
    moved = {}
    for gradient in lstm_1997.GRADIENTS:
        update = jax.jit(lstm_1997.make_update(problem, 30, gradient))
        new, error = update(params, jax.random.key(1))
        moved[gradient] = jax.tree.map(lambda p, n: (p - n) / problem.rate, params, new)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-13), moved["truncated"], by_hand
    )
    assert jnp.abs(moved["full"].cell.w_h - by_hand.cell.w_h).max() > 1e-6
    if name == "adding":
        assert error == pytest.approx(float(jnp.sqrt(2 * total)), rel=1e-9)


def test_success_of_1997_is_2000_right_ones_in_a_row_with_a_small_mean() -> None:
    problem = lstm_1997.PROBLEMS["adding"]  # right below 0.04, mean below 0.01
    errors = np.full((5000, 4), 0.009)
    errors[:500, 0] = 1.0
    errors[700, 1] = errors[4000, 1] = 0.04
    errors[:, 2] = 0.011
    errors[[1500, 3400], 3] = 0.5
    assert lstm_1997.first_success(errors, problem).tolist() == [2500, 2701, 0, 0]
    assert not lstm_1997.first_success(errors[:1999], problem).any()


def test_two_sequences_are_judged_by_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the errors in training were; the last of them decide for the other problems."""
    errors = np.full((2, lstm_1997.NEW), 0.009)
    errors[1, 0] = 0.2  # with a mean below 0.01 still

    def make_test(problem: Any, length: int, key: Any, count: int) -> Any:
        return lambda nets: errors

    monkeypatch.setattr(lstm_1997, "make_test", make_test)
    config = resolve(Config(table="lstm_1997", seeds=2, updates=2))
    row = lstm_1997.row(config, "two sequences", 30, "truncated", float("inf"))
    assert row["solved_at"] == [2, 0]
    assert row["wrong_of_2560"] == [0, 1]
    row = lstm_1997.row(config, "temporal order", 30, "truncated", float("inf"))
    assert row["solved_at"] == [0, 0]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "quick"
    assert command.main(["--quick", "--run", str(folder)]) == 0
    return folder


def test_the_quick_run_shows_the_effect(quick: Path) -> None:
    numbers = json.loads((quick / "numbers.json").read_text())
    assert (quick / "figure.png").read_bytes().startswith(b"\x89PNG")
    solved = {row["kind"]: row["solved_at"] for row in numbers["rows"]}
    assert all(solved["tanh, orthogonal, clipped"])
    assert 0 in solved["tanh, clipped"]
    for row in numbers["rows"]:
        for at, error in zip(row["solved_at"], row["error"], strict=True):
            assert (at > 0) == (error < 0.01)


@pytest.mark.parametrize(
    ("args", "rows", "words"),
    [
        (["temporal_order", "--lengths", "10", "--updates", "3", "--seeds", "2"], 2, "T=10"),
        (["lstm_1997", "--lengths", "30", "--updates", "3", "--seeds", "2"], 1, "0 of 2 trials"),
    ],
)
def test_the_other_tables(
    args: list[str],
    rows: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lstm_1997, "PROBLEMS", {"adding": lstm_1997.PROBLEMS["adding"]})
    monkeypatch.setattr(lstm_1997, "GRADIENTS", {"truncated": lstm_1997.GRADIENTS["truncated"]})
    assert command.main(["--table", *args]) == 0
    numbers = json.loads(Path("runs/memory_tasks/numbers.json").read_text())
    assert len(numbers["rows"]) == rows
    assert all(row["updates"] == 3 and row["solved_at"] == [0, 0] for row in numbers["rows"])
    assert Path("runs/memory_tasks/figure.png").exists()
    assert words in capsys.readouterr().out


def test_what_is_not_reproduced_is_said() -> None:
    row = {"length": 100, "solved_at": [4000, 0, 2000], "updates": 60_000}
    assert report.outcome(row) == "2/3 3000"
    assert report.verdict(row) == "not reproduced within 60000 updates by 1 of 3"
    assert report.verdict(row | {"solved_at": [4000]}) == "reproduced"
    text = report.temporal_order_text([row | {"kind": "clipped and regularised"}])
    assert "not reproduced within 60000 updates" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lengths", "9"], "expected at least 10"),
        (["--seeds", "-1"], "seeds: got -1"),
        (["--minutes", "nan"], "minutes: got nan"),
        (["--tasks", "anbn", "anbn"], "expected each once"),
        (["--table", "lstm_1997", "--lengths", "20"], "expected at least 30"),
        (["--table", "lstm_1997", "--quick"], "no quick setting"),
        (["--run", "."], "not overwritten"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_options_that_are_given_are_kept() -> None:
    assert resolve(Config(updates=7)).updates == 7
    assert resolve(Config(updates=7, quick=True)).updates == 7
    assert resolve(Config()).seeds == 5
    assert resolve(Config(table="lstm_1997")).seeds == 10
    with pytest.raises(BadInput):
        Config(tasks=())
