"""Searches: nets side by side until each has learned, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import search
from experiments.harness.study import Study


def toy(stop: int = 1000) -> search.Search:
    """Three nets that count to 12 in steps of 3, 1, 2; interrupted after some updates."""

    def update(net: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return (net[0] + net[1], net[1]), net[0]

    def solved(nets: Any, reports: Any, updates: int) -> np.ndarray:
        assert reports.shape == (2, 3)
        if updates >= stop:
            raise KeyboardInterrupt
        return np.where(np.asarray(nets[0]) >= 12, updates, 0)

    nets = jnp.zeros(3, int), jnp.array([3, 1, 2])
    return search.Search(
        "toy", nets, update, solved, jax.random.key(0), 2, lambda found: [found.row()]
    )


def last(budget: int, deadline: float = float("inf")) -> search.Found:
    return list(search.run(toy(), budget, deadline))[-1]


def test_a_search_ends_with_the_last_success_and_keeps_what_is_solved() -> None:
    found = last(budget=100)
    assert found.solved_at.tolist() == [4, 12, 6]
    assert found.nets[0].tolist() == [12, 12, 12]
    assert found.updates == 12
    assert last(budget=5).solved_at.tolist() == [4, 0, 6]
    assert last(budget=5).updates == 6
    assert last(budget=100, deadline=0.0).updates == 2


def main(
    folder: Path, *options: str, first: int = 1000, stop: int = 1000
) -> tuple[int, list[search.Row]]:
    """The exit code of a study of two searches, and its rows."""

    def find(config: search.Options, stop: int) -> search.Search:
        return toy(stop)

    study = Study(
        "toy",
        search.Options,
        search.Options(quick=True),
        lambda config, say: search.measure(config, say, find, (first, stop)),
        lambda numbers, config: "",
        {},
    )
    code = study.main(["--run", str(folder), *options])
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["config"]["seeds"] == 5
    return code, numbers["rows"]


def test_a_budget_a_deadline_or_ctrl_c_ends_a_study_and_what_there_is_is_kept(
    tmp_path: Path,
) -> None:
    done = {"solved_at": [4, 12, 6], "updates": 12}
    assert main(tmp_path / "all") == (0, [done, done])
    assert main(tmp_path / "some", "--updates", "4")[1] == 2 * [
        {"solved_at": [4, 0, 0], "updates": 4}
    ]
    assert main(tmp_path / "late", "--minutes", "1e-9")[1][1]["updates"] == 2
    assert main(tmp_path / "broken", stop=6) == (
        130,
        [done, {"solved_at": [4, 0, 0], "updates": 4}],
    )
    assert main(tmp_path / "at once", stop=1) == (130, [done])
    with pytest.raises(FileNotFoundError):  # there is nothing to keep
        main(tmp_path / "none", first=1)
    assert not (tmp_path / "none").exists()


def test_what_is_not_reproduced_is_said() -> None:
    row = {"solved_at": [4000, 0, 2000], "updates": 60_000}
    assert search.outcome(row) == "2/3 3000"
    assert search.verdict(row) == "not reproduced within 60000 updates by 1 of 3"
    assert search.verdict(row | {"solved_at": [4000]}) == "reproduced"
    assert search.outcome(row | {"solved_at": [0, 0]}) == "0/2 >60000"


def test_a_dot_for_each_seed_that_learned_and_a_triangle_for_each_that_did_not() -> None:
    rows = [{"solved_at": [4, 0, 2], "updates": 6}, {"solved_at": [0, 0, 0], "updates": 6}]
    _, axes = search.draw(rows, ["one", "two"], "title", "updates")
    drawn = [(line.get_marker(), list(map(float, line.get_xdata()))) for line in axes.lines]
    assert drawn[:4] == [("o", [4, 2]), (">", [6]), ("o", []), (">", [6, 6, 6])]
    assert len(set(axes.lines[3].get_ydata())) == 3  # beside each other
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("options", ["--seeds 0", "--updates 0", "--minutes nan"])
def test_options_out_of_range(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError):
        main(Path("nowhere"), *options.split())
    assert options.replace(" ", ": got ") in capsys.readouterr().err
