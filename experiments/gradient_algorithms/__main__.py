"""The command line."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax
from tqdm import tqdm

from experiments.gradient_algorithms import (
    balancing,
    bias,
    cost,
    exactness,
    figures,
    learning,
    report,
    variance,
)
from experiments.gradient_algorithms.config import PARTS, QUICK, Config
from experiments.harness import command

PROGRAM = "python -m experiments.gradient_algorithms"
STUDIES: dict[str, tuple[Callable[..., Any], bool]] = {  # and whether in float64
    "balancing": (balancing.study, True),
    "exactness": (exactness.study, True),
    "variance": (variance.study, False),
    "stream": (learning.stream, False),
    "sweep": (learning.sweep, False),
    "cost": (cost.study, False),
    "bias": (bias.study, True),
}


def study(config: Config) -> dict[str, Any]:
    """All the numbers of the chosen parts."""
    found: dict[str, Any] = {}
    for name in [part for part in PARTS if part in config.parts]:
        run, wide = STUDIES[name]
        with tqdm(unit=" piece", dynamic_ncols=True, desc=name) as bar, jax.enable_x64(wide):

            def tick(text: str, bar: Any = bar) -> None:
                bar.set_postfix_str(text)
                bar.update()

            start = time.perf_counter()
            found[name] = run(config, tick)
            found.setdefault("seconds", {})[name] = time.perf_counter() - start
    return found


def run(config: Config) -> None:
    """Runs the studies, writes figures and numbers, and prints the summary."""
    config.check()
    exactness.chosen(config)
    with command.new_folder("gradient_algorithms", config.run) as folder:
        found = study(config)
        about = {"config": asdict(config), "jax": jax.__version__}
        command.write_numbers(folder, {**about, **found})
        written = figures.draw(folder, found)
    print(report.summary(found))
    print(f"Written: {folder}/numbers.json, {', '.join(written)}")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, PROGRAM, argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
