"""The time of the gradient against T, B and H, and the time to compile against T.

    python -m experiments.bench.scaling

One axis grows while the others stay. The slope in the logarithms is the power of the growth: 1 is
linear; below 1, part of the cost is fixed. Prints the slopes, and writes scaling.png and
numbers.json into a new folder.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from experiments.bench import measure, report
from experiments.bench.case import Case
from experiments.bench.config import CellName
from experiments.bench.peers import OURS, linen, ours, pytorch, scan
from experiments.harness import command

_PROGRAM = "python -m experiments.bench.scaling"
PEERS = (scan.PEER, linen.PEER, pytorch.PEER, ours.TWO_DEVICES)
TITLES = {"T": "steps T", "B": "batch B", "H": "units H (D = H)"}


@dataclass(frozen=True)
class Config:
    """Draws the time of the gradient against T, B and H, and the time to compile against T."""

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
    run: Path | None = None
    """Folder for the results; it must not exist. Default: runs/bench_scaling, or the first of
    runs/bench_scaling-2, ... that is free."""
    quick: bool = False
    """Two tiny points an axis."""


QUICK = Config(quick=True, base=(2, 6, 3), T=(6, 12), B=(2, 4), H=(3, 6), seconds=0.1, rounds=2)


class Curve(NamedTuple):
    """What was measured of one entry along one axis."""

    points: list[int]
    seconds: list[float]  # medians
    compile_seconds: list[float | None]


def axes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """The points of each axis; raises BadInput for those that cannot work."""
    axes = {"T": config.T, "B": config.B, "H": config.H}
    if any(len(set(points)) < 2 or min(points) < 1 for points in axes.values()):
        raise command.BadInput("--T, --B, --H: expected at least two positive integers each")
    return axes


def study(config: Config) -> dict[str, dict[str, Curve]]:
    """The curve of each entry, by axis."""
    peers, skipped = measure.available(PEERS)
    print("".join(f"{line}\n" for line in skipped), end="")
    axes = axes_of(config)
    found: dict[str, dict[str, Curve]] = {axis: {} for axis in axes}
    todo = [(axis, n) for axis, points in axes.items() for n in points]
    with tqdm(todo, unit="point", dynamic_ncols=True) as bar:
        say = partial(bar.set_postfix_str, refresh=sys.stderr.isatty())
        for axis, n in bar:
            sizes = dict(zip("BTH", config.base, strict=True)) | {axis: n}
            case = Case("gradient", config.cell, 1, sizes["B"], sizes["T"], sizes["H"], sizes["H"])
            _, entries = measure.build(case, OURS, peers, config.tolerance, say)
            times = measure.times(entries, config.rounds, config.seconds, say)
            for name, entry in entries.items():
                curve = found[axis].setdefault(name, Curve([], [], []))
                curve.points.append(n)
                curve.seconds.append(float(np.median(times[name])))
                curve.compile_seconds.append(entry.compile_seconds)
            jax.clear_caches()
    return found


def describe_slope(curve: Curve) -> str:
    """The slope over all points, and over the last two, where fixed costs weigh least."""
    end = slope(curve.points[-2:], curve.seconds[-2:])
    return f"{slope(curve.points, curve.seconds):.2f} (at the end {end:.2f})"


def slope(points: Sequence[int], seconds: Sequence[float]) -> float:
    """The power with which the seconds grow: least squares in the logarithms."""
    return float(np.polyfit(np.log(points), np.log(seconds), 1)[0])


def plot(path: Path, found: Mapping[str, Mapping[str, Curve]], title: str) -> None:
    """Four panels: time against each axis, and the time to compile against T."""
    figure = Figure(figsize=(11, 8), dpi=130, layout="constrained")
    *panels, last = figure.subplots(2, 2).flat
    for axes, (axis, curves) in zip(panels, found.items(), strict=True):
        for k, (name, curve) in enumerate(curves.items()):
            label = f"{name}: slope {describe_slope(curve)}"
            _line(axes, k, curve.points, 1e3 * np.array(curve.seconds), label)
        axes.set(xlabel=TITLES[axis], ylabel="gradient, ms", yscale="log")
        axes.margins(y=0.2)  # room for the legend
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    for k, (name, curve) in enumerate(found["T"].items()):
        if None not in curve.compile_seconds:
            _line(last, k, curve.points, curve.compile_seconds, name)
    last.set(xlabel=TITLES["T"], ylabel="time to compile, s")
    last.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower left" if axes is last else "upper left")
    figure.suptitle(title)
    figure.savefig(path)


def _line(axes: Any, k: int, points: Sequence[int], values: Any, label: str) -> None:
    axes.plot(points, values, "o-", color=f"C{k}", label=label, zorder=9 - k, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, [str(n) for n in points])
    axes.minorticks_off()


def describe(found: Mapping[str, Mapping[str, Curve]]) -> Iterator[str]:
    """A line for each curve."""
    for axis, curves in found.items():
        for name, curve in curves.items():
            power = describe_slope(curve)
            yield f"{name}: the time of the gradient grows as {axis} to the {power}"
    for name, curve in found["T"].items():
        (few, *_, many), (first, *_, last) = curve.points, curve.compile_seconds
        if first is not None and last is not None:
            yield f"{name}: compiled in {first:.2f} s for T = {few}, in {last:.2f} s for T = {many}"


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, _PROGRAM, argv)))


def run(config: Config) -> None:
    """Measures, prints the slopes and draws."""
    measure.two_cpu_devices()
    axes_of(config)
    with command.new_folder("bench_scaling", config.run) as folder:
        found, about = study(config), report.machine()
        curves = {a: {n: c._asdict() for n, c in curves.items()} for a, curves in found.items()}
        command.write_numbers(folder, {"machine": about, "curves": curves})
        B, T, H = config.base
        where = f"{about['cpu']}, {about['cores']} cores"
        title = f"Gradient of {config.cell}, float32, B = {B}, T = {T}, D = H = {H}; {where}"
        plot(folder / "scaling.png", found, title)
    print(*describe(found), f"Written to {folder}", sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
