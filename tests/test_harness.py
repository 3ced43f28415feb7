"""What every application gets for nothing, on the smallest one."""

import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from experiments.harness import find_lr, learning, run_folder, training, using
from experiments.harness.command import BadInput
from rnn_jax import train
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks import batches

ROOT = Path(__file__).parents[1]
LENGTH = ["--steps", "60"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def main(*args):
    return toy.APPLICATION.main([*map(str, args)])


def rows(run):
    return run_folder.rows_of(Path(run))


def final_state(run, app=toy.APPLICATION, nets=None):
    config, _, about, _ = run_folder.read(Path(run), app.name, app.config)
    model = app.make(config, about)
    like = jax.eval_shape(lambda: learning.initial(config, model, nets or config.seeds))
    return Checkpoints(Path(run) / "checkpoints", read_only=True).restore("last", like=like)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def interrupted(monkeypatch, number, at):
    scores = learning.Log.scores

    def interrupting(self, step, nets, unit):
        scores(self, step, nets, unit)
        if step == at:
            signal.raise_signal(number)

    monkeypatch.setattr(learning.Log, "scores", interrupting)


def refused(capsys, *args):
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(*args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


def test_the_toy_is_short_and_learns(capsys):
    assert len(Path(toy.__file__).read_text().splitlines()) < 40
    assert main("--quick") == 0
    out = capsys.readouterr().out
    folder = Path("runs/toy")
    numbers = json.loads((folder / "numbers.json").read_text())
    losses = [row["validation_loss"] for row in rows(folder) if "validation_loss" in row]
    assert numbers["best"]["validation_loss"] == min(losses) < 0.3 < math.log(2)
    assert f"best validation loss: {min(losses):.4f}, at step" in out
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert main("say", folder) == 0
    assert capsys.readouterr().out == "5 numbers\n"
    assert main("--quick", "--steps", "10") == 0
    assert Path("runs/toy-2").is_dir()  # never the same folder twice


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seeds", [1, 2])
def test_stopped_and_resumed_is_as_never_stopped(monkeypatch, capsys, number, seeds):
    options = ["--quick", "--seeds", seeds]
    assert main(*options, "--run", "whole") == 0
    with monkeypatch.context() as patch:
        interrupted(patch, number, at=30)
        assert main(*options, "--run", "parts") == 0
    out = capsys.readouterr().out
    assert f"stopped by {number.name} after step 30" in out
    assert f"{toy.APPLICATION.program} --resume parts" in out
    assert np.ravel(final_state("parts").step)[0] == 30
    assert Path("parts/loss.png").exists()  # a stopped run has its curve too
    assert not Path("parts/numbers.json").exists()

    assert main("--resume", "parts") == 0
    assert_same_bits(final_state("parts"), final_state("whole"))
    assert rows("parts") == rows("whole")


@pytest.mark.parametrize("seeds", [1, 2])
def test_two_devices_share_the_work(seeds, capsys):
    """And a run goes on with another number of them, which is no option of the run."""
    assert main("--quick", "--seeds", seeds, "--run", "one") == 0
    assert main("--quick", "--seeds", seeds, "--run", "two", "--devices", 2) == 0
    assert main("--quick", "--seeds", seeds, "--steps", 30, "--run", "more", "--devices", 2) == 0
    assert main("--resume", "more", "--steps", 60) == 0
    for run in ("two", "more"):
        for got, expected in zip(rows(run)[-3:], rows("one")[-3:], strict=True):
            assert got["step"] == expected["step"]
            if run == "two" and "loss" in got:
                np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)
    assert main("say", "two") == 0
    assert "devices" not in json.loads(Path("two/run.json").read_text())["options"]
    assert main("--quick", "--find-lr", "--devices", 2) == 0


def test_a_signal_between_two_scores_loses_nothing(monkeypatch, capsys):
    metrics = learning.Log.metrics

    def interrupting(self, step, rows):
        metrics(self, step, rows)
        if step == 10:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(learning.Log, "metrics", interrupting)
        assert main("--quick", "--evaluations", "1", "--run", "r") == 0
    stopped = int(re.search(r"after step (\d+)", capsys.readouterr().out)[1])
    assert 20 <= stopped < 60
    assert int(final_state("r").step) == stopped
    assert main("--resume", "r") == 0
    assert main("--quick", "--evaluations", "1", "--run", "whole") == 0
    assert_same_bits(final_state("r"), final_state("whole"))


def test_the_order_of_the_data_counts():
    a = np.arange(6.0).reshape(2, 3)
    seen = {run_folder.digest({}, x) for x in (a, a[::-1], a.reshape(3, 2), a.astype(np.float32))}
    seen |= {run_folder.digest({"V": 3}, a), run_folder.digest({}, a, a[:0])}
    assert len(seen) == 6
    assert run_folder.digest({}, np.copy(a)) in seen


def test_two_processes_do_not_train_one_run(finished, capsys):
    code = "import sys; from rnn_jax.checkpoint import Checkpoints; c = Checkpoints(sys.argv[1]); "
    code += "print(1, flush=True); input()"
    command = [sys.executable, "-c", code, "r/checkpoints"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    gc.collect()  # the objects of this process hold no lock any more
    with subprocess.Popen(command, env=env, **pipes) as other:
        assert other.stdout.readline() == b"1\n"
        assert "is writing here" in refused(capsys, "--resume", "r")
        assert main("say", "r") == 0  # reading does no harm
        other.communicate(b"\n")
    assert main("--resume", "r") == 0


def test_seeds_side_by_side_are_those_of_one_call_and_differ(capsys):
    assert main("--quick", "--seeds", "3", "--run", "three") == 0
    best = json.loads(Path("three/numbers.json").read_text())["best"]
    losses = [net["loss"] for net in best["nets"]]
    assert len(set(losses)) == 3
    assert best["validation_loss"] == pytest.approx(np.mean(losses))
    assert f"{min(losses):.4f} to {max(losses):.4f}" in capsys.readouterr().out
    trained = using.load_run(toy.APPLICATION, Path("three"))
    held_out = toy.load(trained.config).held_out
    assert len(trained.nets) == 3
    score = float(trained.model.score(trained.params, held_out)["loss"])
    assert score == pytest.approx(min(losses), rel=1e-5)  # that of the best net


def test_a_finished_run_is_trained_further(capsys):
    assert main("--quick", "--run", "r") == 0
    first = rows("r")
    assert main("--resume", "r") == 0  # to its end, where it is
    assert rows("r") == first
    assert "got 40, but the run has made 60" in refused(capsys, "--resume", "r", "--steps", "40")
    assert main("--resume", "r", "--steps", "100") == 0
    assert int(final_state("r").step) == 100
    assert rows("r")[: len(first)] == first
    assert run_folder.read(Path("r"), "toy", toy.Options).steps == 100


def test_a_run_begins_where_another_ended(capsys):
    """With other data, another rate, and a schedule from its start; for several nets too."""
    assert main("--quick", "--run", "a") == 0
    best = min(row["validation_loss"] for row in rows("a") if "validation_loss" in row)
    np.savetxt("t.txt", np.random.default_rng(1).normal(size=(40, 5)))
    other = ["--quick", "--data", "t.txt", "--learning-rate", "1e-6", "--steps", "4"]
    assert main(*other, "--run", "fresh") == 0
    for seeds in (1, 3):
        run = f"b{seeds}"
        assert main(*other, "--init-from", "a", "--seeds", seeds, "--run", run) == 0
        assert rows(run)[0]["loss"] < 2 * best < rows("fresh")[0]["loss"]
        assert np.ravel(final_state(run).step)[0] == 4
    assert "no run of toy" in refused(capsys, "--quick", "--init-from", "missing")
    np.savetxt("t.txt", np.random.default_rng(1).normal(size=(40, 6)))
    assert "differ in T" in refused(capsys, *other, "--init-from", "a")


def test_the_schedule_stretches_over_all_steps():
    """The rate at a step depends on the length, which is no part of what is compiled."""
    optimizer = learning.optimizer(toy.Options(schedule="linear", warmup=10, learning_rate=0.5))
    state = optimizer.init(jnp.ones(()))
    for steps, at_60 in ((100, 0.5 * 40 / 90), (200, 0.5 * 140 / 190)):
        paced = learning.with_steps(_train_state(state), steps).opt_state
        paced = (*paced[:2], paced[2]._replace(step=jnp.int32(60)))
        with jax.numpy_dtype_promotion("standard"):
            update, _ = optimizer.update(jnp.ones(()), paced)
        np.testing.assert_allclose(-update, at_60, rtol=1e-4)


def _train_state(opt_state):
    zero = jnp.zeros((), jnp.int32)
    return training.train.TrainState(zero, None, opt_state, None, None, zero, zero)


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0), ("linear", 0), ("constant", 0.5)])
def test_schedules_warm_up_and_end(schedule, last):
    config = toy.Options(schedule=schedule, learning_rate=0.5, warmup=10, clip=1e9)
    optimizer = learning.optimizer(config)
    state = learning.with_steps(_train_state(optimizer.init(jnp.ones(()))), 200).opt_state
    sizes = []
    for _ in range(201):
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            update, state = optimizer.update(jnp.ones(()), state)
        sizes.append(-float(update))  # Adam with a constant gradient: the learning rate
    np.testing.assert_allclose(sizes[:11], np.arange(11) * 0.05, atol=1e-5)
    np.testing.assert_allclose(sizes[200], last, atol=1e-5)
    assert sorted(sizes[10:], reverse=True) == pytest.approx(sizes[10:], abs=1e-6)
    if schedule == "cosine":
        theirs = [0.5 * optax.cosine_decay_schedule(1.0, 190)(t) for t in range(190)]
        np.testing.assert_allclose(sizes[10:200], theirs, atol=1e-5)


def test_large_gradients_are_scaled_down():
    def updates(clip, *gradients):
        optimizer = learning.optimizer(toy.Options(schedule="constant", warmup=0, clip=clip))
        state, got = optimizer.init(jnp.ones(2)), []
        for gradient in gradients:
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                update, state = optimizer.update(gradient * jnp.array([0.6, 0.8]), state)
            got.append(update)
        return np.stack(got)

    expected = updates(1e9, 2.0, 0.5)
    np.testing.assert_allclose(updates(2.0, 70.0, 0.5), expected, rtol=1e-5)
    assert np.abs(updates(1e9, 70.0, 0.5) - expected).max() > 1e-4


def test_patience_ends_a_run_that_does_not_get_better():
    options = ["--quick", "--learning-rate", "1e-9", "--evaluations", "12"]
    assert main(*options, "--run", "patient") == 0
    assert main(*options, "--patience", "2", "--run", "short") == 0
    assert rows("patient")[-1]["step"] == 60
    losses = [r["validation_loss"] for r in rows("short") if "validation_loss" in r]
    assert 3 <= len(losses) < 12
    assert int(np.argmin(losses)) == len(losses) - 3
    assert Path("short/numbers.json").exists()


def test_epochs_and_minutes_become_steps(monkeypatch):
    assert main("--quick", "--epochs", "2", "--run", "e") == 0
    assert run_folder.read(Path("e"), "toy", toy.Options).steps == 2 * 200 // 16
    monkeypatch.setattr(learning, "updates_in", lambda *args: 33)
    assert main("--quick", "--minutes", "0.1", "--run", "m") == 0
    assert int(final_state("m").step) == 33
    assert main("--resume", "m") == 0


def test_how_many_updates_fit():
    assert learning.updates_in(120.0, spent=10.0, to_come=15.0, an_update=0.5) == 190
    with pytest.raises(BadInput, match="takes 25 seconds"):
        learning.updates_in(24.0, spent=10.0, to_come=15.0, an_update=0.5)


def test_measuring_the_speed_changes_nothing(monkeypatch):
    """The run that was measured first ends in the same bits as one with as many steps."""
    monkeypatch.setattr(learning, "updates_in", lambda *args: 60)
    assert main("--quick", "--minutes", "0.1", "--run", "m") == 0
    assert main("--quick", "--run", "s") == 0
    assert_same_bits(final_state("m"), final_state("s"))


def test_divergence_is_told(capsys, monkeypatch):
    make = toy.make

    def poisoned(config, about):
        model = make(config, about)
        return model._replace(init=lambda key: jax.tree.map(lambda p: p * jnp.nan, model.init(key)))

    app = toy.APPLICATION._replace(make=poisoned)
    assert app.main(["--quick", "--run", "r"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step 0: ")
    assert "learning rate" in error


def test_any_name_of_a_file_ends_in_the_figures():
    """Mathematics in dollars, and characters that no font here has."""
    name = "a$b^$ [x] \U0001f600.txt"
    Path(name).write_text("\n".join("1 2 -3 4" for _ in range(60)))

    def load(config):
        return toy.load(config)._replace(text=config.data.name)

    app = toy.APPLICATION._replace(load=load)
    for options in ([], ["--find-lr"]):
        assert app.main(["--quick", "--data", name, "--steps", "20", *options]) == 0


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="mounts a disk")
def test_a_full_disk_is_told():
    """In a process of its own: what writes there leaves threads and open files behind."""
    Path("small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", "small"]
    if subprocess.run(mount, capture_output=True, timeout=60).returncode:
        pytest.skip("no disk can be mounted here")
    code = "import toy; raise SystemExit(toy.APPLICATION.main())"
    options = ["--quick", "--steps", "3000", "--evaluations", "300", "--run", "small/r"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    try:
        command = [sys.executable, "-c", code, *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    finally:
        subprocess.run(["umount", "-l", "small"], timeout=60)
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "small/r" in error
    assert "No space left" in error or "make room" in error


BAD = {
    "no data": (["--quick", "--data", "missing"], "missing"),
    "few data": (["--quick", "--data", "few"], "got 2 rows"),
    "unknown option": (["--quick", "--stps", "3"], "--stps"),
    "not a number": (["--quick", "--batch", "many"], "--batch"),
    "seed": (["--quick", "--seed", "-1"], "--seed: got -1"),
    "seeds": (["--quick", "--seeds", "0"], "--seeds: got 0"),
    "steps": (["--quick", "--steps", "0"], "--steps: got 0"),
    "epochs": (["--quick", "--epochs", "nan"], "--epochs: got nan"),
    "two lengths": (["--quick", "--steps", "3", "--epochs", "1"], "--steps and --epochs"),
    "no length": ([], "got none, expected one of --steps"),
    "no time": (["--quick", "--minutes", "0.0001"], "too few"),
    "batch": (["--quick", "--batch", "0"], "--batch: got 0"),
    "learning rate": (["--quick", "--learning-rate", "nan"], "--learning-rate: got nan"),
    "clip": (["--quick", "--clip", "0"], "--clip: got 0"),
    "schedule": (["--quick", "--schedule", "step"], "cosine"),
    "warm-up": (["--quick", "--warmup", "-1"], "--warmup: got -1"),
    "run exists": (["--quick", "--run", "there"], "there exists"),
    "find-lr exists": (["--quick", "--find-lr", "--run", "there"], "there exists"),
    "run cannot be made": (["--quick", "--run", "few/run"], "cannot be made"),
    "no run": (["--resume", "there"], "no run of toy"),
    "devices": (["--quick", "--devices", "0"], "--devices: got 0"),
    "too many devices": (["--quick", "--devices", "99", "--batch", "99"], "but there are 2"),
    "uneven batch": (["--quick", "--devices", "2", "--batch", "5"], "a multiple of 2"),
    "no coordinator": (["--quick", "--process", "1"], "--process: got 1, expected --coordinator"),
    "no place": (
        ["--quick", "--coordinator", "here", "--processes", "2", "--process", "0"],
        "HOST:PORT",
    ),
    "no number": (["--quick", "--coordinator", "here:1"], "got no --processes"),
    "which": (
        ["--quick", "--coordinator", "here:1", "--processes", "2", "--process", "2"],
        "less than --processes, which is 2",
    ),
    "find-lr by several": (
        ["--quick", "--find-lr", "--coordinator", "localhost:1"],
        "it runs in one process",
    ),
    "use of no run": (["say", "there"], "no run of toy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_anything_is_made(case, capsys):
    Path("few").write_text("1 2\n3 4\n")
    Path("there").mkdir()
    args, message = BAD[case]
    assert message in refused(capsys, *args)


@pytest.fixture
def finished():
    np.savetxt("t.txt", np.random.default_rng(1).normal(size=(40, 3)))
    assert main("--quick", "--data", "t.txt", "--run", "r", *LENGTH) == 0
    return Path("r")


def test_a_resumed_run_keeps_its_options(finished, capsys):
    error = refused(capsys, "--resume", "r", "--batch", "5")
    assert "--batch 5 (was 16)" in error
    assert "got --run" in refused(capsys, "--resume", "r", "--run", "other")
    assert main("--resume", "r", "--batch", "16", "--quick") == 0  # repeated, as it was


def test_another_file_is_refused_and_a_moved_one_found(finished, capsys):
    Path("t.txt").rename("moved.txt")
    assert "t.txt" in refused(capsys, "--resume", "r")
    assert main("--resume", "r", "--data", "moved.txt") == 0
    np.savetxt("t.txt", np.random.default_rng(2).normal(size=(40, 3)))
    assert "not those that the run began with" in refused(capsys, "--resume", "r")


def test_a_run_folder_of_last_week_goes_on_working(finished, capsys):
    """An option that came since takes its default; one that is unknown is named."""
    path = finished / "run.json"
    saved = json.loads(path.read_text())
    del saved["options"]["patience"]
    path.write_text(json.dumps(saved))
    assert main("--resume", "r") == 0
    assert main("say", "r") == 0
    saved["options"]["patiense"] = 3
    path.write_text(json.dumps(saved))
    for args in (["--resume", "r"], ["say", "r"]):
        assert "--patiense, which is unknown" in refused(capsys, *args)
    for content in ("", "{}", path.read_text()[:100]):
        path.write_text(content)
        assert "run.json: cannot be used" in refused(capsys, "say", "r")


def test_a_run_of_another_application_is_refused(finished, capsys):
    path = finished / "run.json"
    path.write_text(path.read_text().replace('"toy"', '"char_lm"'))
    assert "is a run of char_lm" in refused(capsys, "say", "r")


def test_options_survive_json(tmp_path):
    config = toy.Options(data=Path("x/y"), steps=3, learning_rate=0.5)
    text = json.dumps(run_folder.to_json(config))
    assert run_folder.from_json(toy.Options, json.loads(text)).data == Path("x/y").absolute()
    assert "run" not in json.loads(text)


def test_a_damaged_checkpoint_is_refused(finished, capsys):
    for folder in (finished / "checkpoints").glob("*-step-*"):
        largest = max(folder.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
        largest.write_bytes(largest.read_bytes()[:-7])
    assert "damaged" in refused(capsys, "--resume", "r")
    assert "damaged" in refused(capsys, "say", "r")


def test_the_range_test_finds_a_rate_that_works(capsys):
    """At the rate that it chooses the toy learns; a hundred times above it, it does not."""
    assert main("--quick", "--find-lr") == 0
    folder = Path("runs/toy-find-lr")
    found = json.loads((folder / "numbers.json").read_text())
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    rate = find_lr.suggested(found["choices"])
    assert f"--learning-rate {rate:.2g}" in capsys.readouterr().out
    losses = {}
    for times in (0.01, 1.0, 100.0):
        run = f"r{times}"
        options = ["--learning-rate", times * rate, "--schedule", "constant", "--run", run]
        assert main("--quick", *options) == 0
        losses[times] = rows(run)[-1]["validation_loss"]
    assert losses[1.0] < 0.8 * losses[0.01]
    assert losses[1.0] < 0.8 * losses[100.0]


def test_the_range_test_ends_where_the_loss_explodes(monkeypatch):
    make = toy.make

    def exploding(config, about):
        model = make(config, about)

        def loss(params, carry, xs, key):
            value, carry = model.loss(params, carry, xs, key)
            size = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
            return value + jnp.where(size > 50.0, size, 0.0), carry

        return model._replace(loss=loss)

    assert toy.APPLICATION._replace(make=exploding).main(["--quick", "--find-lr"]) == 0
    found = json.loads(Path("runs/toy-find-lr/numbers.json").read_text())
    assert len(found["rates"]) < find_lr.UPDATES
    assert max(found["choices"].values()) < found["rates"][-1]


def test_a_closed_pipe_ends_no_training():
    """`| head -1` closes the pipe while the net is still learning."""
    code = "import toy; raise SystemExit(toy.APPLICATION.main())"
    command = f"{sys.executable} -c '{code}' --quick --evaluations 30 --run r | head -1"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("200 rows")
    assert "error" not in done.stderr
    assert Path("r/numbers.json").exists()


def test_cross_validation_is_nets_side_by_side():
    """Each net learns from its own part and is judged by the rest, as if it were alone."""
    labels = np.random.default_rng(0).integers(2, size=90)

    def load(config):
        data = toy.load(config)
        xs = np.concatenate([data.train.examples, data.held_out])[:90]
        parts = batches.folds(labels, 3)
        held_out = [xs[parts.held_out.indices[k][: parts.held_out.size[k]]] for k in range(3)]
        train = batches.shuffled(xs, config.seed, parts.train)
        axes = batches.Shuffled(None, 0)
        return data._replace(train=train, held_out=held_out, axes=axes)

    app = toy.APPLICATION._replace(load=load)
    assert app.main(["--quick", "--run", "r"]) == 0
    nets = json.loads(Path("r/numbers.json").read_text())["best"]["nets"]
    assert len({net["loss"] for net in nets}) == 3
    assert app.main(["--resume", "r"]) == 0

    data, config = load(toy.QUICK), toy.QUICK
    model = toy.make(config, data.about)
    states = learning.initial(config, model, 3)
    run = train.make_train(model.loss, model.batch_at, learning.optimizer(config))
    for k in range(3):
        alone = jax.tree.map(lambda a, k=k: jnp.copy(a[k]), states)
        order = jax.tree.map(lambda a, k=k: a[k], data.train.order)
        mine = data.train._replace(order=order)
        alone = train.fit(run, learning.with_steps(alone, 60), mine, steps=60)
        together = jax.tree.map(lambda a, k=k: a[k], final_state("r", app, nets=3).params)
        for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


class Batches:
    """The toy's batches from an iterator on the host."""

    def __init__(self, data, size):
        self.data, self.batch_at, self.at = data, jax.jit(batches.minibatch(size)), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return np.asarray(self.batch_at(self.data, self.at - 1))

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def test_batches_from_the_host_resume_where_they_were(monkeypatch):
    def load(config):
        data = toy.load(config)
        return data._replace(train=Batches(data.train, config.batch), sha256="toy")

    app = toy.APPLICATION._replace(load=load)
    assert main("--quick", "--run", "device") == 0
    assert app.main(["--quick", "--run", "host"]) == 0
    for a, b in zip(rows("host"), rows("device"), strict=True):  # programs of other shape
        assert a.get("loss", 1.0) == pytest.approx(b.get("loss", 1.0), rel=1e-4)
    with monkeypatch.context() as patch:
        interrupted(patch, signal.SIGTERM, at=30)
        assert app.main(["--quick", "--run", "parts"]) == 0
    assert Checkpoints("parts/checkpoints", read_only=True).last.position == {"at": 30}
    assert app.main(["--resume", "parts"]) == 0
    assert_same_bits(final_state("parts"), final_state("host"))
    monkeypatch.setattr(learning, "updates_in", lambda *args: 60)
    assert app.main(["--quick", "--minutes", "0.1", "--run", "measured"]) == 0
    assert_same_bits(final_state("measured"), final_state("host"))
    assert app.main(["--quick", "--find-lr"]) == 0
