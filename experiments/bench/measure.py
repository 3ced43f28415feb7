"""Compares the results of all entries with ours, then times them in turn."""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.case import Case, Problem, make
from experiments.bench.entry import Entry, Peer
from experiments.harness.command import Failed

SAMPLE = 0.02  # seconds; faster programs run several times
PAUSE = 0.005  # before a sample: the threads of another library go on waiting for work


class Disagreement(Failed):
    """A peer does not compute the same numbers."""


def two_cpu_devices() -> None:
    """For the entry that shards its batch; all others stay on the first device."""
    if jax.config.jax_num_cpu_devices < 2:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", 2)


def available(peers: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    """The peers that can be asked, and a line for each that cannot."""
    missing = [p for p in peers if p.library is not None and find_spec(p.library) is None]
    lines = [f"{p.name}: skipped, {p.library} is not installed" for p in missing]
    return [p for p in peers if p not in missing], lines


def build(
    case: Case, ours: Peer, peers: Sequence[Peer], tolerance: float, say: Callable
) -> tuple[Problem, dict[str, Entry]]:
    """The entries of a case by name, ours first; raises Disagreement."""
    problem = make(case)
    say(f"compiling {ours.name}")
    entries = {ours.name: ours.build(problem)}
    for peer in peers:
        if peer.can(case):
            say(f"compiling {peer.name}")
            entry = entries[peer.name] = peer.build(problem)
            if entry.results:  # the products alone compute something else
                check_same(peer.name, entry.results, entries[ours.name].results, tolerance)
    return problem, entries


def check_same(name: str, theirs: Mapping, ours: Mapping, tolerance: float) -> None:
    """Raises Disagreement if an array differs by more than tolerance times the norm of ours."""
    if theirs.keys() != ours.keys():
        missing = ", ".join(sorted(theirs.keys() ^ ours.keys()))
        raise Disagreement(f"{name}: only one of the two has {missing}")
    for key, expected in ours.items():
        got = theirs[key]
        if got.shape != expected.shape:
            raise Disagreement(f"{name}: {key} has shape {got.shape}, ours has {expected.shape}")
        error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        if not error <= tolerance:
            raise Disagreement(
                f"{name}: {key} differs from ours by {error:.1e} of its norm, "
                f"more than {tolerance:.0e}: nothing was timed"
            )


def times(entries: Mapping[str, Entry], rounds: int, seconds: float, say: Callable) -> Any:
    """Seconds of each entry in each round; every round runs all of them in a new order."""
    repeats = {name: _repeats(entry) for name, entry in entries.items()}
    found: dict[str, list[float]] = {name: [] for name in entries}
    order, shuffle = list(entries), random.Random(0).shuffle
    start, n = time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while n < rounds or time.perf_counter() - start < seconds:
            say(f"round {n + 1}")
            shuffle(order)
            for name in order:
                found[name].append(_sample(entries[name].run, repeats[name]))
            n += 1
    finally:
        gc.enable()
    return found


def product_rate(size: int = 2048, repeats: int = 8) -> float:
    """The best rate of a float32 matrix product here, in operations a second."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    best = min(_sample(lambda: jax.block_until_ready(product(a, a)), 1) for _ in range(repeats))
    return 2 * size**3 / best


def _repeats(entry: Entry) -> int:
    entry.run()
    return max(1, math.ceil(SAMPLE / _sample(entry.run, 1)))


def _sample(run: Callable[[], Any], repeats: int) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
