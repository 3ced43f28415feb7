"""Translation: one net reads a sentence, another writes it in another language.

    python -m experiments.translation                        # dates of 18 locales, ISO and back
    python -m experiments.translation --data pairs.txt       # lines: source, TAB, target
    python -m experiments.translation translate RUN "den 5 juni 1987"

The encoder is a GRU in both directions, the decoder a GRU that looks at the encoder's outputs by
additive attention (Bahdanau 2015), or with --attend none sees nothing of them but their ends.
Sentences are dealt into buckets of like length. The test set is split off by source, so that no
sentence of it was ever seen, and translated greedily and by a beam.
"""

import datetime
import functools
import hashlib
import sys
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
from rnn_jax.encoder_decoder import encoder_decoder, teacher_forced, written
from rnn_jax.tasks.batches import Bucketed, pad
from rnn_jax.tasks.text import read_text
from rnn_jax.tasks.words import WordVocabulary, join, split

END, BEGIN = "<end>", 0  # the unknown unit, which is never written, stands for the beginning
LOCALES = "en_US en_GB de fr es it sv da nb fi nl pt_BR pl cs ro tr el ru"
FORMATS = ("medium", "long", "full")
Pair = tuple[str, list[str]]  # a source and all that it may be translated to


@dataclass(frozen=True)
class Config(Options):
    """Trains an encoder and a decoder on pairs of texts."""

    data: Path | None = None
    """UTF-8 file or folder with lines of source, TAB, target; further columns are not read.
    Default: dates of 18 locales to ISO 8601 and back."""
    unit: Literal["auto", "characters", "words"] = "auto"
    """What is read and written one after the other; auto: characters of dates, words of your
    own data."""
    attend: Literal["additive", "dot", "general", "concat", "none"] = "additive"
    """Kind of attention."""
    cell: Literal[tuple(rnn_jax.ALL_CELLS)] = "gru"  # type: ignore[valid-type]
    """Recurrent cell."""
    embedding: int = 64
    """Size of the vector of a character or word."""
    hidden_size: int = 128
    """Units of the decoder; each direction of the encoder has half as many."""
    dropout: float = 0.1
    """Of the outputs of encoder and decoder, one mask for all steps of a sentence."""
    cut: int = 2
    """Words that occur fewer times in training are unknown."""
    dates: int = 8000
    """How many different dates the default data has."""
    locales: str = LOCALES
    """Of the dates, names with spaces between."""
    direction: Literal["both", "iso", "back"] = "both"
    """Of the dates: to ISO 8601, from it, or both in one net."""
    buckets: int = 12
    """Of sentences of like length, each compiled once."""
    validation: int = 500
    """Sources that choose the best checkpoint (at most a tenth of all)."""
    test: int = 1000
    """Sources that the report is about (at most a fifth of all)."""
    width: int = 5
    """Texts in the beam."""
    length_penalty: float = 1.0
    """Of the beam: 0 favours short texts."""
    batch: int = 64
    steps: int | None = 2000
    samples: int = 4

    def check(self) -> None:
        super().check()
        command.at_least(self, embedding=1, hidden_size=2, cut=1, dates=50, validation=1, test=1)
        command.at_least(self, width=1, buckets=1, length_penalty=0.0)
        command.require(self, "locales", bool(self.locales.split()), "one or more names")
        command.rates(self, "dropout")

    @property
    def units(self) -> str:
        chosen = "characters" if self.data is None else "words"
        return chosen if self.unit == "auto" else self.unit


QUICK = Config(
    quick=True, embedding=16, hidden_size=48, dropout=0.0, dates=1000, locales="en_GB",
    direction="iso", buckets=1, steps=300, test=40, validation=20, batch=32, learning_rate=0.01,
    evaluations=5, samples=2, width=2,
)  # fmt: skip


class Padded(NamedTuple):
    """Sentences side by side."""

    source: Any  # [N, S] int32
    source_lengths: Any  # [N]
    target: Any  # [N, T] int32, with the end token
    target_lengths: Any  # [N]


class HeldOut(NamedTuple):
    valid: Padded
    test: list[Pair]
    nearest: list[str]  # for each source of the test, what the nearest one of training becomes


def load(config: Config) -> Data:
    """Pairs of texts: those to learn from, to choose a checkpoint by, and to report on."""
    name, pairs = read(config)
    sources: dict[str, list[str]] = {}
    for source, target in pairs:
        sources.setdefault(source, []).append(target)
    groups = group(config, list(sources))
    order = np.random.default_rng(0).permutation(len(groups))
    test = min(config.test, len(groups) // 5)
    valid = min(config.validation, len(groups) // 10)
    if not valid:
        raise BadInput(f"--data: got {len(groups)} different sources, expected at least 10")
    parts = [
        [s for i in chosen for s in groups[i]] for chosen in np.split(order, [test, test + valid])
    ]
    tests, valids, train = ([(s, sources[s]) for s in part] for part in parts)
    if config.data is None:
        tests, valids = tests[: config.test], valids[: config.validation]
    cut = functools.partial(units_of, config)
    learn = [(cut(s), [*cut(t), END]) for s, targets in train for t in targets]
    rare = config.cut if config.units == "words" else 1
    ends = [WordVocabulary.of((u for text in side for u in text), cut=rare)
            for side in zip(*learn, strict=True)]  # fmt: skip
    sides = tuple([ends[i].encode(pair[i]).tolist() for pair in learn] for i in range(2))
    batches = Bucketed(sides, config.batch, buckets=config.buckets, seed=config.seed)
    about = {"source": asdict(ends[0]), "target": asdict(ends[1]), "waste": batches.waste}
    held_out = HeldOut(
        padded(about, config, [(s, t[0]) for s, t in valids]), tests, nearest(train, tests)
    )
    text = (
        f"{name}: {len(learn):,} pairs to learn from, {len(ends[0])} and {len(ends[1])} different "
        f"{config.units}, {batches.waste:.1%} of the steps are padding; {len(tests):,} sources to "
        "report on"
    )
    seen = hashlib.sha256(repr((learn, tests, valids)).encode()).hexdigest()
    return Data(batches, held_out, about, text, epoch=batches.epoch, sha256=seen)


def read(config: Config) -> tuple[str, list[tuple[str, str]]]:
    """The name of the data, and the pairs."""
    if config.data is None:
        return "dates", dates(config)
    pairs = []
    for number, line in enumerate(read_text(config.data).split("\n"), 1):
        if line.strip():
            source, *rest = (column.strip() for column in line.split("\t"))
            if not source or not rest or not rest[0]:
                raise BadInput(
                    f"--data: line {number} is {line[:50]!r}, expected a source, TAB, a target: "
                    "nothing stands beside it"
                )
            pairs.append((source, rest[0]))
    return config.data.name, pairs


@functools.lru_cache
def dates(config: Config) -> list[tuple[str, str]]:
    """Days of 1950 to 2049, each as up to three locales write it, to ISO 8601 and back."""
    from babel import Locale, UnknownLocaleError
    from babel.dates import format_date

    try:
        locales = [Locale.parse(name) for name in config.locales.split()]
    except (UnknownLocaleError, ValueError) as error:
        raise BadInput(
            f"--locales: {command.one_line(error)}, expected names such as sv en_GB"
        ) from error
    rng = np.random.default_rng(0)
    first, pairs = datetime.date(1950, 1, 1), []
    for day in rng.choice(36_524, size=min(config.dates, 36_524), replace=False):
        date = first + datetime.timedelta(days=int(day))
        for which in rng.choice(len(locales), size=min(3, len(locales)), replace=False):
            form: Any = str(rng.choice(FORMATS))
            text = plain(format_date(date, form, locale=locales[which]))
            if config.direction != "back":
                pairs.append((text, date.isoformat()))
            if config.direction != "iso" and form != "full":  # ISO does not say the day of the week
                pairs.append((f"{date} {locales[which]} {form}", text))
    return pairs


def plain(text: str) -> str:
    """What people type: ordinary spaces and apostrophes."""
    return " ".join(text.replace("\u2019", "'").split())


def group(config: Config, sources: list[str]) -> list[list[str]]:
    """Sources that must not be parted: all that say the same date."""
    if config.data is not None:
        return [[source] for source in sources]
    iso = dict(pair for pair in dates(config) if pair[1][:4].isdigit() and pair[1][4:5] == "-")
    found: dict[str, list[str]] = {}
    for source in sources:
        found.setdefault(iso.get(source, source[:10]), []).append(source)
    return list(found.values())


def units_of(config: Config, text: str) -> list[str]:
    text = plain(text)
    return list(text) if config.units == "characters" else split(text)


def padded(about: dict[str, Any], config: Config, pairs: Sequence[tuple[str, str]]) -> Padded:
    ends = WordVocabulary(**about["source"]), WordVocabulary(**about["target"])
    source = [ends[0].encode(units_of(config, s)) for s, _ in pairs]
    target = [ends[1].encode([*units_of(config, t), END]) for _, t in pairs]
    return Padded(*(np.asarray(a) for side in (source, target) for a in pad(side)))


def nearest(train: list[Pair], tests: list[Pair]) -> list[str]:
    """The translation of the most similar source (tf-idf of characters)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    seen = model.fit_transform([source for source, _ in train])
    found = []
    for at in range(0, len(tests), 100):
        near = (model.transform([s for s, _ in tests[at : at + 100]]) @ seen.T).toarray()
        found += [train[i][1][0] for i in near.argmax(axis=1)]
    return found


@functools.lru_cache
def network(config: Config, S: int, V: int, noisy: bool = False) -> Any:
    """S and V different units on either side; for training noisy."""
    D, H = config.embedding, config.hidden_size

    def cell(input_size: int, hidden_size: int) -> rnn_jax.Cell:
        plain = rnn_jax.ALL_CELLS[config.cell](input_size, hidden_size)
        if not noisy or not config.dropout:
            return plain
        return rnn_jax.dropout(plain, config.dropout, jax.random.key(0), variational=True)

    both = rnn_jax.two_way(cell(D, H // 2), cell(D, H // 2))
    attend = None if config.attend == "none" else config.attend
    return encoder_decoder(
        rnn_jax.embed(both, S, D), cell, V, embedding=D, hidden_size=H, begin=BEGIN, attend=attend,
        memory_size=2 * (H // 2),
    )  # fmt: skip


def make(config: Config, about: dict[str, Any]) -> Model:
    """The net, what it learns by, and what it is judged by."""
    sizes = [len(about[side]["words"]) for side in ("source", "target")]
    net, noisy = network(config, *sizes), network(config, *sizes, noisy=True)

    def init(key: jax.Array) -> Any:
        params = net.init(key)
        smaller = lambda p: p._replace(table=p.table / config.embedding**0.5)  # noqa: E731
        inner = params.decoder._replace(cell=smaller(params.decoder.cell))
        return params._replace(encoder=smaller(params.encoder), decoder=inner)

    def logits_of(net: Any, params: Any, one: Padded, key: Any = None) -> Any:
        seen = rnn_jax.length_mask(one.source_lengths, len(one.source))
        valid = rnn_jax.length_mask(one.target_lengths, len(one.target))
        return teacher_forced(net, params, one.source, one.target, seen, valid, key), valid

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> Any:
        (source, target), (n_source, n_target), _ = batch
        keys = jax.random.split(key, len(source))
        sentences = Padded(source, n_source, target, n_target)
        forced = functools.partial(logits_of, noisy, params)
        logits, valid = jax.vmap(forced)(sentences, keys)
        return rnn_jax.losses.cross_entropy(logits, target, valid), carry

    @jax.jit
    def score(params: Any, held_out: Padded) -> dict[str, jax.Array]:
        logits, valid = jax.lax.map(lambda s: logits_of(net, params, s), held_out, batch_size=50)
        right = (logits.argmax(axis=2) == held_out.target) | ~valid
        return {
            "loss": rnn_jax.losses.cross_entropy(logits, held_out.target, valid),
            "sentences_right": right.all(axis=1).mean(dtype=jnp.float32),
        }  # fmt: skip

    def judged(params: Any, held_out: HeldOut) -> dict[str, jax.Array]:
        return score(params, held_out.valid)

    def sample(params: Any, seed: int) -> str:
        texts = SAMPLES[config.data is None][: 4 if config.direction == "both" else 2]
        found = translations(config, about, params, texts, 1)
        return "\n".join(f"{s} -> {t[0][0]}" for s, t in zip(texts, found, strict=True))

    unit = f"nats per {config.units.removesuffix('s')}"
    return Model(init, loss, lambda data, step: data, judged, sample=sample, unit=unit)


SAMPLES = {
    True: ["den 5 juni 1987", "Friday, June 5, 1987", "1987-06-05 fr long", "3. Januar 2024"],
    False: ["I like this book.", "Where do you live?"],
}


def translations(
    config: Config, about: dict[str, Any], params: Any, texts: Sequence[str], width: int
) -> list[list[tuple[str, float]]]:
    """For each text the `width` best translations, each with its score; greedy where it is 1."""
    ends = WordVocabulary(**about["source"]), WordVocabulary(**about["target"])
    net, end = network(config, len(ends[0]), len(ends[1])), ends[1].words.index(END)
    found: dict[int, list[tuple[str, float]]] = {}
    rows = [ends[0].encode(units_of(config, text)) for text in texts]
    order = np.argsort([len(row) for row in rows], kind="stable")
    for at in range(0, len(order), 64):
        chosen = order[at : at + 64]
        S = -(-max(len(rows[i]) for i in chosen) // 16) * 16
        filled = [rows[i] for i in chosen] + [rows[chosen[0]]] * (64 - len(chosen))
        source, lengths = pad(filled, S)
        tokens, scores = _write(net, params, source, lengths, width, end, config.length_penalty)
        for i, own, points in zip(chosen, np.asarray(tokens), np.asarray(scores), strict=False):
            texts_found = [ends[1].decode([t for t in row if t >= 0 and t != end]) for row in own]
            whole = "".join if config.units == "characters" else join
            found[int(i)] = [(whole(t), float(p)) for t, p in zip(texts_found, points, strict=True)]
    return [found[i] for i in range(len(rows))]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _write(
    net: Any, params: Any, source: Any, lengths: Any, width: int, end: int, penalty: float
) -> Any:
    """[B, S] -> tokens [B, width, T] and scores [B, width]."""
    S = source.shape[1]

    def one(source: jax.Array, length: jax.Array) -> Any:
        known = lambda state: jnp.arange(params.decoder.w_y.shape[1]) != BEGIN  # noqa: E731
        found = written(
            net, params, source, 3 * S // 2 + 24, rnn_jax.length_mask(length, S), width=width,
            stop=end, length_penalty=penalty, allowed=known,
        )  # fmt: skip
        return found.tokens, found.scores

    return jax.vmap(one)(source, lengths)


def attention_of(trained: Trained, source: str, target: str) -> tuple[list[str], list[str], Any]:
    """The units of both sides, and where the decoder looked before it wrote each: [T, S]."""
    about, config = trained.about, trained.config
    data = padded(about, config, [(source, target)])
    net = network(config, *(len(about[side]["words"]) for side in ("source", "target")))
    S, decoder = data.source.shape[1], net.decoder(data.source.shape[1])

    def step(state: Any, token: jax.Array) -> Any:
        p = trained.params.decoder
        state, _ = decoder.step(p, state, decoder.project(p, token))
        return state, state.weights

    read = jnp.asarray([net.begin, *data.target[0, :-1]], jnp.int32)
    state = net.start(trained.params, jnp.asarray(data.source[0]))
    _, weights = jax.lax.scan(step, state, read)
    return units_of(config, source)[:S], [*units_of(config, target), END], np.asarray(weights)


@dataclass(frozen=True)
class Translate(Use):
    """Translates sentences, with the next best translations if asked."""

    sentences: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences, each in quotes."""
    width: int = 5
    """Texts in the beam; 1 is greedy."""
    best: int = 1
    """How many translations of each are shown, the best first, with their scores."""
    picture: Path | None = None
    """A file for a picture of where the decoder looked (of the first sentence), such as a.png."""

    def check(self) -> None:
        command.at_least(self, width=1, best=1)
        command.require(self, "sentences", bool(self.sentences), "one or more sentences")
        command.require(self, "best", self.best <= self.width, "at most --width")
        fresh = self.picture is None or not self.picture.exists()
        command.require(self, "picture", fresh, "a file that does not exist yet")

    def __call__(self, trained: Trained) -> Iterator[str]:
        config, source = trained.config, WordVocabulary(**trained.about["source"])
        for text in self.sentences:
            if not units_of(config, text):
                raise BadInput(f"got {text!r}, expected a sentence")
            if unknown := [u for u in units_of(config, text) if u not in source]:
                yield f"(unknown to the model: {' '.join(map(repr, unknown))})\n"
            found = translations(config, trained.about, trained.params, [text], self.width)[0]
            for translation, score in found[: self.best]:
                yield translation + (f"   ({score:.2f})\n" if self.best > 1 else "\n")
            if self.picture is not None and text == self.sentences[0]:
                if config.attend == "none":
                    raise BadInput("--picture: this net has no attention")
                with plots.style():
                    drawn(*attention_of(trained, text, found[0][0])).savefig(self.picture)


def drawn(source: list[str], target: list[str], weights: Any) -> Any:
    size = (1.5 + 0.26 * len(source), 1.5 + 0.26 * len(target))
    figure, axes = plots.panels(size=(max(size[0], 5), max(size[1], 3.5)))
    axes.imshow(weights, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(source)), [s.replace(" ", "\u2423") for s in source])
    axes.set_yticks(range(len(target)), target)
    if max(map(len, source)) > 1:
        axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="source", ylabel="written")
    axes.grid(False)
    return figure


def report(trained: Trained, held_out: HeldOut) -> Report:
    """Exact matches, BLEU and chrF of both ways of writing, beside the nearest sentence."""
    import sacrebleu.metrics as metrics

    config, sources = trained.config, [source for source, _ in held_out.test]
    texts_of = {"nearest sentence of training": held_out.nearest}
    for name, width in (("greedy", 1), (f"beam of {config.width}", config.width)):
        found = translations(config, trained.about, trained.params, sources, width)
        texts_of[name] = [best[0][0] for best in found]
    truth = [[plain(t) for t in dict.fromkeys(targets)] for _, targets in held_out.test]
    most = max(map(len, truth))
    references: Any = [[t[i] if i < len(t) else None for t in truth] for i in range(most)]
    bleu, chrf = metrics.BLEU(), metrics.CHRF()  # type: ignore[attr-defined]
    table: dict[str, Any] = {}
    for name, texts in texts_of.items():
        exact = float(np.mean([t in right for t, right in zip(texts, truth, strict=True)]))
        points = [m.corpus_score(texts, references).score for m in (bleu, chrf)]
        table[name] = {"exact": exact, "BLEU": points[0], "chrF": points[1]}
    lines = [f"{'':30} exact   BLEU   chrF"]
    lines += [
        f"{n:30} {t['exact']:5.1%} {t['BLEU']:6.1f} {t['chrF']:6.1f}" for n, t in table.items()
    ]
    lines.append(f"BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}\n")
    last = list(texts_of)[-1]
    rows = list(zip(sources, texts_of[last], truth, strict=True))
    lines += [
        f"{s} -> {t}" + ("" if t in right else f"   (not {right[0]})") for s, t, right in rows[:12]
    ]
    by_length = lengths_table(config, rows)
    lines += ["", *(f"{k}: {v:.1%} exact" for k, v in by_length.items())]
    files: dict[str, Any] = {"translations.txt": "".join(
        f"{s}\t{t}\t{' | '.join(right)}\n" for s, t, right in rows
    )}  # fmt: skip
    if config.attend != "none":
        files["attention.png"] = drawn(*attention_of(trained, sources[0], texts_of[last][0]))
    numbers = {
        "scores": table, "by_length": by_length, "waste": trained.about["waste"],
        "signature": str(bleu.get_signature()),
    }  # fmt: skip
    return Report(numbers, "\n".join(lines) + "\n", files)


def lengths_table(config: Config, rows: Any) -> dict[str, float]:
    """The share of exact translations, by the length of the source and, of dates, the direction."""
    bins: dict[str, list[bool]] = {}
    edges = (10, 20, 30) if config.units == "characters" else (3, 6, 9)
    for source, text, right in sorted(rows, key=lambda row: len(units_of(config, row[0]))):
        n = len(units_of(config, source))
        size = next((f"up to {e} {config.units}" for e in edges if n <= e), f"more {config.units}")
        names = [f"sources of {size}"]
        if config.data is None:
            names.append("from ISO" if source[4:5] == "-" else "to ISO")
        for name in names:
            bins.setdefault(name, []).append(text in right)
    return {name: float(np.mean(found)) for name, found in bins.items()}


APPLICATION = Application(
    "translation", Config, QUICK, load, make, report, {"translate": Translate}
)

if __name__ == "__main__":
    sys.exit(APPLICATION.main())
