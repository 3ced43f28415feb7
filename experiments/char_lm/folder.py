"""The run folder: all that it takes to resume, to generate and to look back.

config.json      the options, the number of updates, the identity of the text
vocabulary.json  the characters
checkpoints/     the best and the last
metrics.jsonl    a line for each report
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from experiments.char_lm.config import Config, from_json, to_json
from experiments.char_lm.data import Data
from experiments.harness.command import BadInput
from rnn_jax.tasks.text import Vocabulary

RUNS = Path("runs/char_lm")


class Saved(NamedTuple):
    """A run as its folder describes it."""

    config: Config
    steps: int  # updates in all
    sha256: str  # of the text
    vocabulary: Vocabulary
    start: str  # the character before a text that starts from nothing


def create(config: Config, steps: int, data: Data) -> Path:
    """Makes a new folder; raises BadInput if it exists or cannot be written."""
    folder = _make(config.run) if config.run is not None else _make_unused()
    description = {
        "config": to_json(config),
        "steps": steps,
        "text": {"sha256": data.sha256, "characters": data.characters},
        "vocabulary": data.vocabulary.characters,
        "start": data.start,
    }
    data.vocabulary.save(folder / "vocabulary.json")
    write(folder / "config.json", json.dumps(description, indent=2) + "\n")
    return folder


def load(folder: Path) -> Saved:
    """Reads the description back; raises BadInput if the folder is not a run or is damaged."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no run of char_lm (it has no config.json)")
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = from_json(description["config"])
        steps, sha256 = int(description["steps"]), str(description["text"]["sha256"])
        characters, start = description["vocabulary"], description["start"]
    except (BadInput, KeyError, OSError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'}: cannot be used: {error}") from error
    try:
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from error
    if vocabulary.characters != characters:
        raise BadInput(f"{folder / 'vocabulary.json'}: is that of another run (see config.json)")
    return Saved(config, steps, sha256, vocabulary, start)


def write(path: Path, content: str) -> None:
    """Writes a file in one go: killed at any moment, the old content or the new one is there."""
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)


def read_metrics(folder: Path, until: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a step, which is as much as it then holds."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break  # the end of a line that was cut short when the run was killed
        if row["step"] <= until:
            rows.append(row)
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def check_new(path: Path | None) -> None:
    """Refuses a folder that exists, before anything is computed."""
    if path is not None and path.exists():
        raise BadInput(
            f"--run: {path} exists, and no run is overwritten. Choose another folder, or go on "
            f"with it: --resume {path}"
        )


def _make(path: Path) -> Path:
    check_new(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--run: {path} cannot be made ({error.strerror})") from error
    return path


def _make_unused() -> Path:
    for number in itertools.count(1):
        path = RUNS / str(number)
        if not path.exists():
            return _make(path)
    raise AssertionError
