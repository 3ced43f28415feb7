"""The use of a trained run: ``python -m experiments.NAME VERB RUN ...``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.harness import command, learning, run_folder
from experiments.harness.application import Application, Trained
from experiments.harness.command import BadInput
from rnn_jax.checkpoint import Checkpoints


def use(app: Application, argv: Sequence[str]) -> None:
    """Prints what a verb says of a run, piece by piece as it comes."""
    verb = argv[0]
    what = command.options(app.uses[verb], f"{app.program} {verb}", argv[1:])
    what.check()
    config = run_folder.read(what.run, app.name, app.config).config
    with jax.enable_x64(app.x64(config)):
        try:
            for piece in what(load_run(app, what.run)):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            raise BadInput(command.one_line(error)) from error


def load_run(app: Application, folder: Path) -> Trained:
    """The best params of a run, with all that they need; raises BadInput, OSError, ValueError."""
    config, _, about, _ = run_folder.read(folder, app.name, app.config)
    model = app.make(config, about)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    which = "best" if checkpoints.best else "last"
    best = learning.best_row(run_folder.rows_of(folder))
    nets = len(best["nets"]) if best is not None and "nets" in best else config.seeds
    like = jax.eval_shape(lambda: learning.initial(config, model, nets))
    like = like._replace(opt_state=None, carry=None)
    params = learning.each(checkpoints.restore(which, like=like).params, nets)
    return Trained(config, about, model, params[learning.best_net(best) % nets], params)
