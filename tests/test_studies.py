"""Every study, from its command line: the quick run holds, bad input is one line before any work.

A row of the table is all that a new study owes here; what it computes is tested elsewhere.
"""

import contextlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.harness.measure import power
from experiments.harness.study import Study


class Row(NamedTuple):
    """What is expected of a study."""

    # (numbers.json, what was printed): asserts what must hold in the quick run
    holds: Callable[[dict[str, Any], str], Any]
    bad: list[tuple[str, str]]  # options that cannot work, and a part of what is said
    also: str = ""  # options beside --quick
    fast: bool = False  # in the README's test line; the others are slow
    strict: bool = True  # False where libraries run that need JAX's usual promotion


def of_chaos(numbers: dict[str, Any], text: str) -> None:
    assert text.count(": reproduced") == 3
    assert "NOT reproduced" not in text


def of_devices(numbers: dict[str, Any], text: str) -> None:
    (net,) = numbers["training"]
    params = 4 * 8 * (64 + 8 + 1) + 16 * (8 + 1)
    assert params * 4 <= net["reduced"] < params * 4 + 100  # the gradient; the loss, and flags
    assert [len(row["seconds"]) for row in net["rows"]] == [2] * 6
    long = numbers["long"]
    assert long["batch over two"]["inputs"] == long["one device"]["inputs"] / 2
    assert text.count("| 8 | two processes |") == 2
    assert text.count("InfiniBand") == 2


def of_bench(numbers: dict[str, Any], text: str) -> None:
    (row,) = numbers["rows"]
    assert [*row["entries"]] == ["ours", *numbers["peers"]]
    ours = row["entries"]["ours"]["rounds"]
    for name, entry in row["entries"].items():
        assert len(entry["rounds"]) >= 3
        assert (entry["compile_seconds"] is None) == (name == "PyTorch")
        ratios = np.array(entry["rounds"]) / ours
        assert entry["ratio"] == pytest.approx(np.quantile(ratios, [0.25, 0.5, 0.75]))
    assert numbers["machine"]["cores"] >= 1
    assert numbers["product_rate"] > 1e6
    head, _, row_of_times, *_ = re.findall(r"^\| .*", text, re.MULTILINE)
    assert head.split(" | ")[4:] == [*numbers["peers"][:-1], f"{numbers['peers'][-1]} |"]
    assert row_of_times.startswith("| gradient, lstm | 4, 12, 3, 5 | ")
    assert "| - |" not in row_of_times


def of_bench_language(numbers: dict[str, Any], text: str) -> None:
    for name in ("word_lm", "translation"):
        for who in ("ours", "PyTorch"):
            row = numbers[name][who]
            assert 0 < row["loss"] < np.log(50)
            assert row["updates"] > 0
    assert "validation loss in nats" in text


def of_memory(numbers: dict[str, Any], text: str) -> None:
    plain, default, segments, budget = numbers["found"].values()
    assert [row["T"] for row in plain] == [16, 64]
    assert plain[1]["bytes"] > default[1]["bytes"] > budget[1]["bytes"] > segments[1]["bytes"]
    assert all(row["against_plain"] == 1 for row in plain)
    powers = [float(line.split(" | ")[-1].rstrip(" |")) for line in text.splitlines()[2:6]]
    assert powers[0] > 0.8
    assert powers[2] < 0.6


def of_scaling(numbers: dict[str, Any], text: str) -> None:
    assert numbers["curves"]["T"]["ours"]["points"] == [6, 12]
    assert len(numbers["curves"]["H"]["textbook scan"]["seconds"]) == 2
    assert text.count("ours: the time of the gradient grows as") == 3
    assert "ours: compiled in" in text


def of_checkpointing(numbers: dict[str, Any], text: str) -> None:
    rows, grown = numbers["tradeoff"], numbers["growth"]
    assert rows["segments of 10"]["saved"] > 0.9
    assert rows["segments of 40"]["saved"] < rows["segments of 10"]["saved"]
    assert 1 - rows["budget of 15 %"]["saved"] < 1.5 * 0.15
    assert all(row["against_default"] > 0 for row in rows.values())
    powers = {n: power([100, 400], [row["temporary"] for row in r]) for n, r in grown.items()}
    assert powers["all steps, plain scan"] == pytest.approx(1, abs=0.1)
    assert max(powers["segments of sqrt(T)"], powers["three levels, T^(1/3)"]) < 0.75
    assert "saves 95% of memory usage" in text
    assert text.count("reproduced") == 4
    assert numbers["counts"]["segments"][0][1] == 2


def of_gradient_flow(numbers: dict[str, Any], text: str) -> None:
    assert (text.count("reproduced"), text.count("NOT reproduced")) == (3, 0)
    assert "  LSTM, forget bias 4               1.068\n" in text


def of_clipping(numbers: dict[str, Any], text: str) -> None:
    assert "clipping helps, reproduced" in text


def of_textbook_models(numbers: dict[str, Any], text: str) -> None:
    rows = [row for row in numbers.values() if isinstance(row, dict) and "ours" in row]
    assert [row["ours"] for row in rows] == [164_106, 197_002, 264_202]
    assert all(row["apart"] is None or row["apart"] < 1e-5 for row in rows)
    assert "NOT" not in text
    assert re.search(r"^total +164,106$", text, re.MULTILINE)


def of_counting_languages(numbers: dict[str, Any], text: str) -> None:
    reach = {name: row["reach"] for name, row in numbers.items() if " b^n" in name}
    assert len(reach) == 6
    assert np.median(reach["a^n b^n, LSTM"]) > 8  # beyond what it was shown
    assert text.count("beyond training: ") == 6


def of_counting(numbers: dict[str, Any], text: str) -> None:
    assert numbers["updates"] == {"lecture": 55, "jax_grad": 49}
    assert "lecture's rule  55 updates (56 evaluations" in text
    assert "jax.grad        49 updates (50 evaluations" in text
    assert (text.count(" agrees\n"), text.count(" differs\n")) == (11, 7)


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


def solved(numbers: dict[str, Any], name: str) -> dict[str, list[int]]:
    """When each seed had learned, by the kind of its row; the figures beside it agree."""
    rows = numbers["rows"]
    for row in rows:
        if "error" in row:
            assert [n > 0 for n in row["solved_at"]] == [e < 0.01 for e in row["error"]]
    return {row[name]: row["solved_at"] for row in rows}


def of_memory_tasks(numbers: dict[str, Any], text: str) -> None:
    found = solved(numbers, "kind")
    assert all(found["tanh, orthogonal, clipped"])
    assert 0 in found["tanh, clipped"]
    assert "learned" in text


def of_temporal_order(numbers: dict[str, Any], text: str) -> None:
    found = solved(numbers, "kind")
    assert all(found["clipped and regularised"])
    assert 0 in found["clipped"]
    assert "\n       reproduced" in text


def of_lstm_1997(numbers: dict[str, Any], text: str) -> None:
    assert all(all(found) for found in solved(numbers, "gradient").values())
    assert max(max(row["wrong_of_2560"]) for row in numbers["rows"]) < 30
    assert text.count("2 of 2 trials") == 2


ROWS = {
    "bench": Row(
        of_bench,
        [
            ("--peers caffe", "--peers: got 'caffe'"),
            ("--layers 0", "--layers: got 0"),
            ("--sizes 4 12 3 0", "--sizes: got 0"),
            ("--tolerance 0", "--tolerance: got 0"),
        ],
        also="--peers textbook torch ours products",
        strict=False,
    ),
    "bench.language": Row(
        of_bench_language,
        [("--minutes 0", "--minutes: got 0")],
        strict=False,
    ),
    "bench.devices": Row(
        of_devices,
        [
            ("--batch 3", "--batch: got 3, expected an even"),
            ("--long 4 41 6", "--long: got (4, 41, 6)"),
            ("--hidden-sizes 0", "--hidden-sizes: got 0"),
        ],
        strict=False,
    ),
    "bench.memory": Row(
        of_memory,
        [("--T 5 5", "--T: got (5, 5)"), ("--budget 0", "--budget: got 0")],
    ),
    "bench.scaling": Row(
        of_scaling,
        [("--T 2", "--T: got (2,)"), ("--H 0 3", "--H: got 0"), ("--rounds 0", "--rounds: got 0")],
        strict=False,
    ),
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
    "checkpointing": Row(
        of_checkpointing,
        [
            ("--segments 0", "--segments: got 0"),
            ("--segments 1000", "expected less than T = 1000"),
            ("--lengths 100 100", "expected at least two lengths"),
            ("--budgets 1.5", "--budgets: got (1.5,), expected parts of one"),
        ],
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
    "textbook_models": Row(
        of_textbook_models,
        [("--batch 0", "--batch: got 0"), ("--length 0", "--length: got 0")],
        strict=False,
    ),
    "counting_languages": Row(
        of_counting_languages,
        [
            ("--seeds 0", "--seeds: got 0"),
            ("--tested 5", "--tested: got 5, expected at least --shown"),
            ("--updates 50", "--updates: got 50"),
        ],
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
    "gradient_algorithms": Row(
        of_gradient_algorithms,
        [
            ("--draws 1", "--draws: got 1, expected at least 2"),
            ("--stream-steps 150", "--stream-steps: got 150, expected a multiple of 100"),
            ("--cells elmann", "--cells: got ('elmann',), expected some of elman"),
            ("--algorithms btpp", "--algorithms: got ('btpp',), expected some of bptt"),
            ("--variance-shapes 8 0", "--variance-shapes: got 0"),
        ],
    ),
    "memory_tasks": Row(
        of_memory_tasks,
        [
            ("--lengths 9", "--lengths: got 9, expected at least 10"),
            ("--tasks parity --lengths 1", "--lengths: got 1"),
            ("--tasks anbn anbn", "expected each once"),
            ("--seeds -1", "--seeds: got -1"),
            ("--minutes nan", "--minutes: got nan"),
            ("--hidden-size 0", "--hidden-size: got 0"),
        ],
    ),
    "temporal_order": Row(
        of_temporal_order,
        [("--lengths 9", "--lengths: got 9"), ("--lengths 20 20", "expected each once")],
    ),
    "lstm_1997": Row(
        of_lstm_1997,
        [("--lengths 29", "--lengths: got 29"), ("--updates 0", "--updates: got 0")],
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


@contextlib.contextmanager
def promotion(strict: bool) -> Iterator[None]:
    if strict:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", cases(ROWS))
def test_the_quick_run_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    it, row = study(name), ROWS[name]
    with promotion(row.strict):
        assert it.main(["--quick", *row.also.split()]) == 0
    text, folder = capsys.readouterr().out, Path("runs") / name.replace(".", "_")
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["config"]["quick"]
    row.holds(numbers, text)
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
