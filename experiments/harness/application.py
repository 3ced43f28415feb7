"""What every application shares: options, run folder, training that resumes, use of a run.

An application trains a net that one keeps. It is one file, which supplies what stands in
`Application`; `Application.main` makes these commands of it:

    python -m experiments.NAME                   trains, scores, draws
    python -m experiments.NAME --resume RUN      goes on, to the bit as if never stopped
    python -m experiments.NAME --find-lr         looks for the learning rate
    python -m experiments.NAME VERB RUN ...      uses the best params of a run
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tyro
from matplotlib.figure import Figure

from experiments.harness import command, devices
from experiments.harness.command import BadInput
from rnn_jax import train

LENGTHS = ("steps", "epochs", "minutes")


@dataclass(frozen=True)
class Options:
    """The options that every application has; its own config inherits them."""

    data: Path | None = None
    """File or folder to learn from; default: data that come with the application."""
    run: Path | None = None
    """Folder for all that the run makes; one that exists is never overwritten. Default: a new one
    under runs/."""
    resume: Path | None = None
    """Run folder to go on with, where its options are used; with --steps beside it, a run that is
    finished is trained further."""
    init_from: Path | None = None
    """Run folder whose best params the net starts from, for other data, options or a fresh
    schedule; the net must be the same, and its data must mean the same (the same vocabulary)."""
    quick: bool = False
    """A small setting that learns in less than half a minute; options beside it still count."""
    find_lr: bool = False
    """Instead of training: a learning-rate range test, with a figure and a choice."""

    seed: int = 0
    """Of all that is random."""
    seeds: int = 1
    """Nets trained side by side in one compiled call, which differ in their seed alone."""

    steps: int | None = None
    """Length of training in updates. One of steps, epochs and minutes."""
    epochs: float | None = None
    """Length of training in passes over the data."""
    minutes: float | None = None
    """Length of the whole run in minutes: the speed is measured, the number of updates follows."""

    batch: int = 32
    """Examples, or streams, in an update."""
    learning_rate: float = 4e-3
    """Highest learning rate of Adam."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up: it falls to 0 at the last step, or stays."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0 (at most a tenth of all)."""
    clip: float = 1.0
    """Highest global norm of the gradient; larger ones are scaled down to it."""

    evaluations: int = 10
    """How many times the held-out data are scored, with a checkpoint each."""
    save_every: int = 500
    """Steps between further checkpoints."""
    patience: int = 0
    """End after so many evaluations in a row without a better score; 0: never."""
    samples: int = 0
    """How many times a sample is shown while training, evenly spaced, and after 10, 100 and 1,000
    updates; all are kept in samples.txt. 0: never."""

    devices: int = 1
    """Devices that share each batch, in each process: cores of a CPU, or its GPUs."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes meet that train together, on one machine or
    many; or auto, where SLURM, Kubernetes or JAX_COORDINATOR_ADDRESS say it."""
    processes: int | None = None
    """How many processes there are; each is started with the same options and its --process."""
    process: int | None = None
    """Which of the processes this one is, from 0; process 0 prints and writes."""
    join_seconds: int = 120
    """How long to wait for the other processes."""

    def check(self) -> None:
        """Raises BadInput for values that make no sense; an application adds its own."""
        command.at_least(self, seeds=1, batch=1, evaluations=1, save_every=1)
        command.at_least(self, warmup=0, patience=0, samples=0)
        command.require(self, "seed", 0 <= self.seed < 2**32, "an integer from 0 to 2^32 - 1")
        command.above_zero(self, "learning_rate", "clip")
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        command.above_zero(self, *given)
        if len(given) != 1:
            flags = " and ".join(command.flag(name) for name in given) or "none"
            raise BadInput(f"got {flags}, expected one of --steps, --epochs and --minutes")


class Data(NamedTuple):
    """What an application has read."""

    # What `Model.batch_at` reads; or an iterator of batches on the host, with `get_state` and
    # `set_state` for its position, for data that do not fit into memory.
    train: Any
    held_out: Any  # what `Model.score` reads
    about: dict[str, Any]  # JSON: all that the model and a prediction need, such as a vocabulary
    text: str  # one line for people
    epoch: float | None = None  # updates in a pass over the data, for --epochs
    sha256: str = ""  # the identity of the data; by default that of the arrays
    # Where each net has data of its own, as in a cross-validation: which leaves of `train` have a
    # leading axis for the nets, as `in_axes` of `jax.vmap`; `held_out` is then a list of one each.
    axes: Any = None


class Model(NamedTuple):
    """A net and how it learns: pure functions."""

    init: Callable[[jax.Array], Any]  # (key) -> params
    # (params, carry, batch, key) -> (mean loss, carry); or a gradient algorithm, see `make_train`
    loss: Any
    batch_at: Callable[[Any, jax.Array], Any]  # (Data.train, step) -> batch
    score: Callable[[Any, Any], dict[str, Any]]  # (params, held_out); "loss" decides what is best
    carry: Callable[[Any, jax.Array], Any] = lambda params, key: None  # before the first window
    sample: Callable[[Any, int], str] | None = None  # (params, seed) -> text
    unit: str = ""  # of the loss, such as "nats per character"
    net: Any = None  # what `params` are the params of, where it can run elsewhere; see README.md
    batch_axes: Any = 0  # which axis of each leaf of a batch is the batch, as in `jax.vmap`


class Trained(NamedTuple):
    """A run that can be used."""

    config: Any
    about: dict[str, Any]
    model: Model
    params: Any  # the best ones; of nets side by side, those of the best net
    nets: list[Any]  # the params of all nets


class Report(NamedTuple):
    """What an application says of a finished run."""

    numbers: dict[str, Any] = {}  # noqa: RUF012
    text: str = ""
    files: dict[str, Figure | str] = {}  # noqa: RUF012  by name, for the run folder


@dataclass(frozen=True)
class Use:
    """What one does with a run; the fields are options, a call gives the text to print."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    def check(self) -> None:
        """Raises BadInput for options that make no sense, before the run is read."""

    def __call__(self, trained: Trained) -> Iterable[str]:
        raise NotImplementedError


class Application(NamedTuple):
    """All that is an application's own."""

    name: str  # `python -m experiments.NAME`
    config: type[Options]
    quick: Options
    load: Callable[[Any], Data]  # (config) -> data; raises BadInput, OSError or ValueError
    make: Callable[[Any, dict[str, Any]], Model]  # (config, Data.about) -> model
    report: Callable[[Trained, Any], Report]  # (trained, held_out) -> what is said and drawn
    uses: dict[str, type[Use]] = {}  # noqa: RUF012  by verb
    x64: Callable[[Any], bool] = lambda config: False  # in float64?

    @property
    def program(self) -> str:
        return f"python -m experiments.{self.name}"

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs a command line: 0 done, 1 failed, 2 for bad input, 130 interrupted."""
        argv = sys.argv[1:] if argv is None else argv
        return command.exit_code(lambda: self._run(argv))

    def _run(self, argv: Sequence[str]) -> None:
        from experiments.harness import find_lr, using
        from experiments.harness.training import train_or_resume

        if argv and argv[0] in self.uses:
            return using.use(self, argv)
        given = command.options(self.config, self.program, argv, more=self._verbs)
        devices.check(given)
        with devices.started(given):
            config = parse(self, argv, given)
            config.check()
            with jax.enable_x64(self.x64(config)), train.stop_on_signals() as stop:
                (find_lr.find if config.find_lr else train_or_resume)(self, config, stop)
        return None

    @property
    def _verbs(self) -> str:
        return "\n".join(
            f"{self.program} {verb} RUN: {_first_line(use)}" for verb, use in self.uses.items()
        )


def parse(app: Application, argv: Sequence[str], found: Any) -> Any:
    """Options over the defaults, which with --quick and --resume are others than in `found`."""
    from experiments.harness import run_folder

    given = [n for n in LENGTHS if any(a.split("=")[0] == command.flag(n) for a in argv)]
    if len(given) > 1:
        raise BadInput(f"got {' and '.join(map(command.flag, given))}, expected one of them")
    if found.resume is None:
        config = command.parse(app.config, app.quick, app.program, argv)
        others: Any = {name: None for name in LENGTHS if given and name not in given}
        return dataclasses.replace(config, **others)
    saved = run_folder.read(found.resume, app.name, app.config).config
    saved = dataclasses.replace(saved, resume=found.resume)
    argv = [a for a in argv if not (a == "--quick" and saved.quick)]  # it is set already
    return command.options(app.config, app.program, argv, saved)


def check_memory(state: Any) -> None:
    """Refuses a net that cannot fit, before it is tried: `state` is from `jax.eval_shape`."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    needed = 2 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    memory = command.memory()
    if needed > memory:
        raise BadInput(
            f"this net would need about {needed / 1e9:,.0f} GB for its parameters and the optimizer"
            f" alone, this machine has {memory / 1e9:,.0f} GB. Make it smaller"
        )


def _first_line(use: type[Use]) -> str:
    return (use.__doc__ or "").strip().splitlines()[0]
