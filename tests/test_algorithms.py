"""What holds for every gradient algorithm: masks, resets, batches, streams; and what is exact."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, D, H, key, random_inputs, random_params
from test_gradients import loss, problem

import rnn_jax as rnn
from rnn_jax import gradients
from rnn_jax.gradients import REGISTER

T = 5
pytestmark = pytest.mark.usefixtures("x64")
ANY_CELL = {
    name: functools.partial(entry.algorithm, **entry.options)
    for name, entry in REGISTER.items()
    if name not in ("implicit", "elementwise_rtrl")
} | {"chunks": functools.partial(gradients.truncated_bptt, k1=2, k2=2)}
ONLINE = [name for name, entry in REGISTER.items() if entry.online and name != "elementwise_rtrl"]
DRAWS = ("uoro", "kf_rtrl", "ok", "forward_gradient", "artbp", "randomized_telescope")
every_algorithm = pytest.mark.parametrize("name", ANY_CELL)
every_online = pytest.mark.parametrize("name", ONLINE)


def flat(tree: Any) -> np.ndarray:
    """All numbers but PRNG keys."""
    numbers = [a for a in jax.tree.leaves(tree) if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]
    return np.concatenate([np.asarray(a).ravel() for a in numbers])


def distance(a: Any, b: Any) -> float:
    """Largest difference over the largest number."""
    a, b = flat(a), flat(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def lru() -> rnn.Cell:
    def init(k: jax.Array) -> dict[str, jax.Array]:
        k_nu, k_angle, k_b, k_c = jax.random.split(k, 4)
        return {
            "nu": jax.random.uniform(k_nu, (H,), float),
            "angle": jax.random.uniform(k_angle, (H,), float),
            "b": jax.random.normal(k_b, (D, H), complex),
            "c": jax.random.normal(k_c, (H, 2), complex),
        }

    def step(params: Any, h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), params["angle"])) * h + z
        return h, (h @ params["c"]).real

    return rnn.Cell(
        init,
        lambda params: jnp.zeros(H, complex),
        lambda params, x: x.astype(complex) @ params["b"],
        step,
    )


def eye_lstm() -> rnn.Cell:
    """An LSTM without recurrent weights: every unit sees its own h and c, and two learn a start."""

    def init(k: jax.Array) -> dict[str, jax.Array]:
        k_w, k_u, k_s = jax.random.split(k, 3)
        return {
            "w": jax.random.normal(k_w, (D, 3, H), float),
            "u": jax.random.normal(k_u, (3, H), float),
            "start": jax.random.normal(k_s, (H,), float),
        }

    def step(params: Any, state: Any, z: jax.Array) -> tuple[Any, jax.Array]:
        h, c = state
        i, f, g = z + params["u"] * h[None]
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jnp.tanh(c)
        return (h, c), h

    return rnn.Cell(
        init,
        lambda params: (jnp.zeros(H, float), params["start"]),
        lambda params, x: jnp.einsum("d,dgh->gh", x, params["w"]),
        step,
    )


DIAGONAL = {"lru": lru(), "eye_lstm": eye_lstm(), "user": NETS["user"]}


def with_targets(cell: rnn.Cell, params: Any, xs: Any) -> Any:
    y = jax.eval_shape(functools.partial(rnn.unroll, cell), params, None, xs)[1]
    return cell, params, xs, jax.random.normal(key(2), y.shape, y.dtype)


def diagonal(name: str) -> Any:
    cell = DIAGONAL[name]
    return with_targets(cell, random_params(cell), random_inputs(name, T))


@pytest.mark.parametrize("name", NETS)
def test_rtrl_is_exact(name: str) -> None:
    cell, *arguments = problem(name)
    expected = jax.jit(gradients.bptt(cell, loss))(arguments[0], None, *arguments[1:])
    got = jax.jit(gradients.rtrl(cell, loss))(arguments[0], None, *arguments[1:])
    assert distance(got[1], expected[1]) < 1e-12
    assert distance(got[0][0], expected[0][0]) < 1e-12


FLOATS = [name for name in NETS if name not in ("user", "dropout", "variational", "zoneout")]


@pytest.mark.parametrize("name", FLOATS)
def test_deer_is_exact(name: str) -> None:
    cell, params, xs, targets = problem(name)
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)
    got = jax.jit(gradients.deer(cell, loss))(params, None, xs, targets)
    assert distance(got[1], expected[1]) < 1e-12
    assert distance(got[0], expected[0]) < 1e-12


@pytest.mark.parametrize("algorithm", ["elementwise_rtrl", "rtrl", "deer", "uoro", "kf_rtrl"])
@pytest.mark.parametrize("name", DIAGONAL)
def test_diagonal_and_complex_cells(algorithm: str, name: str) -> None:
    cell, params, xs, targets = diagonal(name)
    if name == "user" and algorithm == "deer":
        pytest.skip("its state counts steps")
    run = jax.jit(REGISTER[algorithm].algorithm(cell, loss))
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)
    if algorithm in DRAWS:
        run = jax.vmap(run, in_axes=(None,) * 4)
        run = functools.partial(run, key=jax.random.split(key(0), 400))
    got = run(params, None, xs, targets)[1]
    if algorithm not in DRAWS:
        assert distance(got, expected[1]) < 1e-12
        return
    draws = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], got)) for i in range(400)])
    error = np.abs(draws.mean(0) - flat(expected[1]))
    assert (error < 5 * draws.std(0) / 20 + 1e-9).all()


def test_units_that_see_each_other_are_refused() -> None:
    cell, params, xs, targets = problem("gru")
    with pytest.raises(ValueError, match="use rtrl or bptt"):
        gradients.elementwise_rtrl(cell, loss)(params, None, xs, targets)


@pytest.mark.parametrize("name", ["e_prop", "lstm_1997"])
def test_no_recurrent_product_is_refused(name: str) -> None:
    cell, params, xs, targets = diagonal("eye_lstm")
    with pytest.raises(ValueError, match="For any cell: snap"):
        REGISTER[name].algorithm(cell, loss)(params, None, xs, targets)


def test_states_that_newton_cannot_solve_for_are_refused() -> None:
    cell, params, xs, targets = problem("user")
    with pytest.raises(TypeError, match=r"state\['count'\]: got int32.* Use unroll and bptt"):
        gradients.deer(cell, loss)(params, None, xs, targets)


@pytest.mark.parametrize("name", DRAWS)
def test_a_missing_key_is_named(name: str) -> None:
    cell, params, xs, targets = problem("gru")
    with pytest.raises(TypeError, match=f"key: got None, but {name} draws"):
        ANY_CELL[name](cell, loss)(params, None, xs, targets)


EVERY = {n: functools.partial(e.algorithm, **e.options) for n, e in REGISTER.items()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [T - 1, T + 1])
def test_a_target_for_each_step(name: str, steps: int) -> None:
    """Neither one taken twice nor one left over."""
    cell, params, xs, targets = diagonal("lru") if name == "elementwise_rtrl" else problem("elman")
    targets = {"a": jnp.resize(targets, (steps, *targets.shape[1:]))}
    run = EVERY[name](cell, lambda y, target: jnp.sum((y - target["a"]) ** 2))
    with pytest.raises(ValueError, match=rf"targets\['a'\]: got shape \({steps}, .* one for each"):
        run(params, None, xs[:T], targets, key=key(0))


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_is_a_scalar(name: str) -> None:
    cell, params, xs, targets = diagonal("lru") if name == "elementwise_rtrl" else problem("elman")
    run = EVERY[name](cell, lambda y, target: (y - target) ** 2)
    with pytest.raises(ValueError, match=r"loss: got a result of shape \(\d,\) for one step"):
        run(params, None, xs, targets, key=key(0))


@every_algorithm
def test_padding_batches_and_resets(name: str) -> None:
    """Three sequences in one vmap: whole, padded with NaN, two episodes."""
    cell, params, xs, targets = problem("lstm")
    run = jax.jit(ANY_CELL[name](cell, loss))
    mask = jnp.stack([rnn.length_mask(T, T), rnn.length_mask(3, T), rnn.length_mask(T, T)])
    reset = jnp.zeros((3, T), bool).at[2, 3].set(True)
    holes = jnp.where(mask[..., None], jnp.stack([xs, xs, xs]), jnp.nan)
    empty = jnp.where(mask[..., None], jnp.stack([targets] * 3), jnp.nan)
    options = {"key": jax.random.split(key(5), 3)} if name in DRAWS else {}
    values = jax.vmap(
        lambda xs, targets, mask, reset, options: run(
            params, None, xs, targets, mask=mask, reset=reset, **options
        )
    )(holes, empty, mask, reset, options)
    got = [jax.tree.map(lambda a, i=i: a[i], values) for i in range(3)]

    def alone(i: int, begin: int, end: int) -> Any:
        one = {k: v[i] for k, v in options.items()}
        return run(params, None, xs[begin:end], targets[begin:end], **one)

    assert np.isfinite(flat(values)).all()
    exact_total = jax.jit(gradients.bptt(cell, loss))(params, None, xs[:3], targets[:3])[0]
    assert distance(got[1][0], exact_total) < 1e-12
    assert distance(got[0], alone(0, 0, T)) < 1e-12
    if name != "randomized_telescope":  # its horizons depend on T
        assert distance(got[1][1], alone(1, 0, 3)[1]) < 1e-11
    if name not in DRAWS and "truncated" not in name and name != "chunks":
        parts = alone(2, 0, 3)[1], alone(2, 3, T)[1]
        assert distance(got[2][1], jax.tree.map(jnp.add, *parts)) < 1e-11
    first, second = alone(2, 0, 3)[0], alone(2, 3, T)[0]
    assert distance(got[2][0], (first[0] + second[0], second[1])) < 1e-12


@every_algorithm
def test_no_steps_and_a_given_state(name: str) -> None:
    cell, params, xs, targets = problem("lstm")
    run = jax.jit(ANY_CELL[name](cell, loss))
    options = {"key": key(1)} if name in DRAWS else {}
    state = jax.tree.map(lambda a: a + 0.3, cell.init_state(params))
    (total, same), grads = run(params, state, xs[:0], targets[:0], **options)
    assert float(total) == 0
    assert not flat(grads).any()
    assert distance(same, state) == 0
    got = run(params, state, xs, targets, **options)
    expected = jax.jit(gradients.bptt(cell, loss))(params, state, xs, targets)
    assert distance(got[0], expected[0]) < 1e-12
    if REGISTER.get(name, REGISTER["truncated_bptt"]).kind == "exact":
        assert distance(got[1], expected[1]) < 1e-12


@every_online
def test_one_step_at_a_time_is_the_whole(name: str) -> None:
    cell, params, xs, targets = problem("gru_reset_after")
    algorithm = ANY_CELL[name](cell, loss)
    draw = {"key": key(3)} if name in DRAWS else {}
    whole = jax.jit(algorithm)(params, None, xs, targets, **draw)
    carry, total, grads = algorithm.init(params, xs[0], **draw), 0.0, None
    update = jax.jit(algorithm.update)
    size = [(a.shape, a.dtype) for a in jax.tree.leaves(carry)]
    for x, target in zip(xs, targets, strict=True):
        carry, info = update(params, carry, x, target)
        total += info.loss
        grads = info.grads if grads is None else jax.tree.map(jnp.add, grads, info.grads)
    assert size == [(a.shape, a.dtype) for a in jax.tree.leaves(carry)]
    assert distance(((total, carry.state), grads), whole) < 1e-12
    _, ys = rnn.unroll(cell, params, None, xs)
    assert distance(info.y, ys[-1]) < 1e-12


@every_online
def test_masked_steps_change_nothing(name: str) -> None:
    """A hole in the middle, of NaN: as if the steps were not there."""
    cell, params, xs, targets = problem("gru_reset_after")
    valid = np.array([True, False, True, True, False])
    draw = {"key": key(3)} if name in DRAWS else {}
    run = jax.jit(ANY_CELL[name](cell, loss))
    whole = run(params, None, xs[valid], targets[valid], **draw)
    holes = jnp.where(valid[:, None], xs, jnp.nan), jnp.where(valid[:, None], targets, jnp.nan)
    assert distance(run(params, None, *holes, mask=valid, **draw), whole) < 1e-12


@every_online
def test_a_reset_forgets_the_past(name: str) -> None:
    """Two carries with different pasts and the same key give the same step, NaN included."""
    cell, params, xs, targets = problem("lstm")
    algorithm = ANY_CELL[name](cell, loss)
    draw = {"key": key(3)} if name in DRAWS else {}
    carry = algorithm.init(params, xs[0], **draw)
    update = jax.jit(algorithm.update)
    past, _ = update(params, carry, xs[0], targets[0])
    other, _ = update(params, carry, 2 * xs[1], targets[1])
    broken = other._replace(
        state=jax.tree.map(lambda a: a * jnp.nan, other.state),
        trace=jax.tree.map(lambda a: a * jnp.nan, other.trace),
    )
    a = update(params, past, xs[2], targets[2], reset=jnp.array(True))
    b = update(params, broken, xs[2], targets[2], reset=jnp.array(True))
    assert distance((a[0][:2], a[1]), (b[0][:2], b[1])) == 0
    c = update(params, past, xs[2], targets[2], reset=jnp.array(False))
    assert distance(c[1].grads, a[1].grads) > 1e-3


@pytest.mark.parametrize("algorithm", [gradients.uoro, gradients.kf_rtrl, gradients.ok])
def test_noise_is_fresh_at_every_step(algorithm: Any) -> None:
    """The same step from the same trace, with the keys of eight steps: other signs."""
    cell, params, xs, targets = problem("lstm")
    run = algorithm(cell, loss)
    update = jax.jit(run.update)
    carry, _ = update(params, run.init(params, xs[0], key=key(3)), xs[0], targets[0])
    keys, traces = carry.key, []
    for _ in range(8):
        following, _ = update(params, carry._replace(key=keys), xs[1], targets[1])
        traces.append(following.trace)
        keys = following.key
    assert max(distance(trace, traces[0]) for trace in traces) > 1e-3


@pytest.mark.parametrize("name", [n for n in ANY_CELL if n not in DRAWS])
def test_what_is_biased_differs(name: str) -> None:
    entry = REGISTER.get(name)
    cell, params, xs, targets = problem("gru_reset_after")
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)
    options = {"k1": 2, "k2": 3} if name == "truncated_bptt" else {}
    got = jax.jit(ANY_CELL[name](cell, loss, **options))(params, None, xs, targets)
    if entry is not None and entry.kind == "exact":
        assert distance(got[1], expected[1]) < 1e-12
    else:
        assert distance(got[1], expected[1]) > 1e-2
        assert distance(got[0], expected[0]) < 1e-12


def test_online_learning_nears_the_gradient_as_the_rate_falls() -> None:
    """With updates at every step RTRL's influence is stale: by the order of the rate."""
    cell, params, xs, targets = problem("elman")
    algorithm = gradients.rtrl(cell, loss)
    exact = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)[1]

    @jax.jit
    def learned(rate: Any) -> Any:
        def step(carry: Any, now: Any) -> Any:
            carry, params, total = carry
            carry, info = algorithm.update(params, carry, *now)
            params = jax.tree.map(lambda p, g: p - rate * g, params, info.grads)
            return (carry, params, jax.tree.map(jnp.add, total, info.grads)), None

        first = algorithm.init(params, xs[0]), params, jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, first, (xs, targets))[0][2]

    errors = [distance(learned(rate), exact) for rate in (1e-4, 1e-5)]
    assert errors[0] > 1e-6
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.05)


def test_64_seeds_are_one_compiled_call() -> None:
    cell, _, xs, targets = problem("lstm")
    traced = []

    def counted(y: jax.Array, target: jax.Array) -> jax.Array:
        traced.append(1)
        return loss(y, target)

    many = jax.vmap(cell.init)(jax.random.split(key(0), 64))
    run = jax.jit(
        jax.vmap(
            lambda params, key: gradients.uoro(cell, counted)(params, None, xs, targets, key=key)
        )
    )
    run(many, jax.random.split(key(1), 64))
    once = len(traced)
    (totals, _), grads = run(many, jax.random.split(key(2), 64))
    assert totals.shape == (64,)
    assert grads.w_h.shape[0] == 64
    assert len(traced) == once


def test_the_register() -> None:
    page = Path(__file__).parents[1] / "experiments" / "README.md"
    assert gradients.table() in page.read_text(), "put the output of gradients.table() there"
    lines = gradients.table().splitlines()
    assert len(lines) == 2 + len(REGISTER)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert {e.kind for e in REGISTER.values()} == {"exact", "unbiased", "biased"}
    assert all(e.limit for e in REGISTER.values() if e.kind == "biased")
    assert set(gradients.EXACT) | set(gradients.APPROXIMATE) == set(REGISTER)
    assert not set(gradients.EXACT) & set(gradients.APPROXIMATE)
    for name, entry in REGISTER.items():
        assert getattr(gradients, name) is entry.algorithm
        assert (
            hasattr(entry.algorithm(NETS["gru"], loss, **entry.options), "update") == entry.online
        )


@every_algorithm
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_any_dtype(name: str, dtype: Any) -> None:
    """Everything is traced under strict promotion; the gradient has the dtype of the params."""
    cell = rnn.readout(rnn.gru_reset_after(D, H, dtype=dtype), 2)
    params = cell.init(key(0))
    options = {"key": key(1)} if name in DRAWS else {}
    run = functools.partial(ANY_CELL[name](cell, loss), **options)
    (total, state), grads = jax.eval_shape(
        run, params, None, jnp.zeros((T, D), dtype), jnp.zeros((T, 2), dtype)
    )
    assert {a.dtype for a in jax.tree.leaves((total, state, grads))} == {jnp.dtype(dtype)}
    assert jax.tree.structure(grads) == jax.tree.structure(params)
