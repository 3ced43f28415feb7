"""What a person reads at the end."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.gradient_algorithms import balancing, bias, exactness, learning, variance


def verdict(holds: bool) -> str:
    """The word for a claim."""
    return "reproduced" if holds else "NOT reproduced"


def summary(found: dict[str, Any]) -> str:
    """All parts that were run, and how long each took."""
    lines = []
    for name, write in PARTS.items():
        if name in found:
            lines += write(found[name])
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    return "\n".join([*lines, f"Time: {times}"])


def _balancing(found: dict[str, Any]) -> list[str]:
    d, runs = found["influence"], found["runs"]
    lines = ["Influence balancing: d s_1 / d theta after k steps (published / ours)"]
    pairs = {k: (p, d[k - 1]) for k, p in balancing.PUBLISHED_INFLUENCE.items()}
    lines.append("  " + ", ".join(f"{k}: {p:g} / {o:.2f}" for k, (p, o) in pairs.items()))
    means = np.cumsum(d) / np.arange(1, len(d) + 1)
    first = int(np.flatnonzero(means > 0).max()) + 2
    lines.append(
        f"  A window of k steps sees the mean of the first k, which is negative from k = {first} on"
    )
    for name, run in runs.items():
        last = run["loss"][:, -1]
        shown = f"{np.median(last):.1e}" if np.isfinite(last).all() else "infinite"
        seeds = f" (median of {len(last)} seeds)" if len(last) > 1 else ""
        lines.append(f"  {name:<18}{run['verdict']:<11}loss {shown}{seeds}; {run['why']}")
    claims = balancing.PUBLISHED_TO_CONVERGE.items()
    agree = all((runs[f"truncated, {k}"]["verdict"] == "converges") == c for k, c in claims)
    lines.append(
        "  Tallec, Ollivier 2018: k = 1, 10, 100 diverge, k = 200 converges: " + verdict(agree)
    )
    if "uoro" in runs:
        lines.append("  ... and UORO converges: " + verdict(runs["uoro"]["verdict"] == "converges"))
    return lines


def _exactness(found: dict[str, Any]) -> list[str]:
    columns = list(next(iter(found.values())))
    width = {
        c: max(len(c), *(len(exactness.text(row[c])) for row in found.values())) for c in columns
    }
    lines = [
        "Exactness (relative error of exact ones; error (cosine) of biased ones; largest z of the "
        "mean of unbiased ones)",
        "  " + " " * 22 + "  ".join(f"{c:<{width[c]}}" for c in columns),
    ]
    reasons: dict[str, str] = {}
    for name, row in found.items():
        texts = "  ".join(f"{exactness.text(row[c]):<{width[c]}}" for c in columns)
        lines.append(f"  {name:<22}{texts}".rstrip())
        for entry in row.values():
            if "why" in entry:
                reasons[name] = entry["why"]
    lines += [f"  -: {name}: {why}" for name, why in reasons.items()]
    entries = [entry for row in found.values() for entry in row.values()]
    agree = sum(map(exactness.holds, entries))
    served = sum("why" not in entry for entry in entries)
    lines.append(
        f"  {served} of {len(entries)} pairs served; {agree} of {len(entries)} as the register "
        f"says: {'all hold' if agree == len(entries) else 'SOME DO NOT HOLD'}"
    )
    return lines


def _variance(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["Relative standard deviation of one draw, median [quartiles] of the nets; earlier", ""]
    lines[1] = "  prototype, not published; work: variance x time, in times of the exact gradient"
    for row in rows:
        low, median, high = row["std"]
        earlier = variance.EARLIER.get(row["name"], {}).get((row["n"], row["T"]))
        beside = f"earlier {earlier:g}" if earlier else ""
        lines.append(
            f"  n = {row['n']:<3} T = {row['T']:<4}{row['name']:<21}{median:8.3g} "
            f"[{low:.3g}, {high:.3g}]  work {row['work']:.3g}  {beside}".rstrip()
        )
    return lines


def _stream(found: dict[str, Any]) -> list[str]:
    lines = [f"Endless stream, recall of the input {learning.LAG} steps before (chance 0.5)"]
    for name, run in found.items():
        first, last = run["losses"][:, 0], run["losses"][:, -1]
        carry, program = (
            "{} and {}".format(*run[f"{what} bytes"]) for what in ("carry", "program")
        )
        lines.append(
            f"  {name:<6}{1e6 * run['seconds a step']:.1f} us a step ({len(last)} seeds side by "
            f"side); loss {np.median(first):.3f} -> {np.median(last):.2g}; bytes for "
            f"{learning.SHORT} steps and for all: carry {carry}, program {program}"
        )
    return lines


def _sweep(found: dict[str, Any]) -> list[str]:
    low, median, high = found["last"]
    seeds = len(found["losses"])
    return [
        f"Sweep: {seeds} seeds of {found['algorithm']} for {found['steps']} steps, one call: "
        f"{found['seconds']:.2f} s, one seed alone {found['seconds of one seed']:.2f} s; "
        f"two calls traced {found['traces']} program",
        f"  loss at the end, median [quartiles] of the seeds: {median:.2g} [{low:.2g}, {high:.2g}]",
    ]


def _cost(rows: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({row["n"] for row in rows})
    head = "".join(f"{f'n = {n}':>9}" for n in sizes)
    lines = [f"Cost: us a step (T = 64) and KiB held (T = 64, 256 at n = {sizes[-1]})"]
    lines.append(f"  {'':<22}{head}{'KiB':>18}  register: time, memory")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        times = "".join(f"{row['us a step']:>9.1f}" for row in mine)
        held = " ".join(f"{b / 1024:8.0f}" for b in mine[-1]["bytes"])
        formulas = f"{mine[0]['time by the register']}; {mine[0]['memory by the register']}"
        lines.append(f"  {name:<22}{times} {held}  {formulas}")
    return lines


def _bias(found: dict[str, Any]) -> list[str]:
    lines = ["Bias: relative error of the gradient, T = 16, median of the nets (earlier prototype)"]
    for kind in ("k1 = 1", "k1 = k2"):
        medians = zip(found["lengths"], found[kind], strict=True)
        earlier = bias.EARLIER[kind]
        texts = [f"{k}: {q[1]:.2g} ({earlier.get(k, '-')})" for k, q in medians]
        lines.append(f"  {kind:<8} k2 = {', '.join(texts)}")
    lines += [f"  {name:<8} {q[1]:.2g}" for name, q in found["others"].items()]
    return lines


PARTS: dict[str, Callable[[Any], list[str]]] = {
    "balancing": _balancing,
    "exactness": _exactness,
    "variance": _variance,
    "stream": _stream,
    "sweep": _sweep,
    "cost": _cost,
    "bias": _bias,
}
