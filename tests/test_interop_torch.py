"""PyTorch, safetensors and cuDNN: outputs, states, gradients in their layout, and the way back."""

from collections.abc import Iterator
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

pytest.importorskip("torch")
torch: Any = import_module("torch")
B, T, D, H = 3, 5, 3, 4
LENGTHS = np.array([T, 2, 4])
KINDS = ("RNN tanh", "RNN relu", "LSTM", "GRU")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def module_of(kind: str, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    name, *nonlinearity = kind.split()
    if nonlinearity:
        options["nonlinearity"] = nonlinearity[0]
    return getattr(torch.nn, name)(D, H, batch_first=True, dtype=torch.float64, **options)


def theirs(module: Any, xs: Any, lengths: Any = None) -> tuple[Any, Any]:
    """ys, and the final states [layers * directions, B, H] of h, and of c."""
    pack = torch.nn.utils.rnn.pack_padded_sequence
    given = xs
    if lengths is not None:
        given = pack(xs, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    ys, state = module(given)
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True, total_length=T)
    return ys, state if isinstance(state, tuple) else (state,)


def ours(imported: interop.Imported, params: Any, xs: Any, lengths: Any = None) -> tuple[Any, Any]:
    def one(x: Any, n: Any) -> Any:
        mask = None if n is None else rnn.length_mask(n, T)
        if isinstance(imported.net, rnn.TwoWay):
            return imported.net.run(params, None, x, mask=mask)
        return rnn.unroll(imported.net, params, None, x, mask=mask)

    state, ys = jax.vmap(one)(xs, lengths)
    flat = [s for layer in state for s in (layer if is_pair(layer) else (layer,))]
    if hasattr(flat[0], "c"):
        return ys, (jnp.stack([s.h for s in flat]), jnp.stack([s.c for s in flat]))
    return ys, (jnp.stack(flat),)


def is_pair(layer: Any) -> bool:
    return isinstance(layer, tuple) and not hasattr(layer, "_fields")


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_pytorch(kind: str, layers: int, both: bool, bias: bool, padded: bool) -> None:
    """Values to 1e-10, gradients by every array of theirs to 1e-9, and back to the bit."""
    module = module_of(kind, num_layers=layers, bidirectional=both, bias=bias)
    xs = np.random.default_rng(0).normal(size=(B, T, D))
    lengths = LENGTHS if padded else None
    ys, states = theirs(module, torch.tensor(xs), lengths)
    weight = torch.cos(torch.arange(ys.numel(), dtype=torch.float64)).reshape(ys.shape)
    (weight * ys).sum().backward()

    def total(arrays: Any) -> Any:
        imported = interop.from_torch(arrays, activation=activation)
        out = ours(imported, imported.params, jnp.asarray(xs), lengths)
        return (jnp.asarray(weight.numpy()) * out[0]).sum(), out

    activation = kind.split()[1] if " " in kind else None
    arrays = {name: jnp.asarray(a.detach().numpy()) for name, a in module.named_parameters()}
    grads, (got_ys, got_states) = jax.jit(jax.grad(total, has_aux=True))(arrays)
    np.testing.assert_allclose(got_ys, ys.detach(), rtol=0, atol=1e-10)
    for got, expected in zip(got_states, states, strict=True):
        np.testing.assert_allclose(got, expected.detach(), rtol=0, atol=1e-10)
    for name, a in module.named_parameters():
        np.testing.assert_allclose(grads[name], a.grad, rtol=1e-9, atol=1e-9, err_msg=name)
    back_and_forth(interop.from_torch(module), module)


def back_and_forth(imported: interop.Imported, module: Any) -> None:
    """Ours to theirs to ours, to the bit; their module takes all of it."""
    written = interop.to_torch(imported.cells, imported.params)
    module.load_state_dict(written, strict=True)
    again = interop.from_torch(module)
    assert jax.tree.structure(again.params) == jax.tree.structure(imported.params)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(imported.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
def test_projections(layers: int, both: bool) -> None:
    module = module_of("LSTM", num_layers=layers, bidirectional=both, proj_size=2)
    xs = np.random.default_rng(0).normal(size=(B, T, D))
    ys, states = theirs(module, torch.tensor(xs))
    imported = interop.from_torch(module)
    got_ys, got_states = ours(imported, imported.params, jnp.asarray(xs))
    np.testing.assert_allclose(got_ys, ys.detach(), rtol=0, atol=1e-10)
    for got, expected in zip(got_states, states, strict=True):
        np.testing.assert_allclose(got, expected.detach(), rtol=0, atol=1e-10)
    back_and_forth(imported, module)
    explained = rnn.explain(imported.cells[0] if not both else imported.cells[0][0],
                            imported.params[0] if not both else imported.params[0][0],
                            None, jnp.asarray(xs[0]))  # fmt: skip
    assert not explained.in_loop


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_of_one_step(kind: str) -> None:
    torch.manual_seed(1)
    cell = getattr(torch.nn, kind)(D, H, dtype=torch.float64)
    x = np.random.default_rng(0).normal(size=(1, D))
    new = cell(torch.tensor(x))
    imported = interop.from_torch(cell)
    state, _ = rnn.unroll(imported.net, imported.params, None, jnp.asarray(x))
    expected = new if isinstance(new, tuple) else (new,)
    for got, want in zip(jax.tree.leaves(state), expected, strict=True):
        np.testing.assert_allclose(got, want.detach()[0], rtol=0, atol=1e-10)


def test_part_of_a_model(tmp_path: Path) -> None:
    """By its name, from the model, from its state dict, and from a file."""
    pytest.importorskip("safetensors")
    model = torch.nn.ModuleDict({"rnn": module_of("GRU"), "out": torch.nn.Linear(H, 2)})
    expected = interop.from_torch(model["rnn"]).params
    for source in (model, model.state_dict()):
        for prefix in ("rnn", "rnn."):
            np.testing.assert_array_equal(
                interop.from_torch(source, prefix).params[0].w_h, expected[0].w_h
            )
    with pytest.raises(InteropError, match=r"got out.bias.*pass prefix='rnn'"):
        interop.from_torch(model.state_dict())
    path = tmp_path / "model.safetensors"
    import_module("safetensors.torch").save_file(model.state_dict(), path)
    np.testing.assert_array_equal(
        interop.from_safetensors(path, "rnn").params[0].w_h, expected[0].w_h
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors(dtype: str, tmp_path: Path) -> None:
    """Written without PyTorch, which loads it; and read back to the bit."""
    pytest.importorskip("safetensors")
    cells = [(rnn.lstm(D, H, dtype=dtype), rnn.lstm(D, H, dtype=dtype))]
    pair = tuple(cell.init(jax.random.key(k)) for k, cell in enumerate(cells[0]))
    path = tmp_path / "net.safetensors"
    interop.to_safetensors(path, cells, (pair,), "rnn")
    module = torch.nn.LSTM(D, H, bidirectional=True, dtype=getattr(torch, dtype))
    holder = torch.nn.ModuleDict({"rnn": module})
    holder.load_state_dict(import_module("safetensors.torch").load_file(path), strict=True)
    again = interop.from_safetensors(path, "rnn").params
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves((pair,)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    if dtype == "float32":
        xs = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)
        ys = rnn.deep_bidirectional(cells, (pair,), None, jnp.asarray(xs))[1]
        np.testing.assert_allclose(ys, module(torch.tensor(xs))[0].detach(), rtol=0, atol=5e-7)


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_vector_of_cudnn(layers: int, both: bool) -> None:
    reference = pytest.importorskip("jax.experimental.rnn")
    vector = reference.init_lstm_weight(jax.random.key(0), D, H, layers, both).astype(jnp.float32)
    ways = 2 if both else 1
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
    zeros = jnp.zeros((ways * layers, B, H), jnp.float32)
    lengths = jnp.full(B, T, jnp.int32)

    def theirs_of(vector: Any) -> Any:
        parts = reference.unpack_lstm_weights(vector, D, H, layers, both)
        return reference.lstm_ref(xs, zeros, zeros, *parts, lengths, D, H, layers, 0.0, both)

    def ours_of(vector: Any) -> Any:
        imported = interop.from_cudnn(vector, D, H, layers, both)
        ys, (h, c) = ours(imported, imported.params, xs)
        return ys, h, c

    expected, got = theirs_of(vector), ours_of(vector)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    weight = jnp.cos(jnp.arange(expected[0].size, dtype=jnp.float32)).reshape(expected[0].shape)
    grads = [
        jax.grad(lambda v, f=f: (weight * f(v)[0]).sum())(vector) for f in (ours_of, theirs_of)
    ]
    np.testing.assert_allclose(*grads, rtol=0, atol=2e-6 * float(jnp.abs(grads[1]).max()))
    params = interop.from_cudnn(vector, D, H, layers, both).params
    again = interop.from_cudnn(interop.to_cudnn(params), D, H, layers, both).params
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InteropError, match="vector: got shape"):
        interop.from_cudnn(vector[1:], D, H, layers, both)


def lstm_weights() -> dict[str, Any]:
    return {k: a.numpy() for k, a in module_of("LSTM").state_dict().items()}


W = np.eye(3, dtype=np.float32)
BAD: dict[str, tuple[Any, str]] = {
    "an RNN without activation": (
        lambda: interop.from_torch(module_of("RNN tanh").state_dict()),
        "activation: got None, expected 'tanh' or 'relu'",
    ),
    "left over": (
        lambda: interop.from_torch(lstm_weights() | {"gain": np.ones(3)}),
        "weights: got gain, expected those of a recurrent layer",
    ),
    "left over in one layer": (
        lambda: interop.load("torch", "RNN", {"weight_ih": W, "weight_hh": W, "gain": W}),
        "weights: got gain, for which elman has no place; expected weight_ih",
    ),
    "no such layer": (
        lambda: interop.load("torch", "QRNN", {}),
        r"library, layer: got \('torch', 'QRNN'\), expected one of \('torch', 'RNN'\)",
    ),
    "missing": (
        lambda: interop.from_torch({"weight_ih_l0": np.ones((16, 3))}),
        "weights: got no weight_hh_l0",
    ),
    "a layer is missing": (
        lambda: interop.from_torch(
            {k.replace("l0", "l1"): a for k, a in lstm_weights().items()}
        ),
        "weights: got no weight_ih_l0",
    ),
    "another width": (
        lambda: interop.from_torch(lstm_weights() | {"bias_ih_l0": np.ones(15)}),
        r"l0: bias_ih: got shape \(15,\)",
    ),
    "nothing": (lambda: interop.from_torch({}), "got no arrays"),
    "gru": (
        lambda: to_torch(rnn.gru(D, H)),
        "got gru, whose reset gate acts before the product",
    ),
    "gru without bias": (
        lambda: to_torch(rnn.gru(D, H, bias=False)),
        "got gru, whose reset gate acts before the product",
    ),
    "peepholes": (lambda: to_torch(rnn.lstm(D, H, peepholes=True)), "params.w_c: got peepholes"),
    "a residual": (
        lambda: to_torch(rnn.residual(rnn.lstm(H, H))),
        "does something that its params do not show",
    ),
    "layer norm": (
        lambda: to_torch(rnn.layer_norm_lstm(D, H)),
        "params: got LayerNormLSTMParams, expected those of elman, lstm, gru",
    ),
    "an output layer": (
        lambda: to_torch(rnn.readout(rnn.lstm(D, H), 2)),
        "got a net with an output layer",
    ),
    "another activation": (
        lambda: to_torch(rnn.elman(D, H, activation=jax.nn.sigmoid)),
        "got the activation sigmoid, expected tanh or relu",
    ),
    "two kinds": (
        lambda: to_torch([rnn.lstm(D, H), rnn.gru_reset_after(H, H)]),
        "got layers of 2 kinds",
    ),
    "no file": (lambda: interop.from_safetensors("nowhere.safetensors"), "which is no file"),
}  # fmt: skip


def to_torch(cells: Any) -> Any:
    if isinstance(cells, list):
        return interop.to_torch(cells, tuple(c.init(jax.random.key(0)) for c in cells))
    return interop.to_torch(cells, cells.init(jax.random.key(0)))


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_place(name: str) -> None:
    if name == "no file":
        pytest.importorskip("safetensors")
    run, message = BAD[name]
    with pytest.raises(InteropError, match=message):
        run()


def test_precision_is_kept_or_said() -> None:
    with jax.enable_x64(False), pytest.raises(InteropError, match=r"got float64, which JAX would"):
        interop.from_torch(module_of("LSTM"))


def test_a_net_out_of_a_stack() -> None:
    """The cells of a stack cannot be looked into; what it does says what they are."""
    two = [
        rnn.stack([make(D, H, bias=False), make(H, H, bias=False)])
        for make in (rnn.gru_reset_after, rnn.lstm, rnn.elman)
    ]
    for net in (*two, rnn.stack([rnn.lstm(D, H)]), rnn.lstm(D, H)):
        params = net.init(jax.random.key(0))
        imported = interop.from_torch(interop.to_torch(net, params), activation="tanh")
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))
        got = rnn.unroll(imported.net, imported.params, None, xs)[1]
        np.testing.assert_allclose(got, rnn.unroll(net, params, None, xs)[1], atol=1e-12)


@pytest.mark.parametrize("layer", ["RNN", "LSTM", "GRU"])
def test_identify(layer: str) -> None:
    cells = {
        "RNN": rnn.elman(D, H, activation=jax.nn.relu, bias=False),
        "LSTM": rnn.lstm(D, H, peepholes=True, projection_size=2),
        "GRU": rnn.gru_reset_after(D, H, bias=False),
    }
    params = cells[layer].init(jax.random.key(0))
    name, options = interop.identify(cells[layer], params)
    again = getattr(rnn, name)(D, H, **options)
    assert jax.tree.structure(again.init(jax.random.key(0))) == jax.tree.structure(params)
    assert options.get("activation") in (None, jax.nn.relu)
    assert (name, options.get("projection_size"), options.get("peepholes")) == {
        "RNN": ("elman", None, None),
        "LSTM": ("lstm", 2, True),
        "GRU": ("gru_reset_after", None, None),
    }[layer]
    with pytest.raises(InteropError, match="does something that no cell of rnn_jax does"):
        interop.identify(cells[layer]._replace(step=lambda p, s, z: (s, jnp.zeros(H))), params)
