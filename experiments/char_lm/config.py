"""The options of training; they are saved with the run."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import rnn_jax
from experiments.harness.command import BadInput


@dataclass(frozen=True)
class Config:
    """Trains a character language model: truncated backpropagation through time over contiguous
    streams, with the hidden state carried from window to window.

    Text from a trained model: python -m experiments.char_lm generate RUN (see generate --help)."""

    text: Path | None = None
    """UTF-8 file or folder to learn from; default: the source files of Python's standard library.
    The last 10 % are for validation."""
    run: Path | None = None
    """Folder for everything that the run makes; default: a new one under runs/char_lm. One that
    exists is never overwritten."""
    resume: Path | None = None
    """Run folder to go on with after an interruption; its options are used."""
    quick: bool = False
    """The toy of the textbooks instead: a tiny network learns "hello" in seconds."""

    cell: str = "gru"
    """Recurrent cell: elman, lstm, gru, gru_reset_after, layer_norm_elman, ..."""
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
    batch: int = 32
    """Number of streams that are read at once."""
    restart: float = 0.0
    """Probability that a stream forgets its past at the border of a window, so that the network
    learns to begin; 0 carries the state for ever."""
    learning_rate: float = 4e-3
    """Highest learning rate of Adam."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up: it falls to 0 at the last step, or stays."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0 (at most a tenth of all)."""
    clip: float = 1.0
    """Highest global norm of the gradient; larger ones are scaled down to it."""
    steps: int | None = None
    """Updates; default 2400. At most one of steps, epochs and minutes."""
    epochs: float | None = None
    """Length of training in passes over the text."""
    minutes: float | None = None
    """Length of the whole run in minutes: the speed is measured, the number of updates follows."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the computation; with bfloat16 the parameters are kept in float32."""
    seed: int = 0
    """Of parameters, dropout and samples."""
    evaluations: int = 10
    """How many times the validation loss is measured."""
    validation_size: int = 200_000
    """Highest number of validation characters, from the beginning of the last 10 %."""
    samples: int = 4
    """How many times a sample is written while training."""
    save_every: int = 500
    """Steps between checkpoints (one is also made at each evaluation)."""


DEFAULT_STEPS, QUICK_STEPS = 2400, 300
QUICK = Config(
    quick=True,
    layers=1,
    hidden_size=16,
    dropout=0.0,
    window=10,
    batch=4,
    restart=0.2,
    learning_rate=0.02,
    warmup=10,
    evaluations=6,
    samples=3,
    save_every=100,
)

_POSITIVE = (
    "layers",
    "hidden_size",
    "window",
    "batch",
    "evaluations",
    "validation_size",
    "save_every",
)
_NOT_NEGATIVE = ("embedding", "warmup", "samples", "seed")
_LENGTHS = ("steps", "epochs", "minutes")


def check(config: Config) -> None:
    """Raises BadInput for values that make no sense."""
    if config.cell not in rnn_jax.ALL_CELLS:
        names = ", ".join(rnn_jax.ALL_CELLS)
        raise BadInput(f"--cell: got {config.cell!r}, expected one of {names}")
    for name in _POSITIVE:
        _require(config, name, getattr(config, name) >= 1, "a positive integer")
    for name in _NOT_NEGATIVE:
        _require(config, name, getattr(config, name) >= 0, "an integer of at least 0")
    for name in ("learning_rate", "clip"):
        value = getattr(config, name)
        _require(config, name, 0 < value < math.inf, "a number above 0")
    for name in ("dropout", "restart"):
        _require(config, name, 0 <= getattr(config, name) < 1, "a rate with 0 <= rate < 1")
    _require(config, "seed", config.seed < 2**32, "an integer below 2^32")
    given = [name for name in _LENGTHS if getattr(config, name) is not None]
    for name in given:
        _require(config, name, 0 < getattr(config, name) < math.inf, "a number above 0")
    if len(given) > 1:
        raise BadInput(f"got {' and '.join('--' + name for name in given)}, expected at most one")


def to_json(config: Config) -> dict[str, Any]:
    """The options that the run depends on."""
    values = dataclasses.asdict(config)
    del values["resume"], values["run"]
    values["text"] = None if config.text is None else str(config.text.absolute())
    return values


def from_json(values: dict[str, Any]) -> Config:
    """The inverse of `to_json`; raises BadInput for other fields."""
    names = {field.name for field in dataclasses.fields(Config)} - {"resume", "run"}
    if set(values) != names:
        raise BadInput(f"got the options {sorted(values)}, expected {sorted(names)}")
    text = values["text"]
    return Config(**{**values, "text": None if text is None else Path(text)})


def differences(new: Config, old: Config) -> list[str]:
    """The options in which a run would change; where its text lies is not one."""
    a, b = to_json(new), to_json(old)
    return [f"{flag(n)} {a[n]} (was {b[n]})" for n in a if n != "text" and a[n] != b[n]]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise BadInput(f"{flag(name)}: got {getattr(config, name)}, expected {expected}")
