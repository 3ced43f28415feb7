"""Text larger than memory: the same tokens and streams as in memory, piece by piece.

    python tests/test_text_file.py MEGABYTES [FILE]

measures time and memory with so many megabytes of a text, by default of the standard library.
"""

import gc
import hashlib
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train import start_child

from rnn_jax import train
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks import text, text_file
from rnn_jax.tasks.text import Vocabulary
from rnn_jax.tasks.text_file import Streams, TokenFile

PARTS = st.sampled_from(["a", "b", "\n", "\r", "\r\n", "é", "東", "🎼", "\ufeff", "\u2028", "\x00"])


def written(folder: Path, content: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(content)
    return path


def encoded(path: Path) -> tuple[text_file.Scanned, TokenFile]:
    scanned = text_file.scan(path)
    return scanned, text_file.encode(path, path.with_suffix(".npy"), scanned)


def small(folder: Path, letters: int = 6, length: int = 200) -> TokenFile:
    rng = random.Random(letters)
    letters_of = [chr(97 + i) if i < 26 else chr(0x4E00 + i) for i in range(letters)]
    characters = letters_of + rng.choices(letters_of, k=length - letters)
    return encoded(written(folder, "".join(characters).encode()))[1]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PARTS, min_size=1, max_size=30), st.integers(1, 9))
def test_the_tokens_are_those_of_the_text_in_memory(
    tmp_path: Path, parts: list[str], piece: int
) -> None:
    """Whatever a border between pieces cuts: a character, a line end, a byte order mark."""
    path = written(tmp_path, ("ab" + "".join(parts)).encode())
    for content in (path.read_bytes(), b"\xef\xbb\xbf" + path.read_bytes()):
        path.write_bytes(content)
        expected = text.read_text(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_file, "_PIECE", piece)
            scanned, tokens = encoded(path)
        assert scanned.vocabulary == Vocabulary.from_text(expected)
        assert scanned.length == len(tokens) == len(expected)
        assert scanned.sha256 == hashlib.sha256(expected.encode()).hexdigest()
        assert tokens.read().tolist() == scanned.vocabulary.encode(expected).tolist()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12), st.booleans(), st.integers(1, 5))
def test_what_is_not_utf8_says_the_same_as_in_memory(
    content: bytes, mark: bool, piece: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "_PIECE", piece)
        content = b"\xef\xbb\xbf" * mark + "aé".encode() + content
        path = written(Path(folder), content)
        try:
            text.read_text(path)
        except ValueError as error:
            place, value = re.search(r"\(byte (\d+) is (0x..)\)", str(error)).groups()
            assert content[int(place)] == int(value, 16)
            with pytest.raises(ValueError, match=re.escape(str(error))):
                text_file.scan(path)
        else:
            text_file.scan(path)


@pytest.mark.parametrize(
    ("letters", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")],
)
def test_a_token_is_as_small_as_the_vocabulary_allows(
    letters: int, dtype: str, tmp_path: Path
) -> None:
    characters = [chr(c) for c in range(1, letters + 200_000) if not 0xD800 <= c < 0xE000]
    characters = [c for c in characters if c != "\r"][:letters]
    path = written(tmp_path, "".join(random.Random(0).sample(characters, letters)).encode())
    scanned, tokens = encoded(path)
    assert tokens.dtype == np.dtype(dtype)
    assert path.with_suffix(".npy").stat().st_size == 128 + letters * tokens.dtype.itemsize
    expected = scanned.vocabulary.encode(text.read_text(path))
    np.testing.assert_array_equal(tokens.read(), expected)
    np.testing.assert_array_equal(np.load(path.with_suffix(".npy")), expected)


@pytest.mark.parametrize(
    ("L", "batch", "window"), [(23, 4, 5), (20, 3, 20), (7, 7, 1), (9, 1, 2), (300, 8, 11)]
)
@pytest.mark.parametrize("letters", [5, 300])
def test_streams_equal_those_in_memory(
    L: int, batch: int, window: int, letters: int, tmp_path: Path
) -> None:
    tokens = small(tmp_path, letters, 320).part(7, 7 + L)
    array = jnp.asarray(tokens.read().astype(np.int32))
    windows = Streams(tokens, batch=batch, window=window)
    steps = [*range(3 * L), 10**6 + 1, 2**32 - 1]
    for step in steps:
        got = next(windows) if step < 3 * L else windows.at(step)
        expected = text.streams(array, np.uint32(step), batch=batch, window=window)
        for mine, theirs in zip(got, expected, strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(mine, theirs)
    assert windows.get_state()["step"] == 3 * L  # `at` has not moved it


def test_each_process_reads_its_part(tmp_path: Path) -> None:
    """Together they have the batch, from a position that any number of them gave."""
    tokens = small(tmp_path)
    whole = Streams(tokens, batch=6, window=7)
    for n in (1, 2, 3, 6):
        parts = [Streams(tokens, batch=6, window=7, part=(i, n)) for i in range(n)]
        for part in parts:
            part.set_state(whole.get_state())
        expected = next(whole)
        for mine in zip(expected, *map(next, parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(mine[1:], axis=1), mine[0])
    for part in ((2, 2), (0, 4), (-1, 2)):
        with pytest.raises(ValueError, match="part: got"):
            Streams(tokens, batch=6, window=7, part=part)


def test_a_position_goes_through_json_and_continues(tmp_path: Path) -> None:
    tokens = small(tmp_path)
    whole = Streams(tokens, batch=3, window=7)
    begun = [next(whole) for _ in range(90)]
    assert iter(whole) is whole
    for step in (0, 1, 41):
        source = Streams(tokens, batch=3, window=7)
        for _ in range(step):
            next(source)
        again = Streams(TokenFile(tokens.path), batch=3, window=7)
        again.set_state(json.loads(json.dumps(source.get_state())))
        for expected in begun[step:]:
            np.testing.assert_array_equal(next(again), expected)
    state = whole.get_state()
    for wrong in (
        {},
        None,
        3,
        state | {"batch": 4},
        state | {"length": 199},
        state | {"step": -1},
        state | {"step": 1.5},
        {k: v for k, v in state.items() if k != "window"},
    ):
        with pytest.raises(ValueError, match=r"^state: got .*, expected a position .*'batch': 3"):
            whole.set_state(wrong)
    assert whole.get_state() == state


def test_training_from_a_file_resumes_to_the_bit(tmp_path: Path) -> None:
    """The next character from the last one; the position lies in the checkpoint."""

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        inputs, targets = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(params[inputs], targets)
        return losses.mean(), carry

    optimizer = optax.adam(0.1)
    run = train.make_train(loss, None, optimizer, steps_per_call=4)
    tokens = small(tmp_path)

    def begin() -> tuple[train.TrainState, Streams]:
        state = train.init(jnp.zeros((6, 6)), None, optimizer, jax.random.key(0))
        return state, Streams(tokens, batch=3, window=7)

    state, data = begin()
    whole = train.fit(run, state, data, steps=30)
    state, data = begin()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(train.fit(run, state, data, steps=13), position=data.get_state())
    state, data = begin()
    data.set_state(Checkpoints(tmp_path / "checkpoints", read_only=True).last.position)
    again = train.fit(run, checkpoints.restore(like=state), data, steps=30)
    np.testing.assert_array_equal(again.params, whole.params)
    assert (np.asarray(whole.params) != 0).any()


def test_parts(tmp_path: Path) -> None:
    tokens = small(tmp_path, letters=300, length=320)
    array = np.load(tokens.path)
    part = tokens.part(50, 150).part(20)
    assert (len(tokens), len(part)) == (320, 80)
    np.testing.assert_array_equal(part.read(), array[70:150])
    np.testing.assert_array_equal(part.read(3, 9), array[73:79])
    np.testing.assert_array_equal(tokens.read(190), array[190:])
    assert part.read(5, 5).shape == (0,)
    for start, stop in ((-1, 3), (4, 3), (0, 81)):
        with pytest.raises(ValueError, match=f"part: got {start} to {stop}, expected .* <= 80"):
            part.read(start, stop)
    with pytest.raises(ValueError, match="tokens: got 80, expected at least 81"):
        Streams(part, batch=1, window=81)
    for sizes in ({"batch": 0, "window": 3}, {"batch": 2, "window": -1}):
        with pytest.raises(ValueError, match="positive integer"):
            Streams(part, **sizes)


def test_a_file_is_open_as_long_as_a_part_of_it_is_used(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = open_files()
    part = small(tmp_path).part(3, 5)
    assert part.read().shape == (2,)
    assert open_files() == before + 1
    windows = Streams(part, batch=1, window=1)
    del part
    next(windows)
    del windows
    assert open_files() == before


def test_progress_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "_PIECE", 64)
    path = written(tmp_path, "aé".encode() * 100)
    seen: list[tuple[int, int]] = []
    scanned = text_file.scan(path, progress=lambda *bytes_read: seen.append(bytes_read))
    assert seen == [(64, 300), (128, 300), (192, 300), (256, 300), (300, 300)]
    again: list[tuple[int, int]] = []
    target = tmp_path / "tokens"
    text_file.encode(path, target, scanned, progress=lambda *bytes_read: again.append(bytes_read))
    assert again == seen


def test_by_the_vocabulary_of_another_text(tmp_path: Path) -> None:
    path = written(tmp_path, b"cab" * 5)
    scanned = text_file.scan(path)._replace(vocabulary=Vocabulary("abcdé"))
    tokens = text_file.encode(path, tmp_path / "t.npy", scanned)
    assert tokens.read(0, 3).tolist() == [2, 0, 1]


def test_what_goes_wrong_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "_PIECE", 4)
    path, target = written(tmp_path, "abbaéabba".encode()), tmp_path / "t.npy"
    scanned = text_file.scan(path)
    for vocabulary, got in (("ab", "'é' at position 4"), ("aé", "'b' at position 1")):
        with pytest.raises(
            ValueError, match=rf"text\.txt: got the character {got}, expected one of the 2"
        ):
            text_file.encode(path, target, scanned._replace(vocabulary=Vocabulary(vocabulary)))
    for content in ("abbaéabb", "abbaéabbab", "abbaéabbb"):
        written(tmp_path, content.encode())
        with pytest.raises(ValueError, match="is not the text that was scanned"):
            text_file.encode(path, target, scanned)
    with pytest.raises(ValueError, match="which is the text"):
        text_file.encode(path, path, scanned)
    with pytest.raises(FileNotFoundError, match="absent"):
        text_file.encode(path, tmp_path / "absent" / "t.npy", scanned)
    with pytest.raises(FileNotFoundError, match="missing"):
        text_file.scan(tmp_path / "missing")
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
    for content, message in ((b"", "is empty"), (b"\xef\xbb\xbf", "is empty"), (b"aa", "two dist")):
        with pytest.raises(ValueError, match=message):
            text_file.scan(written(tmp_path, content))


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, b"ab" * 1000)
    scanned = text_file.scan(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"t\.npy: the tokens could not be written .* Make room"):
            text_file.encode(path, tmp_path / "t.npy", scanned)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"text"), "is no file of tokens"),
        (lambda path: np.save(path, np.zeros(3)), r"got float64\[3\], expected tokens"),
        (lambda path: np.save(path, np.zeros((2, 3), np.uint8)), r"got uint8\[2, 3\], expected"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "is damaged: got 199 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"a"), "is damaged: got 201 bytes"),
    ],
)
def test_other_files_are_refused(
    spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    path = small(tmp_path).path
    spoil(path)
    with pytest.raises(ValueError, match=message):
        TokenFile(path)


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    tokens = small(tmp_path)
    os.truncate(tokens.path, 150)
    with pytest.raises(ValueError, match="became shorter"):
        tokens.read()


# ---- size


def peak() -> float:
    """The largest resident memory so far, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000


def measure(megabytes: int, sample: Path | None = None) -> dict[str, float]:
    """Times and memory of both passes and of the batches, in the temporary folder."""
    content = text.read_text(sample) if sample else text.standard_library_text()
    raw = content.encode()[: megabytes * 10**6]
    del content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        with path.open("wb") as file:
            for _ in range(megabytes * 10**6 // len(raw)):
                file.write(raw)
        del raw
        found = {"megabytes": path.stat().st_size / 1e6, "before": peak()}
        begun = time.monotonic()
        scanned = text_file.scan(path)
        found["scan s"] = time.monotonic() - begun
        begun = time.monotonic()
        tokens = text_file.encode(path, Path(folder) / "tokens.npy", scanned)
        found["encode s"] = time.monotonic() - begun
        windows = Streams(tokens, batch=64, window=128)
        begun = time.monotonic()
        for _ in range(1000):
            next(windows)
        found["batch of 64 x 128, us"] = 1e3 * (time.monotonic() - begun)
        return found | {"characters": scanned.length, "peak MB": peak()}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text() -> None:
    peaks = {}
    for megabytes in (30, 400):
        with start_child(__file__, megabytes) as child:
            found = json.loads(child.communicate()[0])
        peaks[megabytes] = found["peak MB"]
        assert found["megabytes"] > 0.8 * megabytes
    assert peaks[400] < peaks[30] + 50
    assert peaks[400] < 1000


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), *map(Path, sys.argv[2:])), indent=1))


def test_tokens_are_written_once_for_each_text(tmp_path: Path) -> None:
    text, folder = tmp_path / "t.txt", tmp_path / "a" / "b"
    text.write_text("a b c\n" * 50)
    scanned, tokens = text_file.cached(text, folder)
    (file,) = folder.iterdir()
    first = file.stat().st_mtime_ns
    assert text_file.cached(text, folder)[1].read().tolist() == tokens.read().tolist()
    assert file.stat().st_mtime_ns == first
    file.write_bytes(file.read_bytes()[:-7])  # damaged
    again = text_file.cached(text, folder)[1]
    assert scanned.vocabulary.decode(again.read()) == text.read_text()
    text.write_text("a c b\n" * 50)
    assert scanned.vocabulary.decode(text_file.cached(text, folder)[1].read()) == text.read_text()
    assert len(list(folder.iterdir())) == 2


def test_slices_are_those_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    tokens = np.arange(20, dtype=np.uint8)
    np.save(path, tokens)
    file = TokenFile(path).part(3, 17)
    for where in (slice(None), slice(2, 5), slice(-4, None), slice(9, 3), slice(5, 99)):
        np.testing.assert_array_equal(file[where], tokens[3:17][where])
    with pytest.raises(ValueError, match="a step of 2"):
        file[::2]
