"""The time of the gradient against T, B and H, and the time to compile against T.

    python -m experiments.bench.scaling

One axis grows while the others stay. The slope in the logarithms is the power of the growth: 1 is
linear; below 1, part of the cost is fixed.
"""

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.bench import peers
from experiments.bench.case import Case, CellName, make
from experiments.bench.peers import linen, ours, pytorch, scan
from experiments.harness import command, plots
from experiments.harness.measure import machine, power, times
from experiments.harness.study import Options, Progress, Study

PEERS = (scan.PEER, linen.PEER, pytorch.PEER, ours.TWO_DEVICES)
Curve: TypeAlias = dict[str, list]  # points, medians of the seconds, seconds to compile
AXES = {"T": "steps T", "B": "batch B", "H": "units H (D = H)"}


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Draws the time of the gradient against T, B and H, and the time to compile against T.

    Writes scaling.png and numbers.json.
    """

    cell: CellName = "lstm"
    """Recurrent cell."""
    base: tuple[int, int, int] = (32, 100, 128)
    """B T H where they stay; D is H."""
    T: tuple[int, ...] = (25, 50, 100, 200, 400, 800)
    """Numbers of steps."""
    B: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Sizes of the batch."""
    H: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Numbers of units."""
    seconds: float = 3.0
    """How long the rounds of a point go on."""
    rounds: int = 5
    """Rounds of a point, at least."""
    tolerance: float = 1e-4
    """Largest difference from our outputs and gradients, relative to their norm."""

    def check(self) -> None:
        super().check()
        command.at_least(self, base=1, T=1, B=1, H=1, rounds=1, seconds=0.0)
        command.above_zero(self, "tolerance")
        for axis in AXES:
            command.require(self, axis, len(set(getattr(self, axis))) > 1, "at least two sizes")


QUICK = Config(quick=True, base=(2, 6, 3), T=(6, 12), B=(2, 4), H=(3, 6), seconds=0.1, rounds=2)
# fmt: on


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The curve of each entry, by axis."""
    able = peers.installed(PEERS)
    points = [(axis, n) for axis in AXES for n in getattr(config, axis)]
    curves: dict[str, dict[str, Curve]] = {axis: {} for axis in AXES}
    found = {"machine": machine(), "curves": curves}
    say.expect(len(points))
    for axis, n in points:
        say(f"{axis} = {n}")
        sizes = dict(zip("BTH", config.base, strict=True)) | {axis: n}
        case = Case("gradient", config.cell, 1, sizes["B"], sizes["T"], sizes["H"], sizes["H"])
        entries = peers.build(make(case, config.seed), able, config.tolerance, say.note)
        programs = {name: entry.run for name, entry in entries.items()}
        each = times(programs, rounds=config.rounds, seconds=config.seconds, note=say.note)
        for name, entry in entries.items():
            curve = curves[axis].setdefault(name, {})
            curve.setdefault("points", []).append(n)
            curve.setdefault("seconds", []).append(float(np.median(each[name])))
            curve.setdefault("compile_seconds", []).append(entry.compile_seconds)
        say.keep(found)
        jax.clear_caches()
    return found


def growth(curve: Curve) -> str:
    """The power over all points, and over the last two, where fixed costs weigh least."""
    points, seconds = curve["points"], curve["seconds"]
    end = power(points[-2:], seconds[-2:])
    return f"{power(points, seconds):.2f} (at the end {end:.2f})"


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """Four panels: time against each axis, and the time to compile against T."""
    figure, panels = plots.panels(2, 2, size=(11, 8))
    *first, last = panels.flat
    for axes, (axis, curves) in zip(first, numbers["curves"].items(), strict=True):
        for k, (name, curve) in enumerate(curves.items()):
            options = {"color": f"C{k}", "zorder": 9 - k, "markersize": 4}
            points, ms = curve["points"], 1e3 * np.array(curve["seconds"])
            axes.plot(points, ms, "o-", label=f"{name}: slope {growth(curve)}", **options)
            if axis == "T" and None not in curve["compile_seconds"]:
                last.plot(points, curve["compile_seconds"], "o-", label=name, **options)
        axes.set(xlabel=AXES[axis], ylabel="gradient, ms", yscale="log")
        axes.margins(y=0.2)  # room for the legend
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    last.set(xlabel=AXES["T"], ylabel="time to compile, s", ylim=0)
    for axes, axis in zip(panels.flat, (*AXES, "T"), strict=True):
        axes.set_xscale("log")
        plots.x_ticks(axes, getattr(config, axis))
        axes.legend()
    B, T, H = config.base
    where = "{cpu}, {cores} cores".format(**numbers["machine"])
    title = f"Gradient of {config.cell}, float32, B = {B}, T = {T}, D = H = {H}; {where}"
    figure.suptitle(title)
    return figure


def text(numbers: dict[str, Any], config: Config) -> str:
    """A line for each curve."""
    curves: dict[str, dict[str, Curve]] = numbers["curves"]
    lines = [
        f"{name}: the time of the gradient grows as {axis} to the {growth(curve)}"
        for axis, of_axis in curves.items()
        for name, curve in of_axis.items()
    ]
    for name, curve in curves["T"].items():
        (few, *_, many), (first, *_, last) = curve["points"], curve["compile_seconds"]
        if first is not None and last is not None:
            lines.append(
                f"{name}: compiled in {first:.2f} s for T = {few}, in {last:.2f} s for T = {many}"
            )
    return "\n".join(lines)


STUDY = Study("bench.scaling", Config, QUICK, measure, text, {"scaling.png": draw})

if __name__ == "__main__":
    peers.two_cpu_devices()
    sys.exit(STUDY.main())
