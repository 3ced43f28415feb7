"""Memory against time of the gradient: segments of a long sequence run forward twice.

    python -m experiments.checkpointing

"For sequences of length 1000, our algorithm saves 95% of memory usage while using only one third
more time per iteration than the standard BPTT": Gruslys, Munos, Danihelka, Lanctot, Graves.
Memory-efficient backpropagation through time. 2016. This program measures what
`unroll(segment=...)` and `unroll(budget=...)` need, beside the plain scan and beside the default,
and counts forward steps: those of the best schedules by dynamic programming, those of segments.

Memory is XLA's `temp_size_in_bytes`: the weights, the inputs and the gradient itself do not count.
Times are medians of interleaved rounds, and each ratio is of two times of the same round.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import jax
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.bench import memory
from experiments.bench.case import CellName
from experiments.bench.memory import DEFAULT, FORWARD, PLAIN, gradient, problem
from experiments.bench.peers.ours import PLAIN_SCAN
from experiments.harness import command, plots
from experiments.harness.measure import Program, machine, power
from experiments.harness.study import BadInput, Options, Progress, Study, verdict

SAVED, TIME = 0.95, 4 / 3  # published
ROOT, NESTED = "segments of sqrt(T)", "three levels, T^(1/3)"
Note: TypeAlias = Callable[[str], None]
Rows: TypeAlias = dict[str, dict[str, Any]]  # numbers by the name of a way


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Memory against time of the gradient, with segments and with budgets.

    Writes tradeoff.png, growth.png and numbers.json.
    """

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

    def check(self) -> None:
        super().check()
        command.some(self, "segments")
        command.at_least(self, sizes=1, T=1, segments=1, lengths=1, rounds=1, seconds=0.0)
        command.above_zero(self, "budgets", "memories")
        command.require(self, "budgets", max(self.budgets, default=1) <= 1, "parts of one")
        command.require(self, "memories", self.memories <= 1, "a part of one")
        command.require(self, "lengths", len(set(self.lengths)) > 1, "at least two lengths")
        command.require(self, "segments", max(self.segments) < self.T, f"less than T = {self.T}")


QUICK = Config(
    quick=True, sizes=(8, 8, 32), T=400, segments=(10, 40), budgets=(0.15,), lengths=(100, 400),
    seconds=0.5, rounds=5,
)
# fmt: on


def forward_steps(T: int, slots: int, alpha: int | None = None) -> np.ndarray:
    """C(t, m), the fewest forward steps that go back through t steps in m slots of memory.

    A hidden state fills one slot, and the internal state of a step, all that its backward pass
    needs, fills `alpha`; None keeps hidden states alone. The hidden state before the first step is
    in one of the m slots. Run y steps, keep what is there, go back through the later ones with
    what is left, free it, and go back through the earlier ones::

        C(t, m) = min over y of y + C(t - y, m - 1) + C(y, m)              a hidden state is kept
        C(t, m) = min over y of y + C(t - y, m - alpha) + C(y - 1, m)      an internal state is kept

    The first line alone is BPTT-HSM of Gruslys et al. (2016). Both are our account of their mixed
    schedule: an internal state saves the step that would make it again. Without either, every step
    back is run from the start: C(t, 1) = t (t + 1) / 2.

    Returns:
      For t <= T and m <= slots, [T + 1, slots + 1]; column 0 is infinite.

    Example:
      >>> print(forward_steps(4, 4)[4, 1:])
      [10.  8.  7.  7.]
      >>> print(forward_steps(4, 8, alpha=2)[4, 1:])
      [10.  8.  6.  6.  5.  5.  4.  4.]
    """
    C = np.full((T + 1, slots + 1), np.inf)
    C[:, 1:] = np.cumsum(np.arange(T + 1.0))[:, None]
    kinds = [(1, 0)] if alpha is None else [(1, 0), (alpha, 1)]  # slots, and steps saved
    for t, (fills, saves) in product(range(1, T + 1), kinds):
        y = np.arange(1, t + saves)
        if len(y) and slots > fills:
            kept = y[:, None] + C[t - y, 1 : slots + 1 - fills] + C[y - saves, fills + 1 :]
            C[t, fills + 1 :] = np.minimum(C[t, fills + 1 :], kept.min(axis=0))
    return C


def of_segments(T: int, segment: int, alpha: float) -> tuple[float, float]:
    """Slots and forward steps of segments: the states between them, and the steps of one."""
    return -(-T // segment) + alpha * segment, 2 * T


def counts(config: Config, plain_bytes: int) -> dict[str, Any]:
    """Forward steps over T, and memory over that of the plain scan, of schedules and segments."""
    B, _, H = config.sizes
    T, state = config.T, 4 * H * (2 if config.cell == "lstm" else 1)  # bytes of one hidden state
    alpha = max(1, round(plain_bytes / (B * T * state)))
    slots = max(alpha + 1, int(config.memories * alpha * T))
    segments = [of_segments(T, s, alpha) for s in config.segments]
    return {
        "alpha": alpha,
        "memory": np.arange(1, slots + 1) / (alpha * T),
        "hidden": forward_steps(T, slots)[T, 1:] / T,
        "mixed": forward_steps(T, slots, alpha)[T, 1:] / T,
        "segments": [(m / (alpha * T), steps / T) for m, steps in segments],
    }


def always(cell: rnn_jax.Cell, params: Any, xs: jax.Array) -> dict[str, Program]:
    """What the others are compared with."""
    return {
        PLAIN: gradient(cell, params, xs, plan=PLAIN_SCAN),
        FORWARD: memory.forward(cell, params, xs),
        DEFAULT: gradient(cell, params, xs),
    }


def nested(cell: rnn_jax.Cell, params: Any, xs: jax.Array) -> Program:
    """One step is a long segment, that is itself cut into segments."""
    B, T, D = xs.shape
    divisors = [n for n in range(1, T + 1) if T % n == 0]
    length = min(divisors, key=lambda n: abs(math.log(n) - 2 / 3 * math.log(T)))
    inner = partial(rnn_jax.unroll, cell, segment=round(math.sqrt(length)))
    outer = cell._replace(project=lambda params, xs: xs, step=inner)
    return gradient(outer, params, xs.reshape(B, T // length, length, D), segment=1)


def tradeoff(config: Config, note: Note) -> Rows:
    """All ways at one T; a budget is a part of what the plain scan took."""
    note("compiling")
    it = problem(config, config.T)
    programs: dict[str, Program] = always(*it)
    programs |= {f"segments of {n}": gradient(*it, segment=n) for n in config.segments}
    whole = programs[PLAIN].temporary / config.sizes[0]  # of one sequence
    for part in config.budgets:
        try:
            programs[f"budget of {100 * part:g} %"] = gradient(*it, budget=int(part * whole))
        except ValueError as error:
            raise BadInput(f"--budgets {part:g}: {error}") from error
    return saving(memory.compare(config, config.T, programs, note))


def growth(config: Config, T: int, note: Note) -> Rows:
    """The plain scan, the default, segments of sqrt(T), and three levels."""
    note("compiling")
    it = problem(config, T)
    programs = always(*it)
    programs |= {ROOT: gradient(*it, segment=round(math.sqrt(T))), NESTED: nested(*it)}
    return saving(memory.compare(config, T, programs, note))


def saving(rows: Rows) -> Rows:
    """The same rows with what each saves, and what it keeps beside the copy of the inputs."""
    plain, forward = rows[PLAIN]["temporary"], rows[FORWARD]["temporary"]
    for row in rows.values():
        row["saved"] = 1 - row["temporary"] / plain
        row["kept"] = row["temporary"] - forward
        row["saved_of_kept"] = 1 - row["kept"] / (plain - forward)
    return rows


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The trade-off at one T, the growth with T, and the counts of forward steps."""
    say.expect(1 + len(config.lengths))
    say(f"trade-off, T = {config.T}")
    rows = tradeoff(config, say.note)
    grown: dict[str, list[dict[str, Any]]] = {}
    about = counts(config, rows[PLAIN]["temporary"])
    found = {"machine": machine(), "tradeoff": rows, "counts": about, "growth": grown}
    for T in config.lengths:
        say.keep(found)
        jax.clear_caches()
        say(f"growth, T = {T}")
        for name, row in growth(config, T, say.note).items():
            grown.setdefault(name, []).append(row)
    return found


def fastest(rows: Rows, against: str, saved: str = "saved") -> str:
    """What takes least time of all that save as much as published; else what saves most."""
    names = [name for name in rows if name != FORWARD]
    enough = [name for name in names if rows[name][saved] >= SAVED]
    if enough:
        return min(enough, key=lambda name: rows[name][against])
    return max(names, key=lambda name: rows[name][saved])


def text(found: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    rows = found["tradeoff"]
    lines = [f"{f'T = {config.T}':<24}{'MiB':>8}{'saved':>9}{'time':>8}{'of the default':>17}"]
    for name, row in rows.items():
        saved = "" if name == FORWARD else f"{100 * row['saved']:.1f} %"
        lines.append(
            f"{name:<24}{row['temporary'] / 2**20:>8.2f}{saved:>9}"
            f"{row['against_plain']:>8.2f}{row['against_default']:>17.2f}"
        )
    lines += [
        f'Published: "saves 95% of memory usage while using only one third more time", {TIME:.2f}',
        *claims(rows),
        f"  One more forward pass is {rows[FORWARD]['against_default']:.2f} of the time of the "
        f"default, {TIME - 1:.2f} where a backward pass takes two forward passes",
    ]
    return "\n".join([*lines, *_counted(found["counts"]), *_growth(found["growth"])])


def claims(rows: Rows) -> Iterator[str]:
    """How much is saved in how much time, of two memories and of two times."""
    alone = f"the {rows[FORWARD]['temporary'] / 2**20:.2f} MiB that the forward pass takes alone"
    parts = {"saved": "memory of the plain scan", "saved_of_kept": f"memory, without {alone},"}
    for saved, what in parts.items():
        for against, time in (("against_plain", PLAIN), ("against_default", "the default")):
            name = fastest(rows, against, saved)
            part, ratio = rows[name][saved], rows[name][against]
            yield (
                f"  {name} save {100 * part:.1f} % of the {what} in {ratio:.2f} of the time of "
                f"{time}: {verdict(part >= SAVED and ratio <= TIME)}"
            )


def _counted(found: dict[str, Any]) -> list[str]:
    part, steps = min(found["segments"])
    hidden, mixed = (np.interp(part, found["memory"], found[k]) for k in ("hidden", "mixed"))
    at = int(np.searchsorted(found["memory"], 1 - SAVED))
    best = found["mixed"][min(at, len(found["mixed"]) - 1)]
    return [
        f"Forward steps over T (an internal state = {found['alpha']} hidden states)",
        f"  in {100 * part:.1f} % of the memory: segments {steps:.2f}, the best schedule "
        f"{mixed:.2f}, of hidden states alone (BPTT-HSM) {hidden:.2f}",
        f"  in 5 %: the best schedule {best:.2f}; if a backward pass takes two forward passes, "
        f"{(best + 2) / 3:.2f} of the time",
    ]


def _growth(grown: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "Bytes grow as T to the (without what the forward pass takes alone)"
    for name, rows in grown.items():
        if name != FORWARD:
            T, last = [row["T"] for row in rows], rows[-1]
            of_all, of_kept = (
                power(T, [row[key] for row in rows]) for key in ("temporary", "kept")
            )
            yield (
                f"  {name}: {of_all:.2f} ({of_kept:.2f}); T = {last['T']}: "
                f"{last['temporary'] / 2**20:.2f} MiB, {last['against_plain']:.2f} of the time"
            )


def draw_tradeoff(found: dict[str, Any], config: Config) -> Figure:
    """Measured: time against memory. Counted: forward steps against memory."""
    figure, (left, right) = plots.panels(1, 2, size=(11, 4.8))
    for name, row in found["tradeoff"].items():
        if name != FORWARD:
            marker = {"segments": "o", "budget": "s", "all": "D"}[name.split()[0]]
            left.plot(100 - 100 * row["saved"], row["against_plain"], marker, label=name)
    left.plot(100 * (1 - SAVED), TIME, "r*", markersize=12, label="published, T = 1000")
    left.set(
        title=f"{memory.title(config)}, T {config.T}", ylabel="time over that of the plain scan"
    )
    left.set(ylim=(0, 1.6), xlim=(4, 130))
    percent = 100 * np.array(found["counts"]["memory"])
    right.plot(percent, found["counts"]["hidden"], "C2", label="best with hidden states (BPTT-HSM)")
    right.plot(percent, found["counts"]["mixed"], "C3", label="best with internal states too")
    segments = np.array(found["counts"]["segments"])
    right.plot(100 * segments[:, 0], segments[:, 1], "C0o", label="segments")
    right.plot(100, 1, "kD", label="all steps")
    right.set(title="Counted", ylabel="forward steps over T", ylim=(0.8, 6))
    for axes in (left, right):
        axes.set(xlabel="memory, percent of the plain scan", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(True, which="both")
    left.legend(ncols=2)
    right.legend()
    return figure


def draw_growth(found: dict[str, Any], config: Config) -> Figure:
    return memory.draw_growth(found["growth"], config, "temporary", "temporary memory")


STUDY = Study(
    "checkpointing", Config, QUICK, measure, text,
    {"tradeoff.png": draw_tradeoff, "growth.png": draw_growth},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(STUDY.main())
