"""His net with lags one and two: a shift register is its state, and its sweep by hand.

Units are ordered: the first m are the inputs X(t), unit i > m reads earlier units at time t
through W, and all units one and two steps back through W' and W'' (`w1`, `w2`)::

    net_i(t) = sum_{j<i} W_ij x_j(t) + sum_j W'_ij x_j(t-1) + sum_j W''_ij x_j(t-2)
    x_i(t) = s(net_i(t)),   Y(t) = the last units,   E = sum_t |Y(t) - target(t)|^2 / 2
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax


class Weights(NamedTuple):
    """Rows are the units that read; those of the inputs, and W_ij for j >= i, are never used."""

    w: Any  # [N, N]
    w1: Any  # [N, N]
    w2: Any  # [N, N]


def net(inputs: int, units: int, outputs: int) -> rnn_jax.Cell:
    """The cell; its state is ``(x(t-1), x(t-2))``, each [N] with N = inputs + units."""
    N = inputs + units

    def init(key: jax.Array) -> Weights:
        draws = jax.random.normal(key, (3, N, N), float) / jnp.sqrt(float(N))
        return Weights(*draws)

    def step(params: Weights, state: Any, X: jax.Array) -> Any:
        x1, x2 = state
        net = params.w1 @ x1 + params.w2 @ x2
        x = jnp.concatenate([X, jnp.zeros(units, X.dtype)])
        for i in range(inputs, N):
            x = x.at[i].set(jax.nn.sigmoid(net[i] + params.w[i] @ x))
        return (x, x1), x[N - outputs :]

    def init_state(params: Weights) -> Any:
        return (jnp.zeros(N, params.w.dtype),) * 2

    return rnn_jax.Cell(init, init_state, lambda params, X: X, step)


def half_square(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2) / 2


def sweep(weights: Weights, X: np.ndarray, targets: np.ndarray) -> tuple[Weights, np.ndarray]:
    """F_W, F_W', F_W'' and F_X by hand: forward in t and i, then backward in t and i."""
    W, W1, W2 = (np.asarray(w) for w in weights)
    (T, m), N, n = X.shape, len(W), targets.shape[1]
    x = np.zeros((T + 2, N))  # two zero rows before the first step: x[t + 2] is x(t)
    for t in range(T):
        x[t + 2, :m] = X[t]
        for i in range(m, N):
            net = W[i, :i] @ x[t + 2, :i] + W1[i] @ x[t + 1] + W2[i] @ x[t]
            x[t + 2, i] = 1 / (1 + np.exp(-net))

    F_x, F_net = np.zeros((T, N)), np.zeros((T + 2, N))  # two zero rows after the last step
    F_W, F_W1, F_W2 = (np.zeros((N, N)) for _ in range(3))
    for t in reversed(range(T)):
        F_x[t, N - n :] = x[t + 2, N - n :] - targets[t]
        for i in reversed(range(N)):
            F_x[t, i] += W[i + 1 :, i] @ F_net[t, i + 1 :]
            F_x[t, i] += W1[m:, i] @ F_net[t + 1, m:] + W2[m:, i] @ F_net[t + 2, m:]
            if i >= m:
                F_net[t, i] = x[t + 2, i] * (1 - x[t + 2, i]) * F_x[t, i]
                F_W[i, :i] += F_net[t, i] * x[t + 2, :i]
                F_W1[i] += F_net[t, i] * x[t + 1]
                F_W2[i] += F_net[t, i] * x[t]
    return Weights(F_W, F_W1, F_W2), F_x[:, :m]


def study(seed: int = 0, T: int = 30) -> dict[str, Any]:
    """The largest relative differences between the sweep by hand and BPTT."""
    inputs, units, outputs = 3, 5, 2
    keys = jax.random.split(jax.random.key(seed), 3)
    cell = net(inputs, units, outputs)
    weights = cell.init(keys[0])
    X = jax.random.normal(keys[1], (T, inputs), float)
    targets = jax.random.uniform(keys[2], (T, outputs), float)
    by_hand, F_X = sweep(weights, np.asarray(X), np.asarray(targets))
    value_and_grad = jax.jit(rnn_jax.gradients.bptt(cell, half_square))
    _, grads = value_and_grad(weights, None, X, targets)

    def loss(X: jax.Array) -> jax.Array:
        _, ys = rnn_jax.unroll(cell, weights, None, X)
        return half_square(ys, targets)

    pairs = zip((*by_hand, F_X), (*grads, jax.jit(jax.grad(loss))(X)), strict=True)
    names = ("F_W", "F_W'", "F_W''", "F_X")
    gaps = [float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)) for a, b in pairs]
    return {"T": T, "units": inputs + units, "gap": dict(zip(names, gaps, strict=True))}
