"""What the experiments measure with: times in turn, bytes, and whether results are the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import measure


class Clock:
    """Stands in for the module `time`; only what sleeps takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(measure, "time", clock := Clock())
    return clock


def test_every_round_runs_all_programs_in_a_new_order(clock: Clock) -> None:
    runs: list[str] = []
    notes: list[str] = []

    def program(name: str, seconds: float) -> None:
        runs.append(name)
        clock.sleep(seconds)

    waits = {"a": 0.1, "b": 0.2, "c": 0.3}
    programs = {name: partial(program, name, seconds) for name, seconds in waits.items()}
    found = measure.times(programs, rounds=5, note=notes.append)
    assert notes == [f"round {n}" for n in range(1, 6)]
    for name, seconds in waits.items():
        np.testing.assert_allclose(found[name], [seconds] * 5)
    orders = [tuple(runs[k : k + 3]) for k in range(6, len(runs), 3)]  # after two runs of each
    assert len(orders) == 5
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1


def test_fast_programs_run_several_times_and_rounds_fill_the_seconds(clock: Clock) -> None:
    runs: list[float] = []

    def program() -> None:
        runs.append(clock.now)
        clock.sleep(1e-3)

    found = measure.times({"a": program}, seconds=0.2)
    np.testing.assert_allclose(found["a"], 1e-3)
    a_round = (len(runs) - 2) / len(found["a"])
    assert a_round == pytest.approx(measure.SAMPLE / 1e-3, abs=1)
    assert 0.2 <= clock.now < 0.25


def test_a_program_knows_what_it_holds() -> None:
    def f(x: jax.Array, *, k: int) -> jax.Array:
        return k * jnp.sort(x @ x)[:1]

    program = measure.Program(jax.jit(f, static_argnames="k"), jnp.eye(64), k=3)
    assert program.seconds > 0
    assert program.bytes == program.temporary + 64 * 4
    assert program.temporary >= 64 * 64 * 4


def test_nan_a_missing_array_and_another_shape_are_disagreements() -> None:
    ours = {"outputs": np.ones(3), "more": [np.full(2, 5.0)]}
    measure.check_same("same", ours | {"outputs": np.ones(3) + 1e-6}, ours)
    for wrong, words in (
        ({"outputs": np.full(3, np.nan)}, "outputs differs by nan"),
        ({"outputs": np.ones((3, 1))}, "outputs has shape"),
        ({"more": []}, "only one of the two has more.0"),
        ({"more": [np.full(2, 5.01)]}, "more.0 differs by 2.0e-03"),
    ):
        with pytest.raises(measure.Disagreement, match=f"^wrong: {words}"):
            measure.check_same("wrong", ours | wrong, ours)
    measure.check_same("near", ours | {"more": [np.full(2, 5.01)]}, ours, tolerance=0.01)
