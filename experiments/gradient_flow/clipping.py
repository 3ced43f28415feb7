"""What clipping the norm of the gradient does to updates, and to a descent over walls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnn_jax
from experiments.gradient_flow.config import Config
from experiments.gradient_flow.flow import D, Run, draw, quartiles
from rnn_jax import gradients

START = (5.2, -2.4)  # w, b
W_RANGE, B_RANGE = (4.0, 7.0), (-4.0, -1.5)
X_0, TARGET, STEPS = 0.5, 0.7, 50
UNIT = rnn_jax.elman(1, 1, activation=jax.nn.sigmoid)
SOLVED = 0.01


def error_and_gradient(w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E = (sigma(x_50) - 0.7)^2 of x_t = w sigma(x_{t-1}) + b, x_0 = 0.5, and dE/d(w, b): [2].

    With h_t = sigma(x_t) it is an Elman net of one unit without input.
    """
    params = rnn_jax.ElmanParams(w_x=jnp.zeros((1, 1), w.dtype), w_h=w[None, None], b=b[None])
    start = jax.nn.sigmoid(jnp.full(1, X_0, w.dtype))
    last = (jnp.arange(STEPS) == STEPS - 1).astype(w.dtype)
    value_and_grad = gradients.bptt(UNIT, lambda y, is_last: is_last * (y[0] - TARGET) ** 2)
    (error, _), grads = value_and_grad(params, start, jnp.zeros((STEPS, 1), w.dtype), last)
    return error, jnp.stack([grads.w_h[0, 0], grads.b[0]])


def descend(config: Config, threshold: float, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The points (w, b) of a descent, [updates + 1, 2], and their errors, [updates + 1]."""
    optimizer = optax.chain(optax.clip_by_global_norm(threshold), optax.sgd(config.learning_rate))

    def update(carry: Any, _: None) -> tuple[Any, Any]:
        point, state = carry
        error, gradient = error_and_gradient(*point)
        change, state = optimizer.update(gradient, state)
        return (point + change, state), (point, error)

    (point, _), (points, errors) = jax.lax.scan(
        update, (start, optimizer.init(start)), length=config.updates
    )
    error, _ = error_and_gradient(*point)
    return jnp.concatenate([points, point[None]]), jnp.append(errors, error)


def surface(config: Config, key: jax.Array) -> dict[str, Any]:
    """The error over w and b; a descent from START, and from many starts, clipped and not."""
    w, b = np.linspace(*W_RANGE, 241), np.linspace(*B_RANGE, 201)
    grid = jax.jit(jax.vmap(jax.vmap(error_and_gradient, (0, None)), (None, 0)))
    errors, slopes = grid(jnp.asarray(w), jnp.asarray(b))
    low, high = jnp.array([W_RANGE, B_RANGE]).T
    starts = jax.random.uniform(key, (config.starts, 2), float, low, high)
    starts = jnp.concatenate([jnp.array([START]), starts])
    result: dict[str, Any] = {"w": w, "b": b, "error": np.asarray(errors)}
    result["largest gradient"] = float(np.linalg.norm(slopes, axis=-1).max())
    for name, threshold in (("unclipped", np.inf), ("clipped", config.threshold)):
        run = jax.jit(jax.vmap(lambda start, t=threshold: descend(config, t, start)))
        points, errors = run(starts)
        result[name] = {
            "path": np.asarray(points[0]),
            "errors": np.asarray(errors[0]),
            "solved": float(np.mean(np.asarray(errors[1:, -1]) < SOLVED)),
            "thrown out": float(np.mean(outside(np.asarray(points[1:, -1])))),
        }
    return result


def outside(points: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] are more than the size of the picture away from it."""
    low, high = np.array([W_RANGE, B_RANGE]).T
    return np.any((points < 2 * low - high) | (points > 2 * high - low), axis=-1)


def updates(config: Config, key: jax.Array) -> dict[str, Any]:
    """How far an update moves a tanh network, over the gain of its W, clipped and not.

    The loss is the squared distance of the last output to a random target.
    """
    gains = np.geomspace(0.5, 4.0, config.scales)
    cell = rnn_jax.elman(D, config.hidden)
    rule = gradients.bptt(cell, lambda y, target: target[1] * jnp.sum((y - target[0]) ** 2))
    clip = optax.clip_by_global_norm(config.threshold)

    def sizes(gain: jax.Array, run: Run) -> tuple[jax.Array, jax.Array]:
        params = run.params._replace(w_h=gain * run.params.w_h)
        wanted = jnp.broadcast_to(run.q, (config.steps, config.hidden))
        last = (jnp.arange(config.steps) == config.steps - 1).astype(run.q.dtype)
        _, grads = rule(params, None, run.xs, (wanted, last))
        clipped, _ = clip.update(grads, clip.init(params))
        rate = config.learning_rate
        return rate * optax.tree.norm(grads), rate * optax.tree.norm(clipped)

    over_runs = jax.vmap(sizes, (None, 0))
    unclipped, clipped = jax.jit(jax.vmap(over_runs, (0, None)))(
        jnp.asarray(gains), draw(cell, config, key)
    )
    return {
        "gains": gains,
        "unclipped": quartiles(np.asarray(unclipped), axis=1),
        "clipped": quartiles(np.asarray(clipped), axis=1),
    }
