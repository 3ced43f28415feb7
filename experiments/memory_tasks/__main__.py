"""The command line."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import jax

from experiments.harness import command
from experiments.memory_tasks import lstm_1997, report, success, temporal_order
from experiments.memory_tasks.config import Config, resolve

STUDY = {
    "success": success.study,
    "temporal_order": temporal_order.study,
    "lstm_1997": lstm_1997.study,
}
_PROGRAM = "python -m experiments.memory_tasks"


def run(config: Config) -> None:
    """Trains, writes the numbers and the figure, and prints what a person reads at the end."""
    with command.new_folder("memory_tasks", config.run) as folder:
        begin = time.monotonic()
        rows = STUDY[config.table](config)
        minutes = (time.monotonic() - begin) / 60
        about = {"config": asdict(config), "jax": jax.__version__, "minutes": minutes}
        command.write_numbers(folder, {**about, "rows": rows})
        report.PLOT[config.table](rows, folder / "figure.png")
    print(report.TEXT[config.table](rows))
    print(f"\n{minutes:.1f} minutes. Written: {folder / 'numbers.json'}, figure.png")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(resolve(command.options(Config, _PROGRAM, argv))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
