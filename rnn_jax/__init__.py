"""Recurrent neural networks in JAX: pure cells, one unroll, every transform."""

from rnn_jax import initializers
from rnn_jax._types import Cell
from rnn_jax.cells import *  # noqa: F403
from rnn_jax.unroll import length_mask, unroll
