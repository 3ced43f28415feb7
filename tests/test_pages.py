"""What pages and docstrings name is there: commands, their options, modules, functions, files."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rnn_jax

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
OTHERS = {"--help", "--one-each"}  # of every command, and of the tests


class Text(NamedTuple):
    """A page, or a docstring."""

    folder: Path  # where it lies; links are relative to it
    where: str
    text: str


class Command(NamedTuple):
    """A command line in a text."""

    name: str  # `python -m experiments.NAME`
    verb: str  # the word after the name, if there is one
    options: list[str]


def texts() -> Iterator[Text]:
    """The pages, and all docstrings."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "experiments").rglob("*.md")]:
        yield Text(path.parent, str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    for path in [*(ROOT / "rnn_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = f"{path.relative_to(ROOT)} {getattr(node, 'name', '')}".strip()
                yield Text(path.parent, name, ast.get_docstring(node) or "")


# Words follow one another with one space between; more spaces begin an explanation.
WORDS = r"((?: [^\s`|#]+)*)"
COMMAND = re.compile(rf"(?:-m |`)experiments\.([\w.]*\w){WORDS}")
# What stands for the command before it: `... --options`, and rows of a table that begin with some.
MORE = re.compile(rf"(?:`\.\.\.|^\|(?: \([^)|]*\))?(?= --)){WORDS}", re.MULTILINE)


def commands(text: str) -> list[Command]:
    """The command lines that a text names, in order."""
    text = re.sub(r" *\\\n *", " ", text)
    found, name = [], ""
    for match in sorted(
        [*COMMAND.finditer(text), *MORE.finditer(text)], key=lambda match: match.start()
    ):
        words = match[match.re.groups].split()
        options = [o for word in words for o in re.findall(r"^\W*(--[a-z][\w-]*)", word)]
        if match.re is COMMAND:
            if match[1].isupper() or not (options or match[0].startswith("-m")):
                continue  # a name that stands for any, or a module
            name = match[1]
        verb = words[0] if words and re.fullmatch(r"[a-z]\w*", words[0]) else ""
        found += [Command(name, verb, options)] if name else []
    return found


def runs(name: str) -> bool:
    """Whether `python -m experiments.NAME` does something."""
    for module in (f"experiments.{name}.__main__", f"experiments.{name}"):
        with contextlib.suppress(ModuleNotFoundError):
            spec = importlib.util.find_spec(module)
            if spec and spec.origin and not spec.submodule_search_locations:
                return is_command(Path(spec.origin).read_text(encoding="utf-8"))
    return False


def is_command(source: str) -> bool:
    return re.search(r"^(STUDY|APPLICATION)\b|^if __name__ ==", source, re.MULTILINE) is not None


@functools.cache
def usage(name: str, verb: str = "") -> str:
    """The help of a command."""
    module: Any = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    tries = (getattr(module, what, None) for what in ("STUDY", "APPLICATION"))
    main = next((it.main for it in tries if hasattr(it, "main")), None) or module.main
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    return out.getvalue()


def options(name: str, verb: str = "") -> set[str]:
    """All options of a command."""
    line = r"^\W*(--[a-z][\w-]*(?: \S+, --[a-z][\w-]*)*)"  # with the other names of an option
    found = " ".join(re.findall(line, usage(name, verb), re.MULTILINE))
    return set(re.findall(r"--[a-z][\w-]*", found)) | OTHERS


def wrong(command: Command) -> list[str]:
    """What a command line names that is not there."""
    name, verb, given = command
    if not runs(name):
        return [f"experiments.{name}"]
    if verb and f"experiments.{name} {verb}" not in " ".join(usage(name, verb).split()):
        return [f"experiments.{name} {verb}"]
    known = options(name, verb)
    return [f"experiments.{name} {verb} {o}" for o in given if o.replace("_", "-") not in known]


def strange(text: str, known: set[str]) -> list[str]:
    """The options that stand in backticks without a command, and are not known."""
    return [o for o in re.findall(r"`(--[a-z][\w-]*)", text) if o.replace("_", "-") not in known]


def every_command() -> list[str]:
    """The names of all experiments: the files that can be run."""
    found = []
    for path in (ROOT / "experiments").rglob("*.py"):
        parts = path.relative_to(ROOT / "experiments").with_suffix("").parts
        if parts[0] != "harness" and is_command(path.read_text(encoding="utf-8")):
            found.append(".".join(part for part in parts if part != "__main__"))
    return found


def unnamed(page: str, names: list[str]) -> list[str]:
    """The experiments that a page does not name."""
    named = set(re.findall(r"experiments\.(\w+(?:\.\w+)*)", page))
    return [name for name in names if name not in named]


PARTS = {module.name for module in pkgutil.iter_modules(rnn_jax.__path__)}
NAME = re.compile(r"`([a-z_]\w*(?:\.\w+)+)")


def names(text: str) -> list[str]:
    """The dotted names of this project that stand in backticks, as `gradients.bptt` too."""
    found = [n for n in NAME.findall(text) if not n.endswith((".py", ".md", ".png", ".json"))]
    full = [f"rnn_jax.{n}" if n.split(".")[0] in PARTS else n for n in found]
    return [n for n in full if n.split(".")[0] in ("rnn_jax", "experiments") and ".NAME" not in n]


def resolves(name: str) -> bool:
    """Whether a dotted name leads to a module, an attribute or a field."""
    root, *parts = name.split(".")
    at: Any = importlib.import_module(root)
    for k, part in enumerate(parts):
        if not hasattr(at, part) and hasattr(at, "__path__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(".".join([root, *parts[: k + 1]]))
        if not hasattr(at, part):
            return part in getattr(at, "__annotations__", {})
        at = getattr(at, part)
    return True


FILE = re.compile(r"\]\((?!\w+:)([^)#]+)\)|`((?:\w[\w.-]*/)+[\w-]+\.(?:py|md|png))`")


def missing(text: Text) -> list[str]:
    """The files that a text links to, or names in backticks, that are not there."""
    found = [link or path for link, path in FILE.findall(text.text)]
    return [f for f in found if not ((text.folder / f).exists() or (ROOT / f).exists())]


TEXTS = list(texts())


def test_commands_and_their_options_are_there() -> None:
    found = [(t.where, c) for t in TEXTS for c in commands(t.text)]
    assert len(found) > 20
    assert not [(where, problem) for where, c in found for problem in wrong(c)]


def test_an_option_in_backticks_is_one_of_some_experiment() -> None:
    known = OTHERS.union(*map(options, every_command()))
    assert sum(t.text.count("`--") for t in TEXTS) > 5
    assert not [(t.where, option) for t in TEXTS for option in strange(t.text, known)]


def test_every_experiment_is_on_the_page() -> None:
    assert len(every_command()) > 8
    assert not unnamed(PAGE, every_command())


def test_dotted_names_resolve() -> None:
    found = [(t.where, name) for t in TEXTS for name in names(t.text)]
    assert len(found) > 30
    assert not [(where, name) for where, name in found if not resolves(name)]


def test_files_are_there() -> None:
    assert not [(t.where, file) for t in TEXTS for file in missing(t)]


# Each can fail


MADE_UP = """
Run `python -m experiments.chaos --seeds 3 --gians 2` or `experiments.nothing --quick`, not
`experiments.chaos` or `python -m experiments.NAME --other`.

    .venv/bin/python -m experiments.chaos --seed 1 \\
      --steps 5 # --why
    python -m experiments.chaos.      draws --nothing
    python -m experiments.chaos paint RUN (see --help)

| `... --runs 2` | 1 |
| --what 3 | 4 |
| (text) --newton_size 3 | 5 |
"""


def test_made_up_commands_are_found() -> None:
    assert commands("`... --before` any") == []
    assert commands(MADE_UP) == [
        Command("chaos", "", ["--seeds", "--gians"]),
        Command("nothing", "", ["--quick"]),
        Command("chaos", "", ["--seed", "--steps"]),
        Command("chaos", "", []),
        Command("chaos", "paint", ["--help"]),
        Command("chaos", "", ["--runs"]),
        Command("chaos", "", ["--what"]),
        Command("chaos", "", ["--newton_size"]),
    ]
    found = [problem for command in commands(MADE_UP) for problem in wrong(command)]
    expected = ["chaos  --gians", "nothing", "chaos paint", "chaos  --runs", "chaos  --what"]
    assert found == [f"experiments.{e}" for e in expected]
    assert strange("`--seed 3`, --no, `--gians`", options("chaos")) == ["--gians"]


def test_an_experiment_without_a_line_is_found() -> None:
    page = "`python -m experiments.bench.memory`, and experiments.chaos."
    assert unnamed(page, ["bench", "bench.memory", "chaos", "chao"]) == ["bench", "chao"]
    assert is_command("STUDY = Study()")
    assert is_command("APPLICATION: Any = f(")
    assert not is_command("from x import STUDY")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`rnn_jax.unroll`, `rnn_jax.gradients.table()`", []),
        ("`rnn_jax.Cell.init` and `train.Run.steps_per_call` are fields", []),
        ("rnn_jax.nothing, `experiments.NAME`, `np.zeros`, `README.md`", []),
        ("`experiments.harness.command`, `experiments.harness.x`", ["experiments.harness.x"]),
        ("`rnn_jax.nothing(x)`", ["rnn_jax.nothing"]),
        ("`gradients.bttp`", ["rnn_jax.gradients.bttp"]),
    ],
)
def test_made_up_names(text: str, expected: list[str]) -> None:
    assert [name for name in names(text) if not resolves(name)] == expected


def test_made_up_files() -> None:
    text = "[a](README.md) [b](https://x.y) ![c](figures/no.png) `tests/conftest.py` `tests/no.py`"
    assert missing(Text(ROOT, "", text)) == ["figures/no.png", "tests/no.py"]
