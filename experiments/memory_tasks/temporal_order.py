"""Clipping alone against clipping with Pascanu's regulariser, on the temporal order problem."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import rnn_jax as rnn
from experiments.memory_tasks.config import Config
from experiments.memory_tasks.models import (
    ALPHA,
    TASKS,
    Kind,
    make_error,
    make_nets,
    make_update,
)
from experiments.memory_tasks.search import search

CHUNK = 500
_init = jax.nn.initializers.normal(0.1)
_cell = partial(rnn.elman, w_x_init=_init, w_h_init=_init)
KINDS = [
    Kind("clipped", _cell, w_y_init=_init),
    Kind("clipped and regularised", _cell, alpha=ALPHA, w_y_init=_init),
]


def study(config: Config) -> list[dict[str, Any]]:
    """A row for each length and kind."""
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else float("inf")
    return [row(config, T, kind, deadline) for T in config.lengths for kind in reversed(KINDS)]


def row(config: Config, length: int, kind: Kind, deadline: float) -> dict[str, Any]:
    """When each seed got fewer than 1 % of 10,000 new sequences wrong."""
    task, optimizer = TASKS["temporal_order"](length), optax.sgd(0.01)
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    some = make_error([kind], task, config.hidden_size, k_test)
    many = make_error([kind], task, config.hidden_size, k_train, thousands=10)

    def solved(nets: Any, _: Any, updates: int) -> np.ndarray:
        if not (some(nets) < 0.01).any():
            return np.zeros(config.seeds, int)
        return np.where(many(nets) < 0.01, updates, 0)

    found = search(
        f"T={length}, {kind.name}",
        make_nets([kind], task, config.hidden_size, config.seeds, optimizer, k_init),
        make_update([kind], task, config.hidden_size, optimizer),
        solved,
        k_train,
        budget=config.updates,
        chunk=min(CHUNK, config.updates),
        deadline=deadline,
    )
    return {
        "length": length,
        "kind": kind.name,
        "solved_at": found.solved_at.tolist(),
        "updates": found.updates,
        "error": np.asarray(many(found.nets)).tolist(),
        "seconds": found.seconds,
    }
