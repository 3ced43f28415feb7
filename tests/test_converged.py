"""Algorithms that look for a solution: they find it, or say that they did not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import key
from test_algorithms import distance, flat
from test_gradients import loss
from test_sparse import settled

import rnn_jax as rnn
from rnn_jax import gradients
from rnn_jax.gradients.deer import _adjoint

pytestmark = pytest.mark.usefixtures("x64")
JACOBIANS = pytest.mark.parametrize("jacobian", ["full", "diagonal"])


def linear(w: Any) -> tuple[rnn.Cell, Any]:
    """h' = h w + x."""
    w = jnp.asarray(w, float)
    cell = rnn.elman(len(w), len(w), activation=lambda a: a, bias=False)
    return cell, rnn.ElmanParams(w_x=jnp.eye(len(w), dtype=float), w_h=w, b=None)


def squares(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2)


@JACOBIANS
def test_states_of_any_size(jacobian: str) -> None:
    """h' = 10 h + 1: after twelve steps 111,111,111,111."""
    cell, params = linear([[10.0]])
    xs, targets = jnp.ones((12, 1)), jnp.zeros((12, 1))
    found = gradients.newton(cell, params, None, xs, jacobian=jacobian)
    assert bool(found.converged)
    np.testing.assert_allclose(found.states[-1], 111_111_111_111, rtol=1e-14)
    run = gradients.deer(cell, squares, jacobian=jacobian)
    expected = gradients.bptt(cell, squares)(params, None, xs, targets)
    assert distance(run(params, None, xs, targets), expected) < 1e-12


@JACOBIANS
@pytest.mark.parametrize("T", [3, 17, 64])
@pytest.mark.parametrize("gain", [0.5, 2.0, 6.0, 40.0])
def test_newton_is_exact_or_says_that_it_is_not(gain: float, T: int, jacobian: str) -> None:
    """From nets that forget to chaotic ones, whose products of Jacobians know no bounds."""
    cell = rnn.elman(3, 4)
    params = cell.init(key(0))
    params = params._replace(w_h=gain * params.w_h)
    xs, targets = jax.random.normal(key(1), (T, 3), float), jnp.zeros((T, 4))
    run = jax.jit(gradients.deer(cell, loss, jacobian=jacobian))
    (total, _), grads = run(params, None, xs, targets)
    found = jax.jit(functools.partial(gradients.newton, cell, jacobian=jacobian))(params, None, xs)
    _, ys = rnn.unroll(cell, params, None, xs)
    assert bool(found.converged)  # T iterations are always enough
    if gain <= 2:
        assert np.isfinite(total)
        assert distance(found.states, ys) < 1e-10
    if np.isfinite(total):
        (_, states), expected = gradients.bptt(cell, loss)(params, None, xs, targets)
        del states
        assert np.isfinite(flat(grads)).all()
        if gain <= 2:  # beyond, the gradient itself is lost in rounding
            assert distance(grads, expected) < 1e-10
    else:
        assert np.isnan(flat(grads)).all()


def test_what_overflows_is_not_called_a_solution() -> None:
    cell, params = linear([[10.0]])
    xs, targets = jnp.ones((400, 1)), jnp.zeros((400, 1))
    found = jax.jit(functools.partial(gradients.newton, cell))(params, None, xs)
    assert not bool(found.converged)
    (total, _), grads = jax.jit(gradients.deer(cell, squares))(params, None, xs, targets)
    assert np.isnan(total)
    assert np.isnan(flat(grads)).all()


def test_a_large_tolerance_does_not_make_a_guess_a_solution() -> None:
    """A net that is not finite at what was tried last: the equations do not hold there."""
    cell = rnn.Cell(
        init=lambda key: jnp.ones((), float),
        init_state=lambda w: jnp.zeros((), float),
        project=lambda w, x: x,
        step=lambda w, h, x: (w * jnp.log(h - 1.0) + x, h),
    )
    found = jax.jit(functools.partial(gradients.newton, cell))(jnp.ones(()), None, jnp.ones(6))
    assert not bool(found.converged)


def test_the_way_back_through_a_reset() -> None:
    """697 steps that grow by 10, then a reset: products overflow, the gradient does not."""
    cell, params = linear([[10.0]])
    xs = jnp.zeros((700, 1)).at[-3:].set(1.0)  # the state stays 0 up to there
    reset = jnp.arange(700) == 697
    run = jax.jit(gradients.deer(cell, squares))
    (total, _), grads = run(params, None, xs, jnp.zeros((700, 1)), reset=reset)
    expected = gradients.bptt(cell, squares)(params, None, xs, jnp.zeros((700, 1)), reset=reset)
    assert distance((total, grads), (expected[0][0], expected[1])) < 1e-12
    assert flat(grads).all()


@pytest.mark.parametrize(("size", "solved"), [(1e100, True), (1e160, False)])
def test_the_way_back_says_where_it_overflows(size: float, solved: bool) -> None:
    J, c = jnp.full((3, 1, 1), size), jnp.ones((3, 1))
    lam, found = _adjoint(J, c)
    assert bool(found) == solved
    if solved:
        np.testing.assert_allclose(lam[:, 0], [1e200, 1e100, 1.0], rtol=1e-14)


def test_no_gradient_where_the_way_back_overflows() -> None:
    """A state of 0 with a gradient of 10^399: NaN throughout, the finite numbers too."""
    cell, params = linear([[10.0]])
    xs, targets = jnp.zeros((400, 1)), jnp.ones((400, 1))
    run = gradients.deer(cell, squares)
    (total, state), grads = run(params, None, xs, targets)
    assert bool(gradients.newton(cell, params, None, xs).converged)
    assert np.isnan([total, *state, *flat(grads)]).all()


def test_equilibria_are_those_that_implicit_sees() -> None:
    cell, params, xs, targets = settled(0.7)
    mask = jnp.array([True, False, True])
    options: dict[str, Any] = {"mask": mask}
    found = jax.jit(functools.partial(gradients.equilibria, cell))(params, None, xs, **options)
    assert found.converged.tolist() == [True] * 3
    assert found.iterations[1] == 0
    assert 5 < int(found.iterations[0]) < 200
    (_, last), _ = gradients.implicit(cell, loss)(params, None, xs, targets, mask=mask)
    assert distance(jax.tree.map(lambda a: a[-1], found.states), last) == 0
    for t in (0, 2):
        state = jax.tree.map(lambda a, t=t: a[t], found.states)
        again, _ = cell.step(params, state, cell.project(params, xs[t]))
        assert distance(again, state) < 1e-15


def test_a_net_that_does_not_settle_says_so() -> None:
    """One input under which it oscillates: implicit is NaN, and equilibria name the input."""
    cell, params = linear([[-1.0]])
    xs = jnp.array([[0.0], [1.0], [0.0]])
    run = functools.partial(gradients.equilibria, cell, max_iterations=50)
    found = jax.jit(run)(params, None, xs)
    assert found.converged.tolist() == [True, False, False]
    assert found.iterations.tolist() == [1, 50, 50]
    (total, last), grads = jax.jit(gradients.implicit(cell, squares, max_iterations=50))(
        params, None, xs, jnp.zeros((3, 1))
    )
    assert np.isnan([total, *flat(last), *flat(grads)]).all()


@pytest.mark.parametrize("rate", [0.9, 0.999, 0.99999])
def test_a_net_that_creeps_has_not_arrived(rate: float) -> None:
    """A step of 2e-12 may be 2e-7 away from the equilibrium x / (1 - w)."""
    cell, params = linear([[rate]])
    xs, targets = jnp.array([[1.0]]), jnp.zeros((1, 1))
    run = jax.jit(gradients.implicit(cell, lambda y, target: y[0], max_iterations=10**7))
    (total, _), grads = run(params, None, xs, targets)
    np.testing.assert_allclose(total, 1 / (1 - rate), rtol=1e-10)
    np.testing.assert_allclose(grads.w_h, 1 / (1 - rate) ** 2, rtol=1e-9)


def test_an_equilibrium_without_a_gradient_is_none() -> None:
    """h' = h rests wherever it is: (1 - D) is singular."""
    cell, params = linear([[1.0]])
    xs, targets = jnp.zeros((1, 1)), jnp.zeros((1, 1))
    (total, _), grads = jax.jit(gradients.implicit(cell, squares))(params, None, xs, targets)
    assert np.isnan([total, *flat(grads)]).all()
    assert not bool(gradients.equilibria(cell, params, None, xs).converged[0])


@pytest.mark.parametrize("name", ["deer", "implicit"])
def test_all_is_well_under_debug_nans(name: str) -> None:
    """No NaN is made where everything converges; not in a jit, not outside of one."""
    cell, params, xs, targets = settled(0.7)
    run = getattr(gradients, name)(cell, loss)
    with jax.debug_nans(True):
        eager = run(params, None, xs, targets)
        assert distance(jax.jit(run)(params, None, xs, targets), eager) < 1e-12


def test_a_batch_with_one_that_fails() -> None:
    """Only that one is NaN."""
    cell, params = linear([[0.5]])
    params = jax.tree.map(lambda a: jnp.stack([a, 3 * a]), params)
    xs, targets = jnp.ones((2, 1)), jnp.zeros((2, 1))
    run = gradients.implicit(cell, squares, max_iterations=100)
    (total, _), grads = jax.vmap(lambda p: run(p, None, xs, targets))(params)
    assert np.isfinite(total).tolist() == [True, False]
    assert np.isfinite(grads.w_h[:, 0, 0]).tolist() == [True, False]
