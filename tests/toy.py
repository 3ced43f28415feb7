"""The smallest application: the sign of a sum of numbers, many to one."""

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.harness.application import Application, Data, Model, Options, Report, Use
from rnn_jax.tasks.batches import minibatch, shuffled

CELL = rnn_jax.readout(rnn_jax.gru(1, 4), 1)
QUICK = Options(quick=True, steps=60, batch=16, learning_rate=0.05, evaluations=4)


def load(config):
    xs = np.float32(np.random.default_rng(0).normal(size=(200, 5)))
    xs = xs if config.data is None else np.loadtxt(config.data, np.float32, ndmin=2)
    if len(xs) < 21:
        raise ValueError(f"--data: got {len(xs)} rows, expected at least 21")
    about, epoch = {"T": xs.shape[1]}, len(xs) / config.batch
    return Data(shuffled(xs[20:], 0), xs[:20], about, f"{len(xs)} rows", epoch)


def make(config, about):
    def loss(params, carry, xs, key):
        ys = jax.vmap(lambda x: rnn_jax.unroll(CELL, params, None, x)[1][-1, 0])(xs[..., None])
        return jnp.mean(jnp.logaddexp(0.0, -ys * jnp.sign(xs.sum(axis=1)))), carry

    score = lambda params, xs: {"loss": loss(params, None, xs, None)[0]}  # noqa: E731
    return Model(CELL.init, loss, minibatch(config.batch), score, net=CELL)


class Say(Use):
    """Says how many numbers the run read."""

    __call__ = lambda self, trained: [f"{trained.about['T']} numbers\n"]  # noqa: E731


APPLICATION = Application("toy", Options, QUICK, load, make, lambda t, h: Report(), {"say": Say})
