"""One table of how libraries lay out the weights of one recurrent layer in one direction.

The neutral form is gate by gate, with the names and signs of rnn_jax: for each part of a layer
(w_x, w_h, the bias added to the input, the bias added to the state, ...) one array a gate. A
`Format` says which of their arrays holds what, in a small language of axes: D input, H hidden, P
output, G the gates side by side. One reader and one writer serve every row.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Array, Params
from rnn_jax.cells import ElmanParams, GRUParams, LSTMParams

GATES = {"elman": "h", "lstm": "ifgo", "gru": "rzn", "gru_reset_after": "rzn"}
PEEPHOLES = "ifo"
OPTIONAL = ("b_x", "b_h", "both", "w_c", "w_p")

Gates = dict[str, Array]  # one array a gate
Parts = dict[str, Gates]  # "w_x", "w_h", "b_x", "b_h", "w_c"; "w_p" under the gate ""


class InteropError(ValueError):
    """Weights, or a model, that the other side has no place for."""


class Leaf(NamedTuple):
    """One array of another library.

    Attributes:
      part: what it holds: "w_x", "w_h", "b_x" and "b_h" (added to x W and to h W), "w_c"
        (peepholes), "w_p" (projection); "w" is w_x over w_h, "both" is b_x and b_h.
      axes: its axes, as in "GH,D": G blocks of H rows side by side, D columns.
      gates: the gates that it holds, "" for all.
    """

    part: str
    axes: str
    gates: str = ""


class Format(NamedTuple):
    """How one layer of a library lies.

    Attributes:
      cell: the cell of rnn_jax that it is: elman, lstm, gru or gru_reset_after.
      gates: the order of its gates, in the letters of rnn_jax.
      leaves: name of an array -> what it holds; "{gate}" in a name makes one array a gate.
      negated: gates whose argument has the other sign.
      added: what the forward pass adds to the bias of a gate.
      peepholes: the order of the peepholes.
      biased: whether the bias has to be there.
      split: how nested dictionaries are made of the names: at every "/", at the last, or flat.
      module: what stands before the names in the dictionaries of the library.
      renamed: modules whose name in the library is not the one of the table.
    """

    cell: str
    gates: str
    leaves: dict[str, Leaf]
    negated: str = ""
    added: Mapping[str, float] = {}
    peepholes: str = PEEPHOLES
    biased: bool = False
    split: str = "flat"
    module: str = ""
    renamed: Mapping[str, str] = {}


def _torch(cell: str, gates: str) -> Format:
    leaves = {
        "weight_ih": Leaf("w_x", "GH,D"),
        "weight_hh": Leaf("w_h", "GH,P"),
        "bias_ih": Leaf("b_x", "GH"),
        "bias_hh": Leaf("b_h", "GH"),
    }
    if cell == "lstm":
        leaves["weight_hr"] = Leaf("w_p", "P,H")
    return Format(cell, gates, leaves)


def _keras(cell: str, gates: str, bias: Leaf) -> Format:
    kernels = {"kernel": Leaf("w_x", "D,GH"), "recurrent_kernel": Leaf("w_h", "P,GH")}
    return Format(cell, gates, kernels | {"bias": bias})


def _dense(cell: str, gates: str, x: str, h: str, b_x: str = "", b_h: str = "") -> Format:
    """Flax: a Dense for each gate, or one for all."""
    each = "{gate}" in x
    leaves = {
        f"{x}/kernel": Leaf("w_x", "D,H" if each else "D,GH"),
        f"{h}/kernel": Leaf("w_h", "P,H" if each else "P,GH"),
    }
    bias = "H" if each else "GH"
    if b_x:
        leaves[f"{x}/bias"] = Leaf("b_x", bias, b_x)
    if b_h:
        leaves[f"{h}/bias"] = Leaf("b_h", bias, b_h)
    return Format(cell, gates, leaves, biased=True, split="every")


def _onnx(cell: str, gates: str) -> Format:
    leaves = {"W": Leaf("w_x", "GH,D"), "R": Leaf("w_h", "GH,P"), "B": Leaf("both", "2GH")}
    if cell == "lstm":
        leaves["P"] = Leaf("w_c", "3H")
    return Format(cell, gates, leaves, peepholes="iof")


def _haiku(cell: str, gates: str, module: str, leaves: dict[str, Leaf], **more: Any) -> Format:
    return Format(cell, gates, leaves, biased=True, split="last", module=module, **more)


def _equinox(cell: str, gates: str, **more: Leaf) -> Format:
    leaves = {
        "weight_ih": Leaf("w_x", "GH,D"),
        "weight_hh": Leaf("w_h", "GH,P"),
        "bias": Leaf("b_x", "GH"),
    }
    return Format(cell, gates, leaves | more)


FORMATS: dict[tuple[str, str], Format] = {
    ("torch", "RNN"): _torch("elman", "h"),
    ("torch", "LSTM"): _torch("lstm", "ifgo"),
    ("torch", "GRU"): _torch("gru_reset_after", "rzn"),
    ("keras", "SimpleRNN"): _keras("elman", "h", Leaf("b_x", "GH")),
    ("keras", "LSTM"): _keras("lstm", "ifgo", Leaf("b_x", "GH")),
    ("keras", "GRU"): _keras("gru", "zrn", Leaf("b_x", "GH")),
    ("keras", "GRU reset_after"): _keras("gru_reset_after", "zrn", Leaf("both", "2,GH")),
    ("linen", "SimpleCell"): _dense("elman", "h", "i", "h", b_x="h"),
    ("linen", "LSTMCell"): _dense("lstm", "ifgo", "i{gate}", "h{gate}", b_h="ifgo"),
    ("linen", "OptimizedLSTMCell"): _dense("lstm", "ifgo", "i{gate}", "h{gate}", b_h="ifgo"),
    ("linen", "GRUCell"): _dense("gru_reset_after", "rzn", "i{gate}", "h{gate}", "rzn", "n"),
    ("nnx", "SimpleCell"): _dense("elman", "h", "dense_i", "dense_h", b_x="h"),
    ("nnx", "LSTMCell"): _dense("lstm", "ifgo", "i{gate}", "h{gate}", b_h="ifgo")._replace(
        renamed={"if": "if_"}  # a word of Python
    ),
    ("nnx", "OptimizedLSTMCell"): _dense("lstm", "ifgo", "dense_i", "dense_h", b_h="ifgo"),
    ("nnx", "GRUCell"): _dense("gru_reset_after", "rzn", "dense_i", "dense_h", b_x="rzn"),
    ("haiku", "VanillaRNN"): _haiku(
        "elman",
        "h",
        "vanilla_rnn/",
        {
            "linear/w": Leaf("w_x", "D,GH"),
            "linear_1/w": Leaf("w_h", "P,GH"),
            "linear/b": Leaf("b_x", "GH"),
            "linear_1/b": Leaf("b_h", "GH"),
        },
    ),
    ("haiku", "LSTM"): _haiku(
        "lstm",
        "igfo",
        "lstm/",
        {"linear/w": Leaf("w", "D+H,GH"), "linear/b": Leaf("b_x", "GH")},
        added={"f": 1.0},
    ),
    ("haiku", "GRU"): _haiku(
        "gru",
        "zrn",
        "gru/",
        {"w_i": Leaf("w_x", "D,GH"), "w_h": Leaf("w_h", "P,GH"), "b": Leaf("b_x", "GH")},
        negated="z",
    ),
    ("equinox", "LSTMCell"): _equinox("lstm", "ifgo"),
    ("equinox", "GRUCell"): _equinox("gru_reset_after", "rzn", bias_n=Leaf("b_h", "H", "n")),
    ("onnx", "RNN"): _onnx("elman", "h"),
    ("onnx", "LSTM"): _onnx("lstm", "iofg"),
    ("onnx", "GRU"): _onnx("gru", "zrn"),
    ("onnx", "GRU linear_before_reset"): _onnx("gru_reset_after", "zrn"),
}


def load(library: str, layer: str, weights: Mapping[str, Any]) -> Params:
    """The params of a cell from the weights of one layer, in one direction, of another library.

    Everything is done with `jax.numpy`, so that a gradient by the result comes back in the layout
    of the other library through `jax.vjp`.

    Args:
      library: torch, keras, linen, nnx, haiku, equinox or onnx.
      layer: as `FORMATS` names it: ``("torch", "LSTM")``, ``("keras", "GRU reset_after")``, ...
      weights: name -> array, nested or joined by "/"; what stands before the names is left off.

    Returns:
      `ElmanParams`, `LSTMParams` or `GRUParams`.

    Raises:
      InteropError: unknown layer; an array that is missing, left over, of another shape, or of a
        precision that JAX is not set to.

    Example:
      >>> import numpy as np
      >>> weights = {"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2))}
      >>> weights = {name: a.astype(np.float32) for name, a in weights.items()}
      >>> params = load("torch", "LSTM", weights)
      >>> print(params.w_x.shape, params.w_h.shape, params.b)
      (3, 8) (2, 8) None
    """
    form = _format(library, layer)
    return to_params(form.cell, _read(form, _flat(weights)))


def dump(library: str, layer: str, params: Params) -> dict[str, Any]:
    """The weights of one layer of another library from the params of a cell; `load` turned around.

    Args:
      library, layer: as in `load`.
      params: `ElmanParams`, `LSTMParams` or `GRUParams`.

    Returns:
      name -> array, nested as the library has it.

    Raises:
      InteropError: unknown layer, params of another cell, or what the layer has no place for:
        peepholes, a projection, a bias inside the reset gate.

    Example:
      >>> import jax, rnn_jax
      >>> params = rnn_jax.lstm(3, 2).init(jax.random.key(0))
      >>> print({name: a.shape for name, a in dump("keras", "LSTM", params).items()})
      {'kernel': (3, 8), 'recurrent_kernel': (2, 8), 'bias': (8,)}
    """
    form = _format(library, layer)
    flat = _write(form, from_params(form.cell, params), f"{library} {layer}")
    return _nested(form, flat)


def _format(library: str, layer: str) -> Format:
    if (library, layer) not in FORMATS:
        known = ", ".join(f"({a!r}, {b!r})" for a, b in FORMATS)
        raise InteropError(f"library, layer: got ({library!r}, {layer!r}), expected one of {known}")
    return FORMATS[library, layer]


def _flat(weights: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, a in weights.items():
        if isinstance(a, Mapping):
            flat |= _flat(a, f"{before}{name}/")
        else:
            flat[f"{before}{name}"] = a
    return flat


def _nested(form: Format, flat: dict[str, Any]) -> dict[str, Any]:
    if form.split == "flat":
        return flat
    tree: dict[str, Any] = {}
    for name, a in flat.items():
        path = form.module + name
        *outer, last = path.split("/") if form.split == "every" else path.rsplit("/", 1)
        inner = tree
        for part in outer:
            inner = inner.setdefault(form.renamed.get(part, part), {})
        inner[last] = a
    return tree


def _arrays(form: Format) -> Iterator[tuple[str, Leaf, str]]:
    """Their name, what it is, and the gates that it holds."""
    for name, leaf in form.leaves.items():
        gates = leaf.gates or form.gates
        if "{gate}" in name:
            yield from ((name.format(gate=gate), leaf, gate) for gate in gates)
        else:
            yield name, leaf, gates


def _found(form: Format, flat: dict[str, Any]) -> dict[str, Any]:
    """Their arrays by the names of the table, whatever stands before them."""
    names = [name for name, _, _ in _arrays(form)]
    found: dict[str, Any] = {}
    left = []
    for path, a in flat.items():
        plain = "/" + path
        for name, other in form.renamed.items():
            plain = plain.replace(f"/{other}/", f"/{name}/")
        fits = [n for n in names if plain.endswith("/" + n)]
        if not fits or max(fits, key=len) in found:
            left.append(path)
        else:
            found[max(fits, key=len)] = a
    if left:
        raise InteropError(
            f"weights: got {', '.join(sorted(left))}, for which {form.cell} has no place; "
            f"expected {', '.join(names)}"
        )
    return found


def number(name: str, a: Any) -> Array:
    """An array of another library as one of JAX; it keeps its precision or says that it cannot."""
    dtype = np.dtype(getattr(a, "dtype", float))
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InteropError(
            f"{name}: got {dtype}, which JAX would cut to float32; cast it first, or set "
            'jax.config.update("jax_enable_x64", True)'
        )
    return jnp.asarray(a)


def _read(form: Format, flat: dict[str, Any]) -> Parts:
    found = _found(form, flat)
    names = {name: leaf for name, leaf, _ in _arrays(form)}
    missing = [n for n, leaf in names.items() if n not in found and leaf.part not in OPTIONAL]
    if missing:
        raise InteropError(
            f"weights: got {', '.join(sorted(flat)) or 'none'}, and no {', '.join(missing)}"
        )
    arrays = {name: number(name, a) for name, a in found.items()}
    H, P = _sizes(form, arrays)
    parts: Parts = {}
    for name, leaf, gates in _arrays(form):
        if name not in arrays:
            continue
        a = arrays[name]
        for part, block in _blocks(form, leaf, gates, name, a, H, P):
            columns = PEEPHOLES if part == "w_c" else gates
            order = form.peepholes if part == "w_c" else gates
            if part == "w_p":
                parts.setdefault(part, {})[""] = block
                continue
            width = H * len(columns)
            if block.shape[-1] != width:
                raise InteropError(
                    f"{name}: got shape {a.shape}, expected {leaf.axes} with H = {H} and "
                    f"{len(columns)} gates"
                )
            cut = jnp.split(block, len(columns), axis=-1)
            parts.setdefault(part, {}).update(zip(order, cut, strict=True))
    for gate in form.negated:
        for part in ("w_x", "w_h", "b_x", "b_h"):
            if part in parts:
                parts[part][gate] = -parts[part][gate]
    for gate, value in form.added.items():
        zeros = {g: jnp.zeros(H, parts["w_h"][g].dtype) for g in form.gates}
        parts.setdefault("b_x", zeros)
        parts["b_x"][gate] = parts["b_x"][gate] + value
    _check_widths(parts, H, P)
    return parts


def _sizes(form: Format, arrays: dict[str, Array]) -> tuple[int, int]:
    """H, and P, the width of what the gates see of the past."""
    for name, leaf, gates in _arrays(form):
        if leaf.part in ("w_h", "w") and name in arrays:
            a = arrays[name]
            if a.ndim != 2:
                raise InteropError(f"{name}: got shape {a.shape}, expected {leaf.axes}")
            rows, columns = a.shape if leaf.axes.startswith("GH") else a.shape[::-1]
            H = rows // len(gates)
            return H, H if leaf.part == "w" else columns
    raise AssertionError(form)


def _blocks(
    form: Format, leaf: Leaf, gates: str, name: str, a: Array, H: int, P: int
) -> Iterator[tuple[str, Array]]:
    """What an array holds, with the gates side by side in the last axis."""
    dims = {"2GH": 1, "3H": 1, "GH": 1, "H": 1}.get(leaf.axes, 2)
    if a.ndim != dims:
        raise InteropError(f"{name}: got shape {a.shape}, expected {leaf.axes}")
    if leaf.part == "both":
        b_x, b_h = a if leaf.axes == "2,GH" else jnp.split(a, 2)
        yield from (("b_x", b_x), ("b_h", b_h))
    elif leaf.part == "w":
        yield from zip(("w_x", "w_h"), jnp.split(a, [a.shape[0] - H]), strict=True)
    elif leaf.axes.startswith("GH,") or leaf.part == "w_p":
        yield leaf.part, a.T
    else:
        yield leaf.part, a


def _check_widths(parts: Parts, H: int, P: int) -> None:
    D = next(iter(parts["w_x"].values())).shape[0]
    expected = {"w_x": (D, H), "w_h": (P, H), "b_x": (H,), "b_h": (H,), "w_c": (H,), "w_p": (H, P)}
    for part, gates in parts.items():
        for gate, a in gates.items():
            if a.shape != expected[part]:
                raise InteropError(f"{part}[{gate}]: got {a.shape}, expected {expected[part]}")
    if P != H and "w_p" not in parts:
        raise InteropError(
            f"w_h: got {P} rows for {H} units, expected as many, or a projection of {H} to {P}"
        )


def to_params(cell: str, parts: Parts) -> Params:
    """The neutral form as the params of one of our cells."""

    def wide(part: str, order: str = GATES[cell]) -> Any:
        if part not in parts:
            return None
        some = next(iter(parts[part].values()))
        each = [parts[part].get(g, jnp.zeros_like(some)) for g in order]
        return jnp.stack(each) if part == "w_c" else jnp.concatenate(each, axis=-1)

    w_x, w_h, b_x, b_h = wide("w_x"), wide("w_h"), wide("b_x"), wide("b_h")
    if cell.startswith("gru") and b_h is not None:
        n = parts["b_h"].get("n")
        rz = 2 * n.shape[-1] if n is not None else 0
        if cell == "gru_reset_after" and n is not None:
            b_x = jnp.zeros_like(b_h) if b_x is None else b_x
            return GRUParams(w_x, w_h, b_x.at[:rz].add(b_h[:rz]), n)
    b = b_x if b_h is None else b_h if b_x is None else b_x + b_h
    if cell == "elman":
        return ElmanParams(w_x, w_h, b)
    if cell == "lstm":
        return LSTMParams(w_x, w_h, b, wide("w_c", PEEPHOLES), parts.get("w_p", {}).get(""))
    b_n = None if b is None or cell == "gru" else jnp.zeros(w_h.shape[0], b.dtype)
    return GRUParams(w_x, w_h, b, b_n)


def from_params(cell: str, params: Params) -> Parts:
    """The params of one of our cells in the neutral form."""
    kind: Any = {"elman": ElmanParams, "lstm": LSTMParams}.get(cell, GRUParams)
    if not isinstance(params, kind):
        raise InteropError(f"params: got {type(params).__name__}, expected {kind.__name__}")
    if cell == "gru" and params.b_n is not None:
        raise InteropError("params.b_n: got a bias inside the reset gate, which `gru` has not")
    gates = GATES[cell]
    parts: Parts = {}
    for part, a in (("w_x", params.w_x), ("w_h", params.w_h), ("b_x", params.b)):
        if a is not None:
            cut = jnp.split(jnp.asarray(a), len(gates), axis=-1)
            parts[part] = dict(zip(gates, cut, strict=True))
    if getattr(params, "w_c", None) is not None:
        parts["w_c"] = dict(zip(PEEPHOLES, params.w_c, strict=True))
    if getattr(params, "w_p", None) is not None:
        parts["w_p"] = {"": params.w_p}
    if getattr(params, "b_n", None) is not None:
        parts["b_h"] = {"n": params.b_n}
    return parts


def _write(form: Format, parts: Parts, target: str) -> dict[str, Any]:
    parts = {part: dict(gates) for part, gates in parts.items()}
    _place(form, parts, target)
    for gate, value in form.added.items():
        parts["b_x"][gate] = parts["b_x"][gate] - value
    for gate in form.negated:
        for part in ("w_x", "w_h", "b_x", "b_h"):
            if part in parts and gate in parts[part]:
                parts[part][gate] = -parts[part][gate]
    flat: dict[str, Any] = {}
    for name, leaf, gates in _arrays(form):
        if {"w": "w_x", "both": "b_x"}.get(leaf.part, leaf.part) not in parts:
            continue
        order = form.peepholes if leaf.part == "w_c" else gates

        def wide(part: str, order: str = order) -> Array:
            return jnp.concatenate([parts[part][g] for g in order], axis=-1)

        if leaf.part == "w_p":
            flat[name] = parts["w_p"][""].T
        elif leaf.part == "both":
            both = [wide("b_x"), wide("b_h")]
            flat[name] = jnp.stack(both) if leaf.axes == "2,GH" else jnp.concatenate(both)
        elif leaf.part == "w":
            flat[name] = jnp.concatenate([wide("w_x"), wide("w_h")])
        elif leaf.axes.startswith("GH,"):
            flat[name] = wide(leaf.part).T
        else:
            flat[name] = wide(leaf.part)
    return flat


def _place(form: Format, parts: Parts, target: str) -> None:
    """Moves each bias to where there is a place for it; what has none raises."""
    places: dict[str, str] = {}
    for _, held, gates in _arrays(form):
        for part in {"both": ("b_x", "b_h")}.get(held.part, (held.part,)):
            places[part] = places.get(part, "") + gates
    if "w_c" in parts and "w_c" not in places:
        raise InteropError(f"params.w_c: got peepholes, which {target} has not")
    if "w_p" in parts and "w_p" not in places:
        raise InteropError(f"params.w_p: got a projection, which {target} has not")
    if "b_x" not in parts and "b_h" not in parts and not form.biased:
        return
    like = parts["w_h"]
    ours = {
        part: {
            g: parts.get(part, {}).get(g, jnp.zeros(a.shape[-1], a.dtype)) for g, a in like.items()
        }
        for part in ("b_x", "b_h")
    }
    for gate in like:
        inside = form.cell == "gru_reset_after" and gate == "n"
        for part, other in (("b_h", "b_x"), ("b_x", "b_h")):
            if gate in places.get(part, "") or (
                part == "b_x" and gate not in places.get(other, "")
            ):
                continue
            value = ours[part][gate]
            if inside and bool(np.any(np.asarray(value) != 0)):
                leaf = "params.b_n" if part == "b_h" else "params.b"
                raise InteropError(f"{leaf}: got a bias of n, for which {target} has no place")
            if not inside:
                ours[other][gate] = ours[other][gate] + value
    parts |= ours
