"""In and out: weights of other libraries, cells in their modules and theirs as cells, deployment.

The names say the way: `from_` brings weights into our cells, `to_` takes them out, `wrap_` puts a
cell of another library behind our contract, `as_` puts our cell into their framework. Each library
is imported when a function that needs it is called; what is missing is named with the line that
installs it.

Weights come as `Imported`, whose `net` and `params` are like any others:

>>> import jax.numpy as jnp
>>> import numpy as np
>>> import rnn_jax
>>> from rnn_jax import interop
>>> weights = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2))}
>>> imported = interop.from_torch({name: np.float32(a) for name, a in weights.items()})
>>> state, ys = rnn_jax.unroll(imported.net, imported.params, None, jnp.ones((5, 3)))
>>> print(ys.shape)
(5, 2)

What goes out is compared with the net on random input before it is returned, since a residual
connection, the activation of `elman` and the kind of a GRU do not show in params.
"""

from rnn_jax.interop._formats import FORMATS, Format, InteropError, Leaf, dump, load
from rnn_jax.interop._net import Imported, identify
from rnn_jax.interop.deploy import export, register
from rnn_jax.interop.flax import (
    as_linen_cell,
    as_linen_module,
    as_nnx_cell,
    as_nnx_module,
    wrap_equinox,
    wrap_haiku,
    wrap_linen,
    wrap_nnx,
)
from rnn_jax.interop.keras import from_keras, to_keras
from rnn_jax.interop.onnx import from_onnx, to_onnx
from rnn_jax.interop.pytorch import (
    from_cudnn,
    from_safetensors,
    from_torch,
    to_cudnn,
    to_safetensors,
    to_torch,
)

__all__ = [
    "FORMATS",
    "Format",
    "Imported",
    "InteropError",
    "Leaf",
    "as_linen_cell",
    "as_linen_module",
    "as_nnx_cell",
    "as_nnx_module",
    "dump",
    "export",
    "from_cudnn",
    "from_keras",
    "from_onnx",
    "from_safetensors",
    "from_torch",
    "identify",
    "load",
    "register",
    "to_cudnn",
    "to_keras",
    "to_onnx",
    "to_safetensors",
    "to_torch",
    "wrap_equinox",
    "wrap_haiku",
    "wrap_linen",
    "wrap_nnx",
]

register()
