"""What a pytree of parameters holds."""

import math

import jax

from rnn_jax._types import Params


def summary(params: Params) -> str:
    """A table of the arrays in `params`: path, shape, dtype, count, and the total.

    Args:
      params: any pytree of arrays, or of `jax.ShapeDtypeStruct` (``jax.eval_shape(cell.init, key)``
        costs nothing).

    Returns:
      The table as text, a line an array.

    Example:
      >>> import rnn_jax
      >>> net = rnn_jax.readout(rnn_jax.lstm(65, 128), 65)
      >>> print(summary(jax.eval_shape(net.init, jax.random.key(0))))
      path       shape       dtype     count
      .cell.w_x  (65, 512)   float32  33,280
      .cell.w_h  (128, 512)  float32  65,536
      .cell.b    (512,)      float32     512
      .w_y       (128, 65)   float32   8,320
      .b_y       (65,)       float32      65
      total                          107,713
    """
    rows = [("path", "shape", "dtype", "count")]
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        count = math.prod(leaf.shape)
        total += count
        name = jax.tree_util.keystr(path) or "."
        rows.append((name, str(leaf.shape), str(leaf.dtype), f"{count:,}"))
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]:>{widths[3]}}"
        for row in rows
    )
