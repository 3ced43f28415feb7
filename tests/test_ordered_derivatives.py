"""Werbos's demonstrations: each against something computed in another way."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments.ordered_derivatives import __main__ as program
from experiments.ordered_derivatives import lags, market, ordered, plant
from experiments.ordered_derivatives.config import QUICK

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a quick run, what it printed and its numbers."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        assert program.main(["--quick", "--run", str(folder)]) == 0
    return folder, "\n".join(printed), json.loads((folder / "numbers.json").read_text())


# The list of elementary functions


@pytest.mark.parametrize("name", list(ordered.FUNCTIONS))
def test_slopes_are_the_derivatives(name: str) -> None:
    f, slopes = ordered.FUNCTIONS[name]
    arguments = [0.7, -1.3][: 2 if name in ("add", "multiply") else 1]
    expected = jax.grad(lambda args: f(jnp, *args))(list(map(jnp.array, arguments)))
    np.testing.assert_allclose(slopes(np, *arguments), expected, rtol=1e-14)


def test_a_list_by_hand() -> None:
    """T = sin(x y) + x."""
    entries = (("multiply", (0, 1)), ("sine", (2,)), ("add", (3, 0)))
    system = ordered.System(2, tuple(ordered.Entry(*entry) for entry in entries))
    x, y = 0.4, 1.7
    z = ordered.evaluate(system, [x, y])
    np.testing.assert_allclose(z[2:], [x * y, np.sin(x * y), np.sin(x * y) + x])
    F, count = ordered.backward(system, z)
    np.testing.assert_allclose(F, [y * np.cos(x * y) + 1, x * np.cos(x * y), np.cos(x * y), 1, 1])
    assert count == 5
    value, count = ordered.perturbation(system, z, 1)  # x does not move, nor does the last add's
    assert value == pytest.approx(F[1])
    assert count == 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sweep_is_jax_grad_is_perturbation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = ordered.random_system(rng, 5, 30)
    values = rng.normal(size=5)
    z = ordered.evaluate(system, values)
    F, count = ordered.backward(system, z)
    forward = [ordered.perturbation(system, z, i)[0] for i in range(len(z))]
    np.testing.assert_allclose(F, ordered.by_jax(system, values), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(F, forward, rtol=1e-12, atol=1e-14)
    assert count == sum(len(entry.reads) for entry in system.entries)
    read = {i for entry in system.entries for i in entry.reads}
    assert read == set(range(len(z) - 1))  # all but the target is read


# The net with lags


def test_the_net_with_lags_swept_by_hand_is_bptt() -> None:
    found = lags.study(seed=1, T=9)
    assert max(found["gap"].values()) < 1e-12


def test_the_sweep_by_hand_is_a_finite_difference() -> None:
    cell = lags.net(2, 3, 2)
    weights = cell.init(jax.random.key(3))
    X = np.random.default_rng(0).normal(size=(4, 2))
    targets = np.random.default_rng(1).normal(size=(4, 2))
    F, _ = lags.sweep(weights, X, targets)
    flat, restore = ravel_pytree(weights)

    @jax.jit
    def error(flat: jax.Array) -> jax.Array:
        _, ys = rnn_jax.unroll(cell, restore(flat), None, X)
        return jnp.sum((ys - targets) ** 2) / 2

    moves = 1e-5 * np.eye(len(flat))
    slopes = [float(error(flat + move) - error(flat - move)) / 2e-5 for move in moves]
    np.testing.assert_allclose(ravel_pytree(F)[0], slopes, atol=1e-9)
    assert all(np.abs(f).max() > 1e-3 for f in F)


# The plant


def test_plant_and_model_are_their_equations() -> None:
    u = np.random.default_rng(0).uniform(-2, 2, 7)
    cell = plant.net(3)
    params = cell.init(jax.random.key(1))._replace(c=jnp.array(0.3))
    y, m, ys, ms = 0.0, 0.0, [0.0], []
    for step in u:
        y = y / (1 + y * y) + step**3
        hidden = np.tanh(params.w_u * step + params.w_y * m + params.b)
        m = float(hidden @ np.asarray(params.v)) + 0.3
        ys.append(y)
        ms.append(m)
    np.testing.assert_allclose(plant.run_plant(jnp.asarray(u)), ys, rtol=1e-12)
    np.testing.assert_allclose(plant.free_run(cell, params, jnp.asarray(u)), ms, rtol=1e-12)


def test_one_step_reads_the_measured_output_and_simulation_its_own() -> None:
    cell = plant.net(4)
    params = cell.init(jax.random.key(0))
    losses = plant.losses(cell)
    u = jnp.array([[0.5, -1.5], [1.2, 0.1]])
    y = jnp.array([[0.0, 2.0, -1.0], [0.0, 0.7, 3.0]])
    data, other = plant.Data(u, y), plant.Data(u, y.at[:, 1].add(1.0))
    model = lambda y, u: cell.step(params, jnp.asarray(y), jnp.asarray(u))[1]  # noqa: E731
    first = np.array([model(0.0, 0.5), model(0.0, 1.2)])
    for now in (data, other):
        forced = [model(now.y[0, 1], -1.5), model(now.y[1, 1], 0.1)]
        own = [model(first[0], -1.5), model(first[1], 0.1)]
        for name, second in (("one step", forced), ("simulation", own)):
            errors = np.stack([first, np.array(second)], axis=1) - now.y[:, 1:]
            assert losses[name](params, now) == pytest.approx(np.mean(errors**2))


def test_noise_is_in_the_measured_output_alone() -> None:
    clean, noisy = (plant.measured(jax.random.key(5), jnp.array(n)) for n in (0.0, 0.5))
    np.testing.assert_array_equal(clean.u, noisy.u)
    assert not noisy.y[:, 0].any()
    assert np.std(noisy.y - clean.y) == pytest.approx(0.5, rel=0.15)
    np.testing.assert_allclose(clean.y, jax.vmap(plant.run_plant)(clean.u))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fixed", 1.0),
        ("a + b cos", 0.9 - 0.2 * 22 / np.sqrt(125 * 13)),
        ("a + b g.last / |last|^2", 0.9 - 0.2 * 22 / 13),
        (plant.GUARDED, 0.9 - 0.2 * 22 / 13),
    ],
    ids=("fixed", "cosine", "ratio", "guarded"),
)
def test_factor_of_the_rate(rule: str, expected: float) -> None:
    """g.last = -22, |g|^2 = 125, |last|^2 = 13."""

    def gradient(v: list[float], c: float) -> plant.Params:
        return plant.Params(*(jnp.zeros(2),) * 3, jnp.array(v), jnp.array(c))

    g, last = gradient([-10.0, 4.0], 3.0), gradient([3.0, 2.0], 0.0)
    f = plant.RULES[rule]
    assert plant.factor(f, g, last, 0.9, 0.2) == pytest.approx(expected)
    assert plant.factor(f, g, jax.tree.map(jnp.zeros_like, g), 0.9, 0.2) == 1
    longer = jax.tree.map(lambda a: 100 * a, g)
    least = {"fixed": 1.0, "a + b cos": expected, plant.GUARDED: 0.3}
    found = plant.factor(f, longer, last, 0.9, 0.2)
    assert found == pytest.approx(least.get(rule, 0.9 - 0.2 * 2200 / 13))


# The market


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


# The program


def test_quick_shows_the_effects(quick: Any) -> None:
    folder, printed, numbers = quick
    for name in ("free_run", "sensitivity", "extensions"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert max(numbers["ordered"][f"gap_{way}"] for way in ("jax", "perturbation")) < 1e-12
    assert max(numbers["lags"]["gap"].values()) < 1e-12
    one, simulation = (np.median(numbers["plant"][w]["nrmse"]) for w in ("one step", "simulation"))
    assert simulation < 0.9 * one < 0.2
    rates = numbers["rates"]
    first = np.array(QUICK.rates)[:, None]
    assert (rates["fixed"]["last_rate"] == first).all()
    assert np.min(rates[plant.GUARDED]["last_rate"]) > 10 * QUICK.rates[0]
    assert np.max(rates[plant.GUARDED]["loss"]) < np.min(np.array(rates["fixed"]["loss"], float)[0])
    m = numbers["market"]
    assert m["inputs"] == 72
    assert m["gap"]["all runs at once"] < 1e-12
    assert m["gap"]["a run for each"] < 1e-4
    assert m["ratio"]["a run for each"] > 4
    price = numbers["price"]
    assert price["gap"][0] > 1e-4
    assert max(price["gap"][-1], price["gap_newton"]) < 1e-9
    assert price["bytes"][-1] > 5 * price["bytes_implicit"]
    for words in ("1. One sweep", "2. The net", "3. Identif", "4. Grad", "5. A market", "6. Price"):
        assert words in printed
    assert printed.count(": reproduced") >= 6


def test_verdicts_can_be_negative(quick: Any) -> None:
    _, _, numbers = quick
    numbers = json.loads(json.dumps(numbers))
    for row in numbers["lags"]["gap"]:
        numbers["lags"]["gap"][row] = 1e-3
    numbers["price"]["gap"][-1] = 1.0
    numbers["plant"]["simulation"], numbers["plant"]["one step"] = (
        numbers["plant"]["one step"],
        numbers["plant"]["simulation"],
    )
    for rule in plant.RULES:
        numbers["rates"][rule]["loss"] = np.array(numbers["rates"][rule]["loss"], float)
    lines = program.summary(numbers).splitlines()
    bad = [line for line in lines if line.endswith("not reproduced")]
    for start in ("   apart: F_W", "   training along", "   5: "):
        assert any(line.startswith(start) for line in bad)


@pytest.mark.parametrize(
    "options", [["--seeds", "0"], ["--rates", "0.1", "-1"], ["--noises", "nan"], ["--updates", "0"]]
)
def test_nonsense_is_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {options[0]}: got")
    assert len(error.splitlines()) == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in QUICK.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
