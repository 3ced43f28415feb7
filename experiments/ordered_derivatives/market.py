"""A market for one commodity: its price clears demand, supply and imports in each period.

    log d = demand + income log(income) - price q + habit log(d_before)
    log s = supply + response q + capacity q_before - cost log(cost)
    log m = imports + trade (q - log(world))
    d = s + m, solved for q, the logarithm of the price

It is a cell: the state is (q_before, log d_before), an input the three series, an output the price
and the quantity. The target is what consumers pay in all periods together.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments.harness.measure import Program, times

T, SERIES = 20, ("income", "cost of production", "world price")
NEWTON = 8
SCENARIOS = 50  # for the times: one alone takes no longer than it takes to start a program


class Params(NamedTuple):
    """Ten elasticities and levels."""

    demand: jax.Array  # all are []
    income: jax.Array
    price: jax.Array
    habit: jax.Array
    supply: jax.Array
    response: jax.Array
    capacity: jax.Array
    cost: jax.Array
    imports: jax.Array
    trade: jax.Array


class Inputs(NamedTuple):
    """All that the target depends on."""

    params: Params
    series: jax.Array  # [T, 3]
    start: tuple[jax.Array, jax.Array]  # q and log d before the first period


Solve = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]  # (excess, guess) -> q


def newton(excess: Callable[[jax.Array], jax.Array], guess: jax.Array) -> jax.Array:
    """A root by a fixed number of Newton's steps."""

    def step(_: int, q: jax.Array) -> jax.Array:
        value, slope = jax.jvp(excess, (q,), (jnp.ones_like(q),))
        return q - value / slope

    return jax.lax.fori_loop(0, NEWTON, step, guess)


def implicit(excess: Callable[[jax.Array], jax.Array], guess: jax.Array) -> jax.Array:
    """Newton's root; its derivative is that of the implicit function, dq = -d(excess) / slope."""

    def tangent(linear: Callable, y: jax.Array) -> jax.Array:
        return y / linear(jnp.ones_like(y))

    return jax.lax.custom_root(excess, guess, newton, tangent)


def relaxed(
    iterations: int, excess: Callable[[jax.Array], jax.Array], guess: jax.Array
) -> jax.Array:
    """The price rises with the excess demand, again and again; differentiated through it all."""
    return jax.lax.fori_loop(0, iterations, lambda _, q: q + 0.25 * excess(q), guess)


def market(solve: Solve = implicit) -> rnn_jax.Cell:
    """The cell; `solve` finds the price."""

    def init(key: jax.Array) -> Params:
        del key
        values = (0.3, 0.8, 0.4, 0.3, -0.2, 0.3, 0.2, 0.5, -1.5, 0.9)
        return Params(*(jnp.array(value, float) for value in values))

    def step(p: Params, state: Any, x: jax.Array) -> Any:
        q_before, d_before = state
        income, cost, world = jnp.log(x)

        def demand(q: jax.Array) -> jax.Array:
            return p.demand + p.income * income - p.price * q + p.habit * d_before

        def excess(q: jax.Array) -> jax.Array:
            supply = p.supply + p.response * q + p.capacity * q_before - p.cost * cost
            imports = p.imports + p.trade * (q - world)
            return jnp.exp(demand(q)) - jnp.exp(supply) - jnp.exp(imports)

        q = solve(excess, q_before)
        return (q, demand(q)), jnp.exp(jnp.stack([q, demand(q)]))

    def init_state(p: Params) -> Any:
        return (jnp.zeros_like(p.demand),) * 2

    return rnn_jax.Cell(init, init_state, lambda params, x: x, step)


def make_inputs(seed: int = 0) -> Inputs:
    """Series that grow and stagger around 1."""
    k1, k2 = jax.random.split(jax.random.key(seed))
    growth = jnp.array([[0.02, 0.01, 0.015]]) + 0.05 * jax.random.normal(k1, (T, 3), float)
    start = 0.1 * jax.random.normal(k2, (2,), float)
    return Inputs(market().init(k1), jnp.exp(jnp.cumsum(growth, axis=0)), (start[0], start[1]))


def spent(solve: Solve, inputs: Inputs) -> jax.Array:
    """The target: the price times the quantity, summed over the periods."""
    _, ys = rnn_jax.unroll(market(solve), inputs.params, inputs.start, inputs.series)
    return jnp.sum(ys[:, 0] * ys[:, 1])


def sensitivity(rounds: int, seconds: float) -> dict[str, Any]:
    """One sweep against one run for each input: agreement, times, and a ranking of the inputs."""
    inputs = make_inputs()
    flat, restore = ravel_pytree(inputs)
    target = lambda flat: spent(implicit, restore(flat))  # noqa: E731
    step = 1e-6

    def one_by_one(flat: jax.Array) -> jax.Array:
        base = target(flat)
        moves = step * jnp.eye(flat.size, dtype=flat.dtype)
        return jax.lax.map(lambda move: (target(flat + move) - base) / step, moves)

    ways = {
        "one sweep": jax.grad(target),
        "a run for each": one_by_one,
        "all runs at once": jax.jacfwd(target),
        "the target alone": target,
    }
    scenarios = jnp.stack([ravel_pytree(make_inputs(seed))[0] for seed in range(SCENARIOS)])
    programs = {
        name: Program(jax.jit(partial(jax.lax.map, f)), scenarios) for name, f in ways.items()
    }
    results = {name: np.asarray(p())[0] for name, p in programs.items()}
    each = times(programs, rounds=rounds, seconds=seconds)
    gradient = results["one sweep"]
    scale = np.abs(gradient).max()
    derivative = restore(jnp.asarray(gradient))
    return {
        "inputs": flat.size,
        "target": float(results["the target alone"]),
        "gap": {
            name: float(np.abs(results[name] - gradient).max() / scale)
            for name in ("a run for each", "all runs at once")
        },
        "seconds": {name: float(np.median(t)) / SCENARIOS for name, t in each.items()},
        "ratio": {name: float(np.median(t / each["one sweep"])) for name, t in each.items()},
        "elasticity": elasticities(inputs, derivative, float(results["the target alone"])),
        "by_period": (derivative.series * inputs.series).T.tolist(),
    }


def elasticities(inputs: Inputs, derivative: Inputs, target: float) -> list[tuple[str, float]]:
    """By how many percent the target moves, for a percent more of an input; largest first.

    A level (demand, supply, imports) is a logarithm: 0.01 more is a percent. A series moves in all
    periods together.
    """
    found: dict[str, float] = {}
    for name, value, slope in zip(Params._fields, inputs.params, derivative.params, strict=True):
        level = name in ("demand", "supply", "imports")
        found[f"{name} ({'level' if level else 'elasticity'})"] = float(
            slope if level else value * slope
        )
    for k, name in enumerate(SERIES):
        found[name] = float(jnp.sum(derivative.series[:, k] * inputs.series[:, k]))
    for name, slope in zip(("price", "quantity"), derivative.start, strict=True):
        found[f"{name} before the start"] = float(slope)
    ranked = sorted(found.items(), key=lambda item: -abs(item[1]))
    return [(name, value / target) for name, value in ranked]


def simultaneous(iterations: tuple[int, ...]) -> dict[str, Any]:
    """The gradient through more and more iterations of the price, against the implicit one."""
    inputs = make_inputs()

    def gradient(solve: Solve) -> Program:
        return Program(jax.jit(jax.grad(partial(spent, solve))), inputs)

    exact = gradient(implicit)
    expected, _ = ravel_pytree(exact())
    gaps, sizes = [], []
    for n in iterations:
        program = gradient(partial(relaxed, n))
        found, _ = ravel_pytree(program())
        gaps.append(float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected))))
        sizes.append(program.bytes)
    found, _ = ravel_pytree(gradient(newton)())
    return {
        "iterations": iterations,
        "gap": gaps,
        "bytes": sizes,
        "bytes_implicit": exact.bytes,
        "gap_newton": float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected))),
    }
