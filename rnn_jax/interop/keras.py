"""Keras: gates i, f, c, o and z, r, h; the GRU with the reset before the product, or after it.

A layer is a configuration and a list of arrays, whether it is an object, part of a .keras file or
of a .h5 file; files are read with h5py, without Keras.
"""

import json
import zipfile
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Cell, Params
from rnn_jax.interop._extras import needs
from rnn_jax.interop._formats import FORMATS, InteropError, dump, load
from rnn_jax.interop._net import (
    ACTIVATIONS,
    Imported,
    distance,
    identify,
    layers_of,
    make,
    net_of,
    random_inputs,
    run_net,
    single_precision,
)

# Their names of activations, where they do the same as ours.
NAMES = {
    "tanh": "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "linear": "identity",
    "softplus": "softplus",
    "softsign": "soft_sign",
    "hard_tanh": "hard_tanh",
    "elu": "elu",
}
CELLS = {
    "SimpleRNN": "SimpleRNN",
    "SimpleRNNCell": "SimpleRNN",
    "LSTM": "LSTM",
    "LSTMCell": "LSTM",
    "GRU": "GRU",
    "GRUCell": "GRU",
}
WRAPPERS = ("Bidirectional", "RNN")
PASSING = ("InputLayer", "Masking", "Dropout", "SpatialDropout1D", "GaussianNoise", "Activity")


class _Layer(NamedTuple):
    kind: str
    config: dict[str, Any]
    weights: list[Any]


def from_keras(layer_or_path: Any, name: str | None = None) -> Imported:
    """Recurrent layers of Keras: SimpleRNN, LSTM, GRU, Bidirectional, stacked cells.

    A masked step repeats the last output in Keras; in `unroll` it is zero. The states agree.

    Args:
      layer_or_path: a built layer or model, or the path of a .keras file or of a .h5 file with the
        whole model; files are read without Keras.
      name: one layer of a model. Without it, all recurrent layers of the model are taken, which
        have to follow each other; masking and dropout between them are left out.

    Returns:
      An `Imported`.

    Raises:
      InteropError: no such layer, or what our cells do not do: other activations of the gates,
        ``go_backwards``, a merge other than concat, convolutions, a layer that is not built.
      ImportError: a file, and the extra `interop` is not installed.

    Example:
      ```python
      imported = rnn_jax.interop.from_keras("tagger.keras", "bidirectional")
      states, ys = imported.net.run(imported.params, None, xs, mask=mask)  # xs: [T, D]
      ```
    """
    is_path = isinstance(layer_or_path, str | Path)
    layers = list(_from_file(Path(layer_or_path)) if is_path else _from_object(layer_or_path))
    if name is not None:
        found = [layer for layer in layers if layer.config.get("name") == name]
        if not found:
            names = ", ".join(str(layer.config.get("name")) for layer in layers)
            raise InteropError(f"name: got {name!r}, expected one of {names}")
        layers = found
    cells: list[Any] = []
    params: list[Any] = []
    for layer in _recurrent(layers):
        for cell, p in _imported(layer):
            cells.append(cell)
            params.append(p)
    return Imported(tuple(cells), tuple(params))


def _recurrent(layers: list[_Layer]) -> list[_Layer]:
    known = [layer.kind in CELLS or layer.kind in WRAPPERS for layer in layers]
    if not any(known):
        kinds = ", ".join(layer.kind for layer in layers) or "nothing"
        raise InteropError(f"layer: got {kinds}, expected SimpleRNN, LSTM, GRU or Bidirectional")
    first, last = known.index(True), len(known) - known[::-1].index(True)
    for layer, is_known in zip(layers[first:last], known[first:last], strict=True):
        if not is_known and layer.kind not in PASSING:
            raise InteropError(
                f"layer: got {layer.kind} {layer.config.get('name')!r} between recurrent layers; "
                "take them one at a time with name="
            )
    return [layer for layer, is_known in zip(layers, known, strict=True) if is_known]


def _imported(layer: _Layer) -> Iterator[tuple[Any, Any]]:
    config = layer.config
    where = repr(config.get("name", layer.kind))
    if layer.kind == "Bidirectional":
        if config.get("merge_mode") != "concat":
            raise InteropError(
                f"{where}: got merge_mode={config.get('merge_mode')!r}, expected 'concat'"
            )
        halves = [config["layer"], config.get("backward_layer") or config["layer"]]
        size = len(layer.weights) // 2
        pairs = [
            list(_imported(_Layer(h["class_name"], h["config"] | {"go_backwards": False}, w)))
            for h, w in zip(halves, (layer.weights[:size], layer.weights[size:]), strict=True)
        ]
        if not halves[1]["config"].get("go_backwards", True):
            raise InteropError(f"{where}: got a backward layer that runs forward")
        if len(pairs[0]) != 1:
            raise InteropError(
                f"{where}: got {len(pairs[0])} cells in each direction, expected one"
            )
        (forward,), (backward,) = pairs
        yield (forward[0], backward[0]), (forward[1], backward[1])
        return
    if config.get("go_backwards"):
        raise InteropError(
            f"{where}: got go_backwards, whose outputs come last step first; import the layer "
            "without it and run unroll(..., reverse=True)"
        )
    if layer.kind == "RNN":
        cell = config["cell"]
        inner = cell["config"]["cells"] if cell["class_name"] == "StackedRNNCells" else [cell]
        counts = [3 if c["config"].get("use_bias", True) else 2 for c in inner]
        at = np.cumsum([0, *counts])
        for c, start, end in zip(inner, at[:-1], at[1:], strict=True):
            if c["class_name"] not in CELLS:
                raise InteropError(f"{where}: got a {c['class_name']}, which has no counterpart")
            yield _one(c["class_name"], c["config"], layer.weights[start:end])
        return
    yield _one(layer.kind, config, layer.weights)


def _one(kind: str, config: dict[str, Any], weights: list[Any]) -> tuple[Cell, Params]:
    layer, where = CELLS[kind], repr(config.get("name", kind))
    activation = _name(config.get("activation", "tanh"))
    if layer == "SimpleRNN":
        if activation not in NAMES:
            raise InteropError(
                f"{where}: got activation {activation!r}, expected one of {', '.join(NAMES)}"
            )
    else:
        gates = _name(config.get("recurrent_activation", "sigmoid"))
        if (activation, gates) != ("tanh", "sigmoid"):
            raise InteropError(
                f"{where}: got the activations {activation!r} and {gates!r}, expected 'tanh' and "
                "'sigmoid'"
            )
    if layer == "GRU" and config.get("reset_after", True):
        layer = "GRU reset_after"
    expected = ["kernel", "recurrent_kernel"] + ["bias"] * bool(config.get("use_bias", True))
    if len(weights) != len(expected):
        raise InteropError(
            f"{where}: got {len(weights)} arrays, expected {', '.join(expected)}; is it built?"
        )
    try:
        params = load("keras", layer, dict(zip(expected, weights, strict=True)))
    except InteropError as error:
        raise InteropError(f"{where}: {error}") from None
    more = {"activation": ACTIVATIONS[NAMES[activation]]} if layer == "SimpleRNN" else {}
    return make(FORMATS["keras", layer].cell, params, **more), params


def _name(activation: Any) -> str:
    if isinstance(activation, dict):
        return str(activation.get("config", activation.get("class_name")))
    return str(activation)


def _from_object(layer: Any) -> Iterator[_Layer]:
    if not hasattr(layer, "get_config"):
        raise InteropError(
            f"layer: got {type(layer).__name__}, expected a layer or a model of Keras, or a path"
        )
    kind = type(layer).__name__
    if hasattr(layer, "layers") and kind not in WRAPPERS:
        for inner in layer.layers:
            yield from _from_object(inner)
        return
    if not layer.built:
        raise InteropError(f"{layer.name!r}: got a layer that is not built; call it, or build() it")
    to_numpy = import_module("keras").ops.convert_to_numpy
    yield _Layer(kind, layer.get_config(), [to_numpy(w.value) for w in layer.weights])


def _from_file(path: Path) -> Iterator[_Layer]:
    needs("h5py", "interop")
    h5py: Any = import_module("h5py")

    if not path.is_file():
        raise InteropError(f"path: got {path}, which is no file")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not {"config.json", "model.weights.h5"} <= set(archive.namelist()):
                raise InteropError(f"path: got {path}, which holds no model of Keras")
            model = json.loads(archive.read("config.json"))
            weights = BytesIO(archive.read("model.weights.h5"))
        with h5py.File(weights) as file:
            groups = {_user_name(g): g for g in _groups(file)}
            for config in _layers(model):
                yield _filled(config, _vars(config, groups.get(config["config"].get("name"))))
        return
    if not h5py.is_hdf5(path):
        raise InteropError(f"path: got {path}, expected a .keras file or a .h5 file")
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise InteropError(
                f"path: got {path}, which has weights and no model; activations and the kind of a "
                "GRU stand in the model alone: save it whole, as .keras"
            )
        model = json.loads(file.attrs["model_config"])
        for config in _layers(model):
            group = file["model_weights"].get(config["config"].get("name"))
            names = [] if group is None else list(group.attrs["weight_names"])
            yield _filled(config, [np.asarray(group[n]) for n in names])


def _filled(config: dict[str, Any], weights: list[Any]) -> _Layer:
    return _Layer(config["class_name"], config["config"], weights)


def _layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers of a model, of models inside it too; a layer alone is itself."""
    inner = config.get("config", {}).get("layers")
    if inner is None:
        yield config
        return
    for layer in inner:
        yield from _layers(layer)


def _groups(group: Any) -> Iterator[Any]:
    """All groups that have a name given by the user."""
    for child in group.values():
        if hasattr(child, "values"):
            if "vars" in child:
                yield child
            yield from _groups(child)


def _user_name(group: Any) -> str:
    return str(group["vars"].attrs.get("name", ""))


def _vars(config: dict[str, Any], group: Any) -> list[Any]:
    """The arrays of a layer in the order of ``get_weights()``."""
    if group is None:
        return []
    if config["class_name"] == "Bidirectional":
        inner = config["config"]["layer"]
        halves = [group[k] for k in ("forward_layer", "backward_layer")]
        return [w for half in halves for w in _vars(inner, half)]
    if config["class_name"] == "RNN":
        cell = config["config"]["cell"]
        if cell["class_name"] == "StackedRNNCells":
            named = {_user_name(g): g for g in group["cell/cells"].values()}
            parts = [named[c["config"]["name"]] for c in cell["config"]["cells"]]
            return [w for part in parts for w in _sorted(part["vars"])]
    return _sorted(group["cell/vars"]) if "cell" in group else []


def _sorted(group: Any) -> list[Any]:
    return [np.asarray(group[k]) for k in sorted(group, key=int)]


def to_keras(cells: Any, params: Any) -> Any:
    """A Keras model with the same layers and weights: `keras.Sequential`, built, ready to save.

    Args:
      cells: a cell, a `stack`, a `two_way` net, or a list with a cell or a pair of cells a layer.
      params: what goes with it.

    Returns:
      The model; it takes [B, T, D] and returns the outputs of all steps, [B, T, H], and was run
      beside `unroll` on random input before it is returned. Keras computes in float32.

    Raises:
      InteropError: Keras has no layer that does the same: peepholes, a projection, layer norm, a
        residual connection; params that are not float32.
      ImportError: Keras is not installed.
    """
    needs("keras", "peers")
    try:
        keras: Any = import_module("keras")
    except ImportError as error:
        raise ImportError(
            f"Keras cannot start: {error}. Its backend is TensorFlow by default; "
            "set KERAS_BACKEND=jax"
        ) from error

    single_precision(params, "Keras")
    made, weights, D = [], list[Any](), 0
    given: list[Any] = []
    values: list[Any] = []
    for k, (directions, all_params) in enumerate(layers_of(cells, params)):
        D = D or all_params[0].w_x.shape[0]
        both = [
            _to_layer(keras, c, p, k, backward=i == 1)
            for i, (c, p) in enumerate(zip(directions, all_params, strict=True))
        ]
        layer = both[0][0]
        if len(both) == 2:
            layer = keras.layers.Bidirectional(layer, backward_layer=both[1][0])
        made.append(layer)
        weights.append([w for _, ws in both for w in ws])
        given.append(directions[0] if len(directions) == 1 else tuple(directions))
        values.append(all_params[0] if len(all_params) == 1 else tuple(all_params))
    model = keras.Sequential([keras.Input((None, D)), *made])
    for layer, arrays in zip(made, weights, strict=True):
        layer.set_weights(arrays)
    xs = random_inputs(tuple(values))
    expected = run_net(net_of(given), tuple(values), None, xs)[1]
    got = jnp.asarray(np.asarray(model(np.asarray(xs, np.float32)[None]))[0])
    apart = distance(got, expected.astype(got.dtype))
    if not apart < 1e-4:
        raise InteropError(f"cells: Keras gives outputs that differ by {apart:.2g}")
    return model


def _to_layer(
    keras: Any, cell: Cell, params: Params, k: int, backward: bool
) -> tuple[Any, list[Any]]:
    name, options = identify(cell, params)
    layer = {form.cell: their for (lib, their), form in FORMATS.items() if lib == "keras"}[name]
    arrays = dump("keras", layer, params)
    config: dict[str, Any] = {
        "return_sequences": True,
        "use_bias": params.b is not None,
        "go_backwards": backward,
    }
    if layer == "SimpleRNN":
        ours = {f: n for n, f in ACTIVATIONS.items()}[options["activation"]]
        theirs = [n for n, o in NAMES.items() if o == ours]
        if not theirs:
            raise InteropError(f"cells[{k}]: got the activation {ours}, which Keras has not")
        config["activation"] = theirs[0]
    if layer.startswith("GRU"):
        config["reset_after"] = layer != "GRU"
    H = params.w_h.shape[0]
    made = getattr(keras.layers, layer.split()[0])(H, **config)
    return made, [np.asarray(a, np.float32) for a in arrays.values()]
