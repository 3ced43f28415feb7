"""The options."""

from dataclasses import dataclass
from pathlib import Path

from experiments.bench.config import CellName
from experiments.harness.command import BadInput


@dataclass(frozen=True)
class Config:
    """Memory against time of the gradient, with segments and with budgets.

    Writes tradeoff.png, growth.png and numbers.json into a new folder."""

    cell: CellName = "lstm"
    """Recurrent cell."""
    sizes: tuple[int, int, int] = (8, 64, 128)
    """B D H: batch, inputs, units."""
    T: int = 1000
    """Steps, for the trade-off."""
    segments: tuple[int, ...] = (5, 10, 20, 32, 50, 100, 200)
    """Lengths of the segments."""
    budgets: tuple[float, ...] = (0.1, 0.15, 0.3)
    """Budgets, as parts of what the plain scan takes. A budget is of one sequence, and counts the
    weights that its batch shares."""
    lengths: tuple[int, ...] = (250, 1000, 4000)
    """Numbers of steps, for the growth."""
    memories: float = 0.1
    """The best schedules are counted up to this part of the memory of the plain scan."""
    seconds: float = 5.0
    """How long the rounds of one T go on."""
    rounds: int = 7
    """Rounds of one T, at least."""
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/checkpointing, or the first of
    runs/checkpointing-2, ... that is free."""
    quick: bool = False
    """Short sequences and few rounds: the memory shows, the times are rough."""


QUICK = Config(
    quick=True,
    sizes=(8, 8, 32),
    T=400,
    segments=(10, 40),
    budgets=(0.15,),
    lengths=(100, 400),
    seconds=0.5,
    rounds=5,
)


def check(config: Config) -> None:
    """Raises BadInput for options that cannot work."""
    numbers = (*config.sizes, config.T, *config.segments, *config.lengths, config.rounds)
    if min(numbers) < 1 or config.seconds < 0 or not config.segments:
        raise BadInput("--sizes, --T, --segments, --lengths, --rounds: expected positive integers")
    if len(set(config.lengths)) < 2:
        raise BadInput(f"--lengths: got {config.lengths}, expected at least two")
    if not all(0 < part <= 1 for part in (*config.budgets, config.memories)):
        raise BadInput("--budgets, --memories: expected parts of one, above 0 and at most 1")
    if max(config.segments) >= config.T:
        raise BadInput(f"--segments: got {max(config.segments)}, expected less than T = {config.T}")
