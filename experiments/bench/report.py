"""The tables and the numbers of a run."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.case import Case, Problem, flops
from experiments.bench.entry import Entry

PACKAGES = ("jax", "jaxlib", "flax", "equinox", "dm-haiku", "keras", "torch", "numpy")


def row(problem: Problem, entries: Mapping[str, Entry], times: Mapping[str, Sequence]) -> dict:
    """All numbers of a case."""
    ours = np.array(next(iter(times.values())))
    return {
        "case": problem.case._asdict(),
        "flops": flops(problem),
        "entries": {
            name: {
                "seconds": _quartiles(times[name]),
                "ratio": _quartiles(np.array(times[name]) / ours),
                "compile_seconds": entry.compile_seconds,
                "bytes": entry.bytes,
                "rounds": list(times[name]),
            }
            for name, entry in entries.items()
        },
    }


def _quartiles(values: Any) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.5, 0.25, 0.75])]  # the median first


def machine() -> dict[str, Any]:
    """What the times depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tables(rows: Sequence[dict], peers: Sequence[str], rate: float, about: dict) -> str:
    """Markdown: ratios, then what it costs to compile and to hold."""
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    return "\n".join(
        [
            f"{about['cpu']}, {about['cores']} cores; matrix products at {rate / 1e9:.0f} GFLOP/s; "
            f"Python {about['python']}, {versions}.",
            "",
            "Time of each over the time of ours (above 1, ours is faster): median [quartiles] of "
            "the paired ratios. Limit: the time that the necessary matrix products take at the "
            "measured rate, over our time. Products alone: the same products in their shapes and "
            "order, without anything else.",
            "",
            *_table(
                ["work", "B, T, D, H", "ours, ms", "limit", *peers],
                [[*_name(r), *_ours(r, rate), *(_ratio(r, p) for p in peers)] for r in rows]
                + [_means(rows, work, peers) for work in _works(rows)],
            ),
            "",
            "Compile time in seconds, and memory for temporary arrays and outputs in MiB (on each "
            "device).",
            "",
            *_table(
                ["work", "B, T, D, H", "ours", *peers],
                [[*_name(r), *(_cost(r, p) for p in (_first(r), *peers))] for r in rows],
            ),
            "",
        ]
    )


def _table(head: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]


def _name(row: dict) -> list[str]:
    case = Case(**row["case"])
    extras = [f"{case.layers} layers"] if case.layers > 1 else []
    extras += ["two directions"] if case.bidirectional else []
    extras += ["lengths"] if case.lengths else []
    work = ", ".join([case.work, case.cell, *extras])
    return [work, f"{case.B}, {case.T}, {case.D}, {case.H}"]


def _first(row: dict) -> str:
    return next(iter(row["entries"]))


def _ours(row: dict, rate: float) -> list[str]:
    median, low, high = row["entries"][_first(row)]["seconds"]
    share = row["flops"] / median / rate
    return [f"{1e3 * median:.3g} [{1e3 * low:.3g}, {1e3 * high:.3g}]", f"{100 * share:.0f} %"]


def _ratio(row: dict, peer: str) -> str:
    if peer not in row["entries"]:
        return "-"
    median, low, high = row["entries"][peer]["ratio"]
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def _works(rows: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(row["case"]["work"] for row in rows))


def _means(rows: Sequence[dict], work: str, peers: Sequence[str]) -> list[str]:
    return [f"**{work}, geometric mean**", "", "", "", *(_mean(rows, work, p) for p in peers)]


def _mean(rows: Sequence[dict], work: str, peer: str) -> str:
    chosen = [row["entries"] for row in rows if row["case"]["work"] == work]
    ratios = [entries[peer]["ratio"][0] for entries in chosen if peer in entries]
    return f"**{np.exp(np.mean(np.log(ratios))):.2f}**" if ratios else "-"


def _cost(row: dict, peer: str) -> str:
    entry = row["entries"].get(peer, {"compile_seconds": None})
    if entry["compile_seconds"] is None:
        return "-"
    return f"{entry['compile_seconds']:.2f} s, {entry['bytes'] / 2**20:.3g}"


def write(folder: Path, config: dict, rows: Sequence[dict], text: str, rate: float) -> None:
    """Everything so far, after each row: an interrupted run keeps what it has."""
    (folder / "table.md").write_text(text, encoding="utf-8")
    results = {"machine": machine(), "config": config, "product_rate": rate, "rows": rows}
    (folder / "results.json").write_text(
        json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8"
    )
