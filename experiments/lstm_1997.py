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

    python -m experiments.lstm_1997

References:
  Hochreiter, Schmidhuber. Long short-term memory. 1997 (experiments 4, 6a and 3a).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import rnn_jax as rnn
from experiments.harness import command, search
from experiments.harness.study import Progress, Study
from rnn_jax.gradients import bptt, lstm_1997
from rnn_jax.tasks import memory
from rnn_jax.tasks.memory import Batch

CHUNK = 1000
RECENT = 2000  # sequences that must all be right
NEW = 256  # sequences that must all be right where new ones judge
TESTED = 2560
GRADIENTS = {"truncated": lstm_1997, "full": bptt}

ProblemName = Literal["adding", "temporal_order", "two_sequences"]
GradientName = Literal["truncated", "full"]


# fmt: off
@dataclass(frozen=True)
class Config(search.Options):
    """The first LSTM, with its truncated gradient, on three of its own problems.

    Counts the sequences until it has learned, beside those published. Writes lstm_1997.png and
    numbers.json.
    """

    problems: tuple[ProblemName, ...] = get_args(ProblemName)
    """What is learned."""
    gradients: tuple[GradientName, ...] = get_args(GradientName)
    """As published, truncated, or full, by backpropagation through time."""
    lengths: tuple[int, ...] = (100,)
    """The least lengths of the sequences; published: 100."""
    seeds: int = 10
    """Nets of each kind, trained in one call."""
    updates: int = 300_000
    """Sequences, with an update for each, after which a net counts as failed."""

    def check(self) -> None:
        super().check()
        command.some(self, "problems", "gradients", "lengths")
        command.each_once(self, "problems", "gradients", "lengths")
        command.at_least(self, lengths=30)


QUICK = Config(quick=True, problems=("temporal_order",), lengths=(30,), seeds=2, updates=20_000)


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
        memory.adding_1997, inputs=2, outputs=1, rate=0.5, input_gates=(-3.0, -6.0),
        right=0.04, mean=0.01, published=(74_000, "1 of 2560"), activation=jax.nn.identity,
    ),
    "temporal_order": Problem(
        memory.temporal_order_1997, inputs=8, outputs=4, rate=0.5, input_gates=(-2.0, -4.0),
        right=0.3, mean=0.1, published=(31_390, "1 of 2560"), tokens=True,
    ),
    "two_sequences": Problem(
        two_sequences, inputs=1, outputs=1, rate=1.0, input_gates=(-1.0, -3.0, -5.0),
        output_gates=(-2.0, -4.0, -6.0), right=0.2, mean=0.01, published=(39_850, ".5 of 2560"),
        cells=1, output_bias=False, new=True,
    ),
}
# fmt: on


class Params(NamedTuple):
    """Weights of `make_model`; units: input gates, output gates, cells."""

    w_x: jax.Array  # [D, U]
    w_h: jax.Array  # [U, U]
    b: jax.Array  # [U]
    w_y: jax.Array  # [C, O]
    b_y: jax.Array | None  # [O]


class State(NamedTuple):
    """State of `make_model`."""

    h: jax.Array  # [U], all hidden units
    c: jax.Array  # [C], the cells


def make_model(problem: Problem) -> rnn.Cell:
    """The whole net: 93 weights for adding, 156 for temporal order, 102 for two sequences."""
    blocks = len(problem.input_gates)
    C = problem.cells * blocks
    D, U, O = problem.inputs, 2 * blocks + C, problem.outputs

    def init(key: jax.Array) -> Params:
        k_rest, k_b_y = jax.random.split(key)
        k_hidden, k_y = jax.random.split(k_rest)
        k_x, k_h, k_b = jax.random.split(k_hidden, 3)
        given = jnp.array(problem.input_gates + problem.output_gates)
        b = small(k_b, U).at[: len(given)].set(given)
        b_y = small(k_b_y, O) if problem.output_bias else None
        return Params(small(k_x, D, U), small(k_h, U, U), b, small(k_y, C, O), b_y)

    def step(params: Params, state: State, z: jax.Array) -> tuple[State, jax.Array]:
        gates, net = jnp.split(z + state.h @ params.w_h, [2 * blocks])
        gates = jax.nn.sigmoid(gates)
        i, o = jnp.repeat(gates.reshape(2, blocks), problem.cells, axis=1)
        c = state.c + i * (4 * jax.nn.sigmoid(net) - 2)
        h = jnp.concatenate([gates, o * (2 * jax.nn.sigmoid(c) - 1)])
        return State(h, c), answer(problem, params, h)

    cell = rnn.Cell(
        init,
        init_state=lambda params: State(jnp.zeros(U), jnp.zeros(C)),
        project=lambda params, x: x @ params.w_x + params.b,
        step=step,
    )
    return rnn.one_hot(cell, D) if problem.tokens else cell


def small(key: jax.Array, *shape: int) -> jax.Array:
    """Uniform in [-0.1, 0.1]."""
    return jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)


def answer(problem: Problem, params: Params, h: jax.Array) -> jax.Array:
    """What is put out, [O]: of the cells, without their gates."""
    y = h[2 * len(problem.input_gates) :] @ params.w_y
    return problem.activation(y if params.b_y is None else y + params.b_y)


def sequence(problem: Problem, key: jax.Array, length: int) -> Batch:
    """A sequence whose targets are the numbers to put out, [T, O]."""
    batch = problem.sample(key, length)
    if problem.tokens:
        batch = batch._replace(targets=jax.nn.one_hot(batch.targets, problem.outputs))
    return batch


def loss(y: jax.Array, step: Batch) -> jax.Array:
    """Of one step."""
    return jnp.where(step.scored, 0.5 * ((y - step.targets) ** 2).sum(), 0.0)


def miss(problem: Problem, params: Params, state: State, batch: Batch) -> jax.Array:
    """The greatest error of the answer at the end."""
    return jnp.abs(answer(problem, params, state.h) - batch.targets[-1]).max()


def make_update(problem: Problem, length: int, gradient: GradientName) -> search.Update:
    """One sequence: an update of the weights, and the greatest error before it."""
    value_and_grad = GRADIENTS[gradient](make_model(problem), loss)

    def update(params: Params, key: jax.Array) -> tuple[Params, jax.Array]:
        batch = sequence(problem, key, length)
        (_, state), grads = value_and_grad(params, None, batch.xs, batch, mask=batch.mask)
        new = jax.tree.map(lambda p, g: p - problem.rate * g, params, grads)
        return new, miss(problem, params, state, batch)

    return update


def make_test(problem: Problem, length: int, key: jax.Array, count: int) -> Any:
    """``nets -> [S, count]``, the greatest errors in new sequences."""
    model = make_model(problem)

    def error(params: Params, key: jax.Array) -> jax.Array:
        batch = sequence(problem, key, length)
        state, _ = rnn.unroll(model, params, None, batch.xs, mask=batch.mask)
        return miss(problem, params, state, batch)

    errors = jax.vmap(jax.vmap(error, (None, 0)), (0, None))
    return jax.jit(lambda nets: errors(nets, jax.random.split(key, count)))


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


def find(config: Config, length: int, name: ProblemName, gradient: GradientName) -> search.Search:
    """Sequences until success, and wrong ones in the test, of each seed."""
    problem = PROBLEMS[name]
    k_init, k_train, k_test = jax.random.split(jax.random.key(config.seed), 3)
    new = make_test(problem, length, jax.random.fold_in(k_test, NEW), NEW)
    test = make_test(problem, length, k_test, TESTED)
    history: list[np.ndarray] = []

    def solved(nets: Params, errors: jax.Array, updates: int) -> np.ndarray:
        if problem.new:
            found = np.asarray(new(nets))
            good = (found.max(axis=1) < problem.right) & (found.mean(axis=1) < problem.mean)
            return np.where(good, updates, 0)
        history.append(np.asarray(errors))
        return first_success(np.concatenate(history), problem)

    def rows(found: search.Found) -> list[search.Row]:
        wrong = (np.asarray(test(found.nets)) >= problem.right).sum(axis=1)
        about: dict[str, Any] = {"problem": name, "length": length, "gradient": gradient}
        return [found.row(**about, wrong_of_2560=wrong.tolist())]

    nets = jax.vmap(make_model(problem).init)(jax.random.split(k_init, config.seeds))
    update = make_update(problem, length, gradient)
    return search.Search(title(name, length, gradient), nets, update, solved, k_train, CHUNK, rows)


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """A row for each problem, length and gradient."""
    return search.measure(config, say, find, config.lengths, config.problems, config.gradients)


def title(problem: str, length: int, gradient: str) -> str:
    """Of a row."""
    return f"{problem.replace('_', ' ')}, T={length}, {gradient} gradient"


def summary(numbers: dict[str, Any], config: Config) -> str:
    """A line for each problem and gradient."""
    lines = ["The LSTM of 1997: sequences until it had learned, wrong ones of 2560 after"]
    for row in numbers["rows"]:
        solved = search.times(row)
        mean = f"{np.mean(solved):.0f}" if solved else "-"
        wrong = [w for w, n in zip(row["wrong_of_2560"], row["solved_at"], strict=True) if n]
        lines.append(
            f"{title(row['problem'], row['length'], row['gradient'])}: "
            f"{len(solved)} of {len(row['solved_at'])} trials, mean {mean} sequences, "
            f"wrong {f'{np.mean(wrong):.1f}' if wrong else '-'} of 2560"
        )
        if row["gradient"] == "truncated" and row["length"] == 100:
            sequences, share = PROBLEMS[row["problem"]].published
            lines.append(f"  published: {sequences} sequences, {share}; {search.verdict(row)}")
    return "\n".join(lines)


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """Sequences until success of each seed, and the published mean."""
    rows = numbers["rows"]
    names = [title(row["problem"], row["length"], row["gradient"]) for row in rows]
    figure, axes = search.draw(rows, names, "The LSTM of 1997", "sequences")
    known = np.array([y for y, row in enumerate(rows) if row["length"] == 100])
    if known.size:
        means = [PROBLEMS[rows[y]["problem"]].published[0] for y in known]
        axes.vlines(means, known - 0.3, known + 0.3, "k", label="published mean of 10")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


STUDY = Study("lstm_1997", Config, QUICK, measure, summary, {"lstm_1997.png": draw})

if __name__ == "__main__":
    sys.exit(STUDY.main())
