"""Params as nested dictionaries with the names of their fields, as Flax and files want them."""

from typing import Any

import jax
from jax.tree_util import tree_flatten_with_path

from rnn_jax._types import Params


def to_dict(params: Params) -> dict[str, Any]:
    """``ReadoutParams(cell=(LSTMParams, ...), ...)`` -> ``{"cell": {"0": {"w_x": ...}}, ...}``."""
    tree: dict[str, Any] = {}
    for path, a in tree_flatten_with_path(params)[0]:
        *outer, last = names(path)
        inner = tree
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = a
    return tree


def from_dict(like: Params, tree: Any) -> Params:
    """Params of the structure of `like` with the arrays of such a dictionary."""
    paths, structure = tree_flatten_with_path(like)

    def find(path: Any) -> Any:
        inner = tree
        for name in names(path):
            inner = inner[name]
        return inner

    arrays = [find(path) for path, _ in paths]
    return jax.tree.unflatten(structure, arrays)


def names(path: Any) -> list[str]:
    return [_name(key) for key in path] or ["params"]


def _name(key: Any) -> str:
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
