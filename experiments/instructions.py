"""Instructions: "jump around left twice" becomes what somebody has to do, step by step.

    python -m experiments.instructions                       # a random fifth is held out
    python -m experiments.instructions --split length        # the long ones are held out
    python -m experiments.instructions --split jump          # "jump" was only ever seen alone
    python -m experiments.instructions act RUN "walk twice and turn left"

SCAN (Lake and Baroni 2018): all 20,910 instructions of a small grammar, and the actions that they
mean. An encoder and a decoder learn the random split to the last instruction; that they do not
learn the grammar shows where instructions are longer, or a verb is new.
"""

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.application import Application, Data, Model, Options, Report, Trained, Use
from experiments.harness.command import BadInput
from rnn_jax.encoder_decoder import encoder_decoder, teacher_forced, written
from rnn_jax.tasks.batches import minibatch, pad, shuffled

WORDS = [
    "<begin>",
    "walk",
    "look",
    "run",
    "jump",
    "turn",
    "left",
    "right",
    "opposite",
    "around",
    "twice",
    "thrice",
    "and",
    "after",
]
ACTIONS = ["<end>", "WALK", "LOOK", "RUN", "JUMP", "LEFT", "RIGHT", "<begin>"]
END, BEGIN, LONGEST = 0, 7, 48  # the longest sequence of actions in the grammar
VERBS = ("walk", "look", "run", "jump")
Pair = tuple[str, list[str]]


@dataclass(frozen=True)
class Config(Options):
    """Trains an encoder and a decoder on instructions and the actions that they mean."""

    split: Literal["simple", "length", "jump"] = "simple"
    """What is held out: a random fifth; all with more than 22 actions; all with "jump" in a longer
    instruction."""
    cell: Literal[tuple(rnn_jax.ALL_CELLS)] = "lstm"  # type: ignore[valid-type]
    """Recurrent cell; elman is the plain one with tanh."""
    attend: Literal["additive", "general", "none"] = "none"
    """Kind of attention; the paper's best net has none."""
    embedding: int = 64
    """Size of the vector of a word or an action."""
    hidden_size: int = 128
    """Units of the decoder; each direction of the encoder has half as many."""
    dropout: float = 0.2
    """Of the outputs of encoder and decoder, one mask for all steps."""
    batch: int = 64
    learning_rate: float = 3e-3
    steps: int | None = 4000
    samples: int = 3

    def check(self) -> None:
        super().check()
        command.at_least(self, embedding=1, hidden_size=2)
        command.rates(self, "dropout")
        command.require(self, "data", self.data is None, "none: the grammar makes its own")


QUICK = Config(
    quick=True, embedding=16, hidden_size=48, dropout=0.0, steps=400, batch=32, evaluations=4,
    learning_rate=0.01, samples=1, attend="additive",
)  # fmt: skip


class Padded(NamedTuple):
    words: Any  # [N, S] int32
    lengths: Any  # [N]
    actions: Any  # [N, T] int32, with the end
    counts: Any  # [N]


def grammar() -> list[Pair]:
    """All instructions of SCAN, each with its actions."""
    turn = {"left": ["LEFT"], "right": ["RIGHT"]}
    phrases: list[Pair] = [(verb, [verb.upper()]) for verb in VERBS]
    for verb, side in itertools.product((*VERBS, "turn"), turn):
        act = [] if verb == "turn" else [verb.upper()]
        phrases += [
            (f"{verb} {side}", turn[side] + act),
            (f"{verb} opposite {side}", 2 * turn[side] + act),
            (f"{verb} around {side}", 4 * (turn[side] + act)),
        ]
    repeated = [
        (text + often, n * actions)
        for text, actions in phrases
        for often, n in (("", 1), (" twice", 2), (" thrice", 3))
    ]
    both = [
        (f"{a} {join} {b}", [*x, *y] if join == "and" else [*y, *x])
        for (a, x), (b, y) in itertools.product(repeated, repeated)
        for join in ("and", "after")
    ]
    return repeated + both


def parted(config: Config) -> tuple[list[Pair], list[Pair]]:
    """What is learned from, and what is held out."""
    pairs = grammar()
    if config.quick:  # instructions without a conjunction, and some with
        pairs = [pairs[i] for i in np.random.default_rng(1).permutation(len(pairs))[:4000]]
    if config.split == "simple":
        order, n = np.random.default_rng(0).permutation(len(pairs)), len(pairs) // 5
        return [pairs[i] for i in order[n:]], [pairs[i] for i in order[:n]]
    if config.split == "length":
        held_out = [len(actions) > 22 for _, actions in pairs]
    else:
        held_out = ["jump" in text.split() and text != "jump" for text, _ in pairs]
    train = [pair for pair, out in zip(pairs, held_out, strict=True) if not out]
    if config.split == "jump":  # a tenth of what is read, as in the paper
        train += [("jump", ["JUMP"])] * (len(train) // 9 - 1)
    return train, [pair for pair, out in zip(pairs, held_out, strict=True) if out]


def load(config: Config) -> Data:
    train, held_out = parted(config)
    learn, test = padded(train), padded(held_out)
    text = f"SCAN, {config.split} split: {len(train):,} instructions, {len(held_out):,} held out"
    data = shuffled(jax.tree.map(jnp.asarray, learn), config.seed)
    return Data(data, test, {"split": config.split}, text, epoch=len(train) / config.batch)


def padded(pairs: Sequence[Pair]) -> Padded:
    words = pad([[WORDS.index(w) for w in text.split()] for text, _ in pairs], 9)
    actions = pad([[*map(ACTIONS.index, acts), END] for _, acts in pairs], LONGEST + 1)
    return Padded(*map(np.asarray, (*words, *actions)))


@functools.lru_cache
def network(config: Config, noisy: bool = False) -> Any:
    """Words in, actions out; for training noisy."""
    D, H = config.embedding, config.hidden_size

    def cell(input_size: int, hidden_size: int) -> rnn_jax.Cell:
        plain = rnn_jax.ALL_CELLS[config.cell](input_size, hidden_size)
        if not noisy or not config.dropout:
            return plain
        return rnn_jax.dropout(plain, config.dropout, jax.random.key(0), variational=True)

    both = rnn_jax.two_way(cell(D, H // 2), cell(D, H // 2))
    return encoder_decoder(
        rnn_jax.embed(both, len(WORDS), D), cell, len(ACTIONS), embedding=D, hidden_size=H,
        begin=BEGIN, attend=None if config.attend == "none" else config.attend,
        memory_size=2 * (H // 2),
    )  # fmt: skip


def make(config: Config, about: dict[str, Any]) -> Model:
    net, noisy = network(config), network(config, noisy=True)

    def forced(net: Any, params: Any, one: Padded, key: jax.Array | None = None) -> Any:
        seen = rnn_jax.length_mask(one.lengths, len(one.words))
        valid = rnn_jax.length_mask(one.counts, len(one.actions))
        return teacher_forced(net, params, one.words, one.actions, seen, valid, key), valid

    def loss(params: Any, carry: Any, batch: Padded, key: jax.Array) -> Any:
        keys = jax.random.split(key, len(batch.words))
        logits, valid = jax.vmap(functools.partial(forced, noisy, params))(batch, keys)
        return rnn_jax.losses.cross_entropy(logits, batch.actions, valid), carry

    @jax.jit
    def score(params: Any, held_out: Padded) -> dict[str, jax.Array]:
        some = jax.tree.map(lambda a: a[:: max(1, len(a) // 500)], held_out)
        logits, valid = jax.lax.map(lambda one: forced(net, params, one), some, batch_size=100)
        right = ((logits.argmax(axis=2) == some.actions) | ~valid).all(axis=1)
        loss = rnn_jax.losses.cross_entropy(logits, some.actions, valid)
        return {"loss": loss, "exact_with_the_truth_before": right.mean(dtype=jnp.float32)}

    def sample(params: Any, seed: int) -> str:
        texts = ["jump", "walk twice and turn left", "look around right"]
        return "\n".join(
            f"{t} -> {a}" for t, a in zip(texts, acted(config, params, texts), strict=True)
        )

    return Model(
        net.init, loss, minibatch(config.batch), score, sample=sample, unit="nats per action"
    )


def acted(config: Config, params: Any, texts: Sequence[str]) -> list[str]:
    """The actions that a net writes for each instruction."""
    words, lengths = pad([[WORDS.index(w) for w in text.split()] for text in texts])
    found = []
    for at in range(0, len(texts), 500):
        part = words[at : at + 500], lengths[at : at + 500]
        for row in np.asarray(_write(network(config), params, *part)):
            found.append(" ".join(ACTIONS[a] for a in row if a > 0))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _write(net: Any, params: Any, words: jax.Array, lengths: jax.Array) -> jax.Array:
    def one(words: jax.Array, length: jax.Array) -> jax.Array:
        mask = rnn_jax.length_mask(length, len(words))
        return written(net, params, words, LONGEST + 12, mask, stop=END).tokens[0]

    return jax.vmap(one)(words, lengths)


def walk(actions: Sequence[str]) -> list[tuple[int, int]]:
    """The places of somebody who starts at (0, 0) looking up: each act is a step forward."""
    place, look, found = (0, 0), (0, 1), [(0, 0)]
    for action in actions:
        if action in ("LEFT", "RIGHT"):
            side = 1 if action == "LEFT" else -1
            look = (-side * look[1], side * look[0])
        elif action != "LOOK":
            place = place[0] + look[0], place[1] + look[1]
            found.append(place)
    return found


@dataclass(frozen=True)
class Act(Use):
    """Says what to do for an instruction, and draws the way that one walks."""

    instructions: tyro.conf.Positional[tuple[str, ...]] = ()
    """Instructions, each in quotes."""

    def check(self) -> None:
        command.require(self, "instructions", bool(self.instructions), "one or more instructions")
        for text in self.instructions:
            if not text.split() or not set(text.split()) <= set(WORDS[1:]):
                raise BadInput(f"got {text!r}, expected words among {' '.join(WORDS[1:])}")

    def __call__(self, trained: Trained) -> Iterator[str]:
        for text in self.instructions:
            actions = acted(trained.config, trained.params, [text])[0]
            yield f"{text} -> {actions}\n{drawn(walk(actions.split()))}\n"


def drawn(places: Sequence[tuple[int, int]]) -> str:
    """The grid with the way on it: S where it starts, E where it ends."""
    xs, ys = zip(*places, strict=True)
    rows = [["."] * (max(xs) - min(xs) + 3) for _ in range(max(ys) - min(ys) + 3)]
    for mark, (x, y) in [*(("o", p) for p in places), ("E", places[-1]), ("S", places[0])]:
        rows[max(ys) - y + 1][x - min(xs) + 1] = mark
    return "\n".join(" ".join(row) for row in rows)


def report(trained: Trained, held_out: Padded) -> Report:
    """Exact instructions, by the number of actions, and some that went wrong."""
    _, pairs = parted(trained.config)
    found = acted(trained.config, trained.params, [text for text, _ in pairs])
    right = np.array([got == " ".join(acts) for got, (_, acts) in zip(found, pairs, strict=True)])
    arrives = np.array(
        [walk(g.split())[-1] == walk(a)[-1] for g, (_, a) in zip(found, pairs, strict=True)]
    )
    sizes = np.array([len(acts) for _, acts in pairs])
    bins = {f"{a} to {a + 7}": right[(sizes >= a) & (sizes < a + 8)] for a in range(1, 49, 8)}
    by_size = {name: float(part.mean()) for name, part in bins.items() if part.size}
    wrong = np.flatnonzero(~right)[:5]
    lines = [
        f"exact: {right.mean():.2%} of {len(right):,} instructions; at the right place in the end: "
        f"{arrives.mean():.2%}",
        *(f"  {name} actions: {share:.1%}" for name, share in by_size.items()),
        *(f"{pairs[i][0]} -> {found[i]}\n    not {' '.join(pairs[i][1])}" for i in wrong),
    ]
    figure, axes = plots.panels(size=(7, 3.5))
    axes.bar_label(axes.bar(list(by_size), list(by_size.values())), fmt="{:.1%}", padding=2)
    axes.set(xlabel="actions of the instruction", ylabel="exact", ylim=(0, 1.1))
    numbers = {
        "exact": float(right.mean()),
        "arrives": float(arrives.mean()),
        "by_actions": by_size,
    }
    return Report(numbers, "\n".join(lines) + "\n", {"exact.png": figure})


APPLICATION = Application("instructions", Config, QUICK, load, make, report, {"act": Act})

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
