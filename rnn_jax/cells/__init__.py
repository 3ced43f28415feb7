"""Cells, one file a family; `ALL_CELLS` names each factory ``(input_size, hidden_size)``."""

from collections.abc import Callable

from rnn_jax._types import Cell
from rnn_jax.cells.elman import ElmanParams, elman
from rnn_jax.cells.gru import GRUParams, gru, gru_reset_after
from rnn_jax.cells.layer_norm import (
    LayerNormElmanParams,
    LayerNormGRUParams,
    LayerNormLSTMParams,
    layer_norm_elman,
    layer_norm_gru,
    layer_norm_lstm,
)
from rnn_jax.cells.lstm import LSTMParams, LSTMState, lstm

ALL_CELLS: dict[str, Callable[..., Cell]] = {
    "elman": elman,
    "lstm": lstm,
    "gru": gru,
    "gru_reset_after": gru_reset_after,
    "layer_norm_elman": layer_norm_elman,
    "layer_norm_lstm": layer_norm_lstm,
    "layer_norm_gru": layer_norm_gru,
}

__all__ = [
    "ALL_CELLS",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "LayerNormElmanParams",
    "LayerNormGRUParams",
    "LayerNormLSTMParams",
    "elman",
    "gru",
    "gru_reset_after",
    "layer_norm_elman",
    "layer_norm_gru",
    "layer_norm_lstm",
    "lstm",
]
