"""A character language model, trained by truncated backpropagation through time.

    python -m experiments.char_lm                            # on Python's standard library
    python -m experiments.char_lm --data FILE_OR_FOLDER
    python -m experiments.char_lm generate RUN --prompt "def "
    python -m experiments.char_lm compose RUN                # you and the net write a text

The text is cut into contiguous streams, one for each row of the batch. Every update reads the next
window of each stream; the hidden state is carried from window to window for ever, and the gradient
stops at the border of the window. Any other gradient algorithm of the library can take its place:
--gradient snap.
"""

import functools
import itertools
import lzma
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import rnn_jax
from experiments.harness import command
from experiments.harness.application import Application, Data, Model, Options, Report, Trained
from experiments.harness.command import BadInput
from experiments.harness.compose import Compose, Writer
from experiments.harness.sampling import Sampling
from rnn_jax import generate, gradients, train
from rnn_jax.tasks import text_file
from rnn_jax.tasks.ngrams import KneserNey
from rnn_jax.tasks.text import (
    Vocabulary,
    read_text,
    scored_streams,
    standard_library_text,
    streams,
    surprisals,
)

CONTEXT, STREAMS = 256, 32  # characters read before one is scored; streams of the held-out text
COUNTED = 2_000_000  # characters that the baselines learn from
LARGE, TOKENS = 100_000_000, Path("runs/tokens")  # bytes; where the tokens of a large file are


@dataclass(frozen=True)
class Config(Options):
    """Trains a character language model: truncated backpropagation through time over contiguous
    streams, with the hidden state carried from window to window."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=["--text"])] = None
    """UTF-8 file or folder to learn from; default: the source files of Python's standard library.
    The last 10 % are for validation."""
    cell: Literal[tuple(rnn_jax.ALL_CELLS)] = "gru"  # type: ignore[valid-type]
    """Recurrent cell."""
    layers: int = 2
    """Number of recurrent layers."""
    hidden_size: int = 256
    """Units in each layer."""
    embedding: int = 0
    """Size of the learned embedding of each character; 0 for one-hot input."""
    dropout: float = 0.25
    """Probability of dropping an output of a layer while training."""
    window: int = 64
    """Characters in a window, at whose border the gradient stops."""
    restart: float = 0.0
    """Probability that a stream forgets its past at the border of a window, so that the network
    learns to begin; 0 carries the state for ever."""
    gradient: Literal[("window", *gradients.REGISTER)] = "window"  # type: ignore[valid-type]
    """Gradient algorithm: backpropagation through the window, or one of rnn_jax.gradients."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the computation; with bfloat16 the parameters are kept in float32."""
    stream: bool = False
    """Read the text from the disk all along, as is done by itself with a file above 100 MB. Its
    tokens are written to runs/tokens once, and used again."""
    validation_size: int = 200_000
    """Highest number of validation characters, from the beginning of the last 10 %."""
    minutes: float | None = 3.5
    samples: int = 4

    def check(self) -> None:
        super().check()
        command.at_least(self, layers=1, hidden_size=1, window=1, validation_size=1, embedding=0)
        command.rates(self, "dropout", "restart")
        if self.gradient != "window":
            expected = "float32 or float64, as --gradient " + self.gradient + " is beside it"
            command.require(self, "dtype", self.dtype != "bfloat16", expected)


QUICK = Config(
    quick=True, layers=1, hidden_size=16, dropout=0.0, window=10, batch=4, restart=0.2,
    learning_rate=0.02, warmup=10, steps=300, minutes=None, evaluations=6, samples=3,
)  # fmt: skip


def load(config: Config) -> Data:
    """The first 90 % of a text to learn from, the rest to be held out."""
    file, sha256 = config.data, ""
    tokens: Any
    if file is not None and file.is_file() and (config.stream or file.stat().st_size > LARGE):
        with command.bytes_bar("reading") as progress:
            scanned, tokens = text_file.cached(file, TOKENS, progress=progress)
        name, vocabulary, sha256 = file.name, scanned.vocabulary, scanned.sha256
    else:
        name, text = read(config)
        vocabulary = Vocabulary.from_text(text)
        tokens = vocabulary.encode(text)
    L, N, B, W = len(tokens), int(0.9 * len(tokens)), config.batch, config.window
    if N <= W:
        raise BadInput(
            f"--data: got {L} characters, {N} of them to learn from, expected more than {W}, one "
            "window. Take a longer text or a smaller --window"
        )
    C = min(CONTEXT, N)
    held_out = tokens[N - C : N + config.validation_size]
    start = "\n" if "\n" in vocabulary.characters else vocabulary.decode(tokens[:1])
    part = jax.process_index(), jax.process_count()
    return Data(
        text_file.Streams(tokens.part(0, N), batch=B, window=W, part=part)
        if sha256
        else tokens[:N],
        scored_streams(held_out, C, batch=STREAMS, window=W),
        {
            "characters": vocabulary.characters,
            "start": start,
            "baselines": baselines(tokens[:N], tokens[N : N + config.validation_size], vocabulary),
        },
        f"{name}: {L:,} characters, {len(vocabulary)} of them distinct",
        epoch=N / (B * W),
        sha256=sha256,
    )


def baselines(tokens: Any, held_out: Any, vocabulary: Vocabulary) -> dict[str, float]:
    """Bits per character by Kneser-Ney and by xz, of the same split; of large texts of its end."""
    tokens, held_out = (np.asarray(part) for part in (tokens[-COUNTED:], held_out))
    found = {}
    for n, name in ((1, "frequencies"), (2, "pairs"), (5, "5-grams")):
        if len(tokens) >= n:
            p = KneserNey(tokens, len(vocabulary), n).of_text(held_out, tokens[-n:])
            found[f"{name} (Kneser-Ney {n})"] = float(-np.log2(p).mean())
    sizes = [
        len(lzma.compress(vocabulary.decode(part).encode(), preset=9 | lzma.PRESET_EXTREME))
        for part in (tokens, np.concatenate([tokens, held_out]))
    ]
    found["xz -9e (what the text adds)"] = 8 * (sizes[1] - sizes[0]) / len(held_out)
    return found


def read(config: Config) -> tuple[str, str]:
    """The name of a text, and the text."""
    if config.data is not None:
        return config.data.name or str(config.data), read_text(config.data)
    if config.quick:
        return '"hello"', "hello" * 200
    return "Python's standard library", standard_library_text()


@functools.lru_cache
def network(config: Config, V: int) -> rnn_jax.Cell:
    """Tokens in, logits [V] out."""
    return noisy_network(config, V, None)


def noisy_network(config: Config, V: int, key: jax.Array | None) -> rnn_jax.Cell:
    """The same for training: with a key, dropout."""
    D, H = config.embedding or V, config.hidden_size
    factory = rnn_jax.ALL_CELLS[config.cell]
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    layers = [factory(H if i else D, H, dtype=dtype) for i in range(config.layers)]
    if key is not None and config.dropout > 0:
        keys = jax.random.split(key, len(layers))
        layers = [rnn_jax.dropout(c, config.dropout, k) for c, k in zip(layers, keys, strict=True)]
    deep = rnn_jax.stack(layers)
    reader = rnn_jax.embed(deep, V, D) if config.embedding else rnn_jax.one_hot(deep, V)
    return rnn_jax.readout(reader, V, hidden_size=H)


def tabulated(cell: rnn_jax.Cell, V: int) -> rnn_jax.Cell:
    """Projects each token once and looks the result up: faster where tokens repeat in a batch."""

    def project(params: Any, token: jax.Array) -> Any:
        tokens = jnp.arange(V, dtype=jnp.int32)  # not mapped, so one table serves a whole batch
        table = jax.vmap(cell.project, in_axes=(None, 0))(params, tokens)
        return jax.tree.map(lambda rows: rows[token], table)

    return cell._replace(project=project)


def unroll(cell: rnn_jax.Cell, params: Any, carry: Any, tokens: Any, reset: Any = None) -> Any:
    """tokens [T, B] -> logits [T, B, V]; the batch is the second axis, so nothing is transposed."""

    def one(state: Any, xs: jax.Array, reset: jax.Array | None) -> Any:
        return rnn_jax.unroll(cell, params, state, xs, reset=reset)

    return jax.vmap(one, in_axes=(0, 1, 1), out_axes=(0, 1))(carry, tokens, reset)


def nats(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The cross-entropy of each character, in float32 at least."""
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, target)


def make(config: Config, about: dict[str, Any]) -> Model:
    """The net, what it learns by, and what it is judged by."""
    V, W, B = len(about["characters"]), config.window, config.batch
    noisy = noisy_network(config, V, jax.random.key(0))  # unused: the keys in the carry are used
    table = tabulated(noisy, V) if B * W >= V else noisy

    def carry(params: Any, key: jax.Array) -> Any:
        def one(key: jax.Array) -> Any:
            return noisy_network(config, V, key).init_state(compute(config, params))

        return jax.vmap(one)(jax.random.split(key, B))

    def batch_at(tokens: jax.Array, step: jax.Array) -> Any:
        return streams(tokens, step, batch=B, window=W)

    def restarts(key: jax.Array) -> jax.Array | None:
        flags = jax.random.bernoulli(key, config.restart, (B,))
        return jnp.zeros((W, B), bool).at[0].set(flags) if config.restart else None

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        inputs, targets = batch  # [W, B] each
        params, reset = compute(config, params), restarts(key)
        carry, logits = unroll(table, params, carry, inputs, reset)
        return nats(logits, targets).mean(), carry

    def sample(params: Any, seed: int) -> str:
        use = Generate(Path(), length=200, temperature=0.8, seed=seed)
        return about["start"] + "".join(write(config, about, params, use))

    learned_by: Any = loss
    if config.gradient != "window":
        entry = gradients.REGISTER[config.gradient]
        algorithm = train.over_batch(entry.algorithm(noisy, nats, **entry.options))

        def value_and_grad(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
            batch = jax.tree.map(jnp.transpose, (*batch, None, restarts(key)))
            return algorithm(params, carry, batch, jax.random.fold_in(key, 1))

        learned_by = train.Gradient(value_and_grad)
    net, score = network(config, V), evaluator(config, V)
    return Model(
        net.init, learned_by, batch_at, score, carry, sample, "nats per character", net,
        batch_axes=1,
    )  # fmt: skip


def compute(config: Config, params: Any) -> Any:
    """The params in the dtype of the computation."""
    return jax.tree.map(lambda p: p.astype(config.dtype), params)


def evaluator(config: Config, V: int) -> Any:
    """``score(params, held_out)``: nats per character over `scored_streams`."""
    cell = network(config, V)

    def score(params: Any, held_out: Any) -> dict[str, jax.Array]:
        total = surprisals(cell, compute(config, params), held_out).sum()
        return {"loss": total / held_out[2].sum(dtype=total.dtype)}

    return jax.jit(score)


def write(config: Config, about: dict[str, Any], params: Any, use: "Generate") -> Iterator[str]:
    """What follows the prompt, character by character."""
    vocabulary, params = Vocabulary(about["characters"]), compute(config, params)
    prompt = jnp.asarray(vocabulary.encode(use.prompt or about["start"]))
    cell, key = network(config, len(vocabulary)), jax.random.key(use.seed)
    state, _ = rnn_jax.unroll(cell, params, None, prompt[:-1])
    tokens = generate.stream(cell, params, state, prompt[-1], key, **use.chosen)
    for token in itertools.islice(tokens, use.length):
        yield vocabulary.decode(token[None])


@dataclass(frozen=True)
class Generate(Sampling):
    """Writes text from the best checkpoint of a run, as it comes."""

    prompt: str = ""
    """Text to go on from; it may only have characters that the model knows."""

    def __call__(self, trained: Trained) -> Iterator[str]:
        yield self.prompt
        yield from write(trained.config, trained.about, trained.params, self)
        yield "\n"


@dataclass(frozen=True)
class ComposeCharacters(Compose):
    """A person and the net write a text together: in the terminal or as a page."""

    def writer(self, trained: Trained) -> Writer:
        vocabulary = Vocabulary(trained.about["characters"])
        return Writer(
            network(trained.config, len(vocabulary)), compute(trained.config, trained.params),
            start=vocabulary.encode(trained.about["start"]), encode=vocabulary.encode,
            decode=lambda tokens: list(vocabulary.decode(tokens)), join="".join,
        )  # fmt: skip


def report(trained: Trained, held_out: Any) -> Report:
    """Bits per character beside what counts and what compresses, and 500 characters."""
    model, bits = trained.model, {}
    bits["this net"] = float(model.score(trained.params, held_out)["loss"]) / math.log(2)
    bits |= trained.about["baselines"]
    table = "".join(f"{name:32} {value:6.3f}\n" for name, value in bits.items())
    use = Generate(Path(), length=500, temperature=0.8, seed=trained.config.seed)
    text = "".join(write(trained.config, trained.about, trained.params, use))
    text = (trained.about["start"] + text).strip("\n")
    return Report(
        {"sample": text, "bits_per_character": bits},
        f"bits per character of the held-out text:\n{table}\n{text}\n",
        {"sample.txt": text + "\n"},
    )


APPLICATION = Application(
    "char_lm", Config, QUICK, load, make, report,
    {"generate": Generate, "compose": ComposeCharacters},
    x64=lambda config: config.dtype == "float64",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
