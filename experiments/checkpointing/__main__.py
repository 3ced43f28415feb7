"""The command line, what it prints and what it draws."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.bench import report
from experiments.bench.memory import PLAIN
from experiments.bench.scaling import slope
from experiments.checkpointing import figures, measuring, programme
from experiments.checkpointing.config import QUICK, Config, check
from experiments.checkpointing.measuring import FORWARD, SAVED, TIME, Row
from experiments.harness import command

_PROGRAM = "python -m experiments.checkpointing"


def study(config: Config) -> dict[str, Any]:
    """The trade-off at one T, the growth with T, and the counts of forward steps."""
    with tqdm((None, *config.lengths), unit="T", dynamic_ncols=True) as bar:
        say = partial(bar.set_postfix_str, refresh=sys.stderr.isatty())
        rows: list[Row] = []
        for T in bar:
            rows += measuring.tradeoff(config, say) if T is None else []
            found = measuring.growth(config, T, say) if T is not None else []
            rows += [row | {"growth": True} for row in found]
            jax.clear_caches()
    tradeoff = [row for row in rows if "growth" not in row]
    return {
        "tradeoff": tradeoff,
        "growth": [row for row in rows if "growth" in row],
        "counts": counts(config, named(tradeoff)[PLAIN]["bytes"]),
    }


def counts(config: Config, plain_bytes: int) -> dict[str, Any]:
    """Forward steps over T, and memory over that of the plain scan, of schedules and segments."""
    B, _, H = config.sizes
    state = 4 * H * (2 if config.cell == "lstm" else 1)  # bytes of one hidden state
    alpha = max(1, round(plain_bytes / (B * config.T * state)))
    slots = max(alpha + 1, int(config.memories * alpha * config.T))
    memory = np.arange(1, slots + 1) / (alpha * config.T)
    mixed, hidden = (
        programme.forward_steps(config.T, slots, a)[config.T, 1:] / config.T for a in (alpha, None)
    )
    segments = [programme.of_segments(config.T, s, alpha) for s in config.segments]
    return {
        "alpha": alpha,
        "memory": memory.tolist(),
        "hidden": hidden.tolist(),
        "mixed": mixed.tolist(),
        "segments": [(m / (alpha * config.T), steps / config.T) for m, steps in segments],
    }


def named(rows: list[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows}


def fastest(rows: list[Row], against: str, saved: str = "saved") -> Row:
    """The row that takes least time of those that save as much as published; else the smallest."""
    rows = [row for row in rows if row["name"] != FORWARD]
    enough = [row for row in rows if row[saved] >= SAVED]
    if enough:
        return min(enough, key=lambda row: row[against])
    return max(rows, key=lambda row: row[saved])


def summary(found: dict[str, Any], T: int) -> str:
    """What a person reads at the end."""
    rows = found["tradeoff"]
    lines = [f"{f'T = {T}':<24}{'MiB':>8}{'saved':>9}{'time':>8}{'of the default':>17}"]
    for row in rows:
        saved = "" if row["name"] == FORWARD else f"{100 * row['saved']:.1f} %"
        lines.append(
            f"{row['name']:<24}{row['bytes'] / 2**20:>8.2f}{saved:>9}"
            f"{row['against_plain']:>8.2f}{row['against_default']:>17.2f}"
        )
    lines.append(
        f'Published: "saves 95% of memory usage while using only one third more time", {TIME:.2f}'
    )
    alone = named(rows)[FORWARD]["bytes"] / 2**20
    for saved, of_memory in (
        ("saved", "memory of the plain scan"),
        (
            "saved_of_kept",
            f"memory, without the {alone:.2f} MiB that the forward pass takes alone,",
        ),
    ):
        for against, of_time in (("against_plain", PLAIN), ("against_default", "the default")):
            row = fastest(rows, against, saved)
            holds = row[saved] >= SAVED and row[against] <= TIME
            lines.append(
                f"  {row['name']} save {100 * row[saved]:.1f} % of the {of_memory} in "
                f"{row[against]:.2f} of the time of {of_time}: {'' if holds else 'not '}reproduced"
            )
    share = named(rows)[FORWARD]["against_default"]
    lines.append(
        f"  One more forward pass is {share:.2f} of the time of the default, {TIME - 1:.2f} where "
        "a backward pass takes two forward passes"
    )
    return "\n".join([*lines, *_counted(found["counts"]), *_growth(found["growth"])])


def _counted(found: dict[str, Any]) -> list[str]:
    memory, steps = min(found["segments"])
    hidden, mixed = (np.interp(memory, found["memory"], found[k]) for k in ("hidden", "mixed"))
    at = int(np.searchsorted(found["memory"], 1 - SAVED))
    best = found["mixed"][min(at, len(found["mixed"]) - 1)]
    return [
        f"Forward steps over T (an internal state = {found['alpha']} hidden states)",
        f"  in {100 * memory:.1f} % of the memory: segments {steps:.2f}, the best schedule "
        f"{mixed:.2f}, of hidden states alone (BPTT-HSM) {hidden:.2f}",
        f"  in 5 %: the best schedule {best:.2f}; if a backward pass takes two forward passes, "
        f"{(best + 2) / 3:.2f} of the time",
    ]


def _growth(rows: list[Row]) -> list[str]:
    lines = ["Bytes grow as T to the (without what the forward pass takes alone)"]
    for name in dict.fromkeys(row["name"] for row in rows if row["name"] != FORWARD):
        mine = [row for row in rows if row["name"] == name]
        T, last = [row["T"] for row in mine], mine[-1]
        power, power_of_kept = (slope(T, [row[key] for row in mine]) for key in ("bytes", "kept"))
        lines.append(
            f"  {name}: {power:.2f} ({power_of_kept:.2f}); T = {last['T']}: "
            f"{last['bytes'] / 2**20:.2f} MiB, {last['against_plain']:.2f} of the time"
        )
    return lines


def run(config: Config) -> None:
    """Measures, prints, and writes the figures and the numbers."""
    check(config)
    with command.new_folder("checkpointing", config.run) as folder:
        found = study(config)
        command.write_numbers(folder, {"machine": report.machine(), **found})
        B, D, H = config.sizes
        title = f"Gradient of {config.cell}: B {B}, D {D}, H {H}"
        figures.tradeoff(folder / "tradeoff.png", found, f"{title}, T {config.T}")
        figures.growth(folder / "growth.png", found["growth"], title)
    print(f"{summary(found, config.T)}\nWritten to {folder}")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, _PROGRAM, argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
