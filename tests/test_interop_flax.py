"""Our cells inside Flax, and cells of Flax, Haiku and Equinox as ours."""

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax as rnn
from rnn_jax import gradients, interop
from rnn_jax.interop import InteropError

pytest.importorskip("flax")
nn: Any = import_module("flax.linen")
nnx: Any = import_module("flax.nnx")
T, D, H = 5, 3, 4
NETS = {
    "lstm": rnn.lstm(D, H),
    "tagger": rnn.readout(rnn.stack([rnn.gru(D, H), rnn.elman(H, H)]), 2),
    "both ways": rnn.two_way(rnn.lstm(D, H), rnn.gru(D, H)),
    "embed": rnn.embed(rnn.gru_reset_after(D, H), 7, D),
}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def inputs(name: str, *batch: int) -> Any:
    rng = np.random.default_rng(0)
    if name == "embed":
        return jnp.asarray(rng.integers(7, size=(*batch, T)), jnp.int32)
    return jnp.asarray(rng.normal(size=(*batch, T, D)), jnp.float32)


def run(net: Any, params: Any, xs: Any, mask: Any = None) -> Any:
    if isinstance(net, rnn.TwoWay):
        return net.run(params, None, xs, mask=mask)
    return rnn.unroll(net, params, None, xs, mask=mask)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=["0", "1", "2"])
@pytest.mark.parametrize("name", NETS)
def test_modules_give_the_bits_of_unroll(name: str, batch: tuple[int, ...]) -> None:
    """In linen and in nnx, with masks, without and with batch axes; the state too."""
    net, xs = NETS[name], inputs(name, *batch)
    params = net.init(jax.random.key(1))
    mask = jnp.asarray(np.random.default_rng(1).integers(1, T + 1, size=batch))
    mask = rnn.length_mask(mask, T)

    def expected(params: Any, xs: Any, mask: Any) -> Any:
        one = functools.partial(run, net, params)
        for _ in batch:
            one = jax.vmap(one)
        return one(xs, mask)

    want = jax.jit(expected)(params, xs, mask)

    layer = interop.as_nnx_module(net, params=params)
    got = nnx.jit(lambda m, xs, mask: m(xs, mask=mask, return_state=True))(layer, xs, mask)
    same(got, want)

    module = interop.as_linen_module(net)
    variables = module.init(jax.random.key(0), xs)
    assert set(variables["params"]) == {"cell"}
    variables = {"params": {"cell": import_module("rnn_jax.interop._names").to_dict(params)}}
    got = jax.jit(lambda v: module.apply(v, xs, mask=mask, return_state=True))(variables)
    same(got, want)


def test_other_arguments_of_unroll() -> None:
    cell, xs = NETS["lstm"], inputs("lstm", 2)
    params = cell.init(jax.random.key(1))
    layer = interop.as_nnx_module(cell, params=params)
    state, first = layer(xs[:, :2], return_state=True)
    rest = layer(xs[:, 2:], initial_state=state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), layer(xs), rtol=1e-6)
    back = jax.vmap(lambda x: rnn.unroll(cell, params, None, x, reverse=True)[1])(xs)
    np.testing.assert_allclose(layer(xs, reverse=True), back, rtol=1e-6)
    reset = jnp.zeros((2, T), bool).at[:, 2].set(True)
    again = layer(xs, reset=reset)
    np.testing.assert_allclose(again[:, 2:], layer(xs[:, 2:]), rtol=1e-5, atol=1e-6)


def problem() -> tuple[Any, Any]:
    """Is the sum of the first numbers so far positive?"""
    xs = jax.random.normal(jax.random.key(3), (64, T, D))
    return xs, (xs[..., 0].cumsum(axis=1) > 0).astype(jnp.float32)


def loss_of(logits: Any, targets: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits[..., 0], targets).mean()


def test_linen_trains_beside_other_layers() -> None:
    training = import_module("flax.training.train_state")
    xs, targets = problem()
    model = nn.Sequential([nn.Dense(8), interop.as_linen_module(rnn.gru(8, 16)), nn.Dense(1)])
    params = model.init(jax.random.key(0), xs)["params"]
    state = training.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-2))

    @jax.jit
    def update(state: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            return loss_of(state.apply_fn({"params": params}, xs), targets)

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    for _ in range(150):
        state, value = update(state)
    assert value < 0.1
    serialization = import_module("flax.serialization")
    again = serialization.from_bytes(params, serialization.to_bytes(state.params))
    same(model.apply({"params": again}, xs), model.apply({"params": state.params}, xs))


def test_nnx_trains_beside_other_layers(tmp_path: Path) -> None:
    """With nnx.Optimizer; and what was learned comes back from msgpack and from orbax."""
    xs, targets = problem()

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(D, 8, rngs=rngs)
            self.rnn = interop.as_nnx_module(rnn.lstm(8, 16), rngs=rngs)
            self.last = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, xs: Any) -> Any:
            return self.last(self.rnn(self.first(xs)))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def update(model: Any, optimizer: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda m: loss_of(m(xs), targets))(model)
        optimizer.update(model, grads)
        return value

    for _ in range(150):
        value = update(model, optimizer)
    assert value < 0.1
    learned = model(xs)

    state = nnx.state(model)
    serialization = import_module("flax.serialization")
    pure = nnx.to_pure_dict(state)
    again = serialization.from_bytes(pure, serialization.to_bytes(pure))
    other = Model(nnx.Rngs(1))
    replaced = nnx.state(other)
    nnx.replace_by_pure_dict(replaced, again)
    nnx.update(other, replaced)
    np.testing.assert_array_equal(other(xs), learned)

    ocp = import_module("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "model", nnx.state(Model(nnx.Rngs(2))))
    third = Model(nnx.Rngs(3))
    nnx.update(third, restored)
    np.testing.assert_array_equal(third(xs), learned)


def test_equal_modules_compile_once() -> None:
    traces = []

    @nnx.jit
    def run(layer: Any, xs: Any) -> Any:
        traces.append(1)
        return layer(xs)

    for seed in range(3):
        layer = interop.as_nnx_module(rnn.readout(rnn.lstm(D, H), 2), rngs=nnx.Rngs(seed))
        run(layer, inputs("lstm", 2))
    assert len(traces) == 1
    graphs = [
        nnx.graphdef(interop.as_nnx_module(rnn.stack([rnn.gru(D, H)]), rngs=nnx.Rngs(s)))
        for s in range(2)
    ]
    assert graphs[0] == graphs[1]
    other = nnx.graphdef(interop.as_nnx_module(rnn.stack([rnn.lstm(D, H)]), rngs=nnx.Rngs(0)))
    assert other != graphs[0]


def test_cells_inside_their_loops() -> None:
    """nn.RNN, nn.Bidirectional and nnx.RNN give the numbers of unroll."""
    cell, xs = NETS["lstm"], inputs("lstm", 2)
    layer = nn.RNN(interop.as_linen_cell(cell))
    variables = layer.init(jax.random.key(0), xs)
    params = rnn.LSTMParams(**variables["params"]["cell"]["cell"], w_c=None)
    want = jax.vmap(lambda x: rnn.unroll(cell, params, None, x)[1])(xs)
    np.testing.assert_allclose(layer.apply(variables, xs), want, rtol=1e-5, atol=1e-6)
    both = nn.Bidirectional(layer.clone(), nn.RNN(interop.as_linen_cell(rnn.gru(D, 5))))
    assert both.init_with_output(jax.random.key(0), xs)[0].shape == (2, T, H + 5)
    ours = nnx.RNN(interop.as_nnx_cell(cell, params=params))
    np.testing.assert_allclose(ours(xs), want, rtol=1e-5, atol=1e-6)
    # a loop of one's own, over a batch
    one = interop.as_nnx_cell(cell, params=params)
    carry = one.initialize_carry((2, D))
    for t in range(T):
        carry, y = one(carry, xs[:, t])
    np.testing.assert_allclose(y, want[:, -1], rtol=1e-5, atol=1e-6)


def test_ensembles_and_remat() -> None:
    xs = inputs("lstm", 2)
    ensemble = nn.vmap(
        type(interop.as_linen_module(NETS["lstm"])),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(NETS["lstm"])
    ys, variables = ensemble.init_with_output(jax.random.key(0), xs)
    assert ys.shape == (3, 2, T, H)
    assert variables["params"]["cell"]["w_x"].shape == (3, D, 4 * H)
    assert float(jnp.abs(ys[0] - ys[1]).max()) > 1e-2

    kept = nn.remat(type(interop.as_linen_module(NETS["lstm"])))(NETS["lstm"])
    plain = interop.as_linen_module(NETS["lstm"])
    v = plain.init(jax.random.key(0), xs)
    grads = [jax.grad(lambda v, m=m: m.apply(v, xs).sum())(v) for m in (kept, plain)]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key: Any) -> Any:
        return interop.as_nnx_module(NETS["lstm"], rngs=nnx.Rngs(key))

    many = make(jax.random.split(jax.random.key(0), 3))
    ys = nnx.vmap(lambda m, xs: m(xs), in_axes=(0, None))(many, xs)
    assert ys.shape == (3, 2, T, H)


def test_what_a_module_wants() -> None:
    with pytest.raises(ValueError, match="rngs, params: expected one of them"):
        interop.as_nnx_module(NETS["lstm"])
    with pytest.raises(ValueError, match=r"xs: got shape \(3,\), expected \[..., T, D\]"):
        interop.as_nnx_module(NETS["lstm"], rngs=nnx.Rngs(0))(jnp.ones(3))


# ---- cells of other libraries as ours


def of_nnx(make: Callable[[Any], Any]) -> tuple[rnn.Cell, Any]:
    return interop.wrap_nnx(make(nnx.Rngs(0)), D)


def of_linen(module: Any) -> tuple[rnn.Cell, Any]:
    cell = interop.wrap_linen(module, D)
    return cell, cell.init(jax.random.key(0))


def of_haiku(make: Callable[[Any], Any]) -> tuple[rnn.Cell, Any]:
    haiku = pytest.importorskip("haiku")
    cell = interop.wrap_haiku(lambda: make(haiku), (D,))
    return cell, cell.init(jax.random.key(0))


def of_equinox(make: Callable[[Any], Any]) -> tuple[rnn.Cell, Any]:
    equinox = pytest.importorskip("equinox")
    return interop.wrap_equinox(make(equinox.nn))


class Own(nn.RNNCellBase):
    """A cell of linen that nobody has converted: minimal gates, one kernel."""

    features: int

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        f, n = jnp.split(nn.Dense(2 * self.features)(jnp.concatenate([carry, x], -1)), 2, -1)
        carry = carry + nn.sigmoid(f) * (nn.tanh(n) - carry)
        return carry, carry

    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


WRAPPED: dict[str, Callable[[], tuple[rnn.Cell, Any]]] = {
    "linen SimpleCell": lambda: of_linen(nn.SimpleCell(H)),
    "linen LSTMCell": lambda: of_linen(nn.LSTMCell(H)),
    "linen OptimizedLSTMCell": lambda: of_linen(nn.OptimizedLSTMCell(H)),
    "linen GRUCell": lambda: of_linen(nn.GRUCell(H)),
    "linen MGUCell": lambda: of_linen(nn.MGUCell(H)),
    "linen, an own cell": lambda: of_linen(Own(H)),
    "nnx SimpleCell": lambda: of_nnx(lambda r: nnx.SimpleCell(D, H, rngs=r)),
    "nnx LSTMCell": lambda: of_nnx(lambda r: nnx.LSTMCell(D, H, rngs=r)),
    "nnx OptimizedLSTMCell": lambda: of_nnx(lambda r: nnx.OptimizedLSTMCell(D, H, rngs=r)),
    "nnx GRUCell": lambda: of_nnx(lambda r: nnx.GRUCell(D, H, rngs=r)),
    "haiku VanillaRNN": lambda: of_haiku(lambda hk: hk.VanillaRNN(H)),
    "haiku LSTM": lambda: of_haiku(lambda hk: hk.LSTM(H)),
    "haiku GRU": lambda: of_haiku(lambda hk: hk.GRU(H)),
    "equinox LSTMCell": lambda: of_equinox(lambda eqx: eqx.LSTMCell(D, H, key=jax.random.key(0))),
    "equinox GRUCell": lambda: of_equinox(lambda eqx: eqx.GRUCell(D, H, key=jax.random.key(0))),
}


def step_loss(y: Any, target: Any) -> Any:
    return jnp.sum((y - target) ** 2)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_cell_of_another_library_is_a_cell(name: str) -> None:
    """Unrolled, with NaN in masked steps and resets; all weights deferred; every algorithm."""
    cell, params = WRAPPED[name]()
    narrow = name == "nnx SimpleCell"  # it computes in float32 whatever it is given
    exactly, nearly = (1e-6, 1e-4) if narrow else (1e-12, 1e-10)
    with jax.enable_x64(not narrow):
        wide = functools.partial(jax.tree.map, lambda a: a.astype(jnp.zeros(()).dtype))
        params = wide(jax.tree.map(lambda a: a + 0.1 * jnp.sin(jnp.ones(a.shape)), params))
        start = cell.init_state
        cell = cell._replace(init_state=lambda params: wide(start(params)))
        xs, targets = np.random.default_rng(0).normal(size=(2, T, max(D, H)))
        xs, targets = jnp.asarray(xs[:, :D]), jnp.asarray(targets[:, :H])

        state, ys = cell.init_state(params), []
        for x in xs:
            state, y = cell.step(params, state, cell.project(params, x))
            ys.append(y)
        got = rnn.unroll(cell, params, None, xs)[1]
        close(got, jnp.stack(ys), exactly)
        hidden = jnp.where(jnp.arange(T)[:, None] < 3, xs, jnp.nan)
        _, masked = rnn.unroll(cell, params, None, hidden, mask=jnp.arange(T) < 3)
        close(masked[:3], got[:3], exactly)
        _, anew = rnn.unroll(cell, params, None, xs, reset=jnp.arange(T) == 3)
        close(anew[3:], rnn.unroll(cell, params, None, xs[3:])[1], exactly)
        assert rnn.explain(cell, params, None, xs).in_loop == {}

        def total(params: Any) -> Any:
            plan = rnn.Plan(defer=False)
            return jax.vmap(step_loss)(
                rnn.unroll(cell, params, None, xs, plan=plan)[1], targets
            ).sum()

        arguments = params, None, xs, targets
        exact = gradients.bptt(cell, step_loss)(*arguments)[1]
        close(exact, jax.grad(total)(params), exactly)
        close(gradients.rtrl(cell, step_loss)(*arguments)[1], exact, nearly)
        close(gradients.snap(cell, step_loss, n=T)(*arguments)[1], exact, nearly)
        noisy = gradients.uoro(cell, step_loss)(*arguments, key=jax.random.key(0))[1]
        assert jax.tree.structure(noisy) == jax.tree.structure(exact)
        assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(noisy))


def close(a: Any, b: Any, tolerance: float) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(1.0, float(jnp.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


def test_equinox_puts_out_h() -> None:
    """The state is (h, c), and the output its first part."""
    cell, params = WRAPPED["equinox LSTMCell"]()
    state, ys = rnn.unroll(cell, params, None, inputs("lstm"))
    np.testing.assert_array_equal(ys[-1], state[0])
    assert float(jnp.abs(ys[-1] - state[1]).max()) > 1e-3


def test_cells_that_cannot_be_wrapped() -> None:
    class Noisy(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            carry = nn.Dropout(0.5, deterministic=False)(nn.Dense(H)(x) + carry)
            return carry, carry

        def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
            return jnp.zeros(H)

    with pytest.raises(InteropError, match=r"a step fails with InvalidRngError.*rnn_jax.dropout"):
        interop.wrap_linen(Noisy(), D)

    class Dropping(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.dense = nnx.Linear(D, H, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, carry: Any, x: Any) -> Any:
            carry = self.dropout(self.dense(x) + carry)
            return carry, carry

        def initialize_carry(self, shape: Any, rngs: Any) -> Any:
            return jnp.zeros(H)

    with pytest.raises(InteropError, match="it changes something beside its carry"):
        interop.wrap_nnx(Dropping(nnx.Rngs(0)), D)
    equinox = pytest.importorskip("equinox")
    with pytest.raises(InteropError, match=r"init_state: got None for Linear"):
        interop.wrap_equinox(equinox.nn.Linear(D, H, key=jax.random.key(0)))
