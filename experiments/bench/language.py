"""word_lm and translation beside plain PyTorch: the same data, the same sizes, the same time.

    python -m experiments.bench.language
    python -m experiments.bench.language --text input.txt --pairs swe.txt --minutes 4

Each application trains for so many minutes, all included; then a model as a tutorial writes it in
PyTorch (torch.nn.LSTM with tied weights and one dropout mask for all steps; torch.nn.GRU with a
GRUCell and additive attention) takes the same batches of the same data for as long, with the same
optimizer, learning rate, schedule by the clock, and clipping. Both are scored on what is held out
in the same way. The seconds that ours spends on compiling count; eager PyTorch compiles nothing.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import translation, word_lm
from experiments.harness import command, plots, study
from experiments.harness.command import BadInput
from experiments.harness.measure import machine
from experiments.harness.study import Progress, Study


@dataclass(frozen=True)
class Config(study.Options):
    """Trains word_lm and translation, and plain PyTorch models of the same sizes beside them."""

    text: Path | None = None
    """For word_lm; default: its own."""
    pairs: Path | None = None
    """For translation; default: its own, dates."""
    minutes: float = 4.0
    """For each of the four trainings."""

    def check(self) -> None:
        super().check()
        command.above_zero(self, "minutes")
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise BadInput("PyTorch is not installed: pip install torch") from error


QUICK = Config(quick=True, minutes=0.03)


def rate_at(config: Any, done: float, step: int) -> float:
    """The learning rate after a share of the time, as the application has it."""
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * min(1.0, (step + 1) / config.warmup) * falling


def trained(
    config: Config, own: Any, model: Any, loss_of: Callable[[int], Any]
) -> tuple[int, float]:
    """Updates a torch model until the time is over; the number of updates and the seconds."""
    import torch

    optimizer = torch.optim.Adam(model.parameters())
    begun, step = time.monotonic(), 0
    while (spent := time.monotonic() - begun) < 60 * config.minutes:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(own, spent / (60 * config.minutes), step)
        optimizer.zero_grad()
        loss_of(step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), own.clip)
        optimizer.step()
        step += 1
    return step, time.monotonic() - begun


def words_in_torch(config: Config, own: Any, data: Any) -> dict[str, float]:
    import torch
    from torch import nn

    torch.manual_seed(config.seed)
    V, H, B, W = len(data.about["vocabulary"]["words"]), own.hidden_size, own.batch, own.window
    table = nn.Embedding(V, H)
    nn.init.uniform_(table.weight, -0.1, 0.1)
    layers, bias = nn.LSTM(H, H, own.layers), nn.Parameter(torch.zeros(V))
    model = nn.ModuleDict({"table": table, "layers": layers})
    model.bias = bias
    tokens = torch.as_tensor(np.array(data.train), dtype=torch.long)
    starts = torch.arange(B) * len(tokens) // B
    keep, state = 1 - own.dropout, None

    def logits(read: Any, state: Any, noise: bool) -> Any:
        xs = table(read)
        if noise and own.dropout:
            xs = xs * torch.bernoulli(torch.full((1, *xs.shape[1:]), keep)) / keep
        hs, state = layers(xs, state)
        if noise and own.dropout:
            hs = hs * torch.bernoulli(torch.full((1, *hs.shape[1:]), keep)) / keep
        return hs @ table.weight.T + bias, state

    def loss_of(step: int) -> Any:
        nonlocal state
        at = (torch.arange(W + 1)[:, None] + step * W + starts) % len(tokens)
        window = tokens[at]
        state = None if state is None else tuple(part.detach() for part in state)
        found, state = logits(window[:-1], state, True)
        return nn.functional.cross_entropy(found.reshape(-1, V), window[1:].reshape(-1))

    updates, seconds = trained(config, own, model, loss_of)
    total, read_state = 0.0, None
    inputs, targets, scored = (torch.as_tensor(np.array(a)) for a in data.held_out.windows)
    with torch.no_grad():
        for read, following, counts in zip(inputs.long(), targets.long(), scored, strict=True):
            found, read_state = logits(read, read_state, False)
            nats = nn.functional.cross_entropy(found.permute(0, 2, 1), following, reduction="none")
            total += float((nats * counts).sum())
    return {"loss": total / int(scored.sum()), "updates": updates, "seconds": seconds}


def translation_in_torch(config: Config, own: Any, data: Any) -> dict[str, float]:
    import torch
    from torch import nn

    torch.manual_seed(config.seed)
    S, V = (len(data.about[side]["words"]) for side in ("source", "target"))
    D, H, keep = own.embedding, own.hidden_size, 1 - own.dropout
    M = 2 * (H // 2)
    parts: Any = nn.ModuleDict({
        "read": nn.Embedding(S, D), "write": nn.Embedding(V, D),
        "encoder": nn.GRU(D, H // 2, bidirectional=True), "cell": nn.GRUCell(D + M, H),
        "key": nn.Linear(M, H, bias=False), "query": nn.Linear(H, H, bias=False),
        "v": nn.Linear(H, 1, bias=False), "start": nn.Linear(M, H), "out": nn.Linear(H, V),
    })  # fmt: skip
    for name in ("read", "write"):
        nn.init.normal_(parts[name].weight, std=D**-0.5)

    def mask(shape: Any, noise: bool) -> Any:
        return torch.bernoulli(torch.full(shape, keep)) / keep if noise else torch.ones(shape)

    def nats(source: Any, lengths: Any, target: Any, counts: Any, noise: bool) -> Any:
        source, target = (torch.as_tensor(np.array(a)).long() for a in (source, target))
        packed = nn.utils.rnn.pack_padded_sequence(
            parts["read"](source), torch.as_tensor(np.array(lengths)), batch_first=True,
            enforce_sorted=False,
        )  # fmt: skip
        memory, ends = parts["encoder"](packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            memory, batch_first=True, total_length=source.shape[1]
        )
        memory = memory * mask((len(source), 1, M), noise)
        hidden = torch.tanh(parts["start"](torch.cat([ends[0], ends[1]], dim=1)))
        there = torch.arange(source.shape[1]) < torch.as_tensor(np.array(lengths))[:, None]
        keys, outputs = parts["key"](memory), []
        before = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
        for x in parts["write"](before).unbind(1):
            scores = parts["v"](torch.tanh(keys + parts["query"](hidden)[:, None]))[:, :, 0]
            weights = scores.masked_fill(~there, -1e9).softmax(dim=1)
            context = (weights[:, :, None] * memory).sum(dim=1)
            hidden = parts["cell"](torch.cat([x, context], dim=1), hidden)
            outputs.append(hidden)
        hs = torch.stack(outputs, dim=1) * mask((len(source), 1, H), noise)
        found = nn.functional.cross_entropy(
            parts["out"](hs).permute(0, 2, 1), target, reduction="none"
        )
        valid = torch.arange(target.shape[1]) < torch.as_tensor(np.array(counts))[:, None]
        return (found * valid).sum() / valid.sum()

    def loss_of(step: int) -> Any:
        (source, target), (n_source, n_target), _ = data.train.at(step)
        return nats(source, n_source, target, n_target, own.dropout > 0)

    updates, seconds = trained(config, own, parts, loss_of)
    valid = data.held_out.valid
    with torch.no_grad():
        loss = nats(valid.source, valid.source_lengths, valid.target, valid.target_lengths, False)
    return {"loss": float(loss), "updates": updates, "seconds": seconds}


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Validation losses of both, and how many updates they made."""
    tasks = [
        ("word_lm", word_lm, config.text, words_in_torch),
        ("translation", translation, config.pairs, translation_in_torch),
    ]
    say.expect(2 * len(tasks))
    found: dict[str, Any] = {"machine": machine()}
    for name, module, data, in_torch in tasks:
        own = replace(
            module.QUICK if config.quick else module.Config(),
            data=data, steps=None, minutes=config.minutes, samples=0, quick=config.quick,
        )  # fmt: skip
        say(f"{name}, ours")
        options = ["--minutes", str(config.minutes), "--samples", "0"]
        if config.quick:
            options = ["--quick", "--steps", "20", "--samples", "0"]
        options += ["--data", str(data)] if data else []
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            begun = time.monotonic()
            # A process of its own: the clock of --minutes starts with it.
            line = [sys.executable, "-m", f"experiments.{name}", *options, "--run", str(run)]
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode:
                raise BadInput(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
            ours = json.loads((run / "numbers.json").read_text(encoding="utf-8"))["best"]
        row = {
            "ours": {
                "loss": ours["validation_loss"],
                "updates": ours["step"],
                "seconds": time.monotonic() - begun,
            }
        }
        say(f"{name}, PyTorch")
        row["PyTorch"] = in_torch(config, own, module.load(own))
        found[name] = row
    return found


def text(found: dict[str, Any], config: Config) -> str:
    lines = [f"{'':14}{'ours':>24}{'PyTorch':>24}"]
    for name in ("word_lm", "translation"):
        cells = [
            f"{found[name][who]['loss']:.4f} after {found[name][who]['updates']:,}"
            for who in ("ours", "PyTorch")
        ]
        lines.append(f"{name:14}{cells[0]:>24}{cells[1]:>24}")
    lines.append(
        f"validation loss in nats after so many updates, {config.minutes:g} minutes each\n"
    )
    return "\n".join(lines)


def draw(found: dict[str, Any], config: Config) -> Any:
    figure, panels = plots.panels(1, 2, size=(9, 3.5))
    for axes, name in zip(panels, ("word_lm", "translation"), strict=True):
        losses = [found[name][who]["loss"] for who in ("ours", "PyTorch")]
        bars = axes.bar(["ours", "PyTorch"], losses, color=["C0", "0.7"])
        axes.bar_label(bars, fmt="%.3f", padding=2)
        axes.set(title=f"{name}, {config.minutes:g} minutes", ylabel="validation loss (nats)")
        axes.margins(y=0.12)
    return figure


STUDY = Study("bench.language", Config, QUICK, measure, text, {"language.png": draw})

if __name__ == "__main__":
    sys.exit(STUDY.main())
