"""What each gradient algorithm is: one entry each, from which the table of the docs is made."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from rnn_jax.gradients.bptt import bptt
from rnn_jax.gradients.deer import deer
from rnn_jax.gradients.forward_gradient import forward_gradient
from rnn_jax.gradients.implicit import implicit
from rnn_jax.gradients.kronecker import kf_rtrl, ok
from rnn_jax.gradients.local import e_prop, lstm_1997, rflo
from rnn_jax.gradients.random_truncation import artbp, randomized_telescope
from rnn_jax.gradients.rtrl import rtrl
from rnn_jax.gradients.snap import elementwise_rtrl, snap
from rnn_jax.gradients.truncated import truncated_bptt
from rnn_jax.gradients.uoro import uoro


class Entry(NamedTuple):
    """One algorithm. Of a step: n numbers of state, P params, F the time of its forward pass."""

    algorithm: Callable[..., Any]  # (cell, loss, **options)
    options: dict[str, Any]  # those without a default, as in the tables
    kind: str  # "exact", "unbiased" or "biased"
    limit: str  # where a biased one is exact; of what an exact one is the gradient, if not of all
    online: bool
    needs: str  # of the cell
    time: str  # a step
    memory: str  # of a sequence of T steps
    recommended: bool
    because: str


ANY, MATRICES = "any", "any; saves memory for `h @ w`"
REGISTER: dict[str, Entry] = {
    "bptt": Entry(
        bptt, {}, "exact", "", False, ANY, "3 F", "T n, or sqrt(T) n in segments",
        True, "exact and fast, with `segment` for long sequences",
    ),
    "truncated_bptt": Entry(
        truncated_bptt, {"k1": 8, "k2": 16}, "biased", "k2 >= T", False, ANY, "3 F k2 / k1", "k2 n",
        True, "for endless streams whose dependencies are shorter than k2",
    ),
    "rtrl": Entry(
        rtrl, {}, "exact", "", True, ANY, "n F + n^2 P", "n P",
        False, "time n^4; for small nets, and as the truth that others are held against",
    ),
    "elementwise_rtrl": Entry(
        elementwise_rtrl, {}, "exact", "", True, "units that see only themselves", "F + P", "P",
        True, "exact and online where the recurrence is diagonal",
    ),
    "implicit": Entry(
        implicit, {}, "exact", "of the equilibrium", False, "a step that settles", "n F + n^3",
        "n^2", True, "for nets that settle; backpropagation would store the way",
    ),
    "deer": Entry(
        deer, {}, "exact", "", False, "a state of floats", "n F + n^3 log T", "T n^2",
        False, "only for small states on a wide machine; a CPU is faster in the loop",
    ),
    "snap": Entry(
        snap, {"n": 1}, "biased", "n where all is reached", True, ANY, "n F + K^2 P", "K P",
        True, "n = 1 online for gated cells; the least bias for its price",
    ),
    "rflo": Entry(
        rflo, {"leak": 0.5}, "biased", "recurrent weights 0, and this leak", True, ANY,
        "F + P", "P", False, "made for leaky units; e_prop finds the decay of any cell",
    ),
    "e_prop": Entry(
        e_prop, {}, "biased", "recurrent weights 0", True, "recurrent `h @ w`", "F + P", "P",
        False, "snap with n = 1 keeps more; of use as a model of the brain",
    ),
    "lstm_1997": Entry(
        lstm_1997, {}, "biased", "recurrent weights 0", False, "recurrent `h @ w`", "3 F", "T n",
        False, "for the record of 1997: bptt costs the same",
    ),
    "uoro": Entry(
        uoro, {}, "unbiased", "", True, ANY, "7 F", "P",
        False, "its noise is 4 to 7 times that of kf_rtrl",
    ),
    "kf_rtrl": Entry(
        kf_rtrl, {}, "unbiased", "", True, MATRICES, "n F + n^3", "n^2 + P",
        False, "ok of rank 4 has 6 to 34 times less noise",
    ),
    "ok": Entry(
        ok, {"rank": 4}, "unbiased", "", True, MATRICES, "n F + r n^3", "r (n^2 + P)",
        True, "unbiased and online with little noise from rank 4 on",
    ),
    "forward_gradient": Entry(
        forward_gradient, {}, "unbiased", "", True, ANY, "2 F", "P",
        False, "noise sqrt(P - 1) times the gradient; for few params",
    ),
    "artbp": Entry(
        artbp, {}, "unbiased", "", False, ANY, "3 F", "T n",
        False, "where truncation is biased enough to matter and influences decay",
    ),
    "randomized_telescope": Entry(
        randomized_telescope, {}, "unbiased", "", False, ANY, "6 F", "T n",
        False, "of theoretical interest: bptt in segments costs less than its variance",
    ),
}  # fmt: skip

EXACT = {name: entry.algorithm for name, entry in REGISTER.items() if entry.kind == "exact"}
APPROXIMATE = {
    name: functools.partial(entry.algorithm, **entry.options)
    for name, entry in REGISTER.items()
    if entry.kind != "exact"
}


def table() -> str:
    """The register as a Markdown table."""
    head = "algorithm", "kind", "online", "cell", "time a step", "memory", "recommended"
    rows = [
        [
            f"`{name}`",
            e.kind + (f" ({'exact for ' * (e.kind == 'biased')}{e.limit})" if e.limit else ""),
            "yes" if e.online else "no",
            e.needs,
            e.time,
            e.memory,
            f"yes: {e.because}" if e.recommended else f"not recommended, because: {e.because}",
        ]
        for name, e in REGISTER.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
