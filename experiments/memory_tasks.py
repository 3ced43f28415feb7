"""Which recurrent nets learn to remember, for how long, and with which remedy?

A remedy is clipping, Pascanu's regulariser, or other initial weights. Those that are mere numbers
are data: nets that differ in them, and in the seed, train side by side in one compiled call. Data
are drawn inside of it; a net that does not learn within the budget counts as such, which is no
proof that it cannot.

    python -m experiments.memory_tasks
    python -m experiments.memory_tasks --tasks adding latching --lengths 20 --updates 5000

References:
  Le, Jaitly, Hinton. A simple way to initialize recurrent networks of rectified linear units. 2015.
  Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import rnn_jax as rnn
from experiments.harness import command, plots, search
from experiments.harness.study import Progress, Study
from experiments.temporal_order import ALPHA, Group, Kind, Task, small_tanh, tanh, temporal_order
from rnn_jax.tasks import memory

ADAM = optax.adam(2e-3)
CHUNK = 250

TaskName = Literal["temporal_order", "adding", "copying", "latching", "parity", "anbn"]
CellName = Literal["tanh", "irnn", "lstm", "gru"]


# fmt: off
@dataclass(frozen=True)
class Config(search.Options):
    """Which recurrent nets learn to remember, for how long, and with which remedy?

    Writes memory_tasks.png and numbers.json.
    """

    tasks: tuple[TaskName, ...] = ("temporal_order",)
    """What is learned; adding takes some 5000 updates and more."""
    cells: tuple[CellName, ...] = get_args(CellName)
    """Cells, each with all its remedies."""
    lengths: tuple[int, ...] = (10, 20, 40)
    """Sequence lengths."""
    hidden_size: int = 32
    """Units."""

    def check(self) -> None:
        super().check()
        command.some(self, "tasks", "cells", "lengths")
        command.each_once(self, "tasks", "cells", "lengths")
        least = max({"temporal_order": 10, "latching": 3}.get(task, 2) for task in self.tasks)
        command.at_least(self, lengths=least, hidden_size=1)


QUICK = Config(quick=True, cells=("tanh",), lengths=(20,), seeds=2, updates=500, hidden_size=16)
# fmt: on


TASKS: dict[str, Callable[[int], Task]] = {
    "temporal_order": temporal_order,
    "adding": lambda n: Task(partial(memory.adding, length=n), False, 2, 1),
    "copying": lambda n: Task(partial(memory.copying, delay=n, symbols=4, items=2), True, 6, 5),
    "latching": lambda n: Task(partial(memory.latching, length=n), False, 1, 2),
    "parity": lambda n: Task(partial(memory.parity, length=n), False, 1, 2),
    "anbn": lambda n: Task(partial(memory.anbn, largest=n // 2), True, 3, 3),
}


irnn = partial(
    rnn.elman,
    activation=jax.nn.relu,
    w_x_init=jax.nn.initializers.normal(0.001),
    w_h_init=rnn.initializers.identity(),
)
KINDS: dict[str, list[Kind]] = {
    "tanh": [
        Kind("tanh", small_tanh, clip=math.inf),
        Kind("tanh, clipped", small_tanh),
        Kind("tanh, clipped, regularised", small_tanh, alpha=ALPHA),
        Kind("tanh, orthogonal, clipped", partial(rnn.elman, activation=tanh)),
    ],
    "irnn": [Kind("ReLU, identity (IRNN), clipped", irnn)],
    "lstm": [
        Kind("LSTM, forget bias 0, clipped", partial(rnn.lstm, b_init=rnn.initializers.zeros)),
        Kind("LSTM, forget bias 1, clipped", rnn.lstm),
    ],
    "gru": [Kind("GRU, clipped", rnn.gru)],
}


def find(config: Config, name: TaskName, length: int, cell: CellName) -> search.Search:
    """When each net of a cell got fewer than 1 % of 1000 new sequences wrong."""
    group = Group(KINDS[cell], TASKS[name](length), config.hidden_size, ADAM)
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    error = group.error(k_test)

    def rows(found: search.Found) -> list[search.Row]:
        errors, rows = np.asarray(error(found.nets)), []
        for number, kind in enumerate(group.kinds):
            nets = slice(number * config.seeds, (number + 1) * config.seeds)
            about: dict[str, Any] = {"task": name, "length": length, "kind": kind.name}
            rows.append(found.row(nets, **about, error=errors[nets].tolist()))
        return rows

    return search.Search(
        name=f"{name}, {length}: {cell}",
        nets=group.nets(config.seeds, k_init),
        update=group.update,
        solved=lambda nets, _, updates: np.where(error(nets) < 0.01, updates, 0),
        key=k_train,
        chunk=CHUNK,
        rows=rows,
    )


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """A row for each task, length and kind."""
    return search.measure(config, say, find, config.tasks, config.lengths, config.cells)


def kinds(numbers: dict[str, Any]) -> list[str]:
    """The names of the nets."""
    return list(dict.fromkeys(row["kind"] for row in numbers["rows"]))


def summary(numbers: dict[str, Any], config: Config) -> str:
    """A table for each task: kinds down, lengths across."""
    lines = ["Seeds that learned (fewer than 1 % of new sequences wrong), and their median updates"]
    for task in config.tasks:
        rows = [row for row in numbers["rows"] if row["task"] == task]
        lines.append(f"\n{task:<34}" + "".join(f"{n:>12}" for n in config.lengths))
        for kind in kinds(numbers):
            fields = (search.outcome(row) for row in rows if row["kind"] == kind)
            lines.append(f"  {kind:<32}" + "".join(f"{field:>12}" for field in fields))
    return "\n".join(lines)


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """A panel for each task: the share of seeds that learned, and their median updates."""
    names = kinds(numbers)
    columns = min(3, len(config.tasks))
    rows, width = math.ceil(len(config.tasks) / columns), len(config.lengths) + 0.4
    size = 2.8 + width * columns, (0.4 * len(names) + 0.7) * rows + 0.5
    figure, grid = plots.panels(rows, columns, size=size, sharey=True, squeeze=False)
    for axes in grid.flat[len(config.tasks) :]:
        axes.remove()
    for axes, task in zip(grid.flat, config.tasks, strict=False):
        found = [[r for r in numbers["rows"] if (r["task"], r["kind"]) == (task, n)] for n in names]
        share = [[np.mean(np.array(r["solved_at"]) > 0) for r in line] for line in found]
        texts = [[search.outcome(r) for r in line] for line in found]
        lengths = [str(n) for n in config.lengths]
        plots.matrix(axes, share, names, lengths, texts, dark=0.6, cmap="Blues", vmin=0, vmax=1.2)
        axes.set(title="$a^n b^n$" if task == "anbn" else task.replace("_", " "), xlabel="length")
    figure.suptitle("Seeds that learned, and their median updates")
    return figure


STUDY = Study("memory_tasks", Config, QUICK, measure, summary, {"memory_tasks.png": draw})

if __name__ == "__main__":
    sys.exit(STUDY.main())
