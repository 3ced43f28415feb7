"""`jax.lax.scan` whose weight gradients are one product over all steps after the backward loop.

Reverse mode adds h_t^T d_t to the gradient of a recurrent matrix at every step: a small product,
and the whole gradient read and written. Deferred, the backward loop only emits the cotangents d_t
of the products h_t @ W, and sum_t h_t^T d_t is one large product at the end.

The author of a cell is asked for nothing. While a step is traced, an object stands in for W that
knows what ``h @ W`` is: it records the operand h_t and adds a perturbation p_t, whose value is
nothing and whose tangent is h_t @ dW. All else is an ordinary scan, which JAX linearizes. Where two
perturbations, or one and an input of the step, always have the same cotangent, as the terms of a
sum have, one array serves both. A bias is a product with 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal
from jax.extend.core import Jaxpr, get_opaque_trace_state, subjaxprs

from rnn_jax._product import product, shifted
from rnn_jax._types import Array, is_float, vary, varying_axes

Body = Callable[[Any, Any, Any, Any], tuple[Any, Any]]  # (params, rest, carry, x) -> (carry, y)


# JAX transposes these when it differentiates a scan, but not once they have been linearized.
NOT_LINEARIZED = {"cond", "while", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Unfit(TypeError):
    """A weight is used in a way that cannot be deferred."""


class Weight:
    """Stands for an array of the params: ``x @ w``, ``x + b``, ``w[token]``, slices and ``.T``."""

    __array_ufunc__ = None  # so that a NumPy array on the left asks us too

    def __init__(self, leaf: int, array: Array, apply: Any, view: Any = lambda a: a) -> None:
        self.leaf, self.view, self.array, self.apply = leaf, view, array, apply
        part = jax.eval_shape(view, array)
        self.shape, self.ndim, self.size, self.dtype = part.shape, part.ndim, part.size, part.dtype

    def __rmatmul__(self, x: Any) -> Array:
        return self._checked(x, 2, "@")

    def __radd__(self, x: Any) -> Array:
        return self._checked(x, 1, "+")

    __add__ = __radd__

    def __getitem__(self, index: Any) -> Any:
        if self.ndim == 2 and isinstance(index, jax.Array) and index.ndim == 0:
            return self.apply(self, index)
        if any(isinstance(i, jax.Array) for i in jax.tree.leaves(index)):
            raise Unfit("parts of it are taken by an array")
        part = Weight(self.leaf, self.array, self.apply, lambda a: self.view(a)[index])
        if part.ndim != self.ndim:
            raise Unfit(f"a part of shape {part.shape} is taken out of it")
        return part

    def __eq__(self, other: object) -> bool:
        raise Unfit("it is compared")

    __hash__ = None  # type: ignore[assignment]

    @property
    def T(self) -> "Weight":
        return Weight(self.leaf, self.array, self.apply, lambda a: self.view(a).T)

    def _checked(self, x: Any, ndim: int, sign: str) -> Array:
        x = jnp.asarray(x)
        if self.ndim != ndim or x.shape[-1:] != self.shape[:1] or x.dtype != self.dtype:
            operation = f"{x.dtype}{[*x.shape]} {sign} {self.dtype}{[*self.shape]}"
            raise Unfit(f"{operation} is not a product of one dtype, or a sum with a bias")
        return self.apply(self, x)


def plain(weight: Weight, x: Array) -> Array:
    """What a `Weight` does where nothing is recorded."""
    return _apply(x, weight.view(weight.array))


class Site(NamedTuple):
    """One product, bias or row of a step."""

    weight: Weight
    out: Any  # shape and dtype of the result


class Probe(NamedTuple):
    """What can be deferred, found by tracing a function with stand-ins and computing nothing."""

    leaves: tuple[int, ...]  # leaves of the params that only occur as x @ W or x + b
    sites: tuple[Site, ...]
    reasons: dict[int, str]  # leaf -> why it cannot be


def probe(function: Callable[..., Any], params: Any, *args: Any) -> Probe:
    """Which leaves of `params` occur in ``function(params, *args)`` in products and sums alone.

    A failure with a stand-in is no error: the leaf is left to the plain scan, and if the cell is at
    fault, the plain scan says so.
    """
    sites: list[Site] = []
    home: list[Any] = []

    def record(weight: Weight, x: Array) -> Array:
        if get_opaque_trace_state() != home[-1]:  # what is recorded there would not be known here
            raise Unfit("used inside another transformation, such as jit, vmap or cond")
        y = plain(weight, x)
        out = jax.ShapeDtypeStruct(y.shape, y.dtype)
        sites.append(Site(weight, out))
        return y

    def failure(leaves: Sequence[int]) -> str | None:
        def trace(params: Any, *args: Any) -> Any:
            home.append(get_opaque_trace_state())
            return function(stand_in(params, leaves, record), *args)

        sites.clear()
        try:
            traced = jax.make_jaxpr(trace)(params, *args)
        except Unfit as error:
            return str(error)
        except Exception:  # what JAX says of a stand-in is no help to anybody
            return "it is used otherwise than in x @ w, x + b and w[token]"
        if any(isinstance(const, jax.core.Tracer) for const in traced.consts):
            return "the cell closes over a traced value; put it into the params"
        found = NOT_LINEARIZED & primitives(traced.jaxpr)
        return f"the cell uses {min(found)}" if found else None

    leaves = [i for i, a in enumerate(jax.tree.leaves(params)) if a.ndim in (1, 2) and is_float(a)]
    reasons: dict[int, str] = {}
    if failure(leaves) is not None:
        found = {i: failure([i]) for i in leaves}
        reasons = {i: reason for i, reason in found.items() if reason is not None}
        leaves = [i for i in leaves if i not in reasons]
        if (together := failure(leaves)) is not None:
            return Probe((), (), reasons | {i: together for i in leaves})
    return Probe(tuple(leaves), tuple(sites), reasons)


def primitives(jaxpr: Jaxpr) -> set[str]:
    """The names of all operations, those of inner functions included."""
    inner = (primitives(j) for j in subjaxprs(jaxpr))
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*inner)


def stand_in(params: Any, leaves: Sequence[int], apply: Callable[[Weight, Array], Array]) -> Any:
    """`params` with a `Weight` in the place of each of the given leaves."""
    arrays = jax.tree.leaves(params)
    tree: Any = jax.tree.structure(params)
    return tree.unflatten(Weight(i, a, apply) if i in leaves else a for i, a in enumerate(arrays))


def share(
    body: Body, params: Any, rest: Any, carry: Any, x: Any, found: Probe
) -> list[tuple[str, int]]:
    """What always has the cotangent of each site: ("x", a leaf of x) or ("p", a first site)."""
    leaves: list[Any] = jax.tree.leaves(x)
    tree: Any = jax.tree.structure(x)
    floats = [i for i, a in enumerate(leaves) if is_float(a)]
    channels: list[tuple[str, int]] = []

    def trace(params: Any, rest: Any, carry: Any, leaves: list[Any], outs: list[Any]) -> None:
        def step(values: list[Array], perturbations: list[Array]) -> list[Array]:
            given, left = list(leaves), iter(perturbations)
            for i, value in zip(floats, values, strict=True):
                given[i] = value
            apply = lambda weight, x: _perturb(plain(weight, x), next(left))  # noqa: E731
            out = body(stand_in(params, found.leaves, apply), rest, carry, tree.unflatten(given))
            return [a for a in jax.tree.leaves(out) if is_float(a)]

        y, pull = jax.vjp(step, [leaves[i] for i in floats], outs)
        by_x, by_p = pull(y)
        known = [(("x", i), ct) for i, ct in zip(floats, by_x, strict=True)]
        for k, ct in enumerate(by_p):
            known.append((("p", k), ct))
            channels.append(next(channel for channel, other in known if other is ct))

    jax.eval_shape(trace, params, rest, carry, leaves, [site.out for site in found.sites])
    return channels


def scan(
    body: Body,
    params: Any,
    rest: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, Any]:
    """``jax.lax.scan`` of ``body(params, rest, ...)``, with all gradients deferred that can be."""
    x_leaves = jax.tree.leaves(xs)
    x_tree: Any = jax.tree.structure(xs)
    length = x_leaves[0].shape[0]
    x_one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in x_leaves]
    one = x_tree.unflatten(x_one)
    found = probe(body, params, rest, carry, one)
    tree: Any = jax.tree.structure((params, rest, carry, xs))
    first_x = tree.num_leaves - len(x_leaves)
    inputs = [i for i, a in enumerate(x_leaves) if is_float(a)]
    sites = found.sites
    same_object = length > 0 and not jax.config.jax_disable_jit  # type: ignore[attr-defined]

    def loop(leaves: Sequence[Array], perturbations: dict[Any, Array]) -> tuple[Any, list[Any]]:
        """The scan, and the operand of each site in every step: all, or all but the first one."""
        params, rest, carry, _ = tree.unflatten(leaves)
        weights = [site.weight.view(leaves[site.weight.leaf]) for site in sites]
        weights = [(w, w.T) if w.ndim == 2 else (w,) for w in weights]
        places: list[Any] = []  # where each site finds its operand
        outputs: dict[int, tuple[int, int]] = {}  # operand -> leaves of ys and carry that it is

        def perturbed(y: Array, channel: tuple[str, int], p: dict[Any, Array]) -> Array:
            return _perturb(y, p[channel]) if channel in p else y

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            x, p = now
            x = [perturbed(a, ("x", i), p) for i, a in enumerate(x)]
            operands: dict[int, Array] = {}
            places.clear()

            def apply(weight: Weight, h: Array) -> Array:
                site = len(places)
                if weight.ndim == 2:
                    operands.setdefault(id(h), h)
                places.append(list(operands).index(id(h)) if weight.ndim == 2 else None)
                return perturbed(_apply(h, *weights[site]), ("p", site), p)

            old = jax.tree.leaves(carry)
            carry, y = body(stand_in(params, found.leaves, apply), rest, carry, x_tree.unflatten(x))
            new, emitted = jax.tree.leaves(carry), list(map(id, jax.tree.leaves(y)))
            outputs.clear()
            for k, h in enumerate(operands.values()):
                for j, (before, after) in enumerate(zip(old, new, strict=True)):
                    if same_object and h is before and id(after) in emitted:
                        outputs[k] = emitted.index(id(after)), j
            kept = {k: h for k, h in enumerate(operands.values()) if k not in outputs}
            return carry, (y, kept)

        carry, (ys, operands) = jax.lax.scan(
            step,
            carry,
            (list(leaves[first_x:]), perturbations),
            reverse=reverse,
            unroll=unroll,
        )
        for k, (i, j) in outputs.items():
            first = jax.tree.leaves(tree.unflatten(leaves)[2])[j]
            operands[k] = _Earlier(jax.tree.leaves(ys)[i], first)
        return (carry, ys), [None if i is None else operands[i] for i in places]

    everything = jax.tree.leaves((params, rest, carry, xs))
    if not sites:
        return loop(everything, {})[0]

    @jax.custom_jvp
    def run(*leaves: Array) -> tuple[Any, Any]:
        return loop(leaves, {})[0]

    @run.defjvp
    def jvp(leaves: Any, tangents: Any) -> tuple[Any, Any]:
        moving = [i for i in range(first_x) if is_float(leaves[i]) and i not in found.leaves]

        def outputs(values: list[Array], perturbations: dict[Any, Array]) -> Any:
            given = list(leaves)
            for i, value in zip(moving, values, strict=True):
                given[i] = value
            out, operands = loop(given, perturbations)
            return [a for a in jax.tree.leaves(out) if is_float(a)], (out, operands)

        channels = share(body, params, rest, carry, one, found)
        like: dict[Any, Any] = {("x", i): x_one[i] for i in inputs}
        like |= {c: site.out for c, site in zip(channels, sites, strict=True) if c[0] == "p"}
        axes = varying_axes(list(leaves))
        nothing = {c: vary(jnp.zeros((length, *a.shape), a.dtype), axes) for c, a in like.items()}
        _, push, (out, operands) = jax.linearize(
            outputs, [leaves[i] for i in moving], nothing, has_aux=True
        )

        moves = {("x", i): tangents[first_x + i] for i in inputs}
        for site, c, x in zip(sites, channels, operands, strict=True):
            d = site.weight.view(tangents[site.weight.leaf])
            if d.ndim == 1:
                moves[c] = shifted(moves.get(c, nothing[c]), d)
                continue
            if isinstance(x, _Earlier):
                move = x.times(d, reverse)
            elif is_float(x):
                move = product(x, d)
            else:
                move = d.at[x].get(mode="clip")  # what one step does with one token
            moves[c] = moves[c] + move if c in moves else move
        moved = iter(push([tangents[i] for i in moving], moves))

        def tangent(a: Array) -> Any:
            return next(moved) if is_float(a) else zero_from_primal(a)

        return out, jax.tree.map(tangent, out)

    return run(*everything)


class _Earlier(NamedTuple):
    """What a step read that the step before had put out: one array less to keep."""

    ys: Array  # [T, ...]
    first: Array  # [...], what the first step read

    def times(self, w: Array, reverse: bool) -> Array:
        """All of it @ w, without a copy of a batch into another order."""
        steps = self.ys.shape[0]
        before, after = (0, 1) if reverse else (1, 0)
        rest = [(0, 0, 0)] * (self.ys.ndim - 1)
        zero = jnp.zeros((), self.ys.dtype)
        earlier = self.ys[1:] if reverse else self.ys[:-1]
        ys = product(jax.lax.pad(earlier, zero, [(before, after, 0), *rest]), w)
        first = jnp.where(False, self.ys[0], self.first)  # mapped as ys is
        sides = (steps - 1, 0) if reverse else (0, steps - 1)
        return ys + jax.lax.pad(product(first[None], w), zero, [(*sides, 0), *rest])


@jax.custom_jvp
def _perturb(y: Array, p: Array) -> Array:
    """y + p for a p that is always zero."""
    return y


@_perturb.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] + tangents[1]


def _apply(x: Array, *weight: Array) -> Array:
    if weight[0].ndim == 1:
        return shifted(x, *weight)
    return product(x, *weight) if is_float(x) else weight[0][x]
