"""Checkpoints: to the bit, checked, atomic under kill -9; the best and the last are kept."""

import hashlib
import itertools
import json
import random
import re
import resource
import shutil
import signal
import sys
import time
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
    return sorted(path.name for path in folder.iterdir())


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
        (but(carry=None), r"^train_state.carry: got float32\[2, 4\] in .*, expected nothing"),
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
    {"train_to_the_end": train_to_the_end, "fill_the_disk": fill_the_disk}[sys.argv[1]](
        *sys.argv[2:]
    )
