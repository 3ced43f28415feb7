"""Is the derivative of a cell right? Four ways to it, side by side."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Array, Cell, Params, State, is_float
from rnn_jax.gradients._types import StepLoss, total_loss
from rnn_jax.gradients._vector import ravel, unravel
from rnn_jax.gradients.bptt import bptt
from rnn_jax.gradients.rtrl import rtrl
from rnn_jax.unroll import Plan, unroll

WAYS = "finite differences", "bptt", "rtrl", "forward mode"
TOLERANCE = {8: 1e-6, 4: 2e-2}  # of central differences in double and single precision


class GradientReport(NamedTuple):
    """The derivative of the loss by each leaf of the params, along one random direction.

    ``bool(report)`` says whether all ways agree; it prints as a table.
    """

    leaves: tuple[str, ...]
    slopes: dict[str, np.ndarray]  # way -> [leaves], NaN where there is no derivative
    errors: np.ndarray  # [leaves], the largest difference between two ways, relative
    tolerance: float
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool((self.errors <= self.tolerance).all()) and not self.notes

    def __str__(self) -> str:
        width = max(map(len, (*self.leaves, "params")))
        head = [f"{'params':{width}}", *(f"{way:>18}" for way in self.slopes), "     difference"]
        lines = ["  ".join(head)]
        for i, leaf in enumerate(self.leaves):
            wrong = "" if self.errors[i] <= self.tolerance else "  <- WRONG"
            numbers = [f"{slopes[i]:>18.10g}" for slopes in self.slopes.values()]
            lines.append(
                "  ".join([f"{leaf:{width}}", *numbers, f"{self.errors[i]:>15.1e}{wrong}"])
            )
        return "\n".join([*lines, *self.notes])


def check_gradients(
    cell: Cell,
    params: Params,
    xs: Any,
    targets: Any = None,
    loss: StepLoss | None = None,
    *,
    state: State | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradientReport:
    """Compares the derivatives of a cell: finite differences, BPTT, RTRL, forward mode.

    Along one random direction for each leaf of the params, in the precision of the params: give
    float64 params inside of ``jax.enable_x64(True)`` for a sharp check. A hand-made derivative
    (`jax.custom_vjp`, `jax.custom_jvp`), an in-place trick or a forgotten `stop_gradient` that is
    wrong by more than the tolerance is marked.

    Args:
      cell: the `Cell` in question.
      params: where the derivative is taken; random ones tell more than zeros.
      xs: [T, D], a short sequence.
      targets: [T, ...] for `loss`.
      loss: ``(y, target) -> scalar`` of one step; default: a fixed random projection of y.
      state: as in `unroll`.
      tolerance: largest relative difference; default 1e-6 in float64, 2e-2 in float32.
      seed: of the directions.

    Returns:
      `GradientReport`: true if all agree, and a table when printed.

    Raises:
      ValueError, TypeError: as `unroll`; targets without a loss.

    Example:
      >>> import rnn_jax
      >>> with jax.enable_x64(True):
      ...     cell = rnn_jax.gru(3, 4)
      ...     params = cell.init(jax.random.key(0))
      ...     report = check_gradients(cell, params, jax.random.normal(jax.random.key(1), (6, 3)))
      >>> print(bool(report), report.leaves)
      True ('params.w_x', 'params.w_h', 'params.b')
    """
    if targets is not None and loss is None:
        raise ValueError("targets: got some without a loss, expected loss=(y, target) -> scalar")
    params, xs = jax.tree.map(jnp.asarray, (params, xs))
    y = jax.eval_shape(lambda: unroll(cell, params, state, xs)[1])
    if loss is None or targets is None:
        targets = _random_like(y, jax.random.key(seed)) if targets is None else targets
        loss = loss or _projection

    def total(params: Params) -> Array:
        _, ys = unroll(cell, params, state, xs, plan=Plan(defer=False))
        return total_loss(loss, ys, targets, None)

    leaves = jax.tree.leaves(params)
    tree: Any = jax.tree.structure(params)
    paths = [
        "params" + jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    directions = [tree.unflatten(d) for d in _directions(leaves, jax.random.key(seed + 1))]
    theta = ravel(params)
    size = theta.dtype.itemsize
    limit = TOLERANCE.get(size, 0.1) if tolerance is None else tolerance
    step = float(jnp.finfo(theta.dtype).eps) ** (1 / 3)
    value = jax.jit(lambda theta: total(unravel(theta, params)))

    def along(way: str) -> list[float]:
        if way == "finite differences":
            moves = [step * ravel(d) for d in directions]
            return [float((value(theta + m) - value(theta - m)) / (2 * step)) for m in moves]
        if way == "forward mode":
            run = jax.jit(lambda d: jax.jvp(total, (params,), (d,))[1])
            return [float(run(d)) for d in directions]
        algorithm = jax.jit((bptt if way == "bptt" else rtrl)(cell, loss))
        grads = algorithm(params, state, xs, targets)[1]
        pairs = zip(jax.tree.leaves(grads), (jax.tree.leaves(d) for d in directions), strict=True)
        return [float(jnp.sum(g * d[i]).real) for i, (g, d) in enumerate(pairs)]

    slopes, notes = {}, []
    for way in WAYS:
        try:
            slopes[way] = np.array(along(way))
        except Exception as error:
            slopes[way] = np.full(len(leaves), np.nan)
            notes.append(
                f"{way}: no derivative, {type(error).__name__}: {str(error).splitlines()[0]}"
            )
    values = np.stack([s for s in slopes.values() if not np.isnan(s).all()])
    scale = np.maximum(np.abs(values).max(0), 1e-3 * np.abs(values).max(initial=1e-30))
    errors = (values.max(0) - values.min(0)) / scale
    return GradientReport(tuple(paths), slopes, errors, limit, tuple(notes))


def _projection(y: Any, target: Any) -> Array:
    parts = [jnp.sum(a * b).real for a, b in zip(*map(jax.tree.leaves, (y, target)), strict=True)]
    return jnp.stack(parts).sum()


def _random_like(like: Any, key: Array) -> Any:
    leaves: list[Any] = jax.tree.leaves(like)
    tree: Any = jax.tree.structure(like)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [
            jax.random.normal(k, a.shape, a.dtype) if is_float(a) else jnp.zeros(a.shape, a.dtype)
            for k, a in zip(keys, leaves, strict=True)
        ]
    )


def _directions(leaves: list[Array], key: Array) -> list[list[Array]]:
    """For each leaf a direction of norm 1 in which only this leaf moves."""
    random = _random_like(leaves, key)
    random = [a / jnp.maximum(jnp.linalg.norm(a.ravel()), 1e-30) for a in random]
    zeros = [jnp.zeros_like(a) for a in leaves]
    return [[d if i == j else z for j, z in enumerate(zeros)] for i, d in enumerate(random)]
