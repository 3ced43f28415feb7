"""The language applications: what is judged by was not learned from, and what one knows by hand."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    counting_languages,
    instructions,
    sentiment,
    tagging,
    translation,
    word_lm,
)
from rnn_jax.tasks.words import WordVocabulary


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_word_lm_learns_from_the_first_lines_and_is_judged_by_the_last():
    lines = [f"word{i % 7} comes{i % 5} here{i}" for i in range(100)]
    Path("t.txt").write_text("\n".join([*lines, ""]))
    data = word_lm.load(word_lm.Config(data=Path("t.txt"), window=5, cut=1))
    vocabulary = WordVocabulary(**data.about["vocabulary"])
    known = set(vocabulary.words)
    assert {"here0", "here89", "comes3"} <= known
    assert not {"here91", "here99"} & known
    _, targets, scored = data.held_out.windows
    assert scored.sum() == data.held_out.ngrams.shape[1]
    assert len(data.train) + scored.sum() == 4 * 100
    in_order = np.moveaxis(targets, 2, 0)[np.moveaxis(scored, 2, 0)]
    assert vocabulary.decode(in_order[-4:-2]) == ["word1", "comes4"]
    (row,) = data.held_out.ngrams[:1]  # unigrams: the same word has the same probability
    assert len({p for p, t in zip(row, in_order, strict=True) if t == in_order[0]}) == 1


def test_a_fold_of_sentiment_knows_the_words_of_its_own_training_part_alone():
    texts = [f"only{i} shared\t{i % 2}" for i in range(20)]
    Path("s.txt").write_text("\n".join(texts))
    config = sentiment.Config(data=Path("s.txt"), folds=4, cut=1)
    data = sentiment.load(config)
    words = data.about["words"]
    for k, part in enumerate(data.held_out):
        held = {words[t] for row, n in zip(part.tokens, part.lengths, strict=True) for t in row[:n]}
        assert held == {"<unk>", "shared"}  # each other word is in one sentence
        order = data.train.sentences.order.rows
        rows = np.asarray(order.indices[k])[: int(order.size[k])]
        assert len({*rows.tolist()}) + len(part.labels) == 20
        known = {words[i] for i in data.about["known"][k]}
        assert known == {f"only{i}" for i in rows.tolist()} | {"shared", "<unk>"}


def test_longer_negations_are_held_out():
    rows = sentiment.opinions(200, 4, 8, seed=1)
    short = sentiment.opinions(200, 0, 3, seed=0)
    between = lambda text: len(text.split(" was ")[1].split())  # noqa: E731
    assert max(between(t) for t, _ in short) < max(between(t) for t, _ in rows)
    good = {"great", "good", "lovely", "fine"}
    for text, label in [*rows, *short]:
        assert (label == "for") == ((text.split()[-1] in good) != (" not " in f" {text} "))


@pytest.mark.parametrize("direction", ["both", "iso", "back"])
def test_no_date_of_the_test_was_learned_from(direction):
    config = translation.Config(dates=60, test=20, validation=5, direction=direction)
    data = translation.load(config)
    iso = dict(translation.dates(translation.Config(dates=60, direction="iso")))
    date_of = lambda source: iso.get(source, source[:10])  # noqa: E731
    tested = {date_of(source) for source, _ in data.held_out.test}
    vocabulary = WordVocabulary(**data.about["source"])
    learned = set()
    for step in range(4 * data.train.epoch):
        (source, _), (lengths, _), _ = data.train.at(step)
        for row, n in zip(source, lengths, strict=True):
            learned.add(date_of("".join(vocabulary.decode(row[:n]))))
    assert len(learned) > 30
    assert not learned & tested
    kinds = {source[4:5] == "-" for source, _ in data.held_out.test}
    assert kinds == {"both": {True, False}, "iso": {False}, "back": {True}}[direction]


def test_all_translations_of_a_source_are_references():
    lines = [f"source {i}\ttarget {i} {j}" for i in range(30) for j in range(1 + i % 2)]
    Path("p.txt").write_text("\n".join(lines))
    data = translation.load(translation.Config(data=Path("p.txt"), cut=1, buckets=2))
    for source, targets in data.held_out.test:
        i = int(source.split()[1])
        assert targets == [f"target {i} {j}" for j in range(1 + i % 2)]


def test_scan_is_the_grammar_of_the_paper():
    pairs = instructions.grammar()
    assert len({text for text, _ in pairs}) == len(pairs) == 20_910
    meaning = dict(pairs)
    assert meaning["jump"] == ["JUMP"]
    assert meaning["turn opposite left"] == ["LEFT", "LEFT"]
    assert meaning["walk around right"] == ["RIGHT", "WALK"] * 4
    assert meaning["run left twice and look"] == ["LEFT", "RUN", "LEFT", "RUN", "LOOK"]
    assert meaning["run after turn left thrice"] == ["LEFT"] * 3 + ["RUN"]
    sizes = {
        split: tuple(map(len, instructions.parted(instructions.Config(split=split))))
        for split in ("simple", "length", "jump")
    }
    assert sizes == {"simple": (16_728, 4_182), "length": (16_990, 3_920), "jump": (14_670, 7_706)}
    train, held_out = instructions.parted(instructions.Config(split="jump"))
    assert {text for text, _ in train if "jump" in text} == {"jump"}
    assert all("jump" in text for text, _ in held_out)


def test_the_way_that_one_walks():
    places = instructions.walk(["WALK", "RIGHT", "RUN", "LOOK", "RIGHT", "JUMP", "LEFT", "LEFT"])
    assert places == [(0, 0), (0, 1), (1, 1), (1, 0)]
    assert instructions.drawn(places) == (
        ". . . .\n. o o .\n. S E .\n. . . ."
    )  # fmt: skip


def test_words_of_the_counting_languages():
    read, following, known = counting_languages.words(jnp.int32(2), 3, 9)
    assert read.tolist() == [0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert following.tolist() == [1, 1, 2, 2, 3, 3, 0, 0, 0]
    # From the first b on all is known, and behind the end there is nothing to know.
    assert known.tolist() == [False, False, False, True, True, True, True, False, False]


def test_tags_of_tabs_spaces_and_odd_lines():
    Path("t.conll").write_text("New York\tB-place\n\t\n\nhe\tO\n\n\nA x y B-z\n")
    found = tagging.read(Path("t.conll"))
    assert found == [[("New York", "B-place")], [("he", "O")], [("A", "B-z")]]


def test_baselines_of_tagging_by_hand():
    train = [[("Oslo", "B-place"), ("is", "O")], [("New", "B-place"), ("York", "I-place")]]
    test = [[("in", "O"), ("new", "B-place"), ("york", "I-place")], [("Oslo", "B-person")]]
    found = tagging.baselines(train, test, quick=True)
    assert found["entities of training"] == (0.5, 0.5, 0.5)
    assert found["most frequent tag of the word"] == (0.5, 0.5, 0.5)
