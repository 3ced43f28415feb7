"""The network, its loss, its validation: pure functions of a config."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rnn_jax
from experiments.char_lm.config import Config
from rnn_jax import losses, train
from rnn_jax.tasks import text

CONTEXT = 256  # characters that each stream of the validation text reads before it is scored
STREAMS = 32  # of the validation text


def build(config: Config, V: int, key: jax.Array | None = None) -> rnn_jax.Cell:
    """The network: tokens in, logits [V] out. With a key it is that for training, with dropout."""
    D, H = config.embedding or V, config.hidden_size
    factory = rnn_jax.ALL_CELLS[config.cell]
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    layers = [factory(D if i == 0 else H, H, dtype=dtype) for i in range(config.layers)]
    if key is not None and config.dropout > 0:
        keys = jax.random.split(key, len(layers))
        pairs = zip(layers, keys, strict=True)
        layers = [rnn_jax.dropout(layer, config.dropout, k) for layer, k in pairs]
    deep = rnn_jax.stack(layers)
    reader = rnn_jax.embed(deep, V, D) if config.embedding else rnn_jax.one_hot(deep, V)
    if key is not None and config.batch * config.window >= V:
        reader = _tabulated(reader, V)
    return rnn_jax.readout(reader, V, hidden_size=H)


def compute(config: Config, params: Any) -> Any:
    """The params in the dtype of the computation."""
    return jax.tree.map(lambda p: p.astype(config.dtype), params)


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Adam behind clipping, with a warm-up and a learning rate that ends at 0."""
    warmup = min(config.warmup, steps // 10)
    rest = steps - warmup
    after = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    rate = optax.join_schedules([rise, after], [warmup]) if warmup else after
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


def start(config: Config, V: int, steps: int) -> train.TrainState:
    """The state before the first update: random params, zero hidden states."""
    k_params, k_carry, k_train = jax.random.split(jax.random.key(config.seed), 3)
    params = build(config, V).init(k_params)

    def initial(key: jax.Array) -> Any:
        return build(config, V, key).init_state(compute(config, params))

    carry = jax.vmap(initial)(jax.random.split(k_carry, config.batch))
    return train.init(params, carry, optimizer(config, steps), k_train)


def make_train(config: Config, V: int, steps: int, steps_per_call: int = 10) -> train.Run:
    """``run(train_state, tokens) -> (train_state, metrics)``."""
    cell = build(config, V, jax.random.key(0))  # that key is unused: those in the carry are

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        inputs, targets = batch  # [W, B] each
        params = compute(config, params)
        restart = jax.random.bernoulli(key, config.restart, (config.batch,))
        first = jnp.zeros(inputs.shape, bool).at[0].set(restart)
        carry, logits = _unroll(cell, params, carry, inputs, first if config.restart else None)
        return losses.cross_entropy(_wide(logits), targets), carry

    def batch_at(tokens: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return text.streams(tokens, step, batch=config.batch, window=config.window)

    return train.make_train(loss, batch_at, optimizer(config, steps), steps_per_call=steps_per_call)


def make_evaluate(config: Config, V: int, context: int) -> Callable[[Any, jax.Array], jax.Array]:
    """``evaluate(params, tokens) -> nats per character`` of all tokens but the first `context`.

    Each of several streams reads `context` tokens before its part, and then carries its state to
    the end, so that every character is predicted from at least so many before it.
    """
    cell = build(config, V)

    def evaluate(params: Any, tokens: jax.Array) -> jax.Array:
        C, n, W = context, tokens.shape[0] - context, config.window
        B = min(STREAMS, n)
        S = -(-n // B)  # characters that a stream scores
        params = compute(config, params)
        first = jnp.arange(B, dtype=jnp.int32) * S

        def window(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            t = jnp.broadcast_to((number * W + jnp.arange(W, dtype=jnp.int32))[:, None], (W, B))
            at = first[None, :] + t
            carry, logits = _unroll(cell, params, carry, tokens[jnp.minimum(at, C + n - 1)])
            targets = tokens[jnp.minimum(at + 1, C + n - 1)]
            scored = (t + 1 >= C) & (t + 1 < C + S) & (at + 1 < C + n)
            nats = optax.losses.softmax_cross_entropy_with_integer_labels(_wide(logits), targets)
            return carry, jnp.where(scored, nats, 0.0).sum()

        initial = jax.vmap(lambda _: cell.init_state(params))(first)
        windows = jnp.arange(-(-(C + S - 1) // W), dtype=jnp.int32)
        return jax.lax.scan(window, initial, windows)[1].sum() / n

    return jax.jit(evaluate)


def _tabulated(cell: rnn_jax.Cell, V: int) -> rnn_jax.Cell:
    """Projects each token once and looks the result up: faster where tokens repeat in a batch."""

    def project(params: Any, token: jax.Array) -> Any:
        tokens = jnp.arange(V, dtype=jnp.int32)  # not mapped, so one table serves a whole batch
        table = jax.vmap(cell.project, in_axes=(None, 0))(params, tokens)
        return jax.tree.map(lambda rows: rows[token], table)

    return cell._replace(project=project)


def _unroll(
    cell: rnn_jax.Cell, params: Any, carry: Any, tokens: jax.Array, reset: jax.Array | None = None
) -> tuple[Any, jax.Array]:
    """tokens [T, B] -> logits [T, B, V]; the batch is the second axis, so nothing is transposed."""

    def one(state: Any, xs: jax.Array, reset: jax.Array | None) -> tuple[Any, jax.Array]:
        return rnn_jax.unroll(cell, params, state, xs, reset=reset)

    return jax.vmap(one, in_axes=(0, 1, 1), out_axes=(0, 1))(carry, tokens, reset)


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.float32) if logits.dtype == jnp.bfloat16 else logits
