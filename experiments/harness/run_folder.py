"""The folder of a run: all that it takes to go on, to use the net and to look back.

run.json       the options, what the model needs to know of the data, and their identity
checkpoints/   the best and the last
metrics.jsonl  a row for each report
"""

import dataclasses
import hashlib
import json
import os
import typing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.command import BadInput, flag
from rnn_jax import processes

Config = TypeVar("Config")
# Options that are of one command, and not of the run.
HERE = ("run", "resume", "devices", "coordinator", "processes", "process", "join_seconds")


class Description(NamedTuple):
    """What run.json says."""

    config: Any
    steps: int  # updates in all
    about: dict[str, Any]  # `Data.about`
    sha256: str  # of the data


def write(folder: Path, name: str, description: Description) -> None:
    """Writes run.json, for the application of this name."""
    content = {
        "application": name,
        "options": to_json(description.config),
        "steps": description.steps,
        "about": description.about,
        "sha256": description.sha256,
    }
    write_text(folder / "run.json", json.dumps(content, indent=1) + "\n")


def read(folder: Path, name: str, config: type[Any]) -> Description:
    """Reads run.json back; raises BadInput if the folder is not a run, or is damaged."""
    path = folder / "run.json"
    try:
        text = processes.first(lambda: path.read_text("utf-8") if path.is_file() else None)
        if text is None:
            raise BadInput(f"{folder}: no run of {name} (it has no run.json)")
        found = json.loads(text)
        if found["application"] != name:
            raise BadInput(f"{folder}: is a run of {found['application']}, expected one of {name}")
        options = from_json(config, found["options"])
        return Description(options, int(found["steps"]), dict(found["about"]), found["sha256"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: cannot be used: {error}") from error


def to_json(config: Any) -> dict[str, Any]:
    """The options that a run depends on."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in HERE}
    return {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}


def from_json(config: type[Config], values: dict[str, Any]) -> Config:
    """The inverse: a missing option takes its default, an unknown one raises ValueError."""
    hints = {k: h for k, h in typing.get_type_hints(config).items() if k not in HERE}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"got the option {', '.join(map(flag, unknown))}, which is unknown")
    return config(**{name: _as(hints[name], value) for name, value in values.items()})


def _as(hint: Any, value: Any) -> Any:
    """JSON has no paths and no tuples."""
    if isinstance(value, list):
        return tuple(_as(None, v) for v in value)
    return Path(value) if isinstance(value, str) and "Path" in str(hint) else value


def differences(new: Any, old: Any) -> dict[str, str]:
    """The options in which a run would change, and how."""
    a, b = to_json(new), to_json(old)
    return {n: f"{flag(n)} {a[n]} (was {b[n]})" for n in a if a[n] != b[n]}


def digest(about: dict[str, Any], *arrays: Any) -> str:
    """The identity of data: another number, or another order, is another digest."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(f"{np.shape(leaf)}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the end of a line that was cut short when the run was killed
    return rows


def read_rows(folder: Path, until: int) -> list[dict[str, Any]]:
    """The rows up to a step, which is as much as the file then holds."""
    rows = [row for row in processes.first(lambda: rows_of(folder)) if row["step"] <= until]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def add_row(folder: Path, row: dict[str, Any]) -> None:
    """Adds a row to metrics.jsonl; of several processes the first one does."""
    if jax.process_index():
        return
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_text(path: Path, content: str) -> None:
    """Writes a file in one go: killed at any moment, the old content or the new one is there.

    Of several processes the first one does.
    """
    if jax.process_index():
        return
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)
