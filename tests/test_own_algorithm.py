"""A gradient algorithm as a stranger writes it: the snippet of the README, and one that draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import NETS, key
from test_algorithms import distance, flat
from test_gradients import loss, problem
from test_readme import PYTHON

import rnn_jax as rnn
from rnn_jax import gradients, train

pytestmark = pytest.mark.usefixtures("x64")


def mine() -> Callable[..., gradients.Online]:
    """`my_rtrl` of the README."""
    (code,) = (code for *_, code in PYTHON if "def my_rtrl" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    assert code[code.index("def my_rtrl") : code.index("cell = ")].strip().count("\n") < 12
    made: Callable[..., gradients.Online] = names["my_rtrl"]
    return made


def uniform(cell: rnn.Cell, loss: Any) -> gradients.Online:
    """UORO without its scaling."""

    def init(origin: gradients.Origin, step: gradients.Step, key: Any) -> Any:
        nu = jax.random.rademacher(key, step.h.shape, step.h.dtype)
        return nu, origin.pull(nu)

    def update(step: gradients.Step, trace: Any, key: Any) -> Any:
        s, theta = trace
        nu = jax.random.rademacher(key, s.shape, s.dtype)
        r, c = step.loss_gradient()
        new = step.push(jnp.zeros_like(theta), s)[0] + nu, theta + step.pull(nu, 0.0)[0]
        return new, r + (c @ s) * theta

    rule = gradients.Rule(init, update)
    return gradients.Online("uniform", cell, loss, lambda step: rule, draws=True)


@pytest.mark.parametrize("name", NETS)
def test_it_is_exact_for_every_cell_with_masks_and_resets(name: str) -> None:
    cell, params, xs, targets = problem(name)
    T = len(xs)
    flags = {"mask": jnp.arange(T) % 3 != 1, "reset": jnp.arange(T) == T - 2}
    got = jax.jit(mine()(cell, loss))(params, None, xs, targets, **flags)
    expected = jax.jit(gradients.bptt(cell, loss))(params, None, xs, targets, **flags)
    assert distance(got[1], expected[1]) < 1e-12
    assert distance(got[0][0], expected[0][0]) < 1e-12


def test_chunks_and_streams() -> None:
    """A stream cut anywhere; the state that comes back goes back in."""
    cell, params, xs, targets = problem("lstm")
    algorithm = mine()(cell, loss)
    (total, state), grads = algorithm(params, None, xs, targets)
    carry, sums = algorithm.init(params, xs[0]), jax.tree.map(jnp.zeros_like, (total, grads))
    for x, target in zip(xs, targets, strict=True):
        carry, info = algorithm.update(params, carry, x, target)
        sums = jax.tree.map(jnp.add, sums, (info.loss, info.grads))
    assert distance(sums, (total, grads)) < 1e-12
    assert distance(carry.state, state) < 1e-12
    (first, middle), _ = algorithm(params, None, xs[:2], targets[:2])
    (second, last), _ = algorithm(params, middle, xs[2:], targets[2:])
    assert distance((first + second, last), (total, state)) < 1e-12


def test_training_with_it_is_training_with_bptt() -> None:
    cell = rnn.readout(rnn.gru(1, 3), 1)
    xs = jnp.sin(jnp.arange(24.0)).reshape(4, 6, 1)
    optimizer = optax.adam(1e-2)
    ends = []
    for algorithm in (mine()(cell, loss), gradients.bptt(cell, loss)):
        run = train.make_train(algorithm, lambda data, step: (data, data), optimizer)
        state = train.init(cell.init(key(0)), None, optimizer, key(1))
        ends.append(train.fit(run, state, xs, steps=5).params)
    assert distance(*ends) < 1e-9
    assert distance(ends[0], cell.init(key(0))) > 1e-3


def test_one_that_draws() -> None:
    cell, params, xs, targets = problem("user")
    algorithm = uniform(cell, loss)
    with pytest.raises(TypeError, match="key: got None, but uniform draws"):
        algorithm(params, None, xs, targets)
    run = jax.jit(jax.vmap(lambda k: algorithm(params, None, xs, targets, key=k)[1]))
    draws = run(jax.random.split(key(3), 2000))
    rows = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], draws)) for i in range(2000)])
    expected = flat(gradients.bptt(cell, loss)(params, None, xs, targets)[1])
    assert (np.abs(rows.mean(0) - expected) < 5 * rows.std(0) / np.sqrt(2000) + 1e-9).all()
    assert rows.std(0).max() > 0.1


@pytest.mark.parametrize(
    ("trace", "grads", "message"),
    [
        (lambda M: M[0], lambda g: g, r"trace: got shape .* expected .* The trace of odd"),
        (lambda M: (M,), lambda g: g, "trace: got the structure"),
        (lambda M: M.astype(jnp.float32), lambda g: g, "trace: got dtype float32"),
        (lambda M: M, lambda g: g[1:], "grads: got shape .* from the update of odd"),
    ],
)
def test_what_a_rule_may_not_return(trace: Any, grads: Any, message: str) -> None:
    cell, params, xs, targets = problem("elman")

    def update(step: gradients.Step, M: Any, key: Any) -> Any:
        return trace(M), grads(step.loss_gradient()[0])

    rule = gradients.Rule(lambda origin, step, key: origin.jacobian(), update)
    with pytest.raises((ValueError, TypeError), match=message):
        gradients.Online("odd", cell, loss, rule)(params, None, xs, targets)
