"""ONNX: its RNN, LSTM and GRU nodes in, and whole nets out as a file that any runtime reads."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Array, Cell, Params
from rnn_jax.cells import LSTMState
from rnn_jax.combine import TwoWay
from rnn_jax.interop._extras import installed, needs
from rnn_jax.interop._formats import InteropError, dump, load
from rnn_jax.interop._net import (
    ACTIVATIONS,
    Described,
    Imported,
    check_same,
    describe,
    identify,
    make,
    net_of,
    random_inputs,
    run_net,
    single_precision,
)

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


class _Function(NamedTuple):
    make: Callable[..., Any]  # (alpha, beta) -> f
    alpha: float | None = None  # the default of the standard; None: it has to be given
    beta: float | None = None
    parameters: int = 0  # how many it takes


FUNCTIONS: dict[str, _Function] = {
    "Tanh": _Function(lambda a, b: jnp.tanh),
    "Sigmoid": _Function(lambda a, b: jax.nn.sigmoid),
    "Relu": _Function(lambda a, b: jax.nn.relu),
    "Softplus": _Function(lambda a, b: jax.nn.softplus),
    "Softsign": _Function(lambda a, b: jax.nn.soft_sign),
    "LeakyRelu": _Function(lambda a, b: lambda x: jnp.where(x >= 0, x, a * x), 0.01, None, 1),
    "Elu": _Function(lambda a, b: lambda x: jnp.where(x > 0, x, a * jnp.expm1(x)), 1.0, None, 1),
    "ThresholdedRelu": _Function(lambda a, b: lambda x: jnp.where(x > a, x, 0), None, None, 1),
    "HardSigmoid": _Function(lambda a, b: lambda x: jnp.clip(a * x + b, 0, 1), 0.2, 0.5, 2),
    "Affine": _Function(lambda a, b: lambda x: a * x + b, None, None, 2),
    "ScaledTanh": _Function(lambda a, b: lambda x: a * jnp.tanh(b * x), None, None, 2),
}
# Ours -> the name and the attributes of theirs, for `elman` and for the output layer.
WRITTEN: dict[str, tuple[str, dict[str, list[float]]]] = {
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}),
    "soft_sign": ("Softsign", {}),
    "elu": ("Elu", {"activation_alpha": [1.0]}),
    "leaky_relu": ("LeakyRelu", {"activation_alpha": [0.01]}),
    "identity": ("Affine", {"activation_alpha": [1.0], "activation_beta": [0.0]}),
}
# The operators after the output layer, by the names of `Described`.
OPERATORS = {
    "identity": "",
    "tanh": "Tanh",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
}


def from_onnx(model_or_path: Any, node: str | None = None) -> Imported:
    """The recurrent layers of an ONNX model: RNN, LSTM and GRU nodes.

    Activations, clipping and coupled gates that our cells do not have make a cell of its own, which
    every other function takes as any cell. ``layout`` does not matter: it is the order of a batch.

    Args:
      model_or_path: an `onnx.ModelProto`, or the path of one.
      node: the name of one node, or of its first output. Without it, all recurrent nodes are
        taken, in their order, the output of each the input of the next.

    Returns:
      An `Imported`; `reverse` where the nodes run from the last step.

    Raises:
      InteropError: no such node; weights that are no constants; an initial state other than zero;
        Affine, ScaledTanh or ThresholdedRelu without their alpha, for which runtimes differ.
      ImportError: the extra `interop` is not installed.
    """
    needs("onnx", "interop")
    onnx: Any = import_module("onnx")

    model = model_or_path
    if isinstance(model, str | Path):
        if not Path(model).is_file():
            raise InteropError(f"path: got {model}, which is no file")
        model = onnx.load(str(model))
    nodes = [n for n in model.graph.node if n.op_type in GATES]
    if node is not None:
        nodes = [n for n in nodes if node in (n.name, n.output[0])]
    if not nodes:
        names = [n.name or n.output[0] for n in model.graph.node if n.op_type in GATES]
        raise InteropError(f"node: got {node!r}, expected one of {', '.join(names) or 'none'}")
    constants = _constants(onnx, model.graph)
    cells, params, ways = [], [], set()
    for n in nodes:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        direction = options.get("direction", b"forward").decode()
        count = 2 if direction == "bidirectional" else 1
        pair = [_direction(n, options, constants, k, count) for k in range(count)]
        ways.add(direction)
        cells.append(pair[0][0] if count == 1 else (pair[0][0], pair[1][0]))
        params.append(pair[0][1] if count == 1 else (pair[0][1], pair[1][1]))
    if "reverse" in ways and len(ways) > 1:
        raise InteropError("node: got layers of several directions; take them one at a time")
    return Imported(tuple(cells), tuple(params), "reverse" in ways)


def _constants(onnx: Any, graph: Any) -> dict[str, Any]:
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for n in graph.node:
        if n.op_type == "Constant":
            for a in n.attribute:
                if a.name == "value":
                    found[n.output[0]] = onnx.numpy_helper.to_array(a.t)
    return found


def _direction(
    node: Any, options: dict[str, Any], constants: dict[str, Any], k: int, count: int
) -> tuple[Cell, Params]:
    kind, where = node.op_type, repr(node.name or node.output[0])
    inputs = dict(
        zip(
            ("X", "W", "R", "B", "lengths", "initial_h", "initial_c", "P"), node.input, strict=False
        )
    )
    weights: dict[str, Any] = {}
    for leaf in ("W", "R", "B", "P"):
        if name := inputs.get(leaf):
            if name not in constants:
                raise InteropError(f"{where}: got {leaf} as an input, expected a constant")
            weights[leaf] = constants[name][k]
    for leaf in ("initial_h", "initial_c"):
        name = inputs.get(leaf)
        if name in constants and np.any(constants[name] != 0):
            raise InteropError(f"{where}: got an {leaf} other than zero; pass it as the state")
    after = kind == "GRU" and options.get("linear_before_reset", 0)
    layer = "GRU linear_before_reset" if after else kind
    params = load("onnx", layer, weights)
    names = [a.decode() for a in options.get("activations", [])]
    names = names or DEFAULTS[kind] * count
    functions = _functions(names, options, where)
    each = len(DEFAULTS[kind])
    functions = functions[k * each : (k + 1) * each]
    names = names[k * each : (k + 1) * each]
    clip, coupled = options.get("clip", 0.0), options.get("input_forget", 0)
    plain = names == DEFAULTS[kind] and not clip and not coupled
    ours = {"RNN": "elman", "LSTM": "lstm"}.get(kind, "gru_reset_after" if after else "gru")
    base = make(ours, params)
    if plain:
        return base, params
    step = _step(kind, bool(after), functions, clip, bool(coupled))
    project = _biased if kind != "GRU" else base.project
    return base._replace(project=project, step=step), params


def _functions(names: list[str], options: dict[str, Any], where: str) -> list[Any]:
    """The activations with their parameters, which are consumed in order."""
    alphas = list(options.get("activation_alpha", []))
    betas = list(options.get("activation_beta", []))
    made = []
    for name in names:
        known = {n.lower(): n for n in FUNCTIONS}
        if name.lower() not in known:
            raise InteropError(f"{where}: got activation {name!r}, expected {', '.join(FUNCTIONS)}")
        function = FUNCTIONS[known[name.lower()]]
        a, b = function.alpha, function.beta
        if function.parameters > 0 and alphas:
            a = alphas.pop(0)
        if function.parameters > 1 and betas:
            b = betas.pop(0)
        if (function.parameters > 0 and a is None) or (function.parameters > 1 and b is None):
            raise InteropError(
                f"{where}: got {name} without activation_alpha or activation_beta; the standard "
                "and the runtimes differ in what that means"
            )
        made.append(function.make(a, b))
    return made


def _biased(params: Params, x: Array) -> Array:
    z = x @ params.w_x
    return z if params.b is None else z + params.b


def _step(kind: str, after: bool, functions: Sequence[Any], clip: float, coupled: bool) -> Any:
    """A step with other activations, clipped where they are applied, as the standard has it."""

    def bounded(a: Array) -> Array:
        return jnp.clip(a, -clip, clip) if clip else a

    def rnn(params: Params, h: Array, z: Array) -> Any:
        h = functions[0](bounded(z + h @ params.w_h))
        return h, h

    def lstm(params: Params, state: LSTMState, z: Array) -> Any:
        f_gate, f_cell, f_out = functions
        h, c = state
        i, f, g, o = jnp.split(z + h @ params.w_h, 4)
        if params.w_c is not None:
            i, f = i + params.w_c[0] * c, f + params.w_c[1] * c
        i, f = f_gate(bounded(i)), f_gate(bounded(f))
        c = (1 - i if coupled else f) * c + i * f_cell(bounded(g))
        if params.w_c is not None:
            o = o + params.w_c[2] * c
        h = f_gate(bounded(o)) * f_out(c)  # runtimes do not clip the memory
        return LSTMState(h, c), h

    def gru(params: Params, h: Array, a: tuple[Array, Array]) -> Any:
        f_gate, f_new = functions
        a_rz, a_n = a
        H = h.shape[0]
        r, z = map(f_gate, map(bounded, jnp.split(a_rz + h @ params.w_h[:, : 2 * H], 2)))
        if after:
            u = h @ params.w_h[:, 2 * H :]
            u = r * (u if params.b_n is None else u + params.b_n)
        else:
            u = (r * h) @ params.w_h[:, 2 * H :]
        h = z * h + (1 - z) * f_new(bounded(a_n + u))
        return h, h

    return {"RNN": rnn, "LSTM": lstm, "GRU": gru}[kind]


def to_onnx(
    cells: Any, params: Any, path: str | Path | None = None, *, lengths: bool = False
) -> Any:
    """A net as an ONNX model with native RNN, LSTM and GRU nodes, for any runtime.

    The model reads ``xs`` [B, T, D] float32 (tokens [B, T] int64 for a net that reads tokens) and,
    with `lengths`, ``lengths`` [B] int32; B and T are free. It gives ``ys`` [B, T, O], zero in the
    padding as in `unroll`, and the last states of each layer, ``h0``, ``c0``, ... [directions, B,
    H].

    Args:
      cells: a cell, a `stack`, a `two_way` net, with `embed`, `one_hot` and `readout` around, or a
        list with a cell or a pair of cells a layer.
      params: what goes with it.
      path: where it is written; a file that is there is replaced. None for nowhere.
      lengths: whether sequences are padded.

    Returns:
      The `onnx.ModelProto`, after it was compared with the net on random input: run in
      onnxruntime where that is installed, and else read back by `from_onnx`.

    Raises:
      InteropError: ONNX has no layer that does the same: layer norm, a projection, a residual
        connection; params that are not float32. Nothing is written then.
      ImportError: the extra `interop` is not installed.
    """
    needs("onnx", "interop")
    onnx: Any = import_module("onnx")

    single_precision(params, "ONNX")
    net = describe(cells, params)
    graph, last = _Graph(onnx), net.layers[-1][1]
    D = net.layers[0][1][0].w_x.shape[0]
    if net.tokens is None:
        x = graph.input("xs", ["B", "T", D], "FLOAT")
    else:
        x = graph.input("xs", ["B", "T"], "INT64")
        x = graph.add("Gather", [graph.constant(net.tokens), x], axis=0)
    sizes = graph.input("lengths", ["B"], "INT32") if lengths else ""
    x = graph.add("Transpose", [x], perm=[1, 0, 2])
    states: list[tuple[str, list[Any]]] = []
    for k, (directions, all_params) in enumerate(net.layers):
        x, of_layer = _layer(graph, x, sizes, k, directions, all_params)
        states += of_layer
    x = graph.add("Transpose", [x], perm=[1, 0, 2])
    O = sum(p.w_h.shape[0] for p in last)
    if net.output is not None:
        tied: Any = net.tokens
        w_y = tied.T if net.output.w_y is None else net.output.w_y
        O = w_y.shape[1]
        x = graph.add("MatMul", [x, graph.constant(w_y)])
        if net.output.b_y is not None:
            x = graph.add("Add", [x, graph.constant(net.output.b_y)])
        if operator := OPERATORS[net.activation]:
            x = graph.add(operator, [x], **({"axis": -1} if "Softmax" in operator else {}))
        if lengths:
            x = _masked(graph, x, sizes)
    model = graph.model(x, ["B", "T", O], states)
    _check(onnx, model, cells, params, net, lengths)
    if path is not None:
        onnx.save(model, str(path))
    return model


class _Graph:
    """Nodes, constants and inputs of a model, with names as they are added."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, shape: list[Any], dtype: str) -> str:
        kind = getattr(self.onnx.TensorProto, dtype)
        self.inputs.append(self.onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, a: Any) -> str:
        name = f"constant_{len(self.constants)}"
        a = np.asarray(a)
        a = a.astype(np.float32) if a.dtype.kind == "f" else a
        self.constants.append(self.onnx.numpy_helper.from_array(a, name))
        return name

    def add(self, operator: str, inputs: list[str], *outputs: str, **options: Any) -> str:
        names = list(outputs) or [f"{operator.lower()}_{len(self.nodes)}"]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, names, **options))
        return names[0]

    def model(self, y: str, shape: list[Any], states: list[tuple[str, list[Any]]]) -> Any:
        helper, real = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.add("Identity", [y], "ys")
        outputs = [helper.make_tensor_value_info("ys", real, shape)]
        outputs += [helper.make_tensor_value_info(name, real, s) for name, s in states]
        graph = helper.make_graph(self.nodes, "rnn_jax", self.inputs, outputs, self.constants)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        self.onnx.checker.check_model(model, full_check=True)
        return model


def _layer(
    graph: _Graph, x: str, sizes: str, k: int, cells: list[Cell], params: list[Params]
) -> tuple[str, list[Any]]:
    found = [identify(c, p) for c, p in zip(cells, params, strict=True)]
    names = {name for name, _ in found}
    if len(names) > 1 or len({p.b is None for p in params}) > 1:
        raise InteropError(f"cells[{k}]: got directions of two kinds, expected one")
    name = names.pop()
    layer = {
        "elman": "RNN",
        "lstm": "LSTM",
        "gru": "GRU",
        "gru_reset_after": "GRU linear_before_reset",
    }[name]
    kind, H = layer.split()[0], params[0].w_x.shape[1] // GATES[layer.split()[0]]
    if any(p.w_h.shape != params[0].w_h.shape for p in params):
        raise InteropError(f"cells[{k}]: got directions of two sizes, expected one")
    options: dict[str, Any] = {"hidden_size": H}
    if len(cells) == 2:
        options["direction"] = "bidirectional"
    if name == "elman":
        of = {f: n for n, f in ACTIVATIONS.items()}
        chosen = [of[more["activation"]] for _, more in found]
        if any(n not in WRITTEN for n in chosen):
            raise InteropError(f"cells[{k}]: got the activation {chosen[0]}, which ONNX has not")
        options["activations"] = [WRITTEN[n][0] for n in chosen]
        for extra in ("activation_alpha", "activation_beta"):
            if values := [v for n in chosen for v in WRITTEN[n][1].get(extra, [])]:
                options[extra] = values
    if name == "gru_reset_after":
        options["linear_before_reset"] = 1
    arrays = [dump("onnx", layer, p) for p in params]

    def stacked(leaf: str) -> str:
        return graph.constant(jnp.stack([w[leaf] for w in arrays])) if leaf in arrays[0] else ""

    inputs = [x, stacked("W"), stacked("R"), stacked("B"), sizes]
    if kind == "LSTM" and "P" in arrays[0]:
        inputs += ["", "", stacked("P")]
    states = [f"h{k}", f"c{k}"] if kind == "LSTM" else [f"h{k}"]
    y = graph.add(kind, inputs, f"layer_{k}", *states, **options)
    y = graph.add("Transpose", [y], perm=[0, 2, 1, 3])  # [T, directions, B, H]
    y = graph.add("Reshape", [y, graph.constant(np.array([0, 0, -1]))])
    return y, [(s, [len(cells), "B", H]) for s in states]


def _masked(graph: _Graph, y: str, sizes: str) -> str:
    """Zero in the padding."""
    steps = graph.add("Shape", [y], start=1, end=2)
    steps = graph.add("Squeeze", [graph.add("Cast", [steps], to=6)])  # int32
    zero, one = (graph.constant(np.array(i, np.int32)) for i in (0, 1))
    index = graph.add("Range", [zero, steps, one])
    ends = graph.add("Unsqueeze", [sizes, graph.constant(np.array([1]))])
    valid = graph.add("Less", [index, ends])
    valid = graph.add("Unsqueeze", [valid, graph.constant(np.array([2]))])
    return graph.add("Where", [valid, y, graph.constant(np.zeros((), np.float32))])


def _check(onnx: Any, model: Any, cells: Any, params: Any, net: Described, lengths: bool) -> None:
    """Raises where what was written does not do what the net does, on random input."""
    net_ = cells if isinstance(cells, Cell | TwoWay) else net_of(cells)
    width = None if net.tokens is None else net.tokens.shape[0]
    xs = random_inputs(params, width, steps=6)
    if not installed("onnxruntime"):
        if net.tokens is None and net.output is None:
            check_same(cells, params, from_onnx(model), "ONNX")
        return
    onnxruntime: Any = import_module("onnxruntime")

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    batch = np.stack([np.asarray(xs)] * 2)
    feed = {"xs": batch.astype(np.int64 if net.tokens is not None else np.float32)}
    masks = np.ones(batch.shape[:2], bool)
    if lengths:
        feed["lengths"] = np.array([6, 4], np.int32)
        masks[1, 4:] = False
    got = session.run(["ys"], feed)[0]
    for x, mask, y in zip(batch, masks, got, strict=True):
        expected = run_net(net_, params, None, jnp.asarray(x), mask=jnp.asarray(mask))[1]
        apart = float(np.abs(np.asarray(expected, np.float64) - y).max())
        if not apart < 1e-4:
            raise InteropError(
                f"cells: the ONNX model differs from this net by {apart:.2g} on random input, so "
                "nothing is written; it has something that the nodes of ONNX have not"
            )
