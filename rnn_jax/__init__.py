"""Recurrent neural networks in JAX: pure cells, one unroll, every transform.

Conventions, the same everywhere:

- Axes: T time, B batch, D input, H hidden, O output. One sequence is [T, D] in and [T, H] out;
  there is no batch axis and no flag for one, `jax.vmap` adds it.
- State first: ``state, y = cell.step(...)``, ``state, ys = unroll(...)``, as in `jax.lax.scan`.
- Row vectors: ``x @ w_x`` with w_x: [D, H]. Gates stand side by side: i, f, g, o in an LSTM, whose
  state is (h, c); r, z, n in a GRU, where h' = z * h + (1 - z) * n.
- Noise lives in the state, `with_key` gives each run its own, and evaluation uses the plain cell
  with the same params.

The four shapes of sequence problems:

>>> import jax, jax.numpy as jnp
>>> import rnn_jax
>>> cell = rnn_jax.readout(rnn_jax.gru(2, 16), 2)
>>> params = cell.init(jax.random.key(0))
>>> xs = jax.random.normal(jax.random.key(1), (7, 2))

Many to one (sentiment): the last output counts, of a padded sequence the last valid one. The
output of a padded step is zero, so ``ys[-1]`` would be too; `mean_over_time`, `max_over_time` and,
for nets that read both ways, `both_ends` take the mask as `last` does.

>>> mask = rnn_jax.length_mask(4, 7)
>>> state, ys = rnn_jax.unroll(cell, params, None, xs, mask=mask)
>>> print(rnn_jax.last(ys, mask).shape, ys[-1])
(2,) [0. 0.]

Many to many in step (tagging): every output counts.

>>> state, ys = rnn_jax.unroll(cell, params, None, xs)
>>> print(ys.shape)
(7, 2)

One to many (captioning): one input, then each output is the next input.

>>> def again(carry, _):
...     state, x = carry
...     state, y = cell.step(params, state, cell.project(params, x))
...     return (state, y), y
>>> start = (cell.init_state(params), xs[0])
>>> _, caption = jax.lax.scan(again, start, length=5)
>>> print(caption.shape)
(5, 2)

Many to many out of step (translation): the state of the encoder starts the decoder; with attention,
and the whole of training and use, `rnn_jax.encoder_decoder`.

>>> decoder = rnn_jax.readout(rnn_jax.gru(3, 16), 4)
>>> decoder_params = decoder.init(jax.random.key(2))
>>> shifted_targets = jnp.zeros((5, 3))
>>> _, translation = rnn_jax.unroll(decoder, decoder_params, state, shifted_targets)
>>> print(translation.shape)
(5, 4)
"""

import importlib
from typing import TYPE_CHECKING, Any

from rnn_jax import (
    attention,
    crf,
    diagnostics,
    encoder_decoder,
    generate,
    gradients,
    initializers,
    processes,
)
from rnn_jax._types import Cell
from rnn_jax.cells import *  # noqa: F403
from rnn_jax.cells import __all__ as _cells
from rnn_jax.combine import (
    EmbedParams,
    ReadoutParams,
    TwoWay,
    bidirectional,
    deep_bidirectional,
    embed,
    one_hot,
    readout,
    residual,
    stack,
    two_way,
)
from rnn_jax.noise import (
    NoisyState,
    drop,
    drop_connect,
    drop_tokens,
    dropout,
    redraw,
    scheduled_sampling,
    with_key,
    zoneout,
    zoneout_mean,
)
from rnn_jax.over_devices import unroll_over_devices
from rnn_jax.over_time import both_ends, last, max_over_time, mean_over_time
from rnn_jax.summary import summary
from rnn_jax.unroll import Explanation, Plan, explain, length_mask, unroll

__all__ = [
    "Cell",
    "EmbedParams",
    "Explanation",
    "NoisyState",
    "Plan",
    "ReadoutParams",
    "TwoWay",
    "attention",
    "bidirectional",
    "both_ends",
    "checkpoint",
    "crf",
    "deep_bidirectional",
    "diagnostics",
    "drop",
    "drop_connect",
    "drop_tokens",
    "dropout",
    "embed",
    "encoder_decoder",
    "explain",
    "generate",
    "gradients",
    "initializers",
    "interop",
    "last",
    "length_mask",
    "losses",
    "max_over_time",
    "mean_over_time",
    "one_hot",
    "processes",
    "readout",
    "redraw",
    "residual",
    "scheduled_sampling",
    "stack",
    "summary",
    "tasks",
    "train",
    "two_way",
    "unroll",
    "unroll_over_devices",
    "with_key",
    "zoneout",
    "zoneout_mean",
]
__all__ += _cells

if TYPE_CHECKING:
    from rnn_jax import checkpoint, interop, losses, tasks, train

# They import optax or orbax, which take a second: when they are first used.
_LATER = ("checkpoint", "interop", "losses", "tasks", "train")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"rnn_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
