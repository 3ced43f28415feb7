"""A training from its options to a run folder with a net in it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, devices, learning, plots, run_folder, using
from experiments.harness.application import (
    Application,
    Data,
    Model,
    Trained,
    check_memory,
)
from experiments.harness.command import BadInput, Failed
from experiments.harness.study import write_files
from rnn_jax import processes, train
from rnn_jax.checkpoint import Checkpoints

STEPS_PER_CALL = 10
EARLY = (10, 100, 1000)  # updates after which a sample is shown beside the evenly spaced ones


class Session(NamedTuple):
    """Everything between the checks and the first update."""

    app: Application
    config: Any
    steps: int  # updates in all
    data: Data
    model: Model
    nets: int  # side by side
    run: train.Run
    state: train.TrainState
    folder: Path
    checkpoints: Checkpoints


def train_or_resume(app: Application, config: Any, stop: train.Stop) -> None:
    """Trains, or goes on training, until the end or until it is told to stop."""
    try:
        session = _new(app, config) if config.resume is None else _resume(app, config)
    except (OSError, ValueError) as error:
        raise BadInput(command.one_line(error)) from error
    state, rows, stopped = _train(session, stop)
    if not stopped:
        _finish(session, state, rows)
        return
    _save(session, state)
    _draw(session, rows)
    by = "a signal to another process" if stop.received is None else stop.received.name
    command.say(
        f"\nstopped by {by} after step {train.step_of(state)}; everything is "
        f"saved. Go on with\n{session.app.program} --resume {session.folder}"
    )


def prepare(app: Application, config: Any) -> tuple[Data, Model, int, train.Run]:
    """Data, model, number of nets and compiled updates; raises BadInput, OSError, ValueError."""
    data = app.load(config)
    model = app.make(config, data.about)
    nets = config.seeds if data.axes is None else len(data.held_out)
    state = jax.eval_shape(lambda: learning.initial(config, model, nets))
    check_memory(state)
    batch_at = None if is_streamed(data) else model.batch_at
    run = train.make_train(
        model.loss,
        batch_at,
        learning.optimizer(config),
        steps_per_call=STEPS_PER_CALL,
        mesh=devices.mesh(config),
        batch_axes=model.batch_axes,
    )
    run = train.side_by_side(run, data.axes) if nets > 1 else run
    if not is_streamed(data):  # what cannot be computed is said before a folder is made
        shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, data.train))
        jax.eval_shape(run.compiled, state, shapes, np.int32(1))
    return data, model, nets, run


def is_streamed(data: Data) -> bool:
    """Whether the batches come from an iterator on the host."""
    return hasattr(data.train, "__next__")


def on_devices(run: train.Run, data: Data) -> Any:
    """The data where the updates read them."""
    if is_streamed(data) or run.mesh is not None:  # `fit` brings them there
        return data.train
    return jax.tree.map(jnp.asarray, data.train)


def expected(run: train.Run, initial: Callable[[], train.TrainState]) -> train.TrainState:
    """The shapes of a train state, and where they lie."""
    shapes = jax.eval_shape(initial)
    if run.mesh is None:
        return shapes
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        train.shardings(shapes, run.mesh),
    )


def _first(
    app: Application, config: Any, data: Data, model: Model, nets: int, run: train.Run
) -> train.TrainState:
    """The state before the first update, with the params of another run where one is given."""

    def initial() -> train.TrainState:
        return learning.initial(config, model, nets)

    mesh = run.mesh
    places = None if mesh is None else train.shardings(jax.eval_shape(initial), mesh)
    state = jax.jit(initial, out_shardings=places)()
    if config.init_from is None:
        return state
    other = using.load_run(app, config.init_from)
    differ = [name for name in data.about if data.about[name] != other.about.get(name)]
    if differ:
        raise BadInput(
            f"--init-from {config.init_from}: its data and these differ in {', '.join(differ)}, so "
            "that its params would mean something else here"
        )
    params = other.params
    if nets > 1:
        params = jax.tree.map(lambda a: jnp.stack([a] * nets), params)
    here, there = (_shapes(tree) for tree in (state.params, params))
    if here != there:
        raise BadInput(
            f"--init-from {config.init_from}: its net is another one: {', '.join(there ^ here)}"
        )
    return state._replace(params=params)


def _shapes(params: Any) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {f"{jax.tree_util.keystr(path)} {list(leaf.shape)}" for path, leaf in leaves}


def _new(app: Application, config: Any) -> Session:
    processes.first(lambda: command.check_new(config.run))
    data, model, nets, run = processes.together(lambda: prepare(app, config))
    identity = _identity(config, data)
    state = _first(app, config, data, model, nets, run)
    steps = _steps(config, data, model, nets, run, state)
    state = learning.with_steps(state, steps)
    described = run_folder.Description(config, steps, data.about, identity)

    def make() -> str:
        with command.new_folder(app.name, config.run) as folder:
            run_folder.write(folder, app.name, described)
        return str(folder)

    folder = Path(processes.first(make))
    checkpoints = Checkpoints(folder / "checkpoints")
    return Session(app, config, steps, data, model, nets, run, state, folder, checkpoints)


def _resume(app: Application, config: Any) -> Session:
    folder = config.resume
    saved = run_folder.read(folder, app.name, app.config)
    changed = run_folder.differences(config, saved.config)
    more = "steps" in changed
    wrong = [text for name, text in changed.items() if name not in ("data", "steps")]
    if wrong or config.run is not None:
        raise BadInput(
            f"--resume {folder}: got {', '.join(wrong) or '--run'}, expected the options of that "
            "run, which need not be repeated, and at most --data, where the data are now, and "
            "--steps, to train it further. For other options start a new run"
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    done = 0 if checkpoints.last is None else checkpoints.last.step
    if more and config.steps < max(done, 1):
        raise BadInput(f"--steps: got {config.steps}, but the run has made {done} updates already")
    data, model, nets, run = processes.together(lambda: prepare(app, config))
    if _identity(config, data) != saved.sha256:
        raise BadInput(
            f"--resume {folder}: the data ({config.data or 'its own'}) are not those that the run "
            "began with. Put those back (--data says where they are now), or start a new run"
        )
    if checkpoints.last is None:
        state = _first(app, config, data, model, nets, run)
    else:
        like = expected(run, lambda: learning.initial(config, model, nets))
        state = checkpoints.restore("last", like=like)
        if is_streamed(data):
            data.train.set_state(checkpoints.last.position)
    steps = config.steps if more else saved.steps
    if more:
        lengths = {"steps": steps, "epochs": None, "minutes": None}
        config = dataclasses.replace(config, **lengths)
        described = saved._replace(config=config, steps=steps)
        run_folder.write(folder, app.name, described)
    state = learning.with_steps(state, steps)
    return Session(app, config, steps, data, model, nets, run, state, folder, checkpoints)


def _identity(config: Any, data: Data) -> str:
    """Of the data; several processes must have the same, and the same options."""
    found = data.sha256 or run_folder.digest(data.about, data.train, data.held_out)
    options = {n: v for n, v in run_folder.to_json(config).items() if n != "data"}
    (data_of_first, first), *others = processes.each(lambda: (found, options))
    for process, (theirs, of_theirs) in enumerate(others, start=1):
        different = [command.flag(name) for name in options if of_theirs[name] != first[name]]
        if different or theirs != data_of_first:
            what = ", ".join(different) or "data"
            raise BadInput(f"process {process} has other {what} than process 0")
    return found


def _steps(
    config: Any, data: Data, model: Model, nets: int, run: train.Run, state: train.TrainState
) -> int:
    if config.minutes is not None:
        learning.updates_in(60 * config.minutes, learning.spent(), 0.0, 1e-9)

        def evaluate(params: Any) -> None:
            scores(model, params, data, nets)

        evaluations = config.evaluations
        return learning.fitting(
            config.minutes, run, state, on_devices(run, data), evaluate, evaluations
        )
    if config.epochs is not None:
        if data.epoch is None:
            raise BadInput("--epochs: these data have no passes; give --steps or --minutes")
        return max(1, round(config.epochs * data.epoch))
    return config.steps


def scores(model: Model, params: Any, data: Data, nets: int) -> list[dict[str, float]]:
    """What each net scores on the data that are held out from it."""
    found = []
    for i, mine in enumerate(learning.each(params, nets)):
        held_out = data.held_out if data.axes is None else data.held_out[i]
        values = model.score(mine, held_out)
        found.append({name: float(value) for name, value in values.items()})
    return found


def _train(
    session: Session, stop: train.Stop
) -> tuple[train.TrainState, list[dict[str, Any]], bool]:
    """The state and the rows at the end, and whether a signal brought it about."""
    _, config, steps, data, model, nets, run, state, folder, checkpoints = session
    done = train.step_of(state)
    rows = run_folder.read_rows(folder, done)
    each = f", {nets} nets side by side" if nets > 1 else ""
    count = sum(a.size for a in jax.tree.leaves(state.params)) // nets
    command.say(
        f"{data.text}\n{count:,} parameters, {steps:,} updates{each}\nrun folder: {folder}",
    )
    log = learning.Log(rows, lambda row: run_folder.add_row(folder, row), done, steps)
    every = -(-steps // config.evaluations)

    def on_evaluate(state: train.TrainState) -> None:
        found = scores(model, state.params, data, nets)
        log.scores(train.step_of(state), found, model.unit)
        loss = float(np.mean([s["loss"] for s in found]))
        checkpoints.save(state, loss, position=_position(data))

    def on_sample(state: train.TrainState) -> None:
        assert model.sample is not None
        params = learning.each(state.params, nets)[0]
        step = train.step_of(state)
        if any("sample" in row and row["step"] == step for row in rows):
            return
        text = model.sample(params, step).strip("\n")
        log.sample(step, text)
        if jax.process_index() == 0:
            shown = [
                f"after {r['step']:,} updates:\n\n{r['sample']}\n" for r in rows if "sample" in r
            ]
            write_files(folder, {"samples.txt": lambda: "\n".join(shown)})

    def stale() -> bool:
        best, last = checkpoints.best, checkpoints.last
        waited = 0 if best is None or last is None else last.step - best.step
        return config.patience > 0 and waited >= config.patience * every

    hooks = [(every, on_evaluate), (config.save_every, lambda state: _save(session, state))]
    early: list[int] = []
    if config.samples and model.sample is not None:
        hooks.append((-(-steps // config.samples), on_sample))
        early = [step for step in EARLY if done < step < steps]
    try:
        read = on_devices(run, data)
        for until in [*early, steps]:
            state = train.fit(
                run,
                state,
                read,
                steps=until,
                every=hooks,
                on_metrics=log.metrics,
                stop=lambda: stop() or stale(),
            )
            if train.step_of(state) < until:
                break
            if config.samples and model.sample is not None:
                on_sample(state)
        stopped = train.step_of(state) < steps and not stale()
        scored = any("validation_loss" in r and r["step"] == train.step_of(state) for r in rows)
        if not stopped and not scored:
            on_evaluate(state)
    except train.Diverged as error:
        raise Failed(f"{error} Run folder: {folder}") from error
    except OSError as error:
        raise Failed(f"{folder}: nothing can be saved any more: {error}") from error
    finally:
        log.close()
    return state, rows, stopped


def _position(data: Data) -> Any:
    return data.train.get_state() if is_streamed(data) else None


def _save(session: Session, state: train.TrainState) -> None:
    last = session.checkpoints.last
    if last is None or last.step != train.step_of(state):
        session.checkpoints.save(state, position=_position(session.data))


def _finish(session: Session, state: train.TrainState, rows: list[dict[str, Any]]) -> None:
    app, config, _, data, model, nets, _, _, folder, checkpoints = session
    best = learning.best_row(rows)
    if best is None:
        raise Failed(f"{folder}: no score was finite, so there is no best net")
    try:
        all_nets = learning.each(checkpoints.restore("best", like=state).params, nets)
    except (OSError, ValueError) as error:
        raise Failed(command.one_line(error)) from error
    net = learning.best_net(best)
    trained = Trained(config, data.about, model, all_nets[net], all_nets)
    with plots.style():
        report = app.report(trained, data.held_out)
    numbers = {"options": run_folder.to_json(config), "jax": jax.__version__, "best": best}
    names = list(report.files)
    if jax.process_index() == 0:
        command.write_numbers(folder, numbers | report.numbers)
        write_files(folder, {n: lambda f=f: f for n, f in report.files.items()})
    _draw(session, rows)
    spread = ""
    if nets > 1:
        losses = [s["loss"] for s in best["nets"]]
        spread = f", the mean of {nets} nets, {min(losses):.4f} to {max(losses):.4f}"
    loss = learning.with_unit(best["validation_loss"], model.unit)
    command.say(f"\n{report.text}" if report.text else "")
    command.say(f"best validation loss: {loss}{spread}, at step {best['step']}")
    command.say(f"written: {folder}/{', '.join(['numbers.json', 'loss.png', *names])}")
    for verb in app.uses:
        command.say(f"use it: {app.program} {verb} {folder} --help")


def _draw(session: Session, rows: list[dict[str, Any]]) -> None:
    """The loss curve, of a run that was stopped too."""
    if rows and jax.process_index() == 0:
        title, unit = session.data.text, session.model.unit
        write_files(session.folder, {"loss.png": lambda: plots.loss_curve(rows, title, unit)})
