"""Training many nets at once until each has learned, or the budget is used up."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

Net = Any  # a pytree: all that an update reads and writes; nets have a leading axis S
Update = Callable[[Net, jax.Array], tuple[Net, Any]]  # (net, key) -> (net, report)
Solved = Callable[[Net, Any, int], np.ndarray]  # (nets, reports [n, S], updates) -> int [S]


class Found(NamedTuple):
    """What came out of a search."""

    nets: Net  # each as it was at the end of the chunk in which it succeeded
    solved_at: np.ndarray  # int [S], updates until success; 0 for none
    updates: int  # tried in all
    seconds: float  # of computing, on all cores together


def search(
    name: str,
    nets: Net,
    update: Update,
    solved: Solved,
    key: jax.Array,
    *,
    budget: int,
    chunk: int,
    deadline: float = float("inf"),
) -> Found:
    """Runs chunks of updates, one compiled call each, until all nets are solved.

    Args:
      name: of the progress bar.
      nets: the nets before the first update, leading axis S.
      update: of one net.
      solved: after each chunk, the updates after which each net succeeded, 0 if it has not.
      key: PRNG key.
      budget: the most updates, rounded up to whole chunks.
      chunk: updates in a call.
      deadline: `time.monotonic()` after which no chunk begins, but for the first.

    Returns:
      What was found.
    """
    S = len(jax.tree.leaves(nets)[0])
    begin = time.process_time()
    solved_at, done = np.zeros(S, int), 0
    advance = make_advance(update, chunk)
    with tqdm(total=budget, desc=name, unit=" updates", delay=2, leave=False) as bar:
        while done < budget and not solved_at.all():
            if done and time.monotonic() > deadline:
                break
            nets, reports = advance(nets, jnp.asarray(solved_at == 0), key, np.int32(done))
            done += chunk
            now = solved(nets, reports, done)
            solved_at = np.where(solved_at > 0, solved_at, now)
            bar.update(chunk)
            bar.set_postfix_str(f"{(solved_at > 0).sum()} of {S} learned")
    return Found(nets, solved_at, done, time.process_time() - begin)


def make_advance(update: Update, chunk: int) -> Callable[..., tuple[Net, Any]]:
    """``(nets, active [S], key, start) -> (nets, reports [chunk, S])``, compiled."""

    def one(net: Net, active: jax.Array, key: jax.Array) -> tuple[Net, Any]:
        new, report = update(net, key)
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, net), report

    @jax.jit
    def advance(nets: Net, active: jax.Array, key: jax.Array, start: jax.Array) -> Any:
        def step(nets: Net, number: jax.Array) -> tuple[Net, Any]:
            keys = jax.random.split(jax.random.fold_in(key, number), len(active))
            return jax.vmap(one)(nets, active, keys)

        return jax.lax.scan(step, nets, start + jnp.arange(chunk, dtype=jnp.int32))

    return advance
