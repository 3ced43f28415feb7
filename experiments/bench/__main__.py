"""The table of times: options, cases, and the study."""

import sys
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import jax
import numpy as np

from experiments.bench import peers, report
from experiments.bench.case import Case, CellName, Problem, Work, flops, make
from experiments.bench.entry import Entry, Peer
from experiments.harness import command
from experiments.harness.measure import machine, product_rate, quartiles, times
from experiments.harness.study import BadInput, Options, Progress, Study

SIZES = (
    (1, 1000, 32, 64),
    (32, 100, 64, 128),
    (128, 64, 64, 64),
    (32, 64, 256, 256),
    (64, 128, 256, 512),
    (8, 5000, 64, 128),
)


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Prints the time of the recurrent layers of other libraries over the time of ours.

    Writes table.md and numbers.json.
    """

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
    interop: bool = False
    """Compare cells of other libraries under our unroll, converted and wrapped, with our cells."""

    seconds: float = 20.0
    """How long the rounds of a row go on."""
    rounds: int = 15
    """Rounds of a row, at least; large sizes then take longer than --seconds."""
    tolerance: float = 1e-4
    """Largest difference from our outputs and gradients, relative to their norm."""

    def check(self) -> None:
        super().check()
        command.some(self, "work", "cells", "sizes", "layers")
        command.at_least(self, sizes=1, layers=1, rounds=1, seconds=0.0)
        command.above_zero(self, "tolerance")
        chosen(self)


QUICK = Config(quick=True, sizes=((4, 12, 3, 5),), seconds=0.2, rounds=3)
# fmt: on


def chosen(config: Config) -> tuple[Peer, ...]:
    """The entries to compare with; raises BadInput for a name that is part of none."""
    if config.plans:
        return peers.PLANS
    if config.interop:
        return peers.INTEROP
    known = peers.PEERS + (peers.GPU_PEERS if jax.default_backend() == "gpu" else ())
    for name in config.peers:
        if not any(name.lower() in peer.name.lower() for peer in known):
            names = ", ".join(peer.name for peer in known)
            raise BadInput(f"--peers: got {name!r}, expected a part of one of: {names}")
    parts = config.peers or ("",)
    return tuple(p for p in known if any(part.lower() in p.name.lower() for part in parts))


def cases(config: Config) -> list[Case]:
    """The rows of the table."""
    all_cells = get_args(CellName)
    kinds = [(config.work, config.cells, config.layers, config.bidirectional, config.lengths)]
    if config.all:
        kinds = [(get_args(Work), all_cells, (1,), False, False)]
        for n, bidirectional, lengths in ((3, False, False), (1, True, False), (1, False, True)):
            kinds.append((("gradient",), all_cells, (n,), bidirectional, lengths))
    return [
        Case(work, cell, n, *size, bidirectional, lengths)
        for works, cells, layers, bidirectional, lengths in kinds
        for work, cell, n, size in product(works, cells, layers, config.sizes)
    ]


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """A row for each case, kept as it comes."""
    wanted, able = cases(config), peers.installed(chosen(config))
    say.expect(len(wanted))
    found: dict[str, Any] = {
        "machine": machine(),
        "peers": [peer.name for peer in able],
        "product_rate": 0.0,
        "rows": [],
    }
    for case in wanted:
        say(f"{case.name}: {case.size}")
        found["product_rate"] = max(found["product_rate"], product_rate())
        problem = make(case, config.seed)
        entries = peers.build(problem, able, config.tolerance, say.note)
        programs = {name: entry.run for name, entry in entries.items()}
        each = times(programs, rounds=config.rounds, seconds=config.seconds, note=say.note)
        found["rows"].append(row(problem, entries, each))
        say.keep(found)
        jax.clear_caches()
    return found


def row(problem: Problem, entries: dict[str, Entry], seconds: dict[str, np.ndarray]) -> dict:
    """All numbers of a case; quartiles are low, median and high."""
    ours = seconds[peers.OURS.name]
    return {
        "case": problem.case._asdict(),
        "flops": flops(problem),
        "entries": {
            name: {
                "seconds": quartiles(seconds[name]),
                "ratio": quartiles(seconds[name] / ours),
                "compile_seconds": entry.compile_seconds,
                "bytes": entry.bytes,
                "rounds": seconds[name],
            }
            for name, entry in entries.items()
        },
    }


FILES = {"table.md": lambda numbers, config: report.table(numbers, config) + "\n"}
STUDY = Study("bench", Config, QUICK, measure, report.table, FILES)

if __name__ == "__main__":
    peers.two_cpu_devices()
    sys.exit(STUDY.main())
