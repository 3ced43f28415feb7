"""Times and memory of programs: what the experiments that compare some of them share.

program = Program(jax.jit(jax.grad(loss)), params, xs)
program()                                          # its result
program.temporary                                  # bytes that it needs beside its arguments
found = times({"a": program, "b": other}, rounds=7)   # seconds, by name: [rounds]
found["b"] / found["a"]                            # ratios, each of two times of one round
"""

import gc
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.command import Failed

PACKAGES = ("jax", "jaxlib", "flax", "equinox", "dm-haiku", "keras", "torch", "numpy")
SAMPLE = 0.02  # seconds; faster programs run several times
PAUSE = 0.005  # before a sample: the threads of another library go on waiting for work


class Disagreement(Failed):
    """Two programs that should compute the same do not."""


class Program:
    """A compiled function with its arguments, and what it costs to compile and to hold.

    Attributes:
      seconds: that it took to compile.
      temporary: bytes of temporary arrays; neither the arguments nor the results count.
      bytes: of temporary arrays and results.
    """

    def __init__(self, function: Any, *arguments: Any, **options: Any):
        start = time.perf_counter()
        self.compiled = function.lower(*arguments, **options).compile()
        self.seconds = time.perf_counter() - start
        self.arguments, self.options = arguments, options
        memory = self.compiled.memory_analysis()
        self.temporary = int(memory.temp_size_in_bytes)
        self.bytes = self.temporary + int(memory.output_size_in_bytes)

    def __call__(self) -> Any:
        return jax.block_until_ready(self.compiled(*self.arguments, **self.options))


def times(
    programs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 1,
    seconds: float = 0.0,
    note: Callable[[str], Any] = lambda text: None,
) -> dict[str, np.ndarray]:
    """Seconds by name, [rounds]; every round runs all programs, in a new order.

    A program returns when its result is there, or returns arrays of JAX. There are at least as
    many `rounds`, and they go on for at least as many `seconds`; `note` is told of each.
    """
    repeats = {name: _repeats(run) for name, run in programs.items()}
    found: dict[str, list[float]] = {name: [] for name in programs}
    order, shuffle = list(programs), random.Random(0).shuffle
    start, n = time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while n < rounds or time.perf_counter() - start < seconds:
            n += 1
            note(f"round {n}")
            shuffle(order)
            for name in order:
                found[name].append(_sample(programs[name], repeats[name]))
    finally:
        gc.enable()
    return {name: np.array(values) for name, values in found.items()}


def _repeats(run: Callable[[], Any]) -> int:
    jax.block_until_ready(run())
    return max(1, math.ceil(SAMPLE / _sample(run, 1)))


def _sample(run: Callable[[], Any], repeats: int) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / repeats


def quartiles(values: Any, axis: int = 0) -> np.ndarray:
    """25, 50 and 75 % of values over an axis, as the first axis."""
    return np.quantile(np.asarray(values), (0.25, 0.5, 0.75), axis=axis)


def power(points: Sequence[float], values: Sequence[float]) -> float:
    """The power with which values grow: least squares in the logarithms.

    Example:
      >>> print(f"{power([1, 2, 4], [3.0, 12.0, 48.0]):.1f}")
      2.0
    """
    return float(np.polyfit(np.log(points), np.log(values), 1)[0])


def check_same(name: str, got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Raises Disagreement where an array of a pytree is missing, of another shape, or differs.

    The norm of a difference may be `tolerance` times the norm of what was expected.
    """
    theirs, ours = _by_path(got), _by_path(expected)
    if theirs.keys() != ours.keys():
        missing = ", ".join(sorted(theirs.keys() ^ ours.keys()))
        raise Disagreement(f"{name}: only one of the two has {missing}")
    for path, right in ours.items():
        found = theirs[path]
        if found.shape != right.shape:
            raise Disagreement(f"{name}: {path} has shape {found.shape}, expected {right.shape}")
        error = float(np.linalg.norm(found - right) / np.linalg.norm(right))
        if not error <= tolerance:
            raise Disagreement(
                f"{name}: {path} differs by {error:.1e} of its norm, more than {tolerance:.0e}"
            )


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in paths}


def product_rate(size: int = 2048, repeats: int = 8) -> float:
    """The best rate of a float32 matrix product here, in operations a second."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    product = Program(jax.jit(jnp.matmul), a, a)
    return 2 * size**3 / min(_sample(product, 1) for _ in range(repeats))


def machine() -> dict[str, Any]:
    """What the times depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    installed = {found.name: found.version for found in distributions()}
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }
