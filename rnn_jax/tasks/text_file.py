"""Text larger than memory: a file of its tokens, written in pieces, and streams read from that.

scanned = scan("large.txt")
tokens = encode("large.txt", "large.npy", scanned)
train, held_out = tokens.part(0, 9 * len(tokens) // 10), tokens.read(9 * len(tokens) // 10)
windows = Streams(train, batch=64, window=128)  # for rnn_jax.train.fit, as its data
"""

import codecs
import contextlib
import copy
import hashlib
import io
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rnn_jax import _checks
from rnn_jax.tasks.batches import Positioned, part_of
from rnn_jax.tasks.text import Vocabulary, code_points, not_utf8

StrPath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int], Any]  # bytes of the text so far, and in all

_PIECE = 1 << 22  # bytes that are in memory at a time
_DTYPES = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<i4"))


class Scanned(NamedTuple):
    """What there is to know of a text before it is encoded."""

    vocabulary: Vocabulary
    length: int  # characters
    sha256: str  # of the text in UTF-8: hashlib.sha256(read_text(path).encode()).hexdigest()


def scan(path: StrPath, *, progress: Progress | None = None) -> Scanned:
    """Reads a UTF-8 file once, by the rules of `rnn_jax.tasks.text.read_text`, piece by piece.

    Args:
      path: one file of any size.
      progress: called with the bytes read so far and in all.

    Raises:
      OSError: it cannot be read.
      ValueError: not UTF-8, or fewer than two distinct characters.
    """
    seen, known = np.zeros(0x110000, bool), b""
    length, digest = 0, hashlib.sha256()
    for text in _pieces(path, progress):
        raw = text.encode()
        digest.update(raw)
        length += len(text)
        if text.isascii():  # several times as fast
            new = sorted(set(raw.translate(None, known)))
            known += bytes(new)
            seen[new] = True
        else:
            seen[code_points(text)] = True
    if not length:
        raise ValueError(f"{path}: is empty, expected text")
    characters = "".join(map(chr, np.flatnonzero(seen)))
    return Scanned(Vocabulary(characters), length, digest.hexdigest())


def encode(
    path: StrPath, target: StrPath, scanned: Scanned, *, progress: Progress | None = None
) -> "TokenFile":
    """Writes the tokens of a text, a one-dimensional .npy file, piece by piece.

    A token takes 1 byte for up to 256 characters in the vocabulary, 2 for up to 65,536, else 4.
    The file appears when it is whole.

    Args:
      path: the text.
      target: the file to write; one that is there is replaced.
      scanned: what `scan` found; ``scanned._replace(vocabulary=...)`` to encode by that of another
        text.
      progress: called with the bytes read so far and in all.

    Raises:
      OSError: the text cannot be read or the tokens cannot be written.
      ValueError: a character is not in the vocabulary, or the text is not the one scanned.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     text = Path(folder) / "text.txt"
      ...     _ = text.write_text("hello world")
      ...     scanned = scan(text)
      ...     tokens = encode(text, Path(folder) / "tokens.npy", scanned)
      ...     inputs, targets = next(Streams(tokens, batch=2, window=4))
      ...     print(scanned.length, len(tokens), tokens.dtype)
      ...     print([scanned.vocabulary.decode(stream) for stream in inputs.T])
      11 11 uint8
      ['hell', ' wor']
    """
    target = Path(target)
    if target.exists() and target.samefile(path):
        raise ValueError(f"target: got {target}, which is the text; choose another place")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")  # another process may write too
    dtype = next(d for d in _DTYPES if len(scanned.vocabulary) <= np.iinfo(d).max + 1)
    tokens_of, position, digest = _encoder(path, scanned.vocabulary, dtype), 0, hashlib.sha256()
    try:
        with _says_where(target), part.open("wb") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (scanned.length,)}
            np.lib.format.write_array_header_1_0(file, header)
            for text in _pieces(path, progress):
                file.write(tokens_of(text, position))
                digest.update(text.encode())
                position += len(text)
            file.flush()
            os.fsync(file.fileno())
        if (position, digest.hexdigest()) != (scanned.length, scanned.sha256):
            raise ValueError(f"{path}: is not the text that was scanned; scan it again")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return TokenFile(target)


def cached(
    path: StrPath, folder: StrPath, *, progress: Progress | None = None
) -> tuple[Scanned, "TokenFile"]:
    """`scan`, and `encode` into a folder, unless the tokens of this text are there already.

    Args:
      path: the text.
      folder: made if it is not there; the name of the file in it is the sha256 of the text.
      progress: as in `scan` and `encode`, for one after the other.

    Raises:
      OSError, ValueError: as `scan` and `encode`.
    """
    scanned = scan(path, progress=progress)
    target = Path(folder) / f"{scanned.sha256}.npy"
    if target.exists():
        with contextlib.suppress(ValueError):  # damaged: written again
            tokens = TokenFile(target)
            if len(tokens) == scanned.length:
                return scanned, tokens
    target.parent.mkdir(parents=True, exist_ok=True)
    return scanned, encode(path, target, scanned, progress=progress)


class TokenFile:
    """Tokens in a file that `encode` wrote, or a part of them, read when they are asked for.

    Any one-dimensional .npy file of uint8, uint16 or int32 will do.

    Attributes:
      path: the file.
      dtype: of the tokens in it.

    Raises:
      OSError: it cannot be read.
      ValueError: it is something else, or cut short.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            self.dtype, length = _header(self.path, file)
            self._offset = file.tell()
            self._file = _Open(os.dup(file.fileno()))
        self._start, self._stop = 0, length

    def __len__(self) -> int:
        return self._stop - self._start

    def part(self, start: int = 0, stop: int | None = None) -> "TokenFile":
        """The tokens from `start` to before `stop` as a `TokenFile` of their own."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ValueError(
                f"part: got {start} to {stop}, expected 0 <= start <= stop <= {len(self)}"
            )
        found = copy.copy(self)
        found._start, found._stop = self._start + start, self._start + stop
        return found

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The tokens from `start` to before `stop`, an array of the file's dtype, in memory."""
        part = self.part(start, stop)
        tokens = np.empty(len(part), self.dtype)
        part.read_into(tokens, 0)
        return tokens

    def __getitem__(self, where: slice) -> np.ndarray:
        """``tokens[start:stop]``, read into memory, as of an array."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"got a step of {step}, expected start:stop; read a part, then slice")
        return self.read(start, max(start, stop))

    def read_into(self, tokens: np.ndarray, start: int) -> None:
        """Fills an array with the tokens from `start` on; several threads may at once."""
        left = tokens.view(np.uint8).data
        at = self._offset + (self._start + start) * self.dtype.itemsize
        while len(left):
            done = os.preadv(self._file.number, [left], at)
            if not done:
                raise ValueError(f"{self.path}: became shorter while it was read")
            left, at = left[done:], at + done


class Streams(Positioned):
    """Windows of contiguous streams from a file: `rnn_jax.tasks.text.streams` for any size.

    An iterator without an end. Window number `step` is ``streams(tokens, step, batch=batch,
    window=window)``, to the bit. Nothing is kept in memory but one batch.

    Args:
      tokens: at least `window` of them.
      batch: B, the number of streams.
      window: W.
      part: ``(i, n)`` for process i of n that compute together: it reads the streams of its part,
        B / n of them, as ``make_train(mesh=)`` takes them with ``batch_axes=1``. The position is
        the same in all, and good for any n.

    Returns:
      From ``next``: ``(inputs, targets)``, each int32 [W, B / n], NumPy.

    Raises:
      ValueError: a size is not positive, or there are fewer tokens than a window has; or the
        streams cannot be split into n equal parts.
    """

    def __init__(
        self, tokens: TokenFile, *, batch: int, window: int, part: tuple[int, int] = (0, 1)
    ) -> None:
        B = _checks.positive_int("batch", batch)
        W = _checks.positive_int("window", window)
        if len(tokens) < W:
            raise ValueError(
                f"tokens: got {len(tokens)}, expected at least {W}, one window. Take a longer text "
                "or a shorter window."
            )
        super().__init__(batch=B, window=W, length=len(tokens))
        self.tokens = tokens
        self._mine = range(B)[part_of(B, part)]

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Window number `step`, from 0; the position stays."""
        B, W, L = self._sizes.values()
        rows = np.empty((len(self._mine), W + 1), self.tokens.dtype)
        for b, row in zip(self._mine, rows, strict=True):
            start = (b * L // B + step * W) % L
            before_the_end = min(W + 1, L - start)
            self.tokens.read_into(row[:before_the_end], start)
            self.tokens.read_into(row[before_the_end:], 0)
        windows = np.ascontiguousarray(rows.T, np.int32)
        return windows[:-1], windows[1:]


class _Open:
    """An open file, which is closed when nothing refers to it any more."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


def _pieces(path: StrPath, progress: Progress | None) -> Iterator[str]:
    """The text without its byte order mark and with \\n at the end of each line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    done, mark = 0, "\ufeff"
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            raw = file.read(_PIECE)
            before = done - len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error, before) from error
            if text:
                text, mark = text.removeprefix(mark), ""
            yield line_ends.decode(text, final=not raw)
            if not raw:
                return
            done += len(raw)
            if progress is not None:
                progress(done, size)


def _encoder(
    path: StrPath, vocabulary: Vocabulary, dtype: np.dtype
) -> Callable[[str, int], memoryview | bytes]:
    """``(text, position of the text) -> tokens as bytes``."""
    known = code_points(vocabulary.characters)
    table = np.full(0x110000, -1, np.int32)
    table[known] = np.arange(len(known))
    ascii_known = bytes(known[known < 128].tolist())
    ascii_table = table[:256].astype(np.uint8).tobytes()

    def tokens_of(text: str, position: int) -> memoryview | bytes:
        if dtype.itemsize == 1 and text.isascii():  # several times as fast
            raw = text.encode()
            if not raw.translate(None, ascii_known):
                return raw.translate(ascii_table)
        tokens = table[code_points(text)]
        if tokens.size and tokens.min() < 0:
            first = int(np.argmin(tokens >= 0))
            raise ValueError(
                f"{path}: got the character {text[first]!r} at position {position + first}, "
                f"expected one of the {len(vocabulary)} of the vocabulary"
            )
        return tokens.astype(dtype).data

    return tokens_of


@contextlib.contextmanager
def _says_where(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # it says so itself
            raise
        raise OSError(
            f"{target}: the tokens could not be written ({error}). Make room on the disk, or "
            "choose another place."
        ) from error


def _header(path: Path, file: io.BufferedReader) -> tuple[np.dtype, int]:
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ValueError(f"{path}: is no file of tokens, as encode writes it ({error})") from error
    if dtype not in _DTYPES or len(shape) != 1:
        raise ValueError(
            f"{path}: got {dtype}{list(shape)}, expected tokens: [L] of uint8, uint16 or int32"
        )
    bytes_there = os.fstat(file.fileno()).st_size - file.tell()
    if bytes_there != shape[0] * dtype.itemsize:
        raise ValueError(
            f"{path}: is damaged: got {bytes_there} bytes of tokens, expected "
            f"{shape[0] * dtype.itemsize}. Write it again."
        )
    return dtype, shape[0]
