"""The command line."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from experiments.gradient_algorithms import (
    balancing,
    bias,
    cost,
    exactness,
    figures,
    learning,
    report,
    variance,
)
from experiments.gradient_algorithms.config import PARTS, QUICK, Config, new_folder

PROGRAM = "python -m experiments.gradient_algorithms"
STUDIES: dict[str, tuple[Callable[..., Any], bool]] = {  # and whether in float64
    "balancing": (balancing.study, True),
    "exactness": (exactness.study, True),
    "variance": (variance.study, False),
    "stream": (learning.stream, False),
    "sweep": (learning.sweep, False),
    "cost": (cost.study, False),
    "bias": (bias.study, True),
}


def study(config: Config) -> dict[str, Any]:
    """All the numbers of the chosen parts."""
    found: dict[str, Any] = {}
    for name in [part for part in PARTS if part in config.parts]:
        run, wide = STUDIES[name]
        with tqdm(unit=" piece", dynamic_ncols=True, desc=name) as bar, jax.enable_x64(wide):

            def tick(text: str, bar: Any = bar) -> None:
                bar.set_postfix_str(text)
                bar.update()

            start = time.perf_counter()
            found[name] = run(config, tick)
            found.setdefault("seconds", {})[name] = time.perf_counter() - start
    return found


def jsonable(tree: Any) -> Any:
    """Arrays as lists, and None for what is not finite."""
    if isinstance(tree, dict):
        return {str(name): jsonable(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray | jax.Array):
        return jsonable(np.asarray(tree).tolist())
    if isinstance(tree, list | tuple):
        return [jsonable(value) for value in tree]
    if isinstance(tree, float | np.floating):
        return float(tree) if math.isfinite(tree) else None
    return tree


def parse(args: list[str] | None) -> Config:
    """Options over the defaults, which with --quick are smaller."""
    config = tyro.cli(Config, args=args, prog=PROGRAM)
    if not config.quick:
        return config
    args = [arg for arg in (sys.argv[1:] if args is None else args) if arg != "--quick"]
    return tyro.cli(Config, args=args, default=QUICK, prog=PROGRAM)


def main(args: list[str] | None = None) -> Path:
    """Runs the study, prints it, and writes figures and numbers; returns their folder."""
    try:
        config = parse(args)
        config.check()
        exactness.chosen(config)
        found = study(config)
        folder = new_folder(config.out)
    except (ArithmeticError, OSError, ValueError) as error:
        raise SystemExit(f"gradient_algorithms: {error}") from error
    about = {"config": {**asdict(config), "out": None}, "jax": jax.__version__}
    numbers = json.dumps(jsonable({**about, **found}), allow_nan=False)
    (folder / "numbers.json").write_text(numbers + "\n")
    written = figures.draw(folder, found)
    print(report.summary(found))
    print(f"Written: {folder}/numbers.json, {', '.join(written)}")
    return folder


if __name__ == "__main__":
    main()
