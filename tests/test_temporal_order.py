"""The remedies of nets that forget: Pascanu's regulariser and clipping."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax as rnn
from experiments.memory_tasks import KINDS, TASKS
from experiments.temporal_order import Group, Net
from rnn_jax.tasks import memory


def test_the_regulariser_is_its_formula(x64: None) -> None:
    """In NumPy, and its derivative by W alone by finite differences; lam by jax.grad."""
    group = Group(KINDS["tanh"], TASKS["parity"](6), 3, optax.sgd(1.0))
    params = group.model().init(jax.random.key(0))
    params = jax.tree.map(lambda a: a.astype(float), params)
    batch = jax.jit(partial(group.batch, size=4))(jax.random.key(1))
    gradient = jax.jit(jax.grad(group.loss))
    got, plain = (gradient(params, batch, jnp.array(alpha)) for alpha in (3.0, 0.0))

    cell = group.kinds[0].cell(1, 3)
    _, hs = jax.vmap(lambda xs: rnn.unroll(cell, params.cell, None, xs))(batch.xs)
    q = jax.grad(lambda hs: memory.loss(hs @ params.w_y, batch))(hs)
    hs, W, lams = np.asarray(hs), np.asarray(params.cell.w_h), np.array(q)
    for t in reversed(range(5)):  # backpropagation; the steps of the padding come last
        lams[:, t] += (lams[:, t + 1] * (1 - hs[:, t + 1] ** 2)) @ W.T

    def omega(W: np.ndarray) -> float:
        terms = [
            (np.linalg.norm((lam[t] * (1 - h[t] ** 2)) @ W.T) / np.linalg.norm(lam[t]) - 1) ** 2
            for lam, h, mask in zip(lams, hs, np.asarray(batch.mask), strict=True)
            for t in range(1, mask.sum())
        ]
        return float(np.mean(terms))

    numeric = np.zeros_like(W)
    for i in np.ndindex(*W.shape):
        nudge = np.zeros_like(W)
        nudge[i] = 1e-6
        numeric[i] = (omega(W + nudge) - omega(W - nudge)) / 2e-6
    np.testing.assert_allclose(got.cell.w_h - plain.cell.w_h, 3 * numeric, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.cell.w_x, plain.cell.w_x, rtol=1e-10)
    assert np.abs(numeric).max() > 0.01


def test_its_tanh_is_tanh(x64: None) -> None:
    """The net and its gradient are those of an ordinary tanh net."""
    group = Group(KINDS["tanh"], TASKS["parity"](6), 3, optax.sgd(1.0))
    params = group.model().init(jax.random.key(0))
    batch = group.batch(jax.random.key(1), 4)
    plain = rnn.readout(rnn.elman(1, 3), 2, hidden_size=3)

    def loss(model: rnn.Cell, params: Any) -> jax.Array:
        run = partial(rnn.unroll, model, params, None)
        return memory.loss(jax.vmap(lambda xs, mask: run(xs, mask=mask)[1])(*batch[::2]), batch)

    ours, ordinary = (
        jax.jit(jax.value_and_grad(partial(loss, m)))(params) for m in (group.model(), plain)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-15), ours, ordinary)


def test_an_update_is_clipped_and_nothing_infinite_gets_in() -> None:
    group = Group(KINDS["irnn"], TASKS["adding"](5), 4, optax.sgd(1.0))
    net = jax.tree.map(lambda a: a[0], group.nets(2, jax.random.key(0)))
    update = jax.jit(group.update)

    def moved(net: Net) -> float:
        new, _ = update(net, jax.random.key(1))
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params, net.params)))

    free = moved(net._replace(clip=jnp.array(jnp.inf)))
    assert moved(net._replace(clip=jnp.array(free / 3))) == pytest.approx(free / 3, rel=1e-4)
    assert moved(net._replace(clip=jnp.array(free * 3))) == pytest.approx(free, rel=1e-4)
    broken = net.params._replace(b_y=jnp.full(1, 1e30))
    new, _ = update(net._replace(params=broken), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.params, broken)
