# ruff: noqa: E501
"""How many random mistakes in `rnn_jax/` do the tests notice? One operator, constant, comparison or statement at a time.

    python tests/random_mutations.py --count 60 --seed 0

Each is tried on a copy of the project with the tests of its module, up to the first failure; those that survive are printed as
they stand, and last the rate. A run that exceeds its time limit is counted on its own: it shows nothing.
"""

import argparse
import ast
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from forked import pytest_in
from test_mutants import ROOT, arguments, copy_project

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.MatMult: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Add, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
# The tests of a module: those that name it, then what covers all cells or all algorithms.
TESTS = {
    "_checks": "errors cells", "_deferred": "deferred product", "_leaves": "checkpoint errors",
    "_lock": "checkpoint harness", "_product": "product deferred", "_segments": "segments deferred",
    "_types": "cells laws", "attention": "attention", "crf": "crf", "checkpoint": "checkpoint",
    "combine": "combine laws errors", "generate": "generate", "initializers": "cells errors",
    "losses": "losses", "noise": "noise laws", "summary": "combine errors cells", "train": "train train_kinds",
    "unroll": "laws deferred segments errors", "cells": "cells errors laws",
    "diagnostics": "diagnostics gradient_flow", "gradients": "sparse algorithms unbiased gradients check_gradients",
    "batches": "batches", "memory": "memory_tasks", "text": "text", "text_file": "text_file",
}  # fmt: skip


LATE = "time limit"


class Change(NamedTuple):
    """In the file at `path`, `node` becomes `text`."""

    path: str
    node: ast.AST
    text: str


def changes(path: str, source: str) -> Iterator[Change]:
    """All that may go wrong in a file; annotations, docstrings and messages are left alone."""
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        for field in ("annotation", "returns")
        if (part := getattr(node, field, None)) is not None
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) not in skipped:
            yield from (Change(path, node, text) for text in _wrong(node))


def _wrong(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.BinOp(op=op) if type(op) in SWAPS:
            yield _with(node, op=SWAPS[type(op)]())
        case ast.BoolOp(op=op):
            yield _with(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            yield _with(node, ops=[SWAPS[type(op)]()])
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool(value)):
            yield repr(not value)
        case ast.Constant(value=int() | float() as value):
            yield repr(value + 1)
        case ast.Assign() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "pass"


def _with(node: ast.AST, **fields: object) -> str:
    kept = {name: getattr(node, name) for name in node._fields}
    return f"({ast.unparse(type(node)(**kept | fields))})"


def applied(source: str, change: Change) -> str:
    lines = source.encode().splitlines(keepends=True)
    node = change.node
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    return (before + change.text.encode() + after).decode()


def drawn(count: int, seed: int) -> list[Change]:
    """Spread over the files: one of each in a random order, then the next of each."""
    rng = random.Random(seed)
    rounds = []
    for path in sorted((ROOT / "rnn_jax").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        found = [
            c for c in changes(name, path.read_text(encoding="utf-8")) if path.stem != "__init__"
        ]
        rng.shuffle(found)
        rounds += [(n, rng.random(), change) for n, change in enumerate(found)]
    return [change for _, _, change in sorted(rounds, key=lambda r: r[:2])[:count]]


def tests_of(path: str) -> list[str]:
    parts = Path(path).with_suffix("").parts
    names = next(TESTS[part] for part in reversed(parts) if part in TESTS).split()
    return [f"test_{name}.py" for name in names]


def outcome(change: Change, timeout: float) -> str | None:
    """The test that noticed, or None."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        file = folder / change.path
        file.write_text(applied(file.read_text(encoding="utf-8"), change), encoding="utf-8")
        options = arguments(folder, tests_of(change.path))
        options[options.index("-m") + 1] = "not slow"
        try:
            code, output = pytest_in(folder, options, timeout)
        except TimeoutError:
            return LATE
    if code == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed[1] if failed else f"exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each")
    options = parser.parse_args()
    chosen, noticed, undecided = drawn(options.count, options.seed), 0, 0
    for change in chosen:
        start = time.monotonic()
        who = outcome(change, options.timeout)
        undecided += who == LATE
        noticed += who not in (None, LATE)
        node, seconds = change.node, time.monotonic() - start
        was = " ".join(ast.unparse(node).split())
        print(
            f"{change.path}:{node.lineno}: {was} -> {change.text} | {who or 'SURVIVED'} | {seconds:.0f} s",
            flush=True,
        )
    print(f"{len(chosen)} mistakes, {noticed} noticed, {undecided} not done in time")


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings, which the tests inherit

    sys.exit(main())
