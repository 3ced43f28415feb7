"""Other ways to train: nets side by side, batches from the host, any gradient algorithm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import ADAMW, T, batch_at, bits, data, fresh, loss, make

import rnn_jax as rnn
from rnn_jax import gradients, train

O = 2
NET = rnn.readout(rnn.elman(3, 4), O)


def close(a: Any, b: Any, rtol: float = 2e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=1e-6)


# ---- nets side by side


def stacked(*states: train.TrainState) -> train.TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def test_nets_side_by_side_are_those_trained_alone() -> None:
    stream = data()
    alone = [train.fit(make(), fresh(seed=s), stream, steps=9) for s in (0, 3, 5)]
    start = stacked(*(fresh(seed=s) for s in (0, 3, 5)))
    rows = []
    together = train.fit(
        train.side_by_side(make()),
        start,
        stream,
        steps=9,
        on_metrics=lambda step, metrics: rows.append((step, metrics)),
    )
    assert train.step_of(together) == 9
    assert [(step, m.loss.shape) for step, m in rows] == [(0, (3, 4)), (4, (3, 4)), (8, (3, 1))]
    for i, one in enumerate(alone):
        close(one.params, jax.tree.map(lambda a, i=i: a[i], together.params))
        close(one.carry, together.carry[i])
    assert np.ptp(rows[-1][1].loss) > 1e-4  # three different nets


def test_each_net_reads_its_own_data() -> None:
    streams = jnp.stack([data(), 0.5 * data()[:, ::-1]])
    run = train.side_by_side(make(), data_axes=0)
    together = train.fit(run, stacked(fresh(), fresh()), streams, steps=6)
    for i in range(2):
        alone = train.fit(make(), fresh(), streams[i], steps=6)
        close(alone.params, jax.tree.map(lambda a, i=i: a[i], together.params))


def test_one_net_that_diverges_stops_no_other() -> None:
    poisoned = fresh()
    poisoned = poisoned._replace(params=jax.tree.map(lambda p: p * jnp.nan, poisoned.params))
    run = train.side_by_side(make())
    state = train.fit(run, stacked(fresh(), poisoned), data(), steps=12, max_skipped_in_row=5)
    assert state.skipped.tolist() == [0, 12]
    with pytest.raises(train.Diverged, match="step 0: from this one on, 5 updates"):
        train.fit(run, stacked(poisoned, poisoned), data(), steps=12, max_skipped_in_row=5)


# ---- batches from an iterator on the host


class Windows:
    """The batches of `batch_at`, one after the other; its position can be saved."""

    def __init__(self, end: int = 10**6) -> None:
        self.position, self.end, self.stream = 0, end, data()

    def __iter__(self) -> "Windows":
        return self

    def __next__(self) -> np.ndarray:
        if self.position == self.end:
            raise StopIteration
        batch = batch_at(self.stream, jnp.int32(self.position))
        self.position += 1
        return np.asarray(batch)


@pytest.fixture(scope="module")
def streaming() -> train.Run:
    return train.make_train(loss, None, ADAMW, steps_per_call=4)


def assert_same(a: train.TrainState, b: train.TrainState) -> None:
    """To rounding: XLA compiles two programs, and may sum in another order."""
    assert train.step_of(a) == train.step_of(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        elif not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(x, y)


def test_an_iterator_trains_as_data_on_the_device_do(streaming: train.Run) -> None:
    expected = train.fit(make(), fresh(), data(), steps=11)
    windows, seen = Windows(), []
    found = train.fit(
        streaming,
        fresh(),
        windows,
        steps=11,
        every=[(3, lambda state: seen.append((train.step_of(state), windows.position)))],
    )
    assert_same(found, expected)
    # when a hook is called, the batches of its updates are taken, and no others
    assert seen == [(3, 3), (6, 6), (9, 9)]
    assert windows.position == 11


def test_training_ends_where_the_iterator_does(streaming: train.Run) -> None:
    state = train.fit(streaming, fresh(), Windows(end=6), steps=100)
    assert train.step_of(state) == 6
    assert_same(state, train.fit(make(), fresh(), data(), steps=6))


def test_batches_want_an_iterator(streaming: train.Run) -> None:
    with pytest.raises(TypeError, match="got ArrayImpl, expected an iterator of batches"):
        train.fit(streaming, fresh(), data(), steps=2)


# ---- any gradient algorithm in the place of the loss


def step_loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2)


def problem(seed: int) -> tuple[Any, Any]:
    """A batch of 3 sequences of 5 steps, of which some are padding or start anew."""
    k_x, k_y, k_s = jax.random.split(jax.random.key(seed), 3)
    xs = jax.random.normal(k_x, (3, T, 3), jnp.float32)
    targets = jax.random.normal(k_y, (3, T, O), jnp.float32)
    mask = jax.vmap(lambda n: rnn.length_mask(n, T))(jnp.array([5, 0, 3]))
    reset = jnp.zeros((3, T), bool).at[0, 2].set(True)
    xs = jnp.where(mask[..., None], xs, jnp.nan)
    return (xs, targets, mask, reset), 0.3 * jax.random.normal(k_s, (3, 4), jnp.float32)


def mean_loss(params: Any, carry: Any, batch: Any, key: Any) -> Any:
    xs, targets, mask, reset = batch
    run = lambda s, x, m, r: rnn.unroll(NET, params, s, x, mask=m, reset=r)  # noqa: E731
    carry, ys = jax.vmap(run)(carry, xs, mask, reset)
    losses = jnp.where(mask, jnp.sum((ys - targets) ** 2, axis=-1), 0.0)
    return losses.sum() / mask.sum().astype(losses.dtype), carry


@pytest.mark.parametrize(
    "algorithm",
    [
        gradients.bptt(NET, step_loss),
        gradients.truncated_bptt(NET, step_loss, k1=T, k2=T),
        gradients.rtrl(NET, step_loss),
    ],
    ids=["bptt", "truncated_bptt", "rtrl"],
)
def test_an_exact_algorithm_trains_as_the_loss_does(algorithm: Any) -> None:
    batch, carry = problem(0)
    states = []
    for what in (mean_loss, algorithm):
        run = train.make_train(what, lambda batch, step: batch, ADAMW, steps_per_call=3)
        params = NET.init(jax.random.key(1))
        state = train.init(params, carry, ADAMW, jax.random.key(2))
        states.append(run(state, batch))
    (expected, a), (found, b) = states
    close(found.params, expected.params)
    close(found.carry, expected.carry)
    close(b.loss, a.loss)
    close(b.grad_norm, a.grad_norm)


def test_without_a_carry_each_sequence_starts_anew() -> None:
    (xs, targets, mask, _), _ = problem(0)
    run = train.make_train(
        gradients.bptt(NET, step_loss), lambda batch, step: batch, ADAMW, steps_per_call=2
    )
    params = NET.init(jax.random.key(1))
    state, metrics = run(train.init(params, None, ADAMW, jax.random.key(2)), (xs, targets, mask))
    expected, _ = mean_loss(
        params, jnp.zeros((3, 4)), (xs, targets, mask, jnp.zeros_like(mask)), None
    )
    np.testing.assert_allclose(metrics.loss[0], expected, rtol=1e-5)
    assert state.carry is None


def test_an_algorithm_that_draws_gets_a_key_for_each_sequence_and_update() -> None:
    (xs, targets, *_), carry = problem(3)
    xs = jnp.ones_like(xs)
    same = jnp.broadcast_to(xs[:1], xs.shape), jnp.broadcast_to(targets[:1], targets.shape)
    seen = []

    def spying(params: Any, state: Any, xs: Any, targets: Any, *, mask: Any = None, key: Any):
        jax.debug.callback(lambda k: seen.append(k.tobytes()), jax.random.key_data(key))
        return gradients.uoro(NET, step_loss)(params, state, xs, targets, mask=mask, key=key)

    run = train.make_train(spying, lambda batch, step: batch, ADAMW, steps_per_call=2)
    state = train.init(NET.init(jax.random.key(1)), carry, ADAMW, jax.random.key(2))
    jax.block_until_ready(run(state, same))
    jax.effects_barrier()
    assert len(set(seen)) == 6


def test_a_bad_update_of_an_algorithm_is_skipped() -> None:
    batch, carry = problem(0)
    targets = batch[1].at[0, 0, 0].set(jnp.inf)
    run = train.make_train(
        gradients.snap(NET, step_loss, n=1), lambda batch, step: batch, ADAMW, steps_per_call=2
    )
    state = train.init(NET.init(jax.random.key(1)), carry, ADAMW, jax.random.key(2))
    before = bits((state.params, state.opt_state, state.carry))
    state, metrics = run(state, (batch[0], targets, *batch[2:]))
    assert metrics.skipped.all()
    assert bits((state.params, state.opt_state, state.carry)) == before


def test_a_gradient_of_ones_own() -> None:
    """A sign that is turned around, as only a gradient of one's own could be, climbs."""

    def value_and_grad(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        del batch, key
        return (jnp.sum(params**2), carry), -2 * params

    run = train.make_train(
        train.Gradient(value_and_grad), lambda batch, step: batch, optax.sgd(0.1), steps_per_call=5
    )
    state = train.init(jnp.ones(2), None, optax.sgd(0.1), jax.random.key(0))
    state, metrics = run(state, jnp.zeros(()))
    np.testing.assert_allclose(state.params, 1.2**5, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, 2 * 2**0.5 * 1.2 ** np.arange(5), rtol=1e-5)


def test_batches_of_several_shapes_come_in_their_order() -> None:
    def error(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return jnp.mean((params - batch) ** 2), carry

    def trained(steps_per_call: int) -> tuple[float, list[float]]:
        sizes = [2, 2, 3, 3, 3, 2, 3, 2, 2, 2, 2]
        batches = iter([np.arange(n, dtype=np.float32) + i for i, n in enumerate(sizes)])
        run = train.make_train(error, None, optax.sgd(0.3), steps_per_call=steps_per_call)
        state, seen = train.init(jnp.float32(9.0), None, optax.sgd(0.3), jax.random.key(0)), []
        state = train.fit(
            run, state, batches, steps=11,
            on_metrics=lambda step, m: seen.extend([(step + i, x) for i, x in enumerate(m.loss)]),
        )  # fmt: skip
        assert [step for step, _ in seen] == list(range(11))
        return float(state.params), [float(x) for _, x in seen]

    one, four = trained(1), trained(4)
    np.testing.assert_allclose(four[0], one[0], rtol=1e-6)
    np.testing.assert_allclose(four[1], one[1], rtol=1e-5)
