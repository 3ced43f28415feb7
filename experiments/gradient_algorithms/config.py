"""The options."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.harness.command import BadInput
from rnn_jax.gradients import REGISTER

Part = Literal["balancing", "exactness", "variance", "stream", "sweep", "cost", "bias"]
PARTS: tuple[Part, ...] = (
    "balancing",
    "exactness",
    "variance",
    "stream",
    "sweep",
    "cost",
    "bias",
)


@dataclass(frozen=True)
class Config:
    """The gradient algorithms measured: exactness, bias, variance, cost, streams and sweeps.

    Writes a figure for each part and numbers.json into a new folder."""

    parts: tuple[Part, ...] = PARTS
    """What is measured."""
    seed: int = 0
    """Of all that is random."""
    balancing_steps: int = 60_000
    """Steps of the stream of influence balancing."""
    balancing_seeds: int = 20
    """Runs of the algorithm that draws, side by side."""
    algorithms: tuple[str, ...] = ()
    """Only these, wherever several are compared; none: all of the register."""
    cells: tuple[str, ...] = ()
    """Columns of the exactness matrix; none: all of them."""
    draws: int = 1000
    """Draws of each unbiased estimate in the exactness matrix."""
    variance_shapes: tuple[tuple[int, int], ...] = ((8, 10), (8, 50), (32, 50))
    """Units and steps of the nets whose variance is measured."""
    variance_draws: int = 200
    """Draws of each gradient."""
    nets: int = 5
    """Random nets for variance and bias."""
    stream_steps: int = 1_000_000
    """Steps of the endless stream; a multiple of 100."""
    stream_seeds: int = 3
    """Streams side by side."""
    sweep_steps: int = 20_000
    """Steps of each seed of the sweep; a multiple of 100."""
    sweep_seeds: int = 64
    """Seeds of the sweep."""
    units: tuple[int, ...] = (16, 32, 64)
    """Hidden units of the nets whose cost is measured."""
    rounds: int = 7
    """Rounds in which times are measured, each in a new order."""
    bias_units: int = 16
    """Hidden units of the nets that are truncated."""
    lengths: tuple[int, ...] = (1, 2, 4, 8, 12, 16)
    """Steps that truncation goes back, of 16."""
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/gradient_algorithms, or the first
    of runs/gradient_algorithms-2, ... that is free."""
    quick: bool = False
    """Smaller in every way, some algorithms on one cell: under a minute; options given
    beside it still count."""

    def takes(self, name: str) -> bool:
        """Whether an algorithm, here with options after a comma, is to be measured."""
        return not self.algorithms or name.split(",")[0] in self.algorithms

    def check(self) -> None:
        """Raises for what cannot be run."""
        least = {"balancing_steps": 1000, "stream_steps": 100, "sweep_steps": 100, "draws": 2}
        least |= {"balancing_seeds": 1, "variance_draws": 2, "nets": 1, "stream_seeds": 1}
        least |= {"sweep_seeds": 1, "rounds": 1, "bias_units": 1}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise BadInput(f"{name}: got {value}, expected at least {smallest}")
        for name in ("stream_steps", "sweep_steps"):
            if (value := getattr(self, name)) % 100:
                raise BadInput(f"{name}: got {value}, expected a multiple of 100")
        if unknown := sorted(set(self.algorithms) - set(REGISTER)):
            known = ", ".join(REGISTER)
            raise BadInput(f"algorithms: got {', '.join(unknown)}, expected some of {known}")
        if not self.parts:
            raise BadInput(f"parts: got none, expected some of {', '.join(PARTS)}")
        sizes = itertools.chain(self.units, self.lengths, *self.variance_shapes)
        if not (self.units and self.lengths and self.variance_shapes) or min(sizes) < 1:
            raise BadInput("units, lengths, variance_shapes: expected positive numbers")


QUICK = Config(
    balancing_steps=20_000,
    balancing_seeds=4,
    algorithms=("bptt", "truncated_bptt", "rtrl", "elementwise_rtrl", "snap", "uoro", "ok"),
    cells=("elman",),
    draws=300,
    variance_shapes=((6, 8),),
    nets=3,
    stream_steps=20_000,
    stream_seeds=2,
    sweep_steps=10_000,
    sweep_seeds=8,
    units=(8,),
    rounds=2,
    bias_units=8,
    lengths=(1, 4, 16),
    quick=True,
)
