"""What the backward pass keeps: all steps, or the states between segments.

    python -m experiments.bench.memory

Prints, for longer and longer sequences, the bytes that XLA needs for the gradient of a loss of the
last state, and the time against the plain unroll; the slope in the logarithms says how the bytes
grow: 1 with T, 0.5 with its root.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.bench.case import CellName
from experiments.bench.peers.ours import PLAIN_SCAN
from experiments.bench.report import markdown
from experiments.harness import command, plots
from experiments.harness.measure import Program, check_same, machine, power, times
from experiments.harness.study import Options, Progress, Study

PLAIN, DEFAULT, FORWARD = "all steps, plain scan", "all steps", "forward alone"
Row: TypeAlias = dict[str, Any]


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Measures the memory and the time of the gradient with and without segments.

    Writes memory.png and numbers.json.
    """

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

    def check(self) -> None:
        super().check()
        command.at_least(self, T=1, sizes=1, budget=1, rounds=1, seconds=0.0)
        command.require(self, "T", len(set(self.T)) > 1, "at least two lengths")


QUICK = Config(quick=True, sizes=(2, 3, 4), T=(16, 64), budget=2**12, seconds=0.1, rounds=2)
# fmt: on


def problem(config: Any, T: int) -> tuple[rnn_jax.Cell, Any, jax.Array]:
    """A cell of `config.cell` and `config.sizes`, its params, and inputs [B, T, D]."""
    B, D, H = config.sizes
    cell = rnn_jax.ALL_CELLS[config.cell](D, H)
    xs = jax.random.normal(jax.random.key(config.seed + 1), (B, T, D))
    return cell, cell.init(jax.random.key(config.seed)), xs


def forward(cell: rnn_jax.Cell, params: Any, xs: jax.Array) -> Program:
    """No gradient: what the forward pass takes alone."""
    return Program(jax.jit(_last_state(cell)), params, xs)


def gradient(cell: rnn_jax.Cell, params: Any, xs: jax.Array, **options: Any) -> Program:
    """Of the weights, for a loss of the last state; `options` are those of `unroll`."""

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        last = _last_state(cell, **options)(params, xs)
        return jnp.stack([jnp.mean(a**2) for a in jax.tree.leaves(last)]).sum()

    return Program(jax.jit(jax.grad(loss)), params, xs)


def _last_state(cell: rnn_jax.Cell, **options: Any) -> Callable[[Any, jax.Array], Any]:
    def one(params: Any, xs: jax.Array) -> Any:
        return rnn_jax.unroll(cell, params, None, xs, **options)[0]

    return jax.vmap(one, in_axes=(None, 0))


def compare(
    config: Any, T: int, programs: dict[str, Program], note: Callable[[str], None]
) -> dict[str, Row]:
    """Bytes, medians of the times, and of their ratios; raises Disagreement.

    The gradients have to be that of the plain scan. `config` says how long to measure.
    """
    expected = programs[PLAIN]()
    for name, program in programs.items():
        if name != FORWARD:
            check_same(name, program(), expected)
    seconds = times(programs, rounds=config.rounds, seconds=config.seconds, note=note)
    return {
        name: {
            "T": T,
            "bytes": program.bytes,
            "temporary": program.temporary,
            "seconds": float(np.median(seconds[name])),
            "against_plain": float(np.median(seconds[name] / seconds[PLAIN])),
            "against_default": float(np.median(seconds[name] / seconds[DEFAULT])),
        }
        for name, program in programs.items()
    }


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The rows of each way, one for each T."""
    found: dict[str, list[Row]] = {}
    say.expect(len(config.T))
    for T in config.T:
        say(f"T = {T}")
        ways: dict[str, dict[str, Any]] = {
            PLAIN: {"plan": PLAIN_SCAN},
            DEFAULT: {},
            "segments of sqrt(T)": {"segment": round(math.sqrt(T))},
            f"budget {config.budget / 2**20:g} MiB": {"budget": config.budget},
        }
        it = problem(config, T)
        programs = {name: gradient(*it, **options) for name, options in ways.items()}
        for name, row in compare(config, T, programs, say.note).items():
            found.setdefault(name, []).append(row)
        say.keep({"machine": machine(), "found": found})
    return {"machine": machine(), "found": found}


def table(numbers: dict[str, Any], config: Config) -> str:
    """Markdown: MiB and time against the plain unroll for each T, and the growth of the bytes."""
    lines = []
    for name, rows in numbers["found"].items():
        cells = [f"{r['bytes'] / 2**20:.3g} MiB, time {r['against_plain']:.2f}" for r in rows]
        grows = power(config.T, [r["bytes"] for r in rows])
        lines.append([name, *cells, f"{grows:.2f}"])
    return markdown(["", *(f"T = {T}" for T in config.T), "bytes grow as T to the"], lines, left=1)


def draw_growth(found: dict[str, list[Row]], config: Any, key: str, what: str) -> Figure:
    """Memory, the numbers of `key`, and time, against T."""
    figure, (left, right) = plots.panels(1, 2, size=(11, 5))
    for name, rows in found.items():
        T = [row["T"] for row in rows]
        left.plot(T, [row[key] / 2**20 for row in rows], "o-", label=name)
        right.plot(T, [row["against_plain"] for row in rows], "o-", label=name)
        for axes in (left, right):
            axes.set(xlabel="steps T", xscale="log")
            plots.x_ticks(axes, T)
    left.set(title=title(config), ylabel=f"{what}, MiB", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    right.set(title="Time", ylabel="time over that of the plain scan", ylim=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def title(config: Any) -> str:
    """What was measured."""
    B, D, H = config.sizes
    return f"Gradient of {config.cell}: B {B}, D {D}, H {H}"


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    return draw_growth(numbers["found"], config, "bytes", "temporary arrays and gradient")


STUDY = Study("bench.memory", Config, QUICK, measure, table, {"memory.png": draw})

if __name__ == "__main__":
    sys.exit(STUDY.main())
