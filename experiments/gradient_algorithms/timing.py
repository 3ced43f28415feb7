"""Times of compiled programs, taken in turn."""

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

SAMPLE = 0.01  # seconds; faster programs run several times


def medians(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each; every round runs all of them, in a new order."""
    repeats = {name: _repeats(run) for name, run in programs.items()}
    found: dict[str, list[float]] = {name: [] for name in programs}
    order, shuffle = list(programs), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            found[name].append(_sample(programs[name], repeats[name]))
    return {name: float(np.median(values)) for name, values in found.items()}


def _repeats(run: Callable[[], Any]) -> int:
    jax.block_until_ready(run())
    return max(1, math.ceil(SAMPLE / _sample(run, 1)))


def _sample(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / repeats
