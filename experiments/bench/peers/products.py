"""The matrix products of a layer alone, in their shapes and their order: what any library needs.

A product of a few rows with a matrix of many runs slower than a large square one, and in the loop
each waits for the one before. The time of this over ours is the share that cannot be saved.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.case import GATES, Case, Problem
from experiments.bench.entry import Entry, Peer, compiled
from experiments.harness.measure import Program


def build(problem: Problem) -> Entry:
    case = problem.case
    T, B, D, H = case.T, case.B, case.D, case.H
    wide = GATES[case.cell] * H
    keys = jax.random.split(jax.random.key(0), 3)
    w_x = jax.random.normal(keys[0], (D, wide)) / D
    w_h = jax.random.normal(keys[1], (H, wide)) / H
    xs = jax.random.normal(keys[2], (T, B, D))

    def program(xs: jax.Array, w_x: jax.Array, w_h: jax.Array, w_t: jax.Array) -> Any:
        def forward(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            d = x @ w_x + h @ w_h
            return d[:, :H], d

        def backward(h: jax.Array, d: jax.Array) -> tuple[jax.Array, None]:
            return d.at[:, :H].set(h) @ w_t, None

        h, ds = jax.lax.scan(forward, jnp.zeros((B, H)), xs)
        if case.work == "forward":
            return h
        h, _ = jax.lax.scan(backward, h, ds, reverse=True)
        time_and_batch = ((0, 1), (0, 1)), ((), ())
        return h, *(jax.lax.dot_general(a, ds, time_and_batch) for a in (xs, ds[..., :H]))

    return compiled(Program(jax.jit(program), xs, w_x, w_h, w_h.T), {})


def can(case: Case) -> bool:
    return case.layers == 1 and not (case.bidirectional or case.lengths or case.training)


PEER = Peer("products alone", None, can, build)
