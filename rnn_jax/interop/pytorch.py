"""PyTorch, safetensors and cuDNN: gates i, f, g, o and r, z, n, transposed weights, two biases."""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Array, Cell, Params
from rnn_jax.cells import LSTMParams
from rnn_jax.interop._extras import needs
from rnn_jax.interop._formats import InteropError, dump, load, number
from rnn_jax.interop._net import (
    ACTIVATIONS,
    Imported,
    check_same,
    identify,
    layers_of,
    make,
)

LAYERS = {1: "RNN", 3: "GRU", 4: "LSTM"}  # by the number of gates
OURS = {"RNN": "elman", "GRU": "gru_reset_after", "LSTM": "lstm"}
NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")


def from_torch(
    module_or_state_dict: Any, prefix: str = "", *, activation: str | None = None
) -> Imported:
    """Recurrent layers of PyTorch: RNN, LSTM, GRU and their cells, deep, in one direction or two.

    Args:
      module_or_state_dict: a module, or its ``state_dict()``; arrays of NumPy or JAX will do, and
        with those of JAX the result can be differentiated.
      prefix: the name of the recurrent layer inside of it, as in ``model.rnn``: "rnn".
      activation: tanh or relu of an RNN, which a state dict does not hold; a module knows it.

    Returns:
      An `Imported`; a module with ``batch_first`` has the same weights as one without.

    Raises:
      InteropError: no recurrent layer there, or more than that; missing or left-over arrays, wrong
        widths; an RNN without activation.

    Example:
      ```python
      rnn = torch.nn.LSTM(64, 128, num_layers=2, bidirectional=True)
      imported = rnn_jax.interop.from_torch(rnn)
      states, ys = imported.net.run(imported.params, None, xs)  # xs: [T, 64]
      ```
    """
    weights = module_or_state_dict
    if not isinstance(weights, Mapping):
        if prefix:
            weights = weights.get_submodule(prefix.rstrip("."))
        activation = activation or getattr(weights, "nonlinearity", None)
        weights = weights.state_dict()
    elif prefix:
        start = prefix.rstrip(".") + "."
        weights = {k[len(start) :]: a for k, a in weights.items() if k.startswith(start)}
    layers = _sorted(weights, prefix)
    cells, params = [], []
    for pair in layers:
        loaded = [_layer(w, where, activation) for where, w in pair]
        cells.append(loaded[0][0] if len(pair) == 1 else tuple(c for c, _ in loaded))
        params.append(loaded[0][1] if len(pair) == 1 else tuple(p for _, p in loaded))
    return Imported(tuple(cells), tuple(params))


def _sorted(weights: Mapping[str, Any], prefix: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """Layer by layer, forward and backward: a suffix and the arrays by their plain names."""
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    left = []
    for name, a in weights.items():
        match = NAME.fullmatch(name)
        if match is None:
            left.append(name)
        else:
            place = int(match[2] or 0), match[3] is not None
            found.setdefault(place, {})[match[1]] = _array(a)
    if left or not found:
        rnns = sorted({n.rsplit(".", 1)[0] for n in left if NAME.fullmatch(n.rsplit(".", 1)[-1])})
        hint = f"; for a part of a model pass prefix={rnns[0]!r}" if rnns else ""
        got = ", ".join(sorted(left)) or "no arrays"
        raise InteropError(
            f"{prefix or 'weights'}: got {got}, expected those of a recurrent layer of PyTorch "
            f"(weight_ih_l0, weight_hh_l0, ...){hint}"
        )
    both = any(reverse for _, reverse in found)
    places = [[(k, r) for r in ((False, True) if both else (False,))] for k in _count(found)]
    missing = [p for pair in places for p in pair if p not in found]
    if missing:
        k, r = missing[0]
        raise InteropError(f"weights: got no weight_ih_l{k}{'_reverse' if r else ''}")
    return [[(f"_l{k}{'_reverse' if r else ''}", found[k, r]) for k, r in pair] for pair in places]


def _count(found: dict[tuple[int, bool], Any]) -> range:
    return range(1 + max(k for k, _ in found))


def _array(a: Any) -> Any:
    if not hasattr(a, "detach"):
        return a
    a = a.detach().cpu()
    if str(a.dtype) == "torch.bfloat16":  # NumPy has none; a float holds it as it is
        return jnp.asarray(a.float().numpy()).astype(jnp.bfloat16)
    return a.numpy()


def _layer(weights: dict[str, Any], where: str, activation: str | None) -> tuple[Cell, Params]:
    for name in ("weight_ih", "weight_hh"):
        if name not in weights:
            raise InteropError(f"weights: got no {name}{where}")
    projection = weights.get("weight_hr")
    rows, columns = np.shape(weights["weight_hh"])
    units = columns if projection is None else np.shape(projection)[1]
    layer = LAYERS.get(rows // units) if rows % units == 0 else None
    if layer is None:
        raise InteropError(
            f"weight_hh{where}: got shape {(rows, columns)}, expected 1, 3 or 4 gates of {units}"
        )
    try:
        params = load("torch", layer, weights)
    except InteropError as error:
        raise InteropError(f"{where.lstrip('_') or 'layer'}: {error}") from None
    if layer != "RNN":
        return make(OURS[layer], params), params
    if activation not in ("tanh", "relu"):
        raise InteropError(
            f"activation: got {activation!r}, expected 'tanh' or 'relu'; the weights of an RNN do "
            "not say which it is"
        )
    return make("elman", params, activation=ACTIVATIONS[activation]), params


def to_torch(cells: Any, params: Any, prefix: str = "") -> dict[str, Any]:
    """A state dict for RNN, LSTM or GRU of PyTorch, as its ``load_state_dict`` takes it.

    The module is one of as many layers and directions, ``batch_first`` as one likes, with
    ``bias=False`` and ``proj_size`` as here, and ``nonlinearity`` the activation of `elman`.

    Args:
      cells: a cell, a `stack`, a `two_way` net, or a list with a cell or a pair of cells a layer.
      params: what goes with it.
      prefix: the name of the layer in a model, set before the names.

    Returns:
      name -> `torch.Tensor`.

    Raises:
      InteropError: PyTorch has no layer that does the same: `gru`, peepholes, layer norm, a
        residual connection; layers of different kinds.
    """
    needs("torch", "peers")
    torch: Any = import_module("torch")

    def tensor(a: Any) -> Any:
        if a.dtype == jnp.bfloat16:
            return torch.tensor(np.asarray(a.astype(jnp.float32))).to(torch.bfloat16)
        return torch.tensor(np.asarray(a))

    return {name: tensor(a) for name, a in _state_dict(cells, params, prefix).items()}


def _state_dict(cells: Any, params: Any, prefix: str) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    kinds = set()
    activation = None
    for k, (directions, all_params) in enumerate(layers_of(cells, params)):
        for cell, p, suffix in zip(directions, all_params, ("", "_reverse"), strict=False):
            name, options = identify(cell, p)
            layer = {ours: theirs for theirs, ours in OURS.items()}.get(name)
            if layer is None:
                raise InteropError(
                    f"cells[{k}]: got {name}, whose reset gate acts before the product; PyTorch "
                    "has gru_reset_after alone"
                )
            if layer == "RNN":
                activation = _torch_activation(options["activation"], k)
            kinds.add((layer, activation, tuple(sorted(options.keys() & {"bias"}))))
            for leaf, a in dump("torch", layer, p).items():
                weights[f"{leaf}_l{k}{suffix}"] = a
    if len(kinds) > 1:
        raise InteropError(f"cells: got layers of {len(kinds)} kinds, expected one")
    check_same(cells, params, from_torch(weights, activation=activation), "PyTorch")
    start = prefix.rstrip(".") + "." if prefix else ""
    return {start + name: a for name, a in weights.items()}


def _torch_activation(f: Any, k: int) -> str:
    for name in ("tanh", "relu"):
        if f is ACTIVATIONS[name]:
            return name
    known = {g: name for name, g in ACTIVATIONS.items()}
    raise InteropError(f"cells[{k}]: got the activation {known.get(f, f)}, expected tanh or relu")


def from_safetensors(
    path: str | Path, prefix: str = "", *, activation: str | None = None
) -> Imported:
    """`from_torch` from a file of safetensors, without PyTorch.

    Raises:
      InteropError: as in `from_torch`, or no such file.
      ImportError: the extra `interop` is not installed.
    """
    needs("safetensors", "interop")
    from safetensors.flax import load_file

    if not Path(path).is_file():
        raise InteropError(f"path: got {path}, which is no file")
    return from_torch(_untouched(path, load_file), prefix, activation=activation)


def _untouched(path: str | Path, load_file: Any) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        wide = [n for n in file.keys() if file.get_slice(n).get_dtype() == "F64"]  # noqa: SIM118
    if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        number(wide[0], np.zeros(0))  # says what to do
    return dict(load_file(str(path)))


def to_safetensors(path: str | Path, cells: Any, params: Any, prefix: str = "") -> None:
    """`to_torch` into a file of safetensors, without PyTorch. A file that is there is replaced.

    Raises:
      InteropError: as in `to_torch`; nothing is written then.
      ImportError: the extra `interop` is not installed.
    """
    needs("safetensors", "interop")
    from safetensors.flax import save_file

    weights = {name: jnp.asarray(a) for name, a in _state_dict(cells, params, prefix).items()}
    save_file(weights, str(path))


def from_cudnn(
    vector: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool = False,
) -> Imported:
    """LSTM layers out of the one vector of cuDNN, as in `jax.experimental.rnn`.

    Args:
      vector: [N], all matrices (of each layer forward, then backward), then all biases.
      input_size, hidden_size, num_layers, bidirectional: as `jax.experimental.rnn.lstm` has them.

    Raises:
      InteropError: another number of weights.
    """
    directions = 2 if bidirectional else 1
    weights: dict[str, Any] = {}
    names = [
        (f"l{k}{'_reverse' if r else ''}", input_size if k == 0 else directions * hidden_size)
        for k in range(num_layers)
        for r in range(directions)
    ]
    rows, at = 4 * hidden_size, 0
    places: list[tuple[str, tuple[int, ...]]] = []
    for suffix, D in names:
        places += [(f"weight_ih_{suffix}", (rows, D)), (f"weight_hh_{suffix}", (rows, hidden_size))]
    for suffix, _ in names:
        places += [(f"bias_ih_{suffix}", (rows,)), (f"bias_hh_{suffix}", (rows,))]
    vector = number("vector", vector)
    total = sum(int(np.prod(shape)) for _, shape in places)
    if vector.shape != (total,):
        raise InteropError(f"vector: got shape {vector.shape}, expected ({total},)")
    for name, shape in places:
        size = int(np.prod(shape))
        weights[name] = vector[at : at + size].reshape(shape)
        at += size
    return from_torch(weights)


def to_cudnn(params: Any) -> Array:
    """The vector of cuDNN from the params of LSTM layers: an entry or a pair of entries a layer.

    Raises:
      InteropError: params of another cell; peepholes, a projection.
    """
    layers = [params] if isinstance(params, LSTMParams) else list(params)
    matrices, biases = [], []
    for layer in layers:
        for p in [layer] if isinstance(layer, LSTMParams) else layer:
            w = dump("torch", "LSTM", p)
            if "weight_hr" in w:
                raise InteropError("params.w_p: got a projection, which the vector has not")
            zeros = jnp.zeros(w["weight_hh"].shape[0], w["weight_hh"].dtype)
            matrices += [w["weight_ih"], w["weight_hh"]]
            biases += [w.get("bias_ih", zeros), w.get("bias_hh", zeros)]
    return jnp.concatenate([a.ravel() for a in matrices + biases])
