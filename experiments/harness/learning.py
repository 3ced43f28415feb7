"""How an application learns: the optimizer, the length of the training, the bar and the log."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.harness import command
from experiments.harness.command import BadInput
from rnn_jax import processes, train

STARTED = time.monotonic()


class PaceState(NamedTuple):
    """Where a schedule is; both are traced, so that another length compiles nothing anew."""

    step: jax.Array  # int32 []
    steps: jax.Array  # int32 [], updates in all


def paced(rate: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Multiplies updates by ``-rate(step, steps)``; `with_steps` says how many steps there are."""

    def init(params: Any) -> PaceState:
        del params
        return PaceState(jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))

    def update(updates: Any, state: PaceState, params: Any = None) -> tuple[Any, PaceState]:
        del params
        size = rate(state.step, state.steps)
        updates = jax.tree.map(lambda u: -size.astype(u.dtype) * u, updates)
        return updates, PaceState(state.step + 1, state.steps)

    return optax.GradientTransformation(init, update)


def with_steps(state: train.TrainState, steps: int) -> train.TrainState:
    """The same train state in a training of another length."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, PaceState):
            return leaf
        return leaf._replace(steps=jnp.full(leaf.steps.shape, steps, jnp.int32))

    is_pace = lambda leaf: isinstance(leaf, PaceState)  # noqa: E731
    return state._replace(opt_state=jax.tree.map(place, state.opt_state, is_leaf=is_pace))


def optimizer(config: Any) -> optax.GradientTransformation:
    """Adam behind clipping; the rate rises over the warm-up and then follows the schedule."""

    def rate(step: jax.Array, steps: jax.Array) -> jax.Array:
        warmup = jnp.minimum(jnp.int32(config.warmup), steps // 10)
        done = (step - warmup) / jnp.maximum(steps - warmup, 1)
        done = jnp.clip(done.astype(jnp.float32), 0.0, 1.0)
        after = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "linear": 1 - done,
            "constant": jnp.ones_like(done),
        }[config.schedule]
        rising = (step / jnp.maximum(warmup, 1)).astype(jnp.float32)
        return config.learning_rate * jnp.where(step < warmup, rising, after)

    return optax.chain(optax.clip_by_global_norm(config.clip), optax.scale_by_adam(), paced(rate))


def initial(config: Any, model: Any, nets: int) -> train.TrainState:
    """The state before the first update; with a leading axis for nets side by side."""

    def one(key: jax.Array) -> train.TrainState:
        k_params, k_carry, k_train = jax.random.split(key, 3)
        params = model.init(k_params)
        carry = model.carry(params, k_carry)
        return train.init(params, carry, optimizer(config), k_train)

    key = jax.random.key(config.seed)
    if nets == 1:
        return one(key)
    # One after the other: decompositions of many matrices, as an orthogonal initializer needs them,
    # may wait for each other for ever where XLA batches them (jaxlib 0.10.2, two cores).
    return jax.lax.map(one, jax.random.split(key, nets))


def each(params: Any, nets: int) -> list[Any]:
    """The params of each of the nets that are trained side by side, on the first device."""
    if any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(params)):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)
    if nets == 1:
        return [params]
    return [jax.tree.map(lambda a, i=i: a[i], params) for i in range(nets)]


def fitting(
    minutes: float,
    run: train.Run,
    state: train.TrainState,
    data: Any,
    evaluate: Callable[[Any], Any],
    evaluations: int,
) -> int:
    """How many updates fit into what is left of the minutes since the program started.

    Compiles and tries the run, on a copy of the state, and one evaluation: what is compiled here is
    used by the training, so it counts once.
    """
    command.say("measuring the speed ...")
    position = data.get_state() if run.takes_batches else None
    copy, done = jax.tree.map(jnp.copy, state), train.step_of(state)

    def updates() -> None:
        nonlocal copy, done
        done += run.steps_per_call
        copy = jax.block_until_ready(train.fit(run, copy, data, steps=done))

    # Of batches of several shapes each is compiled when it first comes.
    for _ in range(6 if len(getattr(data, "shapes", ())) > 1 else 1):
        updates()
    evaluate(state.params)
    evaluating = _seconds(lambda: evaluate(state.params))
    times = [_seconds(updates)]
    while processes.first(lambda: sum(times) < min(3.0, 3 * minutes)):
        times.append(_seconds(updates))
    if run.takes_batches:
        data.set_state(position)
    to_come, an_update = evaluating * (evaluations + 1) + 2.0, float(np.median(times))
    return updates_in(60 * minutes, spent(), to_come, an_update / run.steps_per_call)


def spent() -> float:
    """Seconds since the program started."""
    return time.monotonic() - STARTED


def updates_in(seconds: float, spent: float, to_come: float, an_update: float) -> int:
    """How many updates fit between the seconds that are spent and those that other work takes.

    Several processes go by the clock of the first.
    """
    steps = processes.first(lambda: int((seconds - spent - to_come) / an_update))
    if steps < 1:
        raise BadInput(
            f"--minutes: got {seconds / 60:g}, too few: all but training takes "
            f"{spent + to_come:.0f} seconds already"
        )
    return steps


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.monotonic()
    run()
    return time.monotonic() - begun


class Log:
    """The progress bar, and a row for each report: what `write` puts into metrics.jsonl."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        write: Callable[[dict[str, Any]], None],
        done: int,
        steps: int,
    ) -> None:
        self.rows, self._write = rows, write
        self._skipped = sum(row.get("skipped", 0) for row in rows)
        interval = 0.1 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            total=steps, initial=done, unit="step", mininterval=interval, dynamic_ncols=True
        )

    def metrics(self, step: int, metrics: train.Metrics) -> None:
        """Called with each chunk of updates."""
        n, good = metrics.loss.shape[-1], ~metrics.skipped
        self._skipped += int((~good).sum())
        row: dict[str, Any] = {"step": step + n, "loss": _mean(metrics.loss, good)}
        row |= {"gradient_norm": _mean(metrics.grad_norm, good), "skipped": int((~good).sum())}
        if metrics.loss.ndim > 1:
            pairs = zip(metrics.loss, good, strict=True)
            row["nets"] = [_mean(loss, mine) for loss, mine in pairs]
        self._add(row)
        shown = "" if row["loss"] is None else f"loss {row['loss']:.4f}"
        skipped = f", {self._skipped} not finite, skipped" if self._skipped else ""
        self.bar.set_postfix_str(shown + skipped, refresh=False)
        self.bar.update(n)

    def scores(self, step: int, nets: list[dict[str, float]], unit: str) -> None:
        """Called with the scores of each net: their means are written, and printed."""
        means = {name: float(np.mean([s[name] for s in nets])) for name in nets[0]}
        loss = means.pop("loss")
        row: dict[str, Any] = {"step": step, "validation_loss": loss}
        row |= {"training_loss": self.training_loss(), "scores": means}
        if len(nets) > 1:
            row["nets"] = nets
        self._add(row)
        parts = [f"validation loss {with_unit(loss, unit)}"]
        if row["training_loss"] is not None:
            parts.insert(0, f"training loss {row['training_loss']:.4f}")
        parts += [f"{name} {value:.4g}" for name, value in means.items()]
        self.say(f"step {step}: {', '.join(parts)}")

    def sample(self, step: int, text: str) -> None:
        """Called with what a net writes."""
        self._add({"step": step, "sample": text})
        self.say(f"{'-' * 80}\n{text}\n{'-' * 80}")

    def training_loss(self) -> float | None:
        """The mean over the updates since the last scores, which the loss curve shows too."""
        last = max((i for i, row in enumerate(self.rows) if "validation_loss" in row), default=-1)
        losses = [row["loss"] for row in self.rows[last + 1 :] if row.get("loss") is not None]
        if not losses:
            return self.rows[last]["training_loss"] if last >= 0 else None
        return float(np.mean(losses))

    def say(self, message: str) -> None:
        """Prints above the bar."""
        with self.bar.external_write_mode(file=sys.stdout):
            command.say(message)

    def close(self) -> None:
        self.bar.close()

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._write(row)


def with_unit(loss: float, unit: str) -> str:
    """A loss for people; what is counted in nats is given in bits too."""
    if not unit:
        return f"{loss:.4f}"
    bits = f" ({loss / math.log(2):.3f} bits)" if unit.startswith("nats") else ""
    return f"{loss:.4f} {unit}{bits}"


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The scores with the lowest loss, the earlier of equals."""
    scored = [r for r in rows if math.isfinite(r.get("validation_loss", math.nan))]
    return min(scored, key=lambda row: row["validation_loss"], default=None)


def best_net(row: dict[str, Any] | None) -> int:
    """Which of the nets side by side had the lowest loss."""
    nets = (row or {}).get("nets", [{"loss": 0.0}])
    return int(np.argmin([scores["loss"] for scores in nets]))


def _mean(values: Any, good: Any) -> float | None:
    return float(np.mean(values[good])) if good.any() else None
