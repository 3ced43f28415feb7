"""Vanishing, exploding and preserved gradients: the measurements and the bound."""

import copy
from typing import Any
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest

import rnn_jax
from experiments import gradient_flow as flow

SMALL = flow.Config(steps=12, hidden=5, seeds=3, scales=3)


@pytest.fixture(scope="module")
def report() -> Any:
    """The numbers of the quick setting."""
    with jax.enable_x64(True):
        return flow.measure(flow.QUICK, MagicMock())


def test_linear_recurrences_follow_the_closed_form(report: Any) -> None:
    recurrences = report["recurrences"]
    for panel in recurrences.values():
        for curves in panel.values():
            assert curves["difference"] < 1e-9
    for w in (0.9, 1.0, 1.1):
        measured = recurrences["scalar"][f"{w:g}"]["measured"]
        np.testing.assert_allclose(measured[1], w ** np.arange(50.0), rtol=1e-9)
        median = recurrences["matrix"][f"{w:g}"]["measured"][1]
        assert (median[-1] / median[25]) ** (1 / 24) == pytest.approx(w, abs=0.01)


def test_orders_of_the_curves(report: Any) -> None:
    """Saturation and shut gates make gradients vanish; the identity and open gates do not."""
    curves = report["activations"] | report["initialisations"] | report["cells"]
    rate = {name: flow.growth(curve) for name, curve in curves.items()}
    assert rate["sigmoid"] < 0.25 < 0.6 < rate["ReLU"] < rate["tanh"] < 0.8
    assert rate["identity, tanh"] < 0.9 < rate["identity, ReLU"] < 1
    assert rate["RNN (tanh)"] < rate["LSTM, forget bias 1"] < rate["LSTM, forget bias 4"]
    for bias, open_gate in ((1.0, 0.73), (4.0, 0.98)):
        assert rate[f"its forget gates, {bias:g}"] == pytest.approx(open_gate, abs=0.02)


def test_the_bound_of_pascanu_holds_and_is_no_more_than_a_bound(report: Any) -> None:
    bound = report["bound"]
    scales = bound["scales"]
    for rates in (bound[name] for name in flow.ACTIVATIONS):
        assert (rates["largest step"] <= scales * (1 + 1e-9)).all()
        assert (rates["largest step"] > 0.3 * scales).all()
        assert (rates["largest mean"][scales < 1] < 0.6).all()
        assert rates["mean"][1][scales.searchsorted(1.0)] < 1  # above 1 is not yet enough
    assert max(bound["tanh"]["mean"][1]) > 1
    assert max(bound["ReLU"]["mean"][1]) > 3


def test_clipping_bounds_updates(report: Any) -> None:
    clipped, unclipped = (report["updates"][name][1] for name in ("clipped", "unclipped"))
    np.testing.assert_allclose(clipped, np.minimum(unclipped, 0.1), rtol=1e-9)
    assert unclipped[-1] > 1e3


def test_what_is_printed(report: Any) -> None:
    text = flow.summary(report, flow.QUICK)
    assert (text.count("reproduced"), text.count("NOT reproduced")) == (3, 0)
    wrong = copy.deepcopy(report)
    wrong["recurrences"]["matrix"]["1"]["difference"] = 1.0
    wrong["bound"]["tanh"]["largest mean"][0] = 1.1
    assert flow.summary(wrong, flow.QUICK).count("NOT reproduced") == 2
    wrong["bound"]["ReLU"]["largest step"][3] *= 10
    assert flow.summary(wrong, flow.QUICK).count("NOT reproduced") == 3


@pytest.mark.usefixtures("x64")
def test_forget_gates_are_all_there_is_where_gates_see_no_state() -> None:
    cell = rnn_jax.lstm(flow.D, 5, w_h_init=jax.nn.initializers.zeros)
    runs = flow.draw(cell, SMALL, jax.random.key(3))
    gates = jax.vmap(lambda run: flow.through_forget_gates(cell, run))(runs)
    whole = flow.meter(cell)(runs)
    np.testing.assert_allclose(whole[:, 1:], gates[:, 1:], rtol=1e-12)
    assert np.ptp(gates[:, 1] / gates[:, 0]) > 1e-3


def test_growth_rates_survive_a_gradient_of_zero() -> None:
    curves = np.array([[[1.0, 2.0, 1.0], [1.0, 0.5, 0.25], [1.0, 0.0, 0.0]]])
    rates = flow.rates(curves)
    np.testing.assert_allclose(rates["mean"][1:], [[0.5], [0.75]])
    assert rates["largest mean"] == [1.0]
    assert rates["largest step"] == [2.0]
