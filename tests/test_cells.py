"""Every cell against a NumPy loop, finite differences and its own promises about `init`.

The NumPy steps are written gate by gate from the published equations, with one matrix a gate;
they share nothing with the package but the names of the fields of the params.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace as Weights
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import rnn_jax
from rnn_jax import initializers

Key = jax.Array


# --- the equations, one step at a time in NumPy ---------------------------------------------


def sigma(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def normal(*parts: Any) -> Any:
    """Mean 0 and variance 1 over all the parts together."""
    a = np.concatenate(parts)
    return np.split((a - np.mean(a)) / np.sqrt(np.var(a) + 1e-5), len(parts))


def elman_step(w: Weights, h: Any, x: Any, f: Callable = np.tanh) -> tuple[Any, Any]:
    h = f(x @ w.x + h @ w.h + w.b)
    return h, h


def lstm_step(w: Weights, state: Any, x: Any) -> tuple[Any, Any]:
    h, c = state
    i = sigma(x @ w.xi + h @ w.hi + w.pi * c + w.bi)
    f = sigma(x @ w.xf + h @ w.hf + w.pf * c + w.bf)
    g = np.tanh(x @ w.xg + h @ w.hg + w.bg)
    c = f * c + i * g
    o = sigma(x @ w.xo + h @ w.ho + w.po * c + w.bo)
    h = o * np.tanh(c)
    return rnn_jax.LSTMState(h=h, c=c), h


def gru_step(w: Weights, h: Any, x: Any) -> tuple[Any, Any]:
    r = sigma(x @ w.xr + h @ w.hr + w.br)
    z = sigma(x @ w.xz + h @ w.hz + w.bz)
    n = np.tanh(x @ w.xn + (r * h) @ w.hn + w.bn)
    h = z * h + (1 - z) * n
    return h, h


def gru_reset_after_step(w: Weights, h: Any, x: Any) -> tuple[Any, Any]:
    r = sigma(x @ w.xr + h @ w.hr + w.br)
    z = sigma(x @ w.xz + h @ w.hz + w.bz)
    n = np.tanh(x @ w.xn + r * (h @ w.hn + w.bhn) + w.bn)
    h = z * h + (1 - z) * n
    return h, h


def layer_norm_elman_step(w: Weights, h: Any, x: Any, f: Callable = np.tanh) -> tuple[Any, Any]:
    (a,) = normal(x @ w.x + h @ w.h)
    h = f(w.gain * a + w.b)
    return h, h


def layer_norm_lstm_step(w: Weights, state: Any, x: Any) -> tuple[Any, Any]:
    h, c = state
    xi, xf, xg, xo = normal(x @ w.xi, x @ w.xf, x @ w.xg, x @ w.xo)
    hi, hf, hg, ho = normal(h @ w.hi, h @ w.hf, h @ w.hg, h @ w.ho)
    i = sigma(w.gxi * xi + w.ghi * hi + w.bi)
    f = sigma(w.gxf * xf + w.ghf * hf + w.bf)
    g = np.tanh(w.gxg * xg + w.ghg * hg + w.bg)
    o = sigma(w.gxo * xo + w.gho * ho + w.bo)
    c = f * c + i * g
    (memory,) = normal(c)
    h = o * np.tanh(w.gc * memory + w.bc)
    return rnn_jax.LSTMState(h=h, c=c), h


def layer_norm_gru_step(w: Weights, h: Any, x: Any) -> tuple[Any, Any]:
    (xr, xz), (xn,) = normal(x @ w.xr, x @ w.xz), normal(x @ w.xn)
    (hr, hz), (hn,) = normal(h @ w.hr, h @ w.hz), normal(h @ w.hn)
    r = sigma(w.gxr * xr + w.ghr * hr + w.br)
    z = sigma(w.gxz * xz + w.ghz * hz + w.bz)
    n = np.tanh(w.gxn * xn + w.bn + r * (w.ghn * hn + w.bhn))
    h = z * h + (1 - z) * n
    return h, h


# --- the same weights in the layout of the package ------------------------------------------


def beside(w: Weights, names: str) -> Any:
    return np.concatenate([getattr(w, name) for name in names.split()], axis=-1)


def elman_params(w: Weights, bias: bool = True) -> Any:
    return rnn_jax.ElmanParams(w_x=w.x, w_h=w.h, b=w.b if bias else None)


def lstm_params(w: Weights, bias: bool = True, peepholes: bool = False) -> Any:
    return rnn_jax.LSTMParams(
        w_x=beside(w, "xi xf xg xo"),
        w_h=beside(w, "hi hf hg ho"),
        b=beside(w, "bi bf bg bo") if bias else None,
        w_c=np.stack([w.pi, w.pf, w.po]) if peepholes else None,
    )


def gru_params(w: Weights, bias: bool = True, after: bool = False) -> Any:
    return rnn_jax.GRUParams(
        w_x=beside(w, "xr xz xn"),
        w_h=beside(w, "hr hz hn"),
        b=beside(w, "br bz bn") if bias else None,
        b_n=w.bhn if bias and after else None,
    )


def layer_norm_elman_params(w: Weights) -> Any:
    return rnn_jax.LayerNormElmanParams(w_x=w.x, w_h=w.h, gain=w.gain, b=w.b)


def layer_norm_lstm_params(w: Weights) -> Any:
    return rnn_jax.LayerNormLSTMParams(
        w_x=beside(w, "xi xf xg xo"),
        w_h=beside(w, "hi hf hg ho"),
        b=beside(w, "bi bf bg bo"),
        gain_x=beside(w, "gxi gxf gxg gxo"),
        gain_h=beside(w, "ghi ghf ghg gho"),
        gain_c=w.gc,
        b_c=w.bc,
    )


def layer_norm_gru_params(w: Weights) -> Any:
    return rnn_jax.LayerNormGRUParams(
        w_x=beside(w, "xr xz xn"),
        w_h=beside(w, "hr hz hn"),
        b=beside(w, "br bz bn"),
        b_n=w.bhn,
        gain_x=beside(w, "gxr gxz gxn"),
        gain_h=beside(w, "ghr ghz ghn"),
    )


# --- the cases ------------------------------------------------------------------------------


class Case(NamedTuple):
    """A cell, and how its weights are drawn, laid out and used in NumPy."""

    make: Callable[..., rnn_jax.Cell]
    step: Callable  # (weights, state, x) -> (state, y)
    params: Callable  # (weights) -> params
    matrices: str  # names of [D, H] matrices, x..., and [H, H] matrices, h...
    vectors: str  # names of [H] vectors
    absent: str = ""  # names of vectors that are zero in the equations and not in the params

    @property
    def memory(self) -> bool:  # whether the state is (h, c)
        return "i" in self.matrices


def _bend(a: Any) -> Any:  # neither odd, nor even, nor monotone; for NumPy and for JAX
    return a / (1 + a * a) + 0.3 * a * a


_ELMAN = ("x h", "b")
_LSTM = ("xi xf xg xo hi hf hg ho", "bi bf bg bo pi pf po")
_GRU = ("xr xz xn hr hz hn", "br bz bn")
_PEEP = partial(rnn_jax.lstm, peepholes=True)
_relu_step = partial(elman_step, f=lambda a: np.maximum(a, 0))
_linear_step = partial(elman_step, f=lambda a: a)

CASES = {
    "elman": Case(rnn_jax.elman, elman_step, elman_params, *_ELMAN),
    "elman relu": Case(
        partial(rnn_jax.elman, activation=jax.nn.relu), _relu_step, elman_params, *_ELMAN
    ),
    "elman identity": Case(
        partial(rnn_jax.elman, activation=jax.nn.identity), _linear_step, elman_params, *_ELMAN
    ),
    "elman own activation": Case(
        partial(rnn_jax.elman, activation=_bend),
        partial(elman_step, f=_bend),
        elman_params,
        *_ELMAN,
    ),
    "elman without bias": Case(
        partial(rnn_jax.elman, bias=False),
        elman_step,
        partial(elman_params, bias=False),
        *_ELMAN,
        absent="b",
    ),
    "lstm": Case(rnn_jax.lstm, lstm_step, lstm_params, *_LSTM, absent="pi pf po"),
    "lstm without bias": Case(
        partial(rnn_jax.lstm, bias=False),
        lstm_step,
        partial(lstm_params, bias=False),
        *_LSTM,
        absent="bi bf bg bo pi pf po",
    ),
    "lstm peepholes": Case(_PEEP, lstm_step, partial(lstm_params, peepholes=True), *_LSTM),
    "lstm peepholes without bias": Case(
        partial(_PEEP, bias=False),
        lstm_step,
        partial(lstm_params, bias=False, peepholes=True),
        *_LSTM,
        absent="bi bf bg bo",
    ),
    "gru": Case(rnn_jax.gru, gru_step, gru_params, *_GRU),
    "gru without bias": Case(
        partial(rnn_jax.gru, bias=False),
        gru_step,
        partial(gru_params, bias=False),
        *_GRU,
        absent="br bz bn",
    ),
    "gru_reset_after": Case(
        rnn_jax.gru_reset_after,
        gru_reset_after_step,
        partial(gru_params, after=True),
        _GRU[0],
        _GRU[1] + " bhn",
    ),
    "gru_reset_after without bias": Case(
        partial(rnn_jax.gru_reset_after, bias=False),
        gru_reset_after_step,
        partial(gru_params, bias=False, after=True),
        _GRU[0],
        _GRU[1] + " bhn",
        absent="br bz bn bhn",
    ),
    "layer_norm_elman": Case(
        rnn_jax.layer_norm_elman,
        layer_norm_elman_step,
        layer_norm_elman_params,
        "x h",
        "gain b",
    ),
    "layer_norm_elman own activation": Case(
        partial(rnn_jax.layer_norm_elman, activation=_bend),
        partial(layer_norm_elman_step, f=_bend),
        layer_norm_elman_params,
        "x h",
        "gain b",
    ),
    "layer_norm_lstm": Case(
        rnn_jax.layer_norm_lstm,
        layer_norm_lstm_step,
        layer_norm_lstm_params,
        _LSTM[0],
        "bi bf bg bo gxi gxf gxg gxo ghi ghf ghg gho gc bc",
    ),
    "layer_norm_gru": Case(
        rnn_jax.layer_norm_gru,
        layer_norm_gru_step,
        layer_norm_gru_params,
        _GRU[0],
        "br bz bn bhn gxr gxz gxn ghr ghz ghn",
    ),
}

every_case = pytest.mark.parametrize("name", CASES)
every_cell = pytest.mark.parametrize("name", rnn_jax.ALL_CELLS)


def draw(case: Case, T: int, D: int, H: int, seed: int) -> tuple[Weights, Any, Any]:
    """Random weights, a random initial state and random inputs; nothing is zero or one."""
    rng = np.random.default_rng(seed)
    w = Weights()
    for name in case.matrices.split():
        rows = D if name[0] == "x" else H
        setattr(w, name, rng.normal(size=(rows, H)) / np.sqrt(rows))
    for name in case.vectors.split():
        absent = name in case.absent.split()
        setattr(w, name, np.zeros(H) if absent else rng.normal(size=H))
    state = rng.normal(size=H)
    if case.memory:
        state = rnn_jax.LSTMState(h=state, c=rng.normal(size=H))
    return w, state, rng.normal(size=(T, D))


def to_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    """Same structure, shapes and, within the tolerance, values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, strict=True)


@every_case
@pytest.mark.usefixtures("x64")
def test_equals_numpy_loop(name: str) -> None:
    case = CASES[name]
    w, state, xs = draw(case, T=7, D=3, H=5, seed=0)
    cell, params = case.make(3, 5), to_jax(case.params(w))
    got = jax.jit(partial(rnn_jax.unroll, cell))(params, to_jax(state), jnp.asarray(xs))
    ys = []
    for x in xs:
        state, y = case.step(w, state, x)
        ys.append(y)
    assert_close(got, (state, np.stack(ys)), 1e-12)


# --- init -----------------------------------------------------------------------------------

DTYPES = {jnp.bfloat16: 3e-2, jnp.float32: 1e-5, jnp.float64: 1e-12}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


def key(seed: int = 0) -> Key:
    return jax.random.key(seed)


def blocks(w: Any) -> list[Any]:
    """The [rows, H] blocks of the gates, from the recurrent or from the input weights."""
    return np.split(np.asarray(w, np.float64), w.shape[1] // HIDDEN, axis=1)


HIDDEN = 5
GATES = {"elman": 1, "lstm": 4, "gru": 3, "gru_reset_after": 3}
GATES |= {f"layer_norm_{name}": gates for name, gates in list(GATES.items())[:3]}


@every_case
@every_dtype
@pytest.mark.usefixtures("x64")
def test_dtypes_and_shapes(name: str, dtype: Any) -> None:
    case = CASES[name]
    w, state, xs = draw(case, T=1, D=3, H=HIDDEN, seed=0)
    cell = case.make(3, HIDDEN, dtype=dtype)
    given, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (case.params(w), xs[0]))
    initial = cell.init_state(given)
    drawn = jax.eval_shape(cell.init, key())
    new, y = jax.eval_shape(lambda p, s, x: cell.step(p, s, cell.project(p, x)), given, initial, x)
    for got, expected in [(drawn, given), (initial, state), (new, state), (y, np.zeros(HIDDEN))]:
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    assert not any(leaf.any() for leaf in jax.tree.leaves(initial))


@every_cell
@every_dtype
@pytest.mark.usefixtures("x64")
def test_each_recurrent_block_is_orthogonal(name: str, dtype: Any) -> None:
    params = rnn_jax.ALL_CELLS[name](3, HIDDEN, dtype=dtype).init(key())
    gates = blocks(params.w_h)
    assert len(gates) == GATES[name]
    for w in gates:
        np.testing.assert_allclose(w @ w.T, np.eye(HIDDEN), atol=DTYPES[dtype])


@every_cell
def test_input_weights_have_the_glorot_range_of_one_gate(name: str) -> None:
    D, H = 90, 60
    params = rnn_jax.ALL_CELLS[name](D, H).init(key())
    limit = np.sqrt(6 / (D + H))
    for w in np.split(np.asarray(params.w_x), GATES[name], axis=1):
        assert 0.99 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
        assert abs(w.mean()) < 4 * limit / np.sqrt(3 * w.size)  # four standard errors
        np.testing.assert_allclose(w.var(), limit**2 / 3, rtol=0.05)


@every_cell
def test_every_block_is_drawn_on_its_own(name: str) -> None:
    normal = jax.nn.initializers.normal()
    cell = rnn_jax.ALL_CELLS[name](HIDDEN, HIDDEN, w_x_init=normal, w_h_init=normal, b_init=normal)
    params, other = cell.init(key()), cell.init(key(1))
    drawn = [*blocks(params.w_x), *blocks(params.w_h), *blocks(other.w_x), *blocks(other.w_h)]
    numbers = np.concatenate([np.ravel(a) for a in [*drawn, params.b, other.b]]).round(6)
    assert len(set(numbers)) > 0.99 * numbers.size


@every_cell
def test_initializers_reach_their_params(name: str) -> None:
    constant = jax.nn.initializers.constant
    cell = rnn_jax.ALL_CELLS[name](
        3, HIDDEN, w_x_init=constant(2.0), w_h_init=constant(3.0), b_init=constant(4.0)
    )
    params = cell.init(key())
    values = {field: set(np.ravel(leaf)) for field, leaf in _fields(params).items()}
    assert (values["w_x"], values["w_h"], values["b"]) == ({2.0}, {3.0}, {4.0})
    for field in values.keys() - {"w_x", "w_h", "b"}:
        assert values[field] == {1.0 if "gain" in field else 0.0}, field


@every_cell
def test_biases_start_at_zero_but_for_the_forget_gate(name: str) -> None:
    params = rnn_jax.ALL_CELLS[name](3, HIDDEN).init(key())
    expected = np.zeros((GATES[name], HIDDEN), np.float32)
    if "lstm" in name:
        expected[1] = 1
    np.testing.assert_array_equal(params.b.reshape(expected.shape), expected)


def test_peepholes_start_at_zero() -> None:
    w_c = rnn_jax.lstm(3, HIDDEN, peepholes=True).init(key()).w_c
    np.testing.assert_array_equal(w_c, np.zeros((3, HIDDEN), np.float32), strict=True)


def _fields(params: Any) -> dict[str, Any]:
    return {field: leaf for field, leaf in params._asdict().items() if leaf is not None}


# --- initializers ---------------------------------------------------------------------------


@every_dtype
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_orthogonal_has_the_singular_values_of_its_scale(shape: tuple, dtype: Any) -> None:
    w = initializers.orthogonal(1.5)(key(), shape, dtype)
    assert (w.shape, w.dtype) == (shape, dtype)
    values = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    np.testing.assert_allclose(values, 1.5, atol=2 * DTYPES[dtype])


def test_identity_of_every_gate() -> None:
    params = rnn_jax.lstm(3, HIDDEN, w_h_init=initializers.identity(0.5)).init(key())
    for w in blocks(params.w_h):
        np.testing.assert_array_equal(w, 0.5 * np.eye(HIDDEN))


@every_dtype
@pytest.mark.usefixtures("x64")
def test_forget_bias_is_that_of_f(dtype: Any) -> None:
    b = rnn_jax.lstm(3, HIDDEN, b_init=initializers.forget_bias(2.5), dtype=dtype).init(key()).b
    expected = np.concatenate([np.full(HIDDEN, gate) for gate in [0.0, 2.5, 0.0, 0.0]])
    np.testing.assert_array_equal(b, expected.astype(dtype), strict=True)


@every_dtype
@pytest.mark.usefixtures("x64")
def test_chrono_spreads_the_lags_evenly(dtype: Any) -> None:
    H, max_lag = 4000, 80
    b = initializers.chrono(max_lag)(key(), (4 * H,), dtype)
    assert b.dtype == dtype
    i, f, g, o = np.split(np.asarray(b, np.float64), 4)
    np.testing.assert_array_equal(i, -f)
    assert not g.any()
    assert not o.any()
    lags = np.exp(f)  # U(1, max_lag - 1)
    width, rounding = max_lag - 2, 1 + DTYPES[dtype]
    assert lags.min() >= 1
    assert 0.97 * (max_lag - 1) < lags.max() <= (max_lag - 1) * rounding
    error = 4 * width / np.sqrt(12 * H)  # four standard errors
    assert abs(lags.mean() - max_lag / 2) < error
    np.testing.assert_allclose(lags.std(), width / np.sqrt(12), rtol=0.04)
    assert len(set(lags)) > 128  # the bfloat16 numbers of a uniform draw between 0 and 1


def test_chrono_bias_of_a_cell() -> None:
    b = rnn_jax.lstm(3, HIDDEN, b_init=initializers.chrono(80)).init(key()).b
    i, f, g, o = np.split(np.asarray(b), 4)
    assert (f > 0).all()
    np.testing.assert_array_equal([i, g, o], [-f, 0 * f, 0 * f])


# --- errors ---------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("size", [0, -1, 2.5, True, "3", None, (3,)])
@pytest.mark.parametrize("argument", ["input_size", "hidden_size"])
def test_nonsense_sizes(name: str, argument: str, size: Any) -> None:
    sizes = {"input_size": 3, "hidden_size": 4} | {argument: size}
    with pytest.raises((TypeError, ValueError)) as error:
        rnn_jax.ALL_CELLS[name](**sizes)
    assert str(error.value) == f"{argument}: got {size!r}, expected a positive integer"


@every_cell
def test_whole_numbers_of_other_kinds_are_sizes(name: str) -> None:
    cell = rnn_jax.ALL_CELLS[name](np.int64(3), jnp.int32(HIDDEN))
    assert cell.init(key()).w_x.shape == (3, GATES[name] * HIDDEN)


@every_cell
@pytest.mark.parametrize("shape", [(2,), (4,), (), (1, 3), (7, 3)])
def test_input_of_the_wrong_shape(name: str, shape: tuple) -> None:
    cell = rnn_jax.ALL_CELLS[name](3, HIDDEN)
    params = cell.init(key())
    with pytest.raises(ValueError, match=r"^x: got .* shape ") as error:
        cell.project(params, jnp.ones(shape))
    assert f"shape {shape}, expected (3,), the input_size" in str(error.value)


@every_cell
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float16, jnp.bfloat16, jnp.bool_])
def test_input_of_the_wrong_dtype(name: str, dtype: Any) -> None:
    cell = rnn_jax.ALL_CELLS[name](3, HIDDEN)
    params = cell.init(key())
    got = jnp.dtype(dtype)
    with pytest.raises(TypeError, match=f"^x: got dtype {got}, expected float32, the dtype"):
        cell.project(params, jnp.ones(3, dtype))


@pytest.mark.parametrize("max_lag", [2, 1, 0, -5, 9.5, float("nan"), "9", True])
def test_chrono_of_nonsense(max_lag: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^max_lag: got .*, expected "):
        initializers.chrono(max_lag)


@pytest.mark.parametrize("initializer", [initializers.forget_bias(), initializers.chrono(9)])
@pytest.mark.parametrize("shape", [(10,), (4, 4)])
def test_lstm_bias_of_another_shape(initializer: Any, shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"^shape: got .*, expected \(4H,\)"):
        initializer(key(), shape, jnp.float32)


def test_gates_that_do_not_share_the_columns() -> None:
    with pytest.raises(ValueError, match=r"^shape: got \(3, 10\), expected a multiple of 4"):
        initializers.per_gate(initializers.orthogonal(), 4)(key(), (3, 10), jnp.float32)


# --- derivatives, the slowest ----------------------------------------------------------------


@every_case
@pytest.mark.usefixtures("x64")
def test_derivatives_of_a_step_equal_finite_differences(name: str) -> None:
    case, cell = CASES[name], CASES[name].make(2, 3)
    w, state, xs = draw(case, T=1, D=2, H=3, seed=1)
    _, *weights = draw(case, T=1, D=3, H=3, seed=2)

    def loss(params: Any, state: Any, x: Any) -> Any:
        outputs = cell.step(params, state, cell.project(params, x))
        return sum(
            map(jnp.dot, jax.tree.leaves(outputs), jax.tree.leaves((weights[0], weights[1][0])))
        )

    with jax.disable_jit():  # compiling costs far more here than running
        check_grads(loss, to_jax((case.params(w), state, xs[0])), order=2, modes=("fwd", "rev"))
