"""What the backward pass keeps: all steps, or the states between segments.

    python -m experiments.bench.memory

Prints, for longer and longer sequences, the bytes that XLA needs for the gradient of a loss of the
last state, and the time against the plain unroll; the slope in the logarithms says how the bytes
grow: 1 with T, 0.5 with its root. Writes memory.png and numbers.json into a new folder.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import rnn_jax
from experiments.bench import measure, report
from experiments.bench.config import CellName
from experiments.bench.entry import Entry, Program
from experiments.bench.scaling import slope
from experiments.harness import command

_PROGRAM = "python -m experiments.bench.memory"
PLAIN = "all steps, plain scan"


@dataclass(frozen=True)
class Config:
    """Measures the memory and the time of the gradient with and without segments."""

    cell: CellName = "lstm"
    """Recurrent cell."""
    sizes: tuple[int, int, int] = (8, 64, 128)
    """B D H: batch, inputs, units."""
    T: tuple[int, ...] = (1000, 2500, 5000, 10000)
    """Numbers of steps."""
    budget: int = 2**21
    """Bytes that may be kept of one sequence, for the row with a budget."""
    seconds: float = 10.0
    """How long the rounds of a T go on."""
    rounds: int = 5
    """Rounds of a T, at least."""
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/bench_memory, or the first of
    runs/bench_memory-2, ... that is free."""
    quick: bool = False
    """Two tiny lengths."""


QUICK = Config(quick=True, sizes=(2, 3, 4), T=(16, 64), budget=2**12, seconds=0.1, rounds=2)


def ways(config: Config, T: int) -> dict[str, dict[str, Any]]:
    """The options of `unroll`, by name."""
    return {
        PLAIN: {"plan": rnn_jax.Plan(project="before", defer=False)},
        "all steps": {},
        "segments of sqrt(T)": {"segment": round(math.sqrt(T))},
        f"budget {config.budget / 2**20:g} MiB": {"budget": config.budget},
    }


def check(config: Config) -> None:
    """Raises BadInput for options that cannot work."""
    if len(set(config.T)) < 2 or min(*config.T, *config.sizes, config.budget) < 1:
        raise command.BadInput(
            "--T: expected at least two lengths; --sizes, --budget: positive integers"
        )


def study(config: Config) -> dict[str, list[dict[str, float]]]:
    """Bytes, seconds and ratios of each way, for each T."""
    B, D, H = config.sizes
    cell = rnn_jax.ALL_CELLS[config.cell](D, H)
    params = cell.init(jax.random.key(0))
    found: dict[str, list[dict[str, float]]] = {}
    with tqdm(config.T, unit="T", dynamic_ncols=True) as bar:
        for T in bar:
            xs = jax.random.normal(jax.random.key(1), (B, T, D))
            programs = {name: program(cell, o, params, xs) for name, o in ways(config, T).items()}
            expected = programs[PLAIN].run()
            for name, p in programs.items():
                check_same(name, p.run(), expected)
            entries = {name: Entry(p.run, {}) for name, p in programs.items()}
            times = measure.times(entries, config.rounds, config.seconds, lambda text: None)
            for name, p in programs.items():
                ratio = np.array(times[name]) / np.array(times[PLAIN])
                numbers = {"T": T, "bytes": p.bytes, "seconds": float(np.median(times[name]))}
                found.setdefault(name, []).append(numbers | {"ratio": float(np.median(ratio))})
    return found


def program(cell: rnn_jax.Cell, options: dict[str, Any], params: Any, xs: jax.Array) -> Program:
    def loss(params: Any, xs: jax.Array) -> jax.Array:
        last = jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs, **options)[0])(xs)
        return jnp.stack([jnp.mean(a**2) for a in jax.tree.leaves(last)]).sum()

    return Program(jax.jit(jax.grad(loss)), params, xs)


def check_same(name: str, got: Any, expected: Any) -> None:
    """Raises Disagreement unless the gradients are the same."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        if not error <= 1e-4:
            raise measure.Disagreement(f"{name}: the gradient differs by {error:.1e} of its norm")


def table(config: Config, found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: MiB and time against the plain unroll for each T, and the growth of the bytes."""
    head = ["", *(f"T = {T}" for T in config.T), "bytes grow as T to the"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, points in found.items():
        cells = [f"{p['bytes'] / 2**20:.3g} MiB, time {p['ratio']:.2f}" for p in points]
        power = slope([int(p["T"]) for p in points], [p["bytes"] for p in points])
        lines.append([name, *cells, f"{power:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(path: Path, config: Config, found: dict[str, list[dict[str, float]]]) -> None:
    B, D, H = config.sizes
    figure = Figure(figsize=(7, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        mib = [p["bytes"] / 2**20 for p in points]
        axes.loglog([p["T"] for p in points], mib, marker="o", label=name)
    axes.set(
        xlabel="steps T", ylabel="MiB", title=f"gradient of {config.cell}: B {B}, D {D}, H {H}"
    )
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path)


def run(config: Config) -> None:
    check(config)
    with command.new_folder("bench_memory", config.run) as folder:
        found = study(config)
        command.write_numbers(folder, {"machine": report.machine(), "found": found})
        plot(folder / "memory.png", config, found)
    print(f"{table(config, found)}\nWritten to {folder}")


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, _PROGRAM, argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
