"""Weights from one file into another, and trained runs out to a server.

    python -m rnn_jax.interop convert IN OUT [--name LAYER] [--activation tanh|relu]
    python -m rnn_jax.interop export RUN net.onnx|net.stablehlo [--lengths]

The kind of a file is told by its ending: .safetensors, .keras, .h5, .onnx, .stablehlo; IN may be
the folder of a finished run of an application too. A file that is there is not replaced.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnn_jax import interop
from rnn_jax.interop import Imported, InteropError
from rnn_jax.summary import summary

READ = (".safetensors", ".keras", ".h5", ".onnx")
WRITTEN = (".safetensors", ".keras", ".h5", ".onnx", ".stablehlo")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rnn_jax.interop", description=str(__doc__).split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="recurrent layers from one file into another")
    convert.add_argument("source", metavar="IN", type=Path, help=f"{', '.join(READ)} or a run")
    convert.add_argument("target", metavar="OUT", type=Path, help=", ".join(WRITTEN))
    convert.add_argument("--name", default="", help="the layer of a model, its prefix or its node")
    convert.add_argument("--activation", choices=("tanh", "relu"), help="of an RNN of PyTorch")
    export = commands.add_parser("export", help="the net of a finished run")
    export.add_argument("source", metavar="RUN", type=Path, help="the folder of a run")
    export.add_argument("target", metavar="OUT", type=Path, help=".onnx or .stablehlo")
    for command in (convert, export):
        command.add_argument(
            "--lengths", action="store_true", help="padded sequences, with lengths"
        )
    options = parser.parse_args(arguments)
    try:
        kind = _kind(options.target, WRITTEN if options.command == "convert" else WRITTEN[3:])
        if options.source.is_dir():
            net, params = _run(options.source)
        elif options.command == "export":
            raise InteropError(f"{options.source}: no run (it has no run.json)")
        else:
            found = _read(options.source, options.name, options.activation)
            if found.reverse:
                raise InteropError(f"{options.source}: runs from the last step; turn xs around")
            net, params = found.net, found.params
        _write(net, params, options.target, kind, options.lengths)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")
    print(summary(params))
    print(f"written: {options.target}")


def _kind(path: Path, known: Sequence[str]) -> str:
    if path.suffix not in known:
        raise InteropError(
            f"{path}: got {path.suffix or 'no ending'!r}, expected {', '.join(known)}"
        )
    if path.exists():
        raise InteropError(f"{path}: is there already; choose another name, or remove it")
    if not path.parent.is_dir():
        raise InteropError(f"{path}: there is no folder {path.parent}")
    return path.suffix


def _read(path: Path, name: str, activation: str | None) -> Imported:
    if not path.is_file():
        raise InteropError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return interop.from_safetensors(path, name, activation=activation)
    if path.suffix in (".keras", ".h5"):
        return interop.from_keras(path, name or None)
    if path.suffix == ".onnx":
        return interop.from_onnx(path, name or None)
    raise InteropError(f"{path}: got {path.suffix or 'no ending'!r}, expected {', '.join(READ)}")


def _run(folder: Path) -> tuple[Any, Any]:
    """The net and the best params of a run; its application says what they are."""
    try:
        name = json.loads((folder / "run.json").read_text(encoding="utf-8"))["application"]
    except (OSError, KeyError, ValueError) as error:
        raise InteropError(f"{folder}: no run (it has no run.json that can be read)") from error
    try:
        using = importlib.import_module("experiments.harness.using")
        application = importlib.import_module(f"experiments.{name}").APPLICATION
    except ImportError as error:
        raise InteropError(
            f"{folder}: is a run of experiments.{name}, which cannot be imported here ({error}); "
            "call this from the folder that holds `experiments`"
        ) from error
    trained = using.load_run(application, folder)
    if trained.model.net is None:
        raise InteropError(f"{folder}: experiments.{name} has no net that runs on its own")
    return trained.model.net, trained.params


def _write(net: Any, params: Any, path: Path, kind: str, lengths: bool) -> None:
    if kind == ".safetensors":
        interop.to_safetensors(path, net, params)
    elif kind in (".keras", ".h5"):
        interop.to_keras(net, params).save(path)
    elif kind == ".onnx":
        interop.to_onnx(net, params, path, lengths=lengths)
    else:
        data = interop.export(net, params, lengths=lengths).serialize(vjp_order=1)
        path.write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
