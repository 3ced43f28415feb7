"""A word language model, beside the n-gram models that it has to beat.

    python -m experiments.word_lm                            # on the docstrings of Python's library
    python -m experiments.word_lm --data FILE_OR_FOLDER
    python -m experiments.word_lm generate RUN --prompt "Return the"
    python -m experiments.word_lm nearest RUN dict
    python -m experiments.word_lm compose RUN                # you and the net write a text

Two LSTM layers read words and predict the next one; the vector of a word is also the one that
predicts it (tied weights). Each window draws one dropout mask for all its steps. Perplexity, the
exponential of the mean loss, is held against interpolated Kneser-Ney of orders 1 to 5 on the same
words; it depends on which words count as known, so look at the vocabulary before you compare.
"""

import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.application import Application, Data, Model, Options, Report, Trained, Use
from experiments.harness.command import BadInput
from experiments.harness.compose import Compose, Writer
from experiments.harness.sampling import Sampling
from rnn_jax import generate
from rnn_jax.tasks.ngrams import KneserNey
from rnn_jax.tasks.text import (
    read_text,
    scored_streams,
    standard_library_text,
    streams,
    surprisals,
)
from rnn_jax.tasks.words import UNKNOWN, WordVocabulary, join, split

CONTEXT, STREAMS, ORDERS = 128, 32, (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Config(Options):
    """Trains a word language model: tied LSTM layers, truncated backpropagation through time."""

    data: Path | None = None
    """UTF-8 file or folder to learn from; default: the docstrings of Python's standard library.
    The last lines, 10 % of the characters, are for validation."""
    lower: bool = False
    """Take words without their case."""
    cut: int = 2
    """Words that occur fewer times in training are unknown."""
    vocabulary: int = 20_000
    """Highest number of words that are known; the others are unknown."""
    cell: Literal[tuple(rnn_jax.ALL_CELLS)] = "lstm"  # type: ignore[valid-type]
    """Recurrent cell."""
    layers: int = 2
    """Number of recurrent layers."""
    hidden_size: int = 200
    """Units in each layer, and numbers in the vector of a word."""
    dropout: float = 0.5
    """Of the numbers that go in and come out, one mask for all steps of a window."""
    between: float = 0.0
    """Of the outputs between layers, as dropout."""
    word_dropout: float = 0.0
    """Of whole words of the table."""
    weight_dropout: float = 0.0
    """Of recurrent weights, one draw an update (DropConnect)."""
    activation: float = 0.0
    """Weight of the mean square of the outputs (AR; AWD-LSTM: 2)."""
    slowness: float = 0.0
    """Weight of the mean square of the changes of the outputs (TAR; AWD-LSTM: 1)."""
    window: int = 35
    """Words in a window, at whose border the gradient stops."""
    learning_rate: float = 3e-3
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    clip: float = 0.5
    minutes: float | None = 9.5
    samples: int = 4

    def check(self) -> None:
        super().check()
        command.at_least(self, layers=1, hidden_size=1, window=1, cut=1, vocabulary=1)
        command.at_least(self, activation=0.0, slowness=0.0)
        command.rates(self, "dropout", "between", "word_dropout", "weight_dropout")


QUICK = Config(
    quick=True, layers=1, hidden_size=24, dropout=0.0, window=10, batch=8, learning_rate=0.02,
    warmup=10, steps=300, minutes=None, evaluations=6, samples=2,
)  # fmt: skip


class HeldOut(NamedTuple):
    """What is held out, and what the n-gram models make of it."""

    windows: Any  # of `scored_streams`
    ngrams: Any  # [orders, words], probabilities


def load(config: Config) -> Data:
    """The first 90 % of a text by lines to learn from, the rest to be held out."""
    name, text = read(config)
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    at = int(ends[np.argmin(abs(ends - 0.9 * len(text)))])
    words, rest = (split(part, lower=config.lower) for part in (text[:at], text[at:]))
    if len(words) <= config.window or not rest:
        raise BadInput(
            f"--data: got {len(words)} words to learn from and {len(rest)} to be held out, "
            f"expected more than {config.window}, one window, and at least 1. Take a text of more "
            "lines, or a smaller --window"
        )
    vocabulary = WordVocabulary.of(
        words, cut=config.cut, limit=config.vocabulary, lower=config.lower
    )
    tokens, held_out = vocabulary.encode(words), vocabulary.encode(rest)
    C, whole = min(CONTEXT, len(tokens)), np.concatenate([tokens, held_out])
    windows = scored_streams(whole[len(tokens) - C :], C, batch=STREAMS, window=config.window)
    known = f"{np.mean(held_out == 0):.1%} of the held-out ones are not known"
    return Data(
        jnp.asarray(tokens),
        HeldOut(windows, ngrams(tokens, held_out, len(vocabulary))),
        {"vocabulary": asdict(vocabulary)},
        f"{name}: {len(tokens):,} words to learn from, {len(held_out):,} held out, "
        f"{len(vocabulary):,} distinct; {known}",
        epoch=len(tokens) / (config.batch * config.window),
    )


def read(config: Config) -> tuple[str, str]:
    """The name of a text, and the text."""
    if config.data is not None:
        return config.data.name or str(config.data), read_text(config.data)
    if config.quick:
        lines = itertools.product(("the", "a"), ("cat", "dog"), ("sat", "ran", "slept"), ("here",))
        return "sentences", "".join(f"{join(line)}.\n" for line in list(lines) * 12)
    return "docstrings of Python's standard library", standard_library_text(docstrings=True)


def ngrams(tokens: np.ndarray, held_out: np.ndarray, V: int) -> np.ndarray:
    """The probability of each held-out word by Kneser-Ney of orders 1 to 5."""
    return np.stack(
        [KneserNey(tokens, V, n).of_text(held_out, tokens[-n:]) for n in ORDERS]
    ).astype(np.float32)


def layers_of(config: Config) -> list[rnn_jax.Cell]:
    H = config.hidden_size
    return [rnn_jax.ALL_CELLS[config.cell](H, H) for _ in range(config.layers)]


@functools.lru_cache
def network(config: Config, V: int) -> rnn_jax.Cell:
    """Words in, logits [V] out; one table serves both."""
    H = config.hidden_size
    reader = rnn_jax.embed(rnn_jax.stack(layers_of(config)), V, H)
    return rnn_jax.readout(reader, V, tied=True, hidden_size=H)


def make(config: Config, about: dict[str, Any]) -> Model:
    """The net, what it learns by, and what it is judged by."""
    vocabulary = WordVocabulary(**about["vocabulary"])
    V, W, B = len(vocabulary), config.window, config.batch
    net, cells = network(config, V), layers_of(config)

    def init(key: jax.Array) -> Any:
        params = net.init(key)
        table = jax.random.uniform(key, params.cell.table.shape, minval=-0.1, maxval=0.1)
        return params._replace(cell=params.cell._replace(table=table))

    def carry(params: Any, key: jax.Array) -> Any:
        state = net.init_state(params)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape)), state)

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        inputs, targets = batch  # [W, B] each
        k_words, k_weights, k_in, k_out, *k_between = jax.random.split(key, 4 + len(cells))
        table = rnn_jax.drop(params.cell.table, config.word_dropout, k_words, shared=1)
        weights = rnn_jax.drop_connect(params.cell.cell, config.weight_dropout, k_weights)
        hs = rnn_jax.drop(table[inputs], config.dropout, k_in, shared=0)  # [W, B, H]
        states = []
        for i, (cell, p, state) in enumerate(zip(cells, weights, carry, strict=True)):
            hs = rnn_jax.drop(hs, config.between, k_between[i], shared=0) if i else hs
            state, hs = jax.vmap(
                functools.partial(rnn_jax.unroll, cell, p), in_axes=(0, 1), out_axes=(0, 1)
            )(state, hs)
            states.append(state)
        dropped = rnn_jax.drop(hs, config.dropout, k_out, shared=0)
        logits = dropped @ params.cell.table.T + params.b_y[None, None]
        loss = rnn_jax.losses.cross_entropy(logits, targets)
        if config.activation:
            loss += config.activation * rnn_jax.losses.activation_penalty(dropped)
        if config.slowness:
            loss += config.slowness * rnn_jax.losses.slowness_penalty(hs.swapaxes(0, 1))
        return loss, tuple(states)

    def batch_at(tokens: jax.Array, step: jax.Array) -> Any:
        return streams(tokens, step, batch=B, window=W)

    @jax.jit
    def score(params: Any, held_out: HeldOut) -> dict[str, jax.Array]:
        _, targets, scored = held_out.windows
        nats, known = surprisals(net, params, held_out.windows), scored & (targets > 0)
        loss = nats.sum() / scored.sum(dtype=nats.dtype)
        only = jnp.where(known, nats, 0.0).sum() / jnp.maximum(known.sum(dtype=nats.dtype), 1.0)
        return {
            "loss": loss, "perplexity": jnp.exp(loss), "perplexity_of_known": jnp.exp(only),
        }  # fmt: skip

    def sample(params: Any, seed: int) -> str:
        return "".join(write(config, about, params, Generate(Path(), length=60, seed=seed)))

    return Model(
        init, loss, batch_at, score, carry, sample, "nats per word", net, batch_axes=1
    )  # fmt: skip


def write(config: Config, about: dict[str, Any], params: Any, use: "Generate") -> Iterator[str]:
    """The prompt and what follows, word by word; the unknown word is not written."""
    vocabulary = WordVocabulary(**about["vocabulary"])
    words = split(use.prompt, lower=config.lower)
    prompt = jnp.asarray(vocabulary.encode(words or ["\n"]))
    cell, key = network(config, len(vocabulary)), jax.random.key(use.seed)
    state, _ = rnn_jax.unroll(cell, params, None, prompt[:-1])
    tokens = generate.stream(
        cell, params, state, prompt[-1], key, allowed=known_of(len(vocabulary)), **use.chosen
    )
    text = join(words)
    yield text
    for token in itertools.islice(tokens, use.length):
        words += vocabulary.decode(token[None])
        longer = join(words)
        yield longer[len(text) :]
        text = longer


@functools.lru_cache
def known_of(V: int) -> Any:
    return lambda state: jnp.arange(V) > 0


@dataclass(frozen=True)
class Generate(Sampling):
    """Writes text from the best checkpoint of a run, as it comes."""

    prompt: str = ""
    """Text to go on from; words that the model does not know are read as unknown."""
    length: int = 100
    temperature: float = 0.9

    def __call__(self, trained: Trained) -> Iterator[str]:
        vocabulary = WordVocabulary(**trained.about["vocabulary"])
        unknown = [w for w in split(self.prompt) if w not in vocabulary]
        if unknown:
            yield f"(unknown to the model, read as {UNKNOWN}: {' '.join(unknown)})\n"
        yield from write(trained.config, trained.about, trained.params, self)
        yield "\n"


@dataclass(frozen=True)
class Nearest(Use):
    """Prints the words whose vectors have the smallest angle to that of a word."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more words."""
    count: int = 10
    """How many for each."""

    def check(self) -> None:
        command.at_least(self, count=1)
        command.require(self, "words", bool(self.words), "one or more words")

    def __call__(self, trained: Trained) -> Iterator[str]:
        vocabulary = WordVocabulary(**trained.about["vocabulary"])
        for word in self.words:
            if word not in vocabulary:
                raise BadInput(f"got {word!r}, expected a word that the model knows")
        for word in self.words:
            yield f"{word}: {nearest(vocabulary, trained.params, word, self.count)}\n"


def nearest(vocabulary: WordVocabulary, params: Any, word: str, count: int) -> str:
    table = np.asarray(params.cell.table)
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    near = table @ table[vocabulary.encode([word])[0]]
    best = np.argsort(-near)[1 : count + 1]
    return ", ".join(f"{vocabulary.words[i]!r} ({near[i]:.2f})".replace("'", "") for i in best)


def writer(trained: Trained) -> Writer:
    """What `compose` needs to know."""
    vocabulary = WordVocabulary(**trained.about["vocabulary"])
    return Writer(
        network(trained.config, len(vocabulary)), trained.params, start=vocabulary.encode(["\n"]),
        encode=lambda text: vocabulary.encode(split(text)), decode=vocabulary.decode, join=join,
        never=(0,),
    )  # fmt: skip


@dataclass(frozen=True)
class ComposeWords(Compose):
    """A person and the net write a text together, word by word: in the terminal or as a page."""

    def writer(self, trained: Trained) -> Writer:
        return writer(trained)


def report(trained: Trained, held_out: HeldOut) -> Report:
    """Perplexities beside the n-gram models, a text, and neighbours of frequent words."""
    vocabulary = WordVocabulary(**trained.about["vocabulary"])
    net, (_, targets, scored) = network(trained.config, len(vocabulary)), held_out.windows
    nats = jax.jit(surprisals, static_argnums=0)(net, trained.params, held_out.windows)
    one_by_one = lambda a: np.moveaxis(np.asarray(a), 2, 0)[np.moveaxis(scored, 2, 0)]  # noqa: E731
    ours, known = np.exp(-one_by_one(nats)), one_by_one(targets) > 0
    models = {f"Kneser-Ney {n}": p for n, p in zip(ORDERS, held_out.ngrams, strict=True)}
    best = min(models, key=lambda name: perplexity(models[name]))
    models |= {"this net": ours, f"this net and {best}, half and half": (ours + models[best]) / 2}
    found = {name: [perplexity(p), perplexity(p[known])] for name, p in models.items()}
    lines = [f"{'perplexity':38} of all  of known words"]
    lines += [f"{name:38} {a:6.1f} {b:9.1f}" for name, (a, b) in found.items()]
    use = Generate(Path(), length=150, seed=trained.config.seed)
    text = "".join(write(trained.config, trained.about, trained.params, use)).strip("\n")
    frequent = [w for w in vocabulary.words[1:] if len(w) > 2 and w.isalpha()][20:200:30]
    near = [f"{w}: {nearest(vocabulary, trained.params, w, 5)}" for w in frequent]
    table = "\n".join(lines)
    return Report(
        {"perplexity": found, "sample": text, "nearest": near},
        "\n\n".join([table, "nearest words:\n" + "\n".join(near), text]) + "\n",
        {
            "perplexity.png": plots.bars(
                {n: [a] for n, (a, _) in found.items()}, "perplexity (less is better)", "%.1f"
            ),
            "sample.txt": text + "\n",
        },
    )


def perplexity(p: np.ndarray) -> float:
    return float(np.exp(-np.log(np.maximum(p, 1e-12)).mean()))


APPLICATION = Application(
    "word_lm", Config, QUICK, load, make, report,
    {"generate": Generate, "nearest": Nearest, "compose": ComposeWords},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
