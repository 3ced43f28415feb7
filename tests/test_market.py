"""The market: its equations, its gradient, and what is said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments import market

pytestmark = pytest.mark.usefixtures("x64")


def test_the_price_clears_the_market() -> None:
    inputs = market.make_inputs(2)
    p = inputs.params
    _, ys = rnn_jax.unroll(market.market(), p, inputs.start, inputs.series)
    q_before, d_before = inputs.start
    for (income, cost, world), (price, quantity) in zip(inputs.series, ys, strict=True):
        q = jnp.log(price)
        demand = p.demand + p.income * jnp.log(income) - p.price * q + p.habit * d_before
        supply = p.supply + p.response * q + p.capacity * q_before - p.cost * jnp.log(cost)
        bought = jnp.exp(p.imports + p.trade * (q - jnp.log(world)))
        assert quantity == pytest.approx(float(jnp.exp(demand)), rel=1e-12)
        assert quantity == pytest.approx(float(jnp.exp(supply) + bought), rel=1e-12)
        q_before, d_before = q, demand


def test_the_implicit_gradient_is_a_finite_difference() -> None:
    inputs = market.make_inputs(1)
    flat, restore = ravel_pytree(inputs)
    target = jax.jit(lambda flat: market.spent(market.implicit, restore(flat)))
    gradient = jax.jit(jax.grad(target))(flat)
    moves = 1e-5 * jnp.eye(len(flat))
    slopes = [float(target(flat + move) - target(flat - move)) / 2e-5 for move in moves]
    np.testing.assert_allclose(gradient, slopes, atol=1e-6)


def test_a_percent_more_does_what_the_ranking_says() -> None:
    inputs = market.make_inputs()
    spent = jax.jit(lambda inputs: market.spent(market.implicit, inputs))
    base, derivative = jax.jit(jax.value_and_grad(spent))(inputs)
    ranking = dict(market.elasticities(inputs, derivative, float(base)))
    assert len(ranking) == 15
    sizes = np.abs(list(ranking.values()))
    assert (np.diff(sizes) <= 0).all()
    p, more = inputs.params, 1 + 1e-4
    moved = {
        "income": inputs._replace(series=inputs.series * jnp.array([[more, 1, 1]])),
        "world price": inputs._replace(series=inputs.series * jnp.array([[1, 1, more]])),
        "habit (elasticity)": inputs._replace(params=p._replace(habit=p.habit * more)),
        "supply (level)": inputs._replace(params=p._replace(supply=p.supply + jnp.log(more))),
        "price before the start": inputs._replace(
            start=(inputs.start[0] + jnp.log(more), inputs.start[1])
        ),
    }
    for name, other in moved.items():
        change = float(spent(other) / base) - 1
        assert change / 1e-4 == pytest.approx(ranking[name], abs=1e-3)


def test_verdicts_can_be_negative() -> None:
    config = market.Config(iterations=(5, 80))
    gap = {"a run for each": 1e-6, "all runs at once": 1e-16}
    ratio = {"a run for each": 20.4, "all runs at once": 2.0}
    seconds = {"one sweep": 2e-5, "a run for each": 4e-4, "the target alone": 1e-5}
    m = {"inputs": 3, "elasticity": [("income", 1.5)], "seconds": seconds}
    price = {"gap": [1e-2, 1e-12], "bytes": [1000, 2000], "bytes_implicit": 100}
    text = market.summary({"market": m | {"gap": gap, "ratio": ratio}, "price": price}, config)
    assert "one sweep 20.0 us, a run for each input 400.0 us: 20 times as long" in text
    assert "5: 1e-02, 80: 1e-12; memory 20 times as much: reproduced" in text
    assert text.count(": reproduced") == 2
    price["gap"] = [1e-2, 1e-3]
    for bad in (
        {"gap": gap | {"all runs at once": 1e-3}},
        {"ratio": ratio | {"a run for each": 1}},
    ):
        found = {"market": m | {"gap": gap, "ratio": ratio} | bad, "price": price}
        assert market.summary(found, config).count(": NOT reproduced") == 2
