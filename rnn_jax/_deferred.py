"""`jax.lax.scan` whose weight gradients are one product over all steps after the backward loop.

Reverse mode adds h_t^T d_t to the gradient of a recurrent matrix at every step: a small product,
and the whole gradient read and written. Deferred, the backward loop only emits the cotangents d_t
of the products h_t @ W, and sum_t h_t^T d_t is one large product at the end.

The author of a cell is asked for nothing. The products are read off the jaxpr of a step (see
`rnn_jax._jaxprs`); each has a perturbation p_t added to its result, whose value is nothing and
whose tangent is h_t @ dW. All else is an ordinary scan, which JAX linearizes. The terms of a sum
always have the same cotangent, so one perturbation serves them all, and none is needed where one
of them is an input of the step. A bias is a product with 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal

from rnn_jax._jaxprs import Program
from rnn_jax._types import Array, is_float, vary, varying_axes

Channel = tuple[str, int]  # what is perturbed: ("x", a leaf of x) or ("p", a site)


def scan(
    program: Program, params: Any, rest: Any, carry: Any, xs: Any, *, reverse: bool, unroll: int
) -> tuple[Any, Any]:
    """``jax.lax.scan`` of a program, with all gradients deferred that can be.

    Args:
      program: ``(params, rest, carry, x) -> (carry, y)``.
      params, rest: what is the same at every step; the gradients of `params` are deferred.
      carry: before the first step.
      xs: arrays with the leading axis T.
      reverse: from the last step to the first.
      unroll: steps in one turn of the loop.

    Returns:
      ``(carry, ys)``.
    """
    parts = (params, rest, carry, program.closed_over, xs)
    leaves = jax.tree.leaves(parts)
    loop = _Loop(program, parts, reverse, unroll)
    return _run(loop, *leaves) if program.sites else loop.run(leaves, {})[0]


class _Source(NamedTuple):
    """Where the operands of a site in all steps are, after the loop.

    kind: "kept", put out by the loop; "x", leaf i of xs; "y", leaf i of ys one step before, and in
    the first step leaf j of the carry.
    """

    kind: str
    i: int = 0
    j: int = 0


class _Loop:
    """What is known of a loop before it runs."""

    def __init__(self, program: Program, parts: Any, reverse: bool, unroll: int) -> None:
        params, rest, carry, _, xs = parts
        self.program, self.reverse, self.unroll = program, reverse, unroll
        self.sites = program.sites
        self.tree: Any = jax.tree.structure(parts)
        x_leaves = jax.tree.leaves(xs)
        self.x_tree: Any = jax.tree.structure(xs)
        self.first_x = len(jax.tree.leaves(parts)) - len(x_leaves)
        self.length = x_leaves[0].shape[0]
        self.inputs = [i for i, a in enumerate(x_leaves) if is_float(a)]
        counts = [len(jax.tree.leaves(part)) for part in (params, rest, carry)]
        self.first_carry = sum(counts[:2])
        self.channels = self._channels(program.inputs[sum(counts) :])
        self.like: dict[Channel, Any] = {
            ("x", i): (x_leaves[i].shape[1:], x_leaves[i].dtype) for i in self.inputs
        }
        for kind, k in self.channels:
            if kind == "p":
                self.like[kind, k] = (self.sites[k].out.shape, self.sites[k].out.dtype)
        self.sources = self._sources(counts[2])

    def _channels(self, x_numbers: Sequence[int]) -> list[Channel]:
        """What always has the cotangent of each site."""
        ends: dict[Any, Channel] = {
            self.program.end(x_numbers[i]): ("x", i) for i in reversed(self.inputs)
        }
        channels = []
        for k, site in enumerate(self.sites):
            own: Channel = ("p", k)
            if site.finish is None:
                own = ends.setdefault(self.program.end(self.program.result(k)), own)
            channels.append(own)
        return channels

    def _sources(self, count: int) -> dict[Any, _Source]:
        """One entry for each operand: what is there anyhow is not kept once more."""
        found: dict[Any, _Source] = {}
        old = self.program.inputs[self.first_carry :][:count]
        xs = self.program.inputs[self.first_carry + count :]
        new, ys = self.program.outputs[:count], self.program.outputs[count:]
        for site in self.sites:
            value, order = site.operand
            if site.kind == "sum":
                continue
            found[site.operand] = _Source("kept")
            if value in xs and order is None:
                found[site.operand] = _Source("x", xs.index(value))
            elif value in old and order is None and site.kind == "product" and self.length > 0:
                j = old.index(value)
                if new[j] in ys:
                    found[site.operand] = _Source("y", ys.index(new[j]), j)
        return found

    def run(self, leaves: Sequence[Array], perturbations: dict[Channel, Array]) -> Any:
        """The scan, and the operands of all steps that are no outputs."""
        params, rest, carry, closed_over, _ = self.tree.unflatten(leaves)
        weights = [site.view(leaves) for site in self.sites]
        # w.T is made once, since a product with it inside the loop reads w across its rows
        made = [
            (w, w.T) if site.kind == "product" else (w,)
            for site, w in zip(self.sites, weights, strict=True)
        ]

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            x, p = now
            x = [_perturbed(a, p.get(("x", i))) for i, a in enumerate(x)]
            operands: dict[Any, Array] = {}

            def apply(k: int, operand: Array) -> Array:
                site, (w, *w_t) = self.sites[k], made[k]
                if self.sources.get(site.operand) == _Source("kept"):
                    operands[site.operand] = operand
                return _perturbed(site.apply(w, operand, *w_t), p.get(("p", k)))

            carry, y = self.program.run(
                apply, params, rest, carry, self.x_tree.unflatten(x), closed_over=closed_over
            )
            return carry, (y, operands)

        # Without perturbations nobody reads the operands, and XLA leaves them out.
        carry, (ys, operands) = jax.lax.scan(
            step,
            carry,
            (list(leaves[self.first_x :]), perturbations),
            reverse=self.reverse,
            unroll=self.unroll,
        )
        return (carry, ys), operands


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(loop: _Loop, *leaves: Array) -> tuple[Any, Any]:
    return loop.run(leaves, {})[0]


@_run.defjvp
def _(loop: _Loop, leaves: Sequence[Array], tangents: Sequence[Any]) -> Any:
    deferred = loop.program.leaves
    moving = [i for i in range(loop.first_x) if is_float(leaves[i]) and i not in deferred]

    def outputs(values: list[Array], perturbations: dict[Channel, Array]) -> Any:
        given = list(leaves)
        for i, value in zip(moving, values, strict=True):
            given[i] = value
        out, operands = loop.run(given, perturbations)
        return [a for a in jax.tree.leaves(out) if is_float(a)], (out, operands)

    axes = varying_axes(list(leaves))
    nothing = {
        c: vary(jnp.zeros((loop.length, *shape), dtype), axes)
        for c, (shape, dtype) in loop.like.items()
    }
    values = [leaves[i] for i in moving]
    _, push, (out, operands) = jax.linearize(outputs, values, nothing, has_aux=True)

    ys, first = jax.tree.leaves(out[1]), list(leaves[loop.first_carry :])
    moves: dict[Channel, Array] = {("x", i): tangents[loop.first_x + i] for i in loop.inputs}
    for site, c in zip(loop.sites, loop.channels, strict=True):
        d = site.view(tangents)
        if site.kind == "sum":
            moves[c] = site.apply(d, moves.get(c, nothing[c]))
            continue
        source, times = loop.sources[site.operand], partial(site.slope, d)
        if source.kind == "y":
            move = _earlier(ys[source.i], first[source.j], times, loop.reverse)
        elif source.kind == "x":
            move = times(leaves[loop.first_x + source.i])
        else:
            move = times(operands[site.operand])
        moves[c] = moves[c] + move if c in moves else move
    moved = iter(push([tangents[i] for i in moving], moves))

    def tangent(a: Array) -> Any:
        return next(moved) if is_float(a) else zero_from_primal(a)

    return out, jax.tree.map(tangent, out)


def _earlier(ys: Array, first: Array, times: Callable[[Array], Array], reverse: bool) -> Array:
    """`times` of what each step read that the step before had put out, [T, ...], the first apart.

    One array less is kept, and none is copied into another order.
    """
    steps = ys.shape[0]
    before, after = (0, 1) if reverse else (1, 0)
    rest = [(0, 0, 0)] * (ys.ndim - 1)
    zero = jnp.zeros((), ys.dtype)
    earlier = ys[1:] if reverse else ys[:-1]
    moved = times(jax.lax.pad(earlier, zero, [(before, after, 0), *rest]))
    start = times(jnp.where(False, ys[0], first)[None])  # mapped as ys is
    sides = (steps - 1, 0) if reverse else (0, steps - 1)
    return moved + jax.lax.pad(start, zero, [(*sides, 0), *rest])


def _perturbed(y: Array, p: Array | None) -> Array:
    return y if p is None else _perturb(y, p)


@jax.custom_jvp
def _perturb(y: Array, p: Array) -> Array:
    """y + p for a p that is always zero."""
    return y


@_perturb.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] + tangents[1]
