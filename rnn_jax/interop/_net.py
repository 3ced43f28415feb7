"""Nets on their way in and out: layers with their params, and what a net is, told by running."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import cells as our_cells
from rnn_jax._activations import sigmoid, tanh
from rnn_jax._types import Array, Cell, Params, State, is_float
from rnn_jax.cells import ElmanParams, GRUParams, LSTMParams
from rnn_jax.combine import (
    EmbedParams,
    ReadoutParams,
    TwoWay,
    embed,
    one_hot,
    readout,
    stack,
    two_way,
)
from rnn_jax.interop._formats import InteropError
from rnn_jax.unroll import unroll

Layer = Cell | tuple[Cell, Cell]  # one direction, or (forward, backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": tanh,
    "relu": jax.nn.relu,
    "sigmoid": sigmoid,
    "identity": jax.nn.identity,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
}


class Imported(NamedTuple):
    """Recurrent layers that came from another library.

    `net` and `params` go together: ``rnn_jax.unroll(imported.net, imported.params, None, xs)``, or
    ``imported.net.run(imported.params, None, xs, mask=mask)`` for a net that reads both ways.

    Attributes:
      cells: one entry a layer: a `Cell`, or a pair (forward, backward).
      params: one entry a layer, in the same form.
      reverse: whether layers of one direction run from the last step to the first, as
        ``unroll(..., reverse=True)`` does.
    """

    cells: tuple[Any, ...]
    params: tuple[Any, ...]
    reverse: bool = False

    @property
    def net(self) -> Any:
        """All layers as one `Cell`, or as a `TwoWay` where one reads both ways."""
        return net_of(self.cells)


def net_of(cells: Sequence[Layer]) -> Any:
    layers: list[Any] = [c if isinstance(c, Cell | TwoWay) else two_way(*c) for c in cells]
    return stack(layers)


def options(params: Params) -> dict[str, Any]:
    """The options of a cell that show in its params."""
    found: dict[str, Any] = {"bias": params.b is not None, "dtype": params.w_h.dtype}
    if isinstance(params, LSTMParams):
        found["peepholes"] = params.w_c is not None
        found["projection_size"] = None if params.w_p is None else params.w_p.shape[1]
    return found


def make(name: str, params: Params, **more: Any) -> Cell:
    """A cell of rnn_jax that takes these params."""
    gates = {"elman": 1, "lstm": 4}.get(name, 3)
    D, H = params.w_x.shape[0], params.w_x.shape[1] // gates
    factory: Callable[..., Cell] = getattr(our_cells, name)
    return factory(D, H, **options(params), **more)


def candidates(params: Params) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a cell with these params may be: a name and the options that do not show in them."""
    if isinstance(params, ElmanParams):
        yield from (("elman", {"activation": f}) for f in ACTIVATIONS.values())
    elif isinstance(params, LSTMParams):
        yield "lstm", {}
    elif isinstance(params, GRUParams):
        if params.b_n is None:
            yield "gru", {}
        if params.b_n is not None or params.b is None:
            yield "gru_reset_after", {}


def identify(cell: Cell, params: Params) -> tuple[str, dict[str, Any]]:
    """Which cell of rnn_jax a cell is, found out by one step on random numbers.

    A residual connection, the activation of `elman` and the kind of a GRU without bias do not show
    in the params; they show in what the cell does.

    Args:
      cell: a cell of one layer.
      params: its params.

    Returns:
      ``(name, options)``: ``getattr(rnn_jax, name)(D, H, **options)`` does the same.

    Raises:
      InteropError: it is none of `elman`, `lstm`, `gru` and `gru_reset_after`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.gru_reset_after(3, 4, bias=False)
      >>> print(identify(cell, cell.init(jax.random.key(0)))[0])
      gru_reset_after
    """
    if not isinstance(params, ElmanParams | LSTMParams | GRUParams):
        raise InteropError(
            f"params: got {type(params).__name__}, expected those of elman, lstm, gru or "
            "gru_reset_after; layer norm and other cells have no counterpart elsewhere"
        )
    rng = np.random.default_rng(0)
    state = random_like(rng, jax.eval_shape(cell.init_state, params))
    x = jnp.asarray(rng.normal(size=params.w_x.shape[0]), params.w_x.dtype)
    other = random_like(rng, params)

    def after(cell: Cell) -> Any:
        return cell.step(other, state, cell.project(other, x))

    expected = after(cell)
    for name, more in candidates(params):
        try:
            got = after(make(name, params, **more))
        except (TypeError, ValueError):
            continue
        if distance(got, expected) < tolerance(x.dtype):
            found = {k: v for k, v in options(params).items() if v is not None and v is not False}
            if params.b is None:
                found["bias"] = False
            else:
                del found["bias"]
            return name, found | more
    raise InteropError(
        f"cell: with {type(params).__name__} it does something that no cell of rnn_jax does (a "
        "residual connection, noise, another activation); only the plain cell can go out"
    )


class Described(NamedTuple):
    """What a net is made of.

    Attributes:
      layers: one entry a layer: the cells and the params of one direction, or of two.
      tokens: the table by which tokens become inputs, one-hot rows included; None for vectors.
      output: params of the output layer; None without.
      activation: the name of its activation in `OUTPUTS`.
    """

    layers: list[tuple[list[Cell], list[Params]]]
    tokens: Array | None = None
    output: ReadoutParams | None = None
    activation: str = "identity"


OUTPUTS: dict[str, Callable[[Array], Array]] = {
    "identity": jax.nn.identity,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
}


def layers_of(cells: Any, params: Any) -> list[tuple[list[Cell], list[Params]]]:
    """The layers of a net of recurrent layers alone."""
    found = describe(cells, params)
    if found.tokens is not None or found.output is not None:
        part = "an output layer" if found.output is not None else "tokens"
        raise InteropError(
            f"cells: got a net with {part}, expected recurrent layers alone; take the inner cell, "
            "and the params of its `cell` field"
        )
    return found.layers


def describe(cells: Any, params: Any) -> Described:
    """What a net is made of: by its params and, where they do not say it, by running it.

    Args:
      cells: a `Cell`, a `TwoWay`, or a list of cells and of pairs of cells, one a layer.
      params: what goes with it.

    Raises:
      InteropError: it is none of elman, lstm, gru and gru_reset_after, deep and in one direction or
        two, with an embedding and an output layer; or it does something else than these.
    """
    if not isinstance(cells, Cell | TwoWay):
        return Described(_listed(cells, params))
    output, table, inner = None, None, params
    while isinstance(inner, ReadoutParams | EmbedParams):
        if isinstance(inner, ReadoutParams) and output is None:
            output, inner = inner, inner.cell
        elif isinstance(inner, EmbedParams) and table is None:
            table, inner = inner.table, inner.cell
        else:
            raise InteropError(
                f"params: got two {type(inner).__name__} in each other, expected one"
            )
    widths, tried = [None], 0
    if table is None:
        first = next((p for p in _leaves(inner)), None)
        widths = [None] if first is None else [None, first.w_x.shape[0]]
    for layout in _layouts(isinstance(cells, TwoWay), inner):
        for width in widths:
            for cell_for in _uniform([p for layer in layout for p in layer]):
                for name in OUTPUTS if output is not None else ["identity"]:
                    layers = [([cell_for(p) for p in layer], layer) for layer in layout]
                    candidate = _rebuilt(layers, params, inner, width, name)
                    tried += 1
                    if _same(cells, candidate, params, width):
                        eye = None if width is None else jnp.eye(width, dtype=first.w_x.dtype)
                        return Described(layers, eye if table is None else table, output, name)
    if not tried:
        raise InteropError(
            f"params: got {_kind(inner)}, expected those of elman, lstm, gru or gru_reset_after, "
            "of one layer or a stack; layer norm and other cells have no counterpart elsewhere"
        )
    raise InteropError(
        "cells: the net does something that its params do not show (a residual connection, noise, "
        "layers with different activations); pass the plain cells as a list, one a layer"
    )


_OURS = (ElmanParams, LSTMParams, GRUParams)


def _leaves(params: Any) -> list[Any]:
    is_ours = lambda p: isinstance(p, _OURS)  # noqa: E731
    return [p for p in jax.tree.leaves(params, is_leaf=is_ours) if is_ours(p)]


def _listed(cells: Any, params: Any) -> list[tuple[list[Cell], list[Params]]]:
    if not isinstance(cells, Sequence) or not cells:
        raise InteropError(
            f"cells: got {_kind(cells)}, expected a net, or a list with an entry a layer"
        )
    if not _is_tuple(params) or len(params) != len(cells):
        raise InteropError(
            f"params: got {_kind(params)}, expected {len(cells)}, one for each layer"
        )
    layers: list[tuple[list[Cell], list[Params]]] = []
    for cell, p in zip(cells, params, strict=True):
        if isinstance(cell, TwoWay):
            layers += describe(cell, p).layers
        elif isinstance(cell, Cell):
            layers.append(([cell], [p]))
        else:
            layers.append((list(cell), list(p)))
    return layers


def _layouts(both: bool, params: Any) -> Iterator[list[list[Params]]]:
    """What the params of recurrent layers may be: one entry a layer, of one direction or two."""
    if isinstance(params, _OURS):
        yield [[params]]
    elif _is_tuple(params) and params:
        if both and len(params) == 2 and all(isinstance(p, _OURS) for p in params):
            yield [list(params)]
        layers = [[p] if isinstance(p, _OURS) else list(p) for p in params if _is_layer(p)]
        if len(layers) == len(params):
            yield layers


def _is_layer(p: Any) -> bool:
    pair = _is_tuple(p) and len(p) == 2 and all(isinstance(q, _OURS) for q in p)
    return isinstance(p, _OURS) or pair


def _rebuilt(layers: Any, params: Any, inner: Any, width: int | None, activation: str) -> Any:
    """Our own net for some params, if its layers are these."""
    nets = [c[0] if len(c) == 1 else two_way(c[0], c[1]) for c, _ in layers]
    pair = len(layers) == 1 and len(layers[0][0]) == 2 and isinstance(inner[0], _OURS)
    net = nets[0] if isinstance(inner, _OURS) or pair else stack(nets)

    def around(p: Any) -> Any:
        if isinstance(p, ReadoutParams):
            tied = p.w_y is None
            w_y: Any = p.cell.table.T if tied else p.w_y
            H, size = w_y.shape
            options: Any = {"activation": OUTPUTS[activation], "bias": p.b_y is not None}
            return readout(around(p.cell), size, tied=tied, hidden_size=H, **options)
        if isinstance(p, EmbedParams):
            return embed(around(p.cell), *p.table.shape)
        return net if width is None else one_hot(net, width)

    return around(params)


def _uniform(params: list[Params]) -> Iterator[Callable[[Params], Cell]]:
    """Ways in which all layers may be of one kind."""
    elman = any(isinstance(p, ElmanParams) for p in params)
    unclear = any(isinstance(p, GRUParams) and p.b is None for p in params)
    for activation in ACTIVATIONS.values() if elman else [tanh]:
        for kind in ("gru", "gru_reset_after") if unclear else ["gru"]:

            def cell_for(p: Params, activation: Any = activation, kind: str = kind) -> Cell:
                if isinstance(p, ElmanParams):
                    return make("elman", p, activation=activation)
                if isinstance(p, LSTMParams):
                    return make("lstm", p)
                reset_after = p.b_n is not None or (p.b is None and kind == "gru_reset_after")
                return make("gru_reset_after" if reset_after else "gru", p)

            yield cell_for


def _same(net: Any, other: Any, params: Params, width: int | None) -> bool:
    """Whether two nets do the same with random params, not only with those at hand."""
    xs = random_inputs(params, width)
    given = random_like(np.random.default_rng(2), params)
    try:
        got, expected = run_net(other, given, None, xs), run_net(net, given, None, xs)
    except (TypeError, ValueError):
        return False
    return distance(got, expected) < tolerance(got[1].dtype)


def run_net(net: Any, params: Params, state: State | None, xs: Any, **options: Any) -> Any:
    """``(state, ys)`` of a `Cell` or a `TwoWay`."""
    if isinstance(net, TwoWay):
        return net.run(params, state, xs, **options)
    return unroll(net, params, state, xs, **options)


def random_inputs(params: Any, width: int | None = None, steps: int = 5) -> Array:
    """[T, D] for the first layer of some params, or [T] tokens where they have a table."""
    rng = np.random.default_rng(1)
    tables = [
        p.table.shape[0]
        for p in jax.tree.leaves(params, is_leaf=lambda p: isinstance(p, EmbedParams))
        if isinstance(p, EmbedParams)
    ]
    inner = params.cell if isinstance(params, ReadoutParams) else params
    if isinstance(inner, EmbedParams):
        tables = [inner.table.shape[0]]
    size = tables[0] if tables else width
    if size is not None:
        return jnp.asarray(rng.integers(size, size=steps))
    first = _leaves(params)[0]
    return jnp.asarray(rng.normal(size=(steps, first.w_x.shape[0])), first.w_x.dtype)


def check_same(cells: Any, params: Any, imported: Imported, target: str) -> None:
    """Raises where the net, brought back from what was written, does something else."""
    net = cells if isinstance(cells, Cell | TwoWay) else net_of(cells)
    xs = random_inputs(params)
    expected = run_net(net, params, None, xs)[1]
    got = run_net(imported.net, imported.params, None, xs)[1]
    apart = distance(got, expected)
    if not apart < tolerance(xs.dtype):
        raise InteropError(
            f"cells: {target} would differ from this net by {apart:.2g} on random input, so "
            "nothing is written; it has something that the other library has not (a residual "
            "connection, the reset of `gru` before the product, another activation)"
        )


def single_precision(params: Params, target: str) -> None:
    """Raises for params that are not float32, where the target has nothing else."""
    for path, a in jax.tree_util.tree_leaves_with_path(params):
        if is_float(a) and a.dtype != jnp.float32:
            raise InteropError(
                f"params{jax.tree_util.keystr(path)}: got {a.dtype}, and {target} computes in "
                "float32; cast first: jax.tree.map(lambda a: a.astype('float32'), params)"
            )


def tolerance(dtype: Any) -> float:
    return float(1e4 * jnp.finfo(dtype).eps)


def distance(a: Any, b: Any) -> float:
    """The largest difference of two trees of floats; infinite for different shapes."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False))
    if len(jax.tree.leaves(a)) != len(jax.tree.leaves(b)) or any(
        x.shape != y.shape for x, y in pairs
    ):
        return float("inf")
    apart = [float(jnp.abs(x - y).max()) for x, y in pairs if is_float(x) and x.size]
    return float("inf") if any(np.isnan(apart)) else max(apart, default=0.0)


def random_like(rng: np.random.Generator, tree: Any) -> Any:
    def one(a: Any) -> Array:
        return jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype) if is_float(a) else a

    return jax.tree.map(one, tree)


def _is_tuple(params: Any) -> bool:
    return isinstance(params, tuple | list) and not hasattr(params, "_fields")


def _kind(a: Any) -> str:
    if _is_tuple(a):
        return f"a {type(a).__name__} of {len(a)}"
    return type(a).__name__
