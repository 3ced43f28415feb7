"""Counting: which cells learn a^n b^n and a^n b^n c^n, and how far beyond the n they were shown?

    python -m experiments.counting_languages

A net reads a word of the language letter by letter and predicts the next one. What can be known
must be predicted: every letter after the first b, and the end. Nets are trained on n up to 100 and
tested up to 1,000. Weiss, Goldberg and Yahav (2018) found that an LSTM counts, in units of its cell
state that grow without bound, and that a GRU, whose state is squashed, cannot.
"""

import functools
import operator
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnn_jax
from experiments.harness import command, plots, study
from experiments.harness.study import Progress, Study

CELLS = {"tanh": rnn_jax.elman, "GRU": rnn_jax.gru, "LSTM": rnn_jax.lstm}
LANGUAGES = {"a^n b^n": 2, "a^n b^n c^n": 3}  # kinds of letters
END, BATCH, UPDATES_A_CALL = 0, 16, 100


@dataclass(frozen=True)
class Config(study.Options):
    """Trains nets to count, and tests them on longer words."""

    seeds: int = 10
    """Nets of each kind, side by side."""
    hidden_size: int = 10
    """Units of a net."""
    shown: int = 100
    """Highest n in training."""
    tested: int = 1000
    """Highest n in the test."""
    updates: int = 3000
    """Of each net, of 16 words each."""
    learning_rate: float = 1e-2
    """Of Adam; it falls to 0 by a cosine."""

    def check(self) -> None:
        super().check()
        command.at_least(self, seeds=1, hidden_size=1, shown=1, updates=100)
        command.above_zero(self, "learning_rate")
        command.require(self, "tested", self.tested >= self.shown, "at least --shown")


QUICK = Config(quick=True, seeds=2, shown=8, tested=16, updates=400, hidden_size=6)


def words(n: jax.Array, kinds: int, T: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is read, what comes next, and which steps can be known and are part of the word.

    [T] each, for ``n`` letters of each kind: the end token, then 1 ... 2 ... 3, the end token.
    """
    t = jnp.arange(T + 1)
    letter = jnp.where((t > 0) & (t <= kinds * n), 1 + (t - 1) // n, END)
    inside = t[:-1] <= kinds * n
    return letter[:-1], letter[1:], inside & (t[:-1] > n)


def network(cell: Any, kinds: int, H: int) -> rnn_jax.Cell:
    return rnn_jax.readout(rnn_jax.one_hot(cell(kinds + 1, H), kinds + 1), kinds + 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(net: Any, kinds: int, config: Config, carry: Any, key: jax.Array) -> Any:
    """A hundred updates of all nets, each on words of its own."""
    T, optimizer = kinds * config.shown + 1, optimizer_of(config)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        n = jax.random.randint(key, (BATCH,), 1, config.shown + 1)
        read, following, _ = jax.vmap(lambda n: words(n, kinds, T))(n)
        mask = jax.vmap(lambda n: jnp.arange(T) <= kinds * n)(n)
        run = lambda xs, mask: rnn_jax.unroll(net, params, None, xs, mask=mask)[1]  # noqa: E731
        return rnn_jax.losses.cross_entropy(jax.vmap(run)(read, mask), following, mask)

    def update(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

    def one(carry: Any, key: jax.Array) -> Any:
        return jax.lax.scan(update, carry, jax.random.split(key, UPDATES_A_CALL))

    return jax.vmap(one)(carry, jax.random.split(key, config.seeds))


def optimizer_of(config: Config) -> Any:
    rate = optax.cosine_decay_schedule(config.learning_rate, config.updates)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def judged(net: Any, kinds: int, params: Any, ns: jax.Array, longest: int) -> jax.Array:
    """[nets, n]: whether each net predicts all that can be known of the word with each n."""

    def right(params: Any, n: jax.Array) -> jax.Array:
        read, following, known = words(n, kinds, kinds * longest + 1)
        logits = rnn_jax.unroll(net, params, None, read)[1]
        return ((logits.argmax(axis=1) == following) | ~known).all()

    return jax.vmap(jax.vmap(right, (None, 0)), (0, None))(params, ns)


def states(net: Any, kinds: int, params: Any, n: int) -> np.ndarray:
    """[T, units]: c of an LSTM, h of the others, after each letter."""
    read, *_ = words(jnp.int32(n), kinds, kinds * n + 1)

    def step(state: Any, token: jax.Array) -> Any:
        state, _ = net.step(params, state, net.project(params, token))
        return state, getattr(state, "c", state)

    return np.asarray(jax.lax.scan(step, net.init_state(params), read)[1])


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """For each language and cell how far each net counts, and what its state looks like."""
    say.expect(len(LANGUAGES) * len(CELLS))
    # From a fortieth on: the very shortest words are too rare in training to be learned for sure.
    steps = np.linspace(0, config.tested, 41)[1:].astype(int)
    tests = sorted({*np.maximum(steps, 1).tolist(), config.shown})
    found: dict[str, Any] = {"tests": tests}
    for language, kinds in LANGUAGES.items():
        for name, cell in CELLS.items():
            say(f"{language}, {name}")
            net = network(cell, kinds, config.hidden_size)
            key = jax.random.key(config.seed)
            params = jax.lax.map(net.init, jax.random.split(key, config.seeds))
            carry = params, jax.vmap(optimizer_of(config).init)(params)
            for call in range(config.updates // UPDATES_A_CALL):
                carry, losses = train(net, kinds, config, carry, jax.random.fold_in(key, call))
                say.note(f"{(call + 1) * UPDATES_A_CALL} updates")
            passed = np.asarray(judged(net, kinds, carry[0], jnp.asarray(tests), config.tested))
            reach = [tests[row.argmin() - 1] if not row.all() else tests[-1] for row in passed]
            reach = [0 if not row[0] else n for n, row in zip(reach, passed, strict=True)]
            best = int(np.argmax(reach))
            of_best = jax.tree.map(operator.itemgetter(best), carry[0])
            drawn = states(net, kinds, of_best, config.shown)
            found[f"{language}, {name}"] = {
                "reach": reach, "loss": np.asarray(losses[:, -1]).tolist(), "best": best,
                "states": drawn.round(3).tolist(),
            }  # fmt: skip
    return found


def text(found: dict[str, Any], config: Config) -> str:
    lines = [
        f"trained to n = {config.shown}; right for every n tested, from {found['tests'][0]}, up to "
        f"(the median of {config.seeds} nets, the lowest and the highest; tested to "
        f"{found['tests'][-1]}):"
    ]
    for language in LANGUAGES:
        for name in CELLS:
            reach = found[f"{language}, {name}"]["reach"]
            lines.append(
                f"  {language:12} {name:5} {np.median(reach):6.0f}  ({min(reach)} to {max(reach)})"
                f"   beyond training: {sum(n > config.shown for n in reach)} of {len(reach)} nets"
            )
    return "\n".join(lines) + "\n"


def reaches(found: dict[str, Any], config: Config) -> Any:
    figure, panels = plots.panels(1, 2, size=(11, 4), sharey=True)
    for axes, language in zip(panels, LANGUAGES, strict=True):
        for i, name in enumerate(CELLS):
            reach = np.sort(found[f"{language}, {name}"]["reach"])
            axes.plot(
                i + np.linspace(-0.2, 0.2, len(reach)), np.maximum(reach, 0.7), "o", color=f"C{i}"
            )
        axes.axhline(
            config.shown, color="k", linewidth=0.8, linestyle="--", label="longest in training"
        )
        axes.set_xticks(range(len(CELLS)), list(CELLS))
        axes.set(title=language, yscale="log", ylabel="right up to n (each dot a net)")
        axes.legend(loc="upper left")
    return figure


def cell_values(found: dict[str, Any], config: Config) -> Any:
    figure, panels = plots.panels(len(LANGUAGES), len(CELLS), size=(13, 6.5))
    for row, (language, kinds) in zip(panels, LANGUAGES.items(), strict=True):
        for axes, name in zip(row, CELLS, strict=True):
            axes.plot(found[f"{language}, {name}"]["states"], linewidth=1)
            for k in range(1, kinds):
                axes.axvline(k * config.shown, color="k", linewidth=0.6, linestyle=":")
            axes.set(title=f"{language}, {name}: {'c' if name == 'LSTM' else 'h'} of the best net")
            axes.set(xlabel="letters read", ylabel="value of each unit")
    return figure


STUDY = Study(
    "counting_languages", Config, QUICK, measure, text,
    {"reach.png": reaches, "states.png": cell_values},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(STUDY.main())
