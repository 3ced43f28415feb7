"""The smallest application: the sign of a sum of numbers, many to one."""

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.harness.application import Application, Data, Model, Options, Report, Use

QUICK = Options(quick=True, steps=60, batch=16, learning_rate=0.05, evaluations=4)
CELL = rnn_jax.readout(rnn_jax.gru(1, 4), 1)


def load(config):
    xs = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    xs = xs if config.data is None else np.loadtxt(config.data, np.float32, ndmin=2)
    if len(xs) < 10:
        raise ValueError(f"--data: got {len(xs)} rows, expected at least 10")
    return Data(xs[20:], xs[:20], {"T": xs.shape[1]}, f"{len(xs)} rows", len(xs) / config.batch)


def make(config, about):
    def loss(params, carry, xs, key):
        ys = jax.vmap(lambda x: rnn_jax.unroll(CELL, params, None, x)[1][-1, 0])(xs[..., None])
        return jnp.mean(jnp.logaddexp(0.0, -ys * jnp.sign(xs.sum(axis=1)))), carry

    def batch_at(xs, step):
        return jnp.roll(xs, -step * config.batch, axis=0)[: config.batch]

    return Model(CELL.init, loss, batch_at, lambda p, xs: {"loss": loss(p, None, xs, None)[0]})


class Say(Use):
    """Says how many numbers the run read."""

    def __call__(self, trained):
        yield f"{trained.about['T']} numbers\n"


APPLICATION = Application("toy", Options, QUICK, load, make, lambda t, h: Report(), {"say": Say})
