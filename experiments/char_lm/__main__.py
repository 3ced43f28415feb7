"""The command line: training, or `generate`."""

import dataclasses
import os
import sys
from collections.abc import Sequence

import jax
import tyro

from experiments.char_lm import folder, generating, training
from experiments.char_lm.config import QUICK, BadInput, Config


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code: 0 done, 1 failed, 2 for bad input."""
    try:
        if argv[:1] == ["generate"]:
            generating.main(
                tyro.cli(generating.Generate, args=argv[1:], prog=_PROGRAM + " generate")
            )
        else:
            config = parse(argv)
            jax.config.update("jax_enable_x64", config.dtype == "float64")
            training.main(config)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except training.Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def parse(argv: Sequence[str]) -> Config:
    """Options over the defaults, which with --quick and --resume are others."""
    config = default = tyro.cli(Config, args=argv, prog=_PROGRAM)
    if config.resume is not None:
        default = dataclasses.replace(folder.load(config.resume).config, resume=config.resume)
    elif config.quick:
        default = QUICK
    else:
        return config
    args = [arg for arg in argv if not (arg == "--quick" and default.quick)]  # it is set already
    return tyro.cli(Config, args=args, default=default, prog=_PROGRAM)


_PROGRAM = "python -m experiments.char_lm"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
