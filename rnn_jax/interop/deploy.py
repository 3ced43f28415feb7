"""A net as StableHLO, which runs without rnn_jax: on a server, a phone, in another language."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax import attention, combine, gradients, noise
from rnn_jax import cells as our_cells
from rnn_jax._types import Cell
from rnn_jax.combine import TwoWay, inputs
from rnn_jax.interop._formats import InteropError
from rnn_jax.interop._net import net_of, run_net
from rnn_jax.unroll import Plan, length_mask


def export(
    cells: Any,
    params: Any,
    *,
    lengths: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """A net with its params as a `jax.export.Exported`, for any batch and any length.

    ``exported.call(xs)``, or ``exported.call(xs, lengths)``, gives ``(state, ys)``: xs is
    [B, T, D], or [B, T] integer tokens, lengths [B] int32, ys [B, T, O]; a NamedTuple of the state
    is a dictionary of its fields, so that the process that reads it needs JAX and nothing else:

    ```python
    Path("net.stablehlo").write_bytes(exported.serialize(vjp_order=1))
    jax.export.deserialize(Path("net.stablehlo").read_bytes()).call(xs)
    ```

    Args:
      cells: any `Cell` or `TwoWay` net, or a list with a cell or a pair of cells a layer.
      params: what goes with it; they become constants.
      lengths: whether sequences are padded.
      platforms: where it will run; it is exported for all of them, wherever this is done.

    Returns:
      The `Exported`. ``serialize`` wants the package flatbuffers, of the extra `interop`.

    Raises:
      InteropError: an input that cannot be told from the params: for a cell of your own, give it
        an `embed` or one of our layers first, or call `jax.export` yourself.
    """
    net = cells if isinstance(cells, Cell | TwoWay) else net_of(cells)
    plan = Plan(project="before")  # "auto" would be the choice of the machine that exports

    def run(xs: Any, sizes: Any = None) -> Any:
        def one(x: Any, n: Any) -> Any:
            mask = None if n is None else length_mask(n, x.shape[0])
            return run_net(net, params, None, x, mask=mask, plan=plan)

        state, ys = jax.vmap(one)(xs, sizes)
        return plain(state), ys

    x = _input(net, params)
    B, T = jax.export.symbolic_shape("B, T")
    given = [jax.ShapeDtypeStruct((B, T, *x.shape), x.dtype)]
    given += [jax.ShapeDtypeStruct((B,), jnp.int32)] if lengths else []
    return jax.export.export(jax.jit(run), platforms=list(platforms))(*given)


def _input(net: Any, params: Any) -> Any:
    """Shape and dtype of one step of the input of a net, found by trying what it may be."""
    for x in inputs(params):
        xs = jax.ShapeDtypeStruct((2, *x.shape), x.dtype)
        try:
            jax.eval_shape(lambda xs: run_net(net, params, None, xs), xs)
        except (TypeError, ValueError):
            continue
        return x
    raise InteropError(
        f"cells: the params of this net ({type(params).__name__}) do not show what input it takes; "
        "call jax.export.export on your own function"
    )


def plain(tree: Any) -> Any:
    """NamedTuples as dictionaries of their fields."""
    if hasattr(tree, "_asdict"):
        return {name: plain(a) for name, a in tree._asdict().items()}
    if isinstance(tree, tuple | list):
        return tuple(map(plain, tree))
    return tree


def register() -> None:
    """Lets `jax.export` write and read functions of our own params and states, once a process."""
    public = {
        name: kind
        for module in (our_cells, combine, noise, attention, gradients)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and name.endswith(("Params", "State")) and name[0] != "_"
    }
    for name, kind in public.items():
        if not hasattr(kind, "_fields"):
            continue
        try:
            jax.export.register_namedtuple_serialization(kind, serialized_name=f"rnn_jax.{name}")
        except ValueError:  # it is registered already
            continue
