"""Sensitivity of a market: one sweep backward gives what a percent more of each input does.

The market is for one commodity; its price clears demand, supply and imports in each period:

    log d = demand + income log(income) - price q + habit log(d_before)
    log s = supply + response q + capacity q_before - cost log(cost)
    log m = imports + trade (q - log(world))
    d = s + m, solved for q, the logarithm of the price

It is a cell: the state is (q_before, log d_before), an input the three series, an output the price
and the quantity. The target is what consumers pay in all periods together. Its derivatives to all
parameters, series and the start are compared with one run for each, and with gradients through
the iterations that find the price: simultaneous equations inside the loop over time.

    python -m experiments.market

After Werbos, Backpropagation through time: what it does and how to do it, 1990; he studied a model
of the market for natural gas, this one is an invention of ours.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.measure import Program, apart, machine, times
from experiments.harness.study import Options, Progress, Study, verdict

T, SERIES = 20, ("income", "cost of production", "world price")
NEWTON = 8
SCENARIOS = 50  # for the times: one alone takes no longer than it takes to start a program


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Sensitivity of a market by one sweep, and the implicit adjoint of its price (Werbos 1990).

    Writes market.png and numbers.json.
    """

    iterations: tuple[int, ...] = (5, 10, 20, 40, 80, 160)
    """Numbers of iterations that find the price, for the gradient through all of them."""
    rounds: int = 15
    """Rounds in which the sensitivities are timed, at least."""
    seconds: float = 5.0
    """How long the rounds go on."""

    def check(self) -> None:
        super().check()
        command.some(self, "iterations")
        command.at_least(self, iterations=1, rounds=1, seconds=0.0)


QUICK = Config(quick=True, iterations=(5, 80), rounds=3, seconds=0.2)
# fmt: on


class Params(NamedTuple):
    """Elasticities, and three levels (demand, supply, imports); all are []."""

    demand: Any = 0.3
    income: Any = 0.8
    price: Any = 0.4
    habit: Any = 0.3
    supply: Any = -0.2
    response: Any = 0.3
    capacity: Any = 0.2
    cost: Any = 0.5
    imports: Any = -1.5
    trade: Any = 0.9


class Inputs(NamedTuple):
    """All that the target depends on."""

    params: Params
    series: jax.Array  # [T, 3]
    start: tuple[jax.Array, jax.Array]  # q and log d before the first period


Excess = Callable[[jax.Array], jax.Array]  # demand beyond supply at a price
Solve = Callable[[Excess, jax.Array], jax.Array]  # (excess, guess) -> the q at which it is 0


def newton(excess: Excess, guess: jax.Array) -> jax.Array:
    """A root by a fixed number of Newton's steps."""

    def step(_: int, q: jax.Array) -> jax.Array:
        value, slope = jax.jvp(excess, (q,), (jnp.ones_like(q),))
        return q - value / slope

    return jax.lax.fori_loop(0, NEWTON, step, guess)


def implicit(excess: Excess, guess: jax.Array) -> jax.Array:
    """Newton's root; its derivative is that of the implicit function, dq = -d(excess) / slope."""

    tangent = lambda linear, y: y / linear(jnp.ones_like(y))  # noqa: E731
    return jax.lax.custom_root(excess, guess, newton, tangent)


def relaxed(iterations: int, excess: Excess, guess: jax.Array) -> jax.Array:
    """The price rises with the excess demand, again and again; differentiated through it all."""
    return jax.lax.fori_loop(0, iterations, lambda _, q: q + 0.25 * excess(q), guess)


def market(solve: Solve = implicit) -> rnn_jax.Cell:
    """The cell; `solve` finds the price."""

    def init(key: jax.Array) -> Params:
        return jax.tree.map(lambda value: jnp.array(value, float), Params())

    def init_state(p: Params) -> Any:
        return (jnp.zeros_like(p.demand),) * 2

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


def sensitivity(config: Config, say: Progress) -> dict[str, Any]:
    """One sweep against one run for each input: agreement, times, and a ranking of the inputs."""
    inputs = make_inputs(config.seed)
    flat, restore = ravel_pytree(inputs)
    target = lambda flat: spent(implicit, restore(flat))  # noqa: E731

    def one_by_one(flat: jax.Array, step: float = 1e-6) -> jax.Array:
        base, moves = target(flat), step * jnp.eye(flat.size, dtype=flat.dtype)
        return jax.lax.map(lambda move: (target(flat + move) - base) / step, moves)

    ways = {
        "one sweep": jax.grad(target),
        "a run for each": one_by_one,
        "all runs at once": jax.jacfwd(target),
        "the target alone": target,
    }
    seeds = range(config.seed, config.seed + SCENARIOS)
    scenarios = jnp.stack([ravel_pytree(make_inputs(seed))[0] for seed in seeds])
    programs = {
        name: Program(jax.jit(partial(jax.lax.map, f)), scenarios) for name, f in ways.items()
    }
    sweep, runs, forward, value = (np.asarray(program())[0] for program in programs.values())
    taken = times(programs, rounds=config.rounds, seconds=config.seconds, note=say.note)
    derivative = restore(jnp.asarray(sweep))
    return {
        "inputs": flat.size,
        "target": float(value),
        "gap": {"a run for each": apart(runs, sweep), "all runs at once": apart(forward, sweep)},
        "seconds": {name: np.median(t) / SCENARIOS for name, t in taken.items()},
        "ratio": {name: np.median(t / taken["one sweep"]) for name, t in taken.items()},
        "elasticity": elasticities(inputs, derivative, float(value)),
        "by_period": np.asarray(derivative.series * inputs.series).T,
    }


def elasticities(inputs: Inputs, derivative: Inputs, target: float) -> list[tuple[str, float]]:
    """By how many percent the target moves, for a percent more of an input; largest first.

    A level is a logarithm, and so is the start: 0.01 more is a percent. A series moves in all
    periods together.
    """
    levels = dict.fromkeys(("demand", "supply", "imports"), 1.0)
    kinds = [f"{n} ({'level' if n in levels else 'elasticity'})" for n in Params._fields]
    names = (*kinds, *SERIES, "price before the start", "quantity before the start")
    params = map(np.multiply, derivative.params, inputs.params._replace(**levels))
    series = np.sum(derivative.series * inputs.series, axis=0)
    found = [float(value) / target for value in (*params, *series, *derivative.start)]
    return sorted(zip(names, found, strict=True), key=lambda item: -abs(item[1]))


def simultaneous(config: Config) -> dict[str, Any]:
    """The gradient through more and more iterations of the price, against the implicit one."""
    inputs = make_inputs(config.seed)
    through: list[Solve] = [partial(relaxed, n) for n in config.iterations]
    solvers = [*through, newton, implicit]
    programs = [Program(jax.jit(jax.grad(partial(spent, solve))), inputs) for solve in solvers]
    *gradients, exact = (ravel_pytree(program())[0] for program in programs)
    *gaps, gap_newton = (apart(gradient, exact) for gradient in gradients)
    *sizes, _, size = (program.bytes for program in programs)
    return {"gap": gaps, "gap_newton": gap_newton, "bytes": sizes, "bytes_implicit": size}


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    say.expect(2)
    say("sensitivity")
    found = sensitivity(config, say)
    say("simultaneous equations")
    return {"machine": machine(), "market": found, "price": simultaneous(config)}


def summary(found: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    m, price = found["market"], found["price"]
    us = {name: f"{1e6 * seconds:.1f} us" for name, seconds in m["seconds"].items()}
    runs, forward = (m["gap"][name] for name in ("a run for each", "all runs at once"))
    ratio, ratio_forward = m["ratio"]["a run for each"], m["ratio"]["all runs at once"]
    top = ", ".join(f"{name} {value:+.2f}" for name, value in m["elasticity"][:5])
    gaps = [f"{n}: {g:.0e}" for n, g in zip(config.iterations, price["gap"], strict=True)]
    memory = price["bytes"][-1] / price["bytes_implicit"]
    return (
        f"A market, {m['inputs']} inputs (parameters, series, start): one sweep "
        f"{us['one sweep']}, a run for each input {us['a run for each']}: {ratio:.0f} times as "
        f"long; the target alone {us['the target alone']}\n"
        f"   apart from the runs {runs:.0e}, from forward mode (all at once, {ratio_forward:.1f} "
        f"times as long) {forward:.0e}: "
        f"{verdict(runs < 1e-4 and forward < 1e-10 and bool(ratio > 1))}\n"
        f"   percent for a percent: {top}\n"
        "Price that clears the market in each period: gradient through its iterations, apart "
        f"from the implicit one\n   {', '.join(gaps)}; memory {memory:.0f} times as much: "
        f"{verdict(price['gap'][-1] < 1e-9)}"
    )


def draw(numbers: dict[str, Any], config: Config) -> Figure:
    """The ranking of the inputs, when each series counts, and what iterations of the price miss."""
    found, gaps = numbers["market"], np.maximum(numbers["price"]["gap"], 1e-17)
    figure, (bars, lines, right) = plots.panels(1, 3, size=(16, 5), width_ratios=(3, 2, 2))
    names, values = zip(*reversed(found["elasticity"]), strict=True)
    bars.barh(names, values, color=["C0" if v > 0 else "C3" for v in values])
    bars.set(title="One percent more of each input", xlabel="percent more spent in all periods")
    bars.axvline(0, color="k", linewidth=0.8)
    for name, values in zip(SERIES, found["by_period"], strict=True):
        lines.plot(range(1, T + 1), values / found["target"], "o-", label=name)
    lines.axhline(0, color="k", linewidth=0.8)
    lines.set(title="... in one period alone", xlabel="period", ylabel="percent more spent")
    lines.set_xticks(range(1, T + 1, 3))
    lines.legend()
    right.loglog(config.iterations, gaps, "o-", label="gradient through the iterations")
    right.set(title="Price that clears the market", xlabel="iterations in each period")
    right.set_ylabel("relative distance from the implicit gradient")
    plots.x_ticks(right, config.iterations)
    right.legend()
    return figure


STUDY = Study("market", Config, QUICK, measure, summary, {"market.png": draw}, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
