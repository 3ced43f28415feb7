"""The options of the benchmark, and the cases that they ask for."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from experiments.bench.case import Case
from experiments.harness.command import BadInput

Work = Literal["forward", "gradient", "training"]
CellName = Literal["elman", "lstm", "gru", "gru_reset_after"]
WORK: tuple[Work, ...] = ("forward", "gradient", "training")
CELLS: tuple[CellName, ...] = ("elman", "lstm", "gru", "gru_reset_after")
SIZES = (
    (1, 1000, 32, 64),
    (32, 100, 64, 128),
    (128, 64, 64, 64),
    (32, 64, 256, 256),
    (64, 128, 256, 512),
    (8, 5000, 64, 128),
)


@dataclass(frozen=True)
class Config:
    """Prints the time of the recurrent layers of other libraries over the time of ours.

    Writes table.md and results.json into a new folder."""

    work: tuple[Work, ...] = ("gradient",)
    """What is timed: the outputs; loss and gradient of the weights; a whole step of Adam."""
    cells: tuple[CellName, ...] = ("lstm",)
    """Recurrent cells."""
    sizes: tuple[tuple[int, int, int, int], ...] = SIZES
    """B T D H of each size, one after the other: batch, steps, inputs, units."""
    layers: tuple[int, ...] = (1,)
    """Numbers of recurrent layers."""
    bidirectional: bool = False
    """Each layer runs in both directions."""
    lengths: bool = False
    """Sequences of random lengths up to T."""
    all: bool = False
    """All work and all cells in one layer; and the gradient of each cell in three layers, in both
    directions, and with lengths. This takes hours."""
    peers: tuple[str, ...] = ()
    """Entries to compare with, by a part of the name, such as torch or linen; default: all."""
    plans: bool = False
    """Compare the plans of our unroll with its default, instead of other libraries."""

    seconds: float = 20.0
    """How long the rounds of a row go on."""
    rounds: int = 15
    """Rounds of a row, at least; large sizes then take longer than --seconds."""
    tolerance: float = 1e-4
    """Largest difference from our outputs and gradients, relative to their norm."""
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/bench, or the first of
    runs/bench-2, ... that is free."""
    quick: bool = False
    """One tiny size and a few rounds: shows that everything works, not how fast it is."""


QUICK = Config(quick=True, sizes=((4, 12, 3, 5),), seconds=0.2, rounds=3)


def cases(config: Config) -> list[Case]:
    """The rows of the table; raises BadInput for numbers that make no sense."""
    numbers = [*config.layers, *(n for size in config.sizes for n in size), config.rounds]
    if min(numbers) < 1 or config.seconds < 0:
        raise BadInput("--sizes, --layers, --rounds: expected positive integers, --seconds >= 0")
    kinds = [(config.work, config.cells, config.layers, config.bidirectional, config.lengths)]
    if config.all:
        kinds = [(WORK, CELLS, (1,), False, False)]
        for n, bidirectional, lengths in ((3, False, False), (1, True, False), (1, False, True)):
            kinds.append((("gradient",), CELLS, (n,), bidirectional, lengths))
    return [
        Case(work, cell, n, *size, bidirectional, lengths)
        for works, cells, layers, bidirectional, lengths in kinds
        for work, cell, n, size in product(works, cells, layers, config.sizes)
    ]
