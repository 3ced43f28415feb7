"""The kill table: a copy of the project with one mistake in it, and the tests that must fail there.

    python tests/test_mutants.py [WORD ...]

prints it: each mutant, or each whose name has all the words, the test that killed it, the time.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from forked import pytest_in
from mutants import MUTANTS, Mutant

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
FAST_AND_WIDE = {  # plugins of other packages cost more than a test; no line may be cut short
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "COLUMNS": "400",
}
WHERE = """
from pathlib import Path
import experiments, rnn_jax

def test_where():
    for package in (experiments, rnn_jax):
        assert Path(package.__file__).is_relative_to(Path.cwd())
"""


def copy_project(folder: Path) -> None:
    for name in ("rnn_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def mutate(folder: Path, mutant: Mutant) -> None:
    path = folder / mutant.path
    source = path.read_text(encoding="utf-8")
    count = source.count(mutant.old)
    if count != 1:
        pytest.fail(
            f"the mutant no longer applies: {mutant.path} has its old text {count} times, expected "
            f"once; write it against the present source:\n{mutant.old}"
        )
    source = source.replace(mutant.old, mutant.new)
    compile(source, mutant.path, "exec")
    path.write_text(source, encoding="utf-8")


def arguments(folder: Path, tests: list[str]) -> list[str]:
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", ""]
    return [*options, "--basetemp", str(folder / "tmp"), *(f"tests/{test}" for test in tests)]


def run_tests(folder: Path, tests: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of pytest in a copy, with nothing of a pytest around it."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *arguments(folder, tests)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=outer | FAST_AND_WIDE | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def kill(mutant: Mutant) -> str:
    """The test that failed; fails itself unless a named test really ran and failed."""
    with tempfile.TemporaryDirectory() as name:
        copy_project(Path(name))
        mutate(Path(name), mutant)
        code, output = pytest_in(Path(name), arguments(Path(name), list(mutant.tests)))
    if code == 0:
        pytest.fail(f"the mutant survived {', '.join(mutant.tests)}")
    failed = re.search(r"^FAILED tests/(.+?)(?: - (.*))?$", output, re.MULTILINE)
    if code != 1 or failed is None:
        pytest.fail(f"the tests did not run (exit code {code}):\n{output}")
    test, error = failed.groups()
    assert test.startswith(mutant.tests), output
    assert not re.match("(Import|ModuleNotFound|Name|Syntax)Error", error or ""), output
    return test


def test_what_is_tested_is_the_copy(tmp_path: Path) -> None:
    """Even where the project itself is on the path."""
    copy_project(tmp_path)
    (tmp_path / "tests" / "test_where.py").write_text(WHERE)
    code, output = run_tests(tmp_path, ["test_where.py"], PYTHONPATH=str(ROOT))
    assert code == 0, output


def test_the_named_tests_exist() -> None:
    """That they pass without a mutant is what the other tests are for."""
    named = sorted({f"tests/{test}" for mutant in MUTANTS for test in mutant.tests})
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "--collect-only", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_no_kill() -> None:
    """A harmless change, a change of text that is not there, a test that is not there, a crash."""
    harmless = Mutant(
        "",
        "rnn_jax/cells/lstm.py",
        "a cell state",
        "a state",
        ("test_cells.py::test_peepholes_start_at_zero",),
    )
    for mutant, why in (
        (harmless, "survived"),
        (harmless._replace(old="no such text"), "no longer applies.*0 times"),
        (harmless._replace(old="params.w_c"), "no longer applies.*5 times"),
        (harmless._replace(tests=("test_cells.py::test_absent",)), "did not run"),
        (harmless._replace(old="import jax\n", new="import rnn_jax.absent\n"), "did not run"),
        (harmless._replace(old="(3, H)", new="(3, absent)"), "NameError"),
    ):
        with pytest.raises((pytest.fail.Exception, AssertionError), match=why):
            kill(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant: Mutant) -> None:
    kill(mutant)


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in words)]
    width, killed = max((len(mutant.name) for mutant in chosen), default=0), 0
    for mutant in chosen:
        start = time.monotonic()
        try:
            outcome = kill(mutant)
            killed += 1
        except (pytest.fail.Exception, AssertionError) as problem:
            outcome = f"NOT KILLED: {problem}"
        seconds = time.monotonic() - start
        print(f"{mutant.name:{width}} | {outcome} | {seconds:.1f} s", flush=True)
    print(f"{len(chosen)} mutants, {killed} killed")
    return int(killed < len(chosen))


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings, which the tests inherit

    sys.exit(main(sys.argv[1:]))
