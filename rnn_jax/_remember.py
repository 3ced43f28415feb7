"""Factories that give the same object for the same arguments."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def remembered(factory: Callable[P, R]) -> Callable[P, R]:
    """`factory`, which returns the same result again for equal hashable arguments.

    Two cells that were made alike are then equal, and what is compiled for one serves the other:
    `jax.jit` with a static cell, and the graph definitions of `flax.nnx`.
    """
    cached = functools.lru_cache(maxsize=512, typed=True)(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **options: P.kwargs) -> R:
        try:
            hash((args, tuple(options.values())))
        except TypeError:  # an array, such as a key
            return factory(*args, **options)
        return cached(*args, **options)  # type: ignore[arg-type]

    return make
