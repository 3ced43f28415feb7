"""The table of a run, as Markdown."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.bench.case import Case
from experiments.bench.peers import OURS


def table(numbers: dict[str, Any], config: Any) -> str:
    """Ratios, then what it costs to compile and to hold."""
    about, rate, rows, peers = (numbers[k] for k in ("machine", "product_rate", "rows", "peers"))
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    ratios = [[*_name(r), *_ours(r, rate), *(_ratio(r, p) for p in peers)] for r in rows]
    means = [[mean, "", "", "", *each] for mean, each in _means(rows, peers)]
    costs = [[*_name(r), *(_cost(r, p) for p in (OURS.name, *peers))] for r in rows]
    return f"""\
{about["cpu"]}, {about["cores"]} cores; matrix products at {rate / 1e9:.0f} GFLOP/s; \
Python {about["python"]}, {versions}.

Time of each over the time of ours (above 1, ours is faster): median [quartiles] of the paired \
ratios. Limit: the time that the necessary matrix products take at the measured rate, over our \
time. Products alone: the same products in their shapes and order, without anything else.

{markdown(["work", "B, T, D, H", "ours, ms", "limit", *peers], ratios + means)}

Compile time in seconds, and memory for temporary arrays and outputs in MiB (on each device).

{markdown(["work", "B, T, D, H", "ours", *peers], costs)}"""


def markdown(head: list[str], rows: list[list[str]], left: int = 2) -> str:
    """A table; the columns after the first ones are aligned at the right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _name(row: dict) -> list[str]:
    case = Case(**row["case"])
    return [case.name, case.size]


def _quartiles(values: Any, form: str) -> str:
    low, median, high = values
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"


def _ours(row: dict, rate: float) -> list[str]:
    seconds = row["entries"][OURS.name]["seconds"]
    share = row["flops"] / seconds[1] / rate
    return [_quartiles(1e3 * seconds, ".3g"), f"{100 * share:.0f} %"]


def _ratio(row: dict, peer: str) -> str:
    return _quartiles(row["entries"][peer]["ratio"], ".2f") if peer in row["entries"] else "-"


def _means(rows: list[dict], peers: list[str]) -> Iterator[tuple[str, list[str]]]:
    """For each kind of work its name, and the geometric mean of each peer."""
    for work in dict.fromkeys(row["case"]["work"] for row in rows):
        chosen = [row["entries"] for row in rows if row["case"]["work"] == work]
        yield f"**{work}, geometric mean**", [_mean(chosen, peer) for peer in peers]


def _mean(chosen: list[dict], peer: str) -> str:
    ratios = [entries[peer]["ratio"][1] for entries in chosen if peer in entries]
    return f"**{np.exp(np.mean(np.log(ratios))):.2f}**" if ratios else "-"


def _cost(row: dict, peer: str) -> str:
    entry = row["entries"].get(peer, {"compile_seconds": None})
    if entry["compile_seconds"] is None:
        return "-"
    return f"{entry['compile_seconds']:.2f} s, {entry['bytes'] / 2**20:.3g}"
