"""Memory against time: the dynamic programme against a search, the gradients, and the program."""

import heapq
import json
from itertools import combinations
from typing import Any

import jax
import numpy as np
import pytest

from experiments.bench.memory import PLAIN
from experiments.checkpointing import __main__ as program
from experiments.checkpointing import measuring
from experiments.checkpointing.config import QUICK
from experiments.checkpointing.programme import forward_steps, of_segments


def least_steps(T: int, slots: int, alpha: int | None) -> int:
    """The fewest forward steps of any schedule, by Dijkstra's search over what may be held.

    Held are hidden states ("h", t), the first of which always, and internal states ("i", t), which
    contain the hidden one; the step to go back through next is `left`.
    """
    sizes = {"h": 1, "i": alpha}

    def room(held: frozenset) -> bool:
        return sum(sizes[kind] for kind, _ in held) <= slots

    start = (T, frozenset({("h", 0)}))
    best, queue = {start: 0}, [(0, 0, start)]
    while queue:
        cost, _, (left, held) = heapq.heappop(queue)
        if left == 0:
            return cost
        if cost > best[left, held]:
            continue
        found = []
        if alpha is not None and ("i", left) in held:
            found.append((0, left - 1, held))
        for _, t in held:
            if t < left:
                found.append((left - t, left - 1, held))  # run there, and back at once
            for y in range(t + 1, left + 1):
                for kind in ("h",) if alpha is None else ("h", "i"):
                    found.append((y - t, left, held | {(kind, y)}))
        for steps, new_left, kept in found:
            others = kept - {("h", 0)}
            for n in range(len(others) + 1):
                for part in combinations(sorted(others), n):
                    state = (new_left, frozenset(part) | {("h", 0)})
                    if room(state[1]) and cost + steps < best.get(state, 10**9):
                        best[state] = cost + steps
                        heapq.heappush(queue, (cost + steps, len(best), state))
    raise AssertionError("no schedule")


@pytest.mark.parametrize("alpha", [None, 2, 3])
def test_no_schedule_is_better_than_the_programme(alpha: int | None) -> None:
    C = forward_steps(5, 8, alpha)
    for T in range(1, 6):
        for slots in (1, 2, 3, 4, 6, 8):
            assert C[T, slots] == least_steps(T, slots, alpha)


def test_published_special_cases() -> None:
    C = forward_steps(30, 40)
    t = np.arange(1, 31)
    np.testing.assert_array_equal(C[1:, 1], t * (t + 1) / 2)
    for T in t:
        np.testing.assert_array_equal(C[T, T:], 2 * T - 1)
    mixed = forward_steps(30, 3 * 30, 3)
    assert mixed[30, 90] == 30
    assert (mixed[1:, 1:41] <= C[1:, 1:]).all()
    assert (np.diff(mixed[30, 1:]) <= 0).all()


def test_segments_lie_above_the_best_schedule_and_near_it() -> None:
    T, alpha = 200, 5
    C = forward_steps(T, 300, alpha)
    assert of_segments(T, 8, alpha) == (65, 400)
    assert of_segments(T, 7, alpha) == (29 + 35, 400)
    for segment in (4, 8, 20, 40):
        slots, steps = of_segments(T, segment, alpha)
        assert 1 <= steps / C[T, int(slots)] < 1.25
    slots, _ = of_segments(T, 8, alpha)
    assert C[T, int(slots)] > 1.9 * T  # whoever keeps so little runs nearly all of it twice


def test_three_levels_give_the_same_gradient() -> None:
    """The maker compares; here it is given something to refuse."""
    make = measuring.Maker(QUICK, 30)
    make(PLAIN, {})
    make.nested()
    make.expected = jax.tree.map(lambda a: 1.01 * a, make.expected)
    with pytest.raises(Exception, match="the gradient differs"):
        make.nested()
    assert measuring.divisors(12) == [1, 2, 3, 4, 6, 12]


def test_the_fastest_of_those_that_save_enough() -> None:
    def row(name: str, saved: float, time: float) -> measuring.Row:
        return {"name": name, "saved": saved, "other": saved - 0.02, "against_plain": time}

    rows = [row("a", 0.94, 0.5), row("b", 0.96, 0.9), row("c", 0.99, 1.1)]
    alone = row(measuring.FORWARD, 0.999, 0.1)
    assert program.fastest([*rows, alone], "against_plain")["name"] == "b"
    assert program.fastest([*rows, alone], "against_plain", "other")["name"] == "c"
    assert program.fastest([rows[0], alone], "against_plain")["name"] == "a"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        assert program.main(["--quick", "--run", str(folder)]) == 0
    return folder, "\n".join(printed), json.loads((folder / "numbers.json").read_text())


def test_quick_shows_the_effect(quick: Any) -> None:
    folder, printed, numbers = quick
    for name in ("tradeoff", "growth"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = program.named(numbers["tradeoff"])
    assert rows["segments of 10"]["saved"] > 0.9
    assert rows["segments of 40"]["saved"] < rows["segments of 10"]["saved"]
    budget = QUICK.budgets[0]
    assert 1 - rows[f"budget of {100 * budget:g} %"]["saved"] < 1.5 * budget
    for row in numbers["tradeoff"]:
        assert row["against_default"] > 0
    powers = {
        name: program.slope(
            QUICK.lengths, [r["bytes"] for r in numbers["growth"] if r["name"] == name]
        )
        for name in (PLAIN, measuring.ROOT, measuring.NESTED)
    }
    assert powers[PLAIN] == pytest.approx(1, abs=0.1)
    assert max(powers[measuring.ROOT], powers[measuring.NESTED]) < 0.75
    assert "saves 95% of memory usage" in printed
    assert printed.count("reproduced") == 4
    assert numbers["counts"]["segments"][0][1] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--segments", "0"], "positive integers"),
        (["--segments", "1000"], "less than T"),
        (["--lengths", "100", "100"], "at least two"),
        (["--budgets", "1.5"], "parts of one"),
    ],
)
def test_nonsense_is_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert len(error.splitlines()) == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in QUICK.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
