"""The options."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.harness.command import BadInput

TaskName = Literal["temporal_order", "adding", "copying", "latching", "parity", "anbn"]
Cells = Literal["tanh", "irnn", "lstm", "gru"]
Table = Literal["success", "temporal_order", "lstm_1997"]


@dataclass(frozen=True)
class Config:
    """Which recurrent nets learn to remember, for how long, and with which remedy?

    Prints a table, beside the published figures where there are any, and writes numbers.json and a
    figure. A net that does not learn within the budget counts as such: it is no proof that it
    cannot."""

    table: Table = "success"
    """success: success against length, for each cell and remedy. temporal_order: clipping alone
    against clipping with Pascanu's regulariser, half an hour. lstm_1997: the first LSTM with its
    truncated gradient on adding, temporal order and two sequences,
    5 minutes."""
    tasks: tuple[TaskName, ...] = ("temporal_order",)
    """Tasks of the table "success"; adding takes some 5000 updates and more."""
    cells: tuple[Cells, ...] = get_args(Cells)
    """Cells of the table "success", each with all its remedies."""
    lengths: tuple[int, ...] = ()
    """Sequence lengths; default: 10 20 40 for success, 50 100 for temporal_order, 100 for
    lstm_1997."""
    seeds: int = 0
    """Nets of each kind, trained in one call; default: 5, for lstm_1997 10."""
    updates: int = 0
    """Updates after which a net counts as failed; default: 2000, for temporal_order 100000, for
    lstm_1997 (where an update is a sequence) 300000."""
    hidden_size: int = 0
    """Units; default: 32, for temporal_order 50. The net of lstm_1997 is as published."""
    minutes: float = 0.0
    """Stop at the next report after so many minutes, done or not; 0 for no such limit."""
    seed: int = 0
    """Seed of the whole experiment."""
    run: Path | None = None
    """Folder for the figure and the numbers; it must not exist. Default: runs/memory_tasks, or the
    first of runs/memory_tasks-2, runs/memory_tasks-3, ... that is free."""
    quick: bool = False
    """Seconds instead of minutes: temporal order over 20 steps, 2 seeds, tanh units alone."""

    def __post_init__(self) -> None:
        """Raises for what cannot be run."""
        for name in ("seeds", "updates", "hidden_size"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name}: got {getattr(self, name)}, expected a positive number")
        if not (math.isfinite(self.minutes) and self.minutes >= 0):
            raise BadInput(f"minutes: got {self.minutes}, expected a positive number, or 0")
        for name, values in (
            ("tasks", self.tasks),
            ("cells", self.cells),
            ("lengths", self.lengths),
        ):
            if len(set(values)) != len(values):
                raise BadInput(f"{name}: got {values}, expected each once")
        for name, options in (("tasks", TaskName), ("cells", Cells)):
            if not getattr(self, name):
                raise BadInput(f"{name}: got none, expected some of {', '.join(get_args(options))}")
        if min(self.lengths, default=least(self)) < least(self):
            raise BadInput(f"lengths: got {self.lengths}, expected at least {least(self)} for each")


DEFAULTS: dict[str, dict[str, Any]] = {
    "success": {"lengths": (10, 20, 40), "seeds": 5, "updates": 2000, "hidden_size": 32},
    "temporal_order": {"lengths": (50, 100), "seeds": 5, "updates": 100_000, "hidden_size": 50},
    "lstm_1997": {"lengths": (100,), "seeds": 10, "updates": 300_000, "hidden_size": 4},
}
QUICK: dict[str, Any] = {"lengths": (20,), "seeds": 2, "updates": 500, "hidden_size": 16}
QUICK_ALWAYS: dict[str, Any] = {"tasks": ("temporal_order",), "cells": ("tanh",)}


def resolve(config: Config) -> Config:
    """Fills in what was not given."""
    if config.quick and config.table != "success":
        raise BadInput(f"quick: got it with --table {config.table}, which has no quick setting")
    defaults = QUICK if config.quick else DEFAULTS[config.table]
    missing = {name: value for name, value in defaults.items() if not getattr(config, name)}
    return replace(config, **(QUICK_ALWAYS if config.quick else {}), **missing)


def least(config: Config) -> int:
    """The shortest sequences that all tasks of a table have."""
    if config.table != "success":
        return {"temporal_order": 10, "lstm_1997": 30}[config.table]
    return max({"temporal_order": 10, "latching": 3}.get(task, 2) for task in config.tasks)
