"""A function read as its operations: what is found, and that it runs as it did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS, random_inputs, random_params

import rnn_jax as rnn
from rnn_jax._jaxprs import Program, users

W = jnp.arange(12.0).reshape(4, 3)
H = jnp.array([1.0, -2.0, 0.5, 3.0])


@pytest.mark.parametrize("name", NETS)
def test_a_program_is_the_step(name: str) -> None:
    """With every site as it is, and with the operands handed to somebody else."""
    cell, params = NETS[name], random_params(NETS[name])
    state = cell.init_state(params)
    x = jax.tree.map(lambda a: a[0, 0], random_inputs(name, 1, 1))

    def step(params, state, x):  # type: ignore[no-untyped-def]
        return cell.step(params, state, cell.project(params, x))

    program, expected = Program(step, params, state, x), step(params, state, x)
    leaves = jax.tree.leaves(params)

    def apply(k: int, operand: jax.Array) -> jax.Array:
        return program.sites[k].plain(leaves, operand)

    for how in (None, apply):
        found = program.run(how, params, state, x)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


def test_sites_in_the_order_of_the_function() -> None:
    def function(w, h):  # type: ignore[no-untyped-def]
        y = h @ w["a"]
        return w["b"] + y, jnp.einsum("io,o->i", w["a"], y), w["a"][jnp.argmax(h)]

    program = Program(function, {"a": W, "b": jnp.ones(3)}, H)
    assert [site.kind for site in program.sites] == ["product", "sum", "product", "row"]
    assert [site.height for site in program.sites] == [4, 1, 3, 4]
    assert [site.out.shape for site in program.sites] == [(3,), (3,), (4,), (3,)]
    leaves = [W, jnp.ones(3)]
    np.testing.assert_array_equal(program.sites[2].view(leaves), W.T)
    assert program.reasons == {}
    assert [site.kind for site in program.only([1]).sites] == ["sum"]


def test_the_step_of_a_cell_is_traced_once() -> None:
    """By a gradient, whatever the layers; with segments, once for each kind of segment."""
    count = 0

    def counted(cell: rnn.Cell) -> rnn.Cell:
        def step(params, state, z):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            return cell.step(params, state, z)

        return cell._replace(step=step)

    for net in ("lstm", "layer_norm_lstm", "stack", "readout", "user"):
        count, cell = 0, counted(NETS[net])
        params, xs = random_params(cell), random_inputs(net, 2, 5)

        def loss(params, cell=cell, xs=xs):  # type: ignore[no-untyped-def]
            return jax.vmap(lambda x: rnn.unroll(cell, params, None, x)[1])(xs).sum()

        jax.jit(jax.grad(loss)).trace(params)
        assert count == 1, net


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (
            lambda w, h: w.sum(0) + h @ w,
            "it is used in reduce_sum, not in x @ w, x + b or w[token]",
        ),
        (lambda w, h: (h @ w, w), "it is part of the state or of the output"),
        (lambda w, h: h @ w @ (w.T @ w), "it is used in a product of two weights, not in"),
        (lambda w, h: h.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), "it is cast to bfloat16"),
        (lambda w, h: w[jnp.argsort(h)], "parts of it are taken by an array, not in x @ w"),
        (lambda w, h: jax.lax.cond(h[0] > 0, jnp.sin, jnp.cos, h) @ w, "the cell uses cond"),
    ],
)
def test_reasons(function, why: str) -> None:  # type: ignore[no-untyped-def]
    program = Program(function, W, H)
    assert program.leaves == ()
    assert program.reasons[0].startswith(why)


def test_a_weight_that_comes_out_is_no_weight() -> None:
    program = Program(lambda w, h: (h @ w, w), W, H)
    assert program.sites == ()
    y, w = program.run(None, 2 * W, H)
    np.testing.assert_allclose(y, H @ (2 * W), rtol=1e-6)
    np.testing.assert_array_equal(w, 2 * W)


def test_what_reaches_the_result() -> None:
    assert users(lambda p: (p[0] + 1, jnp.zeros(2)), [W, H]) == {0}
    assert users(lambda p: p[1] @ p[0], [W, H]) == {0, 1}
    assert users(lambda p: jnp.argmax(p[1]), [W, H]) == set()


@pytest.mark.parametrize("name", ["lstm", "layer_norm_lstm", "readout", "embed", "dropout"])
def test_nothing_leaks_and_all_is_deferred_all_the_same(name: str) -> None:
    cell, params = NETS[name], random_params(NETS[name])
    xs = random_inputs(name, 1, 4)[0]
    expected = rnn.explain(cell, params, None, xs)

    def loss(params):  # type: ignore[no-untyped-def]
        return rnn.unroll(cell, params, None, xs)[1].sum()

    grads = jax.grad(loss, allow_int=True)(params)
    with jax.checking_leaks():
        assert rnn.explain(cell, params, None, xs) == expected
        found = jax.jit(jax.grad(loss, allow_int=True))(params)
    with jax.disable_jit():
        eager = jax.grad(loss, allow_int=True)(params)
    for other in (found, eager):
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(grads), strict=True):
            if a.dtype != jax.dtypes.float0:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with jax.debug_nans(True):
        jax.jit(jax.grad(loss, allow_int=True))(params)


def test_a_cell_that_looks_at_its_params_takes_the_plain_scan() -> None:
    """Numbers that are known outside of a trace may decide what a step does."""
    cell = rnn.elman(3, 4)

    def step(params, h, z):  # type: ignore[no-untyped-def]
        h, y = cell.step(params, h, z)
        return (h, -y) if float(np.asarray(params.b)[0]) > 0 else (h, y)

    own, params = cell._replace(step=step), cell.init(jax.random.key(0))
    params = params._replace(b=params.b + 1)
    xs = jnp.ones((5, 3))
    _, ys = rnn.unroll(own, params, None, xs)
    np.testing.assert_array_equal(ys, -rnn.unroll(cell, params, None, xs)[1])
    assert all(
        "looks at the numbers" in why for why in rnn.explain(own, params, None, xs)[2].values()
    )


def test_a_table_of_all_tokens_is_made_before_the_loop() -> None:
    """Once, and not at each step."""
    reader = rnn.one_hot(rnn.gru(9, 4), 9)

    def project(params, token):  # type: ignore[no-untyped-def]
        table = jax.vmap(reader.project, (None, 0))(params, jnp.arange(9))
        return jax.tree.map(lambda rows: rows[token], table)

    cell, params = reader._replace(project=project), reader.init(jax.random.key(0))
    tokens = jnp.array([3, 1, 4, 1, 5])
    assert rnn.explain(reader, params, None, tokens).project == "inside"
    assert rnn.explain(cell, params, None, tokens).project == "before"
