"""Ordered derivatives: one sweep backward gives the derivative of a result to all it came from.

After Werbos, Backpropagation through time: what it does and how to do it, 1990. Two systems, each
swept by hand as he writes it, and held against what the library does by itself:

- a list of elementary functions, z_j = f_j(earlier z), whose target T is the last z: against
  `jax.grad` and against perturbation, which takes a sweep forward for each z;
- his net with lags one and two: against `rnn_jax.gradients.bptt` on a cell whose state is a shift
  register.

    python -m experiments.ordered_derivatives

His other two uses: `experiments.plant` (identification), `experiments.market` (sensitivity).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.harness import command
from experiments.harness.measure import apart
from experiments.harness.study import Options, Progress, Study, verdict


# fmt: off
@dataclass(frozen=True)
class Config(Options):
    """Ordered derivatives (Werbos 1990): sweeps by hand against those of the library.

    Writes numbers.json.
    """

    inputs: int = 40
    """Inputs of the random list of elementary functions."""
    entries: int = 300
    """Functions in the list, at least."""

    def check(self) -> None:
        super().check()
        command.at_least(self, inputs=1, entries=1)


QUICK = Config(quick=True, inputs=8, entries=40)
# fmt: on


# name: (the function, with the module that computes; its derivative to each number)
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., tuple[float, ...]]]] = {
    "add": (lambda m, a, b: a + b, lambda a, b: (1.0, 1.0)),
    "multiply": (lambda m, a, b: a * b, lambda a, b: (b, a)),
    "sine": (lambda m, a: m.sin(a), lambda a: (np.cos(a),)),
    "tanh": (lambda m, a: m.tanh(a), lambda a: (1 - np.tanh(a) ** 2,)),
    "bell": (lambda m, a: m.exp(-a * a), lambda a: (-2 * a * np.exp(-a * a),)),
}
System = list[tuple[str, tuple[int, ...]]]  # for each z, its function and the earlier z it reads
Partials = list[list[tuple[int, float]]]  # for each z_j, the i that it reads with dz_j/dz_i


def random_system(rng: np.random.Generator, inputs: int, entries: int) -> System:
    """Random functions of earlier z, not far back; the target adds whatever was not read."""
    system: System = [("input", ())] * inputs
    for j in range(inputs, inputs + entries):
        name = list(FUNCTIONS)[rng.integers(len(FUNCTIONS))]
        arity = 2 if name in ("add", "multiply") else 1
        recent = rng.integers(j - inputs, j, size=arity)  # so that chains get long
        system.append((name, tuple(map(int, recent))))
    left = sorted(set(range(len(system))).difference(*(reads for _, reads in system)))
    while len(left) > 1:
        left.append(len(system))
        system.append(("add", (left.pop(0), left.pop(0))))
    return system


def evaluate(system: System, values: Any, module: Any = np, nudges: Any = None) -> list:
    """All z in order; a nudge is added to each where given, for derivatives to all of them."""
    z: list[Any] = []
    for j, (name, reads) in enumerate(system):
        value = FUNCTIONS[name][0](module, *(z[i] for i in reads)) if reads else values[j]
        z.append(value if nudges is None else value + nudges[j])
    return z


def partials(system: System, z: list) -> Partials:
    """The derivatives of each z to those that it reads, all else held; none for an input."""
    return [
        list(zip(reads, FUNCTIONS[name][1](*(z[i] for i in reads)), strict=True)) if reads else []
        for name, reads in system
    ]


def backward(partials: Partials) -> np.ndarray:
    """d+T/dz_i = sum over j > i of d+T/dz_j dz_j/dz_i, from d+T/dT = 1: all i in one sweep."""
    F = np.zeros(len(partials))
    F[-1] = 1.0
    for j in reversed(range(len(partials))):
        for i, slope in partials[j]:
            F[i] += F[j] * slope
    return F


def perturbation(partials: Partials, i: int) -> tuple[float, int]:
    """d+z_j/dz_i = sum over i <= k < j of dz_j/dz_k d+z_k/dz_i, from 1: a sweep for this i alone.

    Returns d+T/dz_i, and the products that it took; those with what does not move are left out.
    """
    moved, products = {i: 1.0}, 0
    for j in range(i + 1, len(partials)):
        terms = [slope * moved[k] for k, slope in partials[j] if k in moved]
        products += len(terms)
        if terms:
            moved[j] = sum(terms)
    return moved.get(len(partials) - 1, 0.0), products


def by_jax(system: System, values: np.ndarray) -> np.ndarray:
    """`jax.grad` to all z."""
    target = jax.grad(lambda nudges: evaluate(system, values, jnp, nudges)[-1])
    return np.asarray(jax.jit(target)(jnp.zeros(len(system))))


def sweep_a_list(config: Config) -> dict[str, Any]:
    """How far the three are apart, and what the sweeps cost."""
    rng = np.random.default_rng(config.seed)
    system = random_system(rng, config.inputs, config.entries)
    values = rng.normal(size=config.inputs)
    slopes = partials(system, evaluate(system, values))
    F = backward(slopes)
    forward, products = zip(*(perturbation(slopes, i) for i in range(len(system))), strict=True)
    return {
        "inputs": config.inputs,
        "z": len(system),
        "backward_products": sum(map(len, slopes)),
        "perturbation_products": sum(products[: config.inputs]),
        "perturbation_products_all_z": sum(products),
        "gap_jax": apart(by_jax(system, values), F),
        "gap_perturbation": apart(forward, F),
    }


class Weights(NamedTuple):
    """Rows are the units that read; those of the inputs, and W_ij for j >= i, are never used."""

    w: Any  # [N, N]
    w1: Any  # [N, N]
    w2: Any  # [N, N]


def net(inputs: int, units: int, outputs: int) -> rnn_jax.Cell:
    """His net as a cell whose state is ``(x(t-1), x(t-2))``, each [N] with N = inputs + units.

    Units are ordered: the first m are the inputs X(t), unit i > m reads earlier units at time t
    through W, and all units one and two steps back through W' and W'' (`w1`, `w2`)::

        net_i(t) = sum_{j<i} W_ij x_j(t) + sum_j W'_ij x_j(t-1) + sum_j W''_ij x_j(t-2)
        x_i(t) = s(net_i(t)),   Y(t) = the last units,   E = sum_t |Y(t) - target(t)|^2 / 2
    """
    N = inputs + units

    def init(key: jax.Array) -> Weights:
        return Weights(*jax.random.normal(key, (3, N, N), float) / jnp.sqrt(float(N)))

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


def sweep_lags(seed: int, T: int = 30) -> dict[str, Any]:
    """How far the sweep by hand is from BPTT."""
    k_weights, k_X, k_targets = jax.random.split(jax.random.key(seed), 3)
    cell = net(inputs=3, units=5, outputs=2)
    weights = cell.init(k_weights)
    X = jax.random.normal(k_X, (T, 3), float)
    targets = jax.random.uniform(k_targets, (T, 2), float)
    by_hand, F_X = sweep(weights, np.asarray(X), np.asarray(targets))
    bptt = rnn_jax.gradients.bptt(cell, half_square)
    _, grads = jax.jit(bptt)(weights, None, X, targets)
    to_X = jax.grad(lambda X: half_square(rnn_jax.unroll(cell, weights, None, X)[1], targets))
    pairs = zip((*by_hand, F_X), (*grads, jax.jit(to_X)(X)), strict=True)
    names = ("F_W", "F_W'", "F_W''", "F_X")
    gaps = {name: apart(*pair) for name, pair in zip(names, pairs, strict=True)}
    return {"T": T, "units": 8, "gap": gaps}


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    say.expect(2)
    say("a list of functions")
    ordered = sweep_a_list(config)
    say("a net with lags")
    return {"ordered": ordered, "lags": sweep_lags(config.seed)}


def summary(found: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    a, gaps = found["ordered"], found["lags"]["gap"]
    exact = max(a["gap_jax"], a["gap_perturbation"]) < 1e-12
    each = ", ".join(f"{name} {gap:.0e}" for name, gap in gaps.items())
    return (
        "One sweep back through a list of elementary functions gives the exact derivatives\n"
        f"   {a['z']} z, {a['inputs']} inputs; apart from jax.grad {a['gap_jax']:.0e}, from "
        f"perturbation {a['gap_perturbation']:.0e}: {verdict(exact)}\n"
        f"   products: one sweep {a['backward_products']}; perturbation of each input "
        f"{a['perturbation_products']}, of each z {a['perturbation_products_all_z']}\n"
        "The net with lags one and two, swept by hand, against bptt on a shift register\n"
        f"   apart: {each}: {verdict(max(gaps.values()) < 1e-12)}"
    )


STUDY = Study("ordered_derivatives", Config, QUICK, measure, summary, {}, x64=True)

if __name__ == "__main__":
    sys.exit(STUDY.main())
