"""Every test runs under the strictest settings: nothing is converted or broadcast silently."""

import atexit
import os
import shutil
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version

os.environ.setdefault("MPLBACKEND", "Agg")

# The tests spend their time compiling: what one process has compiled, all others read.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if version("jaxlib").startswith("0.10."):  # later ones do not know this flag, and abort
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest

collect_ignore = ["pair.py"]  # a process that test_processes.py starts

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-each", action="store_true", help="one case of each test, not always the first"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--one-each"):
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.split("[")[0]].append(item)
    chosen = {same[zlib.crc32(name.encode()) % len(same)] for name, same in cases.items()}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Thousands of small programs are compiled; those of one file are no use to the next."""
    yield
    jax.clear_caches()
