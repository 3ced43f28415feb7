"""Memory against time: the dynamic programme against a search, and the gradients."""

import heapq
from itertools import combinations

import numpy as np
import pytest

from experiments import checkpointing
from experiments.bench import memory
from experiments.checkpointing import forward_steps, of_segments
from experiments.harness.measure import check_same


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
    it = memory.problem(checkpointing.QUICK, 30)
    check_same("three levels", checkpointing.nested(*it)(), memory.gradient(*it)())


def test_the_fastest_of_those_that_save_enough() -> None:
    def row(saved: float, time: float) -> dict[str, float]:
        return {"saved": saved, "other": saved - 0.02, "against_plain": time}

    alone = {memory.FORWARD: row(0.999, 0.1)}
    rows = {"a": row(0.94, 0.5), "b": row(0.96, 0.9), "c": row(0.99, 1.1)} | alone
    assert checkpointing.fastest(rows, "against_plain") == "b"
    assert checkpointing.fastest(rows, "against_plain", "other") == "c"
    assert checkpointing.fastest({"a": rows["a"]} | alone, "against_plain") == "a"
