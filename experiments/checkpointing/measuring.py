"""The bytes and the times of each way to the same gradient."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np

import rnn_jax
from experiments.bench import measure, memory
from experiments.bench.entry import Entry, Program
from experiments.bench.memory import PLAIN
from experiments.checkpointing.config import Config
from experiments.harness.command import BadInput

SAVED, TIME = 0.95, 4 / 3  # published
DEFAULT, FORWARD = "all steps", "forward alone"
ROOT, NESTED = "segments of sqrt(T)", "three levels, T^(1/3)"
Row: TypeAlias = dict[str, Any]
Ways: TypeAlias = dict[str, dict[str, Any]]  # options of `unroll`, by name


def tradeoff(config: Config, say: Callable) -> list[Row]:
    """All ways at one T; a budget is a part of what the plain scan took."""
    make = Maker(config, config.T)
    plan = {"plan": rnn_jax.Plan(project="before", defer=False)}
    programs = {PLAIN: make(PLAIN, plan), FORWARD: make.forward(), DEFAULT: make(DEFAULT, {})}
    for segment in config.segments:
        say(f"compiling segments of {segment}")
        programs[f"segments of {segment}"] = make(f"{segment}", {"segment": segment})
    whole = temporary(programs[PLAIN]) / config.sizes[0]  # of one sequence
    for part in config.budgets:
        say(f"compiling a budget of {part:g}")
        try:
            name = f"budget of {100 * part:g} %"
            programs[name] = make(name, {"budget": int(part * whole)})
        except ValueError as error:
            raise BadInput(f"--budgets {part:g}: {error}") from error
    return timed(config, config.T, programs, say)


def growth(config: Config, T: int, say: Callable) -> list[Row]:
    """The plain scan, the default, segments of sqrt(T), and three levels."""
    make = Maker(config, T)
    say("compiling")
    plan = {"plan": rnn_jax.Plan(project="before", defer=False)}
    programs = {PLAIN: make(PLAIN, plan), FORWARD: make.forward(), DEFAULT: make(DEFAULT, {})}
    programs[ROOT] = make(ROOT, {"segment": round(math.sqrt(T))})
    programs[NESTED] = make.nested()
    return timed(config, T, programs, say)


class Maker:
    """Compiles gradients of one cell for one T, and compares each with the plain scan's."""

    def __init__(self, config: Config, T: int):
        B, D, H = config.sizes
        self.cell = rnn_jax.ALL_CELLS[config.cell](D, H)
        self.params = self.cell.init(jax.random.key(0))
        self.xs = jax.random.normal(jax.random.key(1), (B, T, D))
        self.expected: Any = None

    def __call__(self, name: str, options: dict[str, Any]) -> Program:
        return self._checked(name, memory.program(self.cell, options, self.params, self.xs))

    def nested(self) -> Program:
        """One step is a long segment, that is itself cut into segments."""
        B, T, D = self.xs.shape
        length = min(divisors(T), key=lambda n: abs(math.log(n) - 2 / 3 * math.log(T)))
        inner = partial(rnn_jax.unroll, self.cell, segment=round(math.sqrt(length)))
        cell = self.cell._replace(project=lambda params, xs: xs, step=inner)
        xs = self.xs.reshape(B, T // length, length, D)
        return self._checked(NESTED, memory.program(cell, {"segment": 1}, self.params, xs))

    def forward(self) -> Program:
        """No gradient: how much of the time is the forward pass."""

        def last(params: Any, xs: jax.Array) -> Any:
            return jax.vmap(lambda xs: rnn_jax.unroll(self.cell, params, None, xs)[0])(xs)

        return Program(jax.jit(last), self.params, self.xs)

    def _checked(self, name: str, program: Program) -> Program:
        if self.expected is None:
            self.expected = program.run()
        memory.check_same(name, program.run(), self.expected)
        return program


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def temporary(program: Program) -> int:
    return program.program.memory_analysis().temp_size_in_bytes


def timed(config: Config, T: int, programs: dict[str, Program], say: Callable) -> list[Row]:
    """Bytes, medians of the times, and medians of their ratios."""
    entries = {name: Entry(program.run, {}) for name, program in programs.items()}
    times = measure.times(entries, config.rounds, config.seconds, say)
    size = {name: temporary(program) for name, program in programs.items()}
    kept = {name: size[name] - size[FORWARD] for name in size}  # a copy of the inputs is in both
    return [
        {
            "name": name,
            "T": T,
            "bytes": size[name],
            "saved": 1 - size[name] / size[PLAIN],
            "kept": kept[name],
            "saved_of_kept": 1 - kept[name] / kept[PLAIN],
            "seconds": float(np.median(times[name])),
            "against_plain": float(np.median(np.array(times[name]) / times[PLAIN])),
            "against_default": float(np.median(np.array(times[name]) / times[DEFAULT])),
        }
        for name in programs
    ]
