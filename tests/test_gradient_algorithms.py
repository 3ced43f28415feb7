"""The experiment with the gradient algorithms: its closed forms, and a quick run."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments.gradient_algorithms import __main__ as program
from experiments.gradient_algorithms import balancing, exactness, figures, learning, report
from experiments.gradient_algorithms.config import Config
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
    assert balancing.verdict(curve["loss"]) == expected
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
    assert balancing.verdict(up) == "diverges"
    assert balancing.verdict(down) == "converges"
    assert balancing.verdict(np.concatenate([up, down])) == "undecided"
    assert balancing.verdict(np.array([[1.0, np.inf]])) == "diverges"


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
    entry = {"kind": "exact", "error": 1e-3, "cosine": 1.0}
    assert not exactness.holds(entry)
    assert figures._shade(entry) == 4
    assert "NOT" in report.PARTS["exactness"]({"bptt": {"elman": entry}})[-1]
    noisy = {"kind": "unbiased", "largest z": 7.0, "not drawn": 0.0}
    assert not exactness.holds(noisy)


# Learning


def test_the_stream_asks_for_the_input_two_steps_before() -> None:
    """A reference that does the same steps in Python."""
    learn = learning.make_learn("rtrl", 100)
    key = jax.random.key(3)
    carry, losses = jax.jit(learn)(key)
    cell = rnn_jax.readout(rnn_jax.elman(1, learning.UNITS), 1)
    k_params, _, stream = jax.random.split(key, 3)
    params = cell.init(k_params)

    def draw(stream: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        stream, now = jax.random.split(stream)
        return stream, jax.random.rademacher(now, (1,), float)

    xs = jax.lax.scan(draw, stream, length=100)[1]
    targets = jnp.concatenate([jnp.zeros((2, 1)), xs[:-2]])
    algorithm = gradients.rtrl(cell, learning.loss)
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


# The command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "1"], "draws: got 1, expected at least 2"),
        (["--stream-steps", "150"], "stream_steps: got 150, expected a multiple of 100"),
        (["--cells", "elmann"], "cells: got elmann, expected some of elman"),
        (["--algorithms", "btpp"], "algorithms: got btpp, expected some of bptt"),
        (["--run", "."], "exists and is not overwritten"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a quick run, what it printed and its numbers."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        assert program.main(["--quick", "--run", str(folder)]) == 0
    return folder, "\n".join(printed), json.loads((folder / "numbers.json").read_text())


@pytest.mark.slow
def test_quick_writes_its_files(quick: Any) -> None:
    folder, printed, _ = quick
    names = {path.name for path in Path(folder).iterdir()}
    pictures = {"balancing.png", "exactness.png", "variance.png", "learning.png", "cost.png"}
    assert names == pictures | {"bias.png", "numbers.json"}
    assert "NOT" not in printed
    assert printed.count(": reproduced") == 2


@pytest.mark.slow
def test_quick_exactness(quick: Any) -> None:
    """Exact ones are exact, the mean of the unbiased is, and the biased are not."""
    for name, row in quick[2]["exactness"].items():
        entry = row["elman"]
        if name == "elementwise_rtrl":
            assert "use rtrl or bptt" in entry["why"]
        elif entry["kind"] == "exact":
            assert entry["error"] < 1e-10
        elif entry["kind"] == "unbiased":
            assert 0.3 < entry["rms z"] < 2
            assert entry["error"] < 3 * entry["expected error"]
        else:
            assert 0.05 < entry["error"] < 1


@pytest.mark.slow
def test_quick_learning_and_noise(quick: Any) -> None:
    numbers = quick[2]
    for run in numbers["stream"].values():
        losses = np.array(run["losses"])
        assert run["carry bytes"][0] == run["carry bytes"][1] > 0
        assert run["program bytes"][1] < 1.1 * run["program bytes"][0]  # for 20 times the steps
        assert np.median(losses[:, -1]) < 0.9 * learning.CHANCE
    assert numbers["sweep"]["traces"] == 1
    assert numbers["sweep"]["last"][1] < 0.5 * learning.CHANCE
    std = {row["name"]: row["std"][1] for row in numbers["variance"]}
    assert 0 < std["ok, rank 4"] < std["ok, rank 1"] < std["uoro"]
    sliding, chunks = (np.array(numbers["bias"][k])[:, 1] for k in ("k1 = 1", "k1 = k2"))
    assert (np.diff(sliding) < 0).all()
    assert sliding[-1] < 1e-12
    assert (sliding[1:-1] < chunks[1:-1]).all()
    assert sliding[0] == pytest.approx(chunks[0])


@pytest.mark.slow
def test_quick_configuration_is_recorded(quick: Any) -> None:
    config = quick[2]["config"]
    assert config["quick"]
    assert config["nets"] != Config().nets
