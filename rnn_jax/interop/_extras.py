"""Libraries that only interop needs, imported where they are used."""

import importlib.util


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def needs(library: str, extra: str) -> None:
    """Raises for a library that is not there, with the line that installs it."""
    if not installed(library):
        raise ImportError(
            f"{library} is not installed; install it with pip install 'rnn_jax[{extra}]'"
        )
