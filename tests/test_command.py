"""What the commands of the experiments share."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import command


@dataclass(frozen=True)
class Options:
    steps: int = 100
    seeds: int = 8
    quick: bool = False


QUICK = Options(steps=2, seeds=1, quick=True)


def test_quick_changes_the_defaults_and_nothing_that_is_given() -> None:
    def parse(*argv: str) -> Options:
        return command.parse(Options, QUICK, "name", argv)

    assert parse() == Options()
    assert parse("--seeds", "7") == Options(seeds=7)
    assert parse("--seeds", "7", "--quick") == Options(steps=2, seeds=7, quick=True)


def test_no_run_takes_the_folder_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, made in (
        (None, "runs/name"),
        (None, "runs/name-2"),
        (None, "runs/name-3"),
        (Path("a/b"), "a/b"),
    ):
        with command.new_folder("name", given) as folder:
            assert folder == Path(made)
            assert folder.is_dir()
    with pytest.raises(command.BadInput, match="a/b exists and is not overwritten"):
        command.new_folder("name", Path("a/b")).__enter__()
    Path("file").touch()
    with pytest.raises(command.BadInput, match="file/a cannot be made"):
        command.new_folder("name", Path("file/a")).__enter__()


def test_a_run_that_fails_leaves_what_it_wrote_and_no_empty_folder(tmp_path: Path) -> None:
    def fail(folder: Path, text: str | None) -> None:
        with command.new_folder("name", folder):
            if text is not None:
                (folder / "kept").write_text(text)
            raise KeyboardInterrupt

    for text in (None, "half of it"):
        with pytest.raises(KeyboardInterrupt):
            fail(tmp_path / "run", text)
        assert (tmp_path / "run").exists() == (text is not None)
    assert (tmp_path / "run/kept").read_text() == "half of it"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (command.BadInput("--steps: got 0"), 2),
        (command.Failed("a peer differs"), 1),
        (OSError("no space left"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise error

    assert command.exit_code(run) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (f"error: {error}\n" if str(error) else "")


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        command.exit_code(lambda: print(1 // 0))


def test_not_a_number_is_null(tmp_path: Path) -> None:
    command.write_numbers(
        tmp_path,
        {
            "a": np.array([[1.0, np.nan]]),
            "b": (np.inf, 2),
            "c": jnp.array(3.0),
            "d": np.float32(np.nan),
            5: Path("x/y"),
        },
    )
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers == {"a": [[1.0, None]], "b": [None, 2], "c": 3.0, "d": None, "5": "x/y"}
