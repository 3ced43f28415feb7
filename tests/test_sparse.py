"""SnAp, local rules, and the equilibrium: exact in their limit, different elsewhere."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, D, H, key
from test_algorithms import DIAGONAL, diagonal, distance, flat, with_targets
from test_gradients import loss, problem

import rnn_jax as rnn
from rnn_jax import gradients
from rnn_jax.gradients import _products, _sparse
from rnn_jax.gradients._step import Step

pytestmark = pytest.mark.usefixtures("x64")
T = 5


def exact(cell: Any, params: Any, xs: Any, targets: Any) -> Any:
    return jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets)


def run(algorithm: Any, cell: Any, params: Any, xs: Any, targets: Any) -> Any:
    return jax.jit(algorithm(cell, loss))(params, None, xs, targets)


SATURATED = ["elman", "lstm", "gru", "layer_norm_gru", "user", "stack", "embed", "zoneout"]


@pytest.mark.parametrize("name", SATURATED)
def test_snap_is_exact_once_all_is_reached(name: str) -> None:
    arguments = problem(name)
    got = run(functools.partial(gradients.snap, n=4), *arguments)
    assert distance(got, exact(*arguments)) < 1e-12


def ring(size: int) -> rnn.Cell:
    """Each unit hears itself and its left neighbour: a product with a sparse weight."""
    pattern = jnp.eye(size) + jnp.roll(jnp.eye(size), 1, axis=1)
    dense = rnn.elman(D, size)

    def step(params: Any, h: jax.Array, z: jax.Array) -> Any:
        h = jnp.tanh(z + h @ (params.w_h * pattern))
        return h, h

    return dense._replace(step=step)


def test_snap_nears_the_gradient_as_n_grows() -> None:
    """A ring of 6: a parameter reaches n units in n steps."""
    cell = ring(6)
    params = cell.init(key(0))
    arguments = with_targets(cell, params, jax.random.normal(key(1), (9, D), float))
    expected = flat(exact(*arguments)[1])
    errors = []
    for n in range(1, 7):
        got = flat(run(functools.partial(gradients.snap, n=n), *arguments)[1])
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert all(a > 1.5 * b for a, b in itertools.pairwise(errors))
    assert errors[4] > 1e-6
    assert errors[5] < 1e-12


def test_snap_1_is_backpropagation_through_the_diagonal() -> None:
    """In a simple recurrent net (Menick et al.): the adjoint sees each unit's own past alone."""
    cell, params, xs, targets = problem("elman")
    got = run(functools.partial(gradients.snap, n=1), cell, params, xs, targets)[1]

    def total(params: Any) -> Any:
        h, value = jnp.zeros(H), jnp.zeros(())
        for x, target in zip(xs, targets, strict=True):
            held = jax.lax.stop_gradient(h) @ params.w_h
            own = jnp.diagonal(jax.lax.stop_gradient(params.w_h)) * h  # its slope, and no value
            h = jnp.tanh(x @ params.w_x + held + own - jax.lax.stop_gradient(own) + params.b)
            value += loss(h, target)
        return value

    assert distance(got, jax.jit(jax.grad(total))(params)) < 1e-12


def test_masks_do_not_depend_on_the_data() -> None:
    """One-hot inputs, dead ReLUs and zero weights leave the structure as it is."""
    cell = rnn.elman(D, H, activation=jax.nn.relu)
    zeros = jax.tree.map(jnp.zeros_like, cell.init(key(0)))
    step = Step(cell, loss, zeros, jnp.zeros(H), jnp.eye(D)[0], jnp.zeros(H))
    found = _sparse.pattern(step)
    assert found.D.all()
    units = np.concatenate([np.tile(np.arange(H), D), np.tile(np.arange(H), H), np.arange(H)])
    np.testing.assert_array_equal(found.I, np.arange(H)[:, None] == units[None])
    assert not found.start.any()
    start = _sparse.pattern(Step(NETS["user"], loss, *_user_point())).start
    assert start.sum() == H


def _user_point() -> Any:
    cell = NETS["user"]
    params = cell.init(key(0))
    return params, cell.init_state(params), jnp.zeros(D), jnp.zeros(H)


def test_every_token_is_seen() -> None:
    """The pattern of a table is that of all its rows, whatever tokens the data have."""
    cell = rnn.embed(rnn.elman(2, 3), 40, 2)
    params = cell.init(key(0))
    step = Step(cell, loss, params, jnp.zeros(3), jnp.array(7), jnp.zeros(3))
    assert _sparse.pattern(step).I[:, -80:].all()


def test_noise_of_a_mask_is_not_structure() -> None:
    """A dropped unit is no zero of the pattern."""
    cell = rnn.stack([rnn.dropout(rnn.elman(D, H), 0.9, key(3)), rnn.elman(H, 2)])
    params = cell.init(key(0))
    step = Step(cell, loss, params, cell.init_state(params), jnp.zeros(D), jnp.zeros(2))
    assert _sparse.pattern(step).I[H:, : D * H].all()


@pytest.mark.parametrize(
    ("name", "entries"), [("elman", 1), ("lstm", 2), ("gru_reset_after", 1), ("gru", H)]
)
def test_how_much_snap_1_keeps(name: str, entries: int) -> None:
    cell = rnn.ALL_CELLS[name](D, 6 if name != "gru" else H)
    params = cell.init(key(0))
    carry = gradients.snap(cell, loss, n=1).init(params, jnp.zeros(D))
    P = sum(a.size for a in jax.tree.leaves(params))
    assert carry.trace.shape == (entries, P)


def test_colors() -> None:
    found = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    color = _sparse.colors(found)
    for c in set(color):
        assert (found[color == c].sum(0) <= 1).all()
    assert color.max() == 1


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_after", "stack", "layer_norm_gru"])
def test_e_prop_is_the_gradient_of_1997(name: str) -> None:
    arguments = problem(name)
    got = run(gradients.e_prop, *arguments)
    assert distance(got, run(gradients.lstm_1997, *arguments)) < 1e-12
    assert distance(got[1], exact(*arguments)[1]) > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradient_of_1997_is_cut_by_hand(layers: int) -> None:
    """LSTMs with stop_gradient on h where it enters the gates, not on its way to the next layer."""
    cell = rnn.stack([rnn.lstm(D, H), rnn.lstm(H, H)][:layers])
    xs = jax.random.normal(key(1), (T, D), float)
    cell, params, xs, targets = with_targets(cell, cell.init(key(0)), xs)

    def total(params: Any) -> Any:
        state, value = cell.init_state(params), jnp.zeros(())
        for x, target in zip(xs, targets, strict=True):
            cut = tuple(s._replace(h=jax.lax.stop_gradient(s.h)) for s in state)
            state, y = cell.step(params, cut, cell.project(params, x))
            value += loss(y, target)
        return value

    got = run(gradients.lstm_1997, cell, params, xs, targets)
    assert distance(got[1], jax.jit(jax.grad(total))(params)) < 1e-12


@pytest.mark.parametrize("name", ["e_prop", "lstm_1997"])
@pytest.mark.parametrize("net", ["lstm", "gru", "layer_norm_lstm"])
def test_local_rules_are_exact_without_recurrent_weights(name: str, net: str) -> None:
    cell, params, xs, targets = problem(net)
    if net == "layer_norm_lstm":  # of zeros there is no norm; a stack's first layer has weights
        cell = rnn.readout(cell, 2)
        params = rnn.ReadoutParams(params, jnp.ones((H, 2)), jnp.zeros(2))
        params = params._replace(cell=params.cell._replace(w_h=0 * params.cell.w_h))
        targets = targets[:, :2]
    else:
        params = params._replace(w_h=0 * params.w_h)
    expected = exact(cell, params, xs, targets)[1]
    got = run(getattr(gradients, name), cell, params, xs, targets)[1]
    if net == "layer_norm_lstm":
        expected, got = expected.cell.w_x, got.cell.w_x
    assert distance(got, expected) < 1e-12


def leaky(keep: float) -> rnn.Cell:
    dense = rnn.elman(D, H)

    def step(params: Any, h: jax.Array, z: jax.Array) -> Any:
        h = keep * h + (1 - keep) * jnp.tanh(z + h @ params.w_h)
        return h, h

    return rnn.readout(dense._replace(step=step), 2)


def test_rflo_is_e_prop_on_leaky_units() -> None:
    cell = leaky(0.8)
    params = cell.init(key(0))
    arguments = with_targets(cell, params, jax.random.normal(key(1), (9, D), float))
    got = run(functools.partial(gradients.rflo, leak=0.8), *arguments)
    assert distance(got, run(gradients.e_prop, *arguments)) < 1e-12
    expected = flat(exact(*arguments)[1])
    cosine = flat(got[1]) @ expected / np.linalg.norm(flat(got[1])) / np.linalg.norm(expected)
    assert 0.7 < cosine < 1 - 1e-3
    other = run(functools.partial(gradients.rflo, leak=0.5), *arguments)
    assert distance(other[1], got[1]) > 1e-3


@pytest.mark.parametrize("name", ["rflo", "e_prop"])
def test_feedback(name: str) -> None:
    """The transposed readout as feedback is the gradient; another matrix moves the cell's part."""
    cell = leaky(0.8)
    params = cell.init(key(0))
    arguments = with_targets(cell, params, jax.random.normal(key(1), (9, D), float))
    options = {"leak": 0.8} if name == "rflo" else {}
    algorithm = functools.partial(getattr(gradients, name), **options)
    plain = run(algorithm, *arguments)[1]
    same = run(functools.partial(algorithm, feedback=params.w_y.T), *arguments)[1]
    assert distance(same, plain) < 1e-12
    random = jax.random.normal(key(5), (2, H), float)
    other = run(functools.partial(algorithm, feedback=random), *arguments)[1]
    assert distance(other.cell, plain.cell) > 1e-2
    assert distance((other.w_y, other.b_y), (plain.w_y, plain.b_y)) < 1e-12


def settled(scale: float) -> Any:
    cell = rnn.readout(rnn.elman(D, H), 2)
    params = jax.tree.map(lambda a: scale * a, cell.init(key(0)))
    xs = jax.random.normal(key(1), (3, D), float)
    return with_targets(cell, params, xs)


def held(xs: Any, targets: Any, steps: int) -> Any:
    """Each input for so many steps; the loss at the last of them."""
    mask = jnp.tile(jnp.arange(steps) == steps - 1, len(xs))
    return jnp.repeat(xs, steps, 0), jnp.repeat(targets, steps, 0), mask


def last_loss(y: Any, target: Any) -> Any:
    return target[1] * loss(y, target[0])


def test_implicit_is_backpropagation_through_a_long_rest() -> None:
    cell, params, xs, targets = settled(0.7)
    got = run(gradients.implicit, cell, params, xs, targets)
    long = held(xs, targets, 150)
    weighted = long[1], long[2].astype(float)
    expected = jax.jit(gradients.bptt(cell, last_loss))(params, None, long[0], weighted)
    assert distance(got[0], expected[0]) < 1e-11
    assert distance(got[1], expected[1]) < 1e-10


def test_a_series_is_truncated_backpropagation() -> None:
    cell, params, xs, targets = settled(0.7)
    xs, targets = xs[:1], targets[:1]
    expected = run(gradients.implicit, cell, params, xs, targets)
    long = held(xs, targets, 150)
    weighted = long[1], long[2].astype(float)
    errors = []
    for terms in (0, 1, 2, 5, 30):
        got = run(functools.partial(gradients.implicit, terms=terms), cell, params, xs, targets)
        cut = gradients.truncated_bptt(cell, last_loss, k1=1, k2=terms + 1)
        same = jax.jit(cut)(params, None, long[0], weighted)
        assert distance(got[1], same[1]) < 1e-9
        errors.append(distance(got[1], expected[1]))
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-4


def test_what_does_not_settle_is_nan() -> None:
    cell, params, xs, targets = settled(0.7)
    params = params._replace(cell=params.cell._replace(w_h=-9.0 * jnp.eye(H)))
    (total, _), grads = run(gradients.implicit, cell, params, xs, targets)
    assert np.isnan(total)
    assert np.isnan(flat(grads)).all()


def test_implicit_with_masks_and_resets() -> None:
    cell, params, xs, targets = settled(0.7)
    mask, reset = jnp.array([True, False, True]), jnp.array([False, False, True])
    xs, targets = xs.at[1].set(jnp.nan), targets.at[1].set(jnp.nan)
    got = jax.jit(gradients.implicit(cell, loss))(params, None, xs, targets, mask=mask, reset=reset)
    expected = run(gradients.implicit, cell, params, xs[::2], targets[::2])
    assert distance(got, expected) < 1e-10


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_newton_finds_the_states_and_its_jacobian_stays_out_of_the_gradient(jacobian: str) -> None:
    cell, params, xs, targets = problem("gru")
    xs, targets = jnp.tile(xs, (8, 1)), jnp.tile(targets, (8, 1))
    found = jax.jit(functools.partial(gradients.newton, cell, jacobian=jacobian))(params, None, xs)
    _, ys = rnn.unroll(cell, params, None, xs)
    assert distance(found.states, ys) < 1e-11
    assert bool(found.converged)
    limits = {"full": (3, 12), "diagonal": (6, 40)}[jacobian]
    assert limits[0] < int(found.iterations) <= limits[1]
    got = run(functools.partial(gradients.deer, jacobian=jacobian), cell, params, xs, targets)
    assert distance(got, exact(cell, params, xs, targets)) < 1e-11


def test_newton_is_exact_for_the_first_steps_even_where_it_is_lost() -> None:
    """An expanding net: k iterations give k exact steps, and too few of them NaN, not a guess."""
    cell, params, xs, targets = problem("elman")
    params = params._replace(w_h=6 * params.w_h)
    _, ys = rnn.unroll(cell, params, None, xs)
    newton = functools.partial(gradients.newton, cell, max_iterations=2)
    found = jax.jit(newton)(params, None, xs)
    assert distance(found.states[:2], ys[:2]) < 1e-12
    assert not bool(found.converged)
    algorithm = functools.partial(gradients.deer, max_iterations=2)
    assert np.isnan(flat(run(algorithm, cell, params, xs, targets)[1])).all()
    assert (
        distance(run(gradients.deer, cell, params, xs, targets), exact(cell, params, xs, targets))
        < 1e-11
    )


def test_newton_options() -> None:
    cell, params, xs, _ = problem("elman")
    with pytest.raises(ValueError, match="jacobian: got 'half', expected full or diagonal"):
        gradients.newton(cell, params, None, xs, jacobian="half")


@pytest.mark.parametrize("name", ["lru", "user"])
def test_snap_1_is_exact_on_a_diagonal(name: str) -> None:
    """Real or complex: both parts of a complex number are one unit."""
    cell, params, xs, targets = diagonal(name)
    found = gradients.snap(cell, loss, n=1)(params, None, xs, targets)
    assert distance(found, exact(cell, params, xs, targets)) < 1e-12


def test_elementwise_traces_are_as_small_as_the_params() -> None:
    cell, params, xs, _ = diagonal("eye_lstm")
    carry = gradients.elementwise_rtrl(cell, loss).init(params, xs[0])
    P = sum(a.size for a in jax.tree.leaves(params))
    assert carry.trace.shape == (2, P)
    assert set(DIAGONAL) == {"lru", "eye_lstm", "user"}


RECURRENT = {"elman": [1], "lstm": [1], "gru": [2, 3], "stack": [1, 4, 5, 7], "embed": [2]}


@pytest.mark.parametrize("name", RECURRENT)
def test_which_products_are_recurrent(name: str) -> None:
    """In the order in which a step makes them: those of the input come first, layer by layer."""
    cell, params, xs, _ = problem(name)
    step = Step(cell, loss, params, cell.init_state(params), xs[0], None)
    assert _products.recurrent(step, _products.probe(step)) == RECURRENT[name]
