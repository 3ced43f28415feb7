"""The benchmark: its table, that all entries compute the same, and what it refuses."""

import json
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import measure, scaling
from experiments.bench.case import Case, flops, make
from experiments.bench.config import CELLS, QUICK, SIZES, WORK, Config, cases
from experiments.bench.entry import Layer, Peer, build_layers
from experiments.bench.peers import OURS, PEERS, cudnn, scan

INSTALLED = [p.name for p in PEERS if p.library is None or find_spec(p.library)]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The peers need JAX's usual promotion; nothing is written outside the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def cells_of(table: str, start: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_quick_writes_the_table_and_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick"]) == 0
    folder = Path("runs/bench")
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    columns = cells_of(table, "| work")[4:]
    assert columns == INSTALLED
    values = cells_of(table, "| gradient, lstm | 4, 12, 3, 5 |")[4:]
    (case,) = cases(QUICK)
    able = [p.name for p in PEERS if p.name in INSTALLED and p.can(case)]
    assert [name for name, value in zip(columns, values, strict=True) if value != "-"] == able
    assert all(float(value.split()[0]) > 0 for value in values if value != "-")
    results = json.loads((folder / "results.json").read_text())
    (row,) = results["rows"]
    assert list(row["entries"]) == [OURS.name, *able]
    for name, entry in row["entries"].items():
        assert len(entry["rounds"]) >= 3
        assert (entry["compile_seconds"] is None) == (name == "PyTorch")
        pairs = zip(entry["rounds"], row["entries"][OURS.name]["rounds"], strict=True)
        assert entry["ratio"][0] == pytest.approx(np.median([a / b for a, b in pairs]))
    assert results["machine"]["cores"] >= 1
    assert results["product_rate"] > 1e6


def test_a_run_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--peers", "textbook", "--run"]
    assert bench.main([*options, "a"]) == 0
    before = Path("a/results.json").read_bytes()
    assert bench.main([*options, "a"]) == 2
    assert "--run: a exists and is not overwritten" in capsys.readouterr().err
    assert Path("a/results.json").read_bytes() == before


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
    peers, _ = measure.available(PEERS)
    problem, entries = measure.build(case, OURS, peers, 1e-5, lambda text: None)
    assert [*entries] == [OURS.name, *(peer.name for peer in peers if peer.can(case))]
    gradients = [name for name in entries[OURS.name].results if name.startswith("gradient")]
    leaves = len(jax.tree.leaves(problem.params))
    assert len(gradients) == (0 if case.work == "forward" else leaves)
    for entry in entries.values():
        entry.run()
        entry.run()


def halved(weights: bool, problem: Any) -> Any:
    """A peer that has half the recurrent weights, or that loses half of its gradient."""

    def layer(case: Case, D: int) -> Layer:
        right = scan.layer(case, D)

        def run(*arguments: Any) -> Any:
            ys = right.run(*arguments)
            return ys if weights else 0.5 * ys + 0.5 * jax.lax.stop_gradient(ys)

        def convert(params: Any) -> Any:
            return params._replace(w_h=0.5 * params.w_h) if weights else params

        return Layer(convert, run)

    return build_layers(layer, problem, time_major=True)


@pytest.mark.parametrize(("weights", "array"), [(True, "outputs"), (False, "gradient.layers")])
def test_a_wrong_peer_stops_the_benchmark(
    weights: bool,
    array: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = Peer("wrong", None, lambda case: True, partial(halved, weights))
    monkeypatch.setattr(bench, "PEERS", (scan.PEER, wrong))
    assert bench.main(["--quick", "--run", "a"]) == 1
    assert f"error: wrong: {array}" in capsys.readouterr().err
    assert not Path("a/table.md").exists()


def test_nan_a_missing_array_and_another_shape_are_disagreements() -> None:
    ours = {"outputs": np.ones(3)}
    measure.check_same("same", {"outputs": np.ones(3) + 1e-6}, ours, 1e-4)
    for wrong in ({"outputs": np.full(3, np.nan)}, {}, {"outputs": np.ones((3, 1))}):
        with pytest.raises(measure.Disagreement, match="outputs"):
            measure.check_same("wrong", wrong, ours, 1e-4)


def test_a_missing_library_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Peer("Absent", "no_such_library", lambda case: True, lambda problem: 1 / 0)
    monkeypatch.setattr(bench, "PEERS", (scan.PEER, missing))
    assert bench.main(["--quick"]) == 0
    output = capsys.readouterr().out
    assert "Absent: skipped, no_such_library is not installed" in output
    assert cells_of(output, "| work")[4:] == ["textbook scan"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--peers", "caffe"], "--peers: got 'caffe'"), (["--layers", "0"], "positive integers")],
)
def test_bad_input(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(options) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_all_covers_what_the_issue_lists() -> None:
    wanted = cases(Config(all=True))
    assert len(set(wanted)) == len(wanted) == 144
    for size in SIZES:
        for cell in CELLS:
            rows = [c for c in wanted if c.cell == cell and size == (c.B, c.T, c.D, c.H)]
            assert {c.work for c in rows} == set(WORK)
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
    expected = OURS.build(problem).results["outputs"]
    np.testing.assert_allclose(ys * problem.mask, expected, atol=1e-6)


def test_scaling_draws_and_prints_the_slopes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "PEERS", (scan.PEER,))
    assert scaling.slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert scaling.main(["--quick", "--run", "a", "--T", "2", "4"]) == 0
    output = capsys.readouterr().out
    assert "ours: the time of the gradient grows as T to the" in output
    assert "ours: compiled in" in output
    assert Path("a/scaling.png").stat().st_size > 10_000
    curves = json.loads(Path("a/numbers.json").read_text())["curves"]
    assert curves["T"]["ours"]["points"] == [2, 4]
    assert scaling.main(["--quick", "--T", "2"]) == 2
