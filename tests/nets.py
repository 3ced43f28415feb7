"""The nets over which the laws hold: every cell, its options, and every combinator."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnn_jax as rnn

D, H = 3, 4


class Leaky(NamedTuple):
    """Params of a cell as a user would write it, with a learned initial state."""

    rate: jax.Array  # []
    w: jax.Array  # [D, H]
    start: jax.Array  # [H]


def user_cell() -> rnn.Cell:
    def init(key: jax.Array) -> Leaky:
        return Leaky(
            rate=jnp.array(0.3, float), w=jax.random.normal(key, (D, H), float), start=jnp.ones(H)
        )

    def step(params: Leaky, state: dict[str, Any], z: jax.Array) -> tuple[Any, jax.Array]:
        h = params.rate * jnp.tanh(state["h"]) + z
        return {"h": h, "count": state["count"] + 1}, 2.0 * h

    return rnn.Cell(
        init=init,
        init_state=lambda params: {"h": params.start, "count": jnp.array(0, jnp.int32)},
        project=lambda params, x: x @ params.w,
        step=step,
    )


def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


CELLS = {name: factory(D, H) for name, factory in rnn.ALL_CELLS.items()} | {
    "lstm_peepholes": rnn.lstm(D, H, peepholes=True),
    "user": user_cell(),
}
COMBINED = {
    "stack": rnn.stack([rnn.lstm(D, 5), rnn.gru(5, 2), rnn.elman(2, H)]),
    "readout": rnn.readout(rnn.stack([rnn.gru_reset_after(D, 5), rnn.elman(5, H)]), 2),
    "residual": rnn.residual(rnn.gru(D, D)),
    "embed": rnn.embed(rnn.lstm(5, H), D + 4, 5),
    "one_hot": rnn.one_hot(rnn.gru(D + 4, H), D + 4),
    "zoneout_mean": rnn.zoneout_mean(rnn.lstm(D, H), rnn.LSTMState(h=0.1, c=0.5)),
}
NOISY = {
    "dropout": rnn.stack([rnn.dropout(rnn.lstm(D, H), 0.4, key(8)), rnn.elman(H, 2)]),
    "variational": rnn.dropout(rnn.gru(D, H), 0.4, key(8), variational=True),
    "zoneout": rnn.zoneout(rnn.lstm(D, H), rnn.LSTMState(h=0.2, c=0.5), key(8)),
}
NETS = CELLS | COMBINED | NOISY


def random_params(cell: rnn.Cell, seed: int = 0) -> Any:
    """Params in which no leaf is zero, one or symmetric."""
    params = cell.init(key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key(seed + 100), len(leaves))
    noisy = [
        p + 0.3 * jax.random.normal(k, p.shape, p.dtype) for p, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def random_inputs(name: str, *shape: int, seed: int = 1) -> jax.Array:
    """Inputs with the leading axes `shape`: tokens for the nets that read tokens."""
    if name in ("embed", "one_hot"):
        return jax.random.randint(key(seed), shape, 0, D + 4)
    return jax.random.normal(key(seed), (*shape, D), float)
