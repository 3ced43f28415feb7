"""Every application, from its command line: the quick run learns, stop and resume give the same
bits, own data are read, bad input is one line before any work, each verb works.

A row of the table is all that a new application owes here; what the skeleton does is tested on the
smallest one in test_harness.py.
"""

import importlib
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_harness import assert_same_bits, final_state, interrupted

from experiments.harness import run_folder
from experiments.harness.application import Application


class Row(NamedTuple):
    """What is expected of an application."""

    learned: Callable[[dict[str, Any], str], Any]  # (numbers.json, printed): asserts it
    own: str  # the content of a small file of one's own, which --data takes
    bad: list[tuple[str, str]]  # options beside --quick, and a part of what is said
    use: list[tuple[str, str]]  # a verb and what follows RUN; what is printed, a pattern
    rich: str = ""  # options with more state to lose: layers, keys, several nets
    contents: dict[str, bytes] = {}  # noqa: RUF012  files that `bad` names
    fast: bool = False  # in the README's test line; the others are slow


def of_char_lm(numbers: dict[str, Any], text: str) -> None:
    assert numbers["best"]["validation_loss"] < 0.01
    assert numbers["sample"] == ("hello" * 101)[:501]
    assert "hellohellohello" in text


def of_word_lm(numbers: dict[str, Any], text: str) -> None:
    (ours, _), (unigram, _) = (numbers["perplexity"][k] for k in ("this net", "Kneser-Ney 1"))
    assert ours < 1.7 < unigram / 4  # 12 sentences, each of 4 choices of words: 12^(1/6) = 1.51
    assert "the cat sat here.\n" in text
    assert "Kneser-Ney 5" in text


def of_sentiment(numbers: dict[str, Any], text: str) -> None:
    assert numbers["accuracy"]["these nets"] > 0.99  # longer negations than any learned from
    assert numbers["accuracy"]["words, logistic"] < 0.6
    assert "McNemar" in text


def of_translation(numbers: dict[str, Any], text: str) -> None:
    assert numbers["scores"]["greedy"]["exact"] > 0.9
    assert numbers["scores"]["nearest sentence of training"]["exact"] < 0.1
    assert "den 5 juni 1987 -> " in text
    assert "chrF" in text


def of_tagging(numbers: dict[str, Any], text: str) -> None:
    assert numbers["scores"]["this net"][2] > 0.95  # names that it has never seen
    assert numbers["scores"]["most frequent tag of the word"][2] < 0.2
    assert "precision recall" in text


def of_instructions(numbers: dict[str, Any], text: str) -> None:
    assert numbers["exact"] > 0.4  # a net that knows the beginnings alone has 0
    assert numbers["by_actions"]["1 to 8"] > 0.6
    assert numbers["arrives"] >= numbers["exact"]


ROWS = {
    "instructions": Row(
        learned=of_instructions,
        own="",
        bad=[
            ("--data x", "--data: got x"),
            ("--split long", "'simple', 'length', 'jump'"),
            ("--hidden-size 1", "--hidden-size: got 1"),
        ],
        use=[("act walk", r"walk -> .*\n.*[SE].*\n")],
        rich="--dropout 0.2 --seeds 2 --samples 0",
    ),
    "tagging": Row(
        learned=of_tagging,
        own="Anna\tB-person\nBerg\tI-person\nsleeps\tO\n\nhe\tO\nis\tO\nin\tO\nOslo\tB-place\n\n"
        * 10,
        bad=[
            ("--data empty", "empty"),
            ("--data broken", "line 2 is 'alone'"),
            ("--data odd", "line 1 is 'Anna\\t7'"),
            ("--data few", "at least 10"),
            ("--data same", "the one tag 'O'"),
            ("--test few", "--data"),
            ("--output hmm", "'crf', 'softmax'"),
        ],
        use=[
            ("tag Oslo --color no", r".*\n"),
            ("tag \u0436 --color yes", r"\(letters that the model does not know: \u0436\)\n.*\n"),
        ],
        rich="--buckets 2 --seeds 2 --word-dropout 0.2",
        contents={
            "empty": b"",
            "broken": b"Anna\tB-person\nalone\n",
            "odd": b"Anna\t7\n",
            "few": b"Anna\tB-person\nsleeps\tO\n",
            "same": b"he\tO\n\n" * 12,
        },
    ),
    "word_lm": Row(
        learned=of_word_lm,
        own="the cat sat on the mat.\na dog ate the hat!\n" * 40,
        bad=[
            ("--data empty", "empty"),
            ("--data one", "one window"),
            ("--data rare", "no word that is frequent"),
            ("--data missing", "missing"),
            ("--cut 0", "--cut: got 0"),
            ("--dropout 1", "--dropout: got 1"),
            ("--slowness -1", "--slowness: got -1"),
        ],
        use=[
            ("generate --length 4 --prompt the", "the.*\n"),
            ("generate --length 1 --prompt zebra", r"\(unknown to the model.*zebra.*\n"),
            ("nearest dog --count 2", r"dog: \S+ \(.*\), \S+ \(.*\)\n"),
        ],
        rich="--layers 2 --dropout 0.2 --between 0.1 --word-dropout 0.1 --weight-dropout 0.2 "
        "--activation 2 --slowness 1 --seeds 2 --samples 0",
        contents={
            "empty": b"",
            "one": b"a word\n" * 3,
            "rare": "".join(f"w{i} " + "\n" * (i == 70) for i in range(80))
            .replace("\n", "")
            .encode()
            + b"\nx",
        },
    ),
    "sentiment": Row(
        learned=of_sentiment,
        own="good film\t1\nbad film\t0\nvery good\t1\nvery bad\t0\n" * 5,
        bad=[
            ("--data empty", "empty"),
            ("--data one", "one class only"),
            ("--data broken", "line 2 is"),
            ("--data mixed", "line 3 has the label 'good'"),
            ("--data own --folds 9", "--folds: got 9"),
            ("--word-dropout 2", "--word-dropout: got 2"),
        ],
        use=[
            ("predict", r"\(never seen.*\n[01] \(\d+%\): not .*"),
            ("predict good", r"[01] \(\d+%\): good \([+-].*\)\n"),
        ],
        rich="--dropout 0.2 --average 2",
        contents={
            "empty": b"",
            "one": b"good\t1\nbad\t1\n",
            "broken": b"good\t1\nno label here\n",
            "mixed": b"good\t1\nbad\t0\nso\tgood\n",
            "own": b"good\t1\nbad\t0\n" * 2,
        },
    ),
    "translation": Row(
        learned=of_translation,
        own="".join(f"one {i} two\tett {i} tv\u00e5\n" for i in range(40)),
        bad=[
            ("--data empty", "empty"),
            ("--data unaligned", "line 2 is 'two'"),
            ("--data few", "at least 10"),
            ("--locales xx_YY", "--locales"),
            ("--attend hard", "'additive', 'dot'"),
            ("--width 0", "--width: got 0"),
        ],
        use=[
            ("translate one --best 2 --width 3", r".*\(-?[\d.]+\)\n.*\(-?[\d.]+\)\n"),
            ("translate four", r"\(unknown to the model: 'four'\)\n.*\n"),
            ("translate one --picture a.png", ".*\n"),
        ],
        rich="--dropout 0.2 --buckets 2 --seeds 2 --samples 0",
        contents={
            "empty": b"",
            "unaligned": b"one\tett\ntwo\n",
            "few": b"one\tett\ntwo\ttva\n",
        },
    ),
    "char_lm": Row(
        learned=of_char_lm,
        own="the cat sat on the mat. a dog ate the hat! " * 40,
        bad=[
            ("--data empty", "empty"),
            ("--data one", "two distinct"),
            ("--data latin", "not UTF-8"),
            ("--data folder", "no text in this folder"),
            ("--data missing", "missing"),
            ("--data short", "one window"),
            ("--cell lsmt", "'elman', 'lstm'"),
            ("--layers 0", "--layers: got 0"),
            ("--hidden-size -4", "--hidden-size: got -4"),
            ("--hidden-size 10000000", "GB"),
            ("--window 0", "--window: got 0"),
            ("--dropout 1", "--dropout: got 1"),
            ("--restart -0.1", "--restart: got -0.1"),
            ("--gradient elementwise_rtrl", "use rtrl or bptt"),
            ("--gradient snap --dtype bfloat16", "--dtype: got bfloat16"),
        ],
        use=[("generate --length 12 --prompt the", "the.{12}\n")],
        rich="--layers 2 --embedding 3 --dropout 0.2 --seeds 2 --samples 0",
        contents={
            "empty": b"",
            "one": b"a" * 200,
            "latin": b"f\xfcr",
            "short": b"hello",
            "folder/x": b"\xff",
        },
        fast=True,
    ),
}


def application(name: str) -> Application:
    return importlib.import_module(f"experiments.{name}").APPLICATION


def cases(rows: dict[str, Row]) -> list[Any]:
    return [
        pytest.param(n, id=n, marks=[] if r.fast else pytest.mark.slow) for n, r in rows.items()
    ]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", cases(ROWS))
def test_the_quick_run_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert application(name).main(["--quick"]) == 0
    numbers = json.loads(Path("runs", name, "numbers.json").read_text())
    ROWS[name].learned(numbers, capsys.readouterr().out)
    rows = run_folder.rows_of(Path("runs", name))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] > 2 * losses[-1]
    for file in Path("runs", name).glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", cases(ROWS))
def test_stopped_and_resumed_is_as_never_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, options = application(name), ["--quick", *ROWS[name].rich.split(), "--steps", "60"]
    options += ["--evaluations", "4"]
    assert app.main([*options, "--run", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupted(patch, signal.SIGTERM, at=30)
        assert app.main([*options, "--run", "parts"]) == 0
    assert np.ravel(final_state("parts", app).step)[0] == 30
    assert app.main(["--resume", "parts"]) == 0
    assert_same_bits(final_state("parts", app), final_state("whole", app))
    assert run_folder.rows_of(Path("parts")) == run_folder.rows_of(Path("whole"))


@pytest.mark.parametrize("name", cases(ROWS))
def test_own_data_are_learned_from_and_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    app, row = application(name), ROWS[name]
    Path("own").write_text(row.own)
    data = ["--data", "own"] if row.own else []  # some make their own
    assert app.main(["--quick", *data, "--run", "r", "--steps", "20"]) == 0
    Path("own").unlink()  # the run has all that its use needs
    for line, pattern in row.use:
        capsys.readouterr()
        verb, *options = line.split()
        assert app.main([verb, "r", *options]) == 0
        assert re.fullmatch(pattern, capsys.readouterr().out, re.DOTALL)


BAD = [(name, *bad) for name, row in ROWS.items() for bad in row.bad]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, content in ROWS[name].contents.items():
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(content)
    before = sorted(Path().rglob("*"))
    assert application(name).main(["--quick", *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", ROWS)
def test_help_explains_every_option_and_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = application(name)
    with pytest.raises(SystemExit):
        app.main(["--help"])
    text = capsys.readouterr().out
    for option in app.config.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in text
    for verb in app.uses:
        assert f"{app.program} {verb} RUN" in " ".join(text.split())
