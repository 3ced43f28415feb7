"""The plant, the ways to train a model of it, and the rules for the rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plant

pytestmark = pytest.mark.usefixtures("x64")


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
    assert plant.factor(rule, g, last, 0.9, 0.2) == pytest.approx(expected)
    assert plant.factor(rule, g, jax.tree.map(jnp.zeros_like, g), 0.9, 0.2) == 1
    longer = jax.tree.map(lambda a: 100 * a, g)
    least = {"fixed": 1.0, "a + b cos": expected, plant.GUARDED: 0.3}
    found = plant.factor(rule, longer, last, 0.9, 0.2)
    assert found == pytest.approx(least.get(rule, 0.9 - 0.2 * 2200 / 13))


def test_training_is_gradient_descent_of_each_run_on_its_own() -> None:
    """Two runs of other rates, against a loop."""
    config = plant.Config(seeds=1, units=3)
    cell = plant.net(3)
    loss = plant.losses(cell)["simulation"]
    start, data = plant.starts(cell, [0.0, 0.0], config)
    update = lambda g, rate: (jax.tree.map(lambda g: -rate * g, g), rate / 2)  # noqa: E731
    rates = jnp.array([1e-2, 1e-3])
    params, last, curve = plant.train(loss, update, start, rates, data, 3)
    np.testing.assert_array_equal(last, rates / 8)
    for k, rate in enumerate([1e-2, 1e-3]):
        p, own = (jax.tree.map(lambda a, k=k: a[k], tree) for tree in (start, data))
        for value in curve[k]:
            found, g = jax.value_and_grad(loss)(p, own)
            assert found == pytest.approx(value)
            p = jax.tree.map(lambda p, g, rate=rate: p - rate * g, p, g)
            rate /= 2
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b), params, p)


def test_what_is_printed() -> None:
    config = plant.Config(seeds=2, noises=(0.0, 0.5), rates=(0.1, 0.2))
    one, path = ([[1.0, 2.0], [3.0, 4.0]], [[2.0, 1.0], [1.0, 5.0]])
    bad = {"loss": np.array([[np.nan, 1.0], [np.inf, np.inf]])}
    rates = dict.fromkeys(plant.RULES, bad)
    rates["fixed"] = {"loss": np.array([[0.3, 0.5], [0.2, 0.2]])}
    rates[plant.GUARDED] = {"loss": np.array([[0.1, 0.1], [0.1, 0.2]])}
    found = {
        "plant": {"one step": {"nrmse": one}, "simulation": {"nrmse": path}},
        "rates": {"start": 10.0, **rates},
    }
    text = plant.summary(found, config)
    assert "noise 0: one step 1.500 (1.000 to 2.000), simulation 1.500 (1.000 to 2.000)" in text
    assert text.count("better for 1 of 2 seeds") == 2
    assert "simulated path helps: reproduced" in text
    assert "a + b cos                diverged, diverged\n" in text
    assert f"{plant.GUARDED:<25}0.1, 0.15\n" in text
    assert text.count("each fixed rate: NOT reproduced") == 2
    found["plant"]["simulation"]["nrmse"] = one
    found["rates"][plant.GUARDED] = rates["fixed"]
    assert plant.summary(found, config).count(": NOT reproduced") == 4
