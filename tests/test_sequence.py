"""What enters with a sequence: padding, plain numbers, tokens, devices, cells of all kinds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec

import rnn_jax as rnn
from rnn_jax import generate, gradients

OPTIONS = {
    "truncated_bptt": {"k1": 2, "k2": 3},
    "rflo": {"leak": 0.5},
    "snap": {"n": 1},
    "artbp": {"length": 5},
}


def algorithms(cell: rnn.Cell, loss: Any, *without: str) -> dict[str, Any]:
    return {
        name: getattr(gradients, name)(cell, loss, **OPTIONS.get(name, {}))
        for name in gradients.REGISTER
        if name not in without
    }


def timed() -> rnn.Cell:
    """Reads a number and the time since the one before, which is never 0 and never 1."""

    def step(params: Any, h: Any, z: Any) -> Any:
        x, dt = z["x"], z["dt"]
        h = h * jnp.exp(-params["a"] * dt) + jnp.log(params["a"] * dt) / (1 - dt) + x / jnp.sqrt(dt)
        return h, h

    return rnn.Cell(lambda key: {"a": jnp.array(0.3)}, lambda p: jnp.zeros(1), lambda p, x: x, step)


@pytest.mark.parametrize("padding", [0.0, jnp.nan])
@pytest.mark.parametrize("where", ["behind", "before", "between"])
@pytest.mark.parametrize(
    "name", ["bptt", "deer", "rtrl", "snap", "truncated_bptt", "uoro", "segment"]
)
def test_padding_is_not_read_where_the_cell_is_singular(
    name: str, where: str, padding: float
) -> None:
    cell, params = timed(), {"a": jnp.array(0.3)}
    xs = {"dt": jnp.array([0.5, 2.0, 3.0]), "x": jnp.array([1.0, -1.0, 0.5])}
    at = {"behind": [0, 1, 2], "before": [2, 3, 4], "between": [0, 2, 4]}[where]
    mask = jnp.zeros(5, bool).at[jnp.array(at)].set(True)
    padded = jax.tree.map(lambda a: jnp.full(5, padding).at[jnp.array(at)].set(a), xs)
    loss = lambda y, target: jnp.sum(jnp.log(jnp.abs(y)) + y / target)  # noqa: E731
    kind = {
        "snap": lambda: gradients.snap(cell, loss, n=1),
        "truncated_bptt": lambda: gradients.truncated_bptt(cell, loss, k1=2, k2=6),
        "segment": lambda: gradients.bptt(cell, loss, segment=2),
    }
    algorithm = kind[name]() if name in kind else getattr(gradients, name)(cell, loss)
    targets = jnp.array([1.0, 2.0, 3.0])
    every = jnp.full(5, padding).at[jnp.array(at)].set(targets)
    key = jax.random.key(0)
    expected = gradients.bptt(cell, loss)(params, None, xs, targets)
    got = algorithm(params, None, padded, every, mask=mask, key=key)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_sequence_without_a_valid_step_has_no_gradient() -> None:
    cell, params = timed(), {"a": jnp.array(0.3)}
    xs = {"dt": jnp.full(3, jnp.nan), "x": jnp.full(3, jnp.inf)}
    algorithm = gradients.bptt(cell, lambda y, target: jnp.log(y).sum())
    (total, state), grads = algorithm(params, None, xs, jnp.zeros(3), mask=jnp.zeros(3, bool))
    assert (total, state[0], grads["a"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def mesh() -> Any:
    return jax.make_mesh((2,), ("d",), (AxisType.Auto,))


SHARDED = rnn.readout(rnn.gru(3, 4), 2)
EACH = algorithms(
    SHARDED, lambda y, target: jnp.sum((y - target) ** 2), "elementwise_rtrl"
) | {
    "segment": gradients.bptt(SHARDED, lambda y, t: jnp.sum((y - t) ** 2), segment=3),
    "budget": gradients.bptt(SHARDED, lambda y, t: jnp.sum((y - t) ** 2), budget=2500),
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_every_algorithm_runs_inside_shard_map(name: str, mesh: Any) -> None:
    """The gradient by shared params is the sum over the devices, as that of one device."""
    P, keys = PartitionSpec, jax.random.split(jax.random.key(0), 4)
    params = SHARDED.init(keys[0])
    xs, targets = jax.random.normal(keys[1], (4, 7, 3)), jax.random.normal(keys[2], (4, 7, 2))
    mask = rnn.length_mask(jnp.array([7, 5, 0, 3]), 7)
    reset = jnp.zeros((4, 7), bool).at[:, 3].set(True)

    def total(params: Any, *batch: Any) -> Any:
        def one(x: Any, t: Any, m: Any, r: Any, k: Any) -> Any:
            return EACH[name](params, None, x, t, mask=m, reset=r, key=k)

        (totals, _), grads = jax.vmap(one)(*batch)
        return totals, jax.tree.map(lambda g: g.sum(axis=0), grads)

    batch = xs, targets, mask, reset, keys
    expected = jax.jit(total)(params, *batch)
    split = jax.shard_map(
        total, mesh=mesh, in_specs=(P(), *[P("d")] * 5), out_specs=(P("d"), P())
    )  # fmt: skip
    got = jax.jit(split)(params, *batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_generation_and_both_directions_inside_shard_map(mesh: Any) -> None:
    P, keys = PartitionSpec("d"), jax.random.split(jax.random.key(0), 4)
    cell = rnn.readout(rnn.one_hot(rnn.gru(5, 4), 5), 5)
    params = cell.init(keys[0])

    def write(keys: Any) -> Any:
        return jax.vmap(lambda k: generate.sample(cell, params, None, 3, 6, k, stop=(2,))[1])(keys)

    split = jax.shard_map(write, mesh=mesh, in_specs=P, out_specs=P)
    np.testing.assert_array_equal(jax.jit(split)(keys), write(keys))

    two = rnn.gru(3, 4)
    weights = two.init(keys[1]), two.init(keys[2])
    xs = jax.random.normal(keys[3], (4, 7, 3))
    mask = rnn.length_mask(jnp.array([7, 5, 0, 3]), 7)
    reset = jnp.zeros((4, 7), bool).at[:, 3].set(True)

    def read(xs: Any, mask: Any, reset: Any) -> Any:
        one = lambda x, m, r: rnn.bidirectional(two, two, weights, None, x, mask=m, reset=r)[1]  # noqa: E731
        return jax.vmap(one)(xs, mask, reset)

    split = jax.shard_map(read, mesh=mesh, in_specs=(P, P, P), out_specs=P)
    got = jax.jit(split)(xs, mask, reset)
    np.testing.assert_allclose(got, read(xs, mask, reset), rtol=1e-5, atol=1e-6)


STARTS = {
    "int": lambda params: (jnp.zeros(()), 0),
    "float": lambda params: (0.0, jnp.int32(0)),
    "numpy": lambda params: (np.zeros(()), np.int64(0)),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_state_of_plain_numbers(start: str) -> None:
    def step(params: Any, state: Any, z: Any) -> Any:
        h, count = state
        h = params["a"] * h + z
        return (h, count + 1), h

    cell = rnn.Cell(lambda key: {"a": jnp.array(0.5)}, STARTS[start], lambda p, x: x, step)
    params, xs, yes = {"a": jnp.array(0.5)}, jnp.ones(4), jnp.array([True, False, True, True])
    state, ys = rnn.unroll(cell, params, None, xs[:2])
    (h, count), rest = rnn.unroll(cell, params, state, xs[2:])
    np.testing.assert_allclose(jnp.concatenate([ys, rest]), [1, 1.5, 1.75, 1.875])
    assert (h, count) == (1.875, 4)
    rnn.unroll(cell, params, None, xs, mask=yes, reset=yes, budget=400)
    for name in ("bptt", "rtrl", "truncated_bptt", "uoro"):
        algorithm = getattr(gradients, name)(cell, lambda y, t: y, **OPTIONS.get(name, {}))
        (_, (_, count)), _ = algorithm(
            params, None, xs, xs, mask=yes, reset=~yes, key=jax.random.key(0)
        )
        assert count == 3


@pytest.mark.parametrize("init", [None, lambda key: {"w": np.array(float(key))}])
def test_a_cell_whose_init_cannot_be_traced_runs(init: Any) -> None:
    def step(params: Any, h: Any, z: Any) -> Any:
        h = jnp.tanh(z + h @ params["w"])
        return h, h

    cell = rnn.Cell(init, lambda p: jnp.zeros(3), lambda p, x: x, step)
    params, xs = {"w": jnp.eye(3)}, jnp.ones((5, 3))
    assert rnn.unroll(cell, params, None, xs)[1].shape == (5, 3)
    for name in ("bptt", "rtrl", "deer", "snap"):
        algorithm = getattr(gradients, name)(cell, lambda y, t: y.sum(), **OPTIONS.get(name, {}))
        assert np.isfinite(algorithm(params, None, xs, jnp.zeros(5))[1]["w"]).all()


READERS = {
    "embed": lambda: rnn.embed(rnn.gru(4, 5), 10, 4),
    "one_hot": lambda: rnn.one_hot(rnn.gru(10, 5), 10),
}


@pytest.mark.parametrize("token", [10, 13, -1])
@pytest.mark.parametrize("kind", READERS)
def test_a_token_outside_of_the_vocabulary_is_seen(kind: str, token: int) -> None:
    """From there on all is NaN, and no row of the table takes its place in the gradient."""
    cell = READERS[kind]()
    params, xs = cell.init(jax.random.key(0)), jnp.array([1, 2, token])
    ys = rnn.unroll(cell, params, None, xs)[1]
    assert np.isfinite(ys[:2]).all()
    assert np.isnan(ys[2]).all()
    if kind == "embed":

        def loss(table: Any, **options: Any) -> Any:
            new = params._replace(table=table)
            return rnn.unroll(cell, new, None, xs, **options)[1].sum()

        rows = [
            np.flatnonzero(np.abs(jax.grad(loss)(params.table, plan=plan)).sum(axis=1) != 0)
            for plan in (rnn.Plan(), rnn.Plan(defer=False))
        ]
        assert rows[0].tolist() == rows[1].tolist() == [1, 2]


def test_the_row_that_is_read_has_the_gradient() -> None:
    """In a cell that indexes a table by itself, JAX reads the last row for a token beyond it."""

    def step(table: Any, h: Any, z: Any) -> Any:
        return h + z, h + z

    cell = rnn.Cell(lambda key: jnp.ones((4, 2)), lambda p: jnp.zeros(2), lambda t, x: t[x], step)
    xs = jnp.array([1, 7])
    loss = lambda table, plan: rnn.unroll(cell, table, None, xs, plan=plan)[0].sum()  # noqa: E731
    for plan in (rnn.Plan(), rnn.Plan(defer=False)):
        grads = jax.grad(loss)(jnp.ones((4, 2)), plan)
        np.testing.assert_array_equal(grads.sum(axis=1), [0, 2, 0, 2])


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_tokens_in_a_small_type(dtype: Any) -> None:
    cell = rnn.embed(rnn.gru(4, 5), 1000, 4)
    params, xs = cell.init(jax.random.key(0)), jnp.array([1, 100], dtype)
    expected = rnn.unroll(cell, params, None, xs.astype(jnp.int32))[1]
    np.testing.assert_array_equal(rnn.unroll(cell, params, None, xs)[1], expected)


def test_generation_refuses_a_first_token_outside_of_the_vocabulary() -> None:
    cell = rnn.readout(rnn.embed(rnn.gru(4, 5), 10, 4), 10)
    with pytest.raises(ValueError, match="token: got 99, expected 0 to 9"):
        generate.greedy(cell, cell.init(jax.random.key(0)), None, 99, 3)


EXPORTED = {
    "unroll": lambda cell, p, xs, mask: rnn.unroll(cell, p, None, xs)[1],
    "mask": lambda cell, p, xs, mask: rnn.unroll(cell, p, None, xs, mask=mask)[1],
    "reset": lambda cell, p, xs, mask: rnn.unroll(cell, p, None, xs, reset=mask)[1],
    "reverse": lambda cell, p, xs, mask: rnn.unroll(cell, p, None, xs, mask=mask, reverse=True)[1],
    "both": lambda cell, p, xs, mask: rnn.bidirectional(cell, cell, (p, p), None, xs, mask=mask)[1],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_one_export_serves_all_lengths_and_batches(name: str) -> None:
    cell = rnn.stack([rnn.lstm(3, 5), rnn.gru(5, 4)])
    params = cell.init(jax.random.key(0))
    run = jax.jit(jax.vmap(lambda xs, mask: EXPORTED[name](cell, params, xs, mask)))
    B, T = export.symbolic_shape("B, T")
    like = jax.ShapeDtypeStruct((B, T, 3), jnp.float32), jax.ShapeDtypeStruct((B, T), bool)
    exported = export.export(run)(*like)
    for batch, steps in ((2, 7), (3, 1)):
        xs = jax.random.normal(jax.random.key(1), (batch, steps, 3))
        mask = jnp.arange(batch * steps).reshape(batch, steps) % 3 != 1
        np.testing.assert_allclose(exported.call(xs, mask), run(xs, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bptt", "rtrl", "truncated_bptt", "deer", "snap", "lstm_1997"])
def test_nothing_makes_a_nan_where_there_is_none(name: str) -> None:
    """`jax_debug_nans` looks at each operation outside of jit."""
    cell = rnn.gru(3, 4)
    params, mask = cell.init(jax.random.key(0)), jnp.array([True, True, False])
    algorithm = getattr(gradients, name)(
        cell, lambda y, t: jnp.sum((y - t) ** 2), **OPTIONS.get(name, {})
    )
    with jax.debug_nans(True):
        (total, _), _ = algorithm(params, None, jnp.ones((3, 3)), jnp.zeros((3, 4)), mask=mask)
    assert np.isfinite(total)


BROKEN = {
    "one value": (lambda h, z: h + z, "got a .*, expected a pair"),
    "three values": (lambda h, z: (h, z, z), "got a tuple of 3, expected a pair"),
    "a state alone": (lambda h, z: rnn.LSTMState(h, z), "got a LSTMState of 2, expected a pair"),
    "another shape": (lambda h, z: (jnp.concatenate([h, z]), z), "cell.step: state: got shape"),
    "another type": (lambda h, z: (h.astype(jnp.bfloat16), z), "cell.step: state: got dtype"),
    "another structure": (lambda h, z: ((h, h), z), "cell.step: state: got the structure"),
}
WAYS = {
    "unroll": lambda cell, xs: rnn.unroll(cell, {}, None, xs),
    "rtrl": lambda cell, xs: gradients.rtrl(cell, lambda y, t: y.sum())({}, None, xs, xs),
    "generate": lambda cell, xs: generate.greedy(cell, {}, None, 0, 3),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_cell_that_breaks_the_contract_is_told(name: str, way: str) -> None:
    step, message = BROKEN[name]
    cell = rnn.Cell(
        lambda key: {}, lambda p: jnp.ones(2), lambda p, x: jnp.ones(2), lambda p, h, z: step(h, z)
    )
    with pytest.raises((TypeError, ValueError), match=message):
        WAYS[way](cell, jnp.ones((5, 2)))


def test_explain_takes_what_unroll_takes() -> None:
    cell = rnn.gru(3, 4)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((40, 3))
    said = rnn.explain(cell, params, None, xs, segment=7, reverse=True)
    assert said.segment == 7
    assert "segments of 7 steps" in str(said)
    assert rnn.explain(cell, params, None, xs, segment=40).segment is None
    assert 1 < rnn.explain(cell, params, None, xs, budget=4000).segment < 40
    with pytest.raises(ValueError, match="segment, budget"):
        rnn.explain(cell, params, None, xs, segment=7, budget=4000)
