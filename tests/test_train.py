"""Training: bits that do not depend on chunks, skipped updates, hooks, deadlines and signals."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax as rnn
from rnn_jax import train
from rnn_jax.checkpoint import Checkpoints

B, T, D, H = 2, 5, 3, 4
CELL = rnn.gru(D, H)
ROOT = Path(rnn.__file__).parents[1]
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adamw": optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.03, 5, 40), weight_decay=0.1),
    ),
    "plateau": optax.chain(optax.adam(0.02), optax.contrib.reduce_on_plateau(0.7, 4)),
    "line search": optax.lbfgs(),
    "averages": optax.contrib.schedule_free_adamw(0.02),
    "accumulate": optax.MultiSteps(optax.adam(0.02), every_k_schedule=3),
    "hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 30)),
}
ADAMW = OPTIMIZERS["adamw"]


@functools.cache  # compiling is what takes the time here
def make(name: str = "adamw", steps_per_call: int = 4, spoils: bool = False) -> train.Run:
    return train.make_train(
        spoilt if spoils else loss, batch_at, OPTIMIZERS[name], steps_per_call=steps_per_call
    )


def batch_at(data: jax.Array, step: jax.Array) -> jax.Array:
    """Windows of T steps of B streams, one after the other, round and round."""
    return jax.lax.dynamic_slice_in_dim(data, step * T % (data.shape[1] - T), T, axis=1)


def loss(params: Any, carry: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    """Noisy one-step prediction of the stream itself: uses params, carry, batch and key."""
    noise = 0.1 * jax.random.normal(key, batch.shape)
    unroll = jax.vmap(lambda state, xs: rnn.unroll(CELL, params, state, xs))
    carry, ys = unroll(carry, batch + noise)
    return jnp.mean((ys[:, :-1, :D] - batch[:, 1:]) ** 2), carry


def data(steps: int = 61) -> jax.Array:
    """Waves, which can be predicted, of different speeds, heights and phases."""
    speed, height, phase = jax.random.uniform(jax.random.key(7), (3, B, 1, D), jnp.float32)
    t = jnp.arange(steps, dtype=jnp.float32).reshape(1, steps, 1)
    return (0.3 + height) * jnp.sin((0.3 + 0.4 * speed) * t + 6.0 * phase)


def fresh(optimizer: Any = ADAMW, seed: int = 0) -> train.TrainState:
    params = CELL.init(jax.random.key(seed))
    carry = jnp.zeros((B, H), jnp.float32)
    return train.init(params, carry, optimizer, jax.random.key(seed + 1))


GRAD = jax.jit(jax.value_and_grad(loss, has_aux=True))


def bits(tree: Any) -> list[bytes]:
    def raw(leaf: Any) -> bytes:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


# ---- one update


@pytest.mark.parametrize("name", ["sgd", "adamw", "hyperparams"])
def test_updates_are_those_of_optax(name: str) -> None:
    optimizer, run = OPTIMIZERS[name], make(name)
    start, stream = fresh(optimizer), data()
    params, opt_state, carry = start.params, start.opt_state, start.carry
    losses, norms = [], []
    for step in range(4):
        key = jax.random.fold_in(start.key, step)
        batch = stream[:, T * step : T * (step + 1)]
        (value, carry), grads = GRAD(params, carry, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            updates, opt_state = jax.jit(optimizer.update)(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(value)
        norms.append(optax.tree.norm(grads))
    got, metrics = run(fresh(optimizer), stream)
    expected = (params, opt_state, carry)
    for g, e in zip(
        jax.tree.leaves((got.params, got.opt_state, got.carry)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(g, e, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, norms, rtol=1e-5)
    assert (int(got.step), int(got.skipped), metrics.skipped.tolist()) == (4, 0, [False] * 4)


def test_optimizers_that_need_the_loss_get_it() -> None:
    """Each learns, and a plateau schedule really lowers its rate."""
    for name in ("plateau", "line search", "averages", "accumulate"):
        rows: list[np.ndarray] = []
        state = train.fit(
            make(name),
            fresh(OPTIMIZERS[name]),
            data(),
            steps=60,
            on_metrics=lambda step, metrics, rows=rows: rows.append(metrics.loss),
        )
        losses = np.concatenate(rows)
        assert losses[-10:].mean() < losses[:10].mean(), name
        if name == "plateau":
            assert 0 < state.opt_state[1].scale < 1


def test_learns_in_bfloat16_with_a_float32_metric() -> None:
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)  # noqa: E731

    def low(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        states, ys = jax.vmap(lambda h, xs: rnn.unroll(CELL, params, h, xs))(carry, batch)
        return jnp.mean((ys[..., :D] - batch) ** 2), states

    state = train.init(cast(fresh().params), cast(fresh().carry), ADAMW, jax.random.key(0))
    run = train.make_train(low, batch_at, ADAMW, steps_per_call=40)
    state, metrics = run(state, cast(data()))
    assert state.params.w_h.dtype == jnp.bfloat16
    assert metrics.loss.dtype == metrics.grad_norm.dtype == jnp.float32
    assert metrics.loss[-10:].mean() < metrics.loss[:10].mean()


@pytest.mark.usefixtures("x64")
def test_step_counters_stay_int32_in_float64() -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.float64), fresh().params)
    carry = jnp.zeros((B, H), jnp.float64)
    run = make()
    stream = data().astype(jnp.float64)
    state, _ = run(train.init(params, carry, ADAMW, jax.random.key(0)), stream)
    assert state.step.dtype == state.skipped.dtype == state.skipped_in_row.dtype == jnp.int32
    assert state.params.w_h.dtype == jnp.float64


def test_seeds_are_a_vmap() -> None:
    run = make()
    states = jax.tree.map(lambda *x: jnp.stack(x), fresh(seed=0), fresh(seed=3))
    together, metrics = jax.vmap(lambda state: run(state, data()))(states)
    assert metrics.loss.shape == (2, 4)
    for i, seed in enumerate((0, 3)):
        alone, _ = run(fresh(seed=seed), data())
        for a, b in zip(
            jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


# ---- the same bits, however the steps are cut


def test_no_bit_depends_on_the_chunks() -> None:
    """Compiled as users compile: with the flags of these tests other programs give other bits."""
    settings = ("JAX_", "XLA_")
    done = subprocess.run(
        [sys.executable, "-c", "import test_train; test_train.check_chunks()"],
        env={k: v for k, v in os.environ.items() if not k.startswith(settings)}
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def check_chunks() -> None:
    for name, optimizer in OPTIMIZERS.items():
        expected: Any = None
        for steps_per_call in (1, 4, 23) if name == "adamw" else (1, 4):
            run = make(name, steps_per_call)
            rows: list[train.Metrics] = []
            state = train.fit(
                run,
                fresh(optimizer),
                data(),
                steps=23,
                every=[(3, lambda state: None)] if steps_per_call == 4 else [],
                on_metrics=lambda step, metrics, rows=rows: rows.append(metrics),
            )
            assert sum(len(row.loss) for row in rows) == 23
            got = bits((state, [np.concatenate(column) for column in zip(*rows, strict=True)]))
            expected = got if expected is None else expected
            assert got == expected, (name, steps_per_call)
            assert run.compiled._cache_size() == 1  # nothing was compiled for the shorter chunks
        assert int(state.step) == 23


def test_stopping_and_going_on_changes_no_bit() -> None:
    run = make()
    whole = train.fit(run, fresh(), data(), steps=17)
    for split in (1, 3, 4, 11, 16):
        state = train.fit(run, fresh(), data(), steps=split)
        assert int(state.step) == split
        assert bits(train.fit(run, state, data(), steps=17)) == bits(whole), split


def test_noise_depends_on_the_key_and_the_step() -> None:
    def memoryless(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return loss(params, carry, batch, key)[0], carry

    still = optax.sgd(0.0)
    run = train.make_train(memoryless, batch_at, still, steps_per_call=13)
    period = data(steps=2 * T)  # every window is the same one
    _, metrics = run(fresh(still), period)
    assert len(set(metrics.loss.tolist())) == 13
    _, other = run(fresh(still)._replace(key=jax.random.key(99)), period)
    assert not set(metrics.loss.tolist()) & set(other.loss.tolist())


# ---- buffers


def test_run_donates_its_state_and_init_leaves_the_arguments_alone() -> None:
    params, carry, key = CELL.init(jax.random.key(0)), jnp.zeros((B, H)), jax.random.key(1)
    optimizer = optax.contrib.schedule_free_adamw(0.02)  # keeps a second copy of the params
    state = train.init(params, carry, optimizer, key)
    run = train.make_train(loss, batch_at, optimizer)
    after, _ = run(state, data())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, carry, key, after)))


def test_init_makes_strong_types_that_a_run_gives_back() -> None:
    state = train.init({"w": 1.0}, None, optax.sgd(0.1), jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state._replace(key=None)))
    run = train.make_train(
        lambda params, carry, batch, key: (params["w"] ** 2, carry),
        lambda data, step: None,
        optax.sgd(0.1),
    )
    for _ in range(3):
        state, _ = run(state, None)
    assert run.compiled._cache_size() == 1
    np.testing.assert_allclose(state.params["w"], 0.8**3, rtol=1e-6)


def test_wrong_arguments_say_so() -> None:
    with pytest.raises(ValueError, match=r"steps_per_call: got 0"):
        train.make_train(loss, batch_at, ADAMW, steps_per_call=0)
    run = make()
    for steps in (0, 5):
        with pytest.raises(ValueError, match=rf"steps: got {steps}, expected 1 to 4"):
            run(fresh(), data(), steps)
    with pytest.raises(ValueError, match="every: got 0"):
        train.fit(run, fresh(), data(), steps=5, every=[(0, print)])
    narrow = train.make_train(
        lambda p, c, b, k: (loss(p, c, b, k)[0], c[:, :2]), batch_at, ADAMW, steps_per_call=3
    )
    with pytest.raises(ValueError, match=r"carry: got shape \(2, 2\), expected \(2, 4\)"):
        narrow(fresh(), data())
    lower = train.make_train(
        lambda p, c, b, k: (loss(p, c, b, k)[0], c.astype(jnp.bfloat16)), batch_at, ADAMW
    )
    with pytest.raises(TypeError, match="carry: got dtype bfloat16, expected float32"):
        lower(fresh(), data())


# ---- what is not finite


def spoilt(params: Any, carry: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
    """The loss, spoilt where the first number of the batch is a code."""
    value, carry = loss(params, carry, jnp.where(batch > 50.0, 0.0, batch), key)
    code = batch[0, 0, 0]
    return jax.lax.switch(
        jnp.clip(code - 99.0, 0.0, 5.0).astype(jnp.int32),
        [
            lambda: (value, carry),
            lambda: (value + jnp.nan, carry),
            lambda: (value + jnp.inf, carry),
            lambda: (value + 0.0 * jnp.sqrt(0.0 * params.w_h[0, 0]), carry),  # gradient NaN only
            lambda: (value + 1e30 * params.w_h[0, 0], carry),  # its norm overflows
            lambda: (value, carry.at[1, 2].set(jnp.nan)),
        ],
    )


def spoil(stream: jax.Array, codes: dict[int, int]) -> jax.Array:
    for step, code in codes.items():
        stream = stream.at[0, T * step, 0].set(99.0 + code)
    return stream


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_a_bad_update_is_skipped_and_leaves_no_trace(code: int) -> None:
    run = make(spoils=True)
    state, _ = run(fresh(), spoil(data(), {4: code}))
    before = bits((state.params, state.opt_state, state.carry, state.key))
    state, metrics = run(state, spoil(data(), {4: code}), 1)
    assert metrics.skipped.tolist() == [True]
    assert bits((state.params, state.opt_state, state.carry, state.key)) == before
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (5, 1, 1)
    state, metrics = run(state, spoil(data(), {4: code}))
    assert not metrics.skipped.any()
    assert np.isfinite(metrics.loss).all()
    assert bits(state.params) != before[: len(bits(state.params))]
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (9, 1, 0)


def test_training_goes_on_as_if_the_bad_batch_were_not_there() -> None:
    """A memoryless optimizer and loss: skipping step 2 equals never having tried it."""
    stream = data()

    def plain(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return spoilt(params, carry, batch, jax.random.key(0))

    run = train.make_train(plain, lambda d, step: batch_at(d[0], d[1][step]), optax.sgd(0.1))
    order = jnp.array([0, 1, 2, 3, 4])
    with_bad = train.fit(run, fresh(optax.sgd(0.1)), (spoil(stream, {2: 1}), order), steps=5)
    order = jnp.array([0, 1, 3, 4])
    without = train.fit(run, fresh(optax.sgd(0.1)), (stream, order), steps=4)
    assert bits((with_bad.params, with_bad.carry)) == bits((without.params, without.carry))
    assert (int(with_bad.skipped), int(without.skipped)) == (1, 0)


def test_an_update_that_would_break_the_params_is_skipped() -> None:
    def steep(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        return -2.0 * sum(jnp.sum(x) for x in jax.tree.leaves(params)), carry

    huge = optax.sgd(3e38)  # times the gradient of -2 it overflows
    state = fresh(huge)
    before = bits(state.params)
    state, metrics = train.make_train(steep, batch_at, huge)(state, data())
    assert np.isfinite([metrics.loss, metrics.grad_norm]).all()
    assert metrics.skipped.tolist() == [True]
    assert bits(state.params) == before


def test_an_infinity_that_was_always_in_the_carry_is_allowed() -> None:
    def keeps(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        value, h = loss(params, carry["h"], batch, key)
        lowest = jnp.minimum(carry["lowest"], jnp.stack([value, jnp.inf]))
        return value, {"h": h, "lowest": lowest, "n": carry["n"] + 1}

    carry = {"h": jnp.zeros((B, H)), "lowest": jnp.full(2, jnp.inf), "n": jnp.array(0)}
    state = train.init(fresh().params, carry, ADAMW, jax.random.key(1))
    state, metrics = train.make_train(keeps, batch_at, ADAMW, steps_per_call=6)(state, data())
    assert not metrics.skipped.any()
    assert state.carry["lowest"].tolist() == [metrics.loss.min(), jnp.inf]
    assert state.carry["n"] == 6


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_many_bad_updates_in_a_row_stop_the_training(steps_per_call: int) -> None:
    codes = {2: 1, 4: 1, 5: 2, 6: 3, 7: 4}
    run = make(steps_per_call=steps_per_call, spoils=True)
    good = train.fit(run, fresh(), spoil(data(), codes), steps=4)
    kept = bits((good.params, good.opt_state, good.carry))
    seen: list[int] = []
    with pytest.raises(train.Diverged, match=r"step 4: .* 3 updates .*lower learning rate") as info:
        train.fit(
            run,
            fresh(),
            spoil(data(), codes),
            steps=8,
            max_skipped_in_row=3,
            on_metrics=lambda step, metrics: seen.append(step),
        )
    assert info.value.step == 4
    stopped = info.value.train_state
    assert bits((stopped.params, stopped.opt_state, stopped.carry)) == kept
    assert 7 <= int(stopped.step) <= 8
    assert seen[0] == 0  # the metrics of the bad chunk were shown before the error
    train.fit(run, fresh(), spoil(data(), codes), steps=8, max_skipped_in_row=5)


def test_a_row_of_bad_updates_goes_on_through_a_resume() -> None:
    codes = {3: 1, 4: 1, 5: 1}
    run = make(spoils=True)
    state = train.fit(run, fresh(), spoil(data(), codes), steps=5, max_skipped_in_row=3)
    assert int(state.skipped_in_row) == 2
    with pytest.raises(train.Diverged, match="step 3: "):
        train.fit(run, state, spoil(data(), codes), steps=9, max_skipped_in_row=3)


# ---- the loop on the host


def test_hooks_see_the_state_of_their_step_after_its_metrics() -> None:
    log: list[tuple[str, int]] = []

    def hook(name: str) -> train.Hook:
        return lambda state: log.append((name, int(state.step)))

    run = make()
    train.fit(
        run,
        train.fit(run, fresh(), data(), steps=2),
        data(),
        steps=13,
        every=[(3, hook("save")), (6, hook("sample"))],
        on_metrics=lambda step, m: log.append((f"{len(m.loss)} rows", step)),
    )
    assert log == [
        ("1 rows", 2),
        ("save", 3),
        ("3 rows", 3),
        ("save", 6),
        ("sample", 6),
        ("3 rows", 6),
        ("save", 9),
        ("3 rows", 9),
        ("save", 12),
        ("sample", 12),
        ("1 rows", 12),
    ]


def test_no_more_than_in_flight_chunks_are_ahead_of_the_host() -> None:
    compiled = make(steps_per_call=4).compiled
    started = reported = 0
    ahead: list[int] = []

    def count(state: Any, data: Any, steps: Any) -> Any:
        nonlocal started
        started += 1
        ahead.append(started - reported)
        return compiled(state, data, steps)

    def on_metrics(step: int, metrics: train.Metrics) -> None:
        nonlocal reported
        reported += 1
        assert isinstance(metrics.loss, np.ndarray)

    for in_flight in (1, 3):
        ahead.clear()
        started = reported = 0
        train.fit(
            train.Run(4, count),
            fresh(),
            data(),
            steps=40,
            on_metrics=on_metrics,
            in_flight=in_flight,
        )
        assert max(ahead) == in_flight
        assert reported == started == 10


def test_stops_when_asked_at_a_whole_step() -> None:
    run = make()
    asked = iter([False, False, True])
    state = train.fit(run, fresh(), data(), steps=100, stop=lambda: next(asked))
    assert int(state.step) == 8
    assert bits(state) == bits(train.fit(run, fresh(), data(), steps=8))


def test_stops_at_the_deadline_and_not_before() -> None:
    run = make()
    train.fit(run, fresh(), data(), steps=3)  # compiles
    start = time.monotonic()
    state = train.fit(run, fresh(), data(), steps=10**9, deadline=start + 0.5)
    assert time.monotonic() >= start + 0.5
    assert 3 < int(state.step) < 10**9
    assert int(train.fit(run, fresh(), data(), steps=9, deadline=start).step) == 0
    assert int(train.fit(run, fresh(), data(), steps=9, deadline=start + 60).step) == 9


def test_nothing_is_left_to_do_at_the_last_step() -> None:
    run = make()
    state = train.fit(run, fresh(), data(), steps=5)
    again = train.fit(run, state, data(), steps=5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again))
    assert int(train.fit(run, again, data(), steps=4).step) == 5


# ---- signals


def test_signals_ask_once_and_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with train.stop_on_signals() as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert stop.received == number
            signal.raise_signal(signal.SIGTERM)  # again: launchers send it twice
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), train.stop_on_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def start_child(script: str, *arguments: Any) -> subprocess.Popen[str]:
    """Runs a test module as a script, in a process that a signal may end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-u", "-W", "error", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_signal_ends_a_run_after_a_save(tmp_path: Path) -> None:
    children = {
        n: start_child(__file__, tmp_path / n.name) for n in (signal.SIGINT, signal.SIGTERM)
    }
    for number, child in children.items():
        assert child.stdout is not None
        assert child.stdout.readline() == "training\n"
        child.send_signal(number)
        last_words = child.stdout.read()
        child.stdout.close()
        assert child.wait() == 0
        assert number.name in last_words
        steps = int(last_words.split()[-1])
        saved = Checkpoints(tmp_path / number.name).restore("last", like=fresh())
        assert int(saved.step) == steps > 0
        expected = train.fit(make(), fresh(), data(), steps=steps)
        np.testing.assert_allclose(saved.params.w_h, expected.params.w_h, atol=1e-3)


def _train_until_stopped(folder: str) -> None:
    run = make()
    checkpoints = Checkpoints(folder)

    def greet(state: train.TrainState) -> None:
        if int(state.step) == 10:
            print("training")

    with train.stop_on_signals() as stop:
        state = train.fit(run, fresh(), data(), steps=10**9, stop=stop, every=[(10, greet)])
        saved = checkpoints.save(state)
    print(stop.received.name if stop.received else "not stopped", saved.step)


if __name__ == "__main__":
    _train_until_stopped(sys.argv[1])
