"""What the studies share: the contract (run folder, progress, exit codes) and the panels."""

import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.harness import command, plots, study


@dataclass(frozen=True)
class Config(study.Options):
    """A toy."""

    steps: int = 3
    """How many."""

    def check(self) -> None:
        super().check()
        command.at_least(self, steps=1)


def counted(config: Config, say: study.Progress) -> dict[str, Any]:
    return {"values": np.arange(config.steps)}


def toy(measure: Any = counted, **more: Any) -> study.Study:
    """A study that prints the sum of its numbers, and has no files unless they are given."""
    given = {"files": {}} | more
    return study.Study(
        "toy",
        Config,
        Config(quick=True, steps=2),
        measure,
        lambda numbers, config: f"sum {numbers['values'].sum()} of {config.steps}",
        **given,
    )


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_prints_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def draw(numbers: dict[str, Any], config: Config) -> Figure:
        seen.append(mpl.rcParams["axes.grid"])
        figure, axes = plots.panels(size=(2, 1))
        axes.plot(numbers["values"])
        return figure

    files = {
        "a.png": draw,
        "absent.png": lambda numbers, config: None,
        "b.md": lambda numbers, config: f"{config.steps} numbers, \u00e0 la carte",
    }
    assert toy(files=files).main(["--seed", "5"]) == 0
    folder = Path("runs/toy")
    printed = capsys.readouterr().out
    assert printed.startswith("sum 3 of 3\n")
    assert printed.endswith("Written: runs/toy/numbers.json, a.png, b.md\n")
    assert {path.name for path in folder.iterdir()} == {"numbers.json", "a.png", "b.md"}
    assert (folder / "b.md").read_text(encoding="utf-8") == "3 numbers, \u00e0 la carte"
    size = struct.unpack(">II", (folder / "a.png").read_bytes()[16:24])
    assert size == (300, 150)  # 150 dots an inch
    assert seen == [True]
    assert not mpl.rcParams["axes.grid"]  # the style ends with the study
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["values"] == [0, 1, 2]
    assert numbers["config"] == {"seed": 5, "run": None, "quick": False, "steps": 3}
    assert numbers["jax"] == jax.__version__
    assert numbers["seconds"] >= 0


def test_quick_is_another_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert toy().main(["--quick"]) == 0
    assert toy().main(["--quick", "--steps", "4"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "sum" in line] == [
        "sum 1 of 2",
        "sum 6 of 4",
    ]


def test_the_command_line_is_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["toy.py", "--steps", "1"])
    assert toy().main() == 0
    assert "sum 0 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(command.Failed("diverged"), 1), (KeyboardInterrupt(), 130)]
)
@pytest.mark.parametrize("kept", [False, True])
def test_what_fails_leaves_what_was_kept_and_no_empty_folder(
    error: BaseException, code: int, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(config: Config, say: study.Progress) -> dict[str, Any]:
        say("the first half")
        if kept:
            say.keep({"half": jnp.arange(2)})
        raise error

    assert toy(measure).main(["--run", "mine"]) == code
    assert Path("mine").exists() == kept
    if kept:
        assert json.loads(Path("mine/numbers.json").read_text()) == {"half": [0, 1]}
    assert capsys.readouterr().out == ""


def test_a_mistake_in_a_study_is_not_hidden_and_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        toy(lambda config, say: {"values": 1 // 0}).main([])
    assert not Path("runs/toy").exists()


def test_options_are_checked_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[Config] = []
    assert toy(lambda config, say: begun.append(config)).main(["--steps", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --steps: got 0")
    assert not begun
    assert not list(Path().iterdir())


@pytest.mark.parametrize("x64", [False, True])
def test_the_precision_is_what_the_study_asks_for(x64: bool) -> None:
    found = []

    def measure(config: Config, say: study.Progress) -> dict[str, Any]:
        found.append(jnp.ones(1).dtype)
        return {"values": np.zeros(1)}

    assert toy(measure, x64=x64).main([]) == 0
    assert found == [jnp.float64 if x64 else jnp.float32]
    assert jnp.ones(1).dtype == jnp.float32


def test_progress_counts_each_piece_when_it_has_ended(tmp_path: Path) -> None:
    with tqdm(file=io.StringIO()) as bar:
        say = study.Progress(tmp_path, bar)
        say.expect(3)
        assert (bar.total, bar.n) == (3, 0)
        counts = []
        for piece in "abc":
            say(piece)
            counts.append(bar.n)
        assert counts == [0, 1, 2]
        assert "c" in bar.postfix
        say.done()
        say.done()
        assert bar.n == 3


def test_the_last_piece_ends_with_the_measurement(tmp_path: Path) -> None:
    with study.progress(tmp_path) as say:
        say("the only one")
        bar = say._bar
        assert bar.n == 0
    assert bar.n == 1


def test_the_word_for_a_claim() -> None:
    assert [study.verdict(holds) for holds in (True, False)] == ["reproduced", "NOT reproduced"]


def axes_of(figure: Figure) -> Any:
    """The only axes, with their legend made."""
    (axes,) = figure.axes
    axes.legend()
    return axes


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_panels_have_the_size_and_the_shape_that_were_asked_for() -> None:
    figure, axes = plots.panels(2, 3, size=(7, 3), sharex=True)
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (7, 3)
    _, one = plots.panels()
    assert one.get_xscale() == "linear"


SAMPLES = np.array([[0.0, 1.0, 10.0, 20.0, 21.0], [-4.0, 0.0, 2.0, 3.0, 9.0]])  # [x, seeds]


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_band_is_the_median_and_the_quartiles(axis: int) -> None:
    samples = SAMPLES if axis == -1 else SAMPLES.T
    np.testing.assert_array_equal(plots.quartiles(samples, axis), [[1, 0], [10, 2], [20, 3]])
    figure, made = plots.panels()
    plots.band(made, [5, 6], samples, "nets", "C1", ".-", axis=axis)
    axes = axes_of(figure)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[5, 10], [6, 2]])
    corners = {tuple(p) for p in axes.collections[0].get_paths()[0].vertices}
    assert corners == {(5, 1), (5, 20), (6, 0), (6, 3)}
    assert legend(axes) == ["nets"]
    assert axes.lines[0].get_marker() == "."


def test_a_ribbon_takes_quartiles_as_they_are() -> None:
    figure, made = plots.panels()
    plots.ribbon(made, [0, 1], [[1, 2], [3, 5], [4, 9]], "nets", "C1")
    axes = axes_of(figure)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3, 5])
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 9


def test_lines_of_one_kind_have_one_name() -> None:
    figure, made = plots.panels()
    plots.lines(made, [1, 2, 3], np.arange(6.0).reshape(2, 3), "a seed", "C2", linewidth=3)
    axes = axes_of(figure)
    assert legend(axes) == ["a seed"]
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], [[0, 1, 2], [3, 4, 5]])
    assert {line.get_linewidth() for line in axes.lines} == {3}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_ticks_are_those_that_were_asked_for(scale: str) -> None:
    figure, axes = plots.panels()
    axes.plot([0.5, 40], [1, 2])
    axes.set_xscale(scale)
    plots.x_ticks(axes, [0.5, 1, 20.0])
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "1", "20"]
    assert len(axes.get_xticks(minor=True)) == 0


def test_a_matrix_has_a_text_in_each_field_that_can_be_read() -> None:
    with plots.style():
        _, axes = plots.panels()
        drawn = plots.matrix(
            axes, [[0, 0.9, np.nan], [0.5, 0.2, 1]], "ab", "xyz", ["012", "345"], dark=0.6, vmax=2
        )
    assert {t.get_text(): t.get_position() for t in axes.texts} == {
        "0": (0, 0), "1": (1, 0), "2": (2, 0), "3": (0, 1), "4": (1, 1), "5": (2, 1),
    }  # fmt: skip
    white = [t.get_text() for t in axes.texts if to_rgba(t.get_color()) == to_rgba("white")]
    assert white == ["1", "5"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", "z"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert drawn.norm.vmax == 2
    assert not any(line.get_visible() for line in axes.get_xgridlines())
