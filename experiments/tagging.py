"""Tagging: which words of a sentence name a person, a place, ...? Many to many, in step.

    python -m experiments.tagging                            # generated sentences
    python -m experiments.tagging --data train.conll --validation dev.conll --test test.conll
    python -m experiments.tagging tag RUN "Anna Berg flew to Oslo"

A word is a learned vector of its lower-case form, joined to the ends of an LSTM that reads its
characters both ways; another bidirectional LSTM reads the words, and a conditional random field
(Lafferty 2001, Huang 2015) scores tags and pairs of neighbouring tags. --output softmax takes each
tag by itself. F1 counts whole entities, as conlleval does: an I- without its B- begins one.
"""

import functools
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
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
from rnn_jax import crf
from rnn_jax.tasks.batches import Bucketed, pad
from rnn_jax.tasks.entities import entities, entity_scores
from rnn_jax.tasks.text import read_text
from rnn_jax.tasks.words import WordVocabulary

LETTERS = 16  # of a word that are read, from both ends where it is longer
Sentence = list[tuple[str, str]]  # words and their tags
SYLLABLES = [
    "ba",
    "ber",
    "dan",
    "el",
    "fin",
    "gar",
    "hol",
    "il",
    "jor",
    "ka",
    "lin",
    "mar",
    "nor",
    "os",
    "per",
    "ro",
    "sal",
    "tor",
    "um",
    "vik",
]
FRAMES = [
    "@person flew to @place",
    "@person , who works for @company , lives in @place",
    "shares of @company fell after @person left",
    "the mayor of @place met @person",
    "@company opens an office in @place and @place",
    "in the end nothing was said about it",
    "she told @person that @company would sell",
    "it rained in @place all week",
    "@person and @person bought @company",
]


@dataclass(frozen=True)
class Config(Options):
    """Trains a tagger: characters, words, bidirectional LSTMs, a conditional random field."""

    data: Path | None = None
    """UTF-8 file with lines of word, TAB or space, ..., tag, and an empty line after each
    sentence (CoNLL); default: generated sentences."""
    validation: Path | None = None
    """Such a file to choose the best checkpoint by; default: a tenth of the data."""
    test: Path | None = None
    """Such a file to report on; default: a tenth of the data."""
    output: Literal["crf", "softmax"] = "crf"
    """Tags that fit together, or each tag by itself."""
    embedding: int = 64
    """Size of the vector of a word."""
    letters: int = 25
    """Units that read its characters, in each direction."""
    hidden_size: int = 96
    """Units that read the words, in each direction."""
    dropout: float = 0.5
    """Of what goes into the words' LSTM and comes out of it."""
    word_dropout: float = 0.2
    """Probability of reading a word by its characters alone while training."""
    buckets: int = 6
    """Of sentences of like length, each compiled once."""
    learning_rate: float = 3e-3
    epochs: float | None = 20.0
    evaluations: int = 20

    def check(self) -> None:
        super().check()
        command.at_least(self, embedding=1, letters=1, hidden_size=1, buckets=1)
        command.rates(self, "dropout", "word_dropout")
        alone = self.data is not None or (self.validation is None and self.test is None)
        command.require(self, "data", alone, "a file, since --validation or --test is given")


QUICK = Config(
    quick=True, embedding=16, letters=6, hidden_size=24, dropout=0.1, epochs=None, steps=150,
    learning_rate=0.01, evaluations=3, buckets=1,
)  # fmt: skip


class Padded(NamedTuple):
    words: Any  # [N, T] int32
    letters: Any  # [N, T, L] int32, 0 is none
    tags: Any  # [N, T] int32
    lengths: Any  # [N]


class Params(NamedTuple):
    words: jax.Array  # [V, D]
    letters: jax.Array  # [C, D']
    spell: Any
    read: Any
    w: jax.Array  # [2H, K]
    b: jax.Array  # [K]
    crf: crf.CRFParams


class Batches(Bucketed):
    """Buckets of sentences, each batch with the letters and tags of its words."""

    def __init__(self, data: Sequence[tuple[Any, Any, Any]], size: int, **options: int) -> None:
        self.data = data
        super().__init__([words for words, _, _ in data], size, **options)

    def at(self, step: int) -> Padded:
        tokens, _, index = super().at(step)
        return padded([self.data[i] for i in index], tokens.shape[1])


def load(config: Config) -> Data:
    """Sentences to learn from, to choose a checkpoint by, and to report on."""
    if config.data is None:
        parts: list[list[Sentence]] = [
            generated(n, seed)
            for seed, n in enumerate((600, 100, 150) if config.quick else (3000, 400, 600))
        ]
        name = "generated sentences"
    else:
        whole, name = read(config.data), config.data.name
        order = np.random.default_rng(0).permutation(len(whole))
        tenth = len(whole) // 10
        if not tenth and (config.validation is None or config.test is None):
            raise BadInput(f"--data: got {len(whole)} sentences, expected at least 10")
        given = [read(f) if f else None for f in (config.validation, config.test)]
        cut = [0 if g is not None else tenth for g in given]
        bounds = [sum(cut), cut[0]]
        train, valid, test = order[bounds[0] :], order[: cut[0]], order[bounds[1] : bounds[0]]
        parts = [[whole[int(i)] for i in np.sort(train)]]
        parts += [
            g if g is not None else [whole[i] for i in own]
            for g, own in zip(given, (valid, test), strict=True)
        ]
    tags = sorted({tag for part in parts for s in part for _, tag in s})
    if len({tag for s in parts[0] for _, tag in s}) < 2:
        raise BadInput(f"--data: got the one tag {tags[0]!r}, expected at least two to tell apart")
    about = {
        "words": asdict(WordVocabulary.of((w for s in parts[0] for w, _ in s), lower=True)),
        "letters": "".join(sorted({c for s in parts[0] for w, _ in s for c in w})),
        "tags": tags,
    }
    encoded = [[encode(about, s) for s in part] for part in parts]
    batches = Batches(encoded[0], config.batch, buckets=config.buckets, seed=config.seed)
    about["baselines"] = baselines(parts[0], parts[2], config.quick)
    return Data(
        batches, (padded(encoded[1]), padded(encoded[2]), parts[2]), about,
        f"{name}: {', '.join(f'{len(p):,}' for p in parts)} sentences, {len(tags)} tags, "
        f"{batches.waste:.1%} of the steps are padding",
        epoch=batches.epoch, sha256=hashlib.sha256(repr(parts).encode()).hexdigest(),
    )  # fmt: skip


def read(path: Path) -> list[Sentence]:
    """Sentences of a CoNLL file: the first column and the last one."""
    found: list[Sentence] = [[]]
    # Only "\n" ends a line and, where there are tabs, only they part columns: words hold others.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            if found[-1]:
                found.append([])
            continue
        columns = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        tag = columns[-1].strip()
        if len(columns) < 2 or not re.fullmatch(r"O|[BI]-\S+|[^\W\d_]+\S*", tag):
            raise BadInput(
                f"{path}: line {number} is {line[:50]!r}, expected a word and a tag (O, B-... or "
                "I-..., or a part of speech), or nothing"
            )
        found[-1].append((columns[0], tag))
    return [sentence for sentence in found if sentence]


def generated(count: int, seed: int) -> list[Sentence]:
    """Sentences in which what stands around a name says what it names."""
    rng = np.random.default_rng(seed)
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    places, people = ["ton", "ville", "burg", "stad"], ["son", "ssen", "sen", "man"]

    def name(endings: list[str]) -> str:
        root = "".join(pick(SYLLABLES) for _ in range(rng.integers(2, 4)))
        return (root + (pick(endings) if rng.random() < 0.5 else "")).capitalize()

    kinds = {
        "person": lambda: [name(people) for _ in range(rng.integers(1, 3))],
        "place": lambda: [*(["New"] if rng.random() < 0.3 else []), name(places)],
        "company": lambda: [
            name(people),
            *([pick(["Bank", "Steel", "&"])] if rng.random() < 0.6 else []),
        ],
    }
    found = []
    for _ in range(count):
        sentence: Sentence = []
        for word in pick(FRAMES).split():
            if word.startswith("@"):
                kind = word[1:]
                sentence += [
                    (w, f"{'I' if i else 'B'}-{kind}") for i, w in enumerate(kinds[kind]())
                ]
            else:
                sentence.append((word, "O"))
        found.append(sentence)
    return found


def encode(about: dict[str, Any], sentence: Sentence) -> tuple[Any, Any, Any]:
    """Tokens [T], letters [T, L] and tags [T] of one sentence; 0 for what is not known."""
    vocabulary, known = vocabulary_of(about["words"]["words"]), about["letters"]
    letters = np.zeros((len(sentence), LETTERS), np.int32)
    for row, (word, _) in zip(letters, sentence, strict=True):
        ends = word if len(word) <= LETTERS else word[: LETTERS // 2] + word[-LETTERS // 2 :]
        row[: len(ends)] = [known.find(c) + 2 for c in ends]  # 1 is a letter that is not known
    tags = [about["tags"].index(t) if t in about["tags"] else 0 for _, t in sentence]
    return vocabulary.encode([w for w, _ in sentence]), letters, np.array(tags, np.int32)


def vocabulary_of(words: Sequence[str]) -> WordVocabulary:
    return _vocabulary(tuple(words))


@functools.lru_cache(maxsize=4)
def _vocabulary(words: tuple[str, ...]) -> WordVocabulary:
    return WordVocabulary(words, lower=True)


def padded(data: Sequence[tuple[Any, Any, Any]], length: int | None = None) -> Padded:
    words, lengths = pad([words for words, _, _ in data], length)
    T = words.shape[1]
    letters = np.zeros((len(data), T, LETTERS), np.int32)
    for row, (_, own, _) in zip(letters, data, strict=True):
        row[: len(own)] = own
    tags = pad([tags for _, _, tags in data], T)[0]
    return Padded(np.asarray(words), letters, np.asarray(tags), np.asarray(lengths))


def make(config: Config, about: dict[str, Any]) -> Model:
    """The net, what it learns by, and what it is judged by."""
    V, C, K = len(about["words"]["words"]), len(about["letters"]) + 2, len(about["tags"])
    D, S, H = config.embedding, config.letters, config.hidden_size
    spell = rnn_jax.two_way(rnn_jax.lstm(S, S), rnn_jax.lstm(S, S))
    read = rnn_jax.two_way(rnn_jax.lstm(D + 2 * S, H), rnn_jax.lstm(D + 2 * S, H))
    scheme = all(re.fullmatch(r"O|[BI]-.*", tag) for tag in about["tags"])
    allowed = crf.bio(about["tags"]) if scheme else None

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 6)
        table = lambda key, n, d: jax.random.normal(key, (n, d)) / d**0.5  # noqa: E731
        w = rnn_jax.initializers.glorot_uniform()(keys[4], (2 * H, K), jnp.float32)
        return Params(
            table(keys[0], V, D), table(keys[1], C, S), spell.init(keys[2]), read.init(keys[3]),
            w, jnp.zeros(K), crf.init(keys[5], K),
        )  # fmt: skip

    def scores_of(params: Params, one: Padded, key: jax.Array | None = None) -> Any:
        """[T, K] and the mask [T] of one sentence."""
        mask = rnn_jax.length_mask(one.lengths, len(one.words))

        def word(letters: jax.Array) -> jax.Array:
            there = letters > 0
            _, ys = spell.run(params.spell, None, params.letters[letters], mask=there)
            return rnn_jax.both_ends(ys, there)

        words = one.words
        spelled = jax.vmap(word)(one.letters)
        if key is not None:
            k_word, k_in, k_out = jax.random.split(key, 3)
            words = rnn_jax.drop_tokens(words, config.word_dropout, k_word, unknown=0)
        xs = jnp.concatenate([params.words[words], spelled], axis=1)
        if key is not None:
            xs = rnn_jax.drop(xs, config.dropout, k_in, shared=0)
        _, ys = read.run(params.read, None, xs, mask=mask)
        if key is not None:
            ys = rnn_jax.drop(ys, config.dropout, k_out, shared=0)
        return ys @ params.w + params.b[None], mask

    def nats(params: Params, scores: Any, tags: Any, mask: Any) -> jax.Array:
        """Of a sentence, per word."""
        if config.output == "softmax":
            return rnn_jax.losses.cross_entropy(scores, tags, mask)
        found = -crf.log_likelihood(params.crf, scores, tags, mask, allowed)
        return found / jnp.maximum(mask.sum(dtype=scores.dtype), 1.0)

    def loss(params: Params, carry: Any, batch: Padded, key: jax.Array) -> Any:
        def one(sentence: Padded, key: jax.Array) -> jax.Array:
            scores, mask = scores_of(params, sentence, key)
            return nats(params, scores, sentence.tags, mask)

        return jax.vmap(one)(batch, jax.random.split(key, len(batch.words))).mean(), carry

    @jax.jit
    def decode(params: Params, data: Padded) -> tuple[jax.Array, jax.Array]:
        def one(sentence: Padded) -> Any:
            scores, mask = scores_of(params, sentence)
            if config.output == "softmax":
                tags = jnp.where(mask, scores.argmax(axis=1), 0)
            else:
                tags = crf.decode(params.crf, scores, mask, allowed)[0]
            return tags, nats(params, scores, sentence.tags, mask)

        return jax.lax.map(one, data, batch_size=50)

    def score(params: Params, held_out: Any) -> dict[str, Any]:
        valid = held_out[0]
        tags, each = decode(params, valid)
        named = [
            names(about, row, n) for row, n in zip(np.asarray(tags), valid.lengths, strict=True)
        ]
        truth = [names(about, row, n) for row, n in zip(valid.tags, valid.lengths, strict=True)]
        f1 = entity_scores(truth, named).f1
        return {"loss": jnp.float32(1 - f1), "nats": each.mean(), "F1": jnp.float32(f1)}

    # What `tag` and the report need beside the loss.
    return Model(init, loss, lambda data, step: data, score, unit="1 - F1", net=decode)


def names(about: dict[str, Any], tags: Any, length: int) -> list[str]:
    return [about["tags"][t] for t in np.asarray(tags)[: int(length)]]


def baselines(train: list[Sentence], test: list[Sentence], quick: bool) -> dict[str, Any]:
    """What needs no net: (precision, recall, F1) on the test part."""
    counts: dict[str, Counter[str]] = {}
    known: dict[tuple[str, ...], Counter[str]] = {}
    for sentence in train:
        for word, tag in sentence:
            counts.setdefault(word.lower(), Counter())[tag] += 1
        form = [word.lower() for word, _ in sentence]
        for kind, a, b in entities([tag for _, tag in sentence]):
            known.setdefault(tuple(form[a:b]), Counter())[kind] += 1
    longest = max(map(len, known), default=1)

    def most_frequent(words: list[str]) -> list[str]:
        found = [counts.get(word.lower(), Counter("O")) for word in words]
        return [tags.most_common(1)[0][0] for tags in found]

    def listed(words: list[str]) -> list[str]:
        tags, i = ["O"] * len(words), 0
        words = [word.lower() for word in words]
        while i < len(words):
            n = next((n for n in range(longest, 0, -1) if tuple(words[i : i + n]) in known), 0)
            if n:
                kind = known[tuple(words[i : i + n])].most_common(1)[0][0]
                tags[i : i + n] = [f"B-{kind}", *[f"I-{kind}"] * (n - 1)][: len(words) - i]
            i += max(n, 1)
        return tags

    truth = [[tag for _, tag in s] for s in test]
    forms = [[word for word, _ in s] for s in test]
    found = {
        "most frequent tag of the word": [most_frequent(w) for w in forms],
        "entities of training": [listed(w) for w in forms],
    }
    if not quick:
        import sklearn_crfsuite  # type: ignore[import-untyped]

        model = sklearn_crfsuite.CRF(c1=0.2, c2=0.01, max_iterations=100)
        model.fit([features([w for w, _ in s]) for s in train], [[t for _, t in s] for s in train])
        found["CRF of features"] = model.predict([features(w) for w in forms])
    return {name: entity_scores(truth, tags) for name, tags in found.items()}


def features(words: list[str]) -> list[dict[str, Any]]:
    """Of each word: forms, shapes, affixes of it and of two on either side, and pairs."""
    shape = [re.sub(r"[^\W\d_]", "x", re.sub(r"[A-Z]", "X", re.sub(r"\d", "9", w))) for w in words]
    low = [w.lower() for w in words]
    found = []
    for i, word in enumerate(words):
        own: dict[str, Any] = {"bias": 1.0, "title": word.istitle(), "upper": word.isupper()}
        own |= {f"prefix{n}": low[i][:n] for n in (1, 2, 3)} | {
            f"suffix{n}": low[i][-n:] for n in (1, 2, 3)
        }
        for d in (-2, -1, 0, 1, 2):
            inside = 0 <= i + d < len(words)
            own |= {
                f"word{d}": low[i + d] if inside else "-",
                f"shape{d}": shape[i + d] if inside else "-",
            }
        own |= {"pair-": own["word-1"] + "|" + low[i], "pair+": low[i] + "|" + own["word1"]}
        found.append(own)
    return found


def tagged(trained: Trained, words: list[str]) -> list[str]:
    data = padded([encode(trained.about, [(w, "O") for w in words])])
    return names(trained.about, trained.model.net(trained.params, data)[0][0], len(words))


@dataclass(frozen=True)
class Tag(Use):
    """Tags sentences: in colour on a terminal, with the kind behind each entity."""

    sentences: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences, each in quotes."""
    color: Literal["auto", "yes", "no"] = "auto"
    """Whether entities are coloured; auto: where a terminal shows them."""

    def check(self) -> None:
        command.require(self, "sentences", bool(self.sentences), "one or more sentences")

    def __call__(self, trained: Trained) -> Iterator[str]:
        kinds = sorted(
            {t[2:] if t[:2] in ("B-", "I-") else t for t in trained.about["tags"]} - {"O"}
        )
        color = sys.stdout.isatty() if self.color == "auto" else self.color == "yes"
        for text in self.sentences:
            words = re.findall(r"[@#]?\w+(?:['\u2019.-]\w+)*|[^\w\s]", text)
            if not words:
                raise BadInput(f"got {text!r}, expected a sentence with words")
            if odd := sorted({c for w in words for c in w} - set(trained.about["letters"])):
                yield f"(letters that the model does not know: {' '.join(odd)})\n"
            shown, spans = list(words), entities(tagged(trained, words))
            for kind, a, b in spans:
                code = 31 + kinds.index(kind) % 6
                shown[a] = f"\033[1;{code}m{shown[a]}" if color else f"[{shown[a]}"
                shown[b - 1] += f" {kind}\033[0m" if color else f" {kind}]"
            yield " ".join(shown) + "\n"


def report(trained: Trained, held_out: Any) -> Report:
    """Precision, recall and F1 beside what needs no net, by kind, and some sentences."""
    _, data, test = held_out
    tags = np.asarray(trained.model.net(trained.params, data)[0])
    found = [names(trained.about, row, n) for row, n in zip(tags, data.lengths, strict=True)]
    truth = [[tag for _, tag in s] for s in test]
    table = {"this net": entity_scores(truth, found)} | trained.about["baselines"]
    kinds = sorted({kind for tags in truth for kind, *_ in entities(tags)})
    only = lambda tags, kind: [t if t[2:] == kind or t == kind else "O" for t in tags]  # noqa: E731
    by_kind = {
        k: entity_scores([only(t, k) for t in truth], [only(f, k) for f in found]) for k in kinds
    }
    lines = [f"{'':32} precision recall   F1"]
    lines += [f"{n:32} {p:9.1%} {r:6.1%} {f:6.1%}" for n, (p, r, f) in {**table, **by_kind}.items()]
    wrong: list[str] = []
    for sentence, own in zip(test, found, strict=True):
        words = [w for w, _ in sentence]
        a, b = entities([t for _, t in sentence]), entities(own)
        if a != b and len(wrong) < 8:
            say = lambda spans: ", ".join(  # noqa: E731
                f"{' '.join(words[i:j])} {k}" for k, i, j in sorted(spans, key=lambda s: s[1])  # noqa: B023
            ) or "nothing"  # fmt: skip
            wrong.append(f"{' '.join(words)}\n    found {say(b)}; right {say(a)}")
    numbers = {"scores": table, "by_kind": by_kind}
    text = "\n".join(lines) + "\n\nsome that went wrong:\n" + "\n".join(wrong) + "\n"
    return Report(
        numbers,
        text,
        {"F1.png": plots.bars({n: [f] for n, (_, _, f) in table.items()}, "F1 of entities (test)")},
    )


APPLICATION = Application("tagging", Config, QUICK, load, make, report, {"tag": Tag})

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
