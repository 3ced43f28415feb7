"""The options."""

import math
from dataclasses import dataclass
from pathlib import Path

from experiments.harness.command import BadInput


@dataclass(frozen=True)
class Config:
    """Ordered derivatives (Werbos 1990): six demonstrations, each with its check.

    Writes free_run.png, sensitivity.png, extensions.png and numbers.json into a new folder."""

    inputs: int = 40
    """Inputs of the random list of elementary functions."""
    entries: int = 300
    """Functions in the list, at least."""
    seeds: int = 8
    """Runs of each training, side by side."""
    units: int = 16
    """Hidden units of the model of the plant."""
    noises: tuple[float, ...] = (0.0, 0.5)
    """Standard deviations of the noise in the measured output of the plant."""
    updates: int = 3000
    """Updates of Adam for each identification."""
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
    """Learning rates to start gradient descent from."""
    rate_updates: int = 2000
    """Updates of gradient descent from each."""
    a: float = 0.9
    """The adaptive rate is multiplied with a + b (cosine) after each update."""
    b: float = 0.2
    """See a."""
    iterations: tuple[int, ...] = (5, 10, 20, 40, 80, 160)
    """Numbers of iterations that find the price, for the gradient through all of them."""
    rounds: int = 15
    """Rounds in which the sensitivities are timed, at least."""
    seconds: float = 5.0
    """How long the rounds go on."""
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/ordered_derivatives, or the first
    of runs/ordered_derivatives-2, ... that is free."""
    quick: bool = False
    """Two seeds and fewer updates: half a minute."""


QUICK = Config(
    quick=True,
    inputs=8,
    entries=40,
    seeds=2,
    noises=(0.5,),
    updates=1000,
    rates=(1e-3, 1e-1),
    rate_updates=150,
    iterations=(5, 80),
    rounds=3,
    seconds=0.2,
)


def check(config: Config) -> None:
    """Raises BadInput for options that cannot work."""
    counts = ("inputs", "entries", "seeds", "units", "updates", "rate_updates", "rounds")
    for name in counts:
        if getattr(config, name) < 1:
            raise BadInput(f"--{name}: got {getattr(config, name)}, expected at least 1")
    lists = {"noises": config.noises, "rates": config.rates, "iterations": config.iterations}
    for name, values in lists.items():
        lowest = min(values, default=-1)
        if not all(map(math.isfinite, values)) or lowest < 0 or (lowest == 0 and name != "noises"):
            raise BadInput(f"--{name}: got {values}, expected one or more positive numbers")
