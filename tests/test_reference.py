"""The pages of all public names are built by the command of README.md, without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_is_built(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason='pip install -e ".[docs]" brings pdoc')
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"-m pdoc (.+?) -o \S+ (.+)", page)
    assert found
    command = [*found[1].split(), "-o", str(tmp_path), *found[2].strip("`").split()]
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr, done.stderr
    pages = "".join(p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html"))
    for name in (
        "lstm",
        "unroll",
        "make_train",
        "Checkpoints",
        "snap",
        "lyapunov_exponents",
        "from_torch",
    ):
        assert re.search(rf'id="{name}"', pages), name
