"""The products ``x @ w`` of a step: what each weight is multiplied with, and what its result moves.

The same stand-ins for weights as in `rnn_jax.unroll`, so that no author of a cell is asked for
anything: ``h @ params.w_h`` is seen, with its operand, while the step runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from rnn_jax import _deferred
from rnn_jax._deferred import Weight
from rnn_jax._types import Array, Params, State, is_float, vary_as
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._vector import ravel, unravel


class Product(NamedTuple):
    """One product z = u @ w of one step: to the influence of w it adds u (x) Z."""

    u: Array  # [m], the operand; one-hot for a row of a table
    Z: Array  # [n, k], dh'/dz


def probe(step: Step) -> _deferred.Probe:
    """The matrices among the params that occur in products alone, and where.

    Without those that the initial state is made of.
    """

    def run(params: Params, state: State, x: Any) -> Any:
        return step.cell.step(params, state, step.cell.project(params, x))[0]

    found = _deferred.probe(run, step.params, step.state, step.x)
    initial = _users(step.cell.init_state, step.params)
    real = {s.weight.leaf for s in found.sites if s.weight.ndim == 2 and s.weight.dtype.kind != "c"}
    leaves = tuple(i for i in found.leaves if i in real - initial)
    return found._replace(
        leaves=leaves, sites=tuple(s for s in found.sites if s.weight.leaf in leaves)
    )


def _users(function: Callable[[Params], Any], params: Params) -> set[int]:
    """The leaves of `params` that reach a float of the result."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    reached = {v: {i} for i, v in enumerate(jaxpr.invars)}

    def of(atoms: Sequence[Any]) -> set[int]:
        return set().union(*(reached.get(v, set()) for v in atoms if not isinstance(v, Literal)))

    for eqn in jaxpr.eqns:
        reached |= dict.fromkeys(eqn.outvars, of(eqn.invars))
    return of([v for v in jaxpr.outvars if is_float(v.aval)])


def rest(params: Params, found: _deferred.Probe) -> list[Array]:
    """The leaves that are no such matrices."""
    return [a for i, a in enumerate(jax.tree.leaves(params)) if i not in found.leaves]


def columns(params: Params, found: _deferred.Probe) -> np.ndarray:
    """[P'] int: where the rest is among all params."""
    leaves = enumerate(jax.tree.leaves(params))
    flags = [np.full(ravel(a).shape, i not in found.leaves) for i, a in leaves]
    return np.flatnonzero(np.concatenate(flags))


def products(step: Step, found: _deferred.Probe) -> tuple[list[Product], Array]:
    """The products of a step, and [n, P']: the immediate influence of the rest of the params."""
    others = rest(step.params, found)

    def run(theta: Array, added: list[Array]) -> tuple[Array, list[Array]]:
        left, us = iter(added), list[Array]()

        def apply(weight: Weight, x: Array) -> Array:
            row = x if is_float(x) else jax.nn.one_hot(x, weight.shape[0], dtype=weight.dtype)
            us.append(row)
            return _deferred.plain(weight, x) + next(left)

        given = iter(unravel(theta, others))
        leaves = [
            a if i in found.leaves else next(given)
            for i, a in enumerate(jax.tree.leaves(step.params))
        ]
        params = jax.tree.unflatten(jax.tree.structure(step.params), leaves)
        return ravel(with_products(step, found, apply)(params, step.state)[0]), us

    nothing = [jnp.zeros(site.out.shape, site.out.dtype) for site in found.sites]
    nothing = vary_as(nothing, (step.theta, step.h, step.x))
    h, back, us = jax.vjp(run, ravel(others), nothing, has_aux=True)
    J, Zs = jax.vmap(back)(vary_as(jnp.eye(h.size, dtype=h.dtype), h))
    pairs = zip(us, Zs, strict=True)
    return [Product(u.astype(h.dtype), Z.astype(h.dtype)) for u, Z in pairs], J


def with_products(
    step: Step, found: _deferred.Probe, apply: Callable[[Weight, Array], Array]
) -> Callable[[Params, State], tuple[State, Any]]:
    """The net of a step in which `apply` makes the products."""

    def net(params: Params, state: State) -> tuple[State, Any]:
        weights = _deferred.stand_in(params, found.leaves, apply)
        return step.cell.step(weights, state, step.cell.project(weights, step.x))

    return net


def gradient(
    step: Step, found: _deferred.Probe, of_products: Sequence[Array], of_rest: Array
) -> Array:
    """[P] from the gradient of each product, [m, k], and of the rest, [P']."""
    leaves = jax.tree.leaves(step.params)
    grads = [jnp.zeros_like(a) for a in leaves]
    others = [i for i in range(len(leaves)) if i not in found.leaves]
    for i, part in zip(others, unravel(of_rest, rest(step.params, found)), strict=True):
        grads[i] = part
    for site, part in zip(found.sites, of_products, strict=True):
        i = site.weight.leaf
        grads[i] += jax.linear_transpose(site.weight.view, leaves[i])(part.astype(leaves[i].dtype))[
            0
        ]
    return ravel(grads)


def recurrent(step: Step, found: _deferred.Probe) -> list[int]:
    """The products whose operand is made of the old state without passing the new one.

    ``h @ w_h`` and ``(r * h) @ w_n``, but not the input of the next layer of a stack, which is the
    new state of the one before.
    """

    def run(params: Params, state: State) -> Any:
        operands: list[Array] = []

        def apply(weight: Weight, x: Array) -> Array:
            operands.append(x)
            return _deferred.plain(weight, x)

        return with_products(step, found, apply)(params, state)[0], operands

    traced, shape = jax.make_jaxpr(run, return_shape=True)(step.params, step.state)
    jaxpr, count = traced.jaxpr, len(jax.tree.leaves(shape[0]))
    old = {v for v in jaxpr.invars[len(jax.tree.leaves(step.params)) :] if is_float(v.aval)}
    new = {v for v in jaxpr.outvars[:count] if not isinstance(v, Literal)}
    for eqn in jaxpr.eqns:
        if any(v in old for v in eqn.invars if not isinstance(v, Literal)):
            old.update(v for v in eqn.outvars if v not in new)
    operands = jaxpr.outvars[count:]
    return [i for i, v in enumerate(operands) if not isinstance(v, Literal) and v in old]
