"""Checkpoints: to the bit, checked, atomic under kill -9; the best and the last are kept."""

import dataclasses
import errno
import fcntl
import gc
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import OPTIMIZERS, B, H, bits, data, fresh, make, start_child

from rnn_jax import train
from rnn_jax.checkpoint import Checkpoints


class Odd(NamedTuple):
    """Leaves of every kind that a state may have."""

    low: jax.Array
    flags: jax.Array
    scalar: jax.Array
    empty: jax.Array
    keys: jax.Array
    rbg: jax.Array
    nothing: Any


def odd_state(seed: int = 0) -> train.TrainState:
    key = jax.random.key(seed)
    odd = Odd(
        low=jax.random.normal(key, (3, 2), jnp.bfloat16),
        flags=jax.random.bernoulli(key, 0.5, (7,)),
        scalar=jnp.float32(seed - 0.0),
        empty=jnp.zeros((0, 3), jnp.float32),
        keys=jax.random.split(key, (2, 3)),
        rbg=jax.random.key(seed, impl="rbg"),
        nothing=None,
    )
    return fresh(seed=seed)._replace(
        carry={"a/b.c": odd, "h": [jnp.full(2, jnp.nan, jnp.float32), ()]}
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def at(step: int, seed: int = 0) -> train.TrainState:
    return fresh(seed=seed)._replace(step=jnp.int32(step))


# ---- to the bit


@pytest.mark.parametrize("abstract", [False, True])
def test_every_kind_of_leaf_comes_back_to_the_bit(abstract: bool, tmp_path: Path) -> None:
    state = odd_state(seed=3)
    Checkpoints(tmp_path).save(state, 1.0)
    like = jax.eval_shape(lambda: odd_state()) if abstract else odd_state()
    got = Checkpoints(tmp_path).restore("last", like=like)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert bits(got) == bits(state)
    for g, s in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert (g.dtype, g.shape, jax.typeof(g)) == (s.dtype, s.shape, jax.typeof(s))
    assert bits(got) != bits(odd_state(seed=0))


@pytest.mark.parametrize("name", ["adamw", "hyperparams"])
def test_resuming_from_disk_changes_no_bit(name: str, tmp_path: Path) -> None:
    optimizer, run = OPTIMIZERS[name], make(name)
    whole = train.fit(run, fresh(optimizer), data(), steps=17)
    for split in (1, 7, 16):
        folder = tmp_path / str(split)
        Checkpoints(folder).save(train.fit(run, fresh(optimizer), data(), steps=split))
        like = fresh(optimizer, seed=5)  # other numbers: nothing may come from here
        state = Checkpoints(folder).restore("last", like=like)
        assert int(state.step) == split
        assert bits(train.fit(run, state, data(), steps=17)) == bits(whole)


def test_a_restored_state_is_donated_and_does_not_compile_again(tmp_path: Path) -> None:
    run = make()
    state, _ = run(fresh(), data())
    Checkpoints(tmp_path).save(state)
    count = run.compiled._cache_size()
    for like in (state, jax.eval_shape(lambda: fresh())):
        restored = Checkpoints(tmp_path).restore(like=like)
        run(restored, data())
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))
    assert run.compiled._cache_size() == count


def test_arrays_go_to_the_devices_of_like(tmp_path: Path) -> None:
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
    both = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(fresh(), both)
    placed = placed._replace(carry=jax.device_put(placed.carry, split))
    Checkpoints(tmp_path).save(placed)
    got = Checkpoints(tmp_path).restore(like=placed)
    assert bits(got) == bits(fresh())
    assert got.carry.sharding == split
    assert got.params.w_h.sharding == both
    assert got.key.sharding.device_set == both.device_set
    assert len(Checkpoints(tmp_path).restore(like=fresh()).carry.devices()) == 1


# ---- any pytree with a step


class Mine(NamedTuple):
    weights: Any
    step: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Declared:
    step: Any
    weights: Any


MAKERS: dict[str, Callable[..., Any]] = {
    "NamedTuple": lambda step, weights: Mine(weights, step),
    "dataclass": Declared,
    "dict": lambda step, weights: {"step": step, "weights": weights},
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_any_pytree_with_a_step(make: Callable[..., Any], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for steps in (jnp.int32(7), 8, np.int64(9), jnp.full(3, 10, jnp.int32), np.full((1, 2), 11)):
        tree = make(steps, {"w": jax.random.normal(jax.random.key(1), (2, 3)), "none": None})
        saved = checkpoints.save(tree)
        assert saved.step == Checkpoints(tmp_path).last.step == int(np.max(steps))
        got = checkpoints.restore(like=make(steps, {"w": jnp.zeros((2, 3)), "none": None}))
        assert type(got) is type(tree)
        assert [type(leaf) for leaf in jax.tree.leaves(got)] == [
            type(leaf) for leaf in jax.tree.leaves(tree)
        ]
        jax.tree.map(np.testing.assert_array_equal, got, tree)


def test_what_has_no_step_says_what_it_got(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for tree, got in (
        ([jnp.ones(2)], "got list, expected"),
        (jnp.ones(2), "got ArrayImpl, expected"),
        ({"w": jnp.ones(2), "b": 1}, r"got dict with \['w', 'b'\], expected"),
        (optax.EmptyState(), "got EmptyState, expected"),
        (Mine(jnp.ones(2), None), "got Mine, expected"),
        (None, "got NoneType, expected"),
    ):
        with pytest.raises(TypeError, match=f"^train_state: {got} a pytree .* `step`"):
            checkpoints.save(tree)
    for step in (1.0, True, "3", jnp.ones(3), jax.random.key(0), jnp.array([True])):
        with pytest.raises(TypeError, match=r"^step: got .* in Mine, expected an integer"):
            checkpoints.save(Mine(jnp.ones(2), step))
    for step in (jnp.array([4, 4, 5]), -1, np.zeros(0, np.int32)):
        with pytest.raises(ValueError, match=r"^step: got \[.*\] in Mine, expected one number"):
            checkpoints.save(Mine(jnp.ones(2), step))
    assert names(tmp_path) == []


def test_leaves_that_are_no_arrays_are_refused_with_their_path(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for leaf, got in (
        ("adam", "got str 'adam'"),
        (np.array(["a", "b"]), "got ndarray of dtype <U1"),
        (np.array([None]), "got ndarray of dtype object"),
        (np.float64(1).astype(np.longdouble), "got longdouble of dtype"),
        (2**64, "got int '18446744073709551616'"),
        (object(), "got object '<object"),
        (jax.ShapeDtypeStruct, "got type"),
    ):
        with pytest.raises(
            TypeError, match=rf"^train_state\['a'\]\[1\]: {got}.*, expected an array"
        ):
            checkpoints.save({"step": 1, "a": [None, leaf]})
    assert names(tmp_path) == []


def test_numbers_come_back_as_what_like_has(tmp_path: Path) -> None:
    """Nothing is rounded on the way through a file, whatever JAX would make of it."""
    tree = {
        "step": 3,
        "rate": 0.1,
        "on": True,
        "z": 1 - 2j,
        "big": 2**63,
        "np": np.float64(0.1),
        "table": np.arange(3.0) / 3,
        "long": np.array([2**40]),
    }
    Checkpoints(tmp_path).save(tree)
    zeros = {name: value * 0 for name, value in tree.items()} | {"on": False}
    got = Checkpoints(tmp_path).restore(like=zeros)
    for name, value in tree.items():
        assert type(got[name]) is type(value)
        np.testing.assert_array_equal(got[name], value)
        assert getattr(got[name], "dtype", None) == getattr(value, "dtype", None)
    abstract = {name: None for name in tree} | jax.eval_shape(lambda: {"step": 0, "rate": 0.0})
    got = Checkpoints(tmp_path).restore(like=abstract)
    assert (got["step"].dtype, got["rate"].dtype) == (jnp.int32, jnp.float32)
    assert (int(got["step"]), float(got["rate"])) == (3, float(np.float32(0.1)))
    Checkpoints(tmp_path / "arrays").save({"step": jnp.int32(4)})
    assert Checkpoints(tmp_path / "arrays").restore(like={"step": 0}) == {"step": jnp.int32(4)}
    wide = {name: None for name in tree} | {"np": jax.ShapeDtypeStruct((), np.float64)}
    with pytest.raises(ValueError, match=r"'np'\]: got float64 .* Turn on jax_enable_x64"):
        Checkpoints(tmp_path).restore(like=wide)


# ---- a part of it


def test_what_is_none_is_not_read(tmp_path: Path) -> None:
    state = odd_state(seed=3)
    Checkpoints(tmp_path).save(state)
    like = odd_state(seed=5)._replace(opt_state=None, key=None)
    like = like._replace(carry=like.carry | {"h": None})
    got = Checkpoints(tmp_path).restore(like=like)
    assert (got.opt_state, got.key, got.carry["h"]) == (None, None, None)
    assert bits(got.params) == bits(state.params)
    assert bits(got.carry["a/b.c"]) == bits(state.carry["a/b.c"])
    assert int(got.step) == int(state.step)
    nothing = train.TrainState(*[None] * len(state))
    assert Checkpoints(tmp_path).restore(like=nothing) == nothing


class Alike(NamedTuple):
    step: Any
    a: Any
    ab: Any


def test_a_part_that_only_begins_alike_is_still_compared(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(Alike(1, {"x": jnp.ones(2)}, jnp.ones(3)))
    got = Checkpoints(tmp_path).restore(like=Alike(0, None, jnp.zeros(3)))
    assert (got.step, got.a, got.ab.tolist()) == (1, None, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"^train_state\.ab: got .*, expected nothing"):
        Checkpoints(tmp_path).restore(like=Alike(1, None, ()))


@pytest.mark.parametrize(
    "other", [optax.chain(optax.clip(1.0), optax.adam(0.1)), optax.adam(lambda count: 0.1)]
)
def test_another_optimizer_takes_the_params_alone(other: Any, tmp_path: Path) -> None:
    """What its state would be nobody has saved: an error, unless the caller gives None."""
    params = {"w": jnp.arange(3.0)}
    state = train.init(params, None, optax.adam(0.1), jax.random.key(0))
    Checkpoints(tmp_path).save(state)
    like = train.init({"w": jnp.zeros(3)}, None, other, jax.random.key(1))
    with pytest.raises(ValueError, match=r"opt_state.*like=state._replace\(opt_state=None\)"):
        Checkpoints(tmp_path).restore(like=like)
    got = Checkpoints(tmp_path).restore(like=like._replace(opt_state=None))
    assert bits(got.params) == bits(params)
    assert got.opt_state is None


# ---- what goes with it


def test_a_position_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    positions = [{"epoch": 1, "files": ["a", "ü"], "rest": None, "p": 0.1}, [3, {"x": True}], None]
    for step, position in enumerate(positions):
        saved = checkpoints.save(at(step), float(step), position=position)
        assert saved.position == position
        for seen in (checkpoints, Checkpoints(tmp_path, read_only=True)):
            assert (seen.last.position, seen.best.position) == (position, positions[0])
    positions[0]["files"].append("later")
    assert checkpoints.best.position["files"] == ["a", "ü"]
    about = checkpoints.best.path / "about.json"
    about.write_text(about.read_text().replace('"epoch": 1', '"epoch": 2'))
    with pytest.raises(ValueError, match="damaged"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize(
    "position", [{1: 2}, (1, 2), b"x", {"a": float("nan")}, np.int64(3), np.ones(2), {"a": {3}}]
)
def test_a_position_that_json_would_change_is_refused(position: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^position: got .*, expected a JSON value"):
        Checkpoints(tmp_path).save(at(1), position=position)
    assert names(tmp_path) == []


def test_a_checkpoint_from_before_there_were_positions(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path).save(at(5, seed=5), 1.0)
    about, sums = saved.path / "about.json", saved.path / "checksums.json"
    old = json.loads(about.read_text())
    del old["position"]
    about.write_text(json.dumps(old))
    changed = json.loads(sums.read_text()) | {"about.json": zlib.crc32(about.read_bytes())}
    sums.write_text(json.dumps(changed))
    assert Checkpoints(tmp_path).last == saved
    assert bits(Checkpoints(tmp_path).restore(like=fresh())) == bits(at(5, seed=5))


# ---- any folder


ODD = {
    "brackets": "lr=[0.1]",
    "star": "a*b",
    "question": "q?",
    "spaces": " a b ",
    "unicode": "ü 東🎼",
    "newline": "new\nline",
    "backslash": "back\\slash",
    "scheme": "gs:",
    "braces": "{a,b}",
    "not": "[!x]",
    "quotes": "'\"",
    "minus": "-x",
    "percent": "%41#",
    "home": "~",
    "variable": "$HOME",
    "control": "\x01",
    "no unicode": b"\xff\xfe".decode("utf-8", "surrogateescape"),
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    beside = Checkpoints(tmp_path / "axb")  # what a pattern in `name` might mean
    beside.save(at(9, seed=9), 9.0)
    untouched = {path: path.read_bytes() for path in every_file(tmp_path)}
    folder = tmp_path / name / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
        checkpoints.save(at(step, seed=step), loss)
    (folder / "000004-step-4.saving").mkdir()
    again = Checkpoints(folder)
    assert names(folder) == ["000002-step-2", "000003-step-3"]
    assert bits(again.restore("best", like=fresh())) == bits(at(2, seed=2))
    assert bits(again.restore("last", like=fresh())) == bits(at(3, seed=3))
    with pytest.raises(ValueError, match="w_h: got "):
        again.restore(like=but(params=fresh().params._replace(w_h=jnp.zeros(1))))
    assert {path: path.read_bytes() for path in untouched} == untouched
    assert {path.name for path in tmp_path.iterdir()} == {"axb", name}


def test_a_folder_may_move_to_any_name(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "plain").save(at(1, seed=1))
    (tmp_path / "plain").rename(tmp_path / "[1]\n")
    assert bits(Checkpoints(tmp_path / "[1]\n").restore(like=fresh())) == bits(at(1, seed=1))


# ---- one process writes


def is_locked(folder: Path) -> bool:
    """As another process would see it: the lock is on the open file."""
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_lock_goes_with_the_last_object_of_the_process(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a", target_is_directory=True)
    objects = [Checkpoints(tmp_path / "a"), Checkpoints(link), Checkpoints(tmp_path / "a")]
    other = Checkpoints(tmp_path / "b")
    reader = Checkpoints(tmp_path / "a", read_only=True)
    while objects:
        assert is_locked(tmp_path / "a")
        objects.pop().save(at(1))
    gc.collect()
    assert not is_locked(tmp_path / "a")
    assert is_locked(other.folder)
    assert reader.last is None
    assert Checkpoints(tmp_path / "a").last.step == 1


def test_a_folder_that_was_deleted_and_made_again_is_another(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    second = Checkpoints(tmp_path / "a")
    del first
    gc.collect()
    assert is_locked(second.folder)


def test_without_locks_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    Checkpoints(tmp_path).save(at(1, seed=1))
    monkeypatch.setattr("rnn_jax._lock.fcntl", None)
    assert bits(Checkpoints(tmp_path).restore(like=fresh())) == bits(at(1, seed=1))


def open_when_free(folder: str) -> None:
    """A child: says why it cannot open the folder, opens it when it can, and holds it."""
    signal.alarm(20)  # nobody waits for ever
    said = False
    while True:
        try:
            checkpoints = Checkpoints(folder)
            break
        except OSError as error:
            if not said:
                print(error)
            said = True
            time.sleep(0.01)
    print("open", checkpoints.save(at(2, seed=2)).step)
    time.sleep(600)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(1, seed=1))
    unfinished = tmp_path / "000002-step-2.saving"
    unfinished.mkdir()  # the first process is in the middle of a save
    with start_child(__file__, "open_when_free", tmp_path) as child:
        assert child.stdout is not None
        refused = child.stdout.readline()
        assert refused.startswith(f"{tmp_path}: process {os.getpid()} on ")
        assert "is writing here" in refused
        assert "read_only=True" in refused
        assert unfinished.exists()
        del checkpoints
        gc.collect()
        assert child.stdout.readline() == "open 2\n"
        with pytest.raises(BlockingIOError, match=f"process {child.pid} on .* is writing here"):
            Checkpoints(tmp_path)
        reader = Checkpoints(tmp_path, read_only=True)
        assert bits(reader.restore(like=fresh())) == bits(at(2, seed=2))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert Checkpoints(tmp_path).save(at(3)).number == 3


def fork(folder: str) -> None:
    """A child with a child of its own, as a loader of data may be, which outlives it."""
    checkpoints, state = Checkpoints(folder), at(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks
        child = os.fork()
    signal.alarm(20)
    if child == 0:
        try:
            checkpoints.save(state)
        except OSError as error:
            print(os.getpid(), error)
    time.sleep(600)


def test_a_forked_child_neither_saves_nor_keeps_the_lock(tmp_path: Path) -> None:
    with start_child(__file__, "fork", tmp_path) as child:
        assert child.stdout is not None
        orphan, refused = child.stdout.readline().split(maxsplit=1)
        try:
            assert "only that one may save" in refused
            assert is_locked(tmp_path)
            child.send_signal(signal.SIGKILL)
            child.wait()
            Checkpoints(tmp_path).save(at(1))
        finally:
            os.kill(int(orphan), signal.SIGKILL)


# ---- the best and the last


def test_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "a" / "b")
    assert (checkpoints.last, checkpoints.best) == (None, None)
    losses = [3.0, None, 2.0, float("nan"), 2.5, jnp.float32(2.0), -float("inf"), 7.0]
    expected = [(10, 10), (20, 10), (30, 30), (40, 30), (50, 30), (60, 30), (70, 30), (80, 30)]
    for i, (loss, (last, best)) in enumerate(zip(losses, expected, strict=True)):
        saved = checkpoints.save(at(10 * (i + 1), seed=i), loss)
        for seen in (checkpoints, Checkpoints(tmp_path / "a" / "b", read_only=True)):
            assert seen.last == saved
            assert (seen.last.step, seen.best and seen.best.step) == (last, best)
            assert names(seen.folder) == sorted({seen.last.path.name, seen.best.path.name})
    assert bits(checkpoints.restore("best", like=fresh())) == bits(at(30, seed=2))
    assert bits(checkpoints.restore("last", like=fresh())) == bits(at(80, seed=7))
    assert bits(checkpoints.restore(like=fresh())) == bits(at(80, seed=7))
    assert checkpoints.best.loss == 2.0


def test_without_a_loss_only_the_last_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 8):
        checkpoints.save(at(step))
    assert checkpoints.best is None
    assert len(names(tmp_path)) == 1
    with pytest.raises(FileNotFoundError, match=r"no best checkpoint .* with a finite loss"):
        checkpoints.restore("best", like=fresh())


def test_the_same_or_an_earlier_step_is_the_last_if_saved_last(tmp_path: Path) -> None:
    """Going back to the best and on from there, or saving once more at the end."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(300, seed=1), 1.0)
    checkpoints.save(at(400, seed=2), 2.0)
    for step, seed in ((200, 3), (150, 4), (150, 5)):
        checkpoints.save(at(step, seed=seed), 3.0)
        again = Checkpoints(tmp_path)
        assert bits(again.restore("last", like=fresh())) == bits(at(step, seed=seed))
        assert bits(again.restore("best", like=fresh())) == bits(at(300, seed=1))
    assert len(names(tmp_path)) == 2


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    reader = Checkpoints(tmp_path / "absent", read_only=True)
    with pytest.raises(FileNotFoundError, match=r"absent: there is no last checkpoint"):
        reader.restore(like=fresh())
    assert not (tmp_path / "absent").exists()
    writer = Checkpoints(tmp_path)
    writer.save(at(1), 1.0)
    unfinished = tmp_path / "000002-step-2.saving"
    unfinished.mkdir()
    reader = Checkpoints(tmp_path, read_only=True)
    assert bits(reader.restore(like=fresh())) == bits(at(1))
    with pytest.raises(ValueError, match="read_only=True"):
        reader.save(at(2))
    assert unfinished.exists()
    Checkpoints(tmp_path)
    assert not unfinished.exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes-step-one").mkdir()
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(at(step))
    assert names(Checkpoints(tmp_path).folder) == [
        "000002-step-2",
        "config.json",
        "notes-step-one",
    ]


def test_objects_of_one_process_see_what_the_others_save(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    reader = Checkpoints(tmp_path, read_only=True)
    for step, (checkpoints, loss) in enumerate([(first, 2.0), (second, 1.0), (first, 3.0)]):
        assert checkpoints.save(at(step, seed=step), loss).number == step + 1
    assert names(tmp_path) == ["000002-step-1", "000003-step-2"]
    for seen in (first, second, reader, Checkpoints(tmp_path)):
        assert bits(seen.restore("best", like=fresh())) == bits(at(1, seed=1))
        assert bits(seen.restore("last", like=fresh())) == bits(at(2, seed=2))
        assert (seen.best.step, seen.last.step) == (1, 2)


# ---- what does not fit


def but(**changes: Any) -> train.TrainState:
    return fresh()._replace(**changes)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            but(params=fresh().params._replace(w_h=jnp.zeros((H, 3 * H + 1)))),
            r"^train_state.params.w_h: got float32\[4, 12\] in .*, expected float32\[4, 13\]",
        ),
        (
            but(carry=jnp.zeros((B, H), jnp.bfloat16)),
            r"^train_state.carry: got float32\[2, 4\] in .*, expected bfloat16\[2, 4\]",
        ),
        (but(carry=()), r"^train_state.carry: got float32\[2, 4\] in .*, expected nothing"),
        (
            but(carry={"h": jnp.zeros((B, H))}),
            r"^train_state.carry\['h'\]: got nothing in .*, expected float32\[2, 4\]",
        ),
        (
            but(opt_state=optax.sgd(0.1, momentum=0.9).init(fresh().params)),
            r"^train_state.opt_state\[0\].trace\S*: got nothing in",
        ),
        (but(opt_state=optax.sgd(0.1).init(fresh().params)), "opt_state.*, expected nothing"),
        (
            but(key=jax.random.key(0, impl="rbg")),
            r"^train_state.key: got key<fry>\[\] in .*, expected key<rbg>\[\]",
        ),
        (
            but(key=jnp.zeros(2, jnp.uint32)),
            r"^train_state.key: got key<fry>\[\] in .*, expected uint32\[2\]",
        ),
    ],
)
def test_another_structure_names_the_path(
    like: train.TrainState, message: str, tmp_path: Path
) -> None:
    Checkpoints(tmp_path).save(fresh())
    with pytest.raises(ValueError, match=message) as info:
        Checkpoints(tmp_path).restore(like=like)
    assert "build the one that it was saved with" in str(info.value)


def test_wrong_names_say_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match='which: got \'first\', expected "last" or "best"'):
        checkpoints.restore("first", like=fresh())
    with pytest.raises(FileNotFoundError, match="no last checkpoint"):
        checkpoints.restore(like=fresh())


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"no checkpoint can be written here .* another folder"):
            Checkpoints(folder)
    assert (tmp_path / "file").read_text() == "in the way"


# ---- damage


def every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["empty", "half", "one byte less", "one bit", "gone"])
def test_a_damaged_file_is_an_error_and_never_a_state(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(1, seed=1), 1.0)
    last = checkpoints.save(at(2, seed=2), 2.0)
    files = every_file(last.path)
    assert len(files) > 5
    capfd.readouterr()
    for path in files:
        whole = path.read_bytes()
        position = len(whole) // 3
        broken = {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "one byte less": whole[:-1],
            "one bit": whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :],
        }
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(broken[damage])
        with pytest.raises(ValueError, match=r"step-2: this checkpoint is damaged") as info:
            Checkpoints(tmp_path).restore("last", like=fresh())
        assert str(path.relative_to(last.path)) in str(info.value) or damage == "one bit"
        assert "Move its folder away" in str(info.value)
        path.write_bytes(whole)
    assert capfd.readouterr() == ("", "")  # one clear message, no noise from below
    assert bits(Checkpoints(tmp_path).restore("last", like=fresh())) == bits(at(2, seed=2))
    (last.path / "about.json").unlink()
    shutil.move(last.path, tmp_path / "moved away")  # what the message says
    assert bits(Checkpoints(tmp_path).restore("last", like=fresh())) == bits(at(1, seed=1))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path).save(fresh(), 1.0)
    for path in every_file(saved.path):
        content = path.read_bytes()
        assert not content.startswith(b"\x80")
        assert b"rnn_jax" not in content  # no class is named
    assert json.loads((saved.path / "about.json").read_text())["loss"] == 1.0


def fill_the_disk(folder: str) -> None:
    """A child with a limit on the size of files: threads of orbax die in noisy ways."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(at(1, seed=1), 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        checkpoints.save(at(2, seed=2), 0.5)
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = Checkpoints(folder, read_only=True).restore(like=fresh())
    print(bits(last) == bits(at(1, seed=1)))
    time.sleep(0.5)  # the threads of the failed save come to an end
    checkpoints.save(at(2, seed=2), 0.5)
    print(bits(Checkpoints(folder).restore(like=fresh())) == bits(at(2, seed=2)))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with start_child(__file__, "fill_the_disk", tmp_path) as child:
        error, *outcome = child.communicate()[0].splitlines()
    assert re.search("step 2 could not be saved .*(?i:file too large)", error)
    assert outcome == ["True", "True"]
    assert names(tmp_path) == ["000002-step-2"]


# ---- death at any moment


class Death(BaseException):
    """Nobody catches it, as nobody catches kill -9."""


def dies_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies half way through that call to the file system, counted from 0."""
    calls = itertools.count()

    def mortal(owner: Any, name: str, half: Any) -> None:
        whole = getattr(owner, name)

        def call_or_die(path: Any, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                half(path, *args)
                raise Death
            return whole(path, *args, **kwargs)

        monkeypatch.setattr(owner, name, call_or_die)

    mortal(Path, "mkdir", lambda path, *args: None)
    mortal(Path, "rename", lambda path, *args: None)
    write = Path.write_text
    mortal(Path, "write_text", lambda path, text: write(path, text[: len(text) // 2]))
    mortal(shutil, "rmtree", lambda path, *args: (path / "about.json").unlink())


def test_a_save_that_dies_at_any_moment_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for call in range(100):
        folder = tmp_path / str(call)
        checkpoints = Checkpoints(folder)
        checkpoints.save(at(1, seed=1), 1.0)
        checkpoints.save(at(2, seed=2), 2.0)
        with monkeypatch.context() as patch:
            dies_at(call, patch)
            try:
                checkpoints.save(at(3, seed=3), 1.5)
                break
            except Death:
                pass
        checkpoints = Checkpoints(folder)
        assert bits(checkpoints.restore("best", like=fresh())) == bits(at(1, seed=1))
        last = checkpoints.restore("last", like=fresh())
        outcomes.append(int(last.step))
        assert bits(last) == bits(at(outcomes[-1], seed=outcomes[-1]))
        assert len(names(folder)) == 2
        checkpoints.save(at(4, seed=4), 0.5)
        assert bits(Checkpoints(folder).restore("best", like=fresh())) == bits(at(4, seed=4))
        assert len(names(folder)) == 1
    assert outcomes == sorted(outcomes)  # the old one, and from one moment on the new one
    assert set(outcomes) == {2, 3}


def test_advice_about_the_disk_is_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(1))
    for why, advice in (("barrier: names differ", False), ("No space left on device", True)):

        def fails(*args: Any, why: str = why, **options: Any) -> None:
            raise ValueError(why)

        monkeypatch.setattr(checkpoints._orbax, "save", fails)
        with pytest.raises(OSError, match=f"could not be saved \\({why}\\)") as caught:
            checkpoints.save(at(2))
        assert ("make room" in str(caught.value)) is advice
    assert checkpoints.last.step == 1


# ---- kill -9


SAVE_EVERY = 5


def goodness(step: int) -> float:
    """A validation loss that goes up and down, so that checkpoints are deleted in any order."""
    return float(np.round(2.0 + np.sin(0.7 * step) - 0.001 * step, 6))


def train_to_the_end(folder: str, steps: str) -> None:
    """Trains to the end, from the last checkpoint in `folder` if there is one."""
    checkpoints = Checkpoints(folder)
    state = fresh()
    if checkpoints.last is not None:
        state = checkpoints.restore("last", like=state)
    print("start", int(state.step))

    def save(state: train.TrainState) -> None:
        print("saving", int(state.step))
        saved = checkpoints.save(state, goodness(int(state.step)))
        print("saved", saved.step)

    state = train.fit(
        make(steps_per_call=3), state, data(), steps=int(steps), every=[(SAVE_EVERY, save)]
    )
    print("done", hashlib.sha256(b"".join(bits(state))).hexdigest())


def run_to_the_end(folder: Path, steps: int) -> tuple[int, str]:
    """The step from which it went on, and the checksum of all that training ended with."""
    with start_child(__file__, "train_to_the_end", folder, steps) as child:
        words = child.communicate()[0].split()
    assert child.returncode == 0
    assert (words[0], words[-2]) == ("start", "done")
    return int(words[1]), words[-1]


def kill(folder: Path, steps: int, aim: str, rng: random.Random) -> dict[str, int]:
    """Kills a child; returns the last step that it reported for each word."""
    with start_child(__file__, "train_to_the_end", folder, steps) as child:
        assert child.stdout is not None
        said = {"start": -1, "saving": 0, "saved": 0}
        saves = 0 if aim == "startup" else rng.randint(1, 8)
        while saves:
            word, number = child.stdout.readline().split()
            said[word] = int(number)
            saves -= word == "saving"
        time.sleep(rng.uniform(0.0, {"save": 0.05, "anywhere": 0.2, "startup": 2.0}[aim]))
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines():
            word, number = line.split()
            said[word] = int(number)
    assert child.returncode == -signal.SIGKILL
    return said


def kill_and_resume(folder: Path, steps: int, aims: list[str], rng: random.Random) -> None:
    _, expected = run_to_the_end(folder / "never stopped", steps)
    folder /= "killed"
    on_disk = during_a_save = 0
    for aim in aims:
        said = kill(folder, steps, aim, rng)
        assert said["start"] in (-1, on_disk)  # -1: killed before it could say so
        checkpoints = Checkpoints(folder, read_only=True)
        if checkpoints.last is not None:
            assert max(on_disk, said["saved"]) <= checkpoints.last.step
            assert checkpoints.last.step <= max(on_disk, said["saving"])
            on_disk = checkpoints.last.step
            best = min(range(SAVE_EVERY, on_disk + 1, SAVE_EVERY), key=goodness)
            assert checkpoints.best.step == best
            for which, step in (("last", on_disk), ("best", best)):
                assert int(checkpoints.restore(which, like=fresh()).step) == step
        during_a_save += said["saving"] > said["saved"]
        print(f"{aim:8} {said} on disk: {on_disk}, {names(folder) if folder.exists() else []}")
    start, got = run_to_the_end(folder, steps)
    assert start == on_disk > 0
    assert got == expected
    assert len(names(folder)) == len({Checkpoints(folder).last, Checkpoints(folder).best})
    print(f"killed {len(aims)} times, {during_a_save} of them during a save")
    assert during_a_save >= len(aims) // 5


def test_killed_twice(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 100, ["save", "save"], random.Random(1))


@pytest.mark.slow
def test_killed_at_22_random_moments(tmp_path: Path) -> None:
    rng = random.Random(2)
    aims = ["save"] * 11 + ["anywhere"] * 8 + ["startup"] * 3
    rng.shuffle(aims)
    kill_and_resume(tmp_path, 2000, aims, rng)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
