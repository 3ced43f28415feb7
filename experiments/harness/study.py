"""What every study shares: options, run folder, progress, numbers, figures, text.

A study measures something and trains nothing that one would keep: a config and pure functions,
of which `Study.main` makes a command.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.harness import command, plots
from experiments.harness.command import BadInput


@dataclass(frozen=True)
class Options:
    """The options that every study has; its own config inherits them."""

    seed: int = 0
    """Of all that is random."""
    run: Path | None = None
    """Folder for figures and numbers; one that exists is never overwritten. Default: a new one
    under runs/."""
    quick: bool = False
    """A small setting of less than half a minute; options given beside it still count."""

    def check(self) -> None:
        """Raises BadInput for what cannot be run; a study adds its own."""
        command.at_least(self, seed=0)


class Progress:
    """Says what is measured now: ``say("what")`` when a piece of the work begins."""

    def __init__(self, folder: Path, bar: Any, about: dict[str, Any]) -> None:
        self._folder, self._bar, self._begun, self._about = folder, bar, False, about

    def expect(self, pieces: int) -> None:
        """How many pieces there will be, for the bar."""
        self._bar.total = pieces
        self._bar.refresh()

    def __call__(self, text: str) -> None:
        self.done()
        self._begun = True
        self.note(text)

    def note(self, text: str) -> None:
        """What goes on within a piece of the work."""
        self._bar.set_postfix_str(text, refresh=sys.stderr.isatty())

    def done(self) -> None:
        """The last piece has ended."""
        self._bar.update(int(self._begun))
        self._begun = False

    def keep(self, numbers: dict[str, Any]) -> None:
        """Writes numbers.json with what there is so far, so that nothing is lost on the way."""
        command.write_numbers(self._folder, self._about | numbers)


class Study(NamedTuple):
    """All that is a study's own."""

    name: str  # `python -m experiments.NAME`
    config: type[Options]
    quick: Options
    measure: Callable[[Any, Progress], dict[str, Any]]  # (config, say) -> numbers
    text: Callable[[dict[str, Any], Any], str]  # (numbers, config) -> what a person reads
    # by file name: (numbers, config) -> a figure, a text, or None where there is none to write
    files: Mapping[str, Callable[[dict[str, Any], Any], Figure | str | None]]
    x64: bool = False  # measured in float64

    @property
    def program(self) -> str:
        return f"python -m experiments.{self.name}"

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs a command line: 0 done, 1 failed, 2 for bad input, 130 interrupted."""
        argv = sys.argv[1:] if argv is None else argv
        return command.exit_code(lambda: self._run(argv))

    def _run(self, argv: Sequence[str]) -> None:
        config = command.parse(self.config, self.quick, self.program, argv)
        config.check()
        begin = time.monotonic()
        about = {"config": dataclasses.asdict(config), "jax": jax.__version__}
        with command.new_folder(self.name, config.run) as folder:
            with progress(folder, about) as say, jax.enable_x64(self.x64):
                numbers = self.measure(config, say)
            seconds = time.monotonic() - begin
            command.write_numbers(folder, about | {"seconds": seconds} | numbers)
            written = ["numbers.json", *write_files(folder, self.files, numbers, config)]
        print(self.text(numbers, config))
        print(f"\n{command.duration(seconds)}. Written: {folder}/{', '.join(written)}")


@contextlib.contextmanager
def progress(folder: Path, about: dict[str, Any]) -> Iterator[Progress]:
    """The bar of a study that measures into a folder; `about` stands in all that is kept."""
    interval = 0.1 if sys.stderr.isatty() else 15.0
    with tqdm(unit="piece", dynamic_ncols=True, mininterval=interval) as bar:
        say = Progress(folder, bar, about)
        yield say
        say.done()


def write_files(folder: Path, files: Mapping[str, Any], *arguments: Any) -> list[str]:
    """Writes each figure or text that is there; returns their names."""
    written = []
    with plots.style():
        for name, make in files.items():
            content = make(*arguments)
            if isinstance(content, str):
                (folder / name).write_text(content, encoding="utf-8")
            elif content is not None:
                content.savefig(folder / name)
            written += [] if content is None else [name]
    return written


def verdict(holds: bool) -> str:
    """The word for a claim."""
    return "reproduced" if holds else "NOT reproduced"


__all__ = ["BadInput", "Options", "Progress", "Study", "verdict"]
