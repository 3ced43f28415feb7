"""Newton's method over time: all steps at once, on a machine that is wide enough."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax import _checks, _sequence
from rnn_jax._types import Array, Cell, Key, Params, State, is_float, vary_as
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._types import (
    StepLoss,
    ValueAndGrad,
    across,
    fitting,
    guarded,
    or_nan,
    select,
)
from rnn_jax.gradients._vector import gradient, ravel, unravel
from rnn_jax.gradients.bptt import bptt
from rnn_jax.unroll import restarted


class Newton(NamedTuple):
    """The states of a sequence, solved for all at once."""

    states: State  # [T, ...], after each step
    iterations: Array  # [] int
    converged: Array  # [] bool


def newton(
    cell: Cell,
    params: Params,
    state: State | None,
    xs: Any,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    jacobian: str = "full",
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> Newton:
    """The states of all steps, by Newton's method on h_t - f(h_{t-1}, x_t) = 0 for all t.

    h_t <- f(h_{t-1}) + J_t (new h_{t-1} - old h_{t-1}), one linear recurrence an iteration, which
    `jax.lax.associative_scan` solves in log T parallel steps. Work n^3 T log T an iteration with
    the full Jacobians of an [n] state, n T with their diagonals. After k iterations the first k
    steps are exact, so T are enough; a net that forgets needs few, a chaotic one nearly T. What is
    found is put back into the equations: `converged` is true where they hold.

    Args:
      cell: a `Cell` whose state is made of floats.
      params, state, xs, mask, reset: as in `unroll`.
      jacobian: "full", or "diagonal" (quasi-Newton: more iterations, each of less work).
      tolerance: the iteration ends once no number moves, and no equation is off, by more than this
        times (1 + its size); default: the 3/4 power of the precision of the dtype.
      max_iterations: default T.

    Returns:
      `Newton`. Where `converged` is false the states are a guess: `max_iterations` were not enough,
      or the net itself overflows. It cannot be differentiated in reverse mode; `deer` gives the
      gradient.

    Raises:
      ValueError: `jacobian` is neither; shapes as in `unroll`.
      TypeError: the state has integers or PRNG keys; use `unroll`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.gru(2, 3)
      >>> params = cell.init(jax.random.key(0))
      >>> xs = jax.random.normal(jax.random.key(1), (100, 2))
      >>> found = newton(cell, params, None, xs)
      >>> _, ys = rnn_jax.unroll(cell, params, None, xs)
      >>> print(bool(abs(found.states - ys).max() < 1e-5), found.iterations < 20)
      True True

    References:
      Lim, Zhu, Selfridge, Kasim. Parallelizing non-linear sequential models over the sequence
      length. 2024 (DEER). Gonzalez, Warrington, Smith, Linderman. Towards scalable and stable
      parallelization of nonlinear RNNs. 2024 (the diagonal).
    """
    if jacobian not in ("full", "diagonal"):
        raise ValueError(f"jacobian: got {jacobian!r}, expected full or diagonal")
    problem = _Problem(cell, None, params, state, xs, None, mask, reset)
    T, n = problem.steps, problem.first.size
    limit = T if max_iterations is None else _checks.positive_int("max_iterations", max_iterations)
    dtype = problem.first.dtype
    eps = float(jnp.finfo(dtype).eps) ** 0.75 if tolerance is None else tolerance
    if T == 0:
        nothing = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), problem.state)
        return Newton(nothing, jnp.array(0), jnp.array(True))

    def sweep(h: Array, i: Array) -> tuple[Array, Array]:
        """The next states, and by how much these failed to be the solution."""
        before = jnp.concatenate([problem.first[None], h[:-1]])
        new = jax.vmap(problem.hidden, (None, 0, 0))(problem.theta, before, problem.inputs)
        if jacobian == "full":
            J = jax.vmap(jax.jacrev(problem.hidden, argnums=1), (None, 0, 0))(
                problem.theta, before, problem.inputs
            )
            shift = new - jnp.einsum("tij,tj->ti", J, before)
        else:
            J = jax.vmap(problem.diagonal, (None, 0, 0))(problem.theta, before, problem.inputs)
            shift = new - J * before
        moved = linear_recurrence(J, shift, problem.first)
        plain = jnp.where(jnp.isfinite(new), new, jnp.zeros_like(new))
        moved = jnp.where(jnp.isfinite(moved), moved, plain)
        known = (jnp.arange(T) <= i)[:, None]  # whatever the products of Jacobians did
        moved = jnp.where(known, new, moved)
        return moved, jnp.maximum(_relative(moved - h, moved), _relative(new - h, h))

    def going(carry: Any) -> Array:
        _, change, i = carry
        return ~(change <= eps) & (i < limit)

    def iterate(carry: Any) -> Any:
        h, _, i = carry
        return *sweep(h, i), i + 1

    start = jnp.broadcast_to(problem.first, (T, n)), jnp.full((), jnp.inf, dtype), jnp.array(0)
    start = vary_as(start, (problem.theta, problem.first, problem.inputs))
    h, change, iterations = jax.lax.while_loop(going, iterate, start)
    states = jax.vmap(lambda v: unravel(v, problem.state))(h)
    all_known = (iterations >= T) & jnp.isfinite(h).all()
    return Newton(states, iterations, (change <= eps) | all_known)


def _relative(change: Array, size: Array) -> Array:
    return jnp.max(jnp.abs(change) / (1 + jnp.abs(size)), initial=0.0).astype(change.dtype)


def deer(
    cell: Cell,
    loss: StepLoss,
    *,
    jacobian: str = "full",
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> ValueAndGrad:
    """The exact gradient in parallel over time: `newton` forward, one linear recurrence back.

    dL/dh_t = dl_{t+1}/dh_t + D_{t+1}^T dL/dh_{t+1}, solved for all t by `associative_scan`

    The gradient is that of the solution, with the full Jacobians whatever `newton` used, and does
    not go through its iterations. Memory n^2 T. For a GPU or TPU and small states; on a CPU the
    loop is faster.

    Args:
      cell: a `Cell` whose state is made of floats.
      loss: ``(y, target) -> scalar`` of one step.
      jacobian, tolerance, max_iterations: as in `newton`.

    Returns:
      ``value_and_grad(params, state, xs, targets, *, mask=None, reset=None, key=None) -> ((total,
      state), grads)``, as `bptt`; all NaN where the states were not found (``converged`` of
      `newton` is false) or the products of Jacobians are too large for the way back. `key` is not
      used.

    Raises:
      ValueError, TypeError: as `newton`.

    Example:
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 1, activation=jax.nn.identity, bias=False)
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.full((1, 1), 2.0), b=None)
      >>> value_and_grad = deer(cell, lambda y, target: (y[0] - target) ** 2)
      >>> xs, targets = jnp.array([[1.0], [3.0]]), jnp.array([1.0, 4.0])
      >>> print(value_and_grad(params, None, xs, targets)[1].w_h)
      [[2.]]

    References:
      Lim, Zhu, Selfridge, Kasim. Parallelizing non-linear sequential models over the sequence
      length. 2024.
    """

    @across
    def value_and_grad(
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Key | None = None,
    ) -> tuple[tuple[Array, State], Params]:
        del key
        if _checks.time_steps(xs) == 0:
            return bptt(cell, loss)(params, state, xs, targets)
        options: dict[str, Any] = {"jacobian": jacobian, "tolerance": tolerance}
        options["max_iterations"] = max_iterations
        found = newton(cell, params, state, xs, mask=mask, reset=reset, **options)
        problem = _Problem(cell, loss, params, state, xs, targets, mask, reset)
        h = jax.vmap(ravel)(found.states)
        before = jnp.concatenate([problem.first[None], h])[:-1]

        def run(theta: Array, h: Array) -> Any:
            return jax.vmap(problem.run, (None, 0, 0))(theta, h, problem.inputs)

        (after, losses), back = jax.vjp(run, problem.theta, before)
        J = jax.vmap(jax.jacrev(problem.hidden, argnums=1), (None, 0, 0))(
            problem.theta, before, problem.inputs
        )
        c = back((jnp.zeros_like(after), jnp.ones_like(losses)))[1]  # dl_t/dh_{t-1}
        lam, solved = _adjoint(J, c)  # dL/dh_{t-1}
        last = jnp.zeros_like(lam[:1])
        grads = back((jnp.concatenate([lam, last])[1:], jnp.ones_like(losses)))[0]
        grads += jax.vjp(problem.start, problem.theta)[1](lam[0])[0]
        final = unravel(after[-1], problem.state)
        result = (losses.sum(), final), gradient(grads, problem.params)
        return or_nan(found.converged & solved, result)

    return value_and_grad


def _adjoint(J: Array, c: Array) -> tuple[Array, Array]:
    """lam_t = c_t + J_t^T lam_{t+1} for all t, refined once; and whether these equations hold."""
    A, b = J.transpose(0, 2, 1)[::-1], c[::-1]
    zero = jnp.zeros_like(b[0])

    def parts(lam: Array) -> tuple[Array, Array]:
        before = jnp.concatenate([zero[None], lam])[:-1]
        size = jnp.einsum("tij,tj->ti", jnp.abs(A), jnp.abs(before)) + jnp.abs(b)
        return jnp.einsum("tij,tj->ti", A, before) + b - lam, size

    lam = linear_recurrence(A, b, zero)
    lam = lam + linear_recurrence(A, parts(lam)[0], zero)
    off, size = (jnp.max(jnp.abs(a), axis=1, initial=0.0) for a in parts(lam))
    return lam[::-1], (off <= jnp.finfo(b.dtype).eps ** 0.75 * size).all()


def linear_recurrence(J: Array, b: Array, first: Array) -> Array:
    """h_t = J_t h_{t-1} + b_t for all t, after `first`; J: [T, n, n], or [T, n] for diagonals."""
    full = J.ndim == 3
    times = (lambda A, v: jnp.einsum("...ij,...j->...i", A, v)) if full else jnp.multiply

    def join(early: Any, late: Any) -> Any:
        (A, a), (B, b) = early, late
        return (B @ A if full else B * A), times(B, a) + b

    b = b.at[0].add(times(J[0], first))
    return jax.lax.associative_scan(join, (J, b))[1]


class _Problem:
    """The steps of a sequence as functions of real vectors, with their masks and resets."""

    def __init__(
        self,
        cell: Cell,
        loss: StepLoss | None,
        params: Params,
        state: State | None,
        xs: Any,
        targets: Any,
        mask: Array | None,
        reset: Array | None,
    ) -> None:
        params, xs, targets = jax.tree.map(jnp.asarray, (params, xs, targets))
        self.steps = T = _checks.time_steps(xs)
        fitting(targets, T)
        flags = [
            None if f is None else _checks.time_flags(k, f, T)
            for k, f in (("mask", mask), ("reset", reset))
        ]
        initial = _sequence.initial(cell, params)
        self.learned = state is None
        self.state = initial if state is None else jax.tree.map(jnp.asarray, state)
        _checks.same_shapes("state", self.state, initial, "It comes from init_state.", dtypes=True)
        for path, a in jax.tree_util.tree_leaves_with_path(self.state):
            if not is_float(a):
                where = "state" + jax.tree_util.keystr(path)
                raise TypeError(
                    f"{where}: got {a.dtype}, expected floats alone: Newton's method does not "
                    "solve for counters and PRNG keys. Use unroll and bptt."
                )
        self.cell, self.loss, self.params = cell, loss, params
        self.theta, self.first = ravel(params), ravel(self.state)
        self.inputs = *_sequence.padded((xs, targets), flags[0]), *flags

    def start(self, theta: Array) -> Array:
        if not self.learned:
            return self.first
        return ravel(_sequence.initial(self.cell, unravel(theta, self.params)))

    def run(self, theta: Array, h: Array, inputs: Any) -> tuple[Array, Array]:
        x, target, valid, reset = inputs
        params, old = unravel(theta, self.params), unravel(h, self.state)
        if reset is not None:
            old = restarted(reset, _sequence.initial(self.cell, params), old)
        loss = self.loss or (lambda y, target: jnp.zeros((), h.dtype))
        step = Step(self.cell, loss, params, old, x, target, valid)
        (new, value), _ = step.value()
        if valid is None:
            return new, value
        return select(valid, new, h), guarded(value, valid)

    def hidden(self, theta: Array, h: Array, inputs: Any) -> Array:
        return self.run(theta, h, inputs)[0]

    def diagonal(self, theta: Array, h: Array, inputs: Any) -> Array:
        J: Array = jax.jacfwd(self.hidden, argnums=1)(theta, h, inputs)
        return jnp.diagonal(J)
