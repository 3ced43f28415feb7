"""The gradient laboratory: closed forms, and references in Python."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments.gradient_algorithms import balancing, exactness, nets, stream, variance
from experiments.gradient_algorithms.__main__ import PARTS, STUDY
from experiments.gradient_algorithms.config import QUICK, Config
from rnn_jax import gradients

# Influence balancing


def test_influence_is_the_sum_of_powers(x64: None) -> None:
    A = np.eye(23) / 2 + np.eye(23, k=1) / 2
    v = np.array([1.0] * 10 + [-1.0] * 13)
    terms = [(np.linalg.matrix_power(A, j) @ v)[0] for j in range(120)]
    d = balancing.influence(120)
    np.testing.assert_allclose(d, np.cumsum(terms), rtol=1e-12)
    for k, published in balancing.PUBLISHED_INFLUENCE.items():
        if k <= 120:
            assert d[k - 1] == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("k", "expected"), [(10, "diverges"), (100, "diverges"), (200, "converges")]
)
def test_truncation_needs_200_steps(x64: None, k: int, expected: str) -> None:
    steps = 30_000
    (theta, _), losses = balancing.windows(k, steps)()
    curve = balancing.curve(losses[None], steps)
    assert balancing.outcome(curve["loss"]) == expected
    if expected == "converges":
        np.testing.assert_allclose(theta, -1 / 6, rtol=1e-6)


def test_online_algorithms_balance(x64: None) -> None:
    """The exact ones agree to rounding; that of leaky units has the wrong sign."""
    steps, runs = 3000, {}
    for name in ("rtrl", "snap", "rflo"):
        keys = jax.random.split(jax.random.key(0), 1)
        losses = balancing.online(name, steps)(keys)[1]
        runs[name] = np.asarray(losses[0])
    assert runs["rtrl"][-1] < 1e-6 < runs["rtrl"][0]
    np.testing.assert_allclose(runs["snap"][:1000], runs["rtrl"][:1000], rtol=1e-6)
    assert runs["rflo"][-1] > runs["rflo"][100]


def test_curves_and_verdicts() -> None:
    losses = jnp.arange(1.0, 1001)[None]
    curve = balancing.curve(losses, 3000)
    assert curve["loss"].shape == (1, 200)
    assert curve["steps"][-1] == 3000
    np.testing.assert_allclose(curve["loss"][0, :2], [3, 8])  # blocks of five
    up, down = np.array([[1.0, 20.0]]), np.array([[1.0, 1e-4]])
    assert balancing.outcome(up) == "diverges"
    assert balancing.outcome(down) == "converges"
    assert balancing.outcome(np.concatenate([up, down])) == "undecided"
    assert balancing.outcome(np.array([[1.0, np.inf]])) == "diverges"


# Exactness


def test_scores_notice_a_bias_and_pass_noise() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=30)
    draws = exact + rng.normal(size=(1000, 30))
    fair = exactness.scores(draws, exact)
    assert 0.6 < fair["rms z"] < 1.4
    assert fair["largest z"] < 5
    biased = exactness.scores(draws + 0.3 * (np.arange(30) == 7), exact)
    assert biased["largest z"] > 5
    fixed = np.concatenate([draws, np.full((1000, 1), 2.0)], axis=1)
    assert exactness.scores(fixed, np.append(exact, 2.0))["not drawn"] == 0
    assert exactness.scores(fixed, np.append(exact, 2.5))["not drawn"] > 0.01


def test_a_wrong_algorithm_is_not_called_exact() -> None:
    wrong = {"kind": "exact", "error": 1e-3, "cosine": 1.0}
    noisy = {"kind": "unbiased", "largest z": 7.0, "not drawn": 0.0}
    right, refused = {"kind": "exact", "error": 1e-15}, {"kind": "exact", "why": "no matrix"}
    assert [exactness.shade(e) for e in (wrong, noisy, right, refused)] == [4, 4, 1, 0]
    lines = exactness.text({"bptt": {"elman": wrong}, "rtrl": {"elman": refused}})
    assert lines[-2].endswith("rtrl: no matrix")
    assert "1 of 2 pairs served; 1 of 2" in lines[-1]
    assert lines[-1].endswith("SOME DO NOT HOLD")


# Variance


@pytest.mark.usefixtures("x64")
def test_noise_of_a_random_direction_is_the_root_of_the_params() -> None:
    """g = (v . grad) v with random signs v: E |g - grad|^2 = (P - 1) |grad|^2."""
    n, draws = 2, 2000
    found = jax.jit(variance.relative_std("forward_gradient", n, 3, draws))(jax.random.key(1))
    P = nets.D * n + n * n + n
    assert float(found) == pytest.approx((P - 1) ** 0.5, rel=3 / draws**0.5)


# Stream


def test_the_stream_asks_for_the_input_two_steps_before() -> None:
    """A reference that does the same steps in Python."""
    learn = stream.make_learn("rtrl", 100)
    key = jax.random.key(3)
    carry, losses = jax.jit(learn)(key)
    cell = rnn_jax.readout(rnn_jax.elman(1, stream.UNITS), 1)
    k_params, _, k_stream = jax.random.split(key, 3)
    params = cell.init(k_params)

    def draw(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, now = jax.random.split(key)
        return key, jax.random.rademacher(now, (1,), float)

    xs = jax.lax.scan(draw, k_stream, length=100)[1]
    targets = jnp.concatenate([jnp.zeros((2, 1)), xs[:-2]])
    algorithm = gradients.rtrl(cell, nets.loss)
    state = algorithm.init(params, xs[0])
    expected = []

    @jax.jit
    def update(params: Any, state: Any, x: jax.Array, target: jax.Array) -> Any:
        state, info = algorithm.update(params, state, x, target)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, info.grads)
        return params, state, info.loss

    for x, target in zip(xs, targets, strict=True):
        params, state, value = update(params, state, x, target)
        expected.append(value)
    np.testing.assert_allclose(losses, jnp.stack(expected), atol=1e-4)
    np.testing.assert_allclose(carry.state, state.state, atol=1e-4)


# The parts


def test_no_part_without_its_algorithms_is_written_or_drawn() -> None:
    numbers: dict[str, Any] = {"variance": [], "stream": {}, "seconds by part": {"stream": 0.1}}
    assert STUDY.text(numbers, QUICK) == "Time: stream 0 s"
    assert all(draw(numbers, QUICK) is None for draw in STUDY.files.values())


def test_pieces_follow_the_algorithms() -> None:
    pieces = {part.name: part.pieces(Config(algorithms=("ok", "snap"))) for part in PARTS}
    assert pieces == {
        "balancing": 8, "exactness": 30, "variance": 9, "stream": 1, "sweep": 2, "cost": 6,
        "bias": 14,
    }  # fmt: skip
