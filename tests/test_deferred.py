"""Every plan of `unroll` gives the numbers of the plain scan, under every transform."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from nets import NETS, D, H, key, random_inputs, random_params
from test_laws import assert_close, loop, map_floats, random_state

import rnn_jax as rnn
from rnn_jax import Plan

B, T = 3, 5
PLAIN = Plan(project="before", defer=False)
BEFORE = Plan(project="before")
PLANS = (Plan(), BEFORE)
every_net = pytest.mark.parametrize("name", NETS)
some_nets = pytest.mark.parametrize(
    "name", ["elman", "gru", "lstm_peepholes", "layer_norm_elman", "embed", "dropout"]
)
few_nets = pytest.mark.parametrize("name", ["lstm", "embed"])
pytestmark = pytest.mark.usefixtures("x64")


def floats_of(tree: Any) -> list[jax.Array]:
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


def merged(floats: Sequence[jax.Array], tree: Any) -> Any:
    """`tree` with other floats, its integers and keys as they are."""
    left = iter(floats)
    return map_floats(lambda _: next(left), tree)


def score(tree: Any) -> jax.Array:
    """A curved loss to which every float of a tree contributes differently."""
    terms = [
        (jnp.sin(a) * jnp.cos(jnp.arange(a.size).astype(a.dtype)).reshape(a.shape)).sum()
        for a in floats_of(tree)
    ]
    return sum(terms[1:], start=terms[0])


def moved(tree: Any) -> Any:
    """A tangent of all floats."""
    return map_floats(lambda a: jnp.cos(3 * a), tree)


class Net:
    """A cell with params, a state and a batch, and what is done with them under a plan."""

    def __init__(self, cell: rnn.Cell, xs: Any, params: Any = None, state: Any = None) -> None:
        self.cell, self.xs = cell, xs
        self.params = random_params(cell) if params is None else params
        self.state = random_state(cell, self.params) if state is None else state
        self.steps = xs.shape[1]
        self.masks = rnn.length_mask(jnp.array([0, self.steps, 4]), self.steps)
        self.reset = jnp.arange(self.steps) == 2

    def given(self, x: Any) -> list[jax.Array]:
        """What is differentiated: the floats of params, state and inputs."""
        return floats_of((self.params, self.state, x))

    def run(self, plan: Plan, floats: Any, x: Any, **options: Any) -> Any:
        params, state, x = merged(floats, (self.params, self.state, x))
        return rnn.unroll(self.cell, params, state, x, plan=plan, **options)

    def examples(self, plan: Plan, **options: Any) -> Any:
        """State, outputs and gradients of each example."""

        def example(x: Any, mask: Any) -> Any:
            def loss(floats: Any) -> Any:
                out = self.run(plan, floats, x, mask=mask, **options)
                return score(out), out

            return jax.value_and_grad(loss, has_aux=True)(self.given(x))

        return jax.vmap(example)(self.xs, self.masks)

    def seeds(self) -> Any:
        """Two params, stacked."""
        seeds = [random_params(self.cell, seed) for seed in (3, 4)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    def natural(self, plan: Plan, params: Any, xs: Any = None) -> jax.Array:
        """The mean over a batch, as one trains."""
        xs = self.xs if xs is None else xs
        return jax.vmap(lambda x: score(rnn.unroll(self.cell, params, self.state, x, plan=plan)))(
            xs
        ).mean()


def net(name: str, steps: int = T) -> Net:
    return Net(NETS[name], random_inputs(name, B, steps))


def assert_agree(
    results: Callable[[Plan], Any], plans: Sequence[Plan] = PLANS, atol: float = 1e-11
) -> None:
    """In one program, since most of the time is compiling."""
    plain, *others = jax.jit(lambda: [results(plan) for plan in (PLAIN, *plans)])()
    assert max(float(jnp.abs(a).max()) for a in floats_of(plain) if a.size) > 1e-3
    for other in others:
        assert_close(other, plain, atol=atol)


@every_net
def test_values_and_gradients(name: str) -> None:
    """Of each example, masked, reset and in reverse, in params, state and inputs."""
    n = net(name)
    assert_agree(functools.partial(n.examples, reset=n.reset, reverse=True))


@few_nets
def test_the_natural_call(name: str) -> None:
    """The gradient of the mean of a batch; over it, several params, each with its own batch."""
    n = net(name)
    batches = jnp.stack([n.xs, n.xs[::-1]])

    def results(plan: Plan) -> Any:
        grad = jax.grad(functools.partial(n.natural, plan))
        return grad(n.params), jax.vmap(grad)(n.seeds()), jax.vmap(grad)(n.seeds(), batches)

    assert_agree(results, [Plan()])


@few_nets
def test_other_plans(name: str) -> None:
    n = net(name)
    plans = [BEFORE._replace(steps=2), Plan(project="inside", steps=3)]
    assert_agree(lambda plan: jax.grad(functools.partial(n.natural, plan))(n.params), plans)


@pytest.mark.parametrize("name", ["layer_norm_lstm", "dropout"])
def test_the_projection_where_it_would_not_be(name: str) -> None:
    n = net(name)
    inside = Plan(project="inside", defer=False), Plan(project="inside")
    assert_agree(lambda plan: jax.grad(functools.partial(n.natural, plan))(n.params), inside)


@some_nets
def test_second_derivatives(name: str) -> None:
    """A slope, forward over reverse, and reverse over reverse, in params, state and inputs."""
    n = net(name, 3)
    given = floats_of((n.params, n.state, n.xs))
    tangent = moved(given)

    def results(plan: Plan) -> Any:
        def loss(floats: Any) -> Any:
            params, state, xs = merged(floats, (n.params, n.state, n.xs))
            return jax.vmap(lambda x: score(rnn.unroll(n.cell, params, state, x, plan=plan)))(
                xs
            ).mean()

        def along(floats: Any) -> Any:
            return score(jax.tree.map(jnp.multiply, jax.grad(loss)(floats), tangent))

        slopes = jax.jvp(jax.value_and_grad(loss), (given,), (tangent,))
        return slopes, jax.grad(along)(given)

    assert_agree(results, [Plan()])


@pytest.mark.parametrize("steps", [0, 1])
@few_nets
def test_short_sequences(name: str, steps: int) -> None:
    n = net(name, steps)
    assert_agree(lambda plan: (n.examples(plan), n.examples(plan, reset=n.reset, reverse=True)))


@few_nets
@pytest.mark.parametrize("options", [{}, {"reverse": True}], ids=["forward", "reverse"])
def test_without_masks(name: str, options: Any) -> None:
    n = net(name)

    def results(plan: Plan) -> Any:
        def loss(floats: Any, x: Any) -> Any:
            out = n.run(plan, floats, x, **options)
            return score(out), out

        return jax.vmap(lambda x: jax.value_and_grad(loss, has_aux=True)(n.given(x), x))(n.xs)

    assert_agree(results)


@few_nets
def test_the_plain_scan_is_the_loop(name: str) -> None:
    n = net(name)
    x = n.xs[0]

    def looped(floats: Any) -> Any:
        params, state, x = merged(floats, (n.params, n.state, n.xs[0]))
        return score(loop(n.cell, params, state, x))

    expected = jax.value_and_grad(looped)(n.given(x))
    got = jax.jit(jax.value_and_grad(lambda floats: score(n.run(PLAIN, floats, x))))(n.given(x))
    assert_close(got, expected)


def test_without_jit() -> None:
    n = net("elman", 3)
    natural = jax.grad(functools.partial(n.natural, Plan()))
    expected = jax.jit(natural)(n.params)
    assert_close(natural(n.params), expected)
    with jax.disable_jit():
        assert_close(natural(n.params), expected)


@few_nets
def test_inside_other_loops_and_checkpoints(name: str) -> None:
    n = net(name)

    def results(plan: Plan) -> Any:
        def remembered(params: Any) -> Any:
            return jax.checkpoint(functools.partial(n.natural, plan))(params)

        def windows(params: Any) -> Any:
            def window(state: Any, x: Any) -> Any:
                return rnn.unroll(n.cell, params, state, x, plan=plan)

            return score(jax.lax.scan(window, n.state, n.xs))

        def descent(params: Any, _: Any) -> Any:
            grads = jax.grad(functools.partial(n.natural, plan))(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        return (
            jax.grad(remembered)(n.params),
            jax.grad(windows)(n.params),
            jax.lax.scan(descent, n.params, length=2)[0],
        )

    assert_agree(results, [Plan(), BEFORE])


@few_nets
def test_truncated_bptt_runs_it(name: str) -> None:
    """In one window it is the plain gradient."""
    n = net(name)
    x, targets = n.xs[0], jnp.sin(jnp.arange(T * H)).reshape(T, H)

    def loss(y: Any, target: Any) -> Any:
        return (jnp.sin(y) * target).sum()

    def plain(params: Any) -> Any:
        state, ys = rnn.unroll(n.cell, params, n.state, x, plan=PLAIN)
        return jax.vmap(loss)(ys, targets).sum(), state

    windowed = rnn.gradients.truncated_bptt(n.cell, loss, k1=2, k2=T + 1)
    got = jax.jit(windowed)(n.params, n.state, x, targets)
    assert_close(got, jax.jit(jax.value_and_grad(plain, has_aux=True))(n.params), atol=1e-11)


@few_nets
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keeps_the_dtype(name: str, dtype: str) -> None:
    exact = net(name)
    low = map_floats(lambda a: a.astype(dtype), (exact.xs, exact.params, exact.state))
    n = Net(exact.cell, *low)
    plain, *others = jax.jit(lambda: [n.examples(plan) for plan in (PLAIN, Plan(), BEFORE)])()
    tolerance = {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    for other in others:
        for got, expected in zip(floats_of(other), floats_of(plain), strict=True):
            assert got.dtype == expected.dtype == jnp.dtype(dtype)
            got, expected = np.asarray(got, float), np.asarray(expected, float)
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=tolerance * (1 + np.abs(expected).max())
            )


def test_precision_is_that_of_the_context() -> None:
    n = net("lstm")
    for plan in (Plan(), BEFORE):

        def lowered(plan: Plan = plan) -> str:
            return (
                jax.jit(jax.grad(lambda params: n.natural(plan, params))).lower(n.params).as_text()
            )

        with jax.default_matmul_precision("highest"):
            products = [line for line in lowered().splitlines() if "dot_general" in line]
        assert len(products) >= 5
        assert all("HIGHEST" in line for line in products)
        assert "HIGHEST" not in lowered()


def test_a_batch_over_devices() -> None:
    """Each device has its part of the batch; they meet once, after the loop."""
    n = net("lstm")
    xs = jnp.concatenate([n.xs, n.xs[:1]])
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    everywhere, parts = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("batch",)))
    given = jax.device_put(n.params, everywhere), jax.device_put(xs, parts)

    for plan in (PLAIN, Plan(), BEFORE):
        natural = functools.partial(n.natural, plan)
        expected = jax.jit(jax.grad(natural, (0, 1)))(n.params, xs)
        whole = jax.jit(jax.grad(natural, (0, 1))).lower(*given).compile()
        assert_close(whole(*given), expected)
        assert reduced_in_a_loop(whole.as_text()) == (plan == PLAIN)

        def mean(params: Any, xs: Any, natural: Any = natural) -> Any:
            return jax.lax.pmean(natural(params, xs), "batch")

        specs = PartitionSpec(), PartitionSpec("batch")
        mapped = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        assert_close(jax.jit(jax.grad(mapped, (0, 1)))(n.params, xs), expected)


def reduced_in_a_loop(text: str) -> bool:
    """Whether HLO has an all-reduce outside of its entry; it must have one in it."""
    entry = False
    places = set()
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        if re.search(r"\ball-reduce(-start)?\(", line):
            places.add(entry)
    assert True in places
    return False in places


def jaxprs(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr and all inside of it."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda a: isinstance(a, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from jaxprs(inner)


def loops_that_sum(n: Net, plan: Plan, shape: tuple[int, ...]) -> int:
    """How many loops of the gradient carry an array of `shape`, or emit one at each step."""
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(n.natural, plan)))(n.params)
    outputs = [
        v.aval.shape
        for inner in jaxprs(jaxpr)
        for eqn in inner.eqns
        if eqn.primitive.name == "scan"
        for v in eqn.outvars
    ]
    assert outputs
    return outputs.count(shape) + outputs.count((n.steps, *shape))


def test_the_gradient_is_not_summed_in_the_loop() -> None:
    n = net("lstm")
    n.xs = n.xs[:2]  # so that no other array has the shape of a gradient
    for name in ("w_x", "w_h", "b"):
        shape = getattr(n.params, name).shape
        inside = PLAIN._replace(project="inside")
        assert loops_that_sum(n, inside, shape) == 1
        for plan in (Plan(), BEFORE, Plan(project="inside")):
            assert loops_that_sum(n, plan, shape) == 0
    peepholes = net("lstm_peepholes")
    peepholes.xs = peepholes.xs[:2]
    assert loops_that_sum(peepholes, Plan(), (3, H)) == 1
    assert loops_that_sum(peepholes, Plan(), (H, 4 * H)) == 0


# What a user may write. Each cell is h' = tanh(x W_x + b + f(params, h)).

Recurrence = Callable[[Any, jax.Array], jax.Array]


def cell_of(recurrence: Recurrence, **more: tuple[int, ...]) -> rnn.Cell:
    shapes = {"w_x": (D, H), "w": (H, H), "b": (H,)} | more

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return {
            name: 0.5 * jax.random.normal(k, shape, float)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def step(params: Any, h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(z + recurrence(params, h))
        return h, h

    return rnn.Cell(
        init=init,
        init_state=lambda params: jnp.zeros(H),
        project=lambda params, x: x @ params["w_x"] + params["b"],
        step=step,
    )


def twice(f: Callable[[jax.Array], jax.Array], h: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, _: (jnp.tanh(f(h)), None), h, length=2)[0]


def both(h: jax.Array) -> jax.Array:
    return jnp.stack([h, 2 * h])


PERMUTED = np.array([2, 0, 3, 1])
DEFERRED: dict[str, Recurrence] = {  # how w is used
    "transposed": lambda p, h: h @ p["w"].T,
    "slices": lambda p, h: jnp.concatenate([h @ p["w"][:, :3], h[1:] @ p["w"][1:, 3:]]),
    "overlapping slices": lambda p, h: h @ p["w"][:] + h[:2] @ p["w"][1:3],
    "a part of the transpose": lambda p, h: h[:2] @ p["w"].T[2:],
    "tied": lambda p, h: jnp.tanh(h @ p["w"]) @ p["w"].T,
    "twice in a sum": lambda p, h: h @ p["w"] + (2 * h) @ p["w"] + h @ p["w"],
    "row": lambda p, h: p["w"][jnp.argmax(h)],
    "row of a part": lambda p, h: p["w"].T[1:][jnp.argmin(h[:3])] + h @ p["w"],
    "bias elsewhere": lambda p, h: jnp.sin(p["b"] + h) + h @ p["w"],
    "bias turned": lambda p, h: h @ p["w"] + p["b"][::-1],
    "vectors side by side": lambda p, h: (both(h) @ p["w"]).sum(0),
    "permuted": lambda p, h: h @ p["w"][:, PERMUTED],
    "a constant": lambda p, h: np.ones(H) @ p["w"] + h,
    "not at all": lambda p, h: h,
    "einsum": lambda p, h: jnp.einsum("i,io->o", h, p["w"]),
    "einsum from the left": lambda p, h: jnp.einsum("oi,bi->ob", p["w"], both(h)).sum(1),
    "over two axes": lambda p, h: jnp.einsum("ijo,ij->o", p["w"].reshape(2, 2, H), h.reshape(2, 2)),
    "in parts before a sum": lambda p, h: jnp.concatenate(
        [
            jnp.sin(a + b)
            for a, b in zip(jnp.split(h @ p["w"], 2), jnp.split((2 * h) @ p["w"].T, 2), strict=True)
        ]
    ),
    "in parts that differ": lambda p, h: jnp.concatenate(
        [
            jnp.sin(jnp.split(h @ p["w"], 2)[0] + jnp.split((2 * h) @ p["w"].T, 2)[1]),
            jnp.cos(jnp.split(h @ p["w"][::-1], 2)[1]),
        ]
    ),
    "parts of unequal sums": lambda p, h: jnp.tile(
        jnp.sin((h @ p["w"])[:2] + (h @ p["w"][:, :3])[:2]), 2
    ),
    "read twice": lambda p, h: (lambda z: jnp.sin(z) + z + (2 * h) @ p["w"].T)(h @ p["w"]),
    "turned in a sum": lambda p, h: (p["w"] @ both(h).T + jnp.outer(h, h) @ p["w"][:, :2]).sum(1),
    "two axes out": lambda p, h: jnp.einsum("iab,i->ab", p["w"].reshape(H, 2, 2), h).reshape(H),
    "dot": lambda p, h: jnp.dot(h, p["w"]),
    "left of @": lambda p, h: p["w"] @ h,
    "left of @ a matrix": lambda p, h: (p["w"] @ both(h).T).sum(1),
    "joined": lambda p, h: jnp.concatenate([h, h]) @ jnp.concatenate([p["w"], p["w"].T]),
    "h and more": lambda p, h: (
        jnp.concatenate([jnp.cos(h[:1]), h, h[:2]])
        @ jnp.concatenate([p["w"][:1], p["w"], p["w"][2:]])
    ),
    "from the left of h and more": lambda p, h: p["w"] @ jnp.concatenate([h[:1], jnp.sin(h[1:])]),
    "split": lambda p, h: jnp.concatenate([h @ w for w in jnp.split(p["w"], 2, axis=1)]),
    "also scaled": lambda p, h: h @ p["w"] + h @ (2 * p["w"]),
    "through a fixed mask": lambda p, h: h @ (p["w"] * np.tri(H)),
    "sum of matrices": lambda p, h: h @ (p["w"] + p["w"].T),
    "given to jit": lambda p, h: jax.jit(lambda w, h: h @ w)(p["w"], h),
    "in jit": lambda p, h: jax.jit(lambda h: jnp.sin(h @ p["w"]))(h),
    "in vmap": lambda p, h: jax.vmap(lambda h: jnp.sin(h @ p["w"] + p["b"]))(both(h)).sum(0),
    "given to vmap": lambda p, h: jax.vmap(lambda w, h: h @ w, (None, 0))(p["w"], both(h)).sum(0),
    "in checkpoint": lambda p, h: jax.checkpoint(lambda h: jnp.sin(h @ p["w"]))(h),
    "in grad": lambda p, h: jax.grad(lambda h: jnp.sin(h @ p["w"]).sum())(h),
    "in jvp": lambda p, h: jax.jvp(lambda h: jnp.sin(h @ p["w"]), (h,), (jnp.cos(h),))[1],
    "constant rows": lambda p, h: h @ p["w"][jnp.array([2, 0, 3, 1])],
    "a row taken": lambda p, h: jnp.take(p["w"], jnp.argmax(h), axis=0),
    "few rows": lambda p, h: jnp.take(p["w"], jnp.argsort(h)[:2], axis=0).sum(0),
    "no such row": lambda p, h: jnp.take(p["w"], 9 + jnp.argmax(h), axis=0, fill_value=0.5),
    "bias subtracted": lambda p, h: h @ p["w"] - p["b"],
    "sum of biases": lambda p, h: h @ p["w"] + (p["b"] + p["b"][::-1]),
}
IN_LOOP: dict[str, Recurrence] = {
    "also elsewhere": lambda p, h: h @ p["w"] + p["w"].sum(0),
    "cut off": lambda p, h: h @ jax.lax.stop_gradient(p["w"]),
    "row by a number": lambda p, h: p["w"][1] * h,
    "row added": lambda p, h: p["w"][1] + h,
    "compared": lambda p, h: jnp.where(p["w"] == p["w"].max(), 0.5, 1.0) @ h,
    "in scan": lambda p, h: twice(lambda h: h @ p["w"], h),
    "in fori_loop": lambda p, h: jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ p["w"]), h),
    "rows by a traced index": lambda p, h: h @ p["w"][jnp.argsort(h)],
    "cast": lambda p, h: (h.astype(jnp.float32) @ p["w"].astype(jnp.float32)).astype(float),
    "with itself": lambda p, h: h @ (p["w"] @ p["w"]),
    "for each example": lambda p, h: jax.vmap(jnp.dot)(both(h), p["w"].reshape(2, H, 2)).reshape(H),
    "an own derivative": lambda p, h: doubled(p["w"], h),
}
BIAS_IN_LOOP: dict[str, Recurrence] = {  # how b is used, beside the projection
    "taken from": lambda p, h: p["b"] - h @ p["w"],
    "compared": lambda p, h: jnp.where(p["b"] == 0, 0.5, 1.0) * h,
    "not equal": lambda p, h: jnp.where(p["b"] != 0, 0.5, 1.0) * h,
    "in scan": lambda p, h: twice(lambda h: h + p["b"], h),
    "by a traced index": lambda p, h: h + p["b"][jnp.argsort(h)],
}


@jax.custom_jvp
def doubled(w: jax.Array, h: jax.Array) -> jax.Array:
    """A product whose derivative is twice what it is."""
    return h @ w


doubled.defjvp(lambda given, d: (given[1] @ given[0], 2 * (d[1] @ given[0] + given[1] @ d[0])))


@jax.custom_vjp
def clipped(h: jax.Array) -> jax.Array:
    """The identity, with a bounded gradient."""
    return h


clipped.defvjp(lambda h: (h, None), lambda _, ct: (jnp.clip(ct, -0.01, 0.01),))
OPERATIONS: dict[str, Recurrence] = {  # what else is in a step, beside products
    "relu": lambda p, h: jax.nn.relu(h) @ p["w"],
    "sort": lambda p, h: jnp.sort(h) @ p["w"],
    "solve": lambda p, h: jnp.linalg.solve(2 * jnp.eye(H) + jnp.outer(h, h), h) @ p["w"],
    "scan": lambda p, h: twice(jnp.sin, h) @ p["w"],
    "checkpoint": lambda p, h: jax.checkpoint(jnp.sin)(h) @ p["w"],
    "scatter": lambda p, h: h.at[jnp.argmax(h)].set(0.0) @ p["w"],
}
PLAIN_SCAN: dict[str, Recurrence] = {  # what leaves the whole cell to the plain scan
    "product in cond": lambda p, h: jax.lax.cond(
        h[0] > 0, lambda h: h @ p["w"], lambda h: 2 * h, h
    ),
    "bias in cond": lambda p, h: jax.lax.cond(h[0] > 0, lambda h: h + p["b"], lambda h: 2 * h, h),
    "product in switch": lambda p, h: jax.lax.switch(
        jnp.argmax(h), [lambda h: h @ p["w"], lambda h: h @ p["w"].T, jnp.sin], h
    ),
    "cond": lambda p, h: jax.lax.cond(h[0] > 0, jnp.sin, jnp.cos, h) @ p["w"],
    "switch": lambda p, h: jax.lax.switch(jnp.argmax(h), [jnp.sin, jnp.cos], h) @ p["w"],
    "custom_vjp": lambda p, h: clipped(h) @ p["w"],
}


def user_net(cell: rnn.Cell) -> Net:
    params = cell.init(key(1))
    params["b"] = params["b"].at[1].set(0)  # for the cells that compare it with 0
    xs = random_inputs("user", 2, T)
    return Net(cell, xs, params, jnp.sin(jnp.arange(1.0, H + 1)))


def explained(n: Net, plan: Plan = Plan()) -> rnn.Explanation:  # noqa: B008
    return rnn.explain(n.cell, n.params, n.state, n.xs[0], plan=plan)


def assert_derivatives_agree(n: Net) -> None:
    """Of first and second order."""
    tangent = moved(n.params)

    def results(plan: Plan) -> Any:
        natural = functools.partial(n.natural, plan)
        both_orders = jax.jvp(jax.value_and_grad(natural), (n.params,), (tangent,))
        return jax.jvp(natural, (n.params,), (tangent,)), both_orders

    assert_agree(results, [Plan()])


def assert_gradients_agree(n: Net) -> None:
    assert_agree(lambda plan: jax.grad(functools.partial(n.natural, plan))(n.params), [Plan()])


@pytest.mark.parametrize("name", DEFERRED)
def test_what_is_deferred(name: str) -> None:
    n = user_net(cell_of(DEFERRED[name]))
    assert explained(n) == rnn.Explanation("inside", ("['b']", "['w']", "['w_x']"), {})
    assert_derivatives_agree(n)


@pytest.mark.parametrize("name", IN_LOOP)
def test_what_is_not_deferred(name: str) -> None:
    n = user_net(cell_of(IN_LOOP[name]))
    deferred, in_loop = explained(n)[1:]
    assert list(in_loop) == ["['w']"]
    assert deferred == ("['b']", "['w_x']")
    assert_gradients_agree(n)


@pytest.mark.parametrize("name", BIAS_IN_LOOP)
def test_which_bias_is_not_deferred(name: str) -> None:
    n = user_net(cell_of(BIAS_IN_LOOP[name]))
    assert list(explained(n).in_loop) == ["['b']"]
    assert_gradients_agree(n)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_a_step(name: str) -> None:
    assert_gradients_agree(user_net(cell_of(OPERATIONS[name])))


@pytest.mark.parametrize("name", PLAIN_SCAN)
def test_cells_for_the_plain_scan(name: str) -> None:
    """Once linearized, their steps cannot be mapped and then transposed."""
    n = user_net(cell_of(PLAIN_SCAN[name]))
    assert explained(n).deferred == ()
    assert set(explained(n).in_loop) == {"['b']", "['w']", "['w_x']"}
    assert_gradients_agree(n)


def test_scalars_stay_in_the_loop() -> None:
    """And of a tensor the part that is a matrix is deferred."""
    n = user_net(cell_of(lambda p, h: p["a"] * h @ p["w"] + h @ p["t"][1], a=(), t=(2, H, H)))
    assert explained(n).deferred == ("['b']", "['t']", "['w']", "['w_x']")
    assert_derivatives_agree(n)


def test_a_state_that_is_a_matrix() -> None:
    """What is kept of it are the rows of the product, in their order."""

    def step(params: Any, h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(z.reshape(2, 2) + jnp.einsum("ijo,ij->o", params["t"], h).reshape(2, 2))
        return h, h

    base = cell_of(lambda p, h: h, t=(2, 2, H))
    cell = base._replace(step=step, init_state=lambda params: jnp.zeros((2, 2)))
    n = Net(cell, random_inputs("user", 2, T), state=jnp.sin(jnp.ones((2, 2))))
    assert "['t']" in explained(n).deferred
    assert_derivatives_agree(n)


def scaled(rate: Any) -> rnn.Cell:
    """A cell that closes over a hyperparameter."""
    return cell_of(lambda p, h: rate * (h @ p["w"]))


def test_a_traced_value_in_a_cell() -> None:
    """It has every derivative, alone and with the params."""
    rates, n = jnp.array([0.3, 0.7]), user_net(scaled(1.0))

    def results(plan: Plan) -> Any:
        def loss(rate: Any, params: Any) -> Any:
            traced = Net(scaled(rate), n.xs, params, n.state)
            return traced.natural(plan, params)

        return (
            jax.vmap(loss, (0, None))(rates, n.params),
            jax.vmap(jax.grad(loss, (0, 1)), (0, None))(rates, n.params),
            jax.jvp(lambda rate: loss(rate, n.params), (rates[0],), (rates[1],)),
            jax.hessian(loss)(rates[0], n.params),
        )

    assert_agree(results, [Plan(), BEFORE])


def test_a_traced_value_does_not_hinder() -> None:
    n, found = user_net(scaled(1.0)), []

    @jax.vmap
    def look(rate: Any) -> Any:
        found.append(explained(Net(scaled(rate), n.xs, n.params, n.state)))
        return rate

    look(jnp.array([0.3, 0.7]))
    assert found[0].deferred == ("['b']", "['w']", "['w_x']")


def test_a_named_axis_in_a_cell() -> None:
    """A cell may look at the rest of the batch."""
    cell = cell_of(lambda p, h: h @ p["w"] - jax.lax.pmean(h, "batch"))
    n = user_net(cell_of(lambda p, h: h @ p["w"]))

    def results(plan: Plan) -> Any:
        def loss(params: Any) -> Any:
            run = lambda x: rnn.unroll(cell, params, n.state, x, plan=plan)  # noqa: E731
            return score(jax.vmap(run, axis_name="batch")(n.xs))

        return jax.grad(loss)(n.params)

    assert_agree(results, [Plan(), BEFORE])


def test_complex_params() -> None:
    n = user_net(cell_of(lambda p, h: h @ p["w"]))
    params = jax.tree.map(lambda a: jax.lax.complex(a, 0.3 * a), n.params)
    cell = n.cell._replace(
        init=lambda key: jax.tree.map(lambda a: a.astype(complex), n.cell.init(key)),
        init_state=lambda params: jnp.zeros(H, complex),
    )

    def results(plan: Plan) -> Any:
        def loss(params: Any) -> Any:
            return jnp.abs(
                rnn.unroll(cell, params, None, n.xs[0].astype(complex), plan=plan)[1]
            ).sum()

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda a: (a.real, a.imag), grads)

    assert_agree(results)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "lstm",
            """\
projection: inside the loop
params.w_x: gradient deferred
params.w_h: gradient deferred
params.b: gradient deferred""",
        ),
        (
            "lstm_peepholes",
            """\
projection: inside the loop
params.w_x: gradient deferred
params.w_h: gradient deferred
params.b: gradient deferred
params.w_c: gradient in the loop (it is used in mul, not in x @ w, x + b or w[token])""",
        ),
    ],
)
def test_explanation_in_words(name: str, text: str) -> None:
    assert str(explained(net(name))) == text


def test_explanations() -> None:
    lstm = net("lstm")
    everything = (".w_x", ".w_h", ".b")
    assert explained(lstm) == ("inside", everything, {})
    assert explained(lstm, BEFORE) == ("before", everything, {})
    project, deferred, in_loop = explained(lstm, PLAIN)
    assert (project, deferred, tuple(in_loop)) == ("before", (), everything)

    normalised = explained(net("layer_norm_lstm"))
    assert {".w_x", ".w_h"} <= set(normalised.deferred)
    assert {".gain_h", ".gain_c"} <= set(normalised.in_loop)

    tokens = explained(net("embed"))
    assert tokens.in_loop == {}
    assert len(tokens.deferred) == len(jax.tree.leaves(net("embed").params))


def test_an_unknown_projection() -> None:
    n = net("lstm")
    for call in (rnn.unroll, rnn.explain):
        with pytest.raises(ValueError, match=r"plan\.project: got 'after', expected"):
            call(n.cell, n.params, None, n.xs[0], plan=Plan(project="after"))
