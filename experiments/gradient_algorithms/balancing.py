"""Influence balancing: a parameter whose near influence has the wrong sign.

s' = A s + theta (+1 x 10, -1 x 13), A = I / 2 + superdiagonal / 2, loss (s_1 - 1)^2 / 2 at every
step of an endless stream. Within 40 steps theta raises s_1, from 50 steps on it lowers it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import rnn_jax
from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.nets import algorithm
from experiments.harness import plots
from experiments.harness.study import Progress, verdict

PLUS, MINUS = 10, 13
N = PLUS + MINUS
WINDOWS = (1, 10, 50, 100, 120, 200)
PUBLISHED_TO_CONVERGE = {1: False, 10: False, 100: False, 200: True}
PUBLISHED_INFLUENCE = {1: 1.0, 10: 10.0, 20: 16.5, 40: 0.57, 50: -4.75, 100: -6.0, 200: -6.0}
RATE, NOISY_RATE = 1e-4, 1e-5
BLOCKS = 200  # points of a curve

# theta enters by no product h @ w and reaches every unit at once, and P = 1; so four of these are
# exact here.
ONLINE = {
    "rtrl": "exact",
    "snap": "exact here: theta feeds every unit, so nothing is masked",
    "kf_rtrl": "exact here: theta is no weight of a product",
    "ok": "exact here: theta is no weight of a product",
    "forward_gradient": "exact here: one parameter, and v^2 = 1",
    "uoro": "unbiased",
    "rflo": "biased: units that do not see each other",
}


def system() -> rnn_jax.Cell:
    """The system as a cell; params: theta []; y = s_1."""
    A = jnp.eye(N) / 2 + jnp.eye(N, k=1) / 2
    sign = jnp.concatenate([jnp.ones(PLUS), -jnp.ones(MINUS)])

    def step(theta: jax.Array, s: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = A @ s + z
        return s, s[0]

    return rnn_jax.Cell(
        init=lambda key: jnp.array(0.5),
        init_state=lambda theta: jnp.ones(N),
        project=lambda theta, x: theta * sign,
        step=step,
    )


def influence(steps: int) -> jax.Array:
    """[steps]: d s_1 / d theta after 1, 2, ... steps from a given state."""
    cell, start = system(), jnp.ones(N)
    run = jax.jacfwd(lambda theta: rnn_jax.unroll(cell, theta, start, jnp.zeros(steps))[1])
    return run(jnp.array(0.5))


def descend(gradient: Callable[..., Any], carry: Any, rate: float, updates: int) -> Any:
    """``gradient(theta, carry) -> (carry, its value, loss)``; gives (theta, carry) and losses."""

    def update(before: Any, _: None) -> tuple[Any, jax.Array]:
        carry, grad, value = gradient(*before)
        return (before[0] - rate * grad, carry), value

    return jax.lax.scan(update, (jnp.array(0.5), carry), length=updates)


def windows(k: int, steps: int) -> Callable[[], Any]:
    """Truncation: an update after each window of k steps; losses [steps // k]."""
    value_and_grad = algorithm("truncated_bptt", system(), k1=k, k2=k)

    def gradient(theta: jax.Array, s: jax.Array) -> tuple[Any, ...]:
        (total, s), grad = value_and_grad(theta, s, jnp.zeros(k), jnp.ones(k))
        return s, grad, total / k

    return jax.jit(lambda: descend(gradient, jnp.ones(N), RATE, steps // k))


def online(name: str, steps: int) -> Callable[[jax.Array], Any]:
    """An update at every step, for each key; losses [keys, steps]."""
    learner, rate = algorithm(name, system()), NOISY_RATE if name == "uoro" else RATE

    def gradient(theta: jax.Array, carry: Any) -> tuple[Any, ...]:
        carry, info = learner.update(theta, carry, jnp.zeros(()), jnp.ones(()))
        return carry, info.grads, info.loss

    def run(key: jax.Array) -> Any:
        carry = learner.init(jnp.array(0.5), jnp.zeros(()), key=key)
        return descend(gradient, carry, rate, steps)

    return jax.jit(jax.vmap(run))


def curve(losses: jax.Array, steps: int) -> dict[str, np.ndarray]:
    """Block means of losses [seeds, updates], and the number of steps at the end of each."""
    updates = losses.shape[1]
    blocks = np.array_split(np.asarray(losses), min(BLOCKS, updates), axis=1)
    ends = np.cumsum([b.shape[1] for b in blocks]) * (steps // updates)
    with np.errstate(all="ignore"):
        means = np.stack([b.mean(1) for b in blocks], axis=1)
    return {"steps": ends, "loss": np.where(means < 1e30, means, np.inf)}


def outcome(losses: np.ndarray) -> str:
    """Of curves [seeds, blocks] from a loss of about 1."""
    first, last = losses[:, 0], losses[:, -1]
    if (last < 1e-3 * first).all():
        return "converges"
    return "diverges" if (last > 10 * first).all() else "undecided"


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Curves, verdicts and the derivative that explains them."""
    steps, d = config.balancing_steps, np.asarray(influence(max(WINDOWS)))
    found: dict[str, dict[str, Any]] = {}
    for k in WINDOWS:
        say(f"k = {k}")
        (theta, _), losses = windows(k, steps)()
        found[f"truncated, {k}"] = curve(losses[None], steps // k * k) | {
            "theta": [float(theta)],
            "mean influence": float(d[:k].mean()),
            "why": "biased",
        }
    for name in config.chosen(ONLINE):
        say(name)
        seeds = config.balancing_seeds if name == "uoro" else 1
        keys = jax.random.split(jax.random.key(config.seed), seeds)
        (theta, _), losses = online(name, steps)(keys)
        found[name] = curve(losses, steps) | {"theta": theta.tolist(), "why": ONLINE[name]}
    for run in found.values():
        run["verdict"] = outcome(run["loss"])
    return {"influence": d, "runs": found}


def text(found: dict[str, Any]) -> list[str]:
    d, runs = found["influence"], found["runs"]
    pairs = (f"{k}: {p:g} / {d[k - 1]:.2f}" for k, p in PUBLISHED_INFLUENCE.items())
    means = np.cumsum(d) / np.arange(1, len(d) + 1)
    first = int(np.flatnonzero(means > 0).max()) + 2
    lines = [
        "Influence balancing: d s_1 / d theta after k steps (published / ours)",
        f"  {', '.join(pairs)}",
        "  A window of k steps sees the mean of the first k, which is negative from "
        f"k = {first} on",
    ]
    for name, run in runs.items():
        last = run["loss"][:, -1]
        shown = f"{np.median(last):.1e}" if np.isfinite(last).all() else "infinite"
        seeds = f" (median of {len(last)} seeds)" if len(last) > 1 else ""
        lines.append(f"  {name:<18}{run['verdict']:<11}loss {shown}{seeds}; {run['why']}")
    claims = PUBLISHED_TO_CONVERGE.items()
    agree = all((runs[f"truncated, {k}"]["verdict"] == "converges") == c for k, c in claims)
    lines.append(
        f"  Tallec, Ollivier 2018: k = 1, 10, 100 diverge, k = 200 converges: {verdict(agree)}"
    )
    if "uoro" in runs:
        lines.append(f"  ... and UORO converges: {verdict(runs['uoro']['verdict'] == 'converges')}")
    return lines


def figure(found: dict[str, Any]) -> Figure:
    figure, (left, right) = plots.panels(1, 2, size=(12, 4.8), width_ratios=(2, 3))
    d, runs = found["influence"], found["runs"]
    k = np.arange(1, len(d) + 1)
    left.plot(k, d, label="after k steps")
    left.plot(k, np.cumsum(d) / k, label="mean over steps 1 to k")
    for window in WINDOWS:
        well = runs[f"truncated, {window}"]["verdict"] == "converges"
        left.plot(window, d[:window].mean(), "C2o" if well else "C3x")
    left.plot([], [], "C2o", label="a window of k: converges")
    left.plot([], [], "C3x", label="... does not")
    left.axhline(-6, color="k", linewidth=0.8, linestyle=":", label="the whole, -6")
    left.axhline(0, color="k", linewidth=0.8)
    left.set(title="Influence of theta on s_1", xlabel="k, steps", ylabel="d s_1 / d theta")
    left.legend(loc="upper right")
    shown = [name for name in runs if not runs[name]["why"].startswith("exact here")]
    for j, name in enumerate(shown):
        losses = np.clip(runs[name]["loss"], 1e-35, None).T
        losses[~np.isfinite(losses)] = np.nan
        dashes = (4 * j, (4, 4))  # of two lines in one place, both are seen
        style: Any = {"color": f"C{j}", "linestyle": dashes if "truncated" in name else "-"}
        lines = right.semilogy(runs[name]["steps"], losses, linewidth=1, **style)
        lines[0].set_label({"rtrl": "rtrl (so snap, kf_rtrl, ok: exact here)"}.get(name, name))
    right.set(title="Learning on an endless stream", xlabel="steps", ylim=(1e-32, 1e13))
    right.set_ylabel("loss, mean over blocks of steps")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


PART = Part(
    "balancing", lambda c: len(WINDOWS) + len(c.chosen(ONLINE)), measure, text, figure, x64=True
)
