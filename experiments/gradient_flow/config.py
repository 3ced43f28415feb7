"""What can be chosen."""

import math
from dataclasses import dataclass
from pathlib import Path

from experiments.harness.command import BadInput


@dataclass(frozen=True)
class Config:
    """Vanishing, exploding and preserved gradients, from data.

    Writes flow.png (dL/dh_t over the distance to the loss), bound.png (the largest singular value
    against what happens), clipping.png (updates and an error surface) and numbers.json.
    """

    steps: int = 100
    """T, time steps from the start of the sequence to the loss at its end."""
    hidden: int = 32
    """H, hidden units."""
    seeds: int = 64
    """Networks, each with its own weights and inputs; curves are medians, bands quartiles."""
    scales: int = 21
    """Points of each scan over the size of the recurrent weights."""
    threshold: float = 1.0
    """Norm to which a larger gradient is clipped."""
    learning_rate: float = 0.1
    """Step size of gradient descent."""
    updates: int = 400
    """Updates of each descent on the error surface."""
    starts: int = 400
    """Points of the error surface from which to descend, drawn at random."""
    seed: int = 0
    """Seed of all that is random."""
    run: Path | None = None
    """Folder for figures and numbers; it must not exist. Default: runs/gradient_flow, or the first
    of runs/gradient_flow-2, runs/gradient_flow-3, ... that is free."""
    quick: bool = False
    """Fewer and shorter runs: half a minute; options given beside it still count."""

    def __post_init__(self) -> None:
        """Raises for what cannot be run."""
        least = {"steps": 10, "hidden": 2, "seeds": 2, "scales": 3, "updates": 1, "starts": 1}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise BadInput(f"{name}: got {value}, expected at least {smallest}")
        for name in ("threshold", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"{name}: got {value}, expected a positive number")


QUICK = Config(steps=50, hidden=16, seeds=16, scales=9, updates=200, starts=50, quick=True)
