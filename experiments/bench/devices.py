"""What more devices and more processes bring, measured here and reckoned for many machines.

    python -m experiments.bench.devices

Two questions. How well does training scale over two devices of one process, and over two processes,
with the same batch (strong scaling) and with the same batch for each device (weak scaling)? And for
one very long sequence, what does it cost to lay its steps over two devices, beside the other ways
to save memory? All arrangements of a net run in turn, round after round; each ratio is of two times
of one round.
"""

import contextlib
import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rnn_jax
from experiments.bench import peers
from experiments.bench.report import markdown
from experiments.bench.worker import Arrangement, D
from experiments.harness import command
from experiments.harness.command import Failed
from experiments.harness.measure import Program, apart, machine, quartiles, times
from experiments.harness.study import Options, Progress, Study

# Bytes a second in one direction, as their makers give them, and seconds until a message arrives,
# which are orders of magnitude.
LINKS = {
    "Ethernet, 25 Gbit/s": (25e9 / 8, 3e-5),
    "InfiniBand NDR, 400 Gbit/s": (400e9 / 8, 5e-6),
    "NVLink 4, 450 GB/s": (450e9, 2e-6),
}
MANY = (8, 64, 1024)
FASTER = (1, 100)  # than one core here; the second is about what an accelerator is
WORKER = "import sys; from experiments.bench.worker import main; main(sys.argv[1])"
ONE = "one device, one core"


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Measures training over two devices and two processes, and time laid over two devices."""

    hidden_sizes: tuple[int, ...] = (128, 512, 1024)
    """Units of the LSTM of each net."""
    batch: int = 32
    """Sequences in an update; twice as many where each device keeps so many."""
    steps: int = 64
    """Steps of a sequence."""
    long: tuple[int, int, int] = (8, 10000, 128)
    """B T H of the long sequences."""
    rounds: int = 15
    """Rounds of each net."""

    def check(self) -> None:
        super().check()
        command.some(self, "hidden_sizes")
        command.at_least(self, hidden_sizes=1, batch=2, steps=1, long=2, rounds=1)
        for name, value in (("batch", self.batch), ("long", self.long[0]), ("long", self.long[1])):
            command.require(self, name, value % 2 == 0, "an even batch, and even B and T")


QUICK = Config(quick=True, hidden_sizes=(8,), batch=4, steps=6, long=(4, 40, 6), rounds=2)
# fmt: on


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Rows for each net, and for the long sequences."""
    say.expect(len(config.hidden_sizes) + 1)
    found: dict[str, Any] = {"machine": machine(), "training": [], "long": {}}
    for H in config.hidden_sizes:
        say(f"training, H = {H}")
        found["training"].append(training(config, H, say))
        say.keep(found)
    say("long sequences")
    found["long"] = long(config, say)
    return found


def arrangements(config: Config, H: int) -> list[Arrangement]:
    """Those of one net; two devices also have twice the batch."""
    once, T = (config.batch,), config.steps
    twice = (config.batch, 2 * config.batch)
    return [
        Arrangement(ONE, H, once, T, core=0),
        Arrangement("one device, all cores", H, once, T),
        Arrangement("two devices", H, twice, T, devices=2),
        Arrangement("two processes", H, twice, T, processes=2),
    ]


def training(config: Config, H: int, say: Progress) -> dict[str, Any]:
    """The seconds of an update of each arrangement, and the bytes that an update adds up."""
    chosen = arrangements(config, H)
    with contextlib.ExitStack() as stack:
        teams = {a.name: stack.enter_context(team(a)) for a in chosen}
        about = {name: [ask(worker) for worker in workers] for name, workers in teams.items()}
        same = [rows[0]["loss"][0] for rows in about.values()]
        if max(same) - min(same) > 1e-5 * max(same):
            raise Failed(f"the arrangements disagree on the loss: {same}")

        def updates(name: str, n: int, B: int) -> float:
            for worker in teams[name]:
                print(n, B, file=worker.stdin, flush=True)
            return max(ask(worker)["seconds"] for worker in teams[name])

        rows: list[dict[str, Any]] = [
            {"name": a.name, "parts": a.devices * a.processes, "B": B, "seconds": []}
            for a in chosen
            for B in a.batches
        ]
        for row in rows:
            once = updates(row["name"], 1, row["B"])
            row["updates"] = min(100, max(1, round(0.1 / once)))
        for n in range(config.rounds):
            say.note(f"round {n + 1}")
            for row in rows:
                row["seconds"].append(updates(row["name"], row["updates"], row["B"]))
    return {"H": H, "reduced": about["two processes"][0]["reduced"], "rows": rows}


@contextlib.contextmanager
def team(arrangement: Arrangement) -> Iterator[list[subprocess.Popen]]:
    """The processes of an arrangement, which wait for work until the end."""
    n = arrangement.processes
    if n > 1:
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        arrangement = arrangement._replace(coordinator=f"localhost:{port}")
    workers = []
    for i in range(n):
        mine = arrangement._replace(process=i)
        words = [sys.executable, "-c", WORKER, json.dumps(mine._asdict())]
        pipe = subprocess.PIPE
        workers.append(
            subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True,
                cwd=Path(__file__).parents[2],
            )
        )  # fmt: skip
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def ask(worker: subprocess.Popen) -> dict[str, Any]:
    """The next answer of a worker."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise Failed("one of the processes that are timed has ended")
    return json.loads(line)


def long(config: Config, say: Progress) -> dict[str, Any]:
    """Seconds, and bytes on each device, of the gradient over long sequences."""
    B, T, H = config.long
    cell = rnn_jax.lstm(D, H)
    params = cell.init(jax.random.key(config.seed))
    xs = jax.random.normal(jax.random.key(config.seed + 1), (B, T, D))
    pair = np.asarray(jax.devices()[:2])
    over_time, over_batch = Mesh(pair, ("time",)), Mesh(pair, ("batch",))
    root = max(1, round(math.sqrt(T)))

    def plain(segment: int | None) -> Any:
        def states(params: Any, xs: Any) -> Any:
            return jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs, segment=segment))(xs)

        return states

    def laid(group: int, segment: int | None = None) -> Any:
        def states(params: Any, xs: Any) -> Any:
            return rnn_jax.unroll_over_devices(
                cell, params, None, xs, mesh=over_time, group=group, segment=segment
            )

        return states

    def program(states: Any, place: Any) -> Program:
        def loss(params: Any, xs: Any) -> Any:
            return (states(params, xs)[1] ** 2).mean()

        return Program(jax.jit(jax.grad(loss)), params, jax.device_put(xs, place))

    time_place = NamedSharding(over_time, PartitionSpec(None, "time"))
    batch_place = NamedSharding(over_batch, PartitionSpec("batch"))
    one = jax.devices()[0]
    programs = {
        "one device": program(plain(None), one),
        "one device, segment": program(plain(root), one),
        "batch over two": program(plain(None), batch_place),
        "time over two, one sequence a turn": program(laid(1), time_place),
        "time over two, half the batch a turn": program(laid(B // 2), time_place),
        "time over two, half the batch, segment": program(laid(B // 2, root), time_place),
    }
    expected = programs["one device"]()
    for name, other in programs.items():
        gaps = jax.tree.map(lambda a, b: apart(np.asarray(a), np.asarray(b)), other(), expected)
        if max(jax.tree.leaves(gaps)) > 1e-3:
            raise Failed(f"{name}: another gradient than on one device")
    seconds = times(programs, rounds=config.rounds, note=say.note)
    return {
        name: {
            "bytes": each.temporary,
            "inputs": xs.nbytes // (1 if "one device" in name else 2),
            "seconds": seconds[name],
            "ratio": seconds[name] / seconds["one device"],
        }
        for name, each in programs.items()
    }


def reckoned(seconds: float, size: int, devices: int, link: str) -> float:
    """The efficiency of weak scaling: the time of an update alone over that among N devices.

    A ring sends 2 (N - 1) / N times the bytes of the gradient, and a tree of messages takes
    2 log2(N) latencies; nothing overlaps.

    Example:
      >>> print(f"{reckoned(0.01, 4_000_000, 8, 'Ethernet, 25 Gbit/s'):.2f}")
      0.81
    """
    speed, latency = LINKS[link]
    added = 2 * (devices - 1) / devices * size / speed + 2 * math.log2(devices) * latency
    return seconds / (seconds + added)


def text(numbers: dict[str, Any], config: Config) -> str:
    """Three tables."""
    about = numbers["machine"]
    scaling, many = [], []
    for net in numbers["training"]:
        size, rows = net["reduced"], net["rows"]
        alone = np.asarray(next(row["seconds"] for row in rows if row["name"] == ONE))
        for row in rows:
            seconds = np.asarray(row["seconds"])
            spread = quartiles(row["B"] / config.batch * alone / (row["parts"] * seconds))
            shown = f"{np.median(seconds) * 1e3:.3g} ms"
            scaling.append([f"{net['H']}", row["name"], f"{row['B']}", shown, _spread(spread)])
        one = float(np.median(alone))
        for faster in FASTER:
            for link in LINKS:
                each = [f"{reckoned(one / faster, size, n, link):.3f}" for n in MANY]
                about_net = f"{net['H']}: {size / 1e6:.3g} MB"
                many.append([about_net, f"{one / faster * 1e3:.3g} ms", link, *each])
    lengths = [
        [
            name,
            f"{(values['bytes'] + values['inputs']) / 2**20:.4g} MiB",
            f"{np.median(values['seconds']):.3g} s",
            _spread(quartiles(values["ratio"])),
        ]
        for name, values in numbers["long"].items()
    ]
    B, T, H = config.long
    efficiency = "efficiency (time of one device on one core, over the time here, a device)"
    return f"""\
{about["cpu"]}, {about["cores"]} cores, JAX {about["versions"]["jax"]}. LSTM with {D} inputs, \
B = {config.batch}, T = {config.steps}, an update of Adam; medians and quartiles of \
{config.rounds} paired rounds.

{markdown(["H", "arrangement", "B", "an update", efficiency], scaling)}

Reckoned: the efficiency of weak scaling over many devices, from the measured bytes of its \
gradient, published speeds, and the time of an update: as on one core here, or a hundredth of it.

{markdown(["H: gradient", "an update", "link", *(f"{n} devices" for n in MANY)], many)}

The gradient over long sequences, B = {B}, T = {T}, H = {H}: what each device holds, and the time \
over that of one device.

{markdown(["arrangement", "bytes on each device", "time", "over one device"], lengths, left=1)}"""


def _spread(values: Any) -> str:
    low, median, high = values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


FILES = {"table.md": lambda numbers, config: text(numbers, config) + "\n"}
STUDY = Study("bench.devices", Config, QUICK, measure, text, FILES)

if __name__ == "__main__":
    peers.two_cpu_devices()
    sys.exit(STUDY.main())
