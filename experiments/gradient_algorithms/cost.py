"""Time and memory of each algorithm on one sequence of a tanh net, in float32."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.nets import program
from experiments.harness import plots
from experiments.harness.measure import times
from experiments.harness.study import Progress
from rnn_jax.gradients import REGISTER

STEPS = 64
LONGER = 256  # for memory: what does not grow with T
# The two left out are for other nets, and of another gradient.
NAMES = [name for name in REGISTER if name not in ("elementwise_rtrl", "implicit")]


def measure(config: Config, say: Progress) -> list[dict[str, Any]]:
    """A row for each algorithm and size."""
    rows = []
    for n in config.units:
        programs, held = {}, {}
        for name in config.chosen(NAMES):
            say(f"compiling {name}, n = {n}")
            programs[name] = program(name, n, STEPS)
            held[name] = [programs[name].temporary]
            if n == max(config.units):
                held[name].append(program(name, n, LONGER).temporary)
        for name, seconds in times(programs, rounds=config.rounds).items():
            row = {"name": name, "n": n, "us a step": 1e6 * float(np.median(seconds)) / STEPS}
            row |= {f"{w} by the register": getattr(REGISTER[name], w) for w in ("time", "memory")}
            rows.append(row | {"bytes": held[name]})
    return rows


def text(rows: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({row["n"] for row in rows})
    head = "".join(f"{f'n = {n}':>9}" for n in sizes)
    lines = [f"Cost: us a step (T = 64) and KiB held (T = 64, 256 at n = {sizes[-1]})"]
    lines.append(f"  {'':<22}{head}{'KiB':>18}  register: time, memory")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        us = "".join(f"{row['us a step']:>9.1f}" for row in mine)
        held = " ".join(f"{b / 1024:8.0f}" for b in mine[-1]["bytes"])
        formulas = f"{mine[0]['time by the register']}; {mine[0]['memory by the register']}"
        lines.append(f"  {name:<22}{us} {held}  {formulas}")
    return lines


def figure(rows: list[dict[str, Any]]) -> Figure:
    figure, (left, right) = plots.panels(1, 2, size=(11.5, 5))
    for j, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = [row for row in rows if row["name"] == name]
        n = [row["n"] for row in mine]
        style = {"marker": "osD^v"[j % 5], "color": f"C{j % 10}", "markersize": 4}
        style["linestyle"] = "--" if j >= 10 else "-"
        left.plot(n, [row["us a step"] for row in mine], label=name, **style)
        right.plot(n, [row["bytes"][0] / 1024 for row in mine], **style)
    left.set(title=f"Time, T = {STEPS}", ylabel="us a step")
    right.set(title=f"Memory while it runs, T = {STEPS}", ylabel="KiB")
    for axes in (left, right):
        axes.set(xlabel="hidden units n", yscale="log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(n, [str(i) for i in n])
    figure.legend(loc="outside right center")
    return figure


PART = Part("cost", lambda c: len(c.units) * len(c.chosen(NAMES)), measure, text, figure)
