"""Our cells as layers of Flax, linen and nnx, and theirs as ours."""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Cell, Params, is_float
from rnn_jax.combine import TwoWay
from rnn_jax.interop._extras import needs
from rnn_jax.interop._formats import InteropError
from rnn_jax.interop._names import from_dict, to_dict
from rnn_jax.interop._net import run_net


def as_linen_module(cell: Cell | TwoWay) -> Any:
    """A net as a layer of Flax linen, over whole sequences: ``ys = layer(xs)``.

    It calls `unroll`, so everything that makes it fast is there. The params stand under "cell"
    with the names of their fields; they train with `TrainState` and any optimizer, beside
    embeddings, Dense and convolutions, in `nn.Sequential`, `nn.vmap` and `nn.remat`.

    Args:
      cell: a `Cell`, or a `two_way` net.

    Returns:
      A `flax.linen.Module`: ``layer(xs, *, initial_state=None, mask=None, reset=None,
      reverse=False, return_state=False)``; xs: [..., T, D], or [..., T] tokens, with any number of
      batch axes, which `mask`, `reset` and `initial_state` have too. It returns ys, or
      ``(state, ys)``.

    Raises:
      ImportError: Flax is not installed.

    Example:
      >>> import flax.linen as nn, rnn_jax
      >>> model = nn.Sequential([as_linen_module(rnn_jax.gru(3, 8)), nn.Dense(2)])
      >>> xs = jnp.ones((5, 7, 3))
      >>> variables = model.init(jax.random.key(0), xs)
      >>> print(model.apply(variables, xs).shape)
      (5, 7, 2)
    """
    needs("flax", "flax")
    return _linen()[0](cell)


def as_linen_cell(cell: Cell) -> Any:
    """A cell as an `RNNCellBase` of Flax linen, for `nn.RNN`, `nn.Bidirectional` and own scans.

    One step is ``carry, y = cell(carry, x)``; the carry is our state. `as_linen_module` is faster.
    """
    needs("flax", "flax")
    return _linen()[1](cell)


def as_nnx_module(cell: Cell | TwoWay, *, rngs: Any = None, params: Params | None = None) -> Any:
    """A net as a layer of Flax nnx, over whole sequences: ``ys = layer(xs)``.

    Args:
      cell: a `Cell`, or a `two_way` net.
      rngs: `nnx.Rngs`, which draw the params.
      params: params that are there already, in the place of `rngs`.

    Returns:
      A `flax.nnx.Module`, called as that of `as_linen_module`; its params are `nnx.Param` with the
      names of the fields, under "params". Equal cells make equal graph definitions, so that
      `nnx.jit` compiles once for both.

    Raises:
      ImportError: Flax is not installed.
      ValueError: neither `rngs` nor `params`, or both.

    Example:
      >>> from flax import nnx
      >>> import rnn_jax
      >>> layer = as_nnx_module(rnn_jax.lstm(3, 8), rngs=nnx.Rngs(0))
      >>> print(layer(jnp.ones((5, 7, 3))).shape, layer.params.w_x.shape)
      (5, 7, 8) (3, 32)
    """
    needs("flax", "flax")
    return _nnx()[0](cell, _params(cell, rngs, params))


def as_nnx_cell(cell: Cell, *, rngs: Any = None, params: Params | None = None) -> Any:
    """A cell as an `RNNCellBase` of Flax nnx, for `nnx.RNN`; arguments as `as_nnx_module`."""
    needs("flax", "flax")
    return _nnx()[1](cell, _params(cell, rngs, params))


def _params(cell: Any, rngs: Any, params: Params | None) -> Params:
    if (rngs is None) == (params is None):
        raise ValueError("rngs, params: expected one of them, as in rngs=nnx.Rngs(0)")
    return cell.init(rngs.params()) if params is None else params


def _over_batch(
    net: Any, params: Params, xs: Any, initial_state: Any, mask: Any, reset: Any, options: Any
) -> Any:
    """``(state, ys)`` over any number of batch axes, which stand in front of everything."""

    def run(xs: Any, state: Any, mask: Any, reset: Any) -> Any:
        return run_net(net, params, state, xs, mask=mask, reset=reset, **options)

    first = jax.tree.leaves(xs)[0]
    batch = first.ndim - (2 if is_float(first) else 1)  # tokens have no axis of their own
    if batch < 0:
        raise ValueError(f"xs: got shape {first.shape}, expected [..., T, D], or [..., T] tokens")
    for _ in range(batch):
        run = jax.vmap(run)
    return run(xs, initial_state, mask, reset)


def _one_step(cell: Cell, params: Params, carry: Any, x: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        return cell.step(params, carry, cell.project(params, x))

    for _ in range(x.ndim - (1 if is_float(x) else 0)):
        step = jax.vmap(step)
    return step(carry, x)


def _initial(cell: Cell, params: Params, batch: tuple[int, ...]) -> Any:
    state = cell.init_state(params)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *jnp.shape(a))), state)


@functools.cache
def _linen() -> tuple[Any, Any]:
    import flax.linen as nn

    def params_of(module: Any, cell: Any) -> Params:
        like = jax.eval_shape(cell.init, jax.random.key(0))
        return from_dict(like, module.param("cell", lambda key: to_dict(cell.init(key))))

    class Unroll(nn.Module):
        """A net of rnn_jax over whole sequences."""

        cell: Any

        @nn.compact
        def __call__(
            self,
            xs: Any,
            *,
            initial_state: Any = None,
            mask: Any = None,
            reset: Any = None,
            return_state: bool = False,
            **options: Any,
        ) -> Any:
            params = params_of(self, self.cell)
            state, ys = _over_batch(self.cell, params, xs, initial_state, mask, reset, options)
            return (state, ys) if return_state else ys

    class Step(nn.RNNCellBase):
        """A cell of rnn_jax."""

        cell: Any

        @nn.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            return _one_step(self.cell, params_of(self, self.cell), carry, x)

        @nn.nowrap
        def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
            like = jax.eval_shape(self.cell.init, jax.random.key(0))
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
            return _initial(self.cell, zeros, input_shape[:-1])

        @property
        def num_feature_axes(self) -> int:
            return 1

    return Unroll, Step


@functools.cache
def _nnx() -> tuple[Any, Any]:
    from flax import nnx

    def boxed(tree: dict[str, Any]) -> Any:
        return nnx.Dict(
            {k: boxed(a) if isinstance(a, dict) else nnx.Param(a) for k, a in tree.items()}
        )

    def unboxed(tree: Any) -> Any:
        return {k: unboxed(a) if isinstance(a, nnx.Dict) else a[...] for k, a in tree.items()}

    def hold(module: Any, cell: Any, params: Params) -> None:
        module.cell = nnx.static(cell)
        module.like = nnx.static(jax.tree.structure(params))
        module.params = boxed(to_dict(params))

    def values(module: Any) -> Params:
        like = jax.tree.unflatten(module.like, range(module.like.num_leaves))
        return from_dict(like, unboxed(module.params))

    class Unroll(nnx.Module):
        """A net of rnn_jax over whole sequences."""

        cell: Any

        def __init__(self, cell: Any, params: Params) -> None:
            hold(self, cell, params)

        def __call__(
            self,
            xs: Any,
            *,
            initial_state: Any = None,
            mask: Any = None,
            reset: Any = None,
            return_state: bool = False,
            **options: Any,
        ) -> Any:
            params = values(self)
            state, ys = _over_batch(self.cell, params, xs, initial_state, mask, reset, options)
            return (state, ys) if return_state else ys

    class Step(nnx.RNNCellBase):
        """A cell of rnn_jax."""

        cell: Any

        def __init__(self, cell: Any, params: Params) -> None:
            hold(self, cell, params)

        def __call__(self, carry: Any, x: Any) -> Any:
            return _one_step(self.cell, values(self), carry, x)

        def initialize_carry(
            self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
        ) -> Any:
            return _initial(self.cell, values(self), input_shape[:-1])

        @property
        def num_feature_axes(self) -> int:
            return 1

    return Unroll, Step


def wrap_linen(module: Any, input_shape: int | tuple[int, ...]) -> Cell:
    """A cell of Flax linen, any `RNNCellBase`, as a `Cell`.

    Everything that takes a cell takes it: `unroll`, masks, every gradient algorithm. Known cells
    are faster converted: ``load("linen", "LSTMCell", params)``.

    Args:
      module: the cell.
      input_shape: the shape of one input, D or (D,).

    Returns:
      A `Cell` whose params are ``module.init(...)["params"]`` and whose state is the carry.

    Raises:
      InteropError: the module keeps something beside its params, or draws at every step.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)

    def carry() -> Any:
        return module.initialize_carry(jax.random.key(0), shape)

    def init(key: Any) -> Params:
        variables = module.init(key, carry(), jnp.zeros(shape))
        if extra := set(variables) - {"params"}:
            raise InteropError(
                f"module: got variables in {', '.join(sorted(extra))}, expected params alone; "
                "a Cell keeps what changes in its state"
            )
        return variables["params"]

    def step(params: Params, state: Any, x: Any) -> Any:
        return module.apply({"params": params}, state, x)

    cell = Cell(init, lambda params: carry(), lambda params, x: x, step)
    _try(cell, shape)
    return cell


def _try(cell: Cell, shape: tuple[int, ...]) -> None:
    """One step, without computing it."""

    def once(key: Any) -> Any:
        params = cell.init(key)
        return cell.step(params, cell.init_state(params), jnp.zeros(shape))

    try:
        jax.eval_shape(once, jax.random.key(0))
    except InteropError:
        raise
    except Exception as error:
        raise InteropError(
            f"module: a step fails with {type(error).__name__}: {str(error).splitlines()[0]} If it "
            "draws (dropout), leave that out and put rnn_jax.dropout around the Cell."
        ) from error


def wrap_nnx(module: Any, input_shape: int | tuple[int, ...]) -> tuple[Cell, Params]:
    """A cell of Flax nnx, any `RNNCellBase`, as a `Cell`, and its params.

    Args:
      module: the cell, with its params.
      input_shape: the shape of one input, D or (D,).

    Returns:
      ``(cell, params)``: params is a dictionary of arrays; ``cell.init`` returns the same ones,
      whatever the key.

    Raises:
      InteropError: the module changes something beside its carry (dropout, statistics).
    """
    from flax import nnx

    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    split: Any = nnx.split
    graph, weights, rest = split(module, nnx.Param, ...)
    structure = jax.tree.structure(weights)
    start = nnx.to_pure_dict(weights)

    def build(params: Params) -> Any:
        return nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(params)), rest)

    def init_state(params: Params) -> Any:
        return build(params).initialize_carry(shape, rngs=nnx.Rngs(0))

    def step(params: Params, state: Any, x: Any) -> Any:
        return build(params)(state, x)

    def fixed(state: Any) -> list[Any]:
        return [_plain(a) for a in jax.tree.leaves(nnx.to_pure_dict(state))]

    before, trial = fixed(rest), build(start)
    trial(init_state(start), jnp.zeros(shape))
    after = fixed(split(trial, nnx.Param, ...)[2])
    if not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
        raise InteropError(
            "module: it changes something beside its carry (dropout, statistics); leave that out "
            "and put rnn_jax.dropout around the Cell"
        )
    return Cell(lambda key: start, init_state, lambda params, x: x, step), start


def _plain(a: Any) -> Any:
    key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(a) if key else a)


def wrap_haiku(make: Callable[[], Any], input_shape: int | tuple[int, ...]) -> Cell:
    """A cell of Haiku, any `RNNCore`, as a `Cell`.

    Args:
      make: makes the core: ``lambda: haiku.LSTM(128)``.
      input_shape: the shape of one input, D or (D,).

    Raises:
      InteropError: it keeps state of its own, or draws at every step.
    """
    needs("haiku", "peers")
    haiku: Any = import_module("haiku")

    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)

    def carry() -> Any:
        initial = haiku.transform(lambda: make().initial_state(None))
        return initial.apply({}, None)

    stepped = haiku.transform_with_state(lambda x, state: make()(x, state))

    def init(key: Any) -> Params:
        params, kept = stepped.init(key, jnp.zeros(shape), carry())
        if kept:
            raise InteropError(f"make: it keeps state in {', '.join(kept)}; a Cell keeps its own")
        return params

    def step(params: Params, state: Any, x: Any) -> Any:
        (y, state), _ = stepped.apply(params, {}, None, x, state)
        return state, y

    cell = Cell(init, lambda params: carry(), lambda params, x: x, step)
    _try(cell, shape)
    return cell


def wrap_equinox(
    module: Any, init_state: Callable[[Params], Any] | None = None
) -> tuple[Cell, Params]:
    """A cell of Equinox as a `Cell`, and its params.

    Args:
      module: ``module(x, state) -> state``, as `equinox.nn.LSTMCell` and `GRUCell`; the output is
        the state, or the first part of it.
      init_state: ``(params) -> state``; zeros for the cells of Equinox.

    Returns:
      ``(cell, params)``: params is the module without what is no array; ``cell.init`` returns it.

    Raises:
      InteropError: another module, without `init_state`.
    """
    needs("equinox", "peers")
    equinox: Any = import_module("equinox")

    params, rest = equinox.partition(module, equinox.is_inexact_array)
    if init_state is None:
        size = getattr(module, "hidden_size", None)
        if not isinstance(module, equinox.nn.LSTMCell | equinox.nn.GRUCell) or size is None:
            raise InteropError(
                f"init_state: got None for {type(module).__name__}, expected (params) -> state"
            )
        memory = isinstance(module, equinox.nn.LSTMCell)

        def init_state(params: Params) -> Any:
            zeros = jnp.zeros(size, params.weight_hh.dtype)
            return (zeros, zeros) if memory else zeros

    def step(params: Params, state: Any, x: Any) -> Any:
        new = equinox.combine(params, rest)(x, state)
        return new, jax.tree.leaves(new)[0]

    return Cell(lambda key: params, init_state, lambda params, x: x, step), params
