"""Online learning on an endless stream: a million steps, and many seeds at once.

The input is a random sign, the target the input `LAG` steps before. A net that remembers nothing
has a loss of 1/2.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.gradient_algorithms.config import Config
from experiments.gradient_algorithms.nets import loss, quartiles
from rnn_jax import gradients

LAG, UNITS, BLOCKS = 2, 8, 100
CHANCE = 0.5
SHORT = 1000  # steps of the run that the memory of the long one is compared with
STREAM: dict[str, tuple[dict[str, Any], float]] = {  # options and rate
    "rtrl": ({}, 0.02),
    "snap": ({"n": 1}, 0.02),
    "uoro": ({}, 0.002),
}
SWEPT = "snap"


def make_learn(name: str, steps: int, traced: list[int] | None = None) -> Callable[..., Any]:
    """``learn(key) -> (online state, losses [100])``; `traced` grows when it is traced."""
    cell = rnn_jax.readout(rnn_jax.elman(1, UNITS), 1)
    options, rate = STREAM[name]
    algorithm = gradients.REGISTER[name].algorithm(cell, loss, **options)

    def step(before: Any, _: None) -> tuple[Any, jax.Array]:
        params, carry, past, key = before
        key, now = jax.random.split(key)
        x = jax.random.rademacher(now, (1,), past.dtype)
        carry, info = algorithm.update(params, carry, x, past[-1:])
        params = jax.tree.map(lambda p, g: p - rate * g, params, info.grads)
        return (params, carry, jnp.concatenate([x, past[:-1]]), key), info.loss

    def block(before: Any, _: None) -> tuple[Any, jax.Array]:
        """The sum is carried: the losses of all steps would be an array that grows with them."""

        def add(carry: Any, _: None) -> tuple[Any, None]:
            after, value = step(carry[0], None)
            return (after, carry[1] + value), None

        (after, total), _ = jax.lax.scan(add, (before, jnp.zeros(())), length=steps // BLOCKS)
        return after, total * BLOCKS / steps

    def learn(key: jax.Array) -> tuple[Any, jax.Array]:
        if traced is not None:
            traced.append(1)
        k_params, k_carry, k_stream = jax.random.split(key, 3)
        params = cell.init(k_params)
        carry = algorithm.init(params, jnp.zeros(1), key=k_carry)
        first = params, carry, jnp.zeros(LAG), k_stream
        (_, carry, _, _), losses = jax.lax.scan(block, first, length=BLOCKS)
        return carry, losses

    return learn


def compiled(name: str, steps: int, keys: jax.Array) -> Any:
    """All seeds in one program."""
    return jax.jit(jax.vmap(make_learn(name, steps))).lower(keys).compile()


def temporary_bytes(program: Any) -> int:
    """What a program holds while it runs, beside its arguments and results."""
    return int(program.memory_analysis().temp_size_in_bytes)


def size(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def stream(config: Config, tick: Callable[[str], None]) -> dict[str, Any]:
    """The long runs."""
    keys = jax.random.split(jax.random.key(config.seed), config.stream_seeds)
    steps, found = config.stream_steps, {}
    for name in filter(config.takes, STREAM):
        tick(f"{name}, {steps} steps")
        short, long = (compiled(name, s, keys) for s in (SHORT, steps))
        start = time.perf_counter()
        carry, losses = jax.block_until_ready(long(keys))
        seconds = time.perf_counter() - start
        early, _ = short(keys)
        found[name] = {
            "rate": STREAM[name][1],
            "steps": steps,
            "losses": np.asarray(losses),
            "seconds a step": seconds / steps,
            "carry bytes": [size(early) // len(keys), size(carry) // len(keys)],
            "program bytes": [temporary_bytes(p) for p in (short, long)],
        }
    return found


def sweep(config: Config, tick: Callable[[str], None]) -> dict[str, Any]:
    """Many seeds in one call, twice; and one seed alone."""
    traced: list[int] = []
    run = jax.jit(jax.vmap(make_learn(SWEPT, config.sweep_steps, traced)))
    key = jax.random.key(config.seed)
    tick(f"{config.sweep_seeds} seeds")
    seconds, all_losses = [], []
    for keys in jax.random.split(key, (2, config.sweep_seeds)):
        start = time.perf_counter()
        all_losses.append(jax.block_until_ready(run(keys))[1])
        seconds.append(time.perf_counter() - start)
    tick("one seed")
    alone = compiled(SWEPT, config.sweep_steps, jax.random.split(key, 1))
    start = time.perf_counter()
    jax.block_until_ready(alone(jax.random.split(key, 1)))
    losses = all_losses[0]
    return {
        "algorithm": SWEPT,
        "steps": config.sweep_steps,
        "losses": np.asarray(losses),
        "last": np.asarray(quartiles(losses[:, -1])),
        "traces": len(traced),
        "compile seconds": seconds[0] - seconds[1],
        "seconds": seconds[1],
        "seconds of one seed": time.perf_counter() - start,
    }
