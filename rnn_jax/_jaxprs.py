"""A function as the list of its operations: which params it uses in products, sums and rows alone.

However a product is spelled (``x @ w``, ``w @ x``, `jnp.dot`, `einsum`, a Dense layer, one kernel
joined out of several, inside `jax.jit`, `jax.vmap` or `jax.checkpoint`), in the jaxpr it is one
operation. A `Program` is traced once; it runs again with whatever stands in the place of its
products. All that reads or runs a jaxpr stands here.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal, subjaxprs

from rnn_jax._activations import sigmoid, tanh
from rnn_jax._product import product, shifted
from rnn_jax._types import Array, is_float

# Functions that are written out where a weight is given to them, and where their jaxpr is.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
# What is linear in one array and has no other argument: a part of a weight is a weight.
VIEWS = {
    "broadcast_in_dim",
    "copy",
    "neg",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "transpose",
}
SUMS = {"add", "add_any"}
PIECES = {"split", "slice"}  # of a value whose parts are read, such as the gates side by side
# The same numbers, with a derivative that keeps one array and not two.
LEAN = {"logistic": sigmoid, "tanh": tanh}
# JAX transposes these when it differentiates a scan, but not once they have been linearized.
NOT_LINEARIZED = {"cond", "while", "custom_vjp_call", "custom_vjp_call_jaxpr"}
HINT = "not in x @ w, x + b or w[token]"

# What JAX does to a constant index before it is used, which may be negative.
INDICES: dict[str, Callable[..., Any]] = {
    "lt": lambda params, a, b: a < b,
    "add": lambda params, a, b: a + b,
    "select_n": lambda params, which, a, b: np.where(which, b, a),
    "convert_element_type": lambda params, a: a.astype(params["new_dtype"]),
    "broadcast_in_dim": lambda params, a: np.broadcast_to(
        np.expand_dims(
            a, [i for i in range(len(params["shape"])) if i not in params["broadcast_dimensions"]]
        ),
        params["shape"],
    ),
}

View = Callable[[Any], Array]  # leaves of the params, by their number -> a part of them


class Part(NamedTuple):
    """A linear function of some leaves of the params."""

    leaves: frozenset[int]
    view: View


class Site(NamedTuple):
    """One product, sum or row of a function: it reads an operand and a part of the params.

    Attributes:
      kind: "product", x @ w with x: [..., I]; "sum", x + b; "row", w[i] of an integer array i.
      leaves: the leaves of the params that it reads.
      view: ``(leaves) -> w``, [I, O] in a product.
      operand: the number of the value that it reads, and the order of axes in which it does.
      height: I; the rows of the table.
      out: shape and dtype of the result.
      apply: ``(w, operand) -> out``; also for the operands of many steps at once, [T, ...].
      slope: ``(dw, operand) -> d out`` for the same.
      finish: what the function makes of the result before it goes on, None for nothing.
    """

    kind: str
    leaves: frozenset[int]
    view: View
    operand: tuple[int, Any]
    height: int
    out: Any
    apply: Callable[..., Array]
    slope: Callable[[Array, Array], Array]
    finish: Callable[[Array], Array] | None = None

    def plain(self, leaves: Sequence[Array], operand: Array) -> Array:
        """The result with the weight that these leaves of the params make."""
        return self.apply(self.view(leaves), operand)


class _Op(NamedTuple):
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    name: str
    run: Callable[..., Sequence[Any]]
    site: int | None = None
    options: str = ""


class Program:
    """``function(params, *args)``, traced once.

    Attributes:
      leaves: leaves of the params that occur in sites alone.
      sites: the products, sums and rows of these leaves, in the order in which they are run.
      reasons: leaf -> why it occurs elsewhere; for floats of one axis or more.
      closed_over: traced values that the function closes over.
      inputs, outputs, avals: the numbers of the values that go in (the leaves of the params first)
        and come out, and the type of each value.
    """

    def __init__(self, function: Callable[..., Any], params: Any, *args: Any) -> None:
        """Raises what `function` raises; `jax.errors.JAXTypeError` if it cannot be traced."""
        made: list[Any] = []

        def flat(*args: Any) -> list[Any]:
            leaves, tree = jax.tree.flatten(function(*args))
            made.append(tree)
            return leaves

        traced = jax.make_jaxpr(flat)(params, *args)
        self.jaxpr, self._consts = traced.jaxpr, traced.consts
        self._out_tree: Any = made[0]
        self._count = len(jax.tree.leaves(params))
        self._read(
            i
            for i, a in enumerate(self.jaxpr.invars[: self._count])
            if a.aval.ndim > 0 and is_float(a.aval)
        )

    def _read(self, leaves: Any) -> None:
        self.leaves, self.reasons = tuple(leaves), dict[int, str]()
        everywhere = NOT_LINEARIZED & primitives(self.jaxpr)
        if everywhere:
            self._refuse(self.leaves, f"the cell uses {min(everywhere)}")
        while True:
            reading = _Reading(self, set(self.leaves))
            if not reading.failed:
                break
            for leaf, why in reading.failed.items():
                self._refuse([leaf], why)
        self.sites = tuple(reading.sites)
        self._ops, self._known = reading.ops, reading.known
        traced = {i: a for i, a in self._known.items() if isinstance(a, jax.core.Tracer)}
        self._closed_over, self.closed_over = list(traced), list(traced.values())
        self.inputs, self.outputs = reading.inputs, reading.outputs
        self.avals = reading.avals
        self._readers: dict[int, list[_Op]] = {}
        for op in self._ops:
            for i in dict.fromkeys(op.ins):
                self._readers.setdefault(i, []).append(op)

    def _refuse(self, leaves: Sequence[int], why: str) -> None:
        self.reasons |= dict.fromkeys(leaves, why)
        self.leaves = tuple(i for i in self.leaves if i not in self.reasons)

    def only(self, leaves: Collection[int]) -> "Program":
        """The same function, with the sites of fewer leaves."""
        fewer = object.__new__(Program)
        fewer.__dict__.update(self.__dict__)
        fewer._read(i for i in self.leaves if i in leaves)
        return fewer

    def run(
        self,
        apply: Callable[[int, Array], Array] | None,
        params: Any,
        *args: Any,
        closed_over: Sequence[Any] | None = None,
    ) -> Any:
        """``function(params, *args)``; ``apply(k, operand)`` is the result of site k.

        With None for `apply`, each site is computed as it is. `closed_over` stands in the place of
        the values that the function closes over.
        """
        leaves = jax.tree.leaves((params, *args))
        values = self._known | dict(zip(self.inputs, leaves, strict=True))
        if closed_over is not None:
            values |= dict(zip(self._closed_over, closed_over, strict=True))
        for op in self._ops:
            outs = op.run(*(values[i] for i in op.ins))
            if op.site is not None:
                site = self.sites[op.site]
                y = site.plain(leaves, outs[0]) if apply is None else apply(op.site, outs[0])
                outs = [y if site.finish is None else site.finish(y)]
            values.update(zip(op.outs, outs, strict=True))
        return self._out_tree.unflatten([values[i] for i in self.outputs])

    def end(self, value: int) -> Any:
        """What the cotangent of a value follows from: equal for values that always have the same.

        The terms of a sum have that of the sum, and what is only read in parts, as the gates side
        by side are, has those of its parts. Where more is done with a value it is its number.
        """
        readers = self._readers.get(value, [])
        if not readers or value in self.outputs:
            return value
        first = readers[0]
        kind = self.avals[value]
        if len(readers) == 1 and first.name in SUMS and first.ins.count(value) == 1:
            total = self.avals[first.outs[0]]
            return self.end(first.outs[0]) if _typed(total) == _typed(kind) else value
        if all(op.name in PIECES for op in readers):
            parts = [(op.options, *map(self.end, op.outs)) for op in readers]
            return kind.shape, str(kind.dtype), *parts
        return value

    def result(self, site: int) -> int:
        """The number of the value that a site makes."""
        return next(op.outs[0] for op in self._ops if op.site == site)

    def reached(self, start: set[int], stop: set[int]) -> set[int]:
        """The values made of those of `start` without passing one of `stop`."""
        found = set(start)
        for op in self._ops:
            if found.intersection(op.ins):
                found.update(i for i in op.outs if i not in stop)
        return found


def primitives(jaxpr: Jaxpr) -> set[str]:
    """The names of all operations, those of inner functions included."""
    inner = (primitives(j) for j in subjaxprs(jaxpr))
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*inner)


def users(function: Callable[[Any], Any], params: Any) -> set[int]:
    """The leaves of `params` that reach a float of the result."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    reached = {v: {i} for i, v in enumerate(jaxpr.invars)}

    def of(atoms: Sequence[Any]) -> set[int]:
        return set().union(*(reached.get(v, set()) for v in atoms if not isinstance(v, Literal)))

    for eqn in jaxpr.eqns:
        reached |= dict.fromkeys(eqn.outvars, of(eqn.invars))
    return of([v for v in jaxpr.outvars if is_float(v.aval)])


class _Unfit(Exception):
    """A weight is used in a way that cannot be deferred."""


class _Joined(NamedTuple):
    """A value that others make side by side."""

    values: tuple[int, ...]
    axis: int


class _Reading:
    """One pass over a jaxpr: values become numbers, parts of the params are told from the rest."""

    def __init__(self, program: Program, leaves: set[int]) -> None:
        self.ops: list[_Op] = []
        self.sites: list[Site] = []
        self.known: dict[int, Any] = {}
        self.parts: dict[int, Part] = {}
        self.avals: dict[int, Any] = {}
        self.failed: dict[int, str] = {}
        self.joined: dict[int, _Joined] = {}
        jaxpr = program.jaxpr
        names: dict[Any, int] = {}
        self.inputs = [self._new(v, names) for v in jaxpr.invars]
        for i in leaves:
            view = lambda leaves, i=i: leaves[i]  # noqa: E731
            self.parts[self.inputs[i]] = Part(frozenset([i]), view)
        self._constants(jaxpr, program._consts, names)
        self._walk(jaxpr, names)
        self.outputs = [self._number(v, names) for v in jaxpr.outvars]
        for i in self.outputs:
            if i in self.parts:
                self._fail(self.parts[i], "it is part of the state or of the output")

    def _fresh(self, aval: Any) -> int:
        number = len(self.avals)
        self.avals[number] = aval
        return number

    def _new(self, v: Any, names: dict[Any, int]) -> int:
        names[v] = self._fresh(v.aval)
        return names[v]

    def _number(self, v: Any, names: dict[Any, int]) -> int:
        if not isinstance(v, Literal):
            return names[v]
        number = self._fresh(v.aval)
        self.known[number] = v.val
        return number

    def _constants(self, jaxpr: Jaxpr, consts: Any, names: dict[Any, int]) -> None:
        for v, const in zip(jaxpr.constvars, consts, strict=True):
            self.known[self._new(v, names)] = const

    def _fail(self, part: Part, why: str) -> None:
        for i in part.leaves:
            self.failed.setdefault(i, why)

    def _walk(self, jaxpr: Jaxpr, names: dict[Any, int]) -> None:
        for eqn in jaxpr.eqns:
            ins = [self._number(v, names) for v in eqn.invars]
            parts = [self.parts[i] for i in ins if i in self.parts]
            if parts and (where := INLINED.get(eqn.primitive.name)):
                self._inline(eqn, eqn.params[where], ins, names)
                continue
            outs = tuple(self._new(v, names) for v in eqn.outvars)
            if not parts and eqn.primitive.name in INDICES and self._all_known(ins):
                values = [np.asarray(self.known[i]) for i in ins]
                self.known[outs[0]] = INDICES[eqn.primitive.name](eqn.params, *values)
            elif not parts:
                name = eqn.primitive.name
                options = str(sorted(eqn.params.items())) if name in PIECES else ""
                self.ops.append(_Op(tuple(ins), outs, name, _bound(eqn), None, options))
                if name == "concatenate" and len(ins) > 1:
                    self.joined[outs[0]] = _Joined(tuple(ins), eqn.params["dimension"])
            else:
                try:
                    self._use(eqn, ins, outs)
                except _Unfit as unfit:
                    for part in parts:
                        self._fail(part, str(unfit))

    def _inline(self, eqn: Any, inner: Any, ins: list[int], names: dict[Any, int]) -> None:
        jaxpr = getattr(inner, "jaxpr", inner)
        inside = dict(zip(jaxpr.invars, ins, strict=True))
        self._constants(jaxpr, getattr(inner, "consts", ()), inside)
        self._walk(jaxpr, inside)
        for v, inner_v in zip(eqn.outvars, jaxpr.outvars, strict=True):
            names[v] = self._number(inner_v, inside)

    def _use(self, eqn: Any, ins: list[int], outs: tuple[int, ...]) -> None:
        """A part of the params is read: it stays one, or there is a site."""
        name = eqn.primitive.name
        parts = all(i in self.parts for i in ins)
        if parts and (name in VIEWS or name in {"concatenate", *SUMS}):
            self._view(eqn, ins, outs)
        elif name == "convert_element_type":
            if eqn.params["new_dtype"] != self.avals[ins[0]].dtype:
                raise _Unfit(f"it is cast to {eqn.params['new_dtype']}; cast it before the loop")
            self._view(eqn, ins, outs)
        elif (
            name in ("mul", "gather")
            and not parts
            and self._all_known(i for i in ins if i not in self.parts)
        ):
            self._view(eqn, ins, outs)
        elif name == "dot_general":
            self._product(eqn, ins, outs)
        elif name in SUMS or name == "sub":
            self._sum(eqn, ins, outs)
        elif name in ("gather", "dynamic_slice"):
            self._row(eqn, ins, outs)
        else:
            raise _Unfit(f"it is used in {name}, {HINT}")

    def _all_known(self, numbers: Iterable[int]) -> bool:
        known = [self.known.get(i) for i in numbers]
        return not any(a is None or isinstance(a, jax.core.Tracer) for a in known)

    def _view(self, eqn: Any, ins: Sequence[int], outs: tuple[int, ...]) -> None:
        run, parts, known = _bound(eqn), [self.parts.get(i) for i in ins], self.known
        leaves = frozenset[int]().union(*(part.leaves for part in parts if part))
        for k, number in enumerate(outs):

            def view(arrays: Any, k: int = k) -> Array:
                given = [p.view(arrays) if p else known[i] for i, p in zip(ins, parts, strict=True)]
                return run(*given)[k]

            self.parts[number] = Part(leaves, view)

    def _site(self, site: Site, prepare: Any, name: str, outs: tuple[int, ...]) -> None:
        self.ops.append(_Op((site.operand[0],), outs, name, prepare, len(self.sites)))
        self.sites.append(site)

    def _product(self, eqn: Any, ins: list[int], outs: tuple[int, ...]) -> None:
        contracted, batch = eqn.params["dimension_numbers"]
        if all(i in self.parts for i in ins) or batch[0]:
            what = "a product for each example" if batch[0] else "a product of two weights"
            raise _Unfit(f"it is used in {what}, {HINT}")
        side = 0 if ins[0] in self.parts else 1
        w, x = self.avals[ins[side]], self.avals[ins[1 - side]]
        out, precision = self.avals[outs[0]], eqn.params["precision"]
        if not x.dtype == w.dtype == out.dtype:
            raise _Unfit(f"it is used in a product of {x.dtype} and {w.dtype}; cast one of them")
        part = self.parts[ins[side]]
        (of_w, of_x) = contracted[side], contracted[1 - side]
        joined = self.joined.get(ins[1 - side])
        if joined and of_x == (joined.axis,):
            self._product_of_joined(eqn, joined, side, ins[side], of_w[0], outs[0])
            return
        free_w = [i for i in range(w.ndim) if i not in of_w]
        free_x = [i for i in range(x.ndim) if i not in of_x]
        width, tail = math.prod(w.shape[i] for i in of_w), tuple(w.shape[i] for i in free_w)
        lead = tuple(x.shape[i] for i in free_x)
        turned = side == 0 and lead  # w @ x of a matrix x: the axes of w come first
        plain = (*free_x, *of_x) == tuple(range(x.ndim)) and len(of_x) == 1

        def view(leaves: Any) -> Array:
            return part.view(leaves).transpose(*of_w, *free_w).reshape(width, math.prod(tail))

        def prepare(x: Array) -> Sequence[Array]:
            return [x if plain else x.transpose(*free_x, *of_x).reshape(*lead, width)]

        def apply(w: Array, x: Array, *w_t: Array) -> Array:
            return product(x, w, *w_t, precision=precision)

        def finish(y: Array) -> Array:
            y = y.reshape(*lead, *tail)
            return y.transpose(*range(len(lead), y.ndim), *range(len(lead))) if turned else y

        site = Site(
            kind="product",
            leaves=part.leaves,
            view=view,
            operand=(ins[1 - side], None if plain else (*free_x, *of_x)),
            height=width,
            out=jax.ShapeDtypeStruct((*lead, math.prod(tail)), out.dtype),
            apply=apply,
            slope=apply,
            finish=finish if turned or len(tail) != 1 else None,
        )
        self._site(site, prepare, "product", outs)

    def _product_of_joined(
        self, eqn: Any, joined: "_Joined", side: int, w: int, axis: int, out: int
    ) -> None:
        """[x, h] @ w as x @ w_x + h @ w_h: what is not differentiated needs no way back."""
        part, kind, start, total = self.parts[w], self.avals[w], 0, None
        for k, x in enumerate(joined.values, 1):
            end = start + self.avals[x].shape[joined.axis]
            rows = self._fresh(jax.eval_shape(lambda a, i=start, j=end: _cut(a, i, j, axis), kind))

            def view(leaves: Any, i: int = start, j: int = end) -> Array:
                return _cut(part.view(leaves), i, j, axis)

            self.parts[rows] = Part(part.leaves, view)
            term = self._fresh(self.avals[out])
            self._product(eqn, [rows, x] if side == 0 else [x, rows], (term,))
            if total is not None:
                added = out if k == len(joined.values) else self._fresh(self.avals[out])
                self.ops.append(_Op((total, term), (added,), "add", lambda a, b: [a + b]))
                term = added
            total, start = term, end

    def _sum(self, eqn: Any, ins: list[int], outs: tuple[int, ...]) -> None:
        side = 0 if ins[0] in self.parts else 1
        part, x, out = self.parts[ins[side]], self.avals[ins[1 - side]], self.avals[outs[0]]
        minus = eqn.primitive.name == "sub"
        vectors = all(self.avals[self.inputs[i]].ndim == 1 for i in part.leaves)
        if all(i in self.parts for i in ins) or not vectors or _typed(x) != _typed(out):
            raise _Unfit(f"it is used in a sum that is not x + b, {HINT}")
        if minus and side == 0:
            raise _Unfit("it is used in b - x; write -x + b")

        def view(leaves: Any) -> Array:
            return -part.view(leaves) if minus else part.view(leaves)

        def apply(b: Array, x: Array) -> Array:
            return shifted(x, b) if b.ndim == 1 else x + jnp.broadcast_to(b, x.shape)

        site = Site(
            kind="sum",
            leaves=part.leaves,
            view=view,
            operand=(ins[1 - side], None),
            height=1,
            out=_typed(out),
            apply=apply,
            slope=apply,
        )
        self._site(site, _as_it_is, "add", outs)

    def _row(self, eqn: Any, ins: list[int], outs: tuple[int, ...]) -> None:
        table, index, out = self.avals[ins[0]], self.avals[ins[1]], self.avals[outs[0]]
        if ins[0] not in self.parts or any(i in self.parts for i in ins[1:]):
            raise _Unfit(f"it is used as an index, {HINT}")
        one = eqn.primitive.name == "dynamic_slice"
        leading = 0 if one else index.ndim - 1
        fits = (
            table.ndim > 1
            and tuple(eqn.params["slice_sizes"]) == (1, *table.shape[1:])
            and math.prod(index.shape) < table.shape[0]  # many rows are no shorter than the table
        )
        fill = False
        if one:
            fits = fits and not any(np.any(self.known.get(i, 1)) for i in ins[2:])
        else:
            numbers = eqn.params["dimension_numbers"]
            fits = fits and numbers == type(numbers)(
                offset_dims=tuple(range(leading, leading + table.ndim - 1)),
                collapsed_slice_dims=(0,),
                start_index_map=(0,),
            )
            fill = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
        if not fits:
            raise _Unfit(f"parts of it are taken by an array, {HINT}")

        def rows(w: Array, i: Array, missing: Any) -> Array:
            if fill:
                return w.at[i].get(mode="fill", fill_value=missing, wrap_negative_indices=False)
            if i.ndim == 0:
                return jax.lax.dynamic_slice_in_dim(w, i, 1, allow_negative_indices=False)[0]
            return w.at[i].get(mode="clip", wrap_negative_indices=False)

        site = Site(
            kind="row",
            leaves=self.parts[ins[0]].leaves,
            view=self.parts[ins[0]].view,
            operand=(ins[1], None),
            height=table.shape[0],
            out=jax.ShapeDtypeStruct((*index.shape[:leading], *table.shape[1:]), out.dtype),
            apply=lambda w, i: rows(w, i, eqn.params.get("fill_value")),
            slope=lambda dw, i: rows(dw, i, 0),
            finish=(lambda y: y[None]) if one else None,
        )
        self._site(site, _as_it_is if one else lambda i: [i[..., 0]], "row", outs)


def _bound(eqn: Any) -> Callable[..., Sequence[Any]]:
    """An operation as a function of its arguments alone."""
    primitive = eqn.primitive
    if primitive.name in LEAN and eqn.params.get("accuracy") is None:
        return lambda x: [LEAN[primitive.name](x)]
    options = primitive.get_bind_params(eqn.params)

    def run(*values: Any) -> Sequence[Any]:
        outs = primitive.bind(*values, **options)
        return outs if primitive.multiple_results else [outs]

    return run


def _cut(a: Array, start: int, end: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(a, start, end, axis=axis)


def _as_it_is(x: Array) -> Sequence[Array]:
    return [x]


def _typed(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
