"""The character model from the command line: it learns, resumes to the bit, refuses nonsense."""

import json
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

import rnn_jax
from experiments.char_lm import data, folder, model, report, training
from experiments.char_lm.__main__ import main, parse
from experiments.char_lm.config import QUICK, QUICK_STEPS, Config
from experiments.harness.command import BadInput
from rnn_jax.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
# everything that has a state to lose: two layers, an embedding, dropout keys, a learning rate
RICH = ["--quick", "--layers", "2", "--embedding", "3", "--dropout", "0.2", "--samples", "0"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def final_state(run):
    saved = folder.load(Path(run))
    like = jax.eval_shape(lambda: model.start(saved.config, len(saved.vocabulary), saved.steps))
    return Checkpoints(Path(run) / "checkpoints", read_only=True).restore("last", like=like)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def rows(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_quick_learns_hello(capsys):
    assert main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"best validation loss: (\S+) nats", out)[1]) < 0.01
    assert "hellohellohello" in out
    run = Path("runs/char_lm/1")
    text = (run / "sample.txt").read_text().strip()
    assert len(text) == 501
    assert text == ("hello" * 101)[:501]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert losses[0] > 1.0 > 0.1 > losses[-1]
    assert main(["--quick", "--steps", "20"]) == 0
    assert Path("runs/char_lm/2").is_dir()  # never the same folder twice

    assert main(["generate", str(run), "--prompt", "hel", "--length", "12"]) == 0
    assert capsys.readouterr().out.endswith("\nhellohellohello\n")


def test_random_text_cannot_be_learned():
    """A model that saw its target would do better than chance here."""
    rng = np.random.default_rng(0)
    Path("random.txt").write_text("".join(rng.choice(list("abcd"), size=6000)))
    assert main(["--quick", "--text", "random.txt", "--run", "r", "--samples", "0"]) == 0
    held_out = [row["validation_loss"] for row in rows("r") if "validation_loss" in row]
    assert min(held_out) > math.log(4) - 0.03
    assert held_out[-1] < 2.0


def interrupted(monkeypatch, number, at):
    validation = report.Log.validation

    def interrupting(self, step, loss):
        validation(self, step, loss)
        if step == at:
            signal.raise_signal(number)

    monkeypatch.setattr(report.Log, "validation", interrupting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_as_never_stopped(monkeypatch, capsys, number):
    assert main([*RICH, "--run", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupted(patch, number, at=150)
        assert main([*RICH, "--run", "parts"]) == 0
    out = capsys.readouterr().out
    assert f"stopped by {number.name} after step 150" in out
    assert "python -m experiments.char_lm --resume parts" in out
    assert int(final_state("parts").step) == 150
    assert not Path("parts/loss.png").exists()

    assert main(["--resume", "parts"]) == 0
    assert_same_bits(final_state("parts"), final_state("whole"))
    assert int(final_state("parts").step) == 300

    def without_speed(run):
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows(run)]

    assert without_speed("parts") == without_speed("whole")
    assert Path("parts/sample.txt").read_text() == Path("whole/sample.txt").read_text()


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
    options = [*RICH, "--steps", "4000", "--save-every", "150"]
    process = start(*options, "--run", "r")
    wait_for_step("r", 400)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    stopped = int(re.search(r"stopped by SIGINT after step (\d+)", out)[1])
    assert int(final_state("r").step) == stopped < 4000

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
    assert_same_bits(final_state("r"), final_state("whole"))
    steps = [row["step"] for row in rows("r") if "loss" in row]
    assert steps == sorted(set(steps))
    assert Path("r/loss.png").exists()


def test_resume_of_a_finished_run_changes_nothing(capsys):
    assert main(["--quick", "--steps", "60", "--run", "r"]) == 0
    before, lines = final_state("r"), rows("r")
    first = capsys.readouterr().out.splitlines()
    assert main(["--resume", "r"]) == 0
    assert_same_bits(final_state("r"), before)
    assert rows("r") == lines
    assert capsys.readouterr().out.splitlines()[-3:] == first[-3:]


def test_generate_options(capsys):
    Path("t.txt").write_text("the cat sat on the mat. a dog ate the hat! " * 40)
    train = ["--quick", "--text", "t.txt", "--run", "r", "--steps", "60", "--samples", "0"]
    assert main(train) == 0
    capsys.readouterr()

    def write(*args):
        assert main(["generate", "r", "--prompt", "the ", *args]) == 0
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
    assert main(["generate", "r", "--length", "7"]) == 0
    assert len(capsys.readouterr().out) == 8


def test_generate_streams():
    assert main(["--quick", "--steps", "60", "--run", "r", "--samples", "0"]) == 0
    process = start("generate", "r", "--prompt", "he", "--length", "100000000")
    try:
        assert len(process.stdout.read(200)) == 200  # long before the end
        assert process.poll() is None
    finally:
        process.stdout.close()  # as `| head` does
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype, capsys):
    try:
        run = ["--quick", "--dtype", dtype, "--run", dtype, "--cell", "lstm", "--dropout", "0.1"]
        assert main(run) == 0
        state = final_state(dtype)
        assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {
            {"bfloat16": "float32", "float64": "float64"}[dtype]
        }
        assert str(state.carry[0].state.h.dtype) == dtype
        assert min(row["validation_loss"] for row in rows(dtype) if "validation_loss" in row) < 0.1
        assert main(["generate", dtype, "--prompt", "hel", "--length", "7"]) == 0
        assert capsys.readouterr().out.endswith("\nhellohello\n")
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("cell", rnn_jax.ALL_CELLS)
def test_every_cell_runs(cell):
    run = ["--quick", "--cell", cell, "--steps", "30", "--run", "r", "--samples", "1"]
    assert main(run) == 0
    assert rows("r")[-2]["loss"] < 1.5


def test_minutes_fix_the_number_of_steps():
    assert training.fitting(2.0, spent=10.0, to_come=15.0, an_update=0.5) == 190
    with pytest.raises(BadInput, match="takes 25 seconds"):
        training.fitting(0.4, spent=10.0, to_come=15.0, an_update=0.5)


@pytest.mark.slow
def test_minutes_become_steps(monkeypatch):
    """More than the default, recorded, and all done; how long it takes depends on the machine."""
    monkeypatch.setattr(training, "STARTED", time.monotonic())
    assert main(["--quick", "--minutes", "0.4", "--run", "r", "--samples", "0"]) == 0
    steps = folder.load(Path("r")).steps
    assert int(final_state("r").step) == steps > QUICK_STEPS


def test_epochs():
    assert main(["--quick", "--epochs", "2", "--run", "r", "--samples", "0"]) == 0
    assert folder.load(Path("r")).steps == 2 * 900 // 40


def test_divergence_is_told(capsys, monkeypatch):
    def poisoned(config, V, steps):
        state = start_state(config, V, steps)
        return state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))

    start_state = model.start
    monkeypatch.setattr(model, "start", poisoned)
    assert main(["--quick", "--run", "r"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step 0: ")
    assert "learning rate" in error


BAD = {
    "empty": (["--text", "empty"], "empty"),
    "one character": (["--text", "one"], "two distinct"),
    "not UTF-8": (["--text", "latin"], "not UTF-8"),
    "no text": (["--text", "nothing"], "no text in this folder"),
    "missing": (["--text", "missing"], "missing"),
    "short": (["--text", "short"], "one window"),
    "cell": (["--quick", "--cell", "lsmt"], "expected one of elman, lstm"),
    "layers": (["--quick", "--layers", "0"], "--layers: got 0"),
    "hidden size": (["--quick", "--hidden-size", "-4"], "--hidden-size: got -4"),
    "huge": (["--quick", "--hidden-size", "10000000"], "GB"),
    "batch": (["--quick", "--batch", "0"], "--batch: got 0"),
    "window": (["--quick", "--window", "0"], "--window: got 0"),
    "learning rate": (["--quick", "--learning-rate", "nan"], "--learning-rate: got nan"),
    "clip": (["--quick", "--clip", "0"], "--clip: got 0"),
    "dropout": (["--quick", "--dropout", "1"], "--dropout: got 1"),
    "steps": (["--quick", "--steps", "0"], "--steps: got 0"),
    "two lengths": (["--quick", "--steps", "3", "--epochs", "1"], "--steps and --epochs"),
    "seed": (["--quick", "--seed", "-1"], "--seed: got -1"),
    "no time": (["--quick", "--minutes", "0.0001"], "too few"),
    "run exists": (["--quick", "--run", "nothing"], "nothing exists"),
    "run cannot be made": (["--quick", "--run", "one/run"], "cannot be made"),
    "no run": (["--resume", "nothing"], "no config.json"),
    "generate no run": (["generate", "nothing"], "no config.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_anything_is_made(case, capsys):
    contents = {
        "empty": b"",
        "one": b"a" * 200,
        "latin": b"f\xfcr",
        "short": b"hello",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    Path("nothing").mkdir()
    before = sorted(Path().rglob("*"))
    args, message = BAD[case]
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.fixture
def finished():
    Path("t.txt").write_text("abcdefgh" * 100)
    arguments = ["--quick", "--text", "t.txt", "--run", "r", "--steps", "20", "--samples", "0"]
    assert main(arguments) == 0
    return Path("r")


def refused(args, message, capsys):
    capsys.readouterr()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_bad_resume_and_generate(finished, capsys):
    refused(["--resume", "r", "--hidden-size", "32"], "--hidden-size 32 (was 16)", capsys)
    refused(["--resume", "r", "--run", "other"], "got --run", capsys)
    generate = ["generate", "r"]
    refused([*generate, "--prompt", "abz"], "'z' at position 2", capsys)
    refused([*generate, "--top-k", "0"], "--top-k: got 0", capsys)
    refused([*generate, "--top-p", "2"], "--top-p: got 2", capsys)
    refused([*generate, "--temperature", "-1"], "--temperature: got -1", capsys)
    refused([*generate, "--length", "-1"], "--length: got -1", capsys)


def test_another_text_is_refused_and_a_moved_one_found(finished, capsys):
    Path("t.txt").rename("moved.txt")
    refused(["--resume", "r"], "t.txt", capsys)
    assert main(["--resume", "r", "--text", "moved.txt"]) == 0
    Path("t.txt").write_text("abcdefhg" * 100)  # the same characters in another order
    refused(["--resume", "r"], "is not the one that the run began with", capsys)


def test_another_configuration_or_vocabulary_is_refused(finished, capsys):
    path = finished / "config.json"
    original = path.read_text()
    for key, value in (("cell", "lstm"), ("hidden_size", 17), ("batch", 5)):
        description = json.loads(original)
        description["config"][key] = value
        path.write_text(json.dumps(description))
        refused(["--resume", "r"], "another model or optimizer", capsys)
    for content in ("", "{}", original[:100], original.replace('"layers"', '"layer"')):
        path.write_text(content)
        refused(["--resume", "r"], "config.json: cannot be used", capsys)
        refused(["generate", "r"], "config.json: cannot be used", capsys)
    path.write_text(original)
    vocabulary = finished / "vocabulary.json"
    vocabulary.write_text('{"characters": "abcdefgx"}')
    refused(["generate", "r"], "is that of another run", capsys)
    vocabulary.write_text('{"charac')
    refused(["generate", "r"], "not a vocabulary", capsys)
    refused(["--resume", "r"], "not a vocabulary", capsys)
    vocabulary.unlink()
    refused(["--resume", "r"], "vocabulary.json", capsys)


def test_a_truncated_checkpoint_is_refused(finished, capsys):
    files = [p for p in (finished / "checkpoints").rglob("*") if p.is_file() and p.stat().st_size]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    refused(["--resume", "r"], "damaged", capsys)
    refused(["generate", "r"], "damaged", capsys)


def test_options_given_with_quick_win():
    config = parse(["--quick", "--hidden-size", "5"])
    assert (config.hidden_size, config.window, config.quick) == (5, QUICK.window, True)
    assert parse([]) == Config()


def test_options_of_a_resumed_run(finished):
    for args in ([], ["--quick"], ["--steps", "20", "--quick"]):  # repeated or not
        config = parse(["--resume", "r", *args])
        assert (config.quick, config.steps, config.hidden_size) == (True, 20, QUICK.hidden_size)
    assert parse(["--resume", "r", "--steps", "30"]).steps == 30  # to be refused later


@pytest.mark.parametrize(("n", "context"), [(1, 5), (20, 3), (77, 10), (64, 256)])
@pytest.mark.parametrize("window", [4, 9])
def test_validation_carries_the_state_and_scores_each_character_once(n, context, window):
    config = Config(cell="lstm", hidden_size=6, window=window)
    V = 5
    cell = model.build(config, V)
    params = jax.tree.map(lambda p: 3 * p, cell.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (context + n,), 0, V)
    S = -(-n // min(model.STREAMS, n))
    total, scored = 0.0, 0
    for first in range(0, n, S):
        _, logits = rnn_jax.unroll(cell, params, None, tokens[first : first + context + S - 1])
        for t in range(context - 1, len(logits)):
            if first + t + 1 < context + n:
                total -= float(jax.nn.log_softmax(logits[t])[tokens[first + t + 1]])
                scored += 1
    assert scored == n
    got = model.make_evaluate(config, V, context)(params, tokens)
    np.testing.assert_allclose(got, total / n, rtol=1e-5)


def test_what_is_validated_with_was_not_learned_from():
    content = "".join(random.Random(0).choices("abcd", k=3000))
    Path("t.txt").write_text(content)
    for size, end in ((10**6, 3000), (50, 2750)):
        loaded = data.load(Config(text=Path("t.txt"), validation_size=size))
        assert loaded.vocabulary.decode(loaded.train) == content[:2700]
        assert loaded.vocabulary.decode(loaded.held_out) == content[2700 - loaded.context : end]
        assert loaded.context == model.CONTEXT


@pytest.mark.parametrize("embedding", [0, 3])
def test_the_loss_of_an_update_and_the_carried_state(embedding):
    config = Config(hidden_size=6, window=7, batch=3, embedding=embedding, dropout=0.0)
    V = 5
    tokens = jax.random.randint(jax.random.key(1), (50,), 0, V)
    state = model.start(config, V, 100)
    run = model.make_train(config, V, 100, steps_per_call=1)
    cell = model.build(config, V)
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


def test_schedules_warm_up_and_end():
    for schedule, last in (("cosine", 0.0), ("linear", 0.0), ("constant", 0.5)):
        config = Config(schedule=schedule, learning_rate=0.5, warmup=10, clip=1e9)
        optimizer = model.optimizer(config, 200)
        state, sizes = optimizer.init(jnp.ones(())), []
        for _ in range(201):
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                update, state = optimizer.update(jnp.ones(()), state)
            sizes.append(-float(update))  # Adam with a constant gradient: the learning rate
        np.testing.assert_allclose(sizes[:11], np.arange(11) * 0.05, atol=1e-5)
        np.testing.assert_allclose(sizes[200], last, atol=1e-5)
        assert sorted(sizes[10:], reverse=True) == pytest.approx(sizes[10:], abs=1e-6)


def test_large_gradients_are_scaled_down():
    def updates(clip, *gradients):
        optimizer = model.optimizer(Config(schedule="constant", warmup=0, clip=clip), 100)
        state, got = optimizer.init(jnp.ones(2)), []
        for gradient in gradients:
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                update, state = optimizer.update(gradient * jnp.array([0.6, 0.8]), state)
            got.append(update)
        return np.stack(got)

    expected = updates(1e9, 2.0, 0.5)
    np.testing.assert_allclose(updates(2.0, 70.0, 0.5), expected, rtol=1e-5)
    assert np.abs(updates(1e9, 70.0, 0.5) - expected).max() > 1e-4
