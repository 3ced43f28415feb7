"""Tables larger than memory: a CSV file as a mapped array, written in pieces.

names = encode("large.csv", "large.npy")
table = numpy.load("large.npy", mmap_mode="r")  # [N, C]; a slice of it reads that slice
batches = rnn_jax.tasks.batches.Batches(windows, size=64)  # for rnn_jax.train.fit, as its data
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rnn_jax.tasks.text_file import Progress, StrPath

_PIECE = 1 << 22  # bytes that are in memory at a time
_UNKNOWN = 1 << 60  # stands for the number of rows until it is known; as wide a header


def encode(
    path: StrPath,
    target: StrPath,
    *,
    delimiter: str = ",",
    progress: Progress | None = None,
) -> list[str]:
    """Writes the numbers of a CSV file as a float32 [N, C] .npy file, piece by piece.

    An empty field, and NA, is NaN. The file appears when it is whole.

    Args:
      path: UTF-8 text, a row a line, all of the same number of fields; the first line may name
        the columns. Empty lines are left out.
      target: the file to write; one that is there is replaced.
      delimiter: between two fields.
      progress: called with the bytes read so far and in all.

    Returns:
      The C names of the columns; "0", "1", ... where the first line has none.

    Raises:
      OSError: the table cannot be read or the target cannot be written.
      ValueError: a field is no number, or a line has another number of fields; it says which line.
        Or there is no row.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     table = Path(folder) / "table.csv"
      ...     _ = table.write_text("year,spots\\n1700,5\\n1701,\\n")
      ...     names = encode(table, Path(folder) / "table.npy")
      ...     print(names, np.load(Path(folder) / "table.npy", mmap_mode="r"))
      ['year', 'spots'] [[1700.    5.]
       [1701.   nan]]
    """
    path, target = Path(path), Path(target)
    if target.exists() and target.samefile(path):
        raise ValueError(f"target: got {target}, which is the table; choose another place")
    names, rows = _named(path, delimiter), 0
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(_UNKNOWN, len(names)))
            for first, lines in _pieces(path, progress):
                if first == 1 and names[0] != "0":
                    first, lines = 2, lines[1:]
                numbers = _numbers(path, first, lines, len(names), delimiter)
                file.write(numbers.tobytes())
                rows += len(numbers)
            file.seek(0)
            file.write(_header(rows, len(names)))
            file.flush()
            os.fsync(file.fileno())
        if not rows:
            raise ValueError(f"{path}: has no row of numbers, expected a table")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return names


def _named(path: Path, delimiter: str) -> list[str]:
    with path.open(encoding="utf-8-sig") as file:
        fields = [field.strip().strip('"') for field in file.readline().split(delimiter)]
    is_row = all(_number(field) is not None for field in fields)
    return [str(i) for i in range(len(fields))] if is_row else fields


def _number(field: str) -> float | None:
    """None for what is no number."""
    field = field.strip().strip('"')
    try:
        return float(field) if field not in ("", "NA") else float("nan")
    except ValueError:
        return None


def _pieces(path: Path, progress: Progress | None) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line of each piece, from 1, and its lines."""
    number, done = 1, 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while lines := file.readlines(_PIECE):
            done += sum(map(len, lines))
            text = b"".join(lines).decode("utf-8-sig" if number == 1 else "utf-8")
            yield number, text.splitlines()
            number += len(lines)
            if progress is not None:
                progress(done, size)


def _numbers(path: Path, first: int, lines: list[str], columns: int, delimiter: str) -> np.ndarray:
    """The rows of some lines, float32 [n, C]."""
    full = [line for line in lines if line.strip()]
    if not full:
        return np.zeros((0, columns), np.float32)
    with contextlib.suppress(ValueError):
        found = np.loadtxt(full, np.float32, delimiter=delimiter, comments=None, ndmin=2)
        if found.shape[1] == columns:
            return found
    rows = []
    for number, line in enumerate(lines, start=first):  # slower, and knows which line it is
        fields = line.split(delimiter)
        if not line.strip():
            continue
        if len(fields) != columns:
            raise ValueError(
                f"{path}: line {number} has {len(fields)} fields, expected {columns}, as the first"
            )
        row = [_number(field) for field in fields]
        if None in row:
            wrong = fields[row.index(None)].strip()
            raise ValueError(f"{path}: line {number} has {wrong[:40]!r}, expected a number")
        rows.append(row)
    return np.asarray(rows, np.float32).reshape(-1, columns)


def _header(rows: int, columns: int) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()
