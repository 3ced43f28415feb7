"""The options, and what a part is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from matplotlib.figure import Figure

from experiments.gradient_algorithms.nets import CELLS
from experiments.harness import command
from experiments.harness.study import Options, Progress
from rnn_jax.gradients import REGISTER

Name = Literal["balancing", "exactness", "variance", "stream", "sweep", "cost", "bias"]


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """The gradient algorithms measured: exactness, bias, variance, cost, streams and sweeps.

    Writes a figure for each part and numbers.json into a new folder.
    """

    # What is measured.
    parts: tuple[Name, ...] = get_args(Name)
    # Only these algorithms, wherever several are compared; none: all of the register.
    algorithms: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()  # Columns of the exactness matrix; none: all of them.
    draws: int = 1000  # Draws of each unbiased estimate in the exactness matrix.
    balancing_steps: int = 60_000  # Steps of the stream of influence balancing.
    balancing_seeds: int = 20  # Runs of the algorithm that draws, side by side.
    # Units and steps of the nets whose variance is measured.
    variance_shapes: tuple[tuple[int, int], ...] = ((8, 10), (8, 50), (32, 50))
    variance_draws: int = 200  # Draws of each gradient.
    nets: int = 5  # Random nets for variance and bias.
    stream_steps: int = 1_000_000  # Steps of the endless stream; a multiple of 100.
    stream_seeds: int = 3  # Streams side by side.
    sweep_steps: int = 20_000  # Steps of each seed of the sweep; a multiple of 100.
    sweep_seeds: int = 64  # Seeds of the sweep.
    units: tuple[int, ...] = (16, 32, 64)  # Hidden units of the nets whose cost is measured.
    rounds: int = 7  # Rounds in which times are measured, each in a new order.
    bias_units: int = 16  # Hidden units of the nets that are truncated.
    lengths: tuple[int, ...] = (1, 2, 4, 8, 12, 16)  # Steps that truncation goes back, of 16.

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The algorithms, here with options after a comma, that are to be measured."""
        wanted = self.algorithms or REGISTER
        return [name for name in names if name.split(",")[0] in wanted]

    def check(self) -> None:
        super().check()
        command.some(self, "parts", "variance_shapes", "units", "lengths")
        command.at_least(self, balancing_steps=1000, balancing_seeds=1, draws=2, nets=1, rounds=1)
        command.at_least(self, stream_steps=100, stream_seeds=1, sweep_steps=100, sweep_seeds=1)
        command.at_least(self, variance_shapes=1, variance_draws=2, units=1, bias_units=1)
        command.at_least(self, lengths=1)
        for name in ("stream_steps", "sweep_steps"):
            command.require(self, name, getattr(self, name) % 100 == 0, "a multiple of 100")
        for name, known in (("algorithms", REGISTER), ("cells", CELLS)):
            is_known = set(getattr(self, name)) <= set(known)
            command.require(self, name, is_known, f"some of {', '.join(known)}")


QUICK = Config(
    quick=True, algorithms=("bptt", "truncated_bptt", "uoro"), cells=("elman",), draws=300,
    balancing_steps=20_000, balancing_seeds=4, variance_shapes=((6, 8),), nets=3,
    stream_steps=20_000, stream_seeds=2, sweep_steps=10_000, sweep_seeds=8, units=(8,), rounds=2,
    bias_units=8, lengths=(1, 4, 16),
)
# fmt: on


class Part(NamedTuple):
    """One thing that is measured, with what is said and drawn of it: pure functions."""

    name: str
    pieces: Callable[[Config], int]  # how often `measure` says what it does
    measure: Callable[[Config, Progress], Any]  # (config, say) -> its numbers
    text: Callable[[Any], list[str]]  # (numbers) -> lines
    figure: Callable[[Any], Figure]
    x64: bool = False  # measured in float64
