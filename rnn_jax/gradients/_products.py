"""The products ``x @ w`` of a step: what each weight is multiplied with, and what its result moves.

They are read off the jaxpr of the step, as in `rnn_jax.unroll`, so that no author of a cell is
asked for anything.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._jaxprs import Program, users
from rnn_jax._types import Array, Params, State, is_float, vary_as
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._vector import ravel, unravel


class Product(NamedTuple):
    """One product z = u @ w of one step: to the influence of w it adds u (x) Z."""

    u: Array  # [m], the operand; one-hot for a row of a table
    Z: Array  # [n, k], dh'/dz


def probe(step: Step) -> Program:
    """A step as a program whose sites are the products of real matrices; of no others.

    Without those that the initial state is made of.
    """

    def run(params: Params, state: State, x: Any) -> tuple[State, Any]:
        return step.cell.step(params, state, step.cell.project(params, x))

    given = step.params, step.state, step.x
    found = Program(run, *vary_as(given, given))
    other = users(step.cell.init_state, step.params)
    for site in found.sites:
        vector = len(site.out.shape) == 1 and not jnp.issubdtype(
            site.out.dtype, jnp.complexfloating
        )
        if site.kind == "sum" or not vector:
            other |= site.leaves
    used = frozenset[int]().union(*(site.leaves for site in found.sites))
    return found.only(used - other)


def current(step: Step, found: Program) -> Program:
    """What was found, where it was found: a cell may close over values of one trace alone."""
    return probe(step) if found.closed_over else found


def rest(params: Params, found: Program) -> list[Array]:
    """The leaves that are no such matrices."""
    return [a for i, a in enumerate(jax.tree.leaves(params)) if i not in found.leaves]


def columns(params: Params, found: Program) -> np.ndarray:
    """[P'] int: where the rest is among all params."""
    leaves = enumerate(jax.tree.leaves(params))
    flags = [np.full(ravel(a).shape, i not in found.leaves) for i, a in leaves]
    return np.flatnonzero(np.concatenate(flags))


def products(step: Step, found: Program) -> tuple[list[Product], Array]:
    """The products of a step, and [n, P']: the immediate influence of the rest of the params."""
    others, found = rest(step.params, found), current(step, found)

    def run(theta: Array, added: list[Array]) -> tuple[Array, list[Array]]:
        us: list[Array] = []

        def apply(k: int, x: Array) -> Array:
            site = found.sites[k]
            us.append(x if is_float(x) else jax.nn.one_hot(x, site.height))
            return site.plain(leaves, x) + added[k]

        given = iter(unravel(theta, others))
        leaves = [
            a if i in found.leaves else next(given)
            for i, a in enumerate(jax.tree.leaves(step.params))
        ]
        params = jax.tree.unflatten(jax.tree.structure(step.params), leaves)
        return ravel(found.run(apply, params, step.state, step.x)[0]), us

    nothing = [jnp.zeros(site.out.shape, site.out.dtype) for site in found.sites]
    nothing = vary_as(nothing, (step.theta, step.h, step.x))
    h, back, us = jax.vjp(run, ravel(others), nothing, has_aux=True)
    J, Zs = jax.vmap(back)(vary_as(jnp.eye(h.size, dtype=h.dtype), h))
    pairs = zip(us, Zs, strict=True)
    return [Product(u.astype(h.dtype), Z.astype(h.dtype)) for u, Z in pairs], J


def gradient(step: Step, found: Program, of_products: Sequence[Array], of_rest: Array) -> Array:
    """[P] from the gradient of each product, [m, k], and of the rest, [P']."""
    leaves = jax.tree.leaves(step.params)
    grads = [jnp.zeros_like(a) for a in leaves]
    others = [i for i in range(len(leaves)) if i not in found.leaves]
    for i, part in zip(others, unravel(of_rest, rest(step.params, found)), strict=True):
        grads[i] = part
    for site, part in zip(found.sites, of_products, strict=True):
        read = {i: leaves[i] for i in site.leaves}
        for i, g in jax.linear_transpose(site.view, read)(part.astype(site.out.dtype))[0].items():
            grads[i] += g
    return ravel(grads)


def recurrent(step: Step, found: Program) -> list[int]:
    """The products whose operand is made of the old state without passing the new one.

    ``h @ w_h`` and ``(r * h) @ w_n``, but not the input of the next layer of a stack, which is the
    new state of the one before.
    """

    count = len(jax.tree.leaves(step.params))
    size = len(jax.tree.leaves(step.state))
    old = {i for i in found.inputs[count : count + size] if is_float(found.avals[i])}
    made = found.reached(old, stop=set(found.outputs[:size]))
    return [k for k, site in enumerate(found.sites) if site.operand[0] in made]
