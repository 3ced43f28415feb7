"""The first LSTM, with its truncated gradient, on three of its own problems.

No forget gate; blocks of memory cells share an input and an output gate; every hidden unit, gates
included, is an input of every other at the next step; one weight update for each sequence.

    net = x W_x + h W_h + b,  h: all hidden units one step before
    c = c + i (4 sigma(net_c) - 2),  y = o (2 sigma(c) - 1),  i, o = sigma(net)

The truncated gradient cuts every error where it leaves a memory block, and keeps c: h is a constant
in h W_h.

The output of the adding problem is linear. With a logistic one, as it is used elsewhere, the mean
error becomes as small, but targets next to 0 and 1 stay out of reach: 1 of 10 nets gets 2000 in a
row right within 300,000 sequences, and 17 of 2560 new ones wrong.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax as rnn
from experiments.memory_tasks.config import Config
from experiments.memory_tasks.search import search
from rnn_jax.gradients import bptt, lstm_1997
from rnn_jax.tasks import memory
from rnn_jax.tasks.memory import Batch

CHUNK = 1000
RECENT = 2000  # sequences that must all be right
NEW = 256  # sequences that must all be right where new ones judge
TESTED = 2560
GRADIENTS = {"truncated": lstm_1997, "full": bptt}


class Problem(NamedTuple):
    """One line of the published table."""

    sample: Callable[[jax.Array, int], Batch]
    inputs: int
    outputs: int
    rate: float
    input_gates: tuple[float, ...]  # initial biases, block by block
    right: float  # the greatest error of a right answer
    mean: float  # the mean error must fall below
    published: tuple[int, str]  # sequences, and wrong ones in the test
    output_gates: tuple[float, ...] = ()  # initial biases; () for small random ones
    cells: int = 2  # of a block
    tokens: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid  # of the outputs
    output_bias: bool = True
    new: bool = False  # judged by 256 new sequences, not by the last 2000 of training


def two_sequences(key: jax.Array, length: int) -> Batch:
    """Latching with 1 and 0 to put out."""
    batch = memory.latching(key, length)
    return batch._replace(targets=batch.targets[:, None].astype(batch.xs.dtype))


PROBLEMS = {
    "adding": Problem(
        memory.adding_1997,
        inputs=2,
        outputs=1,
        rate=0.5,
        input_gates=(-3.0, -6.0),
        right=0.04,
        mean=0.01,
        published=(74_000, "1 of 2560"),
        activation=jax.nn.identity,
    ),
    "temporal order": Problem(
        memory.temporal_order_1997,
        inputs=8,
        outputs=4,
        rate=0.5,
        input_gates=(-2.0, -4.0),
        right=0.3,
        mean=0.1,
        published=(31_390, "1 of 2560"),
        tokens=True,
    ),
    "two sequences": Problem(
        two_sequences,
        inputs=1,
        outputs=1,
        rate=1.0,
        input_gates=(-1.0, -3.0, -5.0),
        output_gates=(-2.0, -4.0, -6.0),
        right=0.2,
        mean=0.01,
        published=(39_850, ".5 of 2560"),
        cells=1,
        output_bias=False,
        new=True,
    ),
}


class Params(NamedTuple):
    """Weights of `memory_blocks`; units: input gates, output gates, cells."""

    w_x: jax.Array  # [D, U]
    w_h: jax.Array  # [U, U]
    b: jax.Array  # [U]


class State(NamedTuple):
    """State of `memory_blocks`."""

    h: jax.Array  # [U], all hidden units
    c: jax.Array  # [cells]


def memory_blocks(problem: Problem) -> rnn.Cell:
    """The hidden layer: blocks of an input gate, an output gate and the cells that share them."""
    blocks = len(problem.input_gates)
    cells = problem.cells * blocks
    U = 2 * blocks + cells

    def init(key: jax.Array) -> Params:
        k_x, k_h, k_b = jax.random.split(key, 3)
        given = jnp.array(problem.input_gates + problem.output_gates)
        b = small(k_b, (U,)).at[: len(given)].set(given)
        return Params(small(k_x, (problem.inputs, U)), small(k_h, (U, U)), b)

    def step(params: Params, state: State, z: jax.Array) -> tuple[State, jax.Array]:
        gates, net = jnp.split(z + state.h @ params.w_h, [2 * blocks])
        gates = jax.nn.sigmoid(gates)
        i, o = jnp.repeat(gates.reshape(2, blocks), problem.cells, axis=1)
        c = state.c + i * (4 * jax.nn.sigmoid(net) - 2)
        h = jnp.concatenate([gates, o * (2 * jax.nn.sigmoid(c) - 1)])
        return State(h, c), h[2 * blocks :]

    return rnn.Cell(
        init,
        init_state=lambda params: State(jnp.zeros(U), jnp.zeros(cells)),
        project=lambda params, x: x @ params.w_x + params.b,
        step=step,
    )


def small(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Uniform in [-0.1, 0.1]."""
    return jax.random.uniform(key, shape, dtype, minval=-0.1, maxval=0.1)


def make_model(problem: Problem) -> rnn.Cell:
    """The whole net: 93 weights for adding, 156 for temporal order, 102 for two sequences."""
    cell = memory_blocks(problem)
    cell = rnn.one_hot(cell, problem.inputs) if problem.tokens else cell
    model = rnn.readout(
        cell,
        problem.outputs,
        activation=problem.activation,
        hidden_size=problem.cells * len(problem.input_gates),
        bias=problem.output_bias,
        w_init=small,
    )

    def init(key: jax.Array) -> rnn.ReadoutParams:
        k_model, k_b = jax.random.split(key)
        params = model.init(k_model)
        return params._replace(b_y=small(k_b, (problem.outputs,)) if problem.output_bias else None)

    return model._replace(init=init)


def answer(problem: Problem, params: rnn.ReadoutParams, state: State) -> jax.Array:
    """The outputs after the last valid step, [O]."""
    out = state.h[2 * len(problem.input_gates) :] @ params.w_y
    return problem.activation(out if params.b_y is None else out + params.b_y)


def wanted(problem: Problem, batch: Batch) -> jax.Array:
    """The numbers to put out, [T, O]."""
    return jax.nn.one_hot(batch.targets, problem.outputs) if problem.tokens else batch.targets


def make_update(problem: Problem, length: int, gradient: str) -> Any:
    """One sequence: an update of the weights, and the greatest error before it."""
    value_and_grad = GRADIENTS[gradient](
        make_model(problem),
        lambda y, target: jnp.where(target[1], 0.5 * ((y - target[0]) ** 2).sum(), 0.0),
    )

    def update(params: rnn.ReadoutParams, key: jax.Array) -> tuple[rnn.ReadoutParams, jax.Array]:
        batch = problem.sample(key, length)
        targets = wanted(problem, batch)
        (_, state), grads = value_and_grad(
            params, None, batch.xs, (targets, batch.scored), mask=batch.mask
        )
        error = jnp.abs(answer(problem, params, state) - targets[-1]).max()
        return jax.tree.map(lambda p, g: p - problem.rate * g, params, grads), error

    return update


def first_success(errors: np.ndarray, problem: Problem) -> np.ndarray:
    """The sequences [S] after which the last 2000 were right and close enough; 0 if never.

    errors: [n, S], of all sequences so far.
    """
    if len(errors) < RECENT:
        return np.zeros(errors.shape[1], int)
    ends = np.arange(RECENT, len(errors) + 1)

    def recent(values: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
        return (sums[ends] - sums[ends - RECENT]) / RECENT

    success = (recent(errors >= problem.right) == 0) & (recent(errors) < problem.mean)
    return np.where(success.any(axis=0), ends[success.argmax(axis=0)], 0)


def make_test(problem: Problem, length: int, key: jax.Array, count: int) -> Any:
    """``nets -> [S, count]``, the greatest errors in new sequences."""
    model = make_model(problem)

    def one(params: rnn.ReadoutParams, key: jax.Array) -> jax.Array:
        batch = problem.sample(key, length)
        state, _ = rnn.unroll(model, params, None, batch.xs, mask=batch.mask)
        return jnp.abs(answer(problem, params, state) - wanted(problem, batch)[-1]).max()

    def errors(params: rnn.ReadoutParams) -> jax.Array:
        return jax.vmap(partial(one, params))(jax.random.split(key, count))

    return jax.jit(jax.vmap(errors))


def row(config: Config, name: str, length: int, gradient: str, deadline: float) -> dict[str, Any]:
    """Sequences until success, and wrong ones in the test, of each seed."""
    problem = PROBLEMS[name]
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    new = make_test(problem, length, jax.random.fold_in(k_test, NEW), NEW)
    test = make_test(problem, length, k_test, TESTED)
    nets = jax.vmap(make_model(problem).init)(jax.random.split(k_init, config.seeds))
    history: list[np.ndarray] = []

    def solved(nets: Any, errors: Any, updates: int) -> np.ndarray:
        if problem.new:
            found = np.asarray(new(nets))
            good = (found.max(axis=1) < problem.right) & (found.mean(axis=1) < problem.mean)
            return np.where(good, updates, 0)
        history.append(np.asarray(errors))
        return first_success(np.concatenate(history), problem)

    found = search(
        f"{name}, T={length}, {gradient} gradient",
        nets,
        make_update(problem, length, gradient),
        solved,
        k_train,
        budget=config.updates,
        chunk=min(CHUNK, config.updates),
        deadline=deadline,
    )
    return {
        "problem": name,
        "length": length,
        "gradient": gradient,
        "solved_at": found.solved_at.tolist(),
        "updates": found.updates,
        "wrong_of_2560": (np.asarray(test(found.nets)) >= problem.right).sum(axis=1).tolist(),
        "seconds": found.seconds,
    }


def study(config: Config) -> list[dict[str, Any]]:
    """A row for each problem, length and gradient."""
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else math.inf
    return [
        row(config, name, length, gradient, deadline)
        for length in config.lengths
        for name in PROBLEMS
        for gradient in GRADIENTS
    ]
