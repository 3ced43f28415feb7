"""The influence of the params on the state, kept only where it is not zero, or may be left out.

Which entries can differ from zero is a property of the cell and not of its numbers: the Jacobians
are evaluated at random params, states and inputs, and an entry belongs to the pattern if it is
nonzero at any of them. Zeros in the data, or in the weights of the user, play no part.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax._types import Array, Key, is_float
from rnn_jax.gradients._online import Rule
from rnn_jax.gradients._step import Origin, Step

PROBES = 32  # a ReLU is off at half of the points: 2^-32 is left that it is never seen on


class Pattern(NamedTuple):
    """Where the Jacobians of a step can differ from zero."""

    start: np.ndarray  # [n, P] bool, of a learned initial state by the params
    I: np.ndarray  # [n, P] bool, of the new state by the params
    D: np.ndarray  # [n, n] bool, of the new state by the old one


def pattern(step: Step, change: Callable[[Step], Step] = lambda step: step) -> Pattern:
    """The pattern of a cell, or of a changed one, from the shapes of one step alone."""
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (step.params, step.state, step.x)
    )
    sizes = [size for a in jax.tree.leaves(like[0]) for size in a.shape]
    tokens = any(not is_float(a) for a in jax.tree.leaves(like[2]))
    probes = max(PROBES, *sizes) if tokens else PROBES  # a token may stand for a row of a table

    def nonzero(found: Any, i: Array) -> tuple[Any, None]:
        params, state, x = random_like(like, i)
        point = change(Step(step.cell, step.loss, params, state, x, None))
        start = Origin(params, state, step.cell.init_state).jacobian()
        jacobians = (start, *jax.jacrev(point.hidden, argnums=(0, 1))(point.theta, point.h))
        return jax.tree.map(lambda a, b: a | (b != 0), found, jacobians), None

    with jax.ensure_compile_time_eval():
        n, P = step.h.size, step.theta.size
        nothing = tuple(jnp.zeros((n, size), bool) for size in (P, P, n))
        found, _ = jax.lax.scan(nonzero, nothing, jnp.arange(probes, dtype=jnp.int32))
    state, params = other_part(like[1]), other_part(like[0])
    start, I, D = map(np.asarray, found)
    return Pattern(
        _joined(start, state, params), _joined(I, state, params), _joined(D, state, state)
    )


def other_part(tree: Any) -> np.ndarray:
    """[n] int: where the imaginary part of each real one is in `ravel`, and the other way round.

    A complex number is one unit: what reaches one part of it reaches the other in the next step.
    """
    parts, start = [], 0
    for a in jax.tree.leaves(tree):
        if is_float(a):
            size = math.prod(a.shape)
            if jnp.issubdtype(a.dtype, jnp.complexfloating):
                parts.append(start + (np.arange(2 * size) ^ 1))
                size *= 2
            else:
                parts.append(start + np.arange(size))
            start += size
    return np.concatenate(parts) if parts else np.zeros(0, int)


def _joined(a: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    a = a | a[rows]
    return a | a[:, columns]


def random_like(like: Any, i: Array) -> Any:
    """The i-th random point: small numbers, fresh keys, and i itself for integers."""
    leaves, tree = jax.tree.leaves(like), jax.tree.structure(like)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), len(leaves))

    def one(a: Any, key: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.split(key, a.shape)
        if is_float(a):
            small = 0.5 / np.sqrt(max(1, *a.shape[:1]) if a.ndim > 1 else 1)
            return jnp.asarray(small, a.dtype) * jax.random.normal(key, a.shape, a.dtype)
        return jnp.broadcast_to(i, a.shape).astype(a.dtype)

    return jax.tree.unflatten(tree, [one(a, k) for a, k in zip(leaves, keys, strict=True)])


def reach(found: Pattern, steps: int | None) -> np.ndarray:
    """[n, P] bool: what the params can reach within so many steps, or ever."""
    mask = found.I | found.start
    D = found.D.astype(np.float32)
    for _ in range(found.D.shape[0] if steps is None else steps - 1):
        wider = mask | (D @ mask.astype(np.float32) > 0)
        if (wider == mask).all():
            break
        mask = wider
    return mask


def unit_reach(found: Pattern) -> int:
    """The largest number of units that the past of one unit ever reaches."""
    itself = np.eye(len(found.D), dtype=bool)
    return int(reach(Pattern(itself, itself, found.D), None).sum(0).max(initial=0))


class Influence:
    """M, [n, P], on a mask: as [K, P] if a column has at most K entries, far fewer than n."""

    def __init__(self, found: Pattern, mask: np.ndarray) -> None:
        n, P = mask.shape
        K = max(1, int(mask.sum(0).max(initial=0)))
        self.dense = n < 2 * K
        if self.dense:
            K = n
            self.rows = np.broadcast_to(np.arange(n, dtype=np.int32)[:, None], (n, P))
        else:
            self.rows = np.argsort(~mask, axis=0, kind="stable")[:K].astype(np.int32)
        self.columns = np.broadcast_to(np.arange(P, dtype=np.int32), (K, P))
        self.valid = mask[self.rows, self.columns]
        self.has_I = found.I[self.rows, self.columns] & self.valid
        self.colors_I, self.colors_D = colors(found.I), colors(found.D)
        self.D = found.D

    def take(self, M: Array) -> Array:
        """[n, P] -> [K, P]."""
        return self._only(M[self.rows, self.columns])

    def moved(self, D: Array, M: Array) -> Array:
        """The entries of D M."""
        if self.dense:
            return self._only(D @ M)
        rows = [jnp.sum(self._only(D[row, self.rows]) * M, axis=0) for row in self.rows]
        return self._only(jnp.stack(rows))

    def add(self, step: Step, M: Array) -> Array:
        """The entries of M + I; rows of I that share no column cost one backward pass together."""
        seeds = one_hots(self.colors_I, M.dtype)
        sums = jax.vmap(lambda row: step.pull(row, 0.0)[0])(seeds)
        I = sums[self.colors_I[self.rows], self.columns]
        return M + jnp.where(self.has_I, I, jnp.zeros_like(I))

    def state_jacobian(self, step: Step) -> Array:
        """D, [n, n], at the cost of its colors."""
        seeds = one_hots(self.colors_D, step.h.dtype)
        sums = jax.vmap(lambda row: step.pull(row, 0.0)[1])(seeds)
        return jnp.where(self.D, sums[self.colors_D], jnp.zeros((), sums.dtype))

    def times(self, row: Array, M: Array) -> Array:
        """``row @ M``: [n] -> [P]."""
        return jnp.sum(row[self.rows] * M, axis=0)

    def _only(self, M: Array) -> Array:
        return jnp.where(self.valid, M, jnp.zeros_like(M))


def rule(
    influence: Influence, following: Callable[[Step, Array], Array], feedback: Array | None = None
) -> Rule:
    """An online algorithm on a mask: `following` makes M of a step from the one before.

    The loss of a step sees M through dl/dh, or through dl/dy B for a feedback matrix B.
    """

    def init(origin: Origin, step: Step, key: Key | None) -> Array:
        return influence.take(origin.jacobian())

    def update(step: Step, M: Array, key: Key | None) -> tuple[Array, Array]:
        new = following(step, M)
        r, c, q = step.observe()
        if feedback is not None:
            c, q = jnp.zeros_like(c), step.error() @ feedback.astype(c.dtype)
        return new, r + influence.times(c, M) + influence.times(q, new)

    return Rule(init, update)


def colors(found: np.ndarray) -> np.ndarray:
    """[n] int: rows of one color have no column in common (Curtis, Powell, Reid 1974)."""
    wide = found.astype(np.float32)
    conflict = wide @ wide.T > 0
    color = np.zeros(len(found), np.int32)
    for i in range(len(found)):
        taken = set(color[:i][conflict[i, :i]])
        color[i] = next(c for c in range(i + 1) if c not in taken)
    return color


def one_hots(color: np.ndarray, dtype: Any) -> Array:
    """[colors, n]: the sum of the unit vectors of each color."""
    count = int(color.max(initial=0)) + 1
    return jnp.asarray(np.arange(count)[:, None] == color, dtype)
