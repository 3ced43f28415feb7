"""Every study, from its command line: the quick run holds, bad input is one line before any work.

A row of the table is all that a new study owes here; what it computes is tested elsewhere.
"""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.harness.study import Study


class Row(NamedTuple):
    """What is expected of a study."""

    # (numbers.json, what was printed): asserts what must hold in the quick run
    holds: Callable[[dict[str, Any], str], Any]
    bad: list[tuple[str, str]]  # options that cannot work, and a part of what is said
    also: str = ""  # options beside --quick
    fast: bool = False  # in the README's test line; the others are slow


def of_chaos(numbers: dict[str, Any], text: str) -> None:
    assert text.count(": reproduced") == 3
    assert "NOT reproduced" not in text


def of_gradient_algorithms(numbers: dict[str, Any], text: str) -> None:
    assert "NOT" not in text
    assert text.count(": reproduced") == 2
    entries = {name: row["elman"] for name, row in numbers["exactness"].items()}
    assert entries["bptt"]["error"] < 1e-10
    assert 0.05 < entries["truncated_bptt"]["error"] < 1
    assert 0.3 < entries["uoro"]["rms z"] < 2
    assert entries["uoro"]["error"] < 3 * entries["uoro"]["expected error"]
    for run in numbers["stream"].values():
        assert run["carry bytes"][0] == run["carry bytes"][1] > 0
        assert run["program bytes"][1] < 1.1 * run["program bytes"][0]  # for 20 times the steps
        assert np.median(np.array(run["losses"])[:, -1]) < 0.45  # chance: 0.5
    assert numbers["sweep"]["traces"] == 1
    assert numbers["sweep"]["last"][1] < 0.25
    sliding, chunks = (np.array(numbers["bias"][k])[:, 1] for k in ("k1 = 1", "k1 = k2"))
    assert (np.diff(sliding) < 0).all()
    assert sliding[-1] < 1e-12
    assert (sliding[1:-1] < chunks[1:-1]).all()
    assert sliding[0] == pytest.approx(chunks[0])


ROWS = {
    "chaos": Row(
        of_chaos,
        [
            ("--gains 0.5 -1", "--gains: got -1"),
            ("--sizes 1", "--sizes: got 1"),
            ("--steps 100", "--steps: got 100"),
            ("--newton-size 1", "--newton-size: got 1"),
        ],
        fast=True,
    ),
    "gradient_algorithms": Row(
        of_gradient_algorithms,
        [
            ("--draws 1", "--draws: got 1, expected an integer of at least 2"),
            ("--stream-steps 150", "--stream-steps: got 150, expected a multiple of 100"),
            ("--cells elmann", "--cells: got ('elmann',), expected some of elman"),
            ("--algorithms btpp", "--algorithms: got ('btpp',), expected some of bptt"),
            ("--variance-shapes 8 0", "--variance-shapes: got 0"),
        ],
    ),
}


def study(name: str) -> Study:
    module = importlib.import_module(f"experiments.{name}")
    found = getattr(module, "STUDY", None)
    return found or importlib.import_module(f"experiments.{name}.__main__").STUDY


def cases(rows: dict[str, Row]) -> list[Any]:
    return [
        pytest.param(n, id=n, marks=[] if r.fast else pytest.mark.slow) for n, r in rows.items()
    ]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", cases(ROWS))
def test_the_quick_run_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    it = study(name)
    assert it.main(["--quick", *ROWS[name].also.split()]) == 0
    text, folder = capsys.readouterr().out, Path("runs") / name
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["config"]["quick"]
    ROWS[name].holds(numbers, text)
    written = re.search(rf"Written: {folder}/(.*)", text)
    assert written is not None
    for file in written[1].split(", "):
        content = (folder / file).read_bytes()
        assert content.startswith(b"\x89PNG") or not file.endswith("png")
        assert len(content) > 100


BAD = [
    (name, *bad)
    for name, row in ROWS.items()
    for bad in [*row.bad, ("--seed -1", "--seed: got -1")]
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(name).main(options.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ROWS)
def test_no_folder_is_overwritten_and_help_explains_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    assert study(name).main(["--quick", "--run", "mine"]) == 2
    assert "mine exists and is not overwritten" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        study(name).main(["--help"])
    text = capsys.readouterr().out
    for option in study(name).config.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in text
    assert study(name).program in text
