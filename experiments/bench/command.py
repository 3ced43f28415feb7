"""What both commands of the benchmark share: options, errors, devices and the folder of a run."""

import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

import jax
import tyro

from experiments.bench.config import BadInput
from experiments.bench.measure import Disagreement

RUNS = Path("runs/bench")
Options = TypeVar("Options")


def parse(config: type[Options], quick: Options, program: str, argv: Sequence[str]) -> Options:
    """Options over the defaults, which with --quick are others."""
    found = tyro.cli(config, args=argv, prog=program)
    if "--quick" not in argv:
        return found
    return tyro.cli(config, args=[a for a in argv if a != "--quick"], default=quick, prog=program)


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command: 0 done, 1 failed, 2 for bad input."""
    try:
        run()
    except (BadInput, Disagreement) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def two_cpu_devices() -> None:
    """For the entry that shards its batch; all others stay on the first device."""
    if jax.config.jax_num_cpu_devices < 2:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", 2)


def new_folder(path: Path | None) -> Path:
    """Makes the folder of a run; raises BadInput rather than writing into one that exists."""
    if path is None:
        path = next(p for n in count(1) if not (p := RUNS / str(n)).exists())
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--run: {path} cannot be made ({error.strerror})") from error
    return path
