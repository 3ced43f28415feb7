"""Nets, remedies and how they learn.

A remedy that is a mere number (the initial weights, the threshold of clipping, the weight of the
regulariser) is data: nets with different ones train side by side in one `jax.vmap`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rnn_jax as rnn
from rnn_jax.tasks import memory
from rnn_jax.tasks.memory import Batch

NEVER = float("inf")  # the threshold of no clipping
ALPHA = 4.0  # weight of the regulariser, as published


class Task(NamedTuple):
    """A task of the given length, and what a net for it looks like."""

    sample: Callable[[jax.Array], Batch]
    tokens: bool
    inputs: int  # tokens, or D
    outputs: int


class Kind(NamedTuple):
    """A net with its remedies, as the tables name it."""

    name: str
    cell: Callable[[int, int], rnn.Cell]
    clip: float = 1.0
    alpha: float = 0.0
    w_y_init: Any = None


class Net(NamedTuple):
    """A net while it learns."""

    params: rnn.ReadoutParams
    opt_state: Any
    clip: jax.Array  # []
    alpha: jax.Array  # []


TASKS: dict[str, Callable[[int], Task]] = {
    "temporal_order": lambda n: Task(partial(memory.temporal_order, length=n), True, 6, 4),
    "adding": lambda n: Task(partial(memory.adding, length=n), False, 2, 1),
    "copying": lambda n: Task(partial(memory.copying, delay=n, symbols=4, items=2), True, 6, 5),
    "latching": lambda n: Task(partial(memory.latching, length=n), False, 1, 2),
    "parity": lambda n: Task(partial(memory.parity, length=n), False, 1, 2),
    "anbn": lambda n: Task(partial(memory.anbn, largest=n // 2), True, 3, 3),
}

_small = jax.nn.initializers.normal(0.1)
_tanh = partial(rnn.elman, w_x_init=_small, w_h_init=_small)
_irnn = partial(
    rnn.elman,
    activation=jax.nn.relu,
    w_x_init=jax.nn.initializers.normal(0.001),
    w_h_init=rnn.initializers.identity(),
)

# Kinds of one group differ in numbers alone: one compiled call trains them all.
GROUPS: dict[str, list[Kind]] = {
    "tanh": [
        Kind("tanh", _tanh, clip=NEVER),
        Kind("tanh, clipped", _tanh),
        Kind("tanh, clipped, regularised", _tanh, alpha=ALPHA),
        Kind("tanh, orthogonal, clipped", rnn.elman),
    ],
    "irnn": [Kind("ReLU, identity (IRNN), clipped", _irnn)],
    "lstm": [
        Kind("LSTM, forget bias 0, clipped", partial(rnn.lstm, b_init=rnn.initializers.zeros)),
        Kind("LSTM, forget bias 1, clipped", rnn.lstm),
    ],
    "gru": [Kind("GRU, clipped", rnn.gru)],
}


def hidden_cell(kind: Kind, task: Task, size: int) -> rnn.Cell:
    """The cell without its readout."""
    cell = kind.cell(task.inputs, size)
    return rnn.one_hot(cell, task.inputs) if task.tokens else cell


def hidden(cell: rnn.Cell, params: rnn.ReadoutParams, xs: Any, mask: jax.Array) -> jax.Array:
    """[B, T, H]."""
    return jax.vmap(lambda xs, mask: rnn.unroll(cell, params.cell, None, xs, mask=mask)[1])(
        xs, mask
    )


def read(params: rnn.ReadoutParams, hs: jax.Array) -> jax.Array:
    """The readout, [B, T, H] to [B, T, O]."""
    return jax.vmap(jax.vmap(lambda h: h @ params.w_y + params.b_y))(hs)


def loss(ys: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the scored steps: cross-entropy of classes, squared error of numbers."""
    classes = jnp.issubdtype(batch.targets.dtype, jnp.integer)
    measure = rnn.losses.cross_entropy if classes else rnn.losses.squared_error
    return measure(ys, batch.targets, batch.scored)


def wrong(ys: jax.Array, batch: Batch) -> jax.Array:
    """bool [B]: sequences with a scored step of the wrong class, or more than 0.2 off."""
    if jnp.issubdtype(batch.targets.dtype, jnp.integer):
        bad = ys.argmax(axis=-1).astype(batch.targets.dtype) != batch.targets
    else:
        bad = (jnp.abs(ys - batch.targets) > 0.2).any(axis=-1)
    return (bad & batch.scored).any(axis=-1)


def gradient(cell: rnn.Cell, params: rnn.ReadoutParams, batch: Batch) -> rnn.ReadoutParams:
    """Of the loss, by backpropagation through time."""
    return jax.grad(lambda p: loss(read(p, hidden(cell, p, batch.xs, batch.mask)), batch))(params)


def regularised_gradient(
    cell: rnn.Cell, params: rnn.ReadoutParams, batch: Batch, alpha: jax.Array
) -> rnn.ReadoutParams:
    """The gradient of the loss plus alpha times Pascanu's regulariser, for a net of tanh units.

    Omega = mean_k (|W D_{k+1} lam_{k+1}| / |lam_{k+1}| - 1)^2, lam_k = dL/dh_k, D = diag(1 - h^2);
    it is a function of W alone, and the mean is over the steps that the loss reaches.
    """

    def total(params: rnn.ReadoutParams, nudges: jax.Array) -> tuple[jax.Array, jax.Array]:
        hs = hidden(_nudged(cell), params, (batch.xs, nudges), batch.mask)
        return loss(read(params, hs), batch), hs

    nudges = jnp.zeros((*batch.mask.shape, len(params.w_y)), params.w_y.dtype)
    (grads, lam), hs = jax.grad(total, argnums=(0, 1), has_aux=True)(params, nudges)
    back = (lam * (1 - hs**2))[:, 1:]
    size = jnp.linalg.norm(lam[:, 1:], axis=-1)
    reached = size > 1e-10

    def omega(w_h: jax.Array) -> jax.Array:
        ratio = (back @ w_h.T) / jnp.where(reached, size, 1.0)[..., None]
        square = jnp.where(reached, (ratio**2).sum(axis=-1), 1.0)
        return ((jnp.sqrt(square) - 1) ** 2).sum() / reached.sum().astype(square.dtype)

    w_h = grads.cell.w_h + alpha * jax.grad(omega)(params.cell.w_h)
    return grads._replace(cell=grads.cell._replace(w_h=w_h))


def _nudged(cell: rnn.Cell) -> rnn.Cell:
    """A cell whose state is its output, with something added to it: dL/d(nudge_t) is dL/dh_t."""

    def step(params: Any, h: jax.Array, z: Any) -> tuple[jax.Array, jax.Array]:
        h = cell.step(params, h, z[0])[0] + z[1]
        return h, h

    return cell._replace(project=lambda p, x: (cell.project(p, x[0]), x[1]), step=step)


def make_nets(
    kinds: list[Kind],
    task: Task,
    size: int,
    seeds: int,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> Net:
    """Nets with a leading axis S = kinds x seeds, kind by kind; all kinds begin with one key."""

    def start(kind: Kind, key: jax.Array) -> Net:
        cell = hidden_cell(kind, task, size)
        w_init = {} if kind.w_y_init is None else {"w_init": kind.w_y_init}
        params = rnn.readout(cell, task.outputs, hidden_size=size, **w_init).init(key)
        return Net(params, optimizer.init(params), jnp.array(kind.clip), jnp.array(kind.alpha))

    keys = jax.random.split(key, seeds)
    groups = [jax.vmap(partial(start, kind))(keys) for kind in kinds]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *groups)


def make_update(
    kinds: list[Kind],
    task: Task,
    size: int,
    optimizer: optax.GradientTransformation,
    batch_size: int = 20,
) -> Callable[[Net, jax.Array], tuple[Net, None]]:
    """One update of one net on a batch drawn from the key; left out if it is not finite."""
    cell = hidden_cell(kinds[0], task, size)
    regularised = any(kind.alpha for kind in kinds)

    def update(net: Net, key: jax.Array) -> tuple[Net, None]:
        batch = draw(task, key, batch_size)
        if regularised:
            grads = regularised_gradient(cell, net.params, batch, net.alpha)
        else:
            grads = gradient(cell, net.params, batch)
        norm = optax.tree.norm(grads)
        scale = jnp.minimum(1.0, net.clip / jnp.maximum(norm, 1e-30))
        grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), scale * g, 0.0), grads)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, opt_state = optimizer.update(grads, net.opt_state)
            params = optax.apply_updates(net.params, updates)
        return net._replace(params=params, opt_state=opt_state), None

    return update


def draw(task: Task, key: jax.Array, size: int) -> Batch:
    """A batch."""
    return jax.vmap(task.sample)(jax.random.split(key, size))


def make_error(
    kinds: list[Kind], task: Task, size: int, key: jax.Array, thousands: int = 1
) -> Callable[[Net], jax.Array]:
    """``nets -> [S]``, the share of wrong sequences among 1000, or some thousands, new ones."""
    cell = hidden_cell(kinds[0], task, size)

    def error(params: rnn.ReadoutParams) -> jax.Array:
        def some(key: jax.Array) -> jax.Array:
            batch = draw(task, key, 1000)
            return wrong(read(params, hidden(cell, params, batch.xs, batch.mask)), batch).mean()

        return jax.lax.map(some, jax.random.split(key, thousands)).mean()

    return jax.jit(lambda nets: jax.vmap(error)(nets.params))
