"""Pytest in a process that has the large libraries already: forked off one that imported them.

Importing JAX and the rest takes longer than most tests. The server has imported neither the project
nor used JAX, so the child is as one that was started anew.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOAD = ["jax", "jax.numpy", "numpy", "optax", "orbax.checkpoint", "pytest", "_pytest.doctest"]


def pytest_in(folder: Path, arguments: list[str], timeout: float = 600) -> tuple[int, str]:
    """Exit code and output of pytest, run in `folder`, which is first on its path."""
    output = folder / "output.txt"
    process = _server().Process(target=_run, args=(str(folder), str(output), arguments))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{arguments}: not done after {timeout:.0f} seconds")
    return process.exitcode, output.read_text(encoding="utf-8", errors="replace")


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _run(folder: str, output: str, arguments: list[str]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "400"})
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        del os.environ[name]
    os.chdir(folder)
    sys.path.insert(0, folder)
    import pytest

    code = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(code))
