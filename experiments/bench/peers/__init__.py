"""The libraries, one file each; `OURS` is what they are compared with."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import jax
from tqdm import tqdm

from experiments.bench.case import Problem
from experiments.bench.entry import Entry, Peer
from experiments.bench.peers import (
    cudnn,
    equinox,
    haiku,
    interop,
    keras,
    linen,
    nnx,
    ours,
    products,
    pytorch,
    scan,
)
from experiments.harness.measure import check_same

OURS = ours.OURS
PLANS = ours.PLANS
INTEROP = interop.PEERS
PEERS: tuple[Peer, ...] = (
    linen.PEER,
    nnx.PEER,
    equinox.PEER,
    haiku.PEER,
    keras.PEER,
    scan.PEER,
    pytorch.PEER,
    ours.PLAIN,
    ours.TWO_DEVICES,
    products.PEER,
)
GPU_PEERS: tuple[Peer, ...] = (cudnn.JAX, cudnn.TORCH)  # where JAX runs on one


def two_cpu_devices() -> None:
    """For the entry that shards its batch, before anything else of JAX; the others use one."""
    if jax.config.jax_num_cpu_devices < 2:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", 2)


def installed(peers: Sequence[Peer]) -> list[Peer]:
    """Those whose library is here; says of each other that it is skipped."""
    missing = [p for p in peers if p.library is not None and find_spec(p.library) is None]
    for peer in missing:
        tqdm.write(f"{peer.name}: skipped, {peer.library} is not installed")
    return [p for p in peers if p not in missing]


def build(
    problem: Problem, peers: Sequence[Peer], tolerance: float, note: Callable[[str], None]
) -> dict[str, Entry]:
    """The entries of a case by name, ours first; raises Disagreement."""
    entries: dict[str, Entry] = {}
    for peer in (OURS, *peers):
        if peer.can(problem.case):
            note(f"compiling {peer.name}")
            entry = entries[peer.name] = peer.build(problem)
            if entry.results:  # the products alone compute something else
                check_same(peer.name, entry.results, entries[OURS.name].results, tolerance)
    return entries
