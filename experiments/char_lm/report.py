"""What the user sees and what is written down: bar, metrics, samples, loss curve."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.char_lm.config import Config
from rnn_jax.train import Metrics


def bits(nats: float) -> float:
    return nats / math.log(2)


def describe(nats: float) -> str:
    return f"{nats:.4f} nats per character ({bits(nats):.3f} bits)"


class Log:
    """The progress bar and metrics.jsonl."""

    def __init__(self, folder: Path, config: Config, rows: list[dict[str, Any]], step: int, n: int):
        self.rows = rows
        self._characters = config.window * config.batch  # in an update
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._skipped = sum(row.get("skipped", 0) for row in rows)
        self._clock: float | None = None  # the first chunk is compiled, so its time says nothing
        self._speed: float | None = None  # smoothed, since chunks are reported late
        interval = 0.1 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            total=n, initial=step, unit="step", mininterval=interval, dynamic_ncols=True
        )

    def metrics(self, step: int, metrics: Metrics) -> None:
        """Called with each chunk of updates."""
        n = len(metrics.loss)
        good = ~metrics.skipped
        speed = self._measure(n * self._characters)
        self._skipped += int(metrics.skipped.sum())
        row = {
            "step": step + n,
            "loss": float(np.mean(metrics.loss[good])) if good.any() else None,
            "gradient_norm": float(np.mean(metrics.grad_norm[good])) if good.any() else None,
            "skipped": int(metrics.skipped.sum()),
            "characters_per_second": speed,
        }
        self.write(row)
        shown = f"{describe(row['loss'])}, " if row["loss"] is not None else ""
        fast = "" if self._speed is None else f"{self._speed:,.0f} characters/s"
        skipped = f", {self._skipped} not finite, skipped" if self._skipped else ""
        self.bar.set_postfix_str(shown + fast + skipped, refresh=False)
        self.bar.update(n)

    def _measure(self, characters: int) -> int | None:
        now, before, self._clock = time.monotonic(), self._clock, time.monotonic()
        if before is None:
            return None
        speed = characters / max(now - before, 1e-9)
        self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed
        return round(speed)

    def validation(self, step: int, loss: float) -> None:
        """Called with each validation loss."""
        self.write({"step": step, "validation_loss": loss})
        recent = [row["loss"] for row in self.rows if row.get("loss") is not None][-10:]
        train = f"training {np.mean(recent):.4f}, " if recent else ""
        self.say(f"step {step}: {train}validation {describe(loss)}")

    def say(self, message: str) -> None:
        """Prints above the bar; time spent since the last report does not count as training."""
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
        self._clock = None if self._clock is None else time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self.bar.close()
        self._file.close()


def plot(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """The loss curve, training and validation, as PNG."""
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(r["step"], r["validation_loss"]) for r in rows if "validation_loss" in r]
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    if train:
        steps, losses = np.array(train).T
        width = max(1, len(losses) // 60)
        axes.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.8)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        centre = slice((width - 1) // 2, (width - 1) // 2 + len(smooth))
        axes.plot(steps[centre], smooth, color="C0", label="training (running mean)")
    if held_out:
        steps, losses = np.array(held_out).T
        best = losses.min()
        label = f"validation (best {best:.4f} nats, {bits(best):.3f} bits)"
        axes.plot(steps, losses, "o-", color="C1", markersize=4, label=label)
    late = [loss for step, loss in train + held_out if step >= 0.05 * rows[-1]["step"]]
    if any(late):  # the steep beginning would flatten the rest; a loss of 0 has no range
        axes.set_ylim(0.95 * min(late), 1.05 * max(late))
    axes.set(xlabel="updates", ylabel="cross-entropy, nats per character", title=title)
    second = axes.secondary_yaxis(
        "right", functions=(lambda x: x / np.log(2), lambda x: x * np.log(2))
    )
    second.set_ylabel("bits per character")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # "best" is slow, and warns when it is
    figure.savefig(path)
