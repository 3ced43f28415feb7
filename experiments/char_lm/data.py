"""The text: read, checked, encoded, split."""

import hashlib
from typing import NamedTuple

import numpy as np

from experiments.char_lm.config import Config
from experiments.char_lm.model import CONTEXT
from experiments.harness.command import BadInput
from rnn_jax.tasks.text import Vocabulary, read_text, standard_library_text


class Data(NamedTuple):
    """What is learned from, and what the run folder remembers of it."""

    vocabulary: Vocabulary
    train: np.ndarray  # int32 [N], the first 90 %
    held_out: np.ndarray  # int32 [C + n], the last C of `train`, and the validation text
    context: int  # C
    start: str  # the character before a text that starts from nothing
    sha256: str  # of the text
    characters: int  # of the text


def load(config: Config) -> Data:
    """Reads the text of a config; raises BadInput, OSError or ValueError where it is unusable."""
    if config.text is not None:
        text = read_text(config.text)
    else:
        text = "hello" * 200 if config.quick else standard_library_text()
    vocabulary = Vocabulary.from_text(text)
    N = int(0.9 * len(text))
    if config.window >= N:
        raise BadInput(
            f"--text: got {len(text)} characters, {N} of them to learn from, expected more than "
            f"{config.window}, one window. Take a longer text or a smaller --window."
        )
    tokens = vocabulary.encode(text)
    C = min(CONTEXT, N)
    held_out = tokens[N - C : N + config.validation_size]
    digest = hashlib.sha256(text.encode()).hexdigest()
    start = "\n" if "\n" in text else text[0]
    return Data(vocabulary, tokens[:N], held_out, C, start, digest, len(text))


def name(config: Config) -> str:
    """What the text is called, for people."""
    if config.text is not None:
        return config.text.name or str(config.text)
    return '"hello"' if config.quick else "Python's standard library"
