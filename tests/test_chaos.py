"""The largest Lyapunov exponent: theory, gradients, and Newton's method over time."""

import copy
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments import chaos
from experiments.chaos import QUICK, Config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The quick setting, once, through the command line."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    assert chaos.STUDY.main(["--quick", "--run", str(folder)]) == 0
    return json.loads((folder / "numbers.json").read_text())


@pytest.mark.parametrize("gain", [0.3, 0.9])
def test_mean_field_below_the_transition_is_log_g(gain: float) -> None:
    assert chaos.mean_field(gain) == pytest.approx(np.log(gain), abs=1e-9)


@pytest.mark.parametrize(("gain", "noise"), [(1.5, 0.0), (2.5, 0.0), (0.7, 1.0), (2.0, 1.0)])
def test_mean_field_equals_a_large_random_network(gain: float, noise: float) -> None:
    """A fresh W in each step is what the theory describes; no trajectory remembers anything."""
    rng, N = np.random.default_rng(0), 500
    h, tangent, logs = rng.normal(size=N), rng.normal(size=N), []
    for _ in range(80):
        w = gain * rng.normal(size=(N, N)) / np.sqrt(N)
        h = np.tanh(w @ h + np.sqrt(noise) * rng.normal(size=N))
        tangent = (1 - h**2) * (w @ (tangent / np.linalg.norm(tangent)))
        logs.append(np.log(np.linalg.norm(tangent)))
    error = np.std(logs[20:]) / np.sqrt(60)
    assert np.mean(logs[20:]) == pytest.approx(chaos.mean_field(gain, noise), abs=5 * error + 1e-3)
    assert error < 0.02


@pytest.mark.usefixtures("x64")
def test_below_the_transition_the_exponent_is_the_spectral_radius_of_w() -> None:
    config = Config(sizes=(12,), warmup=300, steps=900)
    key, gain = jax.random.key(5), jnp.asarray(0.6)
    _, params, state, xs = chaos.autonomous(config, 12, gain, key)
    assert float(jnp.abs(state).max()) < 1e-6
    assert xs.shape == (900, 12)
    radius = np.abs(np.linalg.eigvals(np.asarray(params.w_h))).max()
    found = jax.jit(lambda: chaos.exponent(config, 12, gain, key))()
    assert float(found) == pytest.approx(np.log(radius), abs=5e-3)
    assert float(jax.jit(lambda: chaos.slope(config, 12, gain, key))()) == pytest.approx(
        np.log(radius), abs=5e-3
    )


@pytest.mark.usefixtures("x64")
def test_the_gain_is_the_deviation_of_w() -> None:
    cell = chaos.network(200)
    params = chaos.with_gain(cell.init(jax.random.key(0)), jnp.asarray(1.7))
    assert float(params.w_h.std()) * 200**0.5 == pytest.approx(1.7, rel=0.02)
    x = jnp.linspace(-1.0, 1.0, 200)
    _, ys = rnn_jax.unroll(cell, params, None, x[None])
    np.testing.assert_allclose(ys[0], jnp.tanh(x))


def test_exponents_of_the_quick_run(run: Any) -> None:
    report = run
    exponents = np.array(report["autonomous"]["50"])
    assert exponents.shape == (len(QUICK.gains), QUICK.seeds)
    medians = np.median(exponents, axis=1)
    assert (np.diff(medians) > 0).all()
    np.testing.assert_allclose(medians, report["theory"], atol=0.1)
    assert (exponents[0] < 0).all()
    assert (exponents[-1] > 0.1).all()
    assert np.ptp(exponents[0]) > 0.01  # other seeds are other networks
    np.testing.assert_allclose(report["slope"], exponents, atol=0.05)


def test_newton_needs_few_iterations_below_chaos_and_most_of_t_in_it(run: Any) -> None:
    driven = {k: np.array(v) for k, v in run["driven"]["50"].items()}
    assert (driven["exponent"][0] < -0.9).all()
    assert (driven["exponent"][-1] > 0).all()
    assert (driven["full"][0] <= 6).all()
    assert (driven["full"][-1] >= 25).all()
    assert (driven["diagonal"] > driven["full"]).all()
    assert (driven["diagonal"][0] < 50).all()
    assert driven["error"].max() < 1e-9


def test_what_is_printed(run: Any) -> None:
    report = copy.deepcopy(run)
    report["slope"] = np.array(report["slope"])
    for T, results in report["driven"].items():
        report["driven"][T] = {k: np.array(v) for k, v in results.items()}
    text = chaos.summary(report, QUICK)
    assert text.count(": reproduced") == 3
    report["slope"][2, 1] += 0.1
    report["driven"]["50"]["full"][0] = 50
    assert chaos.summary(report, QUICK).count("NOT reproduced") == 2
    report["theory"][0] -= 0.3
    assert chaos.summary(report, QUICK).count("NOT reproduced") == 3


def test_where_the_exponent_becomes_positive() -> None:
    gains = (1.0, 2.0, 3.0, 4.0)
    assert chaos.crossing(gains, np.array([-2.0, 1.0, -1.0, 3.0])) == 3.25
    assert np.isnan(chaos.crossing(gains, -np.ones(4)))
    assert np.isnan(chaos.crossing(gains, np.ones(4)))
