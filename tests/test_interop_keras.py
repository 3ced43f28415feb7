"""Keras: objects, .keras and .h5 files in, a model out; outputs, states and gradients."""

import zipfile
from collections.abc import Callable, Iterator
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

T, D, H = 5, 3, 4
# Of Keras itself, in get_weights and in the conversion of its outputs.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    pytest.importorskip("keras")
    pytest.importorskip("h5py")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def layers() -> Any:
    return import_module("keras").layers


def bi(layer: Any, **options: Any) -> Any:
    return layers().Bidirectional(layer, **options)


MODELS: dict[str, Callable[[Any], list[Any]]] = {
    "SimpleRNN": lambda k: [k.SimpleRNN(H, return_sequences=True)],
    "SimpleRNN relu": lambda k: [k.SimpleRNN(H, activation="relu", return_sequences=True)],
    "LSTM": lambda k: [k.LSTM(H, return_sequences=True)],
    "GRU reset before": lambda k: [k.GRU(H, reset_after=False, return_sequences=True)],
    "GRU reset after": lambda k: [k.GRU(H, return_sequences=True)],
    "bias-free": lambda k: [
        k.GRU(H, use_bias=False, return_sequences=True),
        k.GRU(H, use_bias=False, reset_after=False, return_sequences=True),
        k.LSTM(H, use_bias=False, return_sequences=True),
    ],
    "Bidirectional": lambda k: [
        bi(k.GRU(H, return_sequences=True)),
        bi(k.LSTM(5, return_sequences=True)),
    ],
    "two halves": lambda k: [
        bi(
            k.LSTM(H, return_sequences=True),
            backward_layer=k.LSTM(H, return_sequences=True, go_backwards=True),
        )
    ],
    "stacked cells": lambda k: [
        k.RNN(
            [k.LSTMCell(5), k.GRUCell(6), k.LSTMCell(H), k.SimpleRNNCell(2, use_bias=False)],
            return_sequences=True,
        )
    ],
    "one cell": lambda k: [k.RNN(k.GRUCell(H), return_sequences=True)],
    "stacked layers": lambda k: [
        k.Masking(),
        k.LSTM(5, return_sequences=True),
        k.Dropout(0.5),
        k.SimpleRNN(H, return_sequences=True),
    ],
}


def built(name: str) -> Any:
    """A model with random weights, biases too."""
    keras = import_module("keras")
    model = keras.Sequential([keras.Input((None, D)), *MODELS[name](keras.layers)])
    rng = np.random.default_rng(2)
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def run(imported: interop.Imported, xs: Any) -> Any:
    if isinstance(imported.net, rnn.TwoWay):
        return imported.net.run(imported.params, None, xs)
    return rnn.unroll(imported.net, imported.params, None, xs)


@pytest.mark.parametrize("name", MODELS)
def test_equals_keras(name: str, tmp_path: Path) -> None:
    """From the object, a .keras file and a .h5 file; and there and back."""
    model = built(name)
    xs = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)
    expected = np.asarray(model(xs[None]))[0]
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    for source in (model, tmp_path / "model.keras", str(tmp_path / "model.h5")):
        imported = interop.from_keras(source)
        np.testing.assert_allclose(run(imported, jnp.asarray(xs))[1], expected, atol=1e-5)
    back = interop.to_keras(imported.cells, imported.params)
    np.testing.assert_allclose(np.asarray(back(xs[None]))[0], expected, atol=1e-5)
    again = interop.from_keras(back)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(imported.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    back.save(tmp_path / "back.keras")


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU reset before", "GRU reset after"])
def test_states_and_gradients(name: str) -> None:
    """The gradients come back in the layout of Keras."""
    layer = built(name).layers[-1]
    layer.return_state = True
    rng = np.random.default_rng(0)
    xs, weight = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((T, D), (T, H)))
    key = {"GRU reset before": "GRU", "GRU reset after": "GRU reset_after"}.get(name, name)
    arrays = [jnp.asarray(w) for w in layer.get_weights()]
    rest = [v.value for v in layer.non_trainable_variables]

    def theirs(arrays: Any) -> Any:
        (ys, *states), _ = layer.stateless_call(arrays, rest, xs[None])
        return (weight * ys[0]).sum(), [s[0] for s in states]

    def ours(arrays: Any) -> Any:
        named = dict(zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=True))
        params = interop.load("keras", key, named)
        cell = interop.from_keras(layer).cells[0]
        state, ys = rnn.unroll(cell, params, None, xs)
        return (weight * ys).sum(), jax.tree.leaves(state)

    got, expected = (jax.grad(f, has_aux=True)(arrays) for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_layer_of_a_model(tmp_path: Path) -> None:
    keras = import_module("keras")
    k = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, D)),
            k.GRU(H, return_sequences=True, name="first"),
            k.Dense(3),
            k.GRU(H, return_sequences=True, name="second"),
        ]
    )
    model.save(tmp_path / "model.keras")
    for source in (model, tmp_path / "model.keras"):
        with pytest.raises(InteropError, match=r"got Dense 'dense.*' between recurrent layers"):
            interop.from_keras(source)
        found = interop.from_keras(source, "second").params[0]
        np.testing.assert_array_equal(found.w_x, interop.from_keras(model.layers[-1]).params[0].w_x)
        with pytest.raises(InteropError, match=r"name: got 'third', expected one of .*first"):
            interop.from_keras(source, "third")


def activated(f: str, gate: str = "sigmoid") -> Callable[[], Any]:
    return lambda: build(layers().LSTM(H, activation=f, recurrent_activation=gate))


def build(layer: Any, shape: Any = (None, T, D)) -> Any:
    layer.build(shape)
    return layer


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "activation": (activated("relu"), "got the activations 'relu' and 'sigmoid'"),
    "gates": (activated("tanh", "hard_sigmoid"), "'tanh' and 'hard_sigmoid', expected"),
    "of an Elman net": (
        lambda: build(layers().SimpleRNN(H, activation="gelu")),
        "got activation 'gelu', expected one of tanh, relu",
    ),
    "go_backwards": (lambda: build(layers().GRU(H, go_backwards=True)), "got go_backwards"),
    "merge": (
        lambda: build(bi(layers().GRU(H), merge_mode="sum")),
        "got merge_mode='sum', expected 'concat'",
    ),
    "not built": (lambda: layers().LSTM(H), "which|got a layer that is not built"),
    "convolution": (
        lambda: build(layers().ConvLSTM1D(2, 3), (None, T, 8, D)),
        "layer: got ConvLSTM1D, expected SimpleRNN",
    ),
    "no layer": (lambda: 3, "layer: got int, expected a layer or a model"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_our_cells_do_not_do(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InteropError, match=message):
        interop.from_keras(make())


def test_files_that_are_no_models(tmp_path: Path) -> None:
    model = built("LSTM")
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(InteropError, match="which has weights and no model"):
        interop.from_keras(tmp_path / "model.weights.h5")
    (tmp_path / "text.keras").write_text("no")
    with pytest.raises(InteropError, match=r"expected a \.keras file or a \.h5 file"):
        interop.from_keras(tmp_path / "text.keras")
    with pytest.raises(InteropError, match="which is no file"):
        interop.from_keras(tmp_path / "missing.keras")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme", "no")
    with pytest.raises(InteropError, match=r"holds no model of Keras"):
        interop.from_keras(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (rnn.lstm(D, H, peepholes=True), "params.w_c: got peepholes, which keras LSTM has not"),
        (rnn.lstm(D, H, projection_size=2), "params.w_p: got a projection"),
        (rnn.lstm(D, H, dtype=jnp.bfloat16), "params.w_x: got bfloat16, and Keras computes in"),
        (rnn.residual(rnn.gru(D, D)), "does something that its params do not show"),
        (rnn.elman(D, H, activation=jnp.sin), "does something that its params do not show"),
    ],
)
def test_what_keras_does_not_do(cell: rnn.Cell, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        interop.to_keras(cell, cell.init(jax.random.key(0)))
