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


def of_market(numbers: dict[str, Any], text: str) -> None:
    m, price = numbers["market"], numbers["price"]
    assert m["inputs"] == 72
    assert m["gap"]["all runs at once"] < 1e-12
    assert m["gap"]["a run for each"] < 1e-4
    assert m["ratio"]["a run for each"] > 4
    assert price["gap"][0] > 1e-4
    assert max(price["gap"][-1], price["gap_newton"]) < 1e-9
    assert price["bytes"][-1] > 5 * price["bytes_implicit"]
    assert text.count(": reproduced") == 2


def of_ordered_derivatives(numbers: dict[str, Any], text: str) -> None:
    found = numbers["ordered"]
    assert (
        max(found["gap_jax"], found["gap_perturbation"], *numbers["lags"]["gap"].values()) < 1e-12
    )
    assert found["backward_products"] < found["perturbation_products"]
    assert text.count(": reproduced") == 2


def of_plant(numbers: dict[str, Any], text: str) -> None:
    plant, rates = numbers["plant"], numbers["rates"]
    one, simulation = (np.median(plant[way]["nrmse"]) for way in ("one step", "simulation"))
    assert simulation < 0.9 * one < 0.2
    guarded = rates["the same, at least 0.3"]
    assert np.min(guarded["last_rate"]) > 10 * numbers["config"]["rates"][0]
    assert np.max(guarded["loss"]) < np.min(rates["fixed"]["loss"][0])
    for last, first in zip(rates["fixed"]["last_rate"], numbers["config"]["rates"], strict=True):
        assert set(last) == {first}
    assert text.count(": reproduced") == 2


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
    "market": Row(
        of_market,
        [
            ("--iterations 5 0", "--iterations: got 0"),
            ("--rounds 0", "--rounds: got 0"),
            ("--seconds nan", "--seconds: got nan"),
        ],
    ),
    "ordered_derivatives": Row(
        of_ordered_derivatives,
        [("--inputs 0", "--inputs: got 0"), ("--entries 0", "--entries: got 0")],
    ),
    "plant": Row(
        of_plant,
        [
            ("--seeds 0", "--seeds: got 0"),
            ("--rates 0.1 -1", "--rates: got -1"),
            ("--noises nan", "--noises: got nan"),
            ("--rate-updates 0", "--rate-updates: got 0"),
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
