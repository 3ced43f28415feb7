"""Out to a server: StableHLO that runs without rnn_jax, files and runs from the command line."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import rnn_jax as rnn
from rnn_jax import interop
from rnn_jax.interop import InteropError
from rnn_jax.interop.__main__ import main as command
from rnn_jax.interop.deploy import plain

pytest.importorskip("flatbuffers")
D, H = 3, 4
NETS: dict[str, Any] = {
    "lstm": rnn.lstm(D, H),
    "tagger": rnn.readout(rnn.embed(rnn.stack([rnn.gru(D, H), rnn.lstm(H, H)]), 7, D), 5),
    "both ways": rnn.two_way(rnn.lstm(D, H), rnn.gru(D, H)),
    "layer norm": rnn.layer_norm_gru(D, H),
    "one_hot": rnn.one_hot(rnn.elman(6, H), 6),
}
READER = """
import sys
import tomllib
import numpy as np
import jax

exported = jax.export.deserialize(open(sys.argv[1], "rb").read())
given = np.load(sys.argv[2])
arrays = [given[name] for name in sorted(given)]
state, ys = exported.call(*arrays)
leaves = {f"state{i}": a for i, a in enumerate(jax.tree.leaves(state))}
if arrays[0].dtype == np.float32:
    back = jax.vjp(lambda xs: exported.call(xs, *arrays[1:])[1], arrays[0])[1]
    leaves["gradient"] = back(np.ones(ys.shape, ys.dtype))[0]
assert "rnn_jax" not in sys.modules
np.savez(sys.argv[3], ys=ys, **leaves)
"""


def run(net: Any, params: Any, xs: Any, lengths: Any) -> Any:
    def one(x: Any, n: Any) -> Any:
        mask = None if n is None else rnn.length_mask(n, x.shape[0])
        if isinstance(net, rnn.TwoWay):
            return net.run(params, None, x, mask=mask, plan=rnn.Plan("before"))
        return rnn.unroll(net, params, None, x, mask=mask, plan=rnn.Plan("before"))

    return jax.vmap(one)(xs, lengths)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", NETS)
def test_a_file_runs_in_a_process_without_us(name: str, lengths: bool, tmp_path: Path) -> None:
    """Outputs, states and the gradient by the inputs; any batch, any length."""
    net = NETS[name]
    params = net.init(jax.random.key(0))
    exported = interop.export(net, params, lengths=lengths)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (tmp_path / "net").write_bytes(exported.serialize(vjp_order=1))
    rng = np.random.default_rng(0)
    for batch, steps in ((3, 5), (1, 8)):
        xs: Any = rng.normal(size=(batch, steps, D)).astype(np.float32)
        if name in ("tagger", "one_hot"):
            xs = rng.integers(6, size=(batch, steps)).astype(np.int32)
        given = {"0": xs}
        if lengths:
            given["1"] = rng.integers(0, steps + 1, size=batch).astype(np.int32)
        sizes = given.get("1")
        np.savez(tmp_path / "in.npz", **given)
        script = [sys.executable, "-c", READER, "net", "in.npz", "out.npz"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as in this process
        subprocess.run(script, cwd=tmp_path, check=True, timeout=120, env=environment)
        got = np.load(tmp_path / "out.npz")
        state, ys = jax.jit(lambda xs, n: run(net, params, xs, n))(xs, sizes)
        near(got["ys"], ys)
        for i, a in enumerate(jax.tree.leaves(plain(state))):
            near(got[f"state{i}"], a)
        if "gradient" in got:
            expected = jax.grad(lambda xs, n: run(net, params, xs, n)[1].sum())(xs, sizes)
            scale = max(1.0, float(jnp.abs(expected).max()))
            np.testing.assert_allclose(got["gradient"], expected, rtol=0, atol=1e-6 * scale)


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_the_bits_are_those_of_unroll() -> None:
    """In one process, under one set of flags."""
    for name, net in NETS.items():
        params = net.init(jax.random.key(0))
        xs: Any = np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)
        if name in ("tagger", "one_hot"):
            xs = np.ones((2, 5), np.int32)
        exported = jax.export.deserialize(interop.export(net, params).serialize())
        state, ys = jax.jit(lambda xs, net=net, params=params: run(net, params, xs, None))(xs)
        got_state, got = exported.call(xs)
        np.testing.assert_array_equal(got, ys)
        for a, b in zip(jax.tree.leaves(got_state), jax.tree.leaves(plain(state)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_our_own_types_are_written_and_read() -> None:
    """A function of the params and of the state is exported as it stands, since `register` ran."""
    net = NETS["tagger"]
    params = net.init(jax.random.key(0))
    state = net.init_state(params)

    def step(params: Any, state: Any, token: Any) -> Any:
        return net.step(params, state, net.project(params, token))

    exported = jax.export.export(jax.jit(step))(params, state, jnp.int32(0))
    again = jax.export.deserialize(exported.serialize())
    got, expected = again.call(params, state, jnp.int32(3)), step(params, state, jnp.int32(3))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    near(got[1], expected[1])


def test_what_cannot_be_told_from_the_params() -> None:
    cell = rnn.Cell(
        init=lambda key: {"a": jnp.ones(())},
        init_state=lambda params: jnp.zeros(2),
        project=lambda params, x: x,
        step=lambda params, h, x: (params["a"] * h + x, h),
    )
    with pytest.raises(InteropError, match="do not show what input it takes"):
        interop.export(cell, {"a": jnp.ones(())})


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code not in (0, None)
    text = str(stop.value.code)
    assert "\n" not in text
    return text


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Round and round: the last file holds what the first one held."""
    pytest.importorskip("safetensors")
    pytest.importorskip("onnx")
    net = rnn.stack([rnn.lstm(D, H), rnn.lstm(H, H)])
    params = net.init(jax.random.key(0))
    path = str(tmp_path / "a.safetensors")
    interop.to_safetensors(path, net, params)
    command(["convert", path, str(tmp_path / "b.onnx")])
    command(["convert", str(tmp_path / "b.onnx"), str(tmp_path / "c.safetensors")])
    found = interop.from_safetensors(tmp_path / "c.safetensors").params
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    said = capsys.readouterr().out
    assert "[1].w_h  (4, 16)  float32" in said
    assert f"written: {tmp_path / 'c.safetensors'}" in said
    command(["convert", path, str(tmp_path / "d.stablehlo")])
    assert (tmp_path / "d.stablehlo").stat().st_size > 1000

    assert "is there already" in fails(capsys, "convert", path, str(tmp_path / "b.onnx"))
    assert "got '.txt', expected .safetensors" in fails(capsys, "convert", path, "x.txt")
    assert "no such file" in fails(capsys, "convert", "nowhere.onnx", str(tmp_path / "e.onnx"))
    assert "there is no folder" in fails(capsys, "convert", path, str(tmp_path / "no" / "e.onnx"))
    assert "no run" in fails(capsys, "export", path, str(tmp_path / "e.onnx"))
    assert "no run" in fails(capsys, "convert", str(tmp_path), str(tmp_path / "e.onnx"))
    assert not (tmp_path / "e.onnx").exists()


def test_a_run_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best net of a finished run, as a file that onnxruntime and JAX read."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "experiments.toy", toy)
    monkeypatch.chdir(tmp_path)
    assert toy.APPLICATION.main(["--quick", "--run", str(tmp_path / "run")]) == 0
    command(["export", str(tmp_path / "run"), "net.onnx"])
    command(["export", str(tmp_path / "run"), "net.stablehlo"])
    assert "written: net.onnx" in capsys.readouterr().out
    xs = np.random.default_rng(1).normal(size=(50, 5, 1)).astype(np.float32)
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    ys = session.run(["ys"], {"xs": xs})[0]
    right = np.sign(ys[:, -1, 0]) == np.sign(xs.sum(axis=(1, 2)))
    assert right.mean() > 0.8
    other = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes())).call(xs)[1]
    np.testing.assert_allclose(other, ys, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "extra", "run"),
    [
        ("torch", "peers", lambda cell, p: interop.to_torch(cell, p)),
        ("safetensors", "interop", lambda cell, p: interop.to_safetensors("no", cell, p)),
        ("safetensors", "interop", lambda cell, p: interop.from_safetensors("no")),
        ("h5py", "interop", lambda cell, p: interop.from_keras("no.keras")),
        ("keras", "peers", lambda cell, p: interop.to_keras(cell, p)),
        ("onnx", "interop", lambda cell, p: interop.from_onnx("no.onnx")),
        ("onnx", "interop", lambda cell, p: interop.to_onnx(cell, p)),
        ("flax", "flax", lambda cell, p: interop.as_linen_module(cell)),
        ("flax", "flax", lambda cell, p: interop.as_nnx_cell(cell, params=p)),
        ("haiku", "peers", lambda cell, p: interop.wrap_haiku(lambda: None, 3)),
        ("equinox", "peers", lambda cell, p: interop.wrap_equinox(None)),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    library: str, extra: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed or written."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else found(name)
    )
    cell = rnn.lstm(D, H)
    message = rf"{library} is not installed; install it with pip install 'rnn_jax\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        run(cell, cell.init(jax.random.key(0)))
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert extra in tomllib.loads(text)["project"]["optional-dependencies"]
