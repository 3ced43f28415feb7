"""Words: a text cut into them, and the vocabulary of those that a model knows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

UNKNOWN = "<unk>"
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]|\n")
_NO_SPACE_BEFORE = set(".,;:!?)]}%-\u2019\u201d")
_NO_SPACE_AFTER = set("([{$#@-'\u201c\u2018")


def split(text: str, *, lower: bool = False) -> list[str]:
    """Cuts a text into words, punctuation marks, one each, and the ends of its lines.

    Args:
      text: any text.
      lower: whether the case of letters is dropped.

    Example:
      >>> split("Don't go, Tom!\\nWhy?")
      ["Don't", 'go', ',', 'Tom', '!', '\\n', 'Why', '?']
    """
    return _TOKEN.findall(text.lower() if lower else text)


def join(words: Iterable[str]) -> str:
    """Words as a text that one would write: `split` gives them back, if they came from there.

    Example:
      >>> join(["Don't", "go", ",", "Tom", "!", "\\n", "Why", "?"])
      "Don't go, Tom!\\nWhy?"
    """
    text = ""
    for word in words:
        glued = not text or word == "\n" or text[-1] == "\n"
        glued = glued or word in _NO_SPACE_BEFORE or text[-1] in _NO_SPACE_AFTER
        text += word if glued else " " + word
    return text


@dataclass(frozen=True)
class WordVocabulary:
    """The words that a model knows; token i is ``words[i]``, and token 0 is any other word.

    All of it is a JSON value: ``WordVocabulary(**json)`` of ``dataclasses.asdict(vocabulary)``.

    Attributes:
      words: distinct; the first is ``<unk>``, which stands for all that are not among them.
      lower: whether the case of letters is dropped.

    Raises:
      ValueError: the words are not so, or there is none beside ``<unk>``.

    Example:
      >>> vocabulary = WordVocabulary.of(split("the cat and the dog and the end"), cut=2)
      >>> print(vocabulary.words, vocabulary.encode("the dog".split()))
      ('<unk>', 'the', 'and') [1 0]
      >>> vocabulary.decode([1, 0, 2])
      ['the', '<unk>', 'and']
    """

    words: Sequence[str]
    lower: bool = False

    def __post_init__(self) -> None:
        words = tuple(self.words)
        if words[:1] != (UNKNOWN,) or len(set(words)) != len(words):
            raise ValueError(
                f"words: got {words[:5]!r}..., expected distinct words, the first of which is "
                f"{UNKNOWN}, as WordVocabulary.of makes them"
            )
        if len(words) < 2:
            raise ValueError(
                "words: got a vocabulary of no word that is frequent enough, expected at least "
                "one; take a longer text or a lower cut"
            )
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "_index", {word: token for token, word in enumerate(words)})

    @classmethod
    def of(
        cls, words: Iterable[str], *, cut: int = 1, limit: int | None = None, lower: bool = False
    ) -> "WordVocabulary":
        """The words of a text, the most frequent first, of equals the first in the text.

        Args:
          words: the words that one learns from.
          cut: those that occur fewer times are left out.
          limit: how many are kept at most, beside ``<unk>``.
          lower: whether the case of letters is dropped.
        """
        counts = Counter(word.lower() if lower else word for word in words)
        counts.pop(UNKNOWN, None)
        kept = [word for word, count in counts.most_common(limit) if count >= cut]
        return cls((UNKNOWN, *kept), lower)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return (word.lower() if self.lower else word) in self._index  # type: ignore[attr-defined]

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """Words to tokens, int32 [T]; 0 for one that is not known."""
        found: dict[str, int] = self._index  # type: ignore[attr-defined]
        cased = (word.lower() for word in words) if self.lower else words
        return np.array([found.get(word, 0) for word in cased], np.int32)

    def decode(self, tokens: Any) -> list[str]:
        """Tokens, integers [T], to words; ValueError for one that is none."""
        tokens = np.asarray(tokens)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(self)):
            raise ValueError(f"tokens: got one outside 0 to {len(self) - 1}: {tokens}")
        return [self.words[token] for token in tokens]
