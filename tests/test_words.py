"""Words and Kneser-Ney: cut and joined again, known or not, and probabilities that sum to 1."""

import dataclasses
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from rnn_jax.tasks.ngrams import KneserNey
from rnn_jax.tasks.words import WordVocabulary, join, split


@pytest.mark.parametrize(
    "text",
    [
        "Don't go, Tom!\nWhy? (He said so.)\n\nAnd 3.5 % of it: x_1; [a]",
        "It\u2019s \u201cgood\u201d, isn\u2019t it?",
        "",
        "one",
        "\n\n",
    ],
)
def test_what_is_cut_is_joined_again(text):
    assert split(join(split(text))) == split(text)
    assert "".join(split(text)) == "".join(c for c in text if c == "\n" or not c.isspace())


def test_joined_as_one_would_write():
    text = "First Citizen:\nBefore we proceed any further, hear me speak (all of it).\n"
    assert join(split(text)) == text


def test_the_vocabulary_has_the_frequent_words_in_order():
    words = split("the cat and the dog and the end of all")
    vocabulary = WordVocabulary.of(words, cut=1)
    assert vocabulary.words == ("<unk>", "the", "and", "cat", "dog", "end", "of", "all")
    assert WordVocabulary.of(words, cut=2).words == ("<unk>", "the", "and")
    assert WordVocabulary.of(words, limit=3).words == ("<unk>", "the", "and", "cat")
    assert vocabulary.encode(["dog", "Dog", "<unk>", "the"]).tolist() == [4, 0, 0, 1]
    assert vocabulary.encode([]).shape == (0,)
    assert "cat" in vocabulary
    assert "Cat" not in vocabulary
    assert vocabulary.decode([1, 0]) == ["the", "<unk>"]


def test_without_case():
    vocabulary = WordVocabulary.of(["The", "the", "CAT"], lower=True)
    assert vocabulary.words == ("<unk>", "the", "cat")
    assert vocabulary.encode(["THE", "Cat"]).tolist() == [1, 2]
    assert "cAt" in vocabulary


def test_a_vocabulary_is_json():
    vocabulary = WordVocabulary.of(["a", "B", "a"], lower=False)
    again = WordVocabulary(**json.loads(json.dumps(dataclasses.asdict(vocabulary))))
    assert again == vocabulary
    assert again.encode(["B"]).tolist() == [2]


@pytest.mark.parametrize("words", [("a", "b"), ("<unk>",), ("<unk>", "a", "a"), ()])
def test_what_is_no_vocabulary(words):
    with pytest.raises(ValueError, match="words: got"):
        WordVocabulary(words)
    with pytest.raises(ValueError, match="no word that is frequent"):
        WordVocabulary.of(["a", "b"], cut=2)


@pytest.mark.parametrize("token", [-1, 3])
def test_what_is_no_token(token):
    with pytest.raises(ValueError, match="tokens: got one outside 0 to 2"):
        WordVocabulary.of(["a", "b"]).decode([0, token])


# --- Kneser-Ney ---


def some_text(length=3000, V=9):
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(V, 0.3), size=(V, V))
    text = [0, 1]
    for _ in range(length):
        text.append(int(rng.choice(V, p=table[text[-2], text[-1]])))
    return np.array(text)


def by_the_book(text, V, order):
    """p(w | h) as in Chen and Goodman, with dictionaries, one word at a time."""
    text = [int(t) for t in text]
    grams = {
        k: Counter(zip(*(text[i:] for i in range(k)), strict=False)) for k in range(1, order + 2)
    }
    counts = {order: grams[order]}
    for k in range(1, order):
        counts[k] = Counter(gram[1:] for gram in grams[k + 1])
    discounts, after = {}, {}
    for k, found in counts.items():
        n = [0, *(max(sum(c == i for c in found.values()), 1) for i in (1, 2, 3, 4))]
        y = n[1] / (n[1] + 2 * n[2])
        d = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        discounts[k] = [0] + [min(max(d[i], 0.1), i) for i in (1, 2, 3)]
        after[k] = defaultdict(list)
        for gram, c in found.items():
            after[k][gram[:-1]].append(c)

    def p(history, w):
        k = len(history) + 1
        lower = 1 / V if k == 1 else p(history[1:], w)
        found = after[k].get(tuple(history), [])
        if not sum(found):
            return lower
        c = counts[k].get((*history, w), 0)
        off = lambda c: min(discounts[k][min(c, 3)], c)  # noqa: E731
        return (c - off(c) + sum(map(off, found)) * lower) / sum(found)

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_that_of_the_paper(order):
    text, V = some_text(250), 9  # so short that many histories never came
    model, p = KneserNey(text, V, order), by_the_book(text, V, order)
    rng = np.random.default_rng(1)
    grams = rng.integers(0, V, (300, order))
    expected = [p(tuple(row[:-1]), row[-1]) for row in grams.tolist()]
    np.testing.assert_allclose(model.probabilities(grams), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_any_history(order):
    text, V = some_text(400), 11  # two words never came
    model = KneserNey(text, V, order)
    histories = np.random.default_rng(2).integers(0, V, (200, order - 1))
    grams = np.concatenate([np.repeat(histories, V, 0), np.tile(np.arange(V), 200)[:, None]], 1)
    p = model.probabilities(grams).reshape(200, V)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_more_history_predicts_better_until_the_text_is_too_short():
    text = some_text(20_000)
    train, test = text[:18_000], text[18_000:]

    def perplexity(order):
        p = KneserNey(train, 9, order).of_text(test, train)
        assert len(p) == len(test)
        return math.exp(-np.log(p).mean())

    one, two, three, four = (perplexity(order) for order in (1, 2, 3, 4))
    assert one > two > 1.2 * three
    assert four < 1.05 * three  # what it cannot know better it takes from the order below


def test_short_texts_and_bad_ones():
    tiny = KneserNey([0, 1], 2, 2)
    assert tiny.probabilities([[0, 1], [0, 0]]).sum() == pytest.approx(1)
    assert len(tiny.of_text([1, 0, 1])) == 2  # the first has no history
    with pytest.raises(ValueError, match="tokens: got shape"):
        KneserNey([0], 2, 2)
    with pytest.raises(ValueError, match="tokens"):
        KneserNey([0, 5], 2, 1)
    with pytest.raises(ValueError, match="order: got 0"):
        KneserNey([0, 1], 2, 0)
