"""The character model: what is its own, beside the table of applications."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_harness import assert_same_bits, final_state, interrupted

import rnn_jax
from experiments import char_lm
from experiments.char_lm import APPLICATION, QUICK, Config
from experiments.harness import learning, run_folder
from rnn_jax import gradients, train
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks.text import Vocabulary, scored_streams

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def main(*args):
    return APPLICATION.main([*args])


def rows(run):
    return run_folder.rows_of(Path(run))


def test_random_text_cannot_be_learned():
    """A model that saw its target would do better than chance here."""
    rng = np.random.default_rng(0)
    Path("random.txt").write_text("".join(rng.choice(list("abcd"), size=6000)))
    assert main("--quick", "--data", "random.txt", "--run", "r", "--samples", "0") == 0
    held_out = [row["validation_loss"] for row in rows("r") if "validation_loss" in row]
    assert min(held_out) > math.log(4) - 0.03
    assert held_out[-1] < 2.0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("snap", "truncated_bptt") else pytest.mark.slow)
        for name in gradients.REGISTER
        if name not in ("implicit", "elementwise_rtrl")  # hello does not settle; a gru is dense
    ],
)
def test_any_gradient_algorithm_learns_hello(name):
    options = ["--quick", "--gradient", name, "--samples", "0", "--run", "r"]
    options += ["--cell", "elman", "--hidden-size", "8"] if name == "rtrl" else []
    assert main(*options) == 0
    best = min(row["validation_loss"] for row in rows("r") if "validation_loss" in row)
    assert best < 0.1


def test_the_gradient_of_bptt_is_that_of_the_window():
    """With nothing that draws, both runs have the same losses."""
    options = ["--quick", "--steps", "30", "--samples", "0"]
    assert main(*options, "--run", "w") == 0
    assert main(*options, "--gradient", "bptt", "--run", "b") == 0
    a, b = ([r["loss"] for r in rows(run) if "loss" in r] for run in "wb")
    np.testing.assert_allclose(a, b, rtol=1e-4)


def start(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.char_lm", *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def wait_for_step(run, step):
    path, deadline = Path(run) / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_real_signals_and_kill_9():
    options = ["--quick", "--layers", "2", "--embedding", "3", "--dropout", "0.2", "--samples"]
    options += ["0", "--steps", "4000", "--save-every", "150"]
    process = start(*options, "--run", "r")
    wait_for_step("r", 400)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    stopped = int(re.search(r"stopped by SIGINT after step (\d+)", out)[1])
    assert int(final_state("r", APPLICATION).step) == stopped < 4000

    process = start("--resume", "r")
    wait_for_step("r", stopped // 10 * 10 + 400)
    process.kill()
    process.communicate(timeout=300)
    assert stopped <= Checkpoints("r/checkpoints", read_only=True).last.step < 4000

    # the same process settings for all: XLA may order sums differently for two devices
    for arguments in (["--resume", "r"], [*options, "--run", "whole"]):
        process = start(*arguments)
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert_same_bits(final_state("r", APPLICATION), final_state("whole", APPLICATION))
    steps = [row["step"] for row in rows("r") if "loss" in row]
    assert steps == sorted(set(steps))


def test_generate_options(capsys):
    Path("t.txt").write_text("the cat sat on the mat. a dog ate the hat! " * 40)
    options = ["--quick", "--data", "t.txt", "--run", "r", "--steps", "60", "--samples", "0"]
    assert main(*options) == 0
    capsys.readouterr()

    def write(*args):
        assert main("generate", "r", "--prompt", "the ", *args) == 0
        return capsys.readouterr().out

    plain = write("--length", "80")
    assert len(plain) == 4 + 80 + 1
    assert plain == write("--length", "80")
    assert plain != write("--length", "80", "--seed", "1")
    assert write("--length", "30") == plain[:34] + "\n"  # a longer text begins as a shorter one
    greedy = write("--temperature", "0", "--length", "40")
    assert greedy == write("--top-k", "1", "--length", "40", "--seed", "5")
    assert greedy == write("--top-p", "1e-6", "--length", "40", "--seed", "6")
    assert len(set(write("--temperature", "50", "--length", "80"))) > 8  # fresh noise each time
    assert write("--length", "0") == "the \n"
    assert main("generate", "r", "--length", "7") == 0
    assert len(capsys.readouterr().out) == 8
    for options, message in (
        ("--prompt atz", "'z' at position 2"),
        ("--top-k 0", "--top-k: got 0"),
        ("--top-p 2", "--top-p: got 2"),
        ("--temperature -1", "--temperature: got -1"),
        ("--length -1", "--length: got -1"),
    ):
        assert main("generate", "r", *options.split()) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_generate_streams():
    assert main("--quick", "--steps", "60", "--run", "r", "--samples", "0") == 0
    process = start("generate", "r", "--prompt", "he", "--length", "100000000")
    try:
        assert len(process.stdout.read(200)) == 200  # long before the end
        assert process.poll() is None
    finally:
        process.stdout.close()  # as `| head` does
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype, capsys):
    run = ["--quick", "--dtype", dtype, "--run", dtype, "--cell", "lstm", "--dropout", "0.1"]
    assert main(*run) == 0
    with jax.enable_x64(dtype == "float64"):
        state = final_state(dtype, APPLICATION)
    params = {"bfloat16": "float32", "float64": "float64"}[dtype]
    assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {params}
    assert str(state.carry[0].state.h.dtype) == dtype
    assert min(row["validation_loss"] for row in rows(dtype) if "validation_loss" in row) < 0.1
    assert main("generate", dtype, "--prompt", "hel", "--length", "7") == 0
    assert capsys.readouterr().out.endswith("\nhellohello\n")
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("cell", rnn_jax.ALL_CELLS)
def test_every_cell_runs(cell):
    run = ["--quick", "--cell", cell, "--steps", "30", "--run", "r", "--samples", "1"]
    assert main(*run) == 0
    assert [row["loss"] for row in rows("r") if "loss" in row][-1] < 1.5


@pytest.mark.parametrize(("n", "context"), [(1, 5), (20, 3), (77, 10), (64, 256)])
@pytest.mark.parametrize("window", [4, 9])
def test_validation_carries_the_state_and_scores_each_character_once(n, context, window):
    config = Config(cell="lstm", hidden_size=6, window=window)
    V = 5
    cell = char_lm.network(config, V)
    params = jax.tree.map(lambda p: 3 * p, cell.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (context + n,), 0, V)
    S = -(-n // min(char_lm.STREAMS, n))
    total, scored = 0.0, 0
    for first in range(0, n, S):
        _, logits = rnn_jax.unroll(cell, params, None, tokens[first : first + context + S - 1])
        for t in range(context - 1, len(logits)):
            if first + t + 1 < context + n:
                total -= float(jax.nn.log_softmax(logits[t])[tokens[first + t + 1]])
                scored += 1
    assert scored == n
    held_out = scored_streams(tokens, context, batch=char_lm.STREAMS, window=window)
    got = char_lm.evaluator(config, V)(params, held_out)["loss"]
    np.testing.assert_allclose(got, total / n, rtol=1e-5)


def test_what_is_validated_with_was_not_learned_from():
    content = "".join(random.Random(0).choices("abcd", k=3000))
    Path("t.txt").write_text(content)
    for size, end in ((10**6, 3000), (50, 2750)):
        loaded = char_lm.load(Config(data=Path("t.txt"), validation_size=size))
        vocabulary = Vocabulary(loaded.about["characters"])
        assert vocabulary.decode(loaded.train) == content[:2700]
        inputs, targets, scored = loaded.held_out
        found = np.moveaxis(targets, 2, 0)[np.moveaxis(scored, 2, 0)]
        assert vocabulary.decode(found) == content[2700:end]
        assert vocabulary.decode(inputs[0, :, 0]) == content[2700 - char_lm.CONTEXT :][:64]


def test_a_text_on_the_disk_is_learned_as_one_in_memory(monkeypatch):
    """The same numbers, and the position in the file is resumed."""
    Path("t.txt").write_text("the cat sat on the mat. a dog ate the hat! " * 40)
    options = ["--quick", "--data", "t.txt", "--steps", "60", "--samples", "0"]
    options += ["--evaluations", "4", "--dropout", "0.2"]
    assert main(*options, "--run", "memory") == 0
    assert main(*options, "--stream", "--run", "disk") == 0
    for a, b in zip(rows("memory"), rows("disk"), strict=True):
        assert a.keys() == b.keys()
        for name in ("loss", "validation_loss"):
            assert a.get(name, 1.0) == pytest.approx(b.get(name, 1.0), rel=1e-3)
    with monkeypatch.context() as patch:
        interrupted(patch, signal.SIGTERM, at=30)
        assert main(*options, "--stream", "--run", "parts") == 0
    assert main("--resume", "parts") == 0
    assert rows("parts") == rows("disk")
    assert_same_bits(final_state("parts", APPLICATION), final_state("disk", APPLICATION))
    assert len(list(Path("runs/tokens").iterdir())) == 1


def test_a_large_file_stays_on_the_disk(monkeypatch):
    Path("t.txt").write_text("the cat sat on the mat. " * 40)
    config = Config(data=Path("t.txt"))
    assert isinstance(char_lm.load(config).train, np.ndarray)
    monkeypatch.setattr(char_lm, "LARGE", 500)
    assert not isinstance(char_lm.load(config).train, np.ndarray)


@pytest.mark.parametrize("embedding", [0, 3])
def test_the_loss_of_an_update_and_the_carried_state(embedding):
    config = Config(
        hidden_size=6, window=7, batch=3, embedding=embedding, dropout=0.0, steps=100, minutes=None
    )
    about = {"characters": "abcde", "start": "a"}
    tokens = jax.random.randint(jax.random.key(1), (50,), 0, 5)
    model = char_lm.make(config, about)
    state = learning.initial(config, model, 1)
    run = train.make_train(model.loss, model.batch_at, learning.optimizer(config), steps_per_call=1)
    cell = char_lm.network(config, 5)
    carries = [None] * 3
    for step in range(9):  # more than a lap of 50 characters
        losses = []
        for b in range(3):
            at = (b * 50 // 3 + step * 7 + np.arange(8)) % 50
            xs, ys = tokens[at[:-1]], tokens[at[1:]]
            carries[b], logits = rnn_jax.unroll(cell, state.params, carries[b], xs)
            losses.append(rnn_jax.losses.cross_entropy(logits, ys))
        state, metrics = run(state, tokens)
        np.testing.assert_allclose(metrics.loss[0], np.mean(losses), rtol=1e-5)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries)
        for got, want in zip(jax.tree.leaves(state.carry), jax.tree.leaves(stacked), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_quick_setting_is_one_of_the_defaults():
    assert QUICK.quick
    assert QUICK.minutes is None
    assert Config().steps is None
