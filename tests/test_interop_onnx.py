"""ONNX: the node tests of the standard, random nodes beside onnxruntime, and whole nets out."""

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax as rnn
from rnn_jax import interop
from rnn_jax.interop import InteropError

onnx: Any = pytest.importorskip("onnx")
T, B, D, H = 5, 3, 3, 4
LENGTHS = np.array([5, 2, 4], np.int32)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUTS = ("X", "W", "R", "B", "lengths", "initial_h", "initial_c", "P")


def model_of(kind: str, arrays: dict[str, Any], **options: Any) -> Any:
    """One node; X, the lengths and the initial states are inputs, the weights constants."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    names = [n if n in arrays else "" for n in INPUTS[: 8 if kind == "LSTM" else 6]]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h", "Y_c"] if kind == "LSTM" else ["Y", "Y_h"]
    node = helper.make_node(kind, names, outputs, name="net", **options)
    given = [n for n in ("X", "lengths", "initial_h", "initial_c") if n in arrays]
    types = {
        np.dtype(np.float32): onnx.TensorProto.FLOAT,
        np.dtype(np.int32): onnx.TensorProto.INT32,
    }
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, types[arrays[n].dtype], arrays[n].shape) for n in given],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [tensor(arrays[n], n) for n in ("W", "R", "B", "P") if n in arrays],
    )
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def ours(imported: interop.Imported, arrays: dict[str, Any], batch_first: bool = False) -> Any:
    """Y [T, directions, B, H] and the final states, as a node gives them."""
    xs = jnp.asarray(arrays["X"]).swapaxes(0, 1) if not batch_first else jnp.asarray(arrays["X"])
    (cells,), (params,) = imported.cells, imported.params
    both = isinstance(cells, tuple) and not isinstance(cells, rnn.Cell)
    ways = list(zip(cells, params, strict=True)) if both else [(cells, params)]
    results = []
    for k, (cell, p) in enumerate(ways):
        reverse = imported.reverse or k == 1

        def one(
            x: Any, n: Any, state: Any, cell: Any = cell, p: Any = p, back: Any = reverse
        ) -> Any:
            mask = None if n is None else rnn.length_mask(n, x.shape[0])
            return rnn.unroll(cell, p, state, x, mask=mask, reverse=back)

        states = None
        if "initial_h" in arrays:
            h, c = (arrays.get(n) for n in ("initial_h", "initial_c"))
            axis = (lambda a, k=k: a[:, k]) if batch_first else (lambda a, k=k: a[k])
            states = jnp.asarray(axis(h))
            if c is not None:
                states = rnn.LSTMState(states, jnp.asarray(axis(c)))
        lengths = jnp.asarray(arrays["lengths"]) if "lengths" in arrays else None
        results.append(jax.vmap(one)(xs, lengths, states))
    ys = jnp.stack([ys for _, ys in results])  # [directions, B, T, H]
    final = [jnp.stack(s) for s in zip(*(jax.tree.leaves(s) for s, _ in results), strict=True)]
    return ys.transpose(2, 0, 1, 3), final


# ---- the node tests of the standard


def official() -> list[Any]:
    loader = import_module("onnx.backend.test.loader")
    cases = loader.load_model_tests(kind="node")
    return [c for c in cases if c.model and c.model.graph.node[0].op_type in GATES]


@pytest.mark.filterwarnings("ignore")
def test_the_node_tests_of_the_standard() -> None:
    """All 18 of them; their weights are constant, so the random nodes below say more."""
    cases = official()
    assert len(cases) == 18
    for case in cases:
        model, ((inputs, outputs), *_) = case.model, case.data_sets
        node = model.graph.node[0]
        named = dict(zip((i.name for i in model.graph.input), inputs, strict=True))
        arrays = {
            role: np.asarray(named[name])
            for role, name in zip(INPUTS, node.input, strict=False)
            if name
        }
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        own = model_of(node.op_type, arrays, **options)
        batch_first = options.get("layout", 0) == 1
        ys, final = ours(interop.from_onnx(own), arrays, batch_first)
        expected = dict(zip((o.name for o in model.graph.output), outputs, strict=True))
        if "Y" in expected:
            y = ys.transpose(2, 0, 1, 3) if batch_first else ys
            np.testing.assert_allclose(y, expected["Y"], rtol=0, atol=1e-6, err_msg=case.name)
        h = final[0].swapaxes(0, 1) if batch_first else final[0]
        np.testing.assert_allclose(h, expected["Y_h"], rtol=0, atol=1e-6, err_msg=case.name)


# ---- random nodes, beside onnxruntime

ELEMENTWISE = {
    "Tanh": {},
    "Relu": {},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Elu": {"activation_alpha": [0.7]},
    "LeakyRelu": {"activation_alpha": [0.2]},
    "HardSigmoid": {"activation_alpha": [0.3], "activation_beta": [0.4]},
    "ThresholdedRelu": {"activation_alpha": [0.4]},
    "Affine": {"activation_alpha": [0.6], "activation_beta": [0.1]},
    "ScaledTanh": {"activation_alpha": [1.2], "activation_beta": [0.8]},
}


def nodes() -> dict[str, tuple[str, dict[str, Any], set[str]]]:
    """name -> kind, attributes, and which inputs there are."""
    found: dict[str, tuple[str, dict[str, Any], set[str]]] = {}
    ways = ("forward", "reverse", "bidirectional")
    inputs: list[set[str]] = [set(), {"B"}, {"B", "lengths"}, {"B", "lengths", "states"}]
    for kind, way, given in itertools.product(GATES, ways, inputs):
        found[f"{kind} {way} {'+'.join(sorted(given))}"] = kind, {"direction": way}, given
    for way in ways:
        found[f"GRU after {way}"] = (
            "GRU",
            {"direction": way, "linear_before_reset": 1},
            {"B", "lengths", "states"},
        )
        found[f"LSTM peepholes {way}"] = "LSTM", {"direction": way}, {"B", "P", "lengths", "states"}
    found["GRU after without bias"] = "GRU", {"linear_before_reset": 1}, set()
    for f, more in ELEMENTWISE.items():
        found[f"RNN {f}"] = "RNN", {"activations": [f], **more}, {"B"}
    for kind, way in itertools.product(GATES, ("forward", "bidirectional")):
        found[f"{kind} {way} clipped"] = kind, {"direction": way, "clip": 0.3}, {"B"}
    found |= {
        "LSTM coupled": ("LSTM", {"input_forget": 1}, {"B"}),
        "LSTM coupled, peepholes": ("LSTM", {"input_forget": 1}, {"B", "P"}),
        "LSTM hard": (
            "LSTM",
            {
                "activations": ["HardSigmoid", "Softsign", "Elu"],
                "activation_alpha": [0.3, 0.9],
                "activation_beta": [0.4],
            },
            {"B"},
        ),
        "GRU relu": ("GRU", {"activations": ["HardSigmoid", "Relu"]}, {"B"}),
        "GRU after, softplus": (
            "GRU",
            {"activations": ["Sigmoid", "Softplus"], "linear_before_reset": 1},
            {"B"},
        ),
        "RNN of two kinds": (
            "RNN",
            {
                "direction": "bidirectional",
                "activations": ["LeakyRelu", "Affine"],
                "activation_alpha": [0.2, 0.5],
                "activation_beta": [0.1],
            },
            {"B"},
        ),
    }
    return found


NODES = nodes()


def random_arrays(kind: str, options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    rng = np.random.default_rng(len(str(options)) + len(kind))
    ways = 2 if options.get("direction") == "bidirectional" else 1
    G = GATES[kind]
    shapes = {"X": (T, B, D), "W": (ways, G * H, D), "R": (ways, G * H, H)}
    if "B" in given:
        shapes["B"] = (ways, 2 * G * H)
    if "P" in given:
        shapes["P"] = (ways, 3 * H)
    if "states" in given:
        shapes["initial_h"] = (ways, B, H)
        if kind == "LSTM":
            shapes["initial_c"] = (ways, B, H)
    arrays: dict[str, Any] = {
        n: (0.7 * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()
    }
    return arrays | ({"lengths": LENGTHS} if "lengths" in given else {})


def session(model: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_default_logger_severity(4)
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    return runtime.InferenceSession(raw, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NODES)
def test_equals_onnxruntime(name: str) -> None:
    kind, options, given = NODES[name]
    arrays = random_arrays(kind, options, given)
    model = model_of(kind, arrays, hidden_size=H, **options)
    feed = {n: a for n, a in arrays.items() if n in ("X", "lengths", "initial_h", "initial_c")}
    expected = session(model).run(None, feed)
    ys, final = ours(interop.from_onnx(model), arrays)
    np.testing.assert_allclose(ys, expected[0], rtol=0, atol=1e-6)
    for a, b in zip(final, expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_there_are_sixty_random_nodes() -> None:
    assert len(NODES) >= 60


# ---- whole nets out


def two(make: Callable[..., rnn.Cell], D: int, **options: Any) -> Any:
    return rnn.two_way(make(D, H, **options), make(D, H, **options))


NETS: dict[str, Any] = {
    "elman": rnn.elman(D, H),
    "elman relu": rnn.elman(D, H, activation=jax.nn.relu),
    "elman identity": rnn.elman(D, H, activation=jax.nn.identity),
    "elman elu": rnn.elman(D, H, activation=jax.nn.elu, bias=False),
    "lstm": rnn.lstm(D, H),
    "lstm without bias": rnn.lstm(D, H, bias=False),
    "lstm peepholes": rnn.lstm(D, H, peepholes=True),
    "gru": rnn.gru(D, H),
    "gru without bias": rnn.gru(D, H, bias=False),
    "gru_reset_after": rnn.gru_reset_after(D, H),
    "gru_reset_after without bias": rnn.gru_reset_after(D, H, bias=False),
    "stack": rnn.stack([rnn.lstm(D, 6), rnn.gru(6, H), rnn.elman(H, 2)]),
    "stack of one": rnn.readout(rnn.stack([rnn.gru(D, H)]), 2),
    "one_hot, a stack of one": rnn.readout(rnn.one_hot(rnn.stack([rnn.gru(6, H)]), 6), 6),
    "stack of one, both ways": rnn.stack([two(rnn.lstm, D)]),
    "readout": rnn.readout(rnn.lstm(D, H), 2),
    "readout softmax": rnn.readout(rnn.gru(D, H), 3, activation=jax.nn.softmax),
    "readout tanh without bias": rnn.readout(rnn.gru(D, H), 3, activation=jnp.tanh, bias=False),
    "embed": rnn.embed(rnn.gru(D, H), 7, D),
    "tagger": rnn.readout(rnn.embed(rnn.stack([rnn.lstm(D, 6), rnn.lstm(6, H)]), 9, D), 5),
    "one_hot": rnn.one_hot(rnn.lstm(6, H), 6),
    "two ways": two(rnn.gru, D),
    "two ways, lstm": two(rnn.lstm, D, peepholes=True),
    "deep bidirectional": rnn.stack([two(rnn.lstm, D), two(rnn.lstm, 2 * H)]),
    "bidirectional, then one way": rnn.stack([two(rnn.gru, D), two(rnn.gru_reset_after, 2 * H)]),
    "tagger of two ways": rnn.readout(
        rnn.embed(rnn.stack([two(rnn.gru, D), two(rnn.gru, 2 * H)]), 9, D), 4
    ),
    "elman two ways": rnn.readout(two(rnn.elman, D, activation=jax.nn.relu), 2),
}


def test_there_are_twenty_nets() -> None:
    assert len(NETS) >= 20


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", NETS)
def test_a_net_runs_in_onnxruntime(name: str, lengths: bool, tmp_path: Path) -> None:
    """Written once, for any batch and any length; outputs and final states."""
    net = NETS[name]
    params = jax.tree.map(
        lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape),
        net.init(jax.random.key(0)),
    )
    path = tmp_path / "net.onnx"
    interop.to_onnx(net, params, path, lengths=lengths)
    run = session(path.read_bytes()).run
    rng = np.random.default_rng(0)
    tokens = "embed" in name or "one_hot" in name or "tagger" in name
    for batch, steps in ((3, 5), (1, 8)):
        xs = rng.normal(size=(batch, steps, D)).astype(np.float32)
        if tokens:
            xs = rng.integers(6, size=(batch, steps))
        feed: dict[str, Any] = {"xs": xs}
        sizes = None
        if lengths:
            sizes = rng.integers(1, steps + 1, size=batch).astype(np.int32)
            feed["lengths"] = sizes
        got, *states = run(None, feed)

        def one(x: Any, n: Any, steps: int = steps) -> Any:
            mask = None if n is None else rnn.length_mask(n, steps)
            if isinstance(net, rnn.TwoWay):
                return net.run(params, None, x, mask=mask)
            return rnn.unroll(net, params, None, x, mask=mask)

        final, expected = jax.vmap(one)(jnp.asarray(xs, jnp.int32 if tokens else None), sizes)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        flat = jax.tree.leaves(final)
        assert sum(s.shape[0] for s in states) == len(flat)
        np.testing.assert_allclose(states[0][0], flat[0], rtol=0, atol=1e-5)


def rebuilt(name: str, **more: Any) -> tuple[Any, Any]:
    kind, options, given = NODES[name]
    arrays = random_arrays(kind, options, given)
    options = {k: v for k, v in (options | more).items() if v}
    return kind, model_of(kind, arrays, hidden_size=H, **options)


def written(cell: Any) -> Any:
    return interop.to_onnx(cell, cell.init(jax.random.key(0)))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no such node": (lambda: interop.from_onnx(rebuilt("RNN Tanh")[1], "other"), "got 'other'"),
    "an activation without alpha": (
        lambda: interop.from_onnx(rebuilt("RNN Affine", activation_alpha=[])[1]),
        "got Affine without activation_alpha",
    ),
    "an unknown activation": (
        lambda: interop.from_onnx(rebuilt("RNN Tanh", activations=["Sin"])[1]),
        "got activation 'Sin', expected Tanh, Sigmoid",
    ),
    "no file": (lambda: interop.from_onnx("nowhere.onnx"), "which is no file"),
    "layer norm": (lambda: written(rnn.layer_norm_gru(D, H)), "params: got LayerNormGRUParams"),
    "a residual": (lambda: written(rnn.residual(rnn.lstm(D, D))), "that its params do not show"),
    "a projection": (lambda: written(rnn.lstm(D, H, projection_size=2)), "got a projection"),
    "dropout": (
        lambda: written(rnn.dropout(rnn.lstm(D, H), 0.5, jax.random.key(1))),
        "that its params do not show",
    ),
    "an own activation": (
        lambda: written(rnn.readout(rnn.lstm(D, H), 2, activation=jnp.sin)),
        "that its params do not show",
    ),
    "half precision": (
        lambda: written(rnn.lstm(D, H, dtype=jnp.bfloat16)),
        "params.w_x: got bfloat16, and ONNX computes in float32; cast first",
    ),
    "two sizes": (
        lambda: written(rnn.two_way(rnn.lstm(D, 3), rnn.lstm(D, 4))),
        "got directions of two sizes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_place(name: str, tmp_path: Path) -> None:
    run, message = BAD[name]
    with pytest.raises(InteropError, match=message):
        run()


def test_weights_are_constants_and_states_are_given() -> None:
    kind, options, given = NODES["LSTM forward B+lengths+states"]
    arrays = random_arrays(kind, options, given)
    model = model_of(kind, arrays, hidden_size=H)
    model.graph.initializer.append(onnx.numpy_helper.from_array(arrays["initial_h"], "initial_h"))
    with pytest.raises(InteropError, match="got an initial_h other than zero"):
        interop.from_onnx(model)
    del model.graph.initializer[0]
    with pytest.raises(InteropError, match="got W as an input, expected a constant"):
        interop.from_onnx(model)


def test_nothing_is_written_where_it_would_be_wrong(tmp_path: Path) -> None:
    net = rnn.residual(rnn.gru(D, D))
    with pytest.raises(InteropError):
        interop.to_onnx(net, net.init(jax.random.key(0)), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
