"""Writing: samples while training, and text from a checkpoint."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import rnn_jax
from experiments.char_lm import folder, model
from experiments.char_lm.config import Config, flag
from experiments.harness.command import BadInput
from rnn_jax import generate
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks.text import Vocabulary


@dataclass(frozen=True)
class Generate:
    """Writes text from the best checkpoint of a run, as it comes."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    prompt: str = ""
    """Text to go on from; it may only have characters that the model knows."""
    length: int = 500
    """Characters to write after the prompt."""
    temperature: float = 1.0
    """Below 1 bolder, above 1 more varied, 0 for the most likely character each time."""
    top_k: int | None = None
    """Choose among the so many most likely characters only."""
    top_p: float | None = None
    """Choose among the fewest most likely characters that have this probability together."""
    seed: int = 0
    """Another seed, another text."""


def sampler(
    config: Config, vocabulary: Vocabulary, start: str, length: int
) -> Callable[[Any, int], str]:
    """``sample(params, seed) -> text``, from an empty past; it begins with `start`."""
    cell = model.build(config, len(vocabulary))
    first = vocabulary.encode(start)[0]

    @jax.jit
    def tokens(params: Any, seed: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        params = model.compute(config, params)
        return generate.sample(cell, params, None, first, length, key, temperature=0.8)[1]

    return lambda params, seed: start + vocabulary.decode(tokens(params, jnp.uint32(seed)))


def main(args: Generate) -> None:
    """Prints the prompt, and what follows character by character."""
    try:
        characters = write(args)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from error
    sys.stdout.write(args.prompt)
    for character in characters:
        sys.stdout.write(character)
        sys.stdout.flush()
    sys.stdout.write("\n")


def write(args: Generate) -> Iterator[str]:
    """Reads the checkpoint and the prompt; then yields what follows the prompt."""
    _check(args)
    saved = folder.load(args.run)
    config, vocabulary, V = saved.config, saved.vocabulary, len(saved.vocabulary)
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    checkpoints = Checkpoints(args.run / "checkpoints", read_only=True)
    like = jax.eval_shape(lambda: model.start(config, V, saved.steps))
    state = checkpoints.restore("best" if checkpoints.best else "last", like=like)
    params = model.compute(config, state.params)
    cell = model.build(config, V)
    prompt = vocabulary.encode(args.prompt or saved.start)
    past = rnn_jax.unroll(cell, params, None, jnp.asarray(prompt[:-1], jnp.int32))[0]
    return _continue(args, vocabulary, cell, params, past, int(prompt[-1]))


def _continue(
    args: Generate, vocabulary: Vocabulary, cell: rnn_jax.Cell, params: Any, state: Any, token: Any
) -> Iterator[str]:
    @jax.jit
    def following(state: Any, token: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        if args.temperature == 0:
            return generate.greedy(cell, params, state, token, 1)
        return generate.sample(
            cell,
            params,
            state,
            token,
            1,
            key,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
        )

    key = jax.random.key(args.seed)
    token = jnp.int32(token)
    for position in range(args.length):
        state, tokens = following(state, token, jax.random.fold_in(key, position))
        token = tokens[0]
        yield vocabulary.decode(tokens)


def _check(args: Generate) -> None:
    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise BadInput(f"{flag(name)}: got {getattr(args, name)}, expected {expected}")

    require("length", args.length >= 0, "an integer of at least 0")
    require("temperature", 0 <= args.temperature < math.inf, "a number of at least 0")
    require("top_k", args.top_k is None or args.top_k >= 1, "a positive integer")
    require("top_p", args.top_p is None or 0 < args.top_p <= 1, "a probability above 0, at most 1")
    require("seed", 0 <= args.seed < 2**32, "an integer from 0 to 2^32 - 1")
