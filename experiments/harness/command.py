"""What the commands share: options, exit codes, and the folder and the numbers of a run."""

import contextlib
import inspect
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tyro
from tqdm import tqdm

Options = TypeVar("Options")


class BadInput(Exception):
    """What the user gave cannot work; the message says what was got and what to do."""


class Failed(Exception):
    """The work could not be done; the message says why, and what there is of it."""


def options(
    config: type[Options],
    program: str,
    argv: Sequence[str],
    default: Options | None = None,
    more: str = "",
) -> Options:
    """The options of a command line, a dataclass; a flag has no --no- twin.

    `more` is added to the description that --help shows. Raises BadInput for what cannot be read.
    """
    start: dict[str, Any] = {} if default is None else {"default": default}
    if more:
        start["description"] = f"{inspect.cleandoc(config.__doc__ or '')}\n\n{more}"
    flags, box = (tyro.conf.FlagCreatePairsOff,), io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(config, args=argv, prog=program, config=flags, **start)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise BadInput(_one_line(box.getvalue())) from None


def _one_line(box: str) -> str:
    """What tyro draws as a box of several lines, in the characters of the screen."""
    parts = [line.strip("│| ") for line in box.splitlines() if line.startswith(("│", "|"))]
    parts = [part for part in parts if part]
    end = next((i for i, part in enumerate(parts) if set(part) <= set("─-")), len(parts))
    text = " ".join(parts[:end])
    if parts[end + 1 : end + 2] == ["Perhaps you meant:"]:
        text += f". Perhaps you meant {parts[end + 2].split()[0]}"
    return f"{text.rstrip('.')}. See --help" if text else " ".join(box.split())


def parse(config: type[Options], quick: Options, program: str, argv: Sequence[str]) -> Options:
    """Options over the defaults, which with --quick are others."""
    found = options(config, program, argv)
    if "--quick" not in argv:
        return found
    return options(config, program, [a for a in argv if a != "--quick"], quick)


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command: 0 done, 1 failed, 2 for bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a screen without a character shows another
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        run()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Failed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def require(options: Any, name: str, holds: bool, expected: str) -> None:
    """Raises BadInput, with what was got, unless a condition on one option holds."""
    if not holds:
        raise BadInput(f"{flag(name)}: got {getattr(options, name)}, expected {expected}")


def at_least(options: Any, **least: float) -> None:
    """Raises BadInput for an option, or an entry of one, that is too small or not finite.

    An option that is None is not given.
    """
    for name, smallest in least.items():
        for v in _entries(getattr(options, name)):
            if not smallest <= v < math.inf:
                raise BadInput(f"{flag(name)}: got {v}, expected at least {smallest:g}")


def above_zero(options: Any, *names: str) -> None:
    """Raises BadInput for an option, or an entry of one, that is not a number above 0."""
    for name in names:
        for v in _entries(getattr(options, name)):
            if not 0 < v < math.inf:
                raise BadInput(f"{flag(name)}: got {v}, expected a number above 0")


def _entries(value: Any) -> list[Any]:
    """The numbers of an option, however deep they lie in tuples."""
    if isinstance(value, tuple):
        return [n for v in value for n in _entries(v)]
    return [] if value is None else [value]


def some(options: Any, *names: str) -> None:
    """Raises BadInput for an option of several values that has none."""
    for name in names:
        require(options, name, len(getattr(options, name)) > 0, "at least one")


def each_once(options: Any, *names: str) -> None:
    """Raises BadInput for an option of several values that has one twice."""
    for name in names:
        value = getattr(options, name)
        require(options, name, len(set(value)) == len(value), "each once")


def rates(options: Any, *names: str) -> None:
    """Raises BadInput for an option that is no rate of dropping."""
    for name in names:
        require(options, name, 0 <= getattr(options, name) < 1, "a rate with 0 <= rate < 1")


def one_line(error: Exception) -> str:
    """The message of an error, without the notes that JAX adds to it."""
    return " ".join(str(error).split("\n-----")[0].split())


def duration(seconds: float) -> str:
    """For people: 41 s, 3 min 32 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_new(run: Path | None) -> None:
    """Refuses a folder that exists, before anything is computed."""
    if run is not None and run.exists():
        raise BadInput(f"--run: {run} exists and is not overwritten; name another")


def say(text: str, end: str = "\n") -> None:
    """Prints at once; where nobody reads any more, as behind `| head`, the work goes on."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for what is read piece by piece: ``progress(bytes so far, bytes in all)``."""
    with tqdm(desc=what, unit="B", unit_scale=True, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar over `total` parts of some work: ``done(parts that are finished now)``."""
    with tqdm(desc=what, total=total, dynamic_ncols=True) as shown:
        yield shown.update


@contextlib.contextmanager
def new_folder(name: str, run: Path | None) -> Iterator[Path]:
    """Makes the folder of a run; where the run fails before it has written, it goes again.

    Args:
      name: of the command: the default is runs/name (a dot becomes an underscore), or the first
        free one of runs/name-2, ...
      run: what was given as --run.

    Yields:
      The folder, which did not exist before.

    Raises:
      BadInput: it exists or cannot be made.
    """
    folder, name = run, name.replace(".", "_")
    if folder is None:
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        folder = next(path for n in names if not (path := Path("runs") / n).exists())
    check_new(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--run: {folder} cannot be made ({error.strerror})") from error
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()
        raise


def write_numbers(folder: Path, numbers: dict[str, Any]) -> None:
    """Writes numbers.json: arrays as lists, null for what is not finite."""
    text = json.dumps(_jsonable(numbers), indent=1, allow_nan=False)
    (folder / "numbers.json").write_text(text + "\n", encoding="utf-8")


def _jsonable(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(name): _jsonable(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray | np.generic | jax.Array):
        return _jsonable(np.asarray(tree).tolist())
    if isinstance(tree, list | tuple):
        return [_jsonable(value) for value in tree]
    if isinstance(tree, Path):
        return str(tree)
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
