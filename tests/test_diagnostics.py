"""Diagnostics against loops, raw products, finite differences and closed forms, in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from nets import NETS, D, H, key, random_inputs, random_params
from test_laws import assert_close

import rnn_jax as rnn
from rnn_jax import diagnostics as diag
from rnn_jax import gradients

T = 6
pytestmark = pytest.mark.usefixtures("x64")

# What each net puts out, as a function of the state after the step (and of the input).
OUTPUTS: dict[str, Any] = {
    "lstm": lambda params, s, x: s.h,
    "user": lambda params, s, x: 2.0 * s["h"],
    "readout": lambda params, s, x: s[1] @ params.w_y + params.b_y,
    "dropout": lambda params, s, x: s[1],
    "residual": lambda params, s, x: x + s,
}


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2) * (1.0 + target[0] ** 2)


def weighted(y: jax.Array, w: jax.Array) -> jax.Array:
    return w * y[0]


@functools.cache
def problem(name: str, steps: int = T) -> Any:
    """(cell, params, xs, targets)"""
    cell = NETS[name]
    params, xs = jax.jit(random_params, static_argnums=0)(cell), random_inputs(name, steps)
    y = jax.eval_shape(functools.partial(rnn.unroll, cell), params, None, xs)[1]
    return cell, params, xs, jax.random.normal(key(2), y.shape, y.dtype)


def scalar(a: Any) -> tuple[rnn.Cell, Any]:
    """h' = a h + x"""
    cell = rnn.elman(1, 1, activation=jax.nn.identity, bias=False)
    return cell, rnn.ElmanParams(w_x=jnp.ones((1, 1)), w_h=jnp.reshape(a, (1, 1)), b=None)


def linear(w_h: Any) -> tuple[rnn.Cell, Any]:
    n = len(w_h)
    cell = rnn.elman(n, n, activation=jax.nn.identity, bias=False)
    return cell, rnn.ElmanParams(w_x=jnp.eye(n), w_h=jnp.asarray(w_h), b=None)


def floats(state: Any) -> Any:
    """The floats of a state as one vector, and the way back."""
    leaves, tree = jax.tree.flatten(state)
    kinds = [jnp.issubdtype(a.dtype, jnp.floating) for a in leaves]
    vector, unravel = ravel_pytree([a for a, kind in zip(leaves, kinds, strict=True) if kind])

    def back(v: jax.Array) -> Any:
        new = iter(unravel(v))
        return tree.unflatten(
            [next(new) if kind else a for a, kind in zip(leaves, kinds, strict=True)]
        )

    return vector, back


@functools.partial(jax.jit, static_argnums=0)
def one_step(cell: rnn.Cell, params: Any, state: Any, x: Any) -> Any:
    """(D_t, new state)"""
    vector, back = floats(state)

    def run(v: jax.Array) -> Any:
        new = cell.step(params, back(v), cell.project(params, x))[0]
        return floats(new)[0], new

    return jax.jacfwd(run, has_aux=True)(vector)


@functools.partial(jax.jit, static_argnums=0)
def own_gradient(output: Any, params: Any, state: Any, x: Any, target: Any) -> jax.Array:
    """dl_t/dh_t"""
    vector, back = floats(state)
    return jax.grad(lambda v: loss(output(params, back(v), x), target))(vector)


def backward(cell: rnn.Cell, output: Any, params: Any, xs: Any, targets: Any) -> Any:
    """lam_t = q_t + lam_{t+1} D_{t+1} with q_t and D_t, the definition."""
    state, q, D_t = cell.init_state(params), [], []
    for x, target in zip(xs, targets, strict=True):
        matrix, state = one_step(cell, params, state, x)
        q.append(np.asarray(own_gradient(output, params, state, x, target)))
        D_t.append(np.asarray(matrix))
    lam = [q[-1]]
    for t in reversed(range(len(xs) - 1)):
        lam.insert(0, q[t] + lam[0] @ D_t[t + 1])
    return np.stack(lam), np.stack(q), np.stack(D_t)


flow = jax.jit(diag.gradient_flow, static_argnums=(0, 1))
influence = jax.jit(diag.influence, static_argnums=(0, 1))
by_lag = jax.jit(diag.gradients_by_lag, static_argnums=(0, 1))
jacobians = jax.jit(diag.jacobians, static_argnums=0)
lyapunov = jax.jit(diag.lyapunov_exponents, static_argnums=0, static_argnames=("k", "warmup"))
pascanu = jax.jit(diag.pascanu_regularizer, static_argnums=(0, 1))
singular_values = jax.jit(diag.singular_values)


# --- the gradient over time


@pytest.mark.parametrize("name", OUTPUTS)
def test_flow_and_jacobians_are_the_backward_recursion(name: str) -> None:
    cell, params, xs, targets = problem(name)
    lam, q, D_t = backward(cell, OUTPUTS[name], params, xs, targets)
    got = flow(cell, loss, params, None, xs, targets)
    norms = np.linalg.norm(lam, axis=1), np.linalg.norm(q, axis=1)
    assert_close(got, diag.GradientFlow(lam, q, *norms), atol=1e-11)
    assert_close(jacobians(cell, params, None, xs), D_t)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_flow_of_a_scalar_is_a_power_however_small(dtype: Any) -> None:
    steps = 30
    cell = rnn.elman(1, 1, activation=jax.nn.identity, bias=False, dtype=dtype)
    params = rnn.ElmanParams(w_x=jnp.ones((1, 1), dtype), w_h=jnp.full((1, 1), 0.1, dtype), b=None)
    last = jnp.zeros(steps, dtype).at[-1].set(1.0)
    xs = jnp.ones((steps, 1), dtype)
    got = flow(cell, weighted, params, None, xs, last)
    expected = 0.1 ** np.arange(steps - 1.0, -1, -1)
    assert got.total_norm.dtype == dtype
    np.testing.assert_allclose(got.total_norm, expected, rtol=1e-5)
    np.testing.assert_allclose(got.total[:, 0], expected, rtol=1e-5)


def test_output_of_the_state_before_comes_back_from_the_next_step() -> None:
    """y_t = h_{t-1}: no loss depends on the state of its own step."""
    cell = rnn.elman(2, 3)
    late = cell._replace(step=lambda p, h, z: (cell.step(p, h, z)[0], h))
    params, xs = random_params(cell), jax.random.normal(key(1), (4, 2), float)
    targets = jax.random.normal(key(2), (4, 3), float)
    got = flow(late, loss, params, None, xs, targets)
    usual = flow(cell, loss, params, None, xs[:-1], targets[1:])
    assert not got.immediate.any()
    assert_close(got.total[:-1], usual.total)
    assert not got.total[-1].any()


def test_flow_sees_through_jit_and_says_where_it_cannot() -> None:
    cell, params, xs, targets = problem("readout")
    expected = flow(cell, loss, params, None, xs, targets)
    jitted = cell._replace(step=jax.jit(cell.step))
    assert_close(flow(jitted, loss, params, None, xs, targets), expected)
    hidden = cell._replace(step=jax.checkpoint(cell.step))
    with pytest.raises(ValueError, match="makes the new state and the output inside one"):
        flow(hidden, loss, params, None, xs, targets)


def test_flow_of_a_cell_with_cond() -> None:
    cell, params, xs, targets = problem("gru")

    def step(params: Any, h: jax.Array, z: Any) -> Any:
        new, _ = cell.step(params, h, z)
        new = jax.lax.cond(z[0].sum() > 0, lambda: new, lambda: new * 2.0)
        return new, 0.3 * new

    branching = cell._replace(step=step)
    lam, q, _ = backward(branching, lambda p, h, x: 0.3 * h, params, xs, targets)
    got = flow(branching, loss, params, None, xs, targets)
    np.testing.assert_allclose(got[:2], (lam, q), rtol=1e-11)


# --- by lag


@pytest.mark.parametrize("name", ["lstm", "readout"])
def test_influence_is_the_raw_product(name: str) -> None:
    cell, params, xs, targets = problem(name)
    _, q, D_t = backward(cell, OUTPUTS[name], params, xs, targets)
    expected = np.zeros((T, T))
    for s in range(T):
        row = q[s]
        for t in reversed(range(s + 1)):
            expected[t, s - t] = np.linalg.norm(row)
            row = row @ D_t[t]
    got = influence(cell, loss, params, None, xs, targets)
    np.testing.assert_allclose(got.norms, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(got.by_lag, expected.sum(axis=0), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("name", "k2s"), [("lstm", (1, 3)), ("user", (2, T)), ("readout", (T,))])
def test_gradients_by_lag_add_up_to_the_truncated_ones(name: str, k2s: tuple[int, ...]) -> None:
    cell, params, xs, targets = problem(name)
    got = by_lag(cell, loss, params, None, xs, targets)
    assert all(a.shape[0] == T for a in jax.tree.leaves(got))
    for k2 in k2s:
        algorithm = gradients.truncated_bptt(cell, loss, k1=1, k2=k2)
        _, expected = jax.jit(algorithm)(params, None, xs, targets)
        assert_close(jax.tree.map(lambda a, k=k2: a[:k].sum(0), got), expected, atol=1e-10)


@pytest.mark.parametrize("name", ["lstm", "user"])
@pytest.mark.parametrize("given", [False, True], ids=["learned", "given"])
def test_gradients_by_lag_add_up_with_masks_and_resets(name: str, given: bool) -> None:
    cell, params, xs, targets = problem(name)
    mask = jnp.array([False, True, True, False, True, True])
    reset = jnp.array([False, False, False, True, False, True])
    state = rnn.unroll(cell, params, None, xs[:2])[0] if given else None

    def total(params: Any) -> jax.Array:
        _, ys = rnn.unroll(cell, params, state, xs, mask=mask, reset=reset)
        return jnp.where(mask, jax.vmap(loss)(ys, targets), 0.0).sum()

    expected = jax.jit(jax.grad(total))(params)
    holes = jnp.where(mask[:, None], xs, jnp.nan)
    empty = jnp.where(mask[:, None], targets, jnp.nan)
    got = by_lag(cell, loss, params, state, holes, empty, mask=mask, reset=reset)
    assert_close(jax.tree.map(lambda a: a.sum(0), got), expected, atol=1e-10)
    assert_close(
        jax.tree.map(lambda a: a[3:], got), jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), params)
    )


@pytest.mark.parametrize("a", [0.6, 0.9, -1.1])
@pytest.mark.parametrize("fraction", [0.5, 0.95])
def test_horizon_of_a_scalar(a: float, fraction: float) -> None:
    """The loss h_T: lag k has |a|^k, and the first k + 1 lags have (1 - |a|^(k+1)) / (1 - |a|)."""
    steps = 25
    cell, params = scalar(a)
    last = jnp.zeros(steps).at[-1].set(1.0)
    got = influence(cell, weighted, params, None, jnp.ones((steps, 1)), last)
    np.testing.assert_allclose(got.by_lag, abs(a) ** np.arange(steps), rtol=1e-12)
    b = abs(a)
    expected = np.ceil(np.log(1 - fraction * (1 - b**steps)) / np.log(b) - 1)
    assert int(diag.memory_horizon(got.by_lag, fraction)) == expected


def test_horizon_at_the_edges() -> None:
    rows = jnp.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    assert diag.memory_horizon(rows).tolist() == [0, 0, 2]
    assert diag.memory_horizon(rows, 0.5).tolist() == [0, 0, 1]
    assert diag.memory_horizon(rows, 1.0).tolist() == [0, 0, 2]


# --- masks, resets, state leaves, transforms


@functools.partial(jax.jit, static_argnums=0)
def on_device(cell: rnn.Cell, params: Any, xs: Any, targets: Any, **options: Any) -> Any:
    args = params, None, xs
    return (
        diag.gradient_flow(cell, loss, *args, targets, **options),
        diag.influence(cell, loss, *args, targets, **options).norms,
        diag.jacobians(cell, *args, **options),
    )


def everything(*args: Any, **options: Any) -> Any:
    """All that has one entry a step."""
    return jax.device_get(on_device(*args, **options))


def test_masked_steps_are_no_steps() -> None:
    cell, params, xs, targets = problem("variational")
    mask = np.array([False, True, True, False, True, False])
    holes = jnp.where(mask[:, None], xs, jnp.nan)
    empty = jnp.where(mask[:, None], targets, jnp.nan)
    got, norms, D_t = everything(cell, params, holes, empty, mask=mask)
    short, short_norms, short_D_t = everything(cell, params, xs[mask], targets[mask])
    assert_close(jax.tree.map(lambda a: a[mask], got), short)
    assert_close(norms[mask][:, :3], short_norms)
    assert_close(D_t[mask], short_D_t)
    assert not any(a[~mask].any() for a in got)
    assert not norms[~mask].any()
    assert not norms[:, 3:].any()
    assert_close(D_t[~mask], np.broadcast_to(np.eye(D_t.shape[1]), (3, *D_t.shape[1:])))


def test_a_reset_starts_anew() -> None:
    cell, params, xs, targets = problem("user")
    got, norms, D_t = everything(cell, params, xs, targets, reset=jnp.arange(T) == 3)
    for part, reset in ((slice(0, 3), False), (slice(3, 6), True)):
        one, one_norms, one_D_t = everything(cell, params, xs[part], targets[part])
        assert_close(jax.tree.map(lambda a, part=part: a[part], got), one)
        assert_close(norms[part, :3], one_norms)
        assert_close(D_t[part][reset:], one_D_t[reset:])
    assert not norms[:, 3:].any()
    assert not D_t[3].any()


def rotating(rate: complex) -> rnn.Cell:
    """h' = rate h + x with complex h; a key, a counter, a constant, a bfloat16 copy of x."""

    def step(params: Any, state: Any, z: jax.Array) -> Any:
        h = params * state["h"] + z
        return {
            "h": h,
            "key": jax.random.split(state["key"])[0],
            "count": state["count"] + 1,
            "constant": 2.0 * jnp.ones(()),
            "old": z.real.astype(jnp.bfloat16),
        }, jnp.stack([h.real, h.imag])

    def init_state(params: Any) -> Any:
        zero = jnp.zeros((), jnp.complex128)
        count = jnp.array(0, jnp.int8)
        old = jnp.zeros((), jnp.bfloat16)
        return {"h": zero, "key": key(3), "count": count, "old": old, "constant": jnp.ones(())}

    return rnn.Cell(
        lambda key: jnp.array(rate), init_state, lambda params, x: jax.lax.complex(x, 0 * x), step
    )


def test_complex_numbers_are_pairs_and_other_leaves_have_no_derivative() -> None:
    rate = 0.6 - 0.5j
    cell, params, xs = rotating(rate), jnp.array(rate), jnp.array([0.3, -1.0, 0.7, 0.1])
    pair = np.array([[rate.real, -rate.imag], [rate.imag, rate.real]])
    expected = np.zeros((4, 4))  # constant, h, old
    expected[1:3, 1:3] = pair
    D_t = jacobians(cell, params, None, xs)
    np.testing.assert_allclose(D_t, np.broadcast_to(expected, (4, 4, 4)), atol=1e-15)

    def loss(y: jax.Array, w: jax.Array) -> jax.Array:
        return w * (y[0] - 2.0 * y[1])

    last = jnp.array([0.0, 0.0, 0.0, 1.0])
    got = flow(cell, loss, params, None, xs, last)
    lam = [np.array([1.0, -2.0]) @ np.linalg.matrix_power(pair, 3 - t) for t in range(4)]
    np.testing.assert_allclose(got.total, np.pad(lam, ((0, 0), (1, 1))), atol=1e-15)
    growth = lyapunov(cell, params, None, xs, k=2).growth[1:].sum(axis=1)
    np.testing.assert_allclose(growth, 2 * np.log(abs(rate)), atol=1e-12)
    _, grads = jax.jit(gradients.bptt(cell, loss))(params, None, xs, last)
    assert_close(by_lag(cell, loss, params, None, xs, last).sum(), grads)
    omega = pascanu(cell, loss, params, None, xs, last, mask=jnp.ones(4, bool))
    np.testing.assert_allclose(omega, 4 * (abs(rate) - 1) ** 2, atol=1e-14)


def test_draws_of_params_at_once() -> None:
    cell, _, xs, targets = problem("elman")
    draws = jax.jit(jax.vmap(cell.init))(jax.random.split(key(0), 3))
    keys = jax.random.split(key(4), 2)

    def gates(params: Any, state: Any, z: Any) -> Any:
        return jax.nn.sigmoid(state)

    def estimate(params: Any, *args: Any, mask: Any = None, key: Any = None) -> Any:
        noise = 0.0 if key is None else jax.random.normal(key, (), float)
        return None, jax.tree.map(lambda p: p * (1.0 + noise), params)

    def all_of_them(params: Any) -> Any:
        args = params, None, xs, targets
        D_t = diag.jacobians(cell, params, None, xs)
        return {
            "flow": diag.gradient_flow(cell, loss, *args),
            "influence": diag.influence(cell, loss, *args),
            "by lag": diag.gradients_by_lag(cell, loss, *args),
            "singular values": diag.singular_values(D_t),
            "exponents": diag.lyapunov_exponents(cell, params, None, xs, k=3, warmup=2),
            "gates": diag.gate_saturation(cell, gates, params, None, xs, margin=0.4),
            "compare": diag.compare(estimate, estimate, *args, keys),
            "pascanu": diag.pascanu_regularizer(cell, loss, *args),
        }

    got = jax.device_get(jax.jit(jax.vmap(all_of_them))(draws))
    one = jax.jit(all_of_them)
    for i in range(3):
        expected = one(jax.tree.map(lambda a, i=i: a[i], draws))
        assert_close(jax.tree.map(lambda a, i=i: a[i], got), jax.device_get(expected), atol=1e-10)
    assert str(got["compare"]) == "3 arrays, mapped over (3,)"


def test_no_steps() -> None:
    cell, params, xs, targets = problem("elman", steps=0)
    got, norms, D_t = everything(cell, params, xs, targets)
    assert got.total.shape == (0, H)
    assert norms.shape == (0, 0)
    assert D_t.shape == (0, H, H)
    assert diag.singular_values(D_t).shape == (0, H)
    assert jax.tree.leaves(by_lag(cell, loss, params, None, xs, targets))[0].shape[0] == 0
    keys = jax.random.split(key(0), 2)
    lags = diag.compare_by_lag(gradients.bptt, cell, loss, params, None, xs, targets, keys)
    assert lags.whole.bias.shape == (0,)
    assert not diag.lyapunov_exponents(cell, params, None, xs).exponents.any()
    assert float(diag.pascanu_regularizer(cell, loss, params, None, xs, targets)) == 0


# --- spectra


@pytest.mark.parametrize("n", [1, 4, 5])
def test_singular_values_of_short_products(n: int) -> None:
    D_t = np.asarray(jax.random.normal(key(n), (5, n, n), float))
    expected, product = [], np.eye(n)
    for matrix in D_t[::-1]:
        product = product @ matrix
        expected.insert(0, np.log(np.linalg.svd(product, compute_uv=False)))
    np.testing.assert_allclose(singular_values(D_t), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float64, 1e-11), (jnp.float32, 3e-2)])
def test_singular_values_far_beyond_the_range_of_floats(dtype: Any, atol: float) -> None:
    """D_t = U_{t+1} S_t U_t^T: those of the products are the products of the S_t, e^(+-600)."""
    n, steps = 6, 300
    U, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(steps + 1, n, n)))
    log_s = 0.3 * np.random.default_rng(1).normal(size=(steps, n)) + np.array(
        [2, 1.9, 0, -0.5, -1, -2]
    )
    D_t = np.einsum("tij,tj,tkj->tik", U[1:], np.exp(log_s), U[:-1])
    expected = -np.sort(-np.cumsum(log_s[::-1], axis=0)[::-1], axis=1)
    assert np.ptp(expected[0]) > 1000
    got = singular_values(jnp.asarray(D_t, dtype))
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def test_singular_values_of_an_orthogonal_net_are_one() -> None:
    U, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    cell, params = linear(U)
    D_t = jacobians(cell, params, None, jnp.ones((100, 5)))
    np.testing.assert_allclose(singular_values(D_t), np.zeros((100, 5)), atol=1e-12)


def test_singular_values_of_singular_products() -> None:
    D_t = np.random.default_rng(0).normal(size=(4, 3, 3))
    got = np.asarray(singular_values(jnp.asarray(D_t).at[2].set(0.0)))
    assert np.all(got[:3] == -np.inf)
    assert np.isfinite(got[3]).all()
    D_t[2, :, 0] = D_t[2, :, 1]  # rank 2
    got = np.asarray(singular_values(D_t))
    expected = np.log(np.linalg.svd(D_t[3] @ D_t[2] @ D_t[1] @ D_t[0], compute_uv=False))
    np.testing.assert_allclose(got[0, :2], expected[:2], atol=1e-12)
    assert got[0, 2] < -30


@pytest.mark.parametrize("k", [None, 2])
def test_exponents_of_a_linear_net_are_its_eigenvalues(k: int | None) -> None:
    basis = np.random.default_rng(0).normal(size=(4, 4))
    eigenvalues = np.array([1.3, -0.9, 0.5, 0.2])
    cell, params = linear(basis @ np.diag(eigenvalues) @ np.linalg.inv(basis))
    got = lyapunov(cell, params, None, jnp.ones((150, 4)), k=k, warmup=100)
    np.testing.assert_allclose(got.exponents, np.log(np.abs(eigenvalues))[:k], atol=1e-10)
    assert got.growth.shape == (150, k or 4)


def test_all_exponents_together_are_the_mean_log_volume() -> None:
    cell, params, xs, _ = problem("gru", steps=9)
    mask = jnp.ones(9, bool).at[jnp.array([3, 8])].set(False)
    got = lyapunov(cell, params, None, xs, warmup=2, mask=mask)
    D_t = jacobians(cell, params, None, xs, mask=mask)
    expected = np.linalg.slogdet(D_t)[1]
    np.testing.assert_allclose(got.growth.sum(axis=1), expected, atol=1e-12)
    np.testing.assert_allclose(got.exponents.sum(), expected[2:].sum() / 5, atol=1e-12)


def test_exponents_have_a_derivative() -> None:
    """Of a linear net: the exponents add up to log |det W|, whose derivative is W^-T."""
    W = np.random.default_rng(0).normal(size=(3, 3))
    cell, params = linear(W)

    def total(params: Any) -> jax.Array:
        return diag.lyapunov_exponents(cell, params, None, jnp.ones((7, 3))).exponents.sum()

    np.testing.assert_allclose(jax.grad(total)(params).w_h, np.linalg.inv(W).T, atol=1e-12)


# --- gates


def test_gates_of_a_loop() -> None:
    cell, xs = rnn.lstm(D, H), 3.0 * random_inputs("lstm", 9)
    params = random_params(cell)
    mask = jnp.arange(9) != 5
    reset = jnp.arange(9) == 6

    def gates(params: Any, state: Any, z: Any) -> Any:
        i, f, _, o = jnp.split(jax.nn.sigmoid(z + state.h @ params.w_h), 4)
        return {"i": i, "rest": (f, o)}

    holes = jnp.where(mask[:, None], xs, jnp.nan)
    got = diag.gate_saturation(
        cell, gates, params, None, holes, mask=mask, reset=reset, margin=0.25
    )
    state, seen = cell.init_state(params), []
    for t in np.flatnonzero(mask):
        state = cell.init_state(params) if reset[t] else state
        z = cell.project(params, xs[t])
        seen.append(gates(params, state, z))
        state, _ = cell.step(params, state, z)
    together = jax.tree.map(lambda *a: np.stack(a), *seen)
    assert_close(got.shut, jax.tree.map(lambda a: jnp.asarray((a < 0.25).mean(0)), together))
    assert_close(got.open, jax.tree.map(lambda a: jnp.asarray((a > 0.75).mean(0)), together))
    assert len({float(a) for a in np.ravel(jax.tree.leaves(got))}) > 4


# --- estimates


def noisy(params: Any, state: Any, xs: Any, targets: Any, *, mask: Any = None, key: Any) -> Any:
    """A gradient (3, 4) of "a" and 0 of "b", estimated with a bias and Gaussian noise."""
    noise = jax.random.normal(key, (2,), float)
    grads = {"a": jnp.array([3.5, 4.0]) + 0.2 * noise, "b": jnp.array([[0.0]])}
    return (jnp.zeros(()), state), grads


def exact(params: Any, state: Any, xs: Any, targets: Any, *, mask: Any = None, key: Any) -> Any:
    assert key is None
    return (jnp.zeros(()), state), {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[0.0]])}


def test_compare_finds_a_known_bias_and_variance() -> None:
    K = 2000
    got = diag.compare(noisy, exact, {}, None, None, None, jax.random.split(key(0), K))
    a = got.params["a"]
    variance = 2 * 0.2**2
    assert float(a.norm) == 5
    np.testing.assert_allclose(a.variance, variance, rtol=5 / K**0.5)  # its own error: 1 / sqrt(K)
    np.testing.assert_allclose(a.bias_error, (a.variance / K) ** 0.5, rtol=1e-12)
    np.testing.assert_allclose(a.bias, 0.5, atol=5 * 0.2 / K**0.5)
    cosine = (3 * 3.5 + 16) / (5 * np.hypot(3.5, 4))
    np.testing.assert_allclose(a.cosine, cosine, atol=5 * float(a.cosine_error) + 1e-3)
    np.testing.assert_allclose(a.norm_ratio, np.hypot(3.5, 4) / 5, atol=5 * 0.2 / 5 / K**0.5 + 1e-3)
    np.testing.assert_allclose(a.norm_ratio_error, 0.2 / 5 / K**0.5, rtol=0.1)
    assert jnp.isnan(got.params["b"].cosine)
    assert_close(got.whole, a, atol=1e-12)


def test_compare_exact_with_itself() -> None:
    cell, params, xs, targets = problem("elman")
    algorithm = gradients.bptt(cell, loss)
    keys = jax.random.split(key(0), 3)
    mask = rnn.length_mask(4, T)
    got = diag.compare(algorithm, algorithm, params, None, xs, targets, keys, mask=mask)
    everyone = [got.whole, *jax.tree.leaves(got.params, is_leaf=lambda a: hasattr(a, "cosine"))]
    assert len(everyone) == 1 + len(jax.tree.leaves(params))
    for a in everyone:
        assert float(a.bias) < 1e-12 * float(a.norm)
        assert float(a.variance) < 1e-24 * float(a.norm) ** 2
        np.testing.assert_allclose([a.cosine, a.norm_ratio], 1.0, rtol=1e-12)
    grads = algorithm(params, None, xs, targets, mask=mask)[1]
    np.testing.assert_allclose(got.whole.norm, jnp.linalg.norm(ravel_pytree(grads)[0]), rtol=1e-12)


def test_compare_shows_the_bias_of_truncation() -> None:
    cell, params, xs, targets = problem("lstm")
    cut, whole = gradients.truncated_bptt(cell, loss, 1, 2), gradients.bptt(cell, loss)
    keys = jax.random.split(key(0), 2)
    got = diag.compare(cut, whole, params, None, xs, targets, keys)
    missing = jax.tree.map(lambda a: -a[2:].sum(0), by_lag(cell, loss, params, None, xs, targets))
    for agreement, expected in zip(got.params, missing, strict=True):
        if agreement is not None:
            np.testing.assert_allclose(agreement.bias, jnp.linalg.norm(expected), rtol=1e-10)
            assert float(agreement.bias) > 1e-3 * float(agreement.norm)
            assert float(agreement.cosine) < 1 - 1e-6
    lines = str(got).splitlines()
    assert [line.split()[0] for line in lines] == ["norm", ".w_x", ".w_h", ".b", "all"]
    assert len({len(line) for line in lines}) == 1


def test_an_exact_algorithm_is_so_at_every_lag() -> None:
    """With holes, an episode that begins inside, and a learned initial state."""
    cell, params, xs, targets = problem("user")
    mask = jnp.array([False, True, True, False, True, True])
    reset = jnp.array([False, False, False, True, False, True])
    keys = jax.random.split(key(0), 2)
    for flags in ({}, {"mask": mask, "reset": reset}):
        got = diag.compare_by_lag(
            gradients.rtrl, cell, loss, params, None, xs, targets, keys, **flags
        )
        reference = by_lag(cell, loss, params, None, xs, targets, **flags)
        lengths = [jnp.linalg.norm(ravel_pytree(g)[0]) for g in unstacked(reference)]
        np.testing.assert_allclose(got.whole.norm, jnp.stack(lengths), rtol=1e-12)
        there = np.asarray(got.whole.norm) > 0
        assert there.tolist() == [True] * 6 if not flags else [True] * 3 + [False] * 3
        assert float(got.whole.bias.max()) < 1e-12 * float(got.whole.norm[0])
        np.testing.assert_allclose(got.whole.norm_ratio[there], 1.0, rtol=1e-10)


def unstacked(tree: Any) -> list[Any]:
    return [jax.tree.map(lambda a, k=k: a[k], tree) for k in range(len(jax.tree.leaves(tree)[0]))]


def test_lags_that_truncation_leaves_out() -> None:
    cell, params, xs, targets = problem("elman")
    keys = jax.random.split(key(0), 2)

    def cut(cell: rnn.Cell, loss: Any) -> Any:
        return gradients.truncated_bptt(cell, loss, 1, 2)

    got = diag.compare_by_lag(cut, cell, loss, params, None, xs, targets, keys)
    for a in (got.whole, *jax.tree.leaves(got.params, is_leaf=lambda a: hasattr(a, "bias"))):
        np.testing.assert_allclose(a.bias[:2], 0.0, atol=1e-12)
        np.testing.assert_allclose(a.bias[2:], a.norm[2:], rtol=1e-10)
    np.testing.assert_allclose(got.whole.norm_ratio[2:], 0.0, atol=1e-10)
    lines = str(got).splitlines()
    assert lines[0].split() == ["lag", "norm", ".w_x", ".w_h", ".b", "all"]
    assert [line.split()[0] for line in lines[1:]] == [str(k) for k in range(T)]
    assert [line.split()[-1] for line in lines[1:]] == ["0.000"] * 2 + ["1.000"] * (T - 2)


def test_lags_of_a_gradient_that_is_cut_by_hand() -> None:
    """The difference of two exact ones: of the cell, and of that with a constant h in its gates."""
    cell, params, xs, targets = problem("lstm")

    def step(params: Any, state: Any, z: Any) -> Any:
        return cell.step(params, state._replace(h=jax.lax.stop_gradient(state.h)), z)

    sequence = loss, params, None, xs, targets
    keys = jax.random.split(key(0), 2)
    got = diag.compare_by_lag(gradients.lstm_1997, cell, *sequence, keys)
    with_cut, whole = (by_lag(c, *sequence) for c in (cell._replace(step=step), cell))
    for a, p, q in zip(got.params, with_cut, whole, strict=True):
        if a is not None:
            expected = jnp.linalg.norm((p - q).reshape(T, -1), axis=1)
            np.testing.assert_allclose(a.bias, expected, rtol=1e-10, atol=1e-12)
            assert float(a.bias[1]) > 1e-3 * float(a.norm[1])


def test_an_unbiased_algorithm_is_so_at_every_lag() -> None:
    cell, params, xs, targets = problem("elman")
    keys = jax.random.split(key(0), 100)
    got = diag.compare_by_lag(
        gradients.uoro, cell, loss, params, None, xs[:4], targets[:4], keys
    ).whole
    assert float(got.bias[0]) < 1e-12
    assert float(got.variance[0]) < 1e-24
    assert (got.variance[1:] > 1e-6).all()
    assert (got.bias[1:] < 1.5 * got.bias_error[1:]).all()


def test_noise_scale_of_known_gradients() -> None:
    """Gaussian gradients with a known mean and covariance: both estimates have no bias."""
    B, draws = 8, 3000
    mean, spread = np.array([1.0, -0.5, 0.3]), np.array([0.5, 2.0, 0.1])
    noise = jax.random.normal(key(0), (draws, B, 3), float)
    g = np.asarray(noise) * spread + mean
    got = jax.jit(jax.vmap(diag.noise_scale))({"w": g[..., :2], "b": g[..., 2:]})
    for values, expected in ((got.noise, (spread**2).sum()), (got.signal, (mean**2).sum())):
        error = values.std() / draws**0.5
        assert abs(values.mean() - expected) < 5 * error
        assert error < 0.05 * expected
    assert_close(got.scale, got.noise / got.signal)
    assert_close(got.snr, got.signal / got.noise)
    expected = np.cov(g[0].T).trace()
    np.testing.assert_allclose(got.noise[0], expected, rtol=1e-12)


# --- Pascanu's regularizer


def test_regularizer_is_the_formula() -> None:
    """Omega of a tanh net in NumPy with h_{t-1} and lam constant, and finite differences of it."""
    cell = rnn.elman(3, 4)
    params, xs = random_params(cell), random_inputs("elman", T)
    targets = jax.random.normal(key(2), (T, 4), float)
    lam, _, _ = backward(cell, lambda p, h, x: h, params, xs, targets)
    _, hs = rnn.unroll(cell, params, None, xs)
    before, lam = np.concatenate([np.zeros((1, 4)), hs[:-1]]), np.asarray(lam)

    def formula(params: Any) -> float:
        h = np.tanh(xs @ params.w_x + before @ params.w_h + params.b[None])
        back = (lam * (1 - h**2)) @ params.w_h.T
        ratio = np.linalg.norm(back, axis=1) / np.linalg.norm(lam, axis=1)
        return float(np.sum((ratio - 1) ** 2))

    def omega(params: Any) -> jax.Array:
        return pascanu(cell, loss, params, None, xs, targets)

    value, grads = jax.jit(jax.value_and_grad(omega))(params)
    np.testing.assert_allclose(value, formula(params), rtol=1e-12)
    vector, back = ravel_pytree(params)
    eps = 1e-6 * np.eye(vector.size)
    slopes = [(formula(back(vector + e)) - formula(back(vector - e))) / 2e-6 for e in eps]
    np.testing.assert_allclose(ravel_pytree(grads)[0], slopes, atol=1e-7)


def test_regularizer_of_the_paper() -> None:
    """State x_t = W tanh(x_{t-1}) + u_t: D_t = W diag(1 - tanh(x_{t-1})^2), and equation 10."""
    n = 3

    def step(params: Any, x: jax.Array, z: jax.Array) -> Any:
        x = params["W"] @ jnp.tanh(x) + z + params["b"]
        return x, jnp.tanh(x)

    W = jax.random.normal(key(0), (n, n), float)
    params = {"W": W, "b": jnp.array([0.2, -0.1, 0.4])}
    cell = rnn.Cell(lambda key: params, lambda p: jnp.zeros(n), lambda p, u: u, step)
    us = jax.random.normal(key(1), (T, n), float)
    targets = jax.random.normal(key(2), (T, n), float)
    lam, _, _ = backward(cell, lambda p, x, u: jnp.tanh(x), params, us, targets)
    xs = [np.zeros(n)]
    for u in us[:-1]:
        xs.append(W @ np.tanh(xs[-1]) + u + params["b"])
    xs = np.stack(xs)
    slope, lam = 1 - np.tanh(xs) ** 2, np.asarray(lam)
    back = (lam @ W) * slope
    ratio = np.linalg.norm(back, axis=1) / np.linalg.norm(lam, axis=1)
    factor = 2 * (ratio - 1) / np.linalg.norm(back, axis=1) / np.linalg.norm(lam, axis=1)
    expected = np.einsum("t,ti,tj->ij", factor, lam, back * slope)

    def omega(params: Any) -> jax.Array:
        return pascanu(cell, loss, params, None, us, targets)

    value, grads = jax.jit(jax.value_and_grad(omega))(params)
    np.testing.assert_allclose(value, np.sum((ratio - 1) ** 2), rtol=1e-12)
    np.testing.assert_allclose(grads["W"], expected, atol=1e-12)
    assert not grads["b"].any()


def test_regularizer_counts_steps_with_a_gradient() -> None:
    """h' = a h: (|a| - 1)^2 for each valid step up to the last loss; NaN nowhere."""
    cell, params = scalar(0.7)
    mask = jnp.array([True, False, True, True, True, True])
    reset = jnp.array([False, False, False, True, False, False])
    weights = jnp.array([1.0, jnp.nan, 1.0, 1.0, 1e-30, 0.0])
    xs = jnp.where(mask, 1.0, jnp.nan)[:, None]

    def omega(params: Any) -> jax.Array:
        return pascanu(cell, weighted, params, None, xs, weights, mask=mask, reset=reset)

    value, grads = jax.jit(jax.value_and_grad(omega))(params)
    np.testing.assert_allclose(value, 3 * 0.3**2, rtol=1e-12)  # steps 0, 2 and 4
    np.testing.assert_allclose(grads.w_h, [[3 * 2 * -0.3]], rtol=1e-12)


# --- mistakes


def test_bad_arguments() -> None:
    cell, params, xs, targets = problem("gru")
    with pytest.raises(ValueError, match="mask: got shape"):
        diag.jacobians(cell, params, None, xs, mask=jnp.ones(T + 1, bool))
    with pytest.raises(TypeError, match="reset: got dtype"):
        diag.gradient_flow(cell, loss, params, None, xs, targets, reset=jnp.ones(T))
    with pytest.raises(ValueError, match="k: got 5, expected at most 4"):
        diag.lyapunov_exponents(cell, params, None, xs, k=H + 1)
    with pytest.raises(ValueError, match="warmup: got 6 with T = 6"):
        diag.lyapunov_exponents(cell, params, None, xs, warmup=T)
    with pytest.raises(ValueError, match="margin: got"):
        diag.gate_saturation(cell, lambda *_: xs, params, None, xs, margin=0.5)
    with pytest.raises(ValueError, match="fraction: got 95"):
        diag.memory_horizon(jnp.ones(3), 95)
    with pytest.raises(ValueError, match="by_lag: got shape"):
        diag.memory_horizon(jnp.ones((3, 0)))
    with pytest.raises(ValueError, match=r"jacobians: got shape \(2, 3\)"):
        diag.singular_values(jnp.ones((2, 3)))
    algorithm = gradients.bptt(cell, loss)
    with pytest.raises(ValueError, match=r"keys: got shape \(1,\)"):
        diag.compare(algorithm, algorithm, params, None, xs, targets, key(0)[None])
    with pytest.raises(ValueError, match=r"keys: got shape \(\)"):
        diag.compare_by_lag(gradients.bptt, cell, loss, params, None, xs, targets, key(0))
    keys = jax.random.split(key(0), 2)
    with pytest.raises(TypeError, match="expected what makes an algorithm"):
        diag.compare_by_lag(algorithm, cell, loss, params, None, xs, targets, keys)
    with pytest.raises(ValueError, match="grads: got leading axes"):
        diag.noise_scale({"w": jnp.ones((1, 2))})
