"""Entities in tags of beginnings and insides, and how many of them a tagger finds."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Scores(NamedTuple):
    """Shares from 0 to 1."""

    precision: float
    recall: float
    f1: float


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of one sentence: kind, first word, behind the last word.

    As conlleval and the default of seqeval have it, an ``I-`` begins an entity where none of its
    kind goes on. Of tags without ``B-`` and ``I-``, such as parts of speech, each but ``O`` is one.

    Args:
      tags: one for each word: ``O``, ``B-kind`` or ``I-kind``.

    Example:
      >>> sorted(entities(["B-place", "I-place", "O", "I-person", "B-person"]))
      [('person', 3, 4), ('person', 4, 5), ('place', 0, 2)]
    """
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        own = tag[2:] if tag[:2] in ("B-", "I-") else None if tag == "O" else tag
        if kind is not None and (own != kind or tag[:2] != "I-"):
            found.add((kind, start, i))
            kind = None
        if own is not None and kind is None:
            start, kind = i, own
    return found


def entity_scores(truth: Iterable[Sequence[str]], found: Iterable[Sequence[str]]) -> Scores:
    """Precision, recall and F1 over the entities of all sentences together (micro).

    An entity is found where kind, beginning and end are right.

    Args:
      truth: the right tags of each sentence.
      found: those of a tagger.

    Raises:
      ValueError: not as many sentences, or a sentence with other than as many tags.

    Example:
      >>> entity_scores([["B-a", "I-a", "B-b"]], [["B-a", "O", "B-b"]])
      Scores(precision=0.5, recall=0.5, f1=0.5)
    """
    right = said = there = 0
    for t, f in zip(truth, found, strict=True):
        if len(t) != len(f):
            raise ValueError(f"found: got {len(f)} tags of a sentence, expected {len(t)}")
        a, b = entities(t), entities(f)
        right, said, there = right + len(a & b), said + len(b), there + len(a)
    p, r = right / max(said, 1), right / max(there, 1)
    return Scores(p, r, 2 * p * r / max(p + r, 1e-12))
