"""Every study, from its command line: the quick run holds, bad input is one line before any work.

A row of the table is all that a new study owes here; what it computes is tested elsewhere.
"""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


def of_gradient_flow(numbers: dict[str, Any], text: str) -> None:
    assert (text.count("reproduced"), text.count("NOT reproduced")) == (3, 0)
    assert "  LSTM, forget bias 4               1.068\n" in text


def of_clipping(numbers: dict[str, Any], text: str) -> None:
    assert "clipping helps, reproduced" in text


def of_counting(numbers: dict[str, Any], text: str) -> None:
    assert numbers["updates"] == {"lecture": 55, "jax_grad": 49}
    assert "lecture's rule  55 updates (56 evaluations" in text
    assert "jax.grad        49 updates (50 evaluations" in text
    assert (text.count(" agrees\n"), text.count(" differs\n")) == (11, 7)


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
    "clipping": Row(
        of_clipping,
        [
            ("--threshold 0", "--threshold: got 0"),
            ("--updates 0", "--updates: got 0"),
            ("--starts 0", "--starts: got 0"),
        ],
        fast=True,
    ),
    "counting": Row(
        of_counting,
        [
            ("--learning-rate nan", "--learning-rate: got nan"),
            ("--tolerance -1", "--tolerance: got -1"),
            ("--max-updates 0", "--max-updates: got 0"),
        ],
        fast=True,
    ),
    "gradient_flow": Row(
        of_gradient_flow,
        [
            ("--steps 1", "--steps: got 1"),
            ("--threshold 0", "--threshold: got 0"),
            ("--learning-rate inf", "--learning-rate: got inf"),
            ("--quick --scales 2", "--scales: got 2"),
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
