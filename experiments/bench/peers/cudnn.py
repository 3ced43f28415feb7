"""cuDNN through JAX and through PyTorch; only on a GPU, where this file has not been run yet.

There everything uses TF32 unless told otherwise: pass ``--tolerance 1e-2``.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental import rnn

from experiments.bench.case import Case, Params
from experiments.bench.entry import Model, Peer, build, read_out
from experiments.bench.peers import pytorch
from rnn_jax import interop


def model(case: Case) -> Model:
    """The LSTM of `jax.experimental.rnn`: all layers and directions in one call, batch first."""
    directions = 2 if case.bidirectional else 1
    sizes = case.D, case.H, case.layers, 0.0, case.bidirectional

    def run(weights: Any, xs: Any, lengths: Any) -> Any:
        flat, readout = weights
        state = jnp.zeros((case.layers * directions, case.B, case.H))
        if lengths is None:
            lengths = jnp.full(case.B, case.T, jnp.int32)
        return read_out(readout, rnn.lstm(xs, state, state, flat, lengths, *sizes)[0])

    return Model(convert, run)


def convert(params: Params) -> Any:
    return interop.to_cudnn(params.layers), params.readout


JAX = Peer(
    "cuDNN, JAX",
    None,
    lambda case: case.cell == "lstm",
    lambda problem: build(model(problem.case), problem),
)
TORCH = Peer("cuDNN, PyTorch", "torch", pytorch.PEER.can, partial(pytorch.build, device="cuda"))
