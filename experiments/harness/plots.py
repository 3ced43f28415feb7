"""Figures in one style, and the panels that several experiments draw."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("figures.mplstyle")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Inside the ``with``, figures are made and saved in the style of all experiments."""
    with matplotlib.style.context(STYLE):
        yield


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (8, 5), **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, as `matplotlib.figure.Figure.subplots` gives them; size in inches."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def quartiles(samples: Any, axis: int = -1) -> np.ndarray:
    """25, 50 and 75 % of `samples` over `axis`; these three are the first axis."""
    return np.quantile(np.asarray(samples), (0.25, 0.5, 0.75), axis=axis)


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
