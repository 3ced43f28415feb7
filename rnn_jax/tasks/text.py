"""Text: reading it, characters to tokens and back, contiguous streams."""

import ast
import json
import os
import sysconfig
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import _checks
from rnn_jax._types import Array, Cell, Params, State, wide
from rnn_jax.tasks.batches import laps
from rnn_jax.tasks.batches import pad as pad
from rnn_jax.unroll import unroll


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows; token i is ``characters[i]``.

    Attributes:
      characters: distinct characters in the order of their code points.

    Raises:
      ValueError: fewer than two characters, or not distinct and in order.

    Example:
      >>> vocabulary = Vocabulary.from_text("hello")
      >>> print(vocabulary.characters, vocabulary.encode("hole"), len(vocabulary))
      ehlo [1 3 2 0] 4
      >>> vocabulary.decode([1, 0, 2, 3])
      'helo'
    """

    characters: str

    def __post_init__(self) -> None:
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError(
                f"characters: got {self.characters[:50]!r}, expected distinct characters in the "
                "order of their code points, as Vocabulary.from_text makes them"
            )
        if len(self.characters) < 2:
            raise ValueError(
                f"text: got only {self.characters!r}, expected at least two distinct characters; "
                "otherwise there is nothing to predict"
            )

    @classmethod
    def from_text(cls, text: str) -> "Vocabulary":
        """The distinct characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Characters to tokens, int32 [T]; a character that is unknown raises ValueError."""
        known, points = code_points(self.characters), code_points(text)
        tokens = np.searchsorted(known, points).clip(max=len(known) - 1)
        unknown = np.flatnonzero(known[tokens] != points)
        if unknown.size:
            raise ValueError(
                f"text: got the character {text[unknown[0]]!r} at position {unknown[0]}, expected "
                f"one of the {len(self)} of the vocabulary: {self.characters!r}"
            )
        return tokens.astype(np.int32)

    def decode(self, tokens: Any) -> str:
        """Tokens, integers [T], to characters."""
        tokens = np.asarray(tokens)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(self)):
            raise ValueError(f"tokens: got one outside 0 to {len(self) - 1}: {tokens}")
        return "".join(self.characters[t] for t in tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        Path(path).write_text(json.dumps({"characters": self.characters}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` wrote; ValueError if it is something else."""
        try:
            characters = json.loads(Path(path).read_text(encoding="utf-8"))["characters"]
            return cls("".join(characters))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a vocabulary as Vocabulary.save writes it") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a UTF-8 file, or all UTF-8 files of a folder and its folders, by name.

    Line ends become ``\\n`` and a byte order mark is dropped. In a folder, hidden files and folders
    are left out, and so, with a warning, are files that are not UTF-8.

    Raises:
      OSError: the path is missing or cannot be read.
      ValueError: not UTF-8, no character, or no text file in the folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (Path(folder) / "b.txt").write_text("world")
      ...     _ = (Path(folder) / "a.txt").write_text("hello ")
      ...     print(read_text(folder))
      hello world
    """
    path = Path(path)
    text = _read_folder(path) if path.is_dir() else _read_file(path)
    if not text:
        raise ValueError(f"{path}: is empty, expected text")
    return text


def standard_library_text(*, docstrings: bool = False) -> str:
    """The source code of the running Python's standard library, as a text to learn from.

    The pure ASCII files, one after the other in the order of their names, without tests, tables,
    and what was generated for the machine: about 8 million characters. It differs between
    versions of Python.

    Args:
      docstrings: only what the modules, classes and functions say of themselves, in the order of
        the source: prose, about 1.6 million characters.

    Raises:
      ValueError: this Python keeps its library elsewhere than in files.

    Example:
      >>> text = standard_library_text()
      >>> print(len(text) > 1_000_000, "def __init__(self" in text)
      True True
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in _files(root, leave_out=_NOT_LIBRARY):
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            content = path.read_bytes()
            if content.isascii():
                source = content.decode("ascii").replace("\r\n", "\n")
                texts.append(_docstrings(source) if docstrings else source)
    text = "".join(texts)
    if not text:
        raise ValueError(f"{root}: this Python has no source files there; give a text of your own")
    return text


def _docstrings(source: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "".join(f"{text}\n" for text in found if text)


def streams(tokens: Array, step: Any, *, batch: int, window: int) -> tuple[Array, Array]:
    """Window number `step` of contiguous streams, for truncated BPTT with a carried state.

    The tokens form a circle. Stream b starts at ``b * L // batch`` and reads on for ever, `window`
    tokens at a step, so nothing is dropped and the position follows from `step` alone.

    Args:
      tokens: [L] int.
      step: [] int, may be traced.
      batch: B, the number of streams.
      window: W, at most L.

    Returns:
      ``(inputs, targets)``, each [W, B]: time first, as `jax.lax.scan` wants it, so that nothing
      need be transposed (``jax.vmap(..., in_axes=1, out_axes=1)``). The targets are one token
      ahead.

    Raises:
      ValueError: a size is not positive, or the text is shorter than a window.

    Example:
      >>> inputs, targets = streams(jnp.arange(10), 1, batch=2, window=3)
      >>> print(inputs.T, targets.T)
      [[3 4 5]
       [8 9 0]] [[4 5 6]
       [9 0 1]]
    """
    B = _checks.positive_int("batch", batch)
    W = _checks.positive_int("window", window)
    L = tokens.shape[0]
    if L < W:
        raise ValueError(
            f"tokens: got {L}, expected at least {W}, one window. Take a longer text or a shorter "
            "window."
        )
    starts = jnp.asarray(np.arange(B) * L // B, jnp.uint32)  # in NumPy: B * L exceeds 32 bits
    position = laps(step, W, L)[1]  # and so does step * W, after long training
    offsets = jnp.arange(W + 1, dtype=jnp.uint32) + position
    at = jax.lax.broadcast_in_dim(offsets, (W + 1, B), (0,))
    window_tokens = tokens[((at + starts[None, :]) % jnp.uint32(L)).astype(jnp.int32)]
    return window_tokens[:-1], window_tokens[1:]


def scored_streams(
    tokens: Any, context: int, *, batch: int, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows in which a language model is scored on every token behind a context, once each.

    The tokens behind the context are dealt out to `batch` streams, contiguous parts of equal
    length. A stream reads `context` tokens before its part, and its state is carried through all
    its windows, so that every token is predicted from at least so many before it.

    Args:
      tokens: [C + n] int.
      context: C, at least 1.
      batch: B, the number of streams; at most n are used.
      window: W, the number of steps between two borders, at which the state is handed on.

    Returns:
      ``(inputs, targets, scored)``, each [windows, W, B]: int32, int32, bool. Time stands before
      the streams, as in `streams`.

    Raises:
      ValueError: a size is not positive, or there is no token behind the context.

    Example:
      >>> inputs, targets, scored = scored_streams(np.arange(7), 2, batch=2, window=4)
      >>> for stream in range(2):
      ...     print(inputs[0, :, stream], targets[0, :, stream][scored[0, :, stream]])
      [0 1 2 3] [2 3 4]
      [3 4 5 6] [5 6]
    """
    C = _checks.positive_int("context", context)
    W = _checks.positive_int("window", window)
    tokens = np.asarray(tokens, np.int32)
    n = len(tokens) - C
    if n < 1:
        raise ValueError(f"tokens: got {len(tokens)}, expected more than the context, {C}")
    B = min(_checks.positive_int("batch", batch), n)
    S = -(-n // B)  # tokens that a stream scores
    t = np.arange(-(-(C + S - 1) // W) * W).reshape(-1, W, 1)
    at = t + np.arange(B) * S
    scored = (t + 1 >= C) & (t + 1 < C + S) & (at + 1 < C + n)
    return tokens[np.minimum(at, C + n - 1)], tokens[np.minimum(at + 1, C + n - 1)], scored


def surprisals(cell: Cell, params: Params, held_out: Any) -> Array:
    """How much each token of `scored_streams` surprises a language model.

    The state of each stream starts fresh and is carried through all its windows.

    Args:
      cell: a net that reads tokens [] int, and whose output is the logits [V] of the next one.
      params: its params.
      held_out: ``(inputs, targets, scored)``, what `scored_streams` returns.

    Returns:
      [windows, W, B] in float32 or wider: -log p(target), in nats; 0 where it is not scored. Their
      sum over ``scored.sum()`` is the loss, and its exponential the perplexity.

    Example:
      >>> from rnn_jax import gru, one_hot, readout
      >>> cell = readout(one_hot(gru(5, 4), 5), 5)
      >>> params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
      >>> held_out = scored_streams(np.arange(20) % 5, 4, batch=2, window=3)
      >>> nats = surprisals(cell, params, held_out)
      >>> print(f"{jnp.exp(nats.sum() / held_out[2].sum().astype(float)):.3f}")  # as good as chance
      5.000
    """

    def one(state: State, tokens: Array) -> tuple[State, Array]:
        return unroll(cell, params, state, tokens)

    def window(state: State, now: Any) -> tuple[State, Array]:
        inputs, targets, scored = now
        state, logits = jax.vmap(one, in_axes=(0, 1), out_axes=(0, 1))(state, inputs)
        logits = logits.astype(wide(logits.dtype))
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nats = jax.nn.logsumexp(logits, axis=-1) - chosen
        return state, jnp.where(scored, nats, 0.0)

    first = jax.vmap(lambda _: cell.init_state(params))(held_out[0][0, 0])
    return jax.lax.scan(window, first, held_out)[1]


_NOT_LIBRARY = {
    "encodings",
    "idle_test",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


def code_points(text: str) -> np.ndarray:
    """The characters as numbers, uint32 [T]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def not_utf8(
    path: str | os.PathLike[str], error: UnicodeDecodeError, before: int = 0
) -> ValueError:
    """What to say of a file that cannot be decoded; `before`: bytes before those in the error."""
    return ValueError(
        f"{path}: not UTF-8 (byte {before + error.start} is 0x{error.object[error.start]:02x}); "
        "convert it first, for example with iconv -t UTF-8"
    )


def _read_file(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_folder(folder: Path) -> str:
    texts, others = [], []
    for path in _files(folder):
        try:
            texts.append(_read_file(path))
        except ValueError:
            others.append(path.relative_to(folder))
    if not any(texts):
        raise ValueError(
            f"{folder}: no text in this folder ({len(texts) + len(others)} files, {len(others)} of "
            "them not UTF-8; hidden files do not count)"
        )
    if others:
        names = ", ".join(map(str, others[:3])) + (", ..." if len(others) > 3 else "")
        warnings.warn(f"{folder}: left out {len(others)} files, not UTF-8: {names}", stacklevel=3)
    return "".join(texts)


def _files(folder: Path, leave_out: Iterable[str] = ()) -> Iterable[Path]:
    """All files, in an order that depends on their names alone; no link to a folder is followed."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in leave_out and not f.startswith("."))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))
