"""Clipping alone against clipping with Pascanu's regulariser, on the temporal order problem.

A tanh net of small weights forgets: dL/dh_t vanishes on its way back. The regulariser keeps its
length, clipping keeps an update small where it explodes. Nets that differ in these remedies, in
their initial weights and in the seed alone train side by side in one compiled call; data are drawn
inside of it.

    python -m experiments.temporal_order --lengths 50 --updates 60000
    python -m experiments.temporal_order                       # T = 50 and 100, over half an hour

References:
  Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. 2013.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import rnn_jax as rnn
from experiments.harness import command, search
from experiments.harness.study import Progress, Study
from rnn_jax.diagnostics import pascanu_regularizer
from rnn_jax.tasks import memory
from rnn_jax.tasks.memory import Batch

ALPHA = 4.0  # weight of the regulariser, as published
BATCH, CHUNK, SGD = 20, 500, optax.sgd(0.01)


# fmt: off
@dataclass(frozen=True)
class Config(search.Options):
    """Clipping alone against clipping with Pascanu's regulariser, on the temporal order problem.

    A net has learned when fewer than 1 % of 10,000 new sequences are wrong. Writes
    temporal_order.png and numbers.json.
    """

    lengths: tuple[int, ...] = (50, 100)
    """T, the lengths of the sequences."""
    updates: int = 100_000
    """Updates after which a net counts as failed."""
    hidden_size: int = 50
    """Units."""

    def check(self) -> None:
        super().check()
        command.some(self, "lengths")
        command.each_once(self, "lengths")
        command.at_least(self, lengths=10, hidden_size=1)


QUICK = Config(quick=True, lengths=(15,), seeds=2, updates=1000, hidden_size=25)
# fmt: on


class Task(NamedTuple):
    """A task of the given length, and what a net for it looks like."""

    sample: Callable[[jax.Array], Batch]
    tokens: bool
    inputs: int  # tokens, or D
    outputs: int


def temporal_order(length: int) -> Task:
    """Four classes: which of two symbols came at two places."""
    return Task(partial(memory.temporal_order, length=length), True, inputs=6, outputs=4)


class Kind(NamedTuple):
    """A net with its remedies, as the tables name it."""

    name: str
    cell: Callable[[int, int], rnn.Cell]
    clip: float = 1.0
    alpha: float = 0.0  # weight of the regulariser
    w_y_init: Any = rnn.initializers.glorot_uniform()


def tanh(a: jax.Array) -> jax.Array:
    """tanh, whose slope is a constant to the regulariser: dh_t/dh_{t-1} is one function of W_h."""
    at = jax.lax.stop_gradient(a)
    h = jnp.tanh(at)
    return h + (1 - h**2) * (a - at)


SMALL = jax.nn.initializers.normal(0.1)
small_tanh = partial(rnn.elman, activation=tanh, w_x_init=SMALL, w_h_init=SMALL)
KINDS = [
    Kind("clipped and regularised", small_tanh, alpha=ALPHA, w_y_init=SMALL),
    Kind("clipped", small_tanh, w_y_init=SMALL),
]


class Net(NamedTuple):
    """A net while it learns."""

    params: rnn.ReadoutParams
    opt_state: Any
    clip: jax.Array  # []
    alpha: jax.Array  # []


class Group(NamedTuple):
    """Kinds of net that differ in numbers alone, and learn a task in one compiled call."""

    kinds: Sequence[Kind]
    task: Task
    hidden_size: int
    optimizer: optax.GradientTransformation

    def model(self, kind: Kind | None = None) -> rnn.Cell:
        """The net of a kind; its steps are the same for all."""
        kind, size = kind or self.kinds[0], self.hidden_size
        cell = kind.cell(self.task.inputs, size)
        cell = rnn.one_hot(cell, self.task.inputs) if self.task.tokens else cell
        return rnn.readout(cell, self.task.outputs, hidden_size=size, w_init=kind.w_y_init)

    def clipped(self, clip: Any) -> optax.GradientTransformation:
        """The optimizer behind a threshold; an update that is not finite is left out."""
        chain = optax.chain(optax.clip_by_global_norm(clip), self.optimizer)
        return optax.apply_if_finite(chain, max_consecutive_errors=10**9)

    def nets(self, seeds: int, key: jax.Array) -> Net:
        """S = kinds x seeds of them, kind by kind; all kinds begin with one key."""

        def start(kind: Kind, key: jax.Array) -> Net:
            params = self.model(kind).init(key)
            opt_state = self.clipped(kind.clip).init(params)
            return Net(params, opt_state, jnp.array(kind.clip), jnp.array(kind.alpha))

        keys = jax.random.split(key, seeds)
        groups = [jax.vmap(partial(start, kind))(keys) for kind in self.kinds]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *groups)

    def batch(self, key: jax.Array, size: int) -> Batch:
        """New sequences."""
        return jax.vmap(self.task.sample)(jax.random.split(key, size))

    def outputs(self, params: rnn.ReadoutParams, batch: Batch) -> jax.Array:
        """[B, T, O]."""
        run = partial(rnn.unroll, self.model(), params, None)
        return jax.vmap(lambda xs, mask: run(xs, mask=mask)[1])(batch.xs, batch.mask)

    def loss(self, params: rnn.ReadoutParams, batch: Batch, alpha: jax.Array) -> jax.Array:
        """What is trained, the regulariser included."""
        loss = memory.loss(self.outputs(params, batch), batch)
        if not any(kind.alpha for kind in self.kinds):
            return loss
        return loss + alpha * regulariser(self.model(), params, batch)

    def update(self, net: Net, key: jax.Array) -> tuple[Net, None]:
        """One update on a batch drawn from the key."""
        grads = jax.grad(self.loss)(net.params, self.batch(key, BATCH), net.alpha)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, opt_state = self.clipped(net.clip).update(grads, net.opt_state)
            params = optax.apply_updates(net.params, updates)
        return net._replace(params=params, opt_state=opt_state), None

    def error(self, key: jax.Array, thousands: int = 1) -> Callable[[Net], jax.Array]:
        """``nets -> [S]``, the share of wrong sequences among some thousands of new ones."""

        def error(net: Net) -> jax.Array:
            def some(key: jax.Array) -> jax.Array:
                batch = self.batch(key, 1000)
                return memory.wrong(self.outputs(net.params, batch), batch).mean()

            return jax.lax.map(some, jax.random.split(key, thousands)).mean()

        return jax.jit(jax.vmap(error))


def regulariser(cell: rnn.Cell, params: Any, batch: Batch) -> jax.Array:
    """Pascanu's: how much the length of dL/dh_t changes in a step back, in the mean over steps."""

    def one(batch: Batch) -> jax.Array:
        first = jnp.arange(len(batch.mask)) == 0  # nothing comes before it
        return pascanu_regularizer(
            cell, memory.loss, params, None, batch.xs, batch, mask=batch.mask, reset=first
        )

    total = jax.vmap(one)(batch).sum()
    return total / batch.mask[:, 1:].sum(dtype=total.dtype)


def find(config: Config, length: int, kind: Kind) -> search.Search:
    """When each seed got fewer than 1 % of 10,000 new sequences wrong."""
    group = Group([kind], temporal_order(length), config.hidden_size, SGD)
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    some, many = group.error(k_test), group.error(k_train, thousands=10)

    def solved(nets: Net, _: None, updates: int) -> np.ndarray:
        if not (some(nets) < 0.01).any():
            return np.zeros(config.seeds, int)
        return np.where(many(nets) < 0.01, updates, 0)

    def rows(found: search.Found) -> list[search.Row]:
        error = np.asarray(many(found.nets)).tolist()
        return [found.row(length=length, kind=kind.name, error=error)]

    nets = group.nets(config.seeds, k_init)
    name = f"T={length}, {kind.name}"
    return search.Search(name, nets, group.update, solved, k_train, CHUNK, rows)


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """A row for each length and kind."""
    return search.measure(config, say, find, config.lengths, KINDS)


def summary(numbers: dict[str, Any], config: Config) -> str:
    """A line for each length and remedy."""
    lines = [
        f"Temporal order, {config.hidden_size} tanh units, SGD 0.01: "
        "updates until fewer than 1 % of 10,000 wrong",
        "published: clipped and regularised, 5 of 5 seeds learn one net for all lengths 50 to 200,",
        "within 5,000,000 updates; clipping alone fails on long sequences",
    ]
    for row in numbers["rows"]:
        times = ", ".join(map(str, sorted(search.times(row))))
        lines.append(f"T={row['length']:<4} {row['kind']:<24} {search.outcome(row):<10} [{times}]")
        if row["kind"] != "clipped":
            lines.append(f"       {search.verdict(row)}")
    return "\n".join(lines)


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """Updates until success of each seed."""
    rows = numbers["rows"]
    names = [f"T = {row['length']}, {row['kind']}" for row in rows]
    title = f"Temporal order, {config.hidden_size} tanh units, SGD"
    figure, axes = search.draw(rows, names, title, "updates")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


STUDY = Study("temporal_order", Config, QUICK, measure, summary, {"temporal_order.png": draw})

if __name__ == "__main__":
    sys.exit(STUDY.main())
