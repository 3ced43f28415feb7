"""Training: from options to a run folder with a model in it."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.char_lm import config as options
from experiments.char_lm import data, folder, generating, model, report
from experiments.char_lm.config import Config
from experiments.harness.command import BadInput, Failed
from rnn_jax import train
from rnn_jax.checkpoint import Checkpoints

STARTED = time.monotonic()


class Session(NamedTuple):
    """Everything between the checks and the first update."""

    config: Config
    steps: int  # in all
    data: data.Data
    folder: Path
    checkpoints: Checkpoints
    train_state: train.TrainState


def main(config: Config) -> None:
    """Trains, or goes on training, until the end or until it is told to stop."""
    with train.stop_on_signals() as stop:
        try:
            session = _resume(config) if config.resume is not None else _new(config)
        except (OSError, ValueError) as error:
            raise BadInput(str(error)) from error
        if stop():
            return _say_stopped(session.folder, stop, int(session.train_state.step))
        train_state, log = _train(session, stop)
        if stop():
            _save(session, train_state)
            return _say_stopped(session.folder, stop, int(train_state.step))
        _finish(session, train_state, log)
    return None


def _new(config: Config) -> Session:
    options.check(config)
    folder.check_new(config.run)
    prepared = data.load(config)
    _check_memory(config, len(prepared.vocabulary))
    steps = _steps(config, prepared)
    path = folder.create(config, steps, prepared)
    state = model.start(config, len(prepared.vocabulary), steps)
    return Session(config, steps, prepared, path, Checkpoints(path / "checkpoints"), state)


def _resume(config: Config) -> Session:
    assert config.resume is not None
    saved = folder.load(config.resume)
    changed = options.differences(config, saved.config)
    if changed or config.run is not None:
        raise BadInput(
            f"--resume {config.resume}: got {', '.join(changed) or '--run'}, expected the options "
            "of that run, which need not be repeated. For other options start a new run."
        )
    prepared = data.load(config)
    if prepared.sha256 != saved.sha256:
        raise BadInput(
            f"--resume {config.resume}: the text ({data.name(config)}) is not the one that the run "
            "began with. Put that one back (--text says where it is now), or start a new run."
        )
    like = jax.eval_shape(lambda: model.start(config, len(saved.vocabulary), saved.steps))
    checkpoints = Checkpoints(config.resume / "checkpoints")
    if checkpoints.last is None:
        state = model.start(config, len(saved.vocabulary), saved.steps)
    else:
        state = checkpoints.restore("last", like=like)
    return Session(config, saved.steps, prepared, config.resume, checkpoints, state)


def _train(session: Session, stop: Any) -> tuple[train.TrainState, report.Log]:
    config, prepared, V = session.config, session.data, len(session.data.vocabulary)
    step = int(session.train_state.step)
    rows = folder.read_metrics(session.folder, step)
    params = sum(p.size for p in jax.tree.leaves(session.train_state.params))
    print(
        f"{data.name(config)}: {prepared.characters:,} characters, {V} of them distinct\n"
        f"{config.layers} x {config.cell}({config.hidden_size}): {params:,} parameters\n"
        f"{session.steps:,} updates of {config.batch} x {config.window} characters: "
        f"{session.steps * config.batch * config.window / len(prepared.train):.1f} passes\n"
        f"run folder: {session.folder}",
        flush=True,
    )
    log = report.Log(session.folder, config, rows, step, session.steps)
    evaluate = model.make_evaluate(config, V, prepared.context)
    held_out = jnp.asarray(prepared.held_out)
    sample = generating.sampler(config, prepared.vocabulary, prepared.start, 200)

    def on_evaluate(state: train.TrainState) -> None:
        loss = float(evaluate(state.params, held_out))
        log.validation(int(state.step), loss)
        session.checkpoints.save(state, loss)

    def on_sample(state: train.TrainState) -> None:
        text = sample(state.params, int(state.step)).strip("\n")
        log.say("-" * 80 + f"\n{text}\n" + "-" * 80)

    every = [
        (-(-session.steps // config.evaluations), on_evaluate),
        (config.save_every, lambda state: _save(session, state)),
    ]
    if config.samples:
        every.append((-(-session.steps // config.samples), on_sample))
    run = model.make_train(config, V, session.steps)
    try:
        state = train.fit(
            run,
            session.train_state,
            jnp.asarray(prepared.train),
            steps=session.steps,
            every=every,
            on_metrics=log.metrics,
            stop=stop,
        )
        if not stop() and not any(row.get("step") == session.steps for row in _scored(log.rows)):
            on_evaluate(state)
    except train.Diverged as error:
        raise Failed(f"{error} Run folder: {session.folder}") from error
    except OSError as error:
        raise Failed(f"nothing can be saved any more: {error}") from error
    finally:
        log.close()
    return state, log


def _finish(session: Session, train_state: train.TrainState, log: report.Log) -> None:
    config, path = session.config, session.folder
    best = min(_scored(log.rows), key=lambda row: row["validation_loss"])
    params = session.checkpoints.restore("best", like=train_state).params
    write = generating.sampler(config, session.data.vocabulary, session.data.start, 500)
    text = write(params, config.seed).strip("\n")
    folder.write(path / "sample.txt", text + "\n")
    title = f"{data.name(config)}, {config.layers} x {config.cell}({config.hidden_size})"
    report.plot(path / "loss.png", log.rows, title)
    loss = report.describe(best["validation_loss"])
    print(
        f"\n{text}\n\n"
        f"best validation loss: {loss} at step {best['step']}\n"
        f"loss curve {path / 'loss.png'}, numbers {path / 'metrics.jsonl'}, this sample "
        f"{path / 'sample.txt'}\n"
        f'more text: python -m experiments.char_lm generate {path} --prompt "..."'
    )


def _save(session: Session, state: train.TrainState) -> None:
    last = session.checkpoints.last
    if last is None or last.step != int(state.step):
        session.checkpoints.save(state)


def _scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "validation_loss" in row]


def _say_stopped(path: Path, stop: Any, step: int) -> None:
    print(
        f"\nstopped by {stop.received.name} after step {step}; everything is saved. Go on with\n"
        f"python -m experiments.char_lm --resume {path}"
    )


def _steps(config: Config, prepared: data.Data) -> int:
    if config.minutes is not None:
        return _measure(config, prepared)
    if config.epochs is not None:
        characters = config.epochs * len(prepared.train)
        return max(1, round(characters / (config.batch * config.window)))
    return config.steps or (options.QUICK_STEPS if config.quick else options.DEFAULT_STEPS)


def _measure(config: Config, prepared: data.Data) -> int:
    """How many updates fit into the minutes, evaluations included."""
    assert config.minutes is not None
    fitting(config.minutes, time.monotonic() - STARTED, 0.0, 1e-9)  # is there any time at all?
    print("measuring the speed ...", flush=True)
    V, tokens = len(prepared.vocabulary), jnp.asarray(prepared.train)
    begun = time.monotonic()
    run, state = model.make_train(config, V, 1000), model.start(config, V, 1000)
    evaluate = model.make_evaluate(config, V, prepared.context)
    held_out = jnp.asarray(prepared.held_out)
    state, _ = jax.block_until_ready(run(state, tokens))
    jax.block_until_ready(evaluate(state.params, held_out))
    compiling = time.monotonic() - begun
    begun, done = time.monotonic(), 0
    while done == 0 or time.monotonic() - begun < 3.0:
        state, _ = jax.block_until_ready(run(state, tokens))
        done += run.steps_per_call
    an_update = (time.monotonic() - begun) / done
    begun = time.monotonic()
    jax.block_until_ready(evaluate(state.params, held_out))
    evaluating = (time.monotonic() - begun) * (config.evaluations + 1)
    to_come = 2 * compiling + evaluating + 3.0
    return fitting(config.minutes, time.monotonic() - STARTED, to_come, an_update)


def fitting(minutes: float, spent: float, to_come: float, an_update: float) -> int:
    """How many updates fit between the seconds that are spent and those that other work takes."""
    steps = int((60 * minutes - spent - to_come) / an_update)
    if steps < 1:
        raise BadInput(
            f"--minutes: got {minutes}, too few: all but training takes {spent + to_come:.0f} "
            "seconds already"
        )
    return steps


def _check_memory(config: Config, V: int) -> None:
    """Refuses a network that cannot fit, before it is tried."""
    state = jax.eval_shape(lambda: model.start(config, V, 1))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)
    activations = config.window * config.batch * (8 * config.layers * config.hidden_size + 4 * V)
    needed = 2 * size + 4 * activations
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise BadInput(
            f"this network would need about {needed / 1e9:,.0f} GB, this machine has "
            f"{memory / 1e9:,.0f} GB. Lower --hidden-size, --layers, --batch or --window."
        )
