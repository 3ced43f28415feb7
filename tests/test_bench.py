"""The benchmark: that all entries compute the same, what it refuses, and what it counts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import peers
from experiments.bench.__main__ import SIZES, Config, cases
from experiments.bench.case import Case, CellName, Work, flops, make
from experiments.bench.entry import Layer, Peer, layered
from experiments.bench.peers import cudnn, scan


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The peers need JAX's usual promotion; nothing is written outside the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    "case",
    [
        Case("forward", "lstm", 2, 4, 7, 3, 5, bidirectional=True),
        Case("gradient", "elman", 1, 4, 7, 3, 5, bidirectional=True, lengths=True),
        Case("training", "gru", 2, 4, 7, 3, 5),
        Case("training", "gru_reset_after", 1, 4, 7, 3, 5, lengths=True),
    ],
    ids=str,
)
def test_all_entries_compute_the_same(case: Case) -> None:
    problem, able = make(case), peers.installed(peers.PEERS)
    entries = peers.build(problem, able, 1e-5, lambda text: None)
    assert [*entries] == ["ours", *(peer.name for peer in able if peer.can(case))]
    gradient = entries["ours"].results.get("gradient")
    assert jax.tree.structure(gradient) == jax.tree.structure(
        None if case.work == "forward" else problem.params
    )
    for entry in entries.values():
        entry.run()
        entry.run()


def halved(weights: bool, case: Case, D: int) -> Layer:
    """A layer that has half the recurrent weights, or that loses half of its gradient."""
    right = scan.layer(case, D)

    def run(*arguments: Any) -> Any:
        ys = right.run(*arguments)
        return ys if weights else 0.5 * ys + 0.5 * jax.lax.stop_gradient(ys)

    def convert(params: Any) -> Any:
        return params._replace(w_h=0.5 * params.w_h) if weights else params

    return Layer(convert, run)


@pytest.mark.parametrize(
    ("weights", "work", "array"),
    [(True, "forward", "outputs"), (False, "gradient", "gradient.layers")],
)
def test_a_wrong_peer_stops_the_benchmark(
    weights: bool,
    work: str,
    array: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = layered("wrong", None, partial(halved, weights), ["lstm"], time_major=True)
    monkeypatch.setattr(peers, "PEERS", (scan.PEER, wrong))
    assert bench.STUDY.main(["--quick", "--work", work, "--run", "a"]) == 1
    assert f"error: wrong: {array}" in capsys.readouterr().err
    assert not Path("a").exists()


def test_a_missing_library_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Peer("Absent", "no_such_library", lambda case: True, lambda problem: 1 / 0)
    monkeypatch.setattr(peers, "PEERS", (scan.PEER, missing))
    assert bench.STUDY.main(["--quick"]) == 0
    output = capsys.readouterr().out
    assert "Absent: skipped, no_such_library is not installed" in output
    assert "| limit | textbook scan |\n" in output


def test_all_covers_what_the_issue_lists() -> None:
    wanted = cases(Config(all=True))
    assert len(set(wanted)) == len(wanted) == 144
    for size in SIZES:
        for cell in get_args(CellName):
            rows = [c for c in wanted if c.cell == cell and size == (c.B, c.T, c.D, c.H)]
            assert {c.work for c in rows} == set(get_args(Work))
            assert {c.layers for c in rows} == {1, 3}
            assert any(c.bidirectional for c in rows)
            assert any(c.lengths for c in rows)


def test_flops_are_counted_by_hand() -> None:
    B, T, D, H, O = 2, 3, 5, 7, 16
    step = 2 * B * T
    one = Case("forward", "lstm", 1, B, T, D, H)
    assert flops(make(one)) == step * 4 * H * (D + H)
    assert flops(make(one._replace(work="gradient"))) == step * 4 * H * (2 * D + 3 * H)
    two = one._replace(work="training", layers=2, bidirectional=True, cell="elman")
    first, second = 2 * H * (2 * D + 3 * H), 2 * H * (3 * 2 * H + 3 * H)
    assert flops(make(two)) == step * (first + second + 3 * 2 * H * O)
    ragged = make(one._replace(lengths=True, B=9))
    assert flops(ragged) == 2 * ragged.mask.sum() * 4 * H * (D + H)


def test_the_weights_of_cudnn_in_one_array() -> None:
    from jax.experimental import rnn

    case = Case("forward", "lstm", 2, 4, 9, 3, 5, bidirectional=True, lengths=True)
    problem = make(case)
    flat, _ = cudnn.convert(problem.params)
    state = np.zeros((4, case.B, case.H), np.float32)
    weights = rnn.unpack_lstm_weights(flat, case.D, case.H, case.layers, case.bidirectional)
    ys, *_ = rnn.lstm_ref(
        problem.xs,
        state,
        state,
        *weights,
        seq_lengths=problem.lengths,
        input_size=case.D,
        hidden_size=case.H,
        num_layers=case.layers,
        dropout=0.0,
        bidirectional=case.bidirectional,
    )
    expected = peers.OURS.build(problem).results["outputs"]
    np.testing.assert_allclose(ys * problem.mask, expected, atol=1e-6)
