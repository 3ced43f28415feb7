"""Tables larger than memory: the same numbers as NumPy reads, piece by piece."""

import re
from pathlib import Path

import numpy as np
import pytest

from rnn_jax.tasks import table_file


def encoded(folder: Path, text: str, piece: int, **options: str) -> tuple[list[str], np.ndarray]:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_file, "_PIECE", piece)
        names = table_file.encode(folder / "t.csv", folder / "t.npy", **options)
    return names, np.load(folder / "t.npy", mmap_mode="r")


@pytest.mark.parametrize("piece", [1, 7, 50, 10**6])
@pytest.mark.parametrize("names", [None, ["time", "a value", "0"]])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_numbers_are_those_of_the_text(
    piece: int, names: list[str] | None, end: str, tmp_path: Path
) -> None:
    table = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    lines = [",".join(map(repr, row)) for row in table.tolist()]
    text = end.join([*([",".join(names)] if names else []), *lines])
    for mark in ("", "\ufeff"):
        got, found = encoded(tmp_path, mark + text, piece)
        assert got == (names or ["0", "1", "2"])
        np.testing.assert_array_equal(found, table)
        assert found.dtype == np.float32


@pytest.mark.parametrize("piece", [1, 10**6])
def test_gaps_are_nan(piece: int, tmp_path: Path) -> None:
    _, found = encoded(tmp_path, 'a;b\n1;\n\nNA;2.5\n;"3"\n', piece, delimiter=";")
    np.testing.assert_array_equal(found, [[1, np.nan], [np.nan, 2.5], [np.nan, 3]])


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "t.csv").write_text("1,2\n" * 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_file, "_PIECE", 8)
        table_file.encode(
            tmp_path / "t.csv", tmp_path / "t.npy", progress=lambda *at: seen.append(at)
        )
    assert seen[-1] == (40, 40)
    assert len(seen) > 3
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", "line 3 has 'x', expected a number"),
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, expected 2"),
        ("1,2\n3,4,5\n", "line 2 has 3 fields"),
        ("a,b\n", "has no row of numbers"),
        ("", "has no row of numbers"),
    ],
)
def test_what_is_no_table_says_which_line(text: str, message: str, tmp_path: Path) -> None:
    for piece in (4, 10**6):
        with pytest.raises(ValueError, match=re.escape(message)):
            encoded(tmp_path, text, piece)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]
    with pytest.raises(ValueError, match="which is the table"):
        table_file.encode(tmp_path / "t.csv", tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        table_file.encode(tmp_path / "absent.csv", tmp_path / "t.npy")
