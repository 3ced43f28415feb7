"""Checkpoints: atomic, checked when they are read, the best and the last kept."""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rnn_jax.train import TrainState

# A checkpoint is a folder NUMBER-step-STEP with the arrays as orbax writes them, what they are
# (about.json) and the checksum of every file (checksums.json).
_SAVING, _DELETED = ".saving", ".deleted"  # suffixes of a folder while it comes and while it goes


class Saved(NamedTuple):
    """One checkpoint in a folder."""

    number: int  # counts the saves: training may go back to an earlier step, this does not
    step: int  # of the train state
    loss: float | None  # validation loss, if one was given and finite
    path: Path


class Checkpoints:
    """A folder that holds the last checkpoint and the best one.

    A save is atomic: killed at any moment, it leaves the earlier checkpoints as they were, and the
    next opening removes what is half done. Arrays come back to the bit, or not at all: the
    checksum of every file, the structure, shapes and dtypes are compared. One process may write to
    a folder, any number may read. Nothing is pickled.

    Args:
      folder: made if it is not there.
      read_only: change nothing on disk, for a process that only generates or evaluates.

    Raises:
      OSError: the folder cannot be written.
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
        self._read_only = read_only
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        if not read_only:
            self._make_writable()
        self._saved = self._find()
        if not read_only:
            self._forget_all_but_best_and_last()

    @property
    def last(self) -> Saved | None:
        """The checkpoint that was saved last; None in an empty folder."""
        return self._saved[-1] if self._saved else None

    @property
    def best(self) -> Saved | None:
        """The checkpoint with the lowest loss, the earlier of equals; None if none has a loss."""
        known = [saved for saved in self._saved if saved.loss is not None]
        return min(known, key=lambda saved: (saved.loss, saved.number), default=None)

    def save(self, train_state: TrainState, loss: Any = None, position: Any = None) -> Saved:
        """Saves `train_state`; then deletes every checkpoint that is neither the last nor the best.

        Args:
          train_state: any pytree of arrays with a field `step`, typed PRNG keys included.
          loss: validation loss, a number; the lowest is the best. None, NaN or inf: never the best.

        Returns:
          The `Saved` checkpoint, which is on disk by then.

        Raises:
          OSError: it could not be written, say because the disk is full.
        """
        if self._read_only:
            raise ValueError(f"{self.folder}: was opened with read_only=True, so nothing is saved")
        self._remove_leftovers()
        arrays, leaves = _pack(train_state)
        loss = None if loss is None or not math.isfinite(loss) else float(loss)
        number, step = (
            (self.last.number if self.last else 0) + 1,
            int(np.ravel(train_state.step)[0]),
        )
        saving = self.folder / f"{number:06d}-step-{step}{_SAVING}"
        try:
            saving.mkdir()
            self._orbax.save(saving / "arrays", args=ocp.args.PyTreeSave(arrays))
            about = {"number": number, "step": step, "loss": loss, "arrays": leaves}
            (saving / "about.json").write_text(json.dumps(about))
            (saving / "checksums.json").write_text(json.dumps(_sync(saving)))
            path = saving.rename(saving.with_suffix(""))  # from here on it exists
        except Exception as error:  # orbax and tensorstore raise in their own ways
            why = str(error).split(" [tensorstore_spec")[0]
            raise OSError(
                f"{self.folder}: step {step} could not be saved ({why}). The earlier "
                "checkpoints are as they were; make room on the disk, or choose another folder."
            ) from error
        self._saved.append(Saved(number, step, loss, path))
        self._forget_all_but_best_and_last()
        return self._saved[-1]

    def restore(self, which: str = "last", *, like: TrainState) -> TrainState:
        """Reads a checkpoint back to the bit.

        Args:
          which: "last" or "best".
          like: what is expected: a train state, or ``jax.eval_shape(lambda: train.init(...))``,
            which costs no memory. Arrays go to the devices of `like` where it names any.

        Returns:
          The saved train state, in the structure of `like`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it has another structure, shape or dtype than `like`; or it is damaged.
        """
        saved = self._pick(which)
        about = {entry["path"]: entry for entry in _read_about(saved.path)["arrays"]}
        leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
        about = {p: e for p, e in about.items() if p in leaves}
        _check_alike(saved.path, about, leaves)
        _check_files(saved.path)
        arrays = self._orbax.restore(saved.path / "arrays", args=ocp.args.PyTreeRestore())
        restored = [_unpack(arrays, about[path], leaf) for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(like), restored)

    def _make_writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            self._remove_leftovers()
        except OSError as error:
            raise type(error)(
                f"{self.folder}: no checkpoint can be written here ({error}). Choose another "
                "folder or make this one writable."
            ) from error

    def _remove_leftovers(self) -> None:
        for suffix in (_SAVING, _DELETED):
            for leftover in self.folder.glob("*-step-*" + suffix):
                shutil.rmtree(leftover, ignore_errors=True)

    def _find(self) -> list[Saved]:
        found = []
        for path in self.folder.glob("*-step-*"):
            if re.fullmatch(r"\d+-step-\d+", path.name):
                try:
                    about = _read_about(path)
                except ValueError:
                    if not path.exists():  # the process that writes here has just deleted it
                        continue
                    raise
                found.append(Saved(about["number"], about["step"], about["loss"], path))
        return sorted(found)

    def _forget_all_but_best_and_last(self) -> None:
        keep = (self.best, self.last)
        for saved in [saved for saved in self._saved if saved not in keep]:
            gone = saved.path.rename(saved.path.with_suffix(_DELETED))  # so it goes as a whole
            shutil.rmtree(gone)
            self._saved.remove(saved)

    def _pick(self, which: str) -> Saved:
        if which not in ("last", "best"):
            raise ValueError(f'which: got {which!r}, expected "last" or "best"')
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


def _pack(tree: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays by number, as orbax takes them, and for each leaf what it was."""
    arrays, about = {}, []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        is_key = _is_key(leaf)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        entry: dict[str, Any] = {"path": _name(path), "looks": _looks(leaf), "number": str(number)}
        entry["stored"] = [str(array.dtype), list(array.shape)]
        entry["prng"] = str(jax.random.key_impl(leaf)) if is_key else None
        about.append(entry)
        if array.size:  # orbax takes no empty array
            arrays[str(number)] = array
    return arrays, about


def _unpack(arrays: dict[str, np.ndarray], entry: dict[str, Any], like: Any) -> Any:
    dtype, shape = entry["stored"]
    array = arrays[entry["number"]] if math.prod(shape) else np.zeros(shape, dtype)
    committed = getattr(like, "committed", True)
    place = getattr(like, "sharding", None) if committed else None
    if entry["prng"] is None:
        return jax.device_put(array, place, may_alias=False)
    key = jax.random.wrap_key_data(jax.device_put(array, may_alias=False), impl=entry["prng"])
    return key if place is None else jax.device_put(key, place)


def _check_alike(path: Path, about: dict[str, Any], leaves: dict[str, Any]) -> None:
    for where in [*leaves, *about]:
        got = about[where]["looks"] if where in about else "nothing"
        expected = _looks(leaves[where]) if where in leaves else "nothing"
        if got != expected:
            raise ValueError(
                f"{where}: got {got} in the checkpoint {path}, expected {expected}. It belongs to "
                "another model or optimizer: build the one that it was saved with, or start a new "
                "run."
            )


def _name(path: Any) -> str:
    return "train_state" + jax.tree_util.keystr(path)


def _looks(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
