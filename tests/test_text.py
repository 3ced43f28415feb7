"""Text: reading, tokens, streams that drop nothing."""

import os
import random
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_jax.tasks import text
from rnn_jax.tasks.text import Vocabulary


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=2).filter(lambda s: len(set(s)) > 1))
def test_encode_then_decode_is_the_identity(string):
    vocabulary = Vocabulary.from_text(string)
    tokens = vocabulary.encode(string)
    assert tokens.dtype == np.int32
    assert len(tokens) == len(string)
    assert vocabulary.decode(tokens) == string
    assert set(tokens.tolist()) == set(range(len(vocabulary)))
    assert [vocabulary.characters[t] for t in tokens] == list(string)


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary.from_text('Zürich, 東京 🎼\n\t"\\\u2028\x00')
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"characters": 3}', '{"characters": "ba"}', '{"characters": "a']
)
def test_load_refuses_other_files(tmp_path, content):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match=r"v\.json"):
        Vocabulary.load(tmp_path / "v.json")


def test_unknown_characters_and_tokens():
    vocabulary = Vocabulary.from_text("bdf")
    for string, place in (("bda", 2), ("cb", 0), ("fz", 1), ("d東", 1)):
        with pytest.raises(ValueError, match=f"{string[place]!r} at position {place}"):
            vocabulary.encode(string)
    for tokens in ([0, 3], [-1]):
        with pytest.raises(ValueError, match="outside 0 to 2"):
            vocabulary.decode(tokens)
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize("string", ["", "aaaa"])
def test_nothing_to_predict(string):
    with pytest.raises(ValueError, match="at least two distinct"):
        Vocabulary.from_text(string)


def test_read_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgrün\r\nalt\rneu\n".encode())
    assert text.read_text(path) == "grün\nalt\nneu\n"


def test_read_folder_in_the_order_of_names(tmp_path):
    names = ["a.txt", "b/a.md", "b/c/x.py", "b/d", "Z.txt", "é.txt", "a10", "a9"]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + "|", encoding="utf-8")
    for hidden in (".git/config", "b/.x"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("hidden")
    (tmp_path / "b" / "link").symlink_to(tmp_path, target_is_directory=True)
    assert text.read_text(tmp_path) == "Z.txt|a.txt|a10|a9|é.txt|b/a.md|b/d|b/c/x.py|"


def test_read_folder_leaves_out_binaries_and_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff")
    with pytest.warns(UserWarning, match=r"left out 1 files, not UTF-8: b\.png"):
        assert text.read_text(tmp_path) == "text"


def test_clear_errors(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes("für".encode("latin-1"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / ".hidden").write_text("x")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x").write_bytes(b"\xff\xfe")
    for name, message in (
        ("empty", "is empty"),
        ("latin", r"not UTF-8 \(byte 1 is 0xfc\)"),
        ("none", r"no text in this folder \(0 files"),
        ("binary", r"no text in this folder \(1 files, 1 of them not UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            text.read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        text.read_text(tmp_path / "missing")


def test_standard_library():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library = text.standard_library_text()
    assert library == text.standard_library_text()
    assert 1_000_000 < len(library) < 20_000_000
    assert library.isascii()
    assert "\r" not in library
    assert Path(os.__file__).read_text(encoding="utf-8") in library
    assert "import unittest\n\nclass Test" not in library


@pytest.mark.parametrize(("L", "batch", "window"), [(23, 4, 5), (20, 3, 20), (7, 7, 1), (9, 1, 2)])
def test_streams_read_on_for_ever_and_drop_nothing(L, batch, window):
    tokens = jnp.arange(L, dtype=jnp.int32)
    at = jax.jit(lambda step: text.streams(tokens, step, batch=batch, window=window))
    for b in range(batch):
        position = b * L // batch
        for step in range(3 * L):
            inputs, targets = at(step)
            expected = (position + np.arange(window + 1)) % L
            assert inputs.shape == targets.shape == (window, batch)
            assert inputs[:, b].tolist() == expected[:-1].tolist()
            assert targets[:, b].tolist() == expected[1:].tolist()
            position += window


def test_streams_do_not_overflow():
    """step * window and batch * L exceed 32 bits, and the position is still exact."""
    L, B, W = 1_000_003, 4000, 1000
    tokens = jnp.arange(L, dtype=jnp.int32)
    for step in (5_000_000, 2_000_000_000):
        inputs, targets = text.streams(tokens, step, batch=B, window=W)
        for b in (0, 1, 1777, B - 1):
            assert int(inputs[0, b]) == (b * L // B + step * W) % L
            assert int(targets[-1, b]) == (b * L // B + step * W + W) % L


def test_streams_errors():
    tokens = jnp.arange(10)
    with pytest.raises(ValueError, match="got 10, expected at least 11"):
        text.streams(tokens, 0, batch=2, window=11)
    for sizes in ({"batch": 0, "window": 3}, {"batch": 2, "window": -1}):
        with pytest.raises(ValueError, match="positive integer"):
            text.streams(tokens, 0, **sizes)
