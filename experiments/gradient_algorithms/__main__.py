"""The command line: the parts in a table, one after the other."""

import sys
import time
from functools import partial
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments.gradient_algorithms import (
    balancing,
    bias,
    cost,
    exactness,
    stream,
    sweep,
    variance,
)
from experiments.gradient_algorithms.config import QUICK, Config, Part
from experiments.harness.study import Progress, Study

PARTS = [m.PART for m in (balancing, exactness, variance, stream, sweep, cost, bias)]


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The numbers of the chosen parts, and how long each took."""
    chosen = [part for part in PARTS if part.name in config.parts]
    say.expect(sum(part.pieces(config) for part in chosen))
    found: dict[str, Any] = {"seconds by part": {}}
    for part in chosen:
        start = time.perf_counter()
        with jax.enable_x64(part.x64):
            found[part.name] = part.measure(config, say)
        found["seconds by part"][part.name] = time.perf_counter() - start
        say.keep(found)
    return found


def text(found: dict[str, Any], config: Config) -> str:
    """All parts that were measured; one may have none of the chosen algorithms."""
    lines = [line for part in PARTS if found.get(part.name) for line in part.text(found[part.name])]
    times = ", ".join(f"{name} {s:.0f} s" for name, s in found["seconds by part"].items())
    return "\n".join([*lines, f"Time: {times}"])


def figure(part: Part, found: dict[str, Any], config: Config) -> Figure | None:
    return part.figure(found[part.name]) if found.get(part.name) else None


FIGURES = {f"{part.name}.png": partial(figure, part) for part in PARTS}
STUDY = Study("gradient_algorithms", Config, QUICK, measure, text, FIGURES)

if __name__ == "__main__":
    sys.exit(STUDY.main())
