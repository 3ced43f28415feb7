"""Vanishing, exploding and preserved gradients: the measurements, the bound, the descent."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments.gradient_flow import __main__ as program
from experiments.gradient_flow import clipping, flow
from experiments.gradient_flow.config import Config
from experiments.harness import command

SMALL = Config(steps=12, hidden=5, seeds=3, scales=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The quick setting, once, through the command line."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    assert program.main(["--quick", "--run", str(folder)]) == 0
    return json.loads((folder / "numbers.json").read_text()), folder


def test_linear_recurrences_follow_the_closed_form(run: tuple[Any, Path]) -> None:
    recurrences = run[0]["recurrences"]
    for panel in recurrences.values():
        for curves in panel.values():
            assert curves["difference"] < 1e-9
    for w in (0.9, 1.0, 1.1):
        measured = recurrences["scalar"][f"{w:g}"]["measured"]
        np.testing.assert_allclose(measured[1], w ** np.arange(50.0), rtol=1e-9)
        median = np.array(recurrences["matrix"][f"{w:g}"]["measured"][1])
        assert (median[-1] / median[25]) ** (1 / 24) == pytest.approx(w, abs=0.01)


def test_orders_of_the_curves(run: tuple[Any, Path]) -> None:
    """Saturation and shut gates make gradients vanish; the identity and open gates do not."""
    report = run[0]
    rate = {
        name: program.growth(np.array(curve))
        for part in ("activations", "initialisations", "cells")
        for name, curve in report[part].items()
    }
    assert rate["sigmoid"] < 0.25 < 0.6 < rate["ReLU"] < rate["tanh"] < 0.8
    assert rate["identity, tanh"] < 0.9 < rate["identity, ReLU"] < 1
    assert rate["RNN (tanh)"] < rate["LSTM, forget bias 1"] < rate["LSTM, forget bias 4"]
    for bias, open_gate in ((1.0, 0.73), (4.0, 0.98)):
        assert rate[f"its forget gates, {bias:g}"] == pytest.approx(open_gate, abs=0.02)


def test_the_bound_of_pascanu_holds_and_is_no_more_than_a_bound(run: tuple[Any, Path]) -> None:
    bound = run[0]["bound"]
    scales = np.array(bound["scales"])
    for name in flow.ACTIVATIONS:
        rates = {k: np.array(v) for k, v in bound[name].items()}
        assert (rates["largest step"] <= scales * (1 + 1e-9)).all()
        assert (rates["largest step"] > 0.3 * scales).all()
        assert (rates["largest mean"][scales < 1] < 0.6).all()
        assert rates["mean"][1][scales.searchsorted(1.0)] < 1  # above 1 is not yet enough
    assert max(bound["tanh"]["mean"][1]) > 1
    assert max(bound["ReLU"]["mean"][1]) > 3


def test_clipping_bounds_updates_and_saves_descents(run: tuple[Any, Path]) -> None:
    updates, surface = run[0]["updates"], run[0]["surface"]
    for clipped, unclipped in zip(updates["clipped"][1], updates["unclipped"][1], strict=True):
        assert clipped == pytest.approx(min(unclipped, 0.1), rel=1e-9)
    assert updates["unclipped"][1][-1] > 1e3
    assert surface["clipped"]["solved"] > surface["unclipped"]["solved"] + 0.1
    assert surface["clipped"]["thrown out"] == 0 < surface["unclipped"]["thrown out"]
    assert surface["clipped"]["errors"][-1] < 0.01 < surface["unclipped"]["errors"][-1]
    for path in (surface[name]["path"] for name in ("clipped", "unclipped")):
        assert path[0] == list(clipping.START)
        assert len(path) == 201
    moves = np.linalg.norm(np.diff(surface["clipped"]["path"], axis=0), axis=-1)
    assert 0.1 * (1 - 1e-9) < moves.max() <= 0.1 * (1 + 1e-9)


def test_the_files_of_a_run(run: tuple[Any, Path]) -> None:
    report, folder = copy.deepcopy(run[0]), run[1]
    for name in ("flow", "bound", "clipping"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    report["bound"] = {  # what JSON made of the arrays
        k: np.array(v) if k == "scales" else {n: np.array(a) for n, a in v.items()}
        for k, v in report["bound"].items()
    }
    printed = program.summary(report, program.QUICK)
    assert "NOT reproduced" not in printed
    assert printed.count("reproduced") == 4
    report["surface"]["clipped"]["solved"] = 0.0
    report["recurrences"]["matrix"]["1"]["difference"] = 1.0
    assert program.summary(report, program.QUICK).count("NOT reproduced") == 2


@pytest.mark.usefixtures("x64")
def test_forget_gates_are_all_there_is_where_gates_see_no_state() -> None:
    cell = rnn_jax.lstm(flow.D, 5, w_h_init=jax.nn.initializers.zeros)
    runs = flow.draw(cell, SMALL, jax.random.key(3))
    gates = jax.vmap(lambda run: flow.through_forget_gates(cell, run))(runs)
    whole = flow.meter(cell, slice(5, None))(runs)
    np.testing.assert_allclose(whole[:, 1:], gates[:, 1:], rtol=1e-12)
    assert np.ptp(gates[:, 1] / gates[:, 0]) > 1e-3


def test_growth_rates_survive_a_gradient_of_zero() -> None:
    curves = np.array([[[1.0, 2.0, 1.0], [1.0, 0.5, 0.25], [1.0, 0.0, 0.0]]])
    rates = flow.rates(curves)
    np.testing.assert_allclose(rates["mean"][1:], [[0.5], [0.75]])
    assert rates["largest mean"] == [1.0]
    assert rates["largest step"] == [2.0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("w", "b"), [(5.2, -2.4), (5.0, -2.6), (6.0, -3.5)])
def test_the_error_surface_is_the_published_formula(w: float, b: float) -> None:
    def error(w: float, b: float) -> float:
        x = 0.5
        for _ in range(50):
            x = w / (1 + np.exp(-x)) + b
        return (1 / (1 + np.exp(-x)) - 0.7) ** 2

    value, slopes = jax.jit(clipping.error_and_gradient)(jnp.array(w), jnp.array(b))
    assert float(value) == pytest.approx(error(w, b), rel=1e-9)
    e = 1e-6
    numeric = [error(w + e, b) - error(w - e, b), error(w, b + e) - error(w, b - e)]
    np.testing.assert_allclose(slopes, np.array(numeric) / (2 * e), rtol=1e-3, atol=1e-9)


def test_bad_input_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, wrong in (
        (["--steps", "1"], "steps: got 1"),
        (["--threshold", "0"], "threshold: got 0"),
        (["--quick", "--scales", "2"], "scales: got 2"),
        (["--run", str(tmp_path)], "not overwritten"),
    ):
        assert program.main(args) == 2
        assert wrong in capsys.readouterr().err


def test_quick_keeps_what_is_given_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    config = command.parse(Config, program.QUICK, program.PROGRAM, ["--quick", "--seeds", "7"])
    assert (config.seeds, config.steps, config.quick) == (7, program.QUICK.steps, True)
    with pytest.raises(SystemExit):
        program.main(["--help"])
    text = capsys.readouterr().out
    for word in ("--steps", "--hidden", "--seeds", "--threshold", "--learning-rate", "--run"):
        assert word in text
