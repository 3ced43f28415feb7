"""Online learning on an endless stream: a million steps in constant memory.

The input is a random sign, the target the input `LAG` steps before. A net that remembers nothing
has a loss of 1/2.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rnn_jax
from experiments.gradient_algorithms.config import Config, Part
from experiments.gradient_algorithms.nets import algorithm
from experiments.harness import plots
from experiments.harness.measure import Program
from experiments.harness.study import Progress

LAG, UNITS, BLOCKS = 2, 8, 100
CHANCE = 0.5
SHORT = 1000  # steps of the run that the memory of the long one is compared with
RATES = {"rtrl": 0.02, "snap": 0.02, "uoro": 0.002}


def make_learn(name: str, steps: int, traced: list[int] | None = None) -> Callable[..., Any]:
    """``learn(key) -> (online state, losses [100])``; `traced` grows when it is traced."""
    cell, rate = rnn_jax.readout(rnn_jax.elman(1, UNITS), 1), RATES[name]
    learner = algorithm(name, cell)

    def step(before: Any) -> tuple[Any, jax.Array]:
        params, carry, past, key = before
        key, now = jax.random.split(key)
        x = jax.random.rademacher(now, (1,), past.dtype)
        carry, info = learner.update(params, carry, x, past[-1:])
        params = jax.tree.map(lambda p, g: p - rate * g, params, info.grads)
        return (params, carry, jnp.concatenate([x, past[:-1]]), key), info.loss

    def block(before: Any, _: None) -> tuple[Any, jax.Array]:
        """The sum is carried: the losses of all steps would be an array that grows with them."""

        def add(carry: Any, _: None) -> tuple[Any, None]:
            after, value = step(carry[0])
            return (after, carry[1] + value), None

        (after, total), _ = jax.lax.scan(add, (before, jnp.zeros(())), length=steps // BLOCKS)
        return after, total * BLOCKS / steps

    def learn(key: jax.Array) -> tuple[Any, jax.Array]:
        if traced is not None:
            traced.append(1)
        k_params, k_carry, k_stream = jax.random.split(key, 3)
        params = cell.init(k_params)
        carry = learner.init(params, jnp.zeros(1), key=k_carry)
        first = params, carry, jnp.zeros(LAG), k_stream
        (_, carry, _, _), losses = jax.lax.scan(block, first, length=BLOCKS)
        return carry, losses

    return learn


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    return jax.block_until_ready(run(*arguments)), time.perf_counter() - start


def size(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """The long runs."""
    keys = jax.random.split(jax.random.key(config.seed), config.stream_seeds)
    steps, found = config.stream_steps, {}
    for name in config.chosen(RATES):
        say(f"{name}, {steps} steps")
        runs = (jax.jit(jax.vmap(make_learn(name, s))) for s in (SHORT, steps))
        short, long = (Program(run, keys) for run in runs)
        (carry, losses), seconds = timed(long)
        found[name] = {
            "rate": RATES[name],
            "steps": steps,
            "losses": np.asarray(losses),
            "seconds a step": seconds / steps,
            "carry bytes": [size(short()[0]) // len(keys), size(carry) // len(keys)],
            "program bytes": [short.temporary, long.temporary],
        }
    return found


def text(found: dict[str, Any]) -> list[str]:
    lines = [f"Endless stream, recall of the input {LAG} steps before (chance 0.5)"]
    for name, run in found.items():
        first, last = run["losses"][:, 0], run["losses"][:, -1]
        carry, program = (
            "{} and {}".format(*run[f"{what} bytes"]) for what in ("carry", "program")
        )
        lines.append(
            f"  {name:<6}{1e6 * run['seconds a step']:.1f} us a step ({len(last)} seeds side by "
            f"side); loss {np.median(first):.3f} -> {np.median(last):.2g}; bytes for "
            f"{SHORT} steps and for all: carry {carry}, program {program}"
        )
    return lines


def learning_curve(title: str) -> tuple[Figure, Axes]:
    """Empty, but for what a net that remembers nothing reaches."""
    figure, axes = plots.panels()
    axes.axhline(CHANCE, color="k", linewidth=0.8, linestyle=":", label="chance")
    axes.set(title=title, xlabel="steps", ylabel="loss, mean over a hundredth of the steps")
    axes.set_yscale("log")
    return figure, axes


def figure(runs: dict[str, Any]) -> Figure:
    figure, axes = learning_curve("Endless stream, a line for each seed")
    for j, (name, run) in enumerate(runs.items()):
        steps = run["steps"] * np.arange(1, BLOCKS + 1) / BLOCKS
        lines = axes.plot(steps, run["losses"].T, color=f"C{j}", linewidth=1)
        lines[0].set_label(f"{name}, {1e6 * run['seconds a step']:.1f} us a step")
    axes.legend()
    return figure


PART = Part("stream", lambda c: len(c.chosen(RATES)), measure, text, figure)
