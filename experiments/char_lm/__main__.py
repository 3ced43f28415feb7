"""The command line: training, or `generate`."""

import dataclasses
import sys
from collections.abc import Sequence

import jax

from experiments.char_lm import folder, generating, training
from experiments.char_lm.config import QUICK, Config
from experiments.harness import command


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    return command.exit_code(lambda: run(argv))


def run(argv: Sequence[str]) -> None:
    """Trains or generates."""
    if argv[:1] == ["generate"]:
        generating.main(command.options(generating.Generate, _PROGRAM + " generate", argv[1:]))
    else:
        config = parse(argv)
        jax.config.update("jax_enable_x64", config.dtype == "float64")
        training.main(config)


def parse(argv: Sequence[str]) -> Config:
    """Options over the defaults, which with --quick and --resume are others."""
    config = default = command.options(Config, _PROGRAM, argv)
    if config.resume is not None:
        default = dataclasses.replace(folder.load(config.resume).config, resume=config.resume)
    elif config.quick:
        default = QUICK
    else:
        return config
    args = [arg for arg in argv if not (arg == "--quick" and default.quick)]  # it is set already
    return command.options(Config, _PROGRAM, args, default)


_PROGRAM = "python -m experiments.char_lm"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
