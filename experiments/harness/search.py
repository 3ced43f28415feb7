"""Training many nets at once until each has learned, or the budget is used up.

A study of this kind makes searches, one compiled call for each chunk of updates, and every search
gives rows: what was tried, ``solved_at`` (for each net the updates after which it had learned, 0 if
it had not) and ``updates`` (tried in all). A net that has learned stays as it is.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness import command, plots, study

Net = Any  # a pytree: all that an update reads and writes; nets have a leading axis S
Update = Callable[[Net, jax.Array], tuple[Net, Any]]  # (net, key) -> (net, report)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options(study.Options):
    """The options of a study that searches."""

    seeds: int = 5
    """Nets of each kind, trained in one call."""
    updates: int = 2000
    """Updates after which a net counts as failed."""
    minutes: float = 0.0
    """Stop at the next report after so many minutes, done or not; 0 for no such limit."""

    def check(self) -> None:
        super().check()
        command.at_least(self, seeds=1, updates=1, minutes=0)


class Found(NamedTuple):
    """What a search has come to."""

    nets: Net  # each as it was at the end of the chunk in which it succeeded
    solved_at: np.ndarray  # int [S], updates until success; 0 for none
    updates: int  # tried in all

    def row(self, nets: slice = slice(None), **about: Any) -> Row:
        """What there is of some nets, beside what else is to be said of them."""
        return about | {"solved_at": self.solved_at[nets].tolist(), "updates": self.updates}


class Search(NamedTuple):
    """Nets that train side by side."""

    name: str
    nets: Net  # before the first update, leading axis S
    update: Update  # of one net
    # after each chunk of n: (nets, reports [n, S], updates) -> int [S], as `solved_at`
    solved: Callable[[Net, Any, int], np.ndarray]
    key: jax.Array
    chunk: int  # updates in a call
    rows: Callable[[Found], list[Row]]


def run(search: Search, budget: int, deadline: float = math.inf) -> Iterator[Found]:
    """What there is after each chunk, until all nets are solved.

    Args:
      search: the nets, and how they learn.
      budget: the most updates, rounded up to whole chunks.
      deadline: `time.monotonic()` after which no chunk begins, but for the first.
    """
    nets, chunk = search.nets, min(search.chunk, budget)
    solved_at, done = np.zeros(len(jax.tree.leaves(nets)[0]), int), 0
    advance = make_advance(search.update, chunk)
    while done < budget and not solved_at.all() and (not done or time.monotonic() <= deadline):
        nets, reports = advance(nets, jnp.asarray(solved_at == 0), search.key, np.int32(done))
        done += chunk
        now = search.solved(nets, reports, done)
        solved_at = np.where(solved_at > 0, solved_at, now)
        yield Found(nets, solved_at, done)


def make_advance(update: Update, chunk: int) -> Callable[..., tuple[Net, Any]]:
    """``(nets, active [S], key, start) -> (nets, reports [chunk, S])``, compiled."""

    def one(net: Net, active: jax.Array, key: jax.Array) -> tuple[Net, Any]:
        new, report = update(net, key)
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, net), report

    @jax.jit
    def advance(nets: Net, active: jax.Array, key: jax.Array, start: jax.Array) -> Any:
        def step(nets: Net, number: jax.Array) -> tuple[Net, Any]:
            keys = jax.random.split(jax.random.fold_in(key, number), len(active))
            return jax.vmap(one)(nets, active, keys)

        return jax.lax.scan(step, nets, start + jnp.arange(chunk, dtype=jnp.int32))

    return advance


def measure(
    config: Options, say: study.Progress, find: Callable[..., Search], *options: Iterable[Any]
) -> dict[str, list[Row]]:
    """The rows of ``find(config, *case)`` for each case; where one is interrupted, those so far.

    `options` are the values of the parts of a case: all go with all.
    """
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else math.inf
    rows: list[Row] = []
    cases = list(product(*options))
    say.expect(len(cases))
    for case in cases:
        search, found = find(config, *case), None
        say(search.name)
        try:
            for found in run(search, config.updates, deadline):
                solved = f"{(found.solved_at > 0).sum()} of {len(found.solved_at)} learned"
                say.note(f"{found.updates} updates, {solved}")
        finally:
            rows += search.rows(found) if found else []
            if rows:
                say.keep({"rows": rows})
    return {"rows": rows}


def times(row: Row) -> list[int]:
    """The updates of those that learned."""
    return [n for n in row["solved_at"] if n]


def outcome(row: Row) -> str:
    """Seeds that learned, and the median of their updates; if none did, the updates tried."""
    share = f"{len(times(row))}/{len(row['solved_at'])}"
    return f"{share} {np.median(times(row)):g}" if times(row) else f"{share} >{row['updates']}"


def verdict(row: Row) -> str:
    """Whether a published success was seen again."""
    failed = row["solved_at"].count(0)
    if not failed:
        return "reproduced"
    return f"not reproduced within {row['updates']} updates by {failed} of {len(row['solved_at'])}"


def draw(rows: Sequence[Row], names: Sequence[str], title: str, unit: str) -> tuple[Figure, Axes]:
    """A line for each row, with the updates of each seed until it had learned."""
    figure, axes = plots.panels(size=(8, 0.6 * len(rows) + 1.6))
    labels = ("a seed learned", "not within the budget")
    failed = [[row["updates"]] * row["solved_at"].count(0) for row in rows]
    plots.dots(axes, names, [times(row) for row in rows], failed, labels)
    axes.set(title=title, xlabel=unit)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure, axes
