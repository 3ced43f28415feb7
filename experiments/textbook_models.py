"""The models of the textbooks in ours: the same counts, and with Keras installed the same numbers.

    python -m experiments.textbook_models

Three models that lectures on recurrent networks print: an embedding, an LSTM and a dense layer; an
LSTM below a SimpleRNN, with the dense layer; a bidirectional LSTM over masked sequences. Each is
built by the combinators of the library, its params are counted, and where Keras is installed, its
weights are drawn there, copied here, and both run on the same tokens.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.harness import command, study
from experiments.harness.study import Progress, Study

V, D, H, O = 1000, 64, 128, 10


@dataclass(frozen=True)
class Config(study.Options):
    """Builds the models of the textbooks, counts their params, and runs them beside Keras's."""

    batch: int = 32
    """Sequences that both run on."""
    length: int = 20
    """Steps of the longest of them."""

    def check(self) -> None:
        super().check()
        command.at_least(self, batch=1, length=1)


QUICK = Config(quick=True, batch=4, length=7)


class Textbook(NamedTuple):
    """A model of a textbook."""

    source: str
    size: int  # of params, as Keras counts them
    net: Any  # ours, all but what makes one output of many
    pick: Callable[[Any, Any], Any]  # (ys, mask) -> [H]
    keras: Callable[[Any], list[Any]]  # (keras.layers) -> its layers
    lengths: bool = False  # whether sequences are padded


def models() -> dict[str, Textbook]:
    last = lambda ys, mask: rnn_jax.last(ys, mask)  # noqa: E731
    return {
        "Embedding - LSTM - Dense": Textbook(
            "Keras guide 'Working with RNNs', and the lectures after it", 164_106,
            rnn_jax.embed(rnn_jax.lstm(D, H), V, D), last,
            lambda layers: [layers.Embedding(V, D), layers.LSTM(H), layers.Dense(O)],
        ),
        "Embedding - LSTM - SimpleRNN - Dense": Textbook(
            "an LSTM that returns its sequence below a SimpleRNN that does not", 197_002,
            rnn_jax.embed(rnn_jax.stack([rnn_jax.lstm(D, H), rnn_jax.elman(H, H)]), V, D), last,
            lambda layers: [
                layers.Embedding(V, D), layers.LSTM(H, return_sequences=True),
                layers.SimpleRNN(H), layers.Dense(O),
            ],
        ),
        "Embedding(mask) - Bidirectional(LSTM) - Dense": Textbook(
            "the same guide; bilstmLayer with OutputMode last in MATLAB", 264_202,
            rnn_jax.embed(rnn_jax.two_way(rnn_jax.lstm(D, H), rnn_jax.lstm(D, H)), V, D),
            lambda ys, mask: rnn_jax.both_ends(ys, mask),
            lambda layers: [
                layers.Embedding(V, D, mask_zero=True), layers.Bidirectional(layers.LSTM(H)),
                layers.Dense(O),
            ], lengths=True,
        ),
    }  # fmt: skip


def run(model: Textbook, params: rnn_jax.ReadoutParams, tokens: Any, mask: Any) -> jax.Array:
    """[B, T] -> logits [B, O]."""
    net = model.net

    def one(tokens: jax.Array, mask: jax.Array) -> jax.Array:
        both = isinstance(net, rnn_jax.TwoWay)
        unrolled = net.run if both else functools.partial(rnn_jax.unroll, net)
        _, ys = unrolled(params.cell, None, tokens, mask=mask)
        return model.pick(ys, mask) @ params.w_y + params.b_y

    return jax.vmap(one)(tokens, mask)


def of_keras(like: rnn_jax.ReadoutParams, weights: list[Any]) -> rnn_jax.ReadoutParams:
    """Our params with the weights of a Keras model, in its order: table, layers, dense."""
    table, *layers, w, b = weights
    inner = like.cell.cell
    alone = hasattr(inner, "_fields")  # one layer, and no tuple of them
    cells = [
        cell._replace(w_x=w_x, w_h=w_h, b=bias)  # gates stand as ours do: i, f, g, o
        for cell, w_x, w_h, bias in zip(
            (inner,) if alone else inner, layers[::3], layers[1::3], layers[2::3], strict=True
        )
    ]
    read = like.cell._replace(cell=cells[0] if alone else tuple(cells), table=table)
    return like._replace(cell=read, w_y=w, b_y=b)


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """Counts, and how far the outputs are apart."""
    say.expect(len(models()))
    rng, found = np.random.default_rng(config.seed), {}
    keras = keras_on_jax()
    for name, model in models().items():
        say(name)
        params = rnn_jax.readout(model.net, O).init(jax.random.key(config.seed))
        row: dict[str, Any] = {
            "source": model.source, "published": model.size, "apart": None,
            "ours": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "summary": rnn_jax.summary(params),
        }  # fmt: skip
        lengths = np.full(config.batch, config.length)
        if model.lengths:
            lengths = rng.integers(1, config.length + 1, config.batch)
        mask = np.arange(config.length) < lengths[:, None]
        tokens = np.where(mask, rng.integers(1, V, mask.shape), 0)
        if keras is not None:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                net = keras.Sequential(model.keras(keras.layers))
                expected = np.asarray(net(tokens))
                row["keras"] = int(net.count_params())
            weights = [jnp.asarray(w.value) for w in net.weights]
            got = jax.jit(run, static_argnums=0)(model, of_keras(params, weights), tokens, mask)
            row["apart"] = float(abs(np.asarray(got) - expected).max() / abs(expected).max())
        found[name] = row
    return found


def keras_on_jax() -> Any:
    """The module, or None where it is not installed."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            import keras  # type: ignore[import-untyped]
    except ImportError:
        return None
    return keras


def text(found: dict[str, Any], config: Config) -> str:
    lines = []
    for name, row in found.items():
        right = row["ours"] == row["published"] == row.get("keras", row["ours"])
        apart = "Keras is not installed" if row["apart"] is None else (
            f"outputs with Keras's weights {row['apart']:.0e} apart (relative)"
        )  # fmt: skip
        counted = "as in Keras" if right else f"NOT the {row['published']:,} of Keras"
        lines.append(f"{name}: {row['ours']:,} params, {counted}; {apart}")
    first = next(iter(found.values()))["summary"]
    return "\n".join(lines) + f"\n\nrnn_jax.summary of the first one:\n{first}\n"


STUDY = Study("textbook_models", Config, QUICK, measure, text, {})

if __name__ == "__main__":
    sys.exit(STUDY.main())
