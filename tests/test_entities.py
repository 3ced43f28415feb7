"""Entities: by the rules of conlleval, which seqeval's default follows."""

import itertools

import pytest

from rnn_jax.tasks.entities import entities, entity_scores

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]


def test_all_short_sentences_are_as_seqeval_has_them():
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    for tags in itertools.product(TAGS, repeat=4):
        expected = {(kind, a, b + 1) for kind, a, b in seqeval.get_entities(list(tags))}
        assert entities(tags) == expected, tags


def by_hand(tags):
    """Entities by looking at each pair of ends."""
    found = set()
    for a in range(len(tags)):
        for b in range(a + 1, len(tags) + 1):
            kind = tags[a][2:]
            whole = tags[a] != "O" and all(t == f"I-{kind}" for t in tags[a + 1 : b])
            begins = tags[a][:2] == "B-" or a == 0 or tags[a - 1][2:] != kind
            ends = b == len(tags) or tags[b] != f"I-{kind}"
            if whole and begins and ends:
                found.add((kind, a, b))
    return found


def test_all_short_sentences():
    for tags in itertools.product(TAGS, repeat=4):
        assert entities(tags) == by_hand(tags), tags


def test_scores_are_over_all_sentences_together():
    truth = [["B-a", "I-a", "O"], ["B-b", "O", "B-a"], ["O"]]
    found = [["B-a", "I-a", "O"], ["B-a", "O", "O"], ["B-b"]]
    p, r, f1 = entity_scores(truth, found)
    assert (p, r) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert f1 == pytest.approx(1 / 3)
    assert entity_scores(truth, truth) == (1, 1, 1)
    assert entity_scores([["O"]], [["O"]]) == (0, 0, 0)


def test_tags_that_are_kinds():
    assert entities(["NN", "NN", "O", "VB"]) == {("NN", 0, 1), ("NN", 1, 2), ("VB", 3, 4)}


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="got 1 tags of a sentence, expected 2"):
        entity_scores([["O", "O"]], [["O"]])
    with pytest.raises(ValueError, match="zip"):
        entity_scores([["O"]], [])
