"""Recurrent neural networks in JAX: pure cells, one unroll, every transform."""

from rnn_jax import initializers, losses
from rnn_jax._types import Cell
from rnn_jax.cells import *  # noqa: F403
from rnn_jax.cells import __all__ as _cells
from rnn_jax.combine import (
    EmbedParams,
    ReadoutParams,
    bidirectional,
    embed,
    one_hot,
    readout,
    residual,
    stack,
)
from rnn_jax.noise import NoisyState, dropout, zoneout, zoneout_mean
from rnn_jax.summary import summary
from rnn_jax.unroll import length_mask, unroll

__all__ = [
    "Cell",
    "EmbedParams",
    "NoisyState",
    "ReadoutParams",
    "bidirectional",
    "dropout",
    "embed",
    "initializers",
    "length_mask",
    "losses",
    "one_hot",
    "readout",
    "residual",
    "stack",
    "summary",
    "unroll",
    "zoneout",
    "zoneout_mean",
]
__all__ += _cells
