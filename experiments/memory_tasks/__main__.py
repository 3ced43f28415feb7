"""The command line."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import tyro

from experiments.memory_tasks import lstm_1997, report, success, temporal_order
from experiments.memory_tasks.config import BadInput, Config, resolve

RUN = {"success": success.run, "temporal_order": temporal_order.run, "lstm_1997": lstm_1997.run}


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 2 for bad input."""
    try:
        config = resolve(tyro.cli(Config, args=argv, prog="python -m experiments.memory_tasks"))
        folder = report.new_folder(config.out)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    rows = RUN[config.table](config)
    write(config, rows, time.monotonic() - begin, folder)
    return 0


def write(config: Config, rows: list[report.Row], seconds: float, folder: Path) -> None:
    """The figure, the numbers, and what a person reads at the end."""
    numbers = {
        "config": {**asdict(config), "out": None},
        "jax": jax.__version__,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    report.PLOT[config.table](rows, folder / "figure.png")
    print(report.TEXT[config.table](rows))
    print(f"\n{seconds / 60:.1f} minutes. Written: {folder / 'numbers.json'}, figure.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
