"""Checkpoints: atomic, checked when they are read, the best and the last kept."""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rnn_jax import _leaves, _lock, processes

Tree = TypeVar("Tree")

# A checkpoint is a folder NUMBER-step-STEP with the arrays as orbax writes them, what they are
# (about.json) and the checksum of every file (checksums.json).
_SAVING, _DELETED = ".saving", ".deleted"  # suffixes of a folder while it comes and while it goes


class Saved(NamedTuple):
    """One checkpoint in a folder."""

    number: int  # counts the saves: training may go back to an earlier step, this does not
    step: int  # of the train state
    loss: float | None  # validation loss, if one was given and finite
    path: Path
    position: Any = None  # JSON, as it was given to `save`


class Checkpoints:
    """A folder that holds the last checkpoint and the best one.

    A save is atomic: killed at any moment, it leaves the earlier checkpoints as they were, and the
    next opening removes what is half done. Arrays come back to the bit, or not at all: the
    checksum of every file, the structure, shapes and dtypes are compared. One process at a time may
    write to a folder, from the opening until its last `Checkpoints` of the folder is gone; any
    number may read. Nothing is pickled.

    Processes that compute together (`jax.distributed`) make each call together. Process 0 alone
    reads and writes, so that the others need not see the folder, and an error of its is raised in
    all of them. What some number of processes or devices has saved, any other number restores.

    Args:
      folder: made if it is not there; any name that a folder may have.
      read_only: change nothing on disk, for a process that only generates or evaluates.

    Raises:
      OSError: the folder cannot be written, or another process writes to it.
      ValueError: a checkpoint in it cannot be read.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rnn_jax import train
      >>> state = train.init({"w": jnp.ones(3)}, None, optax.adam(0.1), jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints = Checkpoints(folder)
      ...     for step, loss in ((10, 2.0), (20, 1.5), (30, 1.75)):
      ...         saved = checkpoints.save(state._replace(step=jnp.int32(step)), loss)
      ...     best = checkpoints.restore("best", like=state)
      ...     print(checkpoints.last.step, checkpoints.best.step, best.step, best.params["w"])
      30 20 20 [1. 1. 1.]
    """

    def __init__(self, folder: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.folder = Path(folder).absolute()
        self._lock: _lock.FolderLock | None = None
        alone: Any = {
            "multiprocessing_options": ocp.options.MultiprocessingOptions(active_processes={0})
        }
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**alone), **alone)
        self._saved: list[Saved] = []
        self._know(processes.first(lambda: self._open(read_only)))

    @property
    def last(self) -> Saved | None:
        """The checkpoint that was saved last; None in an empty folder."""
        return self._saved[-1] if self._saved else None

    @property
    def best(self) -> Saved | None:
        """The checkpoint with the lowest loss, the earlier of equals; None if none has a loss."""
        known = [saved for saved in self._saved if saved.loss is not None]
        return min(known, key=lambda saved: (saved.loss, saved.number), default=None)

    def save(self, train_state: Any, loss: Any = None, *, position: Any = None) -> Saved:
        """Saves `train_state`; then deletes every checkpoint that is neither the last nor the best.

        Args:
          train_state: any pytree of arrays and numbers with a field or a key `step`, typed PRNG
            keys included: a `TrainState`, your own NamedTuple or dataclass, a dict. The steps of
            nets that are trained side by side, [K], are equal.
          loss: validation loss, a number; the lowest is the best. None, NaN or inf: never the best.
          position: what else belongs to this checkpoint, a JSON value, for example where an
            iterator over the data stands; `Saved.position` has it.

        Returns:
          The `Saved` checkpoint, which is on disk by then.

        Raises:
          TypeError: there is no `step`, or a leaf or the position cannot be stored.
          OSError: it could not be written, say because the disk is full.
        """
        step, position = _step(train_state), _json("position", position)
        arrays, leaves = _leaves.pack(train_state)
        loss = None if loss is None or not math.isfinite(loss) else float(loss)
        about = {"step": step, "loss": loss, "position": position, "arrays": leaves}
        self._know(processes.first(lambda: self._add(about, arrays)))
        return self._saved[-1]

    def restore(self, which: str = "last", *, like: Tree) -> Tree:
        """Reads a checkpoint back to the bit.

        Args:
          which: "last" or "best".
          like: what is expected: a train state, or ``jax.eval_shape(lambda: train.init(...))``,
            which costs no memory. Arrays go to the devices of `like` where it names any. A part
            that is None is not read: ``like=state._replace(opt_state=None, carry=None)`` gets the
            params whatever the optimizer was.

        Returns:
          The saved train state, in the structure of `like`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it has another structure, shape or dtype than `like`; or it is damaged.
        """
        arrays: dict[str, np.ndarray] = {}

        def read() -> list[_leaves.Entry]:
            entries, found = self._found(which, like)
            arrays.update(found)
            return entries

        entries = processes.first(read)
        arrays = _leaves.broadcast(arrays, entries)
        leaves, structure = jax.tree.flatten(like)
        pairs = zip(entries, leaves, strict=True)
        restored = [_leaves.unpack(arrays, entry, leaf) for entry, leaf in pairs]
        return jax.tree.unflatten(structure, restored)

    def _know(self, rows: list[Any]) -> None:
        """What process 0 has told of all checkpoints."""
        self._saved = [
            Saved(number, step, loss, self.folder / name, position)
            for number, step, loss, name, position in rows
        ]

    def _told(self) -> list[Any]:
        return [(*saved[:3], saved.path.name, saved.position) for saved in self._saved]

    def _open(self, read_only: bool) -> list[Any]:
        if not read_only:
            self._make_writable()
        self._look()
        if not read_only:
            self._forget_all_but_best_and_last()
        return self._told()

    def _add(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[Any]:
        self._check_writable()
        self._look()
        number = (self.last.number if self.last else 0) + 1
        self._remove_leftovers()
        try:
            path = self._write({"number": number} | about, arrays)
        except Exception as error:  # orbax and tensorstore raise in their own ways
            why = str(error).split(" [tensorstore_spec")[0]
            full = re.search("no space|too large|quota", why, re.IGNORECASE)
            raise OSError(
                f"{self.folder}: step {about['step']} could not be saved ({why}). The earlier "
                "checkpoints are as they were"
                + ("; make room on the disk, or choose another folder." if full else ".")
            ) from error
        self._saved.append(_saved(about | {"number": number}, path))
        self._forget_all_but_best_and_last()
        return self._told()

    def _found(self, which: str, like: Any) -> tuple[list[_leaves.Entry], dict[str, np.ndarray]]:
        """What is stored of each leaf of `like`, and the arrays."""
        path = self._pick(which).path
        entries = _leaves.match(path, _read_about(path)["arrays"], like)
        _check_files(path)
        wanted = {entry["number"]: 0 for entry in entries if math.prod(entry["stored"][1])}
        return entries, self._read(path, wanted) if wanted else {}

    def _write(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
        name = f"{about['number']:06d}-step-{about['step']}"
        saving = self.folder / f"{name}{_SAVING}"
        saving.mkdir()
        if arrays:  # orbax takes no empty tree
            with _plain(self.folder) as folder:
                self._orbax.save(folder / saving.name / "arrays", args=ocp.args.PyTreeSave(arrays))
        (saving / "about.json").write_text(json.dumps(about))
        (saving / "checksums.json").write_text(json.dumps(_sync(saving)))
        return saving.rename(saving.with_suffix(""))  # from here on it exists

    def _read(self, path: Path, wanted: dict[str, int]) -> dict[str, np.ndarray]:
        args = ocp.args.PyTreeRestore(wanted, partial_restore=True)
        with _plain(self.folder) as folder:
            return self._orbax.restore(folder / path.name / "arrays", args=args)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self.folder}: was opened with read_only=True, so nothing is saved")
        if not self._lock.held:
            raise OSError(
                f"{self.folder}: was opened for writing by the process from which this one was "
                "forked, and only that one may save. Save there, or choose another folder here."
            )

    def _make_writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            self._lock = _lock.hold(self.folder)
            self._remove_leftovers()
        except BlockingIOError:  # another process has the lock
            raise
        except OSError as error:
            raise type(error)(
                f"{self.folder}: no checkpoint can be written here ({error}). Choose another "
                "folder or make this one writable."
            ) from error

    def _remove_leftovers(self) -> None:
        for suffix in (_SAVING, _DELETED):
            for leftover in self.folder.glob("*-step-*" + suffix):
                shutil.rmtree(leftover, ignore_errors=True)

    def _look(self) -> None:
        """Sees what other objects, in this process and for a reader in others, have saved since."""
        known, found = {saved.path: saved for saved in self._saved}, []
        for path in self.folder.glob("*-step-*"):
            if re.fullmatch(r"\d+-step-\d+", path.name):
                try:
                    found.append(known.get(path) or _read_saved(path))
                except ValueError:
                    if path.exists():
                        raise
                    # else the process that writes here has just deleted it
        self._saved = sorted(found, key=lambda saved: saved.number)

    def _forget_all_but_best_and_last(self) -> None:
        keep = (self.best, self.last)
        for saved in [saved for saved in self._saved if saved not in keep]:
            gone = saved.path.rename(saved.path.with_suffix(_DELETED))  # so it goes as a whole
            shutil.rmtree(gone)
            self._saved.remove(saved)

    def _pick(self, which: str) -> Saved:
        if which not in ("last", "best"):
            raise ValueError(f'which: got {which!r}, expected "last" or "best"')
        self._look()
        saved = self.last if which == "last" else self.best
        if saved is None:
            loss = "" if which == "last" else " with a finite loss"
            raise FileNotFoundError(
                f"{self.folder}: there is no {which} checkpoint in this folder. Expected one that "
                f"Checkpoints.save has written to{loss}."
            )
        return saved


def _sync(folder: Path) -> dict[str, int]:
    """Waits until every file is on the disk; returns the checksum of each by its relative path."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sums[path.relative_to(folder).as_posix()] = zlib.crc32(file.read())
    return sums


def _read_about(path: Path) -> dict[str, Any]:
    _check_files(path, ["about.json"])
    return json.loads((path / "about.json").read_text())


def _read_saved(path: Path) -> Saved:
    return _saved(_read_about(path), path)


def _saved(about: dict[str, Any], path: Path) -> Saved:
    return Saved(about["number"], about["step"], about["loss"], path, about.get("position"))


def _check_files(path: Path, names: Iterable[str] | None = None) -> None:
    """Raises if one of the files, by default any, is not what was saved."""
    name = "checksums.json"
    try:
        expected = json.loads((path / name).read_text())
        for name in expected if names is None else names:
            got = zlib.crc32((path / name).read_bytes())
            if got != expected[name]:
                raise ValueError(f"its checksum is {got:08x}, expected {expected[name]:08x}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, name, error) from error


def _damaged(path: Path, name: str, problem: Any) -> ValueError:
    return ValueError(
        f"{path}: this checkpoint is damaged and was not loaded ({name}: {problem}). Move its "
        "folder away to use the other checkpoint beside it, if there is one, or train anew."
    )


def _step(tree: Any) -> int:
    """The number of updates so far; nets side by side have one each."""
    is_dict = isinstance(tree, Mapping)
    step = tree.get("step") if is_dict else getattr(tree, "step", None)
    kind = f"{type(tree).__name__} with {list(tree)}" if is_dict else type(tree).__name__
    if step is None:
        raise TypeError(
            f"train_state: got {kind}, expected a pytree with a field or a key `step`, the number "
            "of updates so far: a TrainState, another NamedTuple or dataclass, or a dict."
        )
    is_array = isinstance(step, jax.Array | np.ndarray | np.generic)
    if type(step) is not int and not (is_array and jnp.issubdtype(step.dtype, np.integer)):
        got = " ".join(repr(step).split())[:80]
        raise TypeError(f"step: got {got} in {kind}, expected an integer or integers")
    distinct = np.unique(np.asarray(step))
    if len(distinct) != 1 or distinct[0] < 0:
        raise ValueError(
            f"step: got {distinct} in {kind}, expected one number of updates, 0 or more; nets that "
            "are trained side by side are at the same step."
        )
    return int(distinct[0])


def _json(name: str, value: Any) -> Any:
    """A copy of a value that JSON keeps as it is."""
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
        if copy != value:
            raise ValueError(f"it would come back as {copy!r:.80}")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: got {value!r:.80}, expected a JSON value ({error}): None, booleans, numbers, "
            "strings, lists, and dicts with strings as keys."
        ) from error
    return copy


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """`folder` by a path that orbax takes: in [ ] * ? \\ : it sees more than characters."""
    if re.fullmatch(r"[\w/ .,=+-]*", folder.relative_to(folder.anchor).as_posix()):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(folder, target_is_directory=True)
        yield link
