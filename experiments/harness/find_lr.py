"""A learning-rate range test: the rate rises from update to update until the loss explodes.

References:
  Smith. Cyclical learning rates for training neural networks. 2015.
  The three rules of choice are those of kept tools: the steepest point of the smoothed loss over
  the logarithm of the rate; a tenth of the rate at its minimum; the middle of the longest stretch
  in which it falls ("valley").
"""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.harness import command, devices, learning, plots, training
from experiments.harness.application import Application
from experiments.harness.command import BadInput, Failed
from experiments.harness.study import write_files
from rnn_jax import train

LOWEST, HIGHEST, UPDATES = 1e-5, 10.0, 200
SMOOTH, EXPLODED = 0.9, 4.0  # of the running mean; over the best loss, where the test ends
LEAVE_OUT = 10  # updates at the beginning, where the running mean is not settled


def find(app: Application, config: Any, stop: train.Stop) -> None:
    """Runs the test, draws it, and prints what to train with."""
    if config.resume is not None:
        raise BadInput("--find-lr: got --resume beside it; it starts from new params")
    command.check_new(config.run)
    try:
        data, model, _, _ = training.prepare(app, config)
    except (OSError, ValueError) as error:
        raise BadInput(command.one_line(error)) from error
    with command.new_folder(f"{app.name}-find-lr", config.run) as folder:
        rates, losses = sweep(config, model, data, stop)
        if stop.received is not None:
            raise Failed(f"stopped by {stop.received.name}; nothing was chosen")
        found = choices(rates, losses)
        numbers = {"rates": rates, "losses": losses, "choices": found}
        command.write_numbers(folder, numbers)
        write_files(folder, {"find_lr.png": lambda: draw(rates, losses, found, data.text)})
    for name, value in found.items():
        command.say(f"{name:<28}{value:.2g}")
    command.say(f"written: {folder}/numbers.json, find_lr.png")
    rate = suggested(found)
    command.say(f"train with the middle one: {app.program} --learning-rate {rate:.2g}")


def sweep(config: Any, model: Any, data: Any, stop: train.Stop) -> tuple[np.ndarray, np.ndarray]:
    """The rates that were tried, and the loss at each, f64 [n] both."""

    def rate(step: jax.Array, steps: jax.Array) -> jax.Array:
        return LOWEST * (HIGHEST / LOWEST) ** (step.astype(jnp.float32) / (UPDATES - 1))

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.scale_by_adam(), learning.paced(rate)
    )
    batch_at = None if training.is_streamed(data) else model.batch_at
    run = train.make_train(
        model.loss,
        batch_at,
        optimizer,
        steps_per_call=5,
        mesh=devices.mesh(config),
        batch_axes=model.batch_axes,
    )
    state = learning.initial(config, model, 1)
    state = train.init(state.params, state.carry, optimizer, state.key)
    losses: list[float] = []

    def exploded() -> bool:
        smooth = smoothed(np.array(losses))
        return len(losses) > LEAVE_OUT and not smooth[-1] <= EXPLODED * np.nanmin(smooth)

    def on_metrics(step: int, metrics: train.Metrics) -> None:
        losses.extend(np.where(metrics.skipped, np.nan, metrics.loss).tolist())

    with contextlib.suppress(train.Diverged):  # as it should, at the end
        train.fit(
            run,
            state,
            training.on_devices(run, data),
            steps=UPDATES,
            on_metrics=on_metrics,
            stop=lambda: stop() or exploded(),
        )
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(len(losses)) / (UPDATES - 1))
    good = np.isfinite(losses)
    if good.sum() < 3 * LEAVE_OUT:
        raise Failed("the loss is not finite at the lowest rates already: look at the data")
    return rates[good], np.array(losses)[good]


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The running mean, without the bias of its start."""
    mean, found = 0.0, []
    for n, loss in enumerate(losses, start=1):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        found.append(mean / (1 - SMOOTH**n))
    return np.array(found)


def choices(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """What each of the three rules chooses.

    Example:
      A loss that falls between 1e-3 and 1e-1 and explodes at 1:

      >>> rates = np.geomspace(1e-5, 10, 200)
      >>> losses = 3 - 2 / (1 + (1e-2 / rates) ** 2) + rates**2
      >>> print({name: f"{rate:.0e}" for name, rate in choices(rates, losses).items()})
      {'steepest': '2e-02', 'a tenth of the minimum': '3e-02', 'valley': '2e-03'}
    """
    x, y = np.log(rates[LEAVE_OUT:]), smoothed(losses)[LEAVE_OUT:]
    end = int(np.argmin(y))
    slopes = np.gradient(y, x)[: max(end, 1)]
    start, length = longest_fall(y[: end + 1])
    return {
        "steepest": float(np.exp(x[int(np.argmin(slopes))])),
        "a tenth of the minimum": float(np.exp(x[end]) / 10),
        "valley": float(np.exp(x[start + length // 2])),
    }


def longest_fall(y: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest chain of points, not only neighbours, that falls."""
    longest, before = np.ones(len(y), int), np.arange(len(y))
    for i in range(len(y)):
        lower = [j for j in range(i) if y[j] > y[i]]
        if lower:
            j = max(lower, key=lambda j: longest[j])
            longest[i], before[i] = longest[j] + 1, j
    last = first = int(np.argmax(longest))
    while before[first] != first:
        first = int(before[first])
    return first, last - first


def suggested(found: dict[str, float]) -> float:
    """The middle one of the three choices."""
    return sorted(found.values())[1]


def draw(rates: np.ndarray, losses: np.ndarray, choices: dict[str, float], title: str) -> Figure:
    """The loss over the rate, and what each rule chooses."""
    figure, axes = plots.panels()
    smooth = smoothed(losses)
    axes.plot(rates, losses, color="C0", alpha=0.3, label="loss of an update")
    axes.plot(rates, smooth, color="C0", label="running mean")
    for marker, (name, rate) in zip(("C1o", "C2s", "C3^"), choices.items(), strict=True):
        at = float(np.interp(np.log(rate), np.log(rates), smooth))
        axes.plot(rate, at, marker, markersize=9, fillstyle="none", label=f"{name}: {rate:.1e}")
    low, first = float(smooth.min()), float(smooth[0])
    span = max(first - low, 1e-3 * abs(first), math.ulp(1.0))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_title(title, parse_math=False)
    axes.set_ylim(low - 0.2 * span, first + 0.5 * span)
    axes.legend(loc="lower left")
    return figure
