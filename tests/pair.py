"""A process of several, which a test starts: ``python tests/pair.py ROLE FOLDER PORT N I``."""
# ruff: noqa: E402  JAX must know of the other processes before anything computes

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROLE, FOLDER, PORT, N, I = (*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))

import jax

DEVICES = 2 if ROLE == "more devices" else 1
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.distributed.initialize(f"localhost:{PORT}", N, I, initialization_timeout=60)

import numpy as np
import test_mesh as two
from jax.sharding import NamedSharding, PartitionSpec

from rnn_jax import processes, train, unroll_over_devices
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks.batches import Batches

CELL, DATA = two.net(), two.examples()


def mesh(kind: str) -> Any:
    n = len(jax.devices())
    shape = {"batch": ((n,), ("batch",)), "units": ((1, n), ("batch", "units"))}
    return jax.make_mesh(*shape[kind])


def run_on(kind: str, steps_per_call: int = 10) -> train.Run:
    return train.make_train(
        two.loss_of(CELL), two.batch_at, two.OPTIMIZER, steps_per_call=steps_per_call,
        mesh=mesh(kind),
    )  # fmt: skip


def expected(kind: str) -> train.TrainState:
    """The shapes of a state, and where they lie."""
    shapes = jax.eval_shape(lambda: two.start(CELL))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        train.shardings(shapes, mesh(kind)),
    )


def begun(kind: str) -> train.TrainState:
    return jax.jit(lambda: two.start(CELL, mesh(kind)))()


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def numbers(state: train.TrainState) -> list[float]:
    """All params, as every process sees them."""
    return np.concatenate(
        [np.ravel(processes.whole(leaf)) for leaf in jax.tree.leaves(state.params)]
    ).tolist()


def laws() -> None:
    """What one knows, all know."""
    say(
        first=processes.first(lambda: {"of": jax.process_index()}),
        each=processes.each(lambda: jax.process_index() * 3),
        together=processes.together(lambda: jax.process_index() * 3),
        largest=int(processes.largest(5 - jax.process_index())),
    )

    def fails(error: Exception | None) -> None:
        if error is not None:
            raise error

    for where, work in (
        ("first", lambda: processes.first(lambda: fails(FileNotFoundError("no such run")))),
        ("each", lambda: processes.each(lambda: fails(ValueError("bad") if I else None))),
        ("together", lambda: processes.together(lambda: fails(KeyError("k") if I else None))),
    ):
        try:
            work()
        except Exception as error:
            say(where=where, kind=type(error).__name__, message=str(error))


def trains() -> None:
    """50 updates, from arrays and from an iterator of which each process reads its part."""
    for kind in ("batch", "units"):
        say(kind=kind, params=numbers(train.fit(run_on(kind), begun(kind), DATA, steps=50)))
    batches = Batches(DATA, two.B, part=(I, N))
    run = train.make_train(
        two.loss_of(CELL), None, two.OPTIMIZER, steps_per_call=10, mesh=mesh("batch")
    )
    say(kind="host", params=numbers(train.fit(run, begun("batch"), batches, steps=20)))
    say(kind="position", params=[batches.get_state()["step"], len(batches.at(0)[0])])


def goes_on(kind: str = "batch", more: int = 10) -> None:
    """From the last checkpoint of the folder, if there is one; saves at the end."""
    checkpoints = Checkpoints(FOLDER)
    state = begun(kind) if checkpoints.last is None else checkpoints.restore(like=expected(kind))
    last = train.step_of(state)
    state = train.fit(run_on(kind), state, DATA, steps=last + more)
    saved = checkpoints.save(state, 1.0, position={"at": last})
    say(begun=last, saved=saved.step, best=checkpoints.best.step, params=numbers(state))


def any_mesh() -> None:
    """A state on a mesh of the explicit kind, as `jax.make_mesh` makes them; the mesh is set."""
    explicit = mesh("batch")
    rows = NamedSharding(explicit, PartitionSpec("batch"))
    everywhere = NamedSharding(explicit, PartitionSpec())
    shapes = jax.eval_shape(lambda: two.start(CELL))
    places = jax.tree.map(lambda _: everywhere, shapes)
    places = places._replace(carry=jax.tree.map(lambda _: rows, shapes.carry))
    state = jax.jit(lambda: two.start(CELL), out_shardings=places)()
    checkpoints = Checkpoints(FOLDER)
    checkpoints.save(state)
    state = checkpoints.restore(like=state)
    with jax.set_mesh(explicit), train.stop_on_signals() as stop:
        run = train.make_train(two.loss_of(CELL), two.batch_at, two.OPTIMIZER, steps_per_call=5)
        state = train.fit(run, state, DATA, steps=10, every=[(5, checkpoints.save)], stop=stop)
        other = train.init(state.params, state.carry, two.OPTIMIZER, state.key)
        step = train.step_of(checkpoints.restore(like=state))
    spec = [str(leaf.sharding.spec) for leaf in jax.tree.leaves((state.carry, other.carry))]
    say(step=step, params=numbers(state), spec=sorted(set(spec)))


def over_time() -> None:
    """A pipeline whose devices are of two processes."""
    xs = two.examples()[0][: two.B, :6]
    cell = two.net()
    params = cell.init(jax.random.key(1))
    pipeline = jax.make_mesh((N,), ("time",))

    def loss(params: Any) -> Any:
        return (unroll_over_devices(cell, params, None, xs, mesh=pipeline, group=2)[1] ** 2).sum()

    grads = jax.jit(jax.grad(loss))(params)
    say(grads=np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]).tolist())


def alone() -> None:
    """Process 0 makes a call that the other one makes late."""
    processes._PATIENCE = 1
    if I == 1:
        time.sleep(3)
    say(each=processes.each(lambda: 1))


def stops() -> None:
    """Process 1 alone gets a signal."""
    if I == 1:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with train.stop_on_signals() as stop:
        state = train.fit(run_on("batch"), begun("batch"), DATA, steps=10**9, stop=stop)
        say(step=train.step_of(state), received=int(stop.received or 0), asked=stop())
    late = lambda step, metrics: I == 1 and signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with train.stop_on_signals() as stop:  # too late to stop anything, and yet known to all
        train.fit(run_on("batch"), begun("batch"), DATA, steps=10, stop=stop, on_metrics=late)
        say(asked=stop())
    state = train.fit(
        run_on("batch"), begun("batch"), DATA, steps=10**9, deadline=0.0 if I else 1e12
    )
    say(step=train.step_of(state))


def refuses() -> None:
    """Errors of process 0 in all, and the earlier checkpoints as they were."""
    other = expected("batch")._replace(params={"w": jax.ShapeDtypeStruct((3,), "float32")})
    for what in (
        lambda: Checkpoints(FOLDER).restore(like=other),
        lambda: Checkpoints("/proc/nowhere"),
        lambda: Checkpoints(FOLDER, read_only=True).save(begun("batch")),
    ):
        try:
            what()
        except (OSError, ValueError) as error:
            say(kind=type(error).__name__, message=str(error))


def saves_for_ever() -> None:
    """A save at every second step, until it is killed; each step is told when it is safe."""
    checkpoints = Checkpoints(Path(FOLDER) / "there" if I == 0 else "/nowhere")
    last = checkpoints.last
    state = begun("batch") if last is None else checkpoints.restore(like=expected("batch"))
    say(begun=train.step_of(state))

    def save(state: train.TrainState) -> None:
        say(saved=checkpoints.save(state).step)

    train.fit(run_on("batch", 2), state, DATA, steps=10**9, every=[(2, save)])


ROLES = {
    "laws": laws,
    "trains": trains,
    "goes on": goes_on,
    "more devices": lambda: goes_on("units"),
    "any mesh": any_mesh,
    "over time": over_time,
    "alone": alone,
    "stops": stops,
    "refuses": refuses,
    "saves for ever": saves_for_ever,
}
with processes.ending_together():
    ROLES[ROLE]()
jax.distributed.shutdown()
