"""README.md and the page on speed are run: their examples, and what its command lines name."""

import contextlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("README.md"))


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of one language, each with the number of its first line."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in fence.finditer(text)]


def command_lines(text: str) -> list[str]:
    """The lines of the shell blocks, continued lines joined, without comments."""
    code = "\n".join(code for _, code in blocks(text, "(?:sh|bash)")).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", " " + line).strip() for line in code.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def unknown(line: str, extras: set[str]) -> list[str]:
    """What a command line names that is not there: modules and extras."""
    modules = re.findall(r"-m (\w[\w.]*)", line)
    wanted = [e.strip() for group in re.findall(r"\[([\w,\s-]+)\]", line) for e in group.split(",")]
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    return missing + [e for e in wanted if e not in extras]


PAGES = {
    page: (ROOT / page).read_text("utf-8") for page in ("README.md", "experiments/bench/SPEED.md")
}
PYTHON = [(page, *block) for page, text in PAGES.items() for block in blocks(text, "python")]
COMMANDS = command_lines(README)
HEAVY = ("torch", "flax", "onnxruntime", "keras")  # skipped where they are not installed


@contextlib.contextmanager
def promotion(heavy: list[str]) -> Iterator[None]:
    """Other libraries promote as JAX does by default; the strict setting is one of the tests."""
    with contextlib.ExitStack() as stack:
        if heavy:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


@pytest.mark.parametrize(
    ("page", "line", "code"),
    PYTHON,
    ids=[f"{Path(page).stem}-line{line}" for page, line, _ in PYTHON],
)
def test_python_blocks_run(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = [n for n in HEAVY if re.search(rf"^(import|from) {n}\b", code, re.MULTILINE)]
    for library in heavy:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    padded = "\n" * (line - 1) + code  # so that a traceback names the line of the page
    with promotion(heavy):
        exec(compile(padded, str(ROOT / page), "exec"), {"__name__": "__main__"})


def test_the_first_example_is_short() -> None:
    assert PYTHON
    assert len(PYTHON[0][2].splitlines()) <= 25


def test_the_commands_name_what_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    assert any("experiments." in line for line in COMMANDS)
    for line in COMMANDS:
        assert not unknown(line, extras), line


def test_ci_runs_the_test_line() -> None:
    tests = [line for line in COMMANDS if "pytest" in line]
    ci = " ".join((ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ").split())
    assert tests
    assert tests[0] in ci


def test_blocks_and_commands_are_found() -> None:
    text = "a\n```python\nx = 1\n\ny = 2\n```\n```sh\n# why\npip install \\\n  a  # b\n```\n"
    assert blocks(text, "python") == [(3, "x = 1\n\ny = 2\n")]
    assert command_lines(text) == ["pip install a"]


def test_what_is_missing_is_found() -> None:
    assert unknown("python -m venv x && pip install '.[test]'", {"test"}) == []
    assert unknown("python -m experiments.counting", set()) == []
    assert unknown("python -m experiments.nothing", set()) == ["experiments.nothing"]
    assert unknown("pip install '.[tests, docs]'", {"test"}) == ["tests", "docs"]
