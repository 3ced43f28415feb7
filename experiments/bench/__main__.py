"""The command line."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from tqdm import tqdm

from experiments.bench import measure, report
from experiments.bench.case import Case
from experiments.bench.config import QUICK, Config, cases
from experiments.bench.entry import Peer
from experiments.bench.peers import GPU_PEERS, OURS, PEERS, PLANS
from experiments.harness import command

_PROGRAM = "python -m experiments.bench"


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(command.parse(Config, QUICK, _PROGRAM, argv)))


def run(config: Config) -> None:
    """Measures each case, and writes what there is after each."""
    wanted = cases(config)
    measure.two_cpu_devices()
    peers, skipped = measure.available(PLANS if config.plans else _chosen(config.peers))
    print(*skipped, sep="\n", end="\n" if skipped else "")
    with command.new_folder("bench", config.run) as folder:
        text = _measured(config, wanted, peers, folder)
        print(f"{text}\nWritten to {folder}")


def _measured(config: Config, wanted: list[Case], peers: list[Peer], folder: Path) -> str:
    rows: list[dict] = []
    rate, text, about = 0.0, "", report.machine()
    with tqdm(wanted, unit="row", dynamic_ncols=True) as bar:
        say = partial(bar.set_postfix_str, refresh=sys.stderr.isatty())
        for case in bar:
            rate = max(rate, measure.product_rate())
            problem, entries = measure.build(case, OURS, peers, config.tolerance, say)
            found = measure.times(entries, config.rounds, config.seconds, say)
            rows.append(report.row(problem, entries, found))
            text = report.tables(rows, [peer.name for peer in peers], rate, about)
            report.write(folder, dataclasses.asdict(config), rows, text, rate)
            jax.clear_caches()
    return text


def _chosen(names: Sequence[str]) -> tuple:
    peers = PEERS + (GPU_PEERS if jax.default_backend() == "gpu" else ())
    for name in names:
        if not any(name.lower() in peer.name.lower() for peer in peers):
            known = ", ".join(peer.name for peer in peers)
            raise command.BadInput(f"--peers: got {name!r}, expected a part of one of: {known}")
    return tuple(p for p in peers if any(name.lower() in p.name.lower() for name in names or ("",)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
