"""Sentiment: is a sentence for or against? Many to one, over words, in both directions.

    python -m experiments.sentiment                          # opinions that a negation turns around
    python -m experiments.sentiment --data reviews.txt       # lines: sentence, TAB, label
    python -m experiments.sentiment predict RUN "Not bad at all."

A word is a learned vector and the mean of those of its character n-grams, so that a word never seen
before still means something; an LSTM reads from the left, another from the right, and the maximum
of each output over the sentence decides. Sentences of one's own are cross-validated: the nets of
all folds learn side by side, and six classifiers that count words or characters are scored on the
same folds. Counting cannot see that "not" is nine words away from "bad"; on short reviews there is
little else to see, and it is hard to beat.
"""

import functools
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.application import Application, Data, Model, Options, Report, Trained, Use
from experiments.harness.command import BadInput
from rnn_jax.tasks.batches import Shuffled, folds, minibatch, pad, shuffled
from rnn_jax.tasks.text import read_text
from rnn_jax.tasks.words import WordVocabulary

PIECES, GRAMS, MOST = 20_000, (3, 4, 5), 24  # hashed n-grams: how many, which, of a word at most


@dataclass(frozen=True)
class Config(Options):
    """Trains bidirectional LSTMs to tell which label a sentence has."""

    data: Path | None = None
    """UTF-8 file or folder with lines of sentence, TAB, label; default: made-up opinions, half of
    which a negation turns around, held out with longer negations than those learned from."""
    folds: int = 5
    """Parts of your own data, each of which is held out once."""
    average: int = 1
    """Nets of different seeds whose probabilities are averaged, in each fold."""
    embedding: int = 64
    """Size of the vector of a word."""
    hidden_size: int = 64
    """Units in each direction."""
    dropout: float = 0.5
    """Of the numbers of the word vectors and of those that decide."""
    word_dropout: float = 0.1
    """Probability of reading a word as an unknown one while training."""
    cut: int = 2
    """Words that occur fewer times in training are unknown."""
    learning_rate: float = 2e-3
    epochs: float | None = 8.0
    evaluations: int = 8

    def check(self) -> None:
        super().check()
        command.at_least(self, folds=2, average=1, embedding=1, hidden_size=1, cut=1)
        command.rates(self, "dropout", "word_dropout")


QUICK = Config(
    quick=True, embedding=16, hidden_size=16, dropout=0.0, word_dropout=0.0, folds=2, epochs=None,
    steps=250, learning_rate=0.01, evaluations=5,
)  # fmt: skip


class Sentences(NamedTuple):
    tokens: Any  # [N, T] int32
    pieces: Any  # [N, T, G] int32, hashed n-grams of each word; 0 is none
    lengths: Any  # [N] int32
    labels: Any  # [N] int32


class Learn(NamedTuple):
    sentences: Shuffled
    known: Any  # [V] bool, which words a net may know: those of its own training part


class Params(NamedTuple):
    words: jax.Array  # [V, D]
    pieces: jax.Array  # [P, D]
    both: Any
    w: jax.Array  # [2H, C]
    b: jax.Array  # [C]


def load(config: Config) -> Data:
    """Sentences with labels; of one's own, a part for each fold to hold out."""
    if config.data is None:
        pairs = opinions(1000 if config.quick else 4000, 0, 3, seed=0)
        test = opinions(300 if config.quick else 1000, 4, 8, seed=1)
        whole, train = [*pairs, *test], [np.arange(len(pairs))]
        parts = [np.arange(len(pairs), len(whole))]
        name, split = "made-up opinions", None
    else:
        whole, name = read(config.data), config.data.name
        labels = [label for _, label in whole]
        if config.folds > len(whole):
            raise BadInput(f"--folds: got {config.folds}, expected at most {len(whole)} sentences")
        split = folds(labels, config.folds, config.seed)
        train, parts = ([np.asarray(r.indices[k])[: int(r.size[k])] for k in range(config.folds)]
                        for r in split)  # fmt: skip
    classes = sorted({label for _, label in whole})
    vocabulary = WordVocabulary.of(w for text, _ in whole for w in words(text))
    learn_from = [WordVocabulary.of((w for i in rows for w in words(whole[i][0])), cut=config.cut)
                  for rows in train]  # fmt: skip
    known = np.array([[w in own for w in vocabulary.words] for own in learn_from])
    sentences = encode(vocabulary, whole, classes)
    held_out = [take(sentences, rows, known[k]) for k, rows in enumerate(parts)]
    about = {
        "words": list(vocabulary.words), "classes": classes,
        "known": [np.flatnonzero(row).tolist() for row in known],
        "baselines": baselines(whole, train, parts, config.quick),
    }  # fmt: skip
    text = f"{name}: {len(whole):,} sentences, {len(vocabulary) - 1:,} words, labels {classes}"
    if split is None:
        learn = Learn(shuffled(take(sentences, train[0], known[0]), config.seed), known[0])
        return Data(learn, held_out[0], about, text, epoch=len(train[0]) / config.batch)
    learn = Learn(shuffled(sentences, config.seed, split.train), known)
    axes = Learn(Shuffled(None, 0), 0)  # type: ignore[arg-type]
    return Data(learn, held_out, about, text, epoch=len(train[0]) / config.batch, axes=axes)


def read(path: Path) -> list[tuple[str, str]]:
    """Lines of sentence, TAB, label, from a file or all text files of a folder."""
    found: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            text, tab, label = line.rstrip("\r").rpartition("\t")
            if not tab or not label.strip() or not words(text):
                raise BadInput(
                    f"--data: line {number} is {line[:50]!r}, expected a sentence, TAB, a label"
                )
            if found and is_number(label) != is_number(found[0][1]):
                raise BadInput(
                    f"--data: line {number} has the label {label.strip()!r} and the first line "
                    f"{found[0][1]!r}, expected numbers on all lines or on none"
                )
            found.append((text, label.strip()))
    labels = {label for _, label in found}
    if len(labels) < 2:
        raise BadInput(f"--data: got one class only, {labels}, expected at least two labels")
    if len(labels) > 50:
        raise BadInput(f"--data: got {len(labels)} different labels, expected at most 50 classes")
    return found


def is_number(label: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", label) is not None


def opinions(count: int, least: int, most: int, seed: int) -> list[tuple[str, str]]:
    """Sentences with `least` to `most` fillers before the adjective, half of them negated."""
    rng = np.random.default_rng(seed)
    pick = lambda *options: str(options[rng.integers(len(options))])  # noqa: E731
    found = []
    for _ in range(count):
        good, turned = bool(rng.integers(2)), bool(rng.integers(2))
        thing = pick("the film", "this phone", "our dinner", "the service", "the sound", "my room")
        fillers = [pick("really", "in the end", "to be honest", "as they say", "for that price",
                        "when you think of it", "all in all", "at first sight", "this time")
                   for _ in range(rng.integers(least, most + 1))]  # fmt: skip
        view = (
            pick("great", "good", "lovely", "fine")
            if good
            else pick("bad", "dull", "awful", "poor")
        )
        parts = [thing, "was", *["not"] * turned, *fillers, view]
        found.append((" ".join(parts), "for" if good != turned else "against"))
    return found


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*|[!?:;()]", text.lower())


def encode(
    vocabulary: WordVocabulary, pairs: list[tuple[str, str]], classes: list[str]
) -> Sentences:
    cut = [words(text) for text, _ in pairs]
    tokens, lengths = pad([vocabulary.encode(row) for row in cut])
    grams = np.zeros((*tokens.shape, MOST), np.int32)
    for i, row in enumerate(cut):
        for j, word in enumerate(row):
            grams[i, j] = pieces(word)
    return Sentences(
        np.asarray(tokens), grams, np.asarray(lengths),
        np.array([classes.index(label) for _, label in pairs], np.int32),
    )  # fmt: skip


@functools.lru_cache(maxsize=100_000)
def pieces(word: str) -> tuple[int, ...]:
    """Hashed character n-grams (Bojanowski et al. 2017), filled up with 0."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in GRAMS for i in range(len(marked) - n + 1)][:MOST]
    found = [1 + zlib.crc32(gram.encode()) % (PIECES - 1) for gram in grams]
    return (*found, *[0] * (MOST - len(found)))


def take(sentences: Sentences, rows: Any, known: np.ndarray) -> Sentences:
    """Some of the sentences, as one sees them who knows those words."""
    chosen = Sentences(*(a[rows] for a in sentences))
    return chosen._replace(tokens=np.where(known[chosen.tokens], chosen.tokens, 0))


def baselines(whole: Any, train: Any, parts: Any, quick: bool) -> dict[str, list[list[int]]]:
    """For each classifier and fold which sentences it gets right: 1 or 0."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import BernoulliNB, MultinomialNB
    from sklearn.pipeline import make_pipeline

    logistic = functools.partial(LogisticRegression, max_iter=1000)
    kinds: dict[str, Any] = {
        "most frequent label": lambda: DummyClassifier(strategy="most_frequent"),
        "words, logistic": lambda: make_pipeline(CountVectorizer(), logistic()),
        "words, naive Bayes": lambda: make_pipeline(CountVectorizer(binary=True), BernoulliNB()),
        "words and pairs, tf-idf, logistic": lambda: make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), logistic(C=10)
        ),
        "words and pairs, naive Bayes": lambda: make_pipeline(
            CountVectorizer(ngram_range=(1, 2), binary=True), MultinomialNB()
        ),
        "characters 2 to 5, tf-idf, logistic": lambda: make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            logistic(C=10),
        ),
    }
    if quick:
        kinds = {name: kinds[name] for name in ["most frequent label", "words, logistic"]}
    texts, labels = (np.array(column, object) for column in zip(*whole, strict=True))
    right: dict[str, list[list[int]]] = {name: [] for name in kinds}
    with command.bar("baselines", len(kinds) * len(train)) as done:
        for name, kind in kinds.items():
            for learn, held_out in zip(train, parts, strict=True):
                model = kind().fit(texts[learn], labels[learn].astype(str))
                found = model.predict(texts[held_out]) == labels[held_out].astype(str)
                right[name].append(found.astype(int).tolist())
                done(1)
    return right


def make(config: Config, about: dict[str, Any]) -> Model:
    """The nets that are averaged, with a leading axis; what they learn by and are judged by."""
    V, C, D, H = len(about["words"]), len(about["classes"]), config.embedding, config.hidden_size
    batch_of = minibatch(config.batch)

    def one(key: jax.Array) -> Params:
        k_words, k_pieces, k_both, k_w = jax.random.split(key, 4)
        words = jax.random.normal(k_words, (V, D)) / D**0.5
        grams = jax.random.normal(k_pieces, (PIECES, D)) / D**0.5
        w = rnn_jax.initializers.glorot_uniform()(k_w, (2 * H, C), jnp.float32)
        return Params(words, grams.at[0].set(0.0), net(D, H).init(k_both), w, jnp.zeros(C))

    def init(key: jax.Array) -> Params:
        return jax.lax.map(one, jax.random.split(key, config.average))

    def batch_at(learn: Learn, step: jax.Array) -> Sentences:
        batch = batch_of(learn.sentences, step)
        return batch._replace(tokens=jnp.where(learn.known[batch.tokens], batch.tokens, 0))

    def loss(params: Params, carry: Any, batch: Sentences, key: jax.Array) -> Any:
        def of(params: Params, key: jax.Array) -> jax.Array:
            k_word, k_in, k_out = jax.random.split(key, 3)
            tokens = rnn_jax.drop_tokens(batch.tokens, config.word_dropout, k_word, unknown=0)
            vectors = rnn_jax.drop(vectors_of(params, tokens, batch.pieces), config.dropout, k_in)
            kept = rnn_jax.drop(jnp.ones((len(tokens), 2 * H)), config.dropout, k_out)
            logits = decide(params, vectors, batch.lengths, kept)
            return rnn_jax.losses.cross_entropy(logits, batch.labels)

        return jax.vmap(of)(params, jax.random.split(key, config.average)).mean(), carry

    @jax.jit
    def score(params: Params, held_out: Sentences) -> dict[str, jax.Array]:
        chances = jnp.log(probabilities(params, held_out))
        wrong = jnp.mean((chances.argmax(axis=1) != held_out.labels).astype(float))
        return {"loss": rnn_jax.losses.cross_entropy(chances, held_out.labels), "error": wrong}

    return Model(init, loss, batch_at, score, unit="nats per sentence")


def net(D: int, H: int) -> rnn_jax.TwoWay:
    return rnn_jax.two_way(rnn_jax.lstm(D, H), rnn_jax.lstm(D, H))


def vectors_of(params: Params, tokens: jax.Array, grams: jax.Array) -> jax.Array:
    """[B, T] and [B, T, G] -> [B, T, D]."""
    there = (grams > 0)[..., None]
    mean = jnp.where(there, params.pieces[grams], 0.0).sum(axis=2)
    return params.words[tokens] + mean / jnp.maximum(there.sum(axis=2).astype(mean.dtype), 1.0)


def decide(params: Params, vectors: jax.Array, lengths: jax.Array, kept: Any = 1.0) -> jax.Array:
    """[B, T, D] and [B] -> logits [B, C]."""
    both = net(vectors.shape[-1], params.both[0].w_h.shape[0])

    def one(xs: jax.Array, length: jax.Array) -> jax.Array:
        mask = rnn_jax.length_mask(length, len(xs))
        return rnn_jax.max_over_time(both.run(params.both, None, xs, mask=mask)[1], mask)

    return (jax.vmap(one)(vectors, lengths) * kept) @ params.w + params.b[None]


def probabilities(params: Params, data: Sentences) -> jax.Array:
    """[B, C], the mean over nets with a leading axis."""

    def of(params: Params) -> jax.Array:
        vectors = vectors_of(params, data.tokens, data.pieces)
        return jax.nn.softmax(decide(params, vectors, data.lengths))

    return jax.vmap(of)(params).mean(axis=0)


def weigh(trained: Trained, text: str) -> tuple[np.ndarray, list[float]]:
    """The probability of each class, and by how much each word moved the logarithm of the odds of
    the likeliest one: the difference to the sentence without that word; over all nets."""
    vocabulary, classes = WordVocabulary(trained.about["words"]), trained.about["classes"]
    cut = words(text)
    without = [cut[:i] + cut[i + 1 :] for i in range(len(cut))]
    sentences = encode(vocabulary, [(" ".join(w), classes[0]) for w in [cut, *without]], classes)
    found = []
    for params, known in zip(
        trained.nets, trained.about["known"] * len(trained.nets), strict=False
    ):
        seen = take(sentences, slice(None), np.isin(np.arange(len(vocabulary)), known))
        found.append(np.asarray(jax.jit(probabilities)(params, seen)))
    p = np.mean(found, axis=0).clip(1e-6, 1 - 1e-6)
    odds = np.log(p / (1 - p))[:, p[0].argmax()]
    return p[0], (odds[0] - odds[1:]).tolist()


@dataclass(frozen=True)
class Predict(Use):
    """Says which label each sentence has, and how much each word spoke for it."""

    sentences: tyro.conf.Positional[tuple[str, ...]] = ("not bad at all",)
    """Sentences, each in quotes."""

    def __call__(self, trained: Trained) -> Iterator[str]:
        known = set(trained.about["words"])
        for text in self.sentences:
            if not words(text):
                raise BadInput(f"got {text!r}, expected a sentence with words")
            if unknown := [w for w in words(text) if w not in known]:
                yield f"(never seen, known by their letters alone: {' '.join(unknown)})\n"
            p, moved = weigh(trained, text)
            shown = " ".join(f"{w} ({m:+.1f})" for w, m in zip(words(text), moved, strict=True))
            yield f"{trained.about['classes'][p.argmax()]} ({p.max():.0%}): {shown}\n"


def report(trained: Trained, held_out: Any) -> Report:
    """Accuracies on the same folds, the difference to the best classifier, and what decided."""
    parts = held_out if isinstance(held_out, list) else [held_out]
    nets = trained.nets if isinstance(held_out, list) else [trained.params]
    score = jax.jit(probabilities)
    right = {"these nets": [
        (np.asarray(score(p, part)).argmax(axis=1) == part.labels).astype(int).tolist()
        for p, part in zip(nets, parts, strict=True)
    ]}  # fmt: skip
    right |= trained.about["baselines"]
    table = {name: [float(np.mean(fold)) for fold in of] for name, of in right.items()}
    best = max(trained.about["baselines"], key=lambda name: np.mean(table[name]))
    paired = np.subtract(table["these nets"], table[best])
    ours, theirs = (np.concatenate(right[name]) for name in ("these nets", best))
    from scipy.stats import binomtest

    alone, other = int((ours > theirs).sum()), int((theirs > ours).sum())
    p = float(binomtest(alone, max(alone + other, 1)).pvalue)
    lines = [f"{name:38} {np.mean(t):.3f}" for name, t in table.items()]
    lines += [
        f"\nthese nets less {best}: {paired.mean():+.3f}, by fold "
        f"{' '.join(f'{d:+.3f}' for d in paired)}; right alone {alone}, the other alone {other}, "
        f"p = {p:.2g} (McNemar)"
    ]  # fmt: skip
    examples = ["the film was not really in the end bad", "our dinner was good"]
    if trained.config.data is not None:
        examples = ["The food was not good.", "A great phone, and it works!"]
    numbers = {
        "accuracy": {name: float(np.mean(t)) for name, t in table.items()}, "folds": table,
        "paired": paired.tolist(), "p": p,
    }  # fmt: skip
    return Report(numbers, "\n".join(lines) + "\n", {
        "words.png": decided(trained, examples),
        "accuracy.png": plots.bars(table, "accuracy (held out)"),
    })  # fmt: skip


def decided(trained: Trained, examples: list[str]) -> Any:
    figure, panels = plots.panels(1, 2, size=(9, 4))
    for axes, text in zip(panels, examples, strict=True):
        p, moved = weigh(trained, text)
        axes.barh(range(len(moved)), moved, color=["C0" if m > 0 else "C3" for m in moved])
        axes.set_yticks(range(len(moved)), words(text))
        axes.invert_yaxis()
        label = trained.about["classes"][p.argmax()]
        axes.set(title=f"{label}, {p.max():.0%}", xlabel=f"moves the log odds of {label!r}")
    return figure


APPLICATION = Application("sentiment", Config, QUICK, load, make, report, {"predict": Predict})

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
