"""Time and memory of each algorithm on one sequence of a tanh net, in float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import rnn_jax
from experiments.gradient_algorithms.config import Config
from experiments.gradient_algorithms.nets import D, loss, random_problem
from experiments.gradient_algorithms.timing import medians
from rnn_jax import gradients

STEPS = 64
LONGER = 256  # for memory: what does not grow with T
LEFT_OUT = ("elementwise_rtrl", "implicit")  # for other nets, and of another gradient


def compiled(name: str, n: int, T: int) -> tuple[Callable[[], Any], int]:
    """A program of no arguments, and the bytes that it holds while it runs."""
    entry, cell = gradients.REGISTER[name], rnn_jax.elman(D, n)
    params, xs, targets = random_problem(jax.random.key(0), n, T)
    run = jax.jit(entry.algorithm(cell, loss, **entry.options))
    arguments = params, None, xs, targets
    program = run.lower(*arguments, key=jax.random.key(1)).compile()
    about: Any = program.memory_analysis()
    held = int(about.temp_size_in_bytes)
    return functools.partial(program, *arguments, key=jax.random.key(1)), held


def study(config: Config, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each algorithm and size."""
    names = [n for n in gradients.REGISTER if n not in LEFT_OUT and config.takes(n)]
    rows = []
    for n in config.units:
        programs: dict[str, Callable[[], Any]] = {}
        held: dict[str, list[int]] = {}
        for name in names:
            tick(f"compiling {name}, n = {n}")
            programs[name], short = compiled(name, n, STEPS)
            held[name] = [short]
            if n == max(config.units):
                held[name].append(compiled(name, n, LONGER)[1])
        seconds = medians(programs, config.rounds)
        for name in names:
            entry = gradients.REGISTER[name]
            rows.append(
                {
                    "name": name,
                    "n": n,
                    "us a step": 1e6 * seconds[name] / STEPS,
                    "bytes": held[name],
                    "time by the register": entry.time,
                    "memory by the register": entry.memory,
                }
            )
    return rows
