"""Success against length, for each cell and remedy."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from experiments.memory_tasks.config import Config
from experiments.memory_tasks.models import GROUPS, TASKS, Kind, make_error, make_nets, make_update
from experiments.memory_tasks.search import search

RATE = 2e-3  # of Adam, for all
CHUNK = 250


def study(config: Config) -> list[dict[str, Any]]:
    """A row for each task, length and kind."""
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else float("inf")
    return [
        row
        for task in config.tasks
        for length in config.lengths
        for cell in config.cells
        for row in rows(config, task, length, GROUPS[cell], deadline)
    ]


def rows(
    config: Config, name: str, length: int, group: list[Kind], deadline: float
) -> Iterator[dict[str, Any]]:
    """When each net of a group got fewer than 1 % of 1000 new sequences wrong."""
    task, optimizer = TASKS[name](length), optax.adam(RATE)
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    error = make_error(group, task, config.hidden_size, k_test)
    found = search(
        f"{name}, {length}: {group[0].name} ...",
        make_nets(group, task, config.hidden_size, config.seeds, optimizer, k_init),
        make_update(group, task, config.hidden_size, optimizer),
        lambda nets, _, updates: np.where(error(nets) < 0.01, updates, 0),
        k_train,
        budget=config.updates,
        chunk=min(CHUNK, config.updates),
        deadline=deadline,
    )
    errors = np.asarray(error(found.nets)).reshape(len(group), -1)
    for kind, solved_at, wrong in zip(
        group, found.solved_at.reshape(errors.shape), errors, strict=True
    ):
        yield {
            "task": name,
            "length": length,
            "kind": kind.name,
            "solved_at": solved_at.tolist(),
            "updates": found.updates,
            "error": wrong.tolist(),
        }
