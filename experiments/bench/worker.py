"""One of the processes that `experiments.bench.devices` times: it trains when it is told to.

It is started with an `Arrangement` as JSON. For each line, a number of updates and a batch size, it
makes them and answers how long they took, as JSON.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

D, O = 64, 16


class Arrangement(NamedTuple):
    """Who computes what."""

    name: str
    hidden_size: int
    batches: tuple[int, ...]  # sizes, B
    steps: int  # T
    devices: int = 1  # in each process
    core: int | None = None  # that a process keeps to; None for all
    coordinator: str | None = None
    processes: int = 1
    process: int = 0


def main(argument: str) -> None:
    """Answers a line with the description, then one for each line that comes."""
    chosen = Arrangement(**json.loads(argument))
    if chosen.core is not None:  # before JAX makes its threads
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[chosen.core]])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print, as gloo does
    for line in _work(chosen):
        print(json.dumps(line), file=answer, flush=True)


def _work(chosen: Arrangement) -> Iterator[dict[str, Any]]:
    import jax
    import optax

    jax.config.update("jax_num_cpu_devices", chosen.devices)
    if chosen.coordinator is not None:
        jax.distributed.initialize(chosen.coordinator, chosen.processes, chosen.process)
    import rnn_jax
    from rnn_jax import train

    T, H = chosen.steps, chosen.hidden_size
    net = rnn_jax.readout(rnn_jax.lstm(D, H), O)
    rng = np.random.default_rng(0)

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        xs, targets = batch
        ys = jax.vmap(lambda xs: rnn_jax.unroll(net, params, None, xs)[1])(xs)
        return ((ys - targets) ** 2).mean(), carry

    mesh = None
    if len(jax.devices()) > 1:
        mesh = jax.make_mesh((len(jax.devices()),), ("batch",))
    optimizer = optax.adam(1e-3)
    run = train.make_train(loss, lambda data, step: data, optimizer, steps_per_call=100, mesh=mesh)
    state = train.init(net.init(jax.random.key(0)), None, optimizer, jax.random.key(1), mesh=mesh)
    jitted: Any = run.compiled
    compiled, inputs = {}, {}
    about: dict[str, Any] = {"loss": []}
    for B in chosen.batches:
        data = [rng.normal(size=(B, T, size)).astype(np.float32) for size in (D, O)]
        state, inputs[B] = run.placed(state, data)
        compiled[B] = jitted.lower(state, inputs[B], np.int32(1)).compile()
        about["reduced"] = sum(reduced(compiled[B].as_text()))
        state, metrics = compiled[B](state, inputs[B], np.int32(1))
        about["loss"].append(float(metrics.loss[0]))
    yield about
    for line in sys.stdin:
        updates, B = map(int, line.split())
        begun = time.perf_counter()
        state, metrics = compiled[B](state, inputs[B], np.int32(updates))
        jax.block_until_ready(state)
        yield {"seconds": (time.perf_counter() - begun) / updates}


def reduced(program: str) -> list[int]:
    """The bytes that each all-reduce of a compiled program adds up.

    Example:
      >>> reduced("%r = (f32[2]{0}, f32[8,2]{1,0}) all-reduce(%a, %b), channel_id=1")
      [72]
    """
    sizes = {"pred": 1, "bf16": 2, "f32": 4, "s32": 4, "f64": 8}
    found = []
    for types in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
        found.append(
            sum(
                sizes[kind] * int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
                for kind, dims in arrays
            )
        )
    return found
