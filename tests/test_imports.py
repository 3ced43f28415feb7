"""What may import what: strictly downward, cells unknown above cells/, few third parties."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "_types",
    "_remember",
    "_checks",
    "_activations",
    "initializers",
    "cells",
    "summary",
    "losses",
    "_product",
    "_jaxprs",
    "_deferred",
    "_segments",
    "_sequence",
    "unroll",
    "over_time",
    "_mesh",
    "over_devices",
    "combine",
    "noise",
    "attention",
    "crf",
    "gradients",
    "diagnostics",
    "generate",
    "encoder_decoder",
    "processes",
    "tasks",
    "train",
    "_lock",
    "_leaves",
    "checkpoint",
    "interop",
)
RANK = {name: rank for rank, name in enumerate(LAYERS)} | {"__init__": len(LAYERS)}
# NumPy comes with JAX; from `processes` up there is work for the host, in `gradients` there are
# patterns of sparsity and in `_jaxprs` constant indices, known before anything runs, and `_mesh`
# brings arrays from the host to the devices.
ALLOWED = {
    "jax": set(RANK),
    "numpy": {"_jaxprs", "_mesh", "gradients", *LAYERS[LAYERS.index("processes") :]},
    "optax": {"losses", "train"},
    "orbax": {"checkpoint"},
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


class Import(NamedTuple):
    module: str  # absolute, dotted
    in_function: bool
    line: int


def imports(tree: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """Every import statement; `from a import b` counts as both `a` and `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, in_function, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", in_function, node.lineno)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, in_function or inside)


def layer_of(path: str) -> str | None:
    """The layer of a file of the package; None for experiments and tests."""
    parts = Path(path).with_suffix("").parts
    return parts[1] if parts[0] == "rnn_jax" else None


def within(layer: str, item: Import) -> str | None:
    """What is wrong with an import of the package by the package itself."""
    parts = item.module.split(".")
    target = parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"
    if layer == "__init__":
        return None
    if target == "cells" and RANK["cells"] < RANK[layer] < RANK["interop"]:
        return "imports a concrete cell; it may know `Cell` only"
    if layer == "unroll" and target == "gradients":
        return "unroll knows no gradient algorithm"
    if RANK[target] > RANK[layer]:
        return f"imports {target}, which is above {layer}"
    return None


def outside(layer: str, item: Import) -> str | None:
    """What is wrong with an import of another package."""
    top = item.module.split(".")[0]
    if top in sys.stdlib_module_names or layer in ALLOWED.get(top, ()):
        return None
    if layer == "interop" and item.in_function:
        return None
    return f"imports {top}, which {layer} may not"


def violations(path: str, source: str) -> list[str]:
    """All broken rules of one file, as `path:line: what is wrong`."""
    tree, layer, found = ast.parse(source), layer_of(path), []
    if layer is not None and layer not in RANK:
        found.append((1, f"{layer} is no layer; add it to LAYERS at its place"))
    for item in imports(tree):
        parts = item.module.split(".")
        wrong = None
        if item.module.startswith("jax._src"):
            wrong = "uses jax._src, which is private"
        elif parts[0] in PICKLES:
            wrong = f"imports {parts[0]}: loading it can run code"
        elif layer in RANK and parts[0] == "":
            wrong = "imports relatively; write rnn_jax.NAME"
        elif layer in RANK and parts[0] == "rnn_jax":
            wrong = within(layer, item)
        elif layer in RANK:
            wrong = outside(layer, item)
        if wrong:
            found.append((item.line, wrong))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax._src":
            found.append((node.lineno, "uses jax._src, which is private"))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            value = node.value
            if not (isinstance(value, ast.Constant) and value.value is False):
                found.append((value.lineno, "allows pickle: loading it can run code"))
    return [f"{path}:{line}: {wrong}" for line, wrong in sorted(found)]


def project_files() -> list[str]:
    folders = ("rnn_jax", "experiments", "tests")
    return sorted(str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*.py"))


def test_the_project_keeps_the_rules() -> None:
    files = project_files()
    assert {"rnn_jax/unroll.py", "rnn_jax/cells/lstm.py", "tests/test_imports.py"} <= set(files)
    broken = [v for f in files for v in violations(f, (ROOT / f).read_text(encoding="utf-8"))]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        # Downward.
        ("rnn_jax/_types.py", "from rnn_jax import _checks", "above _types"),
        ("rnn_jax/cells/gru.py", "from rnn_jax.unroll import unroll", "above cells"),
        ("rnn_jax/cells/gru.py", "def f():\n    import rnn_jax.unroll", ":2: imports unroll"),
        ("rnn_jax/summary.py", "from rnn_jax.losses import mse", "above summary"),
        ("rnn_jax/train.py", "import rnn_jax.checkpoint as c", "above train"),
        ("rnn_jax/losses.py", "import rnn_jax", "above losses"),
        ("rnn_jax/combine.py", "from rnn_jax import lstm", "above combine"),
        ("rnn_jax/train.py", "from .losses import mse", "relatively"),
        ("rnn_jax/train.py", "from . import losses", "relatively"),
        ("rnn_jax/misc.py", "", "no layer"),
        # 1: no concrete cell above cells/.
        ("rnn_jax/combine.py", "from rnn_jax.cells import lstm", "concrete cell"),
        ("rnn_jax/gradients/rtrl.py", "from rnn_jax.cells.gru import gru", "concrete cell"),
        ("rnn_jax/generate.py", "def f():\n    from rnn_jax import cells", "concrete cell"),
        # 2: unroll and gradients.
        ("rnn_jax/unroll.py", "from rnn_jax.gradients import bptt", "no gradient algorithm"),
        ("rnn_jax/unroll.py", "def f():\n    from rnn_jax import gradients", "no gradient"),
        # 3: third parties.
        ("rnn_jax/unroll.py", "import numpy as np", "imports numpy"),
        ("rnn_jax/unroll.py", "import optax", "imports optax"),
        ("rnn_jax/gradients/rtrl.py", "from optax import tree", "imports optax"),
        ("rnn_jax/train.py", "import orbax.checkpoint", "imports orbax"),
        ("rnn_jax/train.py", "def f():\n    import tqdm", "imports tqdm"),
        ("rnn_jax/interop/flax.py", "import flax", "imports flax"),
        ("rnn_jax/interop/flax.py", "if True:\n    import flax", "imports flax"),
        ("rnn_jax/__init__.py", "import optax", "imports optax"),
        # Everywhere.
        ("tests/test_x.py", "from jax._src import core", "private"),
        ("experiments/x.py", "import jax._src.core", "private"),
        ("experiments/x.py", "from jax import _src", "private"),
        ("tests/test_x.py", "import jax\nprint(jax._src.core)", ":2: uses jax._src"),
        ("experiments/x.py", "def f():\n    import pickle", "pickle"),
        ("rnn_jax/checkpoint.py", "from pickle import loads", "pickle"),
        ("tests/test_x.py", "np.load(path, allow_pickle=True)", "pickle"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, wrong: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert wrong in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rnn_jax/__init__.py", "from rnn_jax.cells import lstm\nfrom rnn_jax import interop"),
        ("rnn_jax/cells/gru.py", "import math\nfrom rnn_jax.cells.lstm import LSTMState"),
        (
            "rnn_jax/combine.py",
            "import jax.numpy as jnp\nfrom rnn_jax import _checks, initializers",
        ),
        ("rnn_jax/unroll.py", 'def f():\n    """\n    >>> import rnn_jax, numpy\n    """'),
        ("rnn_jax/train.py", "import optax\nimport numpy as np"),
        ("rnn_jax/checkpoint.py", "import orbax.checkpoint\nnp.load(path, allow_pickle=False)"),
        ("rnn_jax/interop/flax.py", "def to_flax():\n    import flax"),
        ("experiments/x.py", "import rnn_jax\nimport tqdm\nfrom rnn_jax.cells import lstm"),
    ],
)
def test_what_is_allowed_is_not_found(path: str, source: str) -> None:
    assert violations(path, source) == []


LATER = """
import sys
import rnn_jax
assert not {"optax", "orbax"} & {name.split(".")[0] for name in sys.modules}
assert {"checkpoint", "losses", "tasks", "train", "unroll"} <= set(dir(rnn_jax))
assert not hasattr(rnn_jax, "nothing")
rnn_jax.losses.squared_error, rnn_jax.tasks.text.Vocabulary, rnn_jax.train.fit
assert "optax" in sys.modules
assert "orbax" not in sys.modules
rnn_jax.checkpoint.Checkpoints
assert "orbax" in sys.modules
"""


def test_optax_and_orbax_come_when_they_are_used() -> None:
    """In a process of its own: in this one they are there already."""
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
