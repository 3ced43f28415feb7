"""Two devices: the numbers of one, half the work on each, a layout that stays."""

import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from nets import CELLS
from test_train import bits

import rnn_jax
from rnn_jax import gradients, train

B, T, D, H, O, N = 6, 7, 3, 5, 2, 40
OPTIMIZER = optax.adam(0.01)


def net(H: int = H, dtype: Any = jnp.float32) -> rnn_jax.Cell:
    lower = rnn_jax.dropout(rnn_jax.lstm(D, H, dtype=dtype), 0.3, jax.random.key(0))
    return rnn_jax.readout(rnn_jax.stack([lower, rnn_jax.gru(H, H, dtype=dtype)]), O)


def loss_of(cell: rnn_jax.Cell) -> Any:
    """A mean over the valid steps of the batch, whose weights change from update to update."""

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        xs, targets, mask = batch
        weights = jax.random.uniform(key, (1, 1, O), xs.dtype)
        unroll = jax.vmap(lambda s, xs, m: rnn_jax.unroll(cell, params, s, xs, mask=m))
        carry, ys = unroll(carry, xs, mask)
        return rnn_jax.losses.squared_error(ys * weights, targets, mask), carry

    return loss


def examples(dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    xs, targets = (rng.normal(size=(N, T, size)).astype(dtype) for size in (D, O))
    return xs, targets, rng.random((N, T)) < 0.7


def batch_at(data: Any, step: Any, size: int = B) -> Any:
    rows = (step * size + jnp.arange(size, dtype=jnp.int32)) % N
    return jax.tree.map(lambda a: jnp.asarray(a)[rows], data)


def start(cell: rnn_jax.Cell, mesh: Any = None) -> train.TrainState:
    params = cell.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), B)
    carry = jax.vmap(lambda key: rnn_jax.with_key(cell, key).init_state(params))(keys)
    return train.init(params, carry, OPTIMIZER, jax.random.key(3), mesh=mesh)


def trained(mesh: Any, dtype: Any = jnp.float32, steps: int = 50, H: int = H) -> Any:
    cell = net(H, dtype)
    run = train.make_train(loss_of(cell), batch_at, OPTIMIZER, steps_per_call=10, mesh=mesh)
    return train.fit(run, start(cell, mesh), examples(np.dtype(dtype)), steps=steps)


def apart(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def bound(dtype: Any, steps: int = 50) -> float:
    """How far another order of sums may lead.

    A sum of n terms in another order differs by at most n units of rounding of its terms (Higham:
    "Accuracy and stability of numerical algorithms", 4.2). What a relative error of the gradients
    makes of the params is measured in float64, by one that is put there.
    """
    size = 1e-7
    cell = net(dtype=jnp.float64)
    grad = jax.value_and_grad(loss_of(cell), has_aux=True)

    def disturbed(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        found, grads = grad(params, carry, batch, key)
        leaves, structure = jax.tree.flatten(grads)
        keys = jax.random.split(jax.random.fold_in(key, 9), len(leaves))
        leaves = [
            g + size * jnp.abs(g).max() * jax.random.normal(k, g.shape, g.dtype)
            for g, k in zip(leaves, keys, strict=True)
        ]
        return found, jax.tree.unflatten(structure, leaves)

    run = train.make_train(train.Gradient(disturbed), batch_at, OPTIMIZER, steps_per_call=10)
    other = train.fit(run, start(cell), examples(np.float64), steps=steps)
    growth = apart(other.params, trained(None, jnp.float64, steps).params) / size
    return B * T * float(jnp.finfo(dtype).eps) * growth


def meshes() -> dict[str, Any]:
    return {
        "batch": jax.make_mesh((2,), ("batch",)),
        "units": jax.make_mesh((1, 2), ("batch", "units")),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kind", ["batch", "units"])
def test_two_devices_are_one_but_for_the_order_of_sums(kind: str, dtype: Any, x64: None) -> None:
    """Dropout and a carried state are on: the same masks, whatever the layout."""
    one, two = trained(None, dtype), trained(meshes()[kind], dtype)
    assert apart(two.params, one.params) <= bound(dtype)
    assert apart(two.carry[0].state, one.carry[0].state) <= 100 * bound(dtype)
    assert bits(two.carry[0].key) == bits(one.carry[0].key)
    assert bits((two.step, two.key, two.skipped)) == bits((one.step, one.key, one.skipped))
    assert apart(one.params, start(net(dtype=dtype)).params) > 1e3 * bound(dtype)


def program(run: train.Run, state: train.TrainState, data: Any) -> str:
    return run.compiled.lower(state, data, np.int32(1)).compile().as_text()


def sizes(text: str, operation: str) -> list[list[int]]:
    """The shapes of all arrays of all lines with an operation."""
    lines = [line for line in text.splitlines() if f" {operation}(" in line]
    shapes = (re.findall(r"\w\[([\d,]+)\]", line.split("metadata")[0]) for line in lines)
    return [[int(n) for n in shape.split(",")] for line in shapes for shape in line]


@pytest.mark.parametrize("name", CELLS)
def test_each_device_computes_half_of_every_product(name: str) -> None:
    """The sizes of a batch, 22, and of all its steps are in no product; half of them are."""
    cell, size = CELLS[name], 22
    params = cell.init(jax.random.key(0))
    width = jax.eval_shape(lambda: rnn_jax.unroll(cell, params, None, jnp.zeros((T, D)))[1])

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        xs, targets = batch
        ys = jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs)[1])(xs)
        return ((ys - targets) ** 2).mean(), carry

    rng = np.random.default_rng(0)
    data = [rng.normal(size=(N, T, n)).astype(np.float32) for n in (D, width.shape[-1])]
    mesh = meshes()["batch"]

    def text(mesh: Any) -> str:
        at = lambda data, step: batch_at(data, step, size)  # noqa: E731
        run = train.make_train(loss, at, OPTIMIZER, mesh=mesh)
        return program(run, train.init(params, None, OPTIMIZER, jax.random.key(0), mesh=mesh), data)

    whole = {size, size * T}
    assert any(whole & set(shape) for shape in sizes(text(None), "dot"))
    both = text(mesh)
    found = sizes(both, "dot")
    assert found
    assert not [shape for shape in found if whole & set(shape)]
    assert any({size // 2, size // 2 * T} & set(shape) for shape in found)
    gradients = len(jax.tree.leaves(params))
    reduced = [line for line in both.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    assert 1 <= len(reduced) <= gradients + 2  # the loss, and whether all is finite


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """How often `run` of `make_train` was compiled so far."""
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        yield lambda: sum(
            "Finished XLA compilation of jit(run)" in record.getMessage()
            for record in caplog.records
        )


@pytest.mark.parametrize("kind", ["batch", "units"])
def test_the_layout_stays_and_nothing_compiles_anew(kind: str, compilations: Any) -> None:
    mesh = meshes()[kind]
    state = trained(mesh, steps=30, H=8)  # XLA would like to split the carry by units too
    assert compilations() == 1
    wanted = train.shardings(state, mesh)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_where_each_leaf_lies() -> None:
    """Params by units; the carry by sequences; on an abstract mesh, without the devices."""
    state = jax.eval_shape(lambda: start(net(H=8)))
    found = train.shardings(state, AbstractMesh((3, 4), ("rows", "units")))
    lower, upper = found.params.cell
    assert [lower.w_x.spec, lower.w_h.spec] == [PartitionSpec(None, "units")] * 2
    assert upper.b.spec == PartitionSpec("units")
    assert found.params.w_y.spec == PartitionSpec()  # [8, 2] over 4 devices
    assert found.opt_state[0].mu.cell[0].w_x.spec == PartitionSpec(None, "units")
    assert found.opt_state[0].count.spec == found.step.spec == found.key.spec == PartitionSpec()
    assert found.carry[1].spec == PartitionSpec("rows")
    many = jax.eval_shape(lambda: jax.vmap(lambda _: start(net(H=8)))(jnp.zeros(7)))
    found = train.shardings(many, AbstractMesh((3, 4), ("rows", "units")))
    assert found.carry[1].spec == PartitionSpec(None, "rows")
    assert found.params.cell[0].b.spec == PartitionSpec(None, "units")
    assert found.step.spec == PartitionSpec()


def test_a_state_is_split_from_the_start() -> None:
    mesh = meshes()["units"]
    for state in (jax.jit(lambda: start(net(), mesh))(), start(net(), mesh)):
        w = state.params.cell[0].w_h
        assert {part.data.shape for part in w.addressable_shards} == {(H, 2 * H)}
        nu = state.opt_state[0].nu.cell[0].w_h
        assert {part.data.shape for part in nu.addressable_shards} == {(H, 2 * H)}
        assert bits(state) == bits(start(net()))


def test_a_wide_layer_over_two_devices_equals_one() -> None:
    cell = rnn_jax.lstm(16, 1024)

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        ys = jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs)[1])(batch)
        return (ys**2).mean(), carry

    xs = np.random.default_rng(0).normal(size=(4, 5, 16)).astype(np.float32)

    def after(mesh: Any) -> Any:
        run = train.make_train(loss, lambda data, step: data, optax.sgd(1.0), mesh=mesh)

        @jax.jit
        def begin() -> train.TrainState:
            params = cell.init(jax.random.key(0))
            return train.init(params, None, optax.sgd(1.0), jax.random.key(1), mesh=mesh)

        return train.fit(run, begin(), xs, steps=3)

    one, two = after(None), after(meshes()["units"])
    assert {part.data.shape for part in two.params.w_h.addressable_shards} == {(1024, 2048)}
    # Sums of 1024 products, in another order, of numbers below 1; three updates.
    assert apart(two.params, one.params) <= 3 * 1024 * float(jnp.finfo(jnp.float32).eps)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("how", ["argument", "ambient", "data there", "rows there"])
def test_however_the_mesh_is_given(how: str, kind: AxisType) -> None:
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    expected = trained(meshes()["batch"], steps=10)
    cell, data = net(), examples()
    if how == "ambient":
        with jax.set_mesh(mesh):
            run = train.make_train(loss_of(cell), batch_at, OPTIMIZER, steps_per_call=10)
            found = train.fit(run, start(cell), data, steps=10)
        assert found.carry[1].sharding.spec == PartitionSpec("batch")
    else:
        spec = PartitionSpec("batch") if how == "rows there" else PartitionSpec()
        data = data if how == "argument" else jax.device_put(data, NamedSharding(mesh, spec))
        run = train.make_train(loss_of(cell), batch_at, OPTIMIZER, steps_per_call=10, mesh=mesh)
        found = train.fit(run, start(cell, mesh), data, steps=10)
    assert apart(found.params, expected.params) <= 1e-6


def test_batches_from_the_host_are_split() -> None:
    """The same as from the device, with the time axis first too."""
    cell, data = net(), examples()
    expected = trained(None, steps=20)
    batches = (jax.tree.map(np.asarray, batch_at(data, step)) for step in range(20))
    run = train.make_train(loss_of(cell), None, OPTIMIZER, steps_per_call=6, mesh=meshes()["batch"])
    found = train.fit(run, start(cell, run.mesh), batches, steps=20)
    assert apart(found.params, expected.params) <= 1e-6

    def turned(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return loss_of(cell)(params, carry, jax.tree.map(lambda a: a.swapaxes(0, 1), batch), key)

    at = lambda data, step: jax.tree.map(lambda a: a.swapaxes(0, 1), batch_at(data, step))  # noqa: E731
    run = train.make_train(
        turned, at, OPTIMIZER, steps_per_call=10, mesh=meshes()["batch"], batch_axes=1
    )
    found = train.fit(run, start(cell, run.mesh), data, steps=20)
    assert apart(found.params, expected.params) <= 1e-6

    batches = (jax.tree.map(np.asarray, at(data, step)) for step in range(20))
    run = train.make_train(
        turned, None, OPTIMIZER, steps_per_call=6, mesh=meshes()["batch"], batch_axes=1
    )
    found = train.fit(run, start(cell, run.mesh), batches, steps=20)
    assert apart(found.params, expected.params) <= 1e-6


@pytest.mark.parametrize("name", ["bptt", "snap", "uoro", "forward_gradient"])
def test_any_gradient_algorithm_on_two_devices(name: str) -> None:
    """Random ones draw the same numbers."""
    cell = rnn_jax.readout(rnn_jax.gru(D, H), O)
    entry = gradients.REGISTER[name]
    algorithm = entry.algorithm(cell, lambda y, target: ((y - target) ** 2).sum(), **entry.options)
    params = cell.init(jax.random.key(0))
    carry = jnp.zeros((B, H))

    def after(mesh: Any) -> Any:
        run = train.make_train(algorithm, batch_at, OPTIMIZER, steps_per_call=4, mesh=mesh)
        state = train.init(params, carry, OPTIMIZER, jax.random.key(1), mesh=mesh)
        return train.fit(run, state, examples(), steps=8)

    one, two = after(None), after(meshes()["batch"])
    assert apart(one.params, two.params) <= 1e-5
    assert apart(one.carry, two.carry) <= 1e-5
    assert two.carry.sharding.spec == PartitionSpec("batch")


def test_nets_side_by_side_on_two_devices() -> None:
    cell = net()
    mesh = meshes()["batch"]
    one = train.make_train(loss_of(cell), batch_at, OPTIMIZER, steps_per_call=10, mesh=mesh)
    many = train.side_by_side(one)
    state = jax.tree.map(lambda *rows: jnp.stack(rows), start(cell), start(cell))
    state = train.fit(many, state, examples(), steps=20)
    expected = trained(None, steps=20)
    for i in range(2):
        mine = jax.tree.map(lambda a, i=i: a[i], state.params)
        assert apart(mine, expected.params) <= 1e-6
    assert state.carry[1].sharding.spec == PartitionSpec(None, "batch")


def test_what_cannot_be_split_is_refused() -> None:
    cell, mesh = net(), meshes()["batch"]
    odd = lambda data, step: batch_at(data, step, 5)  # noqa: E731
    run = train.make_train(loss_of(cell), odd, OPTIMIZER, mesh=mesh)
    with pytest.raises(ValueError, match=r"batch\[0\]: got shape \(5, 7, 3\), .* multiple of 2"):
        train.fit(run, start(cell, mesh), examples(), steps=1)
    run = train.make_train(loss_of(cell), batch_at, OPTIMIZER, mesh=mesh, batch_axes=(0, 0, 3))
    with pytest.raises(ValueError, match=r"batch\[2\]: .* expected an axis 3"):
        train.fit(run, start(cell, mesh), examples(), steps=1)
    cube = jax.make_mesh((1, 1, 1), ("a", "b", "c"))
    with pytest.raises(ValueError, match="expected one, over which the batch is split"):
        train.make_train(loss_of(cell), batch_at, OPTIMIZER, mesh=cube)


def test_a_leaf_that_all_devices_need_whole() -> None:
    """None in batch_axes, and scalars, are not split."""

    def loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return (batch["x"] @ batch["w"] * params * batch["c"]).mean(), carry

    def at(data: Any, step: Any) -> Any:
        return {"x": data, "w": jnp.arange(3, dtype=jnp.float32), "c": jnp.float32(2.0)}

    mesh = meshes()["batch"]
    run = train.make_train(
        loss, at, optax.sgd(1.0), mesh=mesh, batch_axes={"x": 0, "w": None, "c": 0}
    )
    state = train.init(jnp.float32(0), None, optax.sgd(1.0), jax.random.key(0), mesh=mesh)
    state, _ = run(state, np.ones((4, 3), np.float32))
    assert math.isclose(state.params, -6.0)
