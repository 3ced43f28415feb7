"""The lecture's example: published figures, its rule, the true gradient."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments import counting

TRUE_DW = [[0.5248, 0.3812], [-3.0819, -2.2384]]
TRUE_DU = [[-1.7682, 5.1988], [0.0, 0.0], [0.0, 0.0]]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def report() -> Any:
    with jax.enable_x64(True):
        return counting.measure(counting.Config(), MagicMock())


def by_hand(rng: np.random.Generator | None = None) -> tuple[Any, dict[str, np.ndarray]]:
    """Weights, and BPTT in NumPy: the error goes back step by step and is summed."""
    weights = {k: np.array(v) for k, v in counting.START.items()}
    if rng is not None:
        weights = {k: rng.normal(size=v.shape) for k, v in weights.items()}
    u, v, w = weights["U"], weights["V"], weights["W"]
    h0, h1 = np.zeros(2), counting.XS[0] @ u
    h2 = h1 @ w + counting.XS[1] @ u
    e1, e2 = 2 * (h1 @ v - [0, 1, 0]), 2 * (h2 @ v - [0, 0, 1])
    l2 = e2 @ v.T
    l1 = e1 @ v.T + l2 @ w.T
    gradient = {
        "V": np.outer(h1, e1) + np.outer(h2, e2),
        "W": np.outer(h0, l1) + np.outer(h1, l2),
        "U": np.outer(counting.XS[0], l1) + np.outer(counting.XS[1], l2),
    }
    cell = rnn_jax.ElmanParams(w_x=jnp.array(u), w_h=jnp.array(w), b=None)
    return counting.Params(cell=cell, w_y=jnp.array(v), b_y=None), gradient


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_gradient_is_bptt_and_finite_differences(seed: int | None) -> None:
    params, expected = by_hand(None if seed is None else np.random.default_rng(seed))
    true = counting.named(counting.true_gradient(params))
    numeric = counting.named(counting.finite_differences(params))
    for name in "VWU":
        np.testing.assert_allclose(true[name], expected[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(numeric[name], true[name], rtol=0, atol=1e-8)


def test_the_true_gradient_to_the_digit() -> None:
    true = counting.named(counting.true_gradient(counting.start()))
    np.testing.assert_allclose(true["W"], TRUE_DW, rtol=0, atol=5e-5)
    np.testing.assert_allclose(true["U"], TRUE_DU, rtol=0, atol=5e-5)


# Units of the fourth decimal: the lecture had more digits of the weights than it prints.
@pytest.mark.parametrize(
    ("section", "name", "source", "units"),
    [
        ("forward", "y1", "computed", 0),
        ("forward", "h2", "computed", 0),
        ("forward", "y2", "computed", 1),
        ("gradient", "V", "lecture", 1),
        ("gradient", "V", "jax_grad", 1),
        ("gradient", "W", "lecture", 4),
        ("gradient", "U", "lecture", 0),
        ("trained", "V", "lecture", 0),
        ("trained", "W", "lecture", 1),
        ("trained", "U", "lecture", 0),
    ],
)
def test_published_digits(report: Any, section: str, name: str, source: str, units: int) -> None:
    row = report[section][name][source]
    published = report[section][name]["published"]["value"]
    digits = np.rint(1e4 * np.round(row["value"], 4)) - np.rint(1e4 * np.array(published))
    assert np.abs(digits).max() == units
    assert row["agrees"]


def test_the_published_dw_and_du_are_not_the_gradient(report: Any) -> None:
    for name in "WU":
        for source in ("jax_grad", "finite_differences"):
            row = report["gradient"][name][source]
            assert row["difference"] > 0.7
            assert not row["agrees"]
    assert report["cosine"]["V"] == pytest.approx(1)
    assert report["cosine"]["W"] == pytest.approx(-0.199, abs=1e-3)
    assert report["cosine"]["U"] == pytest.approx(0.765, abs=1e-3)
    assert not any(report["trained"][name]["jax_grad"]["agrees"] for name in "VWU")


def test_numbers_of_updates(report: Any) -> None:
    assert report["updates"] == {"lecture": 55, "jax_grad": 49}
    for curve in report["rmse"].values():
        changes = np.abs(np.diff(curve))
        assert changes[-1] < 1e-4 <= changes[:-1].min()
        assert curve[0] == pytest.approx(1.4539, abs=1e-4)
        assert curve[-1] < 5e-4


def test_what_rounding_allows_bounds_random_roundings() -> None:
    params = counting.start()
    bound = counting.allowed(counting.forward, params)
    rng = np.random.default_rng(0)
    base, largest = counting.forward(params), {k: np.zeros(v.shape) for k, v in bound.items()}
    for _ in range(50):
        nudged = jax.tree.map(lambda p: p + rng.choice([-5e-5, 5e-5], p.shape), params)
        for k, v in counting.forward(nudged).items():
            largest[k] = np.maximum(largest[k], np.abs(v - base[k]))
    for k in bound:
        assert (largest[k] <= bound[k]).all()
        assert (largest[k] > 0.3 * (bound[k] - 5e-5)).all()


def test_training_ends_at_max_updates() -> None:
    config = counting.Config(max_updates=2)
    _, curve = counting.train(config, counting.true_gradient, counting.start())
    assert len(curve) == 3


def test_divergence_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert counting.STUDY.main(["--learning-rate", "10"]) == 1
    assert "diverged" in capsys.readouterr().err
    assert not Path("runs/counting").exists()
