"""Figures in one style, and the panels that several experiments draw."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness.measure import quartiles

LN2 = float(np.log(2))
STYLE = Path(__file__).with_name("figures.mplstyle")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Inside the ``with``, figures are made and saved in the style of all experiments."""
    with matplotlib.style.context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # an empty box is drawn
        yield


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (8, 5), **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, as `matplotlib.figure.Figure.subplots` gives them; size in inches."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def ribbon(
    axes: Axes, x: Any, low_middle_high: Any, label: str, color: str, style: str = "-"
) -> None:
    """What `quartiles` gives, as a line in a band."""
    low, middle, high = np.asarray(low_middle_high)
    axes.plot(x, middle, style, color=color, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def band(
    axes: Axes, x: Any, samples: Any, label: str, color: str, style: str = "-", *, axis: int = -1
) -> None:
    """The median and the quartiles of `samples` over `axis`, as a line in a band."""
    ribbon(axes, x, quartiles(samples, axis), label, color, style)


def lines(axes: Axes, x: Any, rows: Any, label: str, color: str, **style: Any) -> None:
    """A line for each row, as one for each seed, under one name in the legend."""
    for number, row in enumerate(rows):
        axes.plot(x, row, color=color, label=None if number else label, **style)


def x_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at these values alone, written as they are; on a logarithmic axis set it first."""
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xticks([], minor=True)


def matrix(
    axes: Axes,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    dark: float = math.inf,
    **image: Any,
) -> Any:
    """A table of colours with a text in each field; white text where a value is above `dark`.

    `image` are options of `Axes.imshow`, which this returns the result of.
    """
    values = np.asarray(values)
    drawn = axes.imshow(values, aspect="auto", **image)
    for (y, x), value in np.ndenumerate(values):
        color = "white" if value > dark else "black"
        axes.text(x, y, texts[y][x], ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    return drawn


def bars(values: Mapping[str, Sequence[float]], label: str, form: str = "%.3f") -> Figure:
    """A bar for each name, from the top, as long as the mean of its values, which are dots."""
    figure, axes = panels(size=(9, 1.2 + 0.42 * len(values)))
    means = [float(np.mean(several)) for several in values.values()]
    found = axes.barh(
        range(len(values)),
        means,
        color=["C0" if "this" in n or "these" in n else "0.7" for n in values],
    )
    axes.bar_label(found, [form % mean for mean in means], padding=14)
    for i, several in enumerate(values.values()):
        if len(several) > 1:
            axes.plot(several, [i] * len(several), "k.", markersize=4)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    axes.margins(x=0.15)
    return figure


def loss_curve(rows: list[dict[str, Any]], title: str, unit: str) -> Figure:
    """Training and validation loss over the updates, with the range of nets side by side."""
    figure, axes = panels()
    chunks = [row for row in rows if row.get("loss") is not None]
    scored = [row for row in rows if "validation_loss" in row]
    steps, losses = ([row[key] for row in chunks] for key in ("step", "loss"))
    axes.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8, label="training, each report")
    for key, color, name in (
        ("training_loss", "C0", "training, mean since the last score"),
        ("validation_loss", "C1", "validation"),
    ):
        pairs = [(row["step"], row[key]) for row in scored if row[key] is not None]
        if pairs:
            best = min(value for _, value in pairs)
            text = f"{name} (best {best:.4f})" if key == "validation_loss" else name
            axes.plot(*zip(*pairs, strict=True), "o-", color=color, markersize=4, label=text)
    many = [row for row in scored if "nets" in row]
    if many:
        each = np.array([[net["loss"] for net in row["nets"]] for row in many])
        at, low, high = [row["step"] for row in many], each.min(axis=1), each.max(axis=1)
        label = f"range of {each.shape[1]} nets"
        axes.fill_between(at, low, high, color="C1", alpha=0.2, linewidth=0, label=label)
    late = [
        value
        for row in chunks + scored
        if row["step"] >= 0.05 * rows[-1]["step"]
        for key in ("loss", "training_loss", "validation_loss")
        if (value := row.get(key)) is not None and np.isfinite(value)
    ]
    if late and max(late) > min(late):  # the steep beginning would flatten the rest
        margin = 0.05 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set(xlabel="updates", ylabel=f"loss, {unit}" if unit else "loss")
    axes.set_title(title, parse_math=False)  # the name of a file may have a $
    if unit.startswith("nats"):
        bits = axes.secondary_yaxis("right", functions=(lambda x: x / LN2, lambda x: x * LN2))
        bits.set_ylabel(unit.replace("nats", "bits", 1))
    axes.legend(loc="upper right")  # "best" is slow, and warns when it is
    return figure


def dots(
    axes: Axes,
    names: Sequence[str],
    reached: Sequence[Sequence[float]],
    missed: Sequence[Sequence[float]],
    labels: tuple[str, str],
) -> None:
    """A line for each name, from the top: its values as dots, one upon the other where they are
    equal, and what was missed as open triangles beside each other."""
    for y, (values, limits) in enumerate(zip(reached, missed, strict=True)):
        axes.plot(values, [y] * len(values), "o", color="C0", alpha=0.6)
        spread = y + 0.08 * (np.arange(len(limits)) - (len(limits) - 1) / 2)
        axes.plot(limits, spread, ">", color="C3", markerfacecolor="none")
    axes.plot([], [], "o", color="C0", alpha=0.6, label=labels[0])
    axes.plot([], [], ">", color="C3", markerfacecolor="none", label=labels[1])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
