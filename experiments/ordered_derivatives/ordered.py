"""A list of elementary functions, z_j = f_j(earlier z), and its two chain rules.

The target is the last of the z. Backward, one sweep gives its ordered derivatives to all z::

    d+T/dz_i = sum over j > i of d+T/dz_j dz_j/dz_i,   from d+T/dT = 1

and conventional perturbation takes one sweep for each i::

    d+z_j/dz_i = dz_j/dz_i + sum over i < k < j of dz_j/dz_k d+z_k/dz_i
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Elementary(NamedTuple):
    """A function of one or two numbers; the first argument is the module that computes."""

    f: Callable[..., Any]
    slopes: Callable[..., tuple[Any, ...]]  # the derivative to each number


FUNCTIONS = {
    "add": Elementary(lambda m, a, b: a + b, lambda m, a, b: (1.0, 1.0)),
    "multiply": Elementary(lambda m, a, b: a * b, lambda m, a, b: (b, a)),
    "sine": Elementary(lambda m, a: m.sin(a), lambda m, a: (m.cos(a),)),
    "tanh": Elementary(lambda m, a: m.tanh(a), lambda m, a: (1 - m.tanh(a) ** 2,)),
    "bell": Elementary(lambda m, a: m.exp(-a * a), lambda m, a: (-2 * a * m.exp(-a * a),)),
}


class Entry(NamedTuple):
    """One line of the list."""

    function: str
    reads: tuple[int, ...]  # positions of earlier z


class System(NamedTuple):
    """Inputs z_0 ... z_{inputs-1}, then one z for each entry."""

    inputs: int
    entries: tuple[Entry, ...]


def random_system(rng: np.random.Generator, inputs: int, entries: int) -> System:
    """Random functions of earlier z, not far back; the target adds whatever was not read."""
    found: list[Entry] = []
    for j in range(inputs, inputs + entries):
        name = list(FUNCTIONS)[rng.integers(len(FUNCTIONS))]
        arity = 2 if name in ("add", "multiply") else 1
        recent = rng.integers(j - inputs, j, size=arity)  # so that chains get long
        found.append(Entry(name, tuple(map(int, recent))))
    read = {i for entry in found for i in entry.reads}
    left = [i for i in range(inputs + entries) if i not in read]
    while len(left) > 1:
        found.append(Entry("add", (left.pop(0), left.pop(0))))
        left.append(inputs + len(found) - 1)
    return System(inputs, tuple(found))


def evaluate(system: System, values: Any, module: Any = np, nudges: Any = None) -> list:
    """All z in order; a nudge is added to each where given, for derivatives to all of them."""
    z: list[Any] = []
    for j in range(system.inputs + len(system.entries)):
        if j < system.inputs:
            value = values[j]
        else:
            entry = system.entries[j - system.inputs]
            value = FUNCTIONS[entry.function].f(module, *(z[i] for i in entry.reads))
        z.append(value if nudges is None else value + nudges[j])
    return z


def backward(system: System, z: list) -> tuple[np.ndarray, int]:
    """The ordered derivatives of the last z to all z; and the products that it took."""
    F, count = np.zeros(len(z)), 0
    F[-1] = 1.0
    for j in reversed(range(system.inputs, len(z))):
        for i, slope in zip(*_slopes(system, z, j), strict=True):
            F[i] += F[j] * slope
            count += 1
    return F, count


def perturbation(system: System, z: list, i: int) -> tuple[float, int]:
    """The derivative of the last z to z_i, swept forward; products with what is not moved are
    left out of the count."""
    moved = np.zeros(len(z))
    moved[i], reached, count = 1.0, {i}, 0
    for j in range(max(i + 1, system.inputs), len(z)):
        for k, slope in zip(*_slopes(system, z, j), strict=True):
            if k in reached:
                moved[j] += slope * moved[k]
                reached.add(j)
                count += 1
    return float(moved[-1]), count


def by_jax(system: System, values: np.ndarray) -> np.ndarray:
    """`jax.grad` to all z."""

    def target(nudges: jax.Array) -> Any:
        return evaluate(system, values, jnp, nudges)[-1]

    return np.asarray(jax.jit(jax.grad(target))(jnp.zeros(system.inputs + len(system.entries))))


def _slopes(system: System, z: list, j: int) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    entry = system.entries[j - system.inputs]
    return entry.reads, FUNCTIONS[entry.function].slopes(np, *(z[i] for i in entry.reads))


def study(inputs: int, entries: int, seed: int = 0) -> dict[str, Any]:
    """How far the three are apart, and what the sweeps cost."""
    rng = np.random.default_rng(seed)
    system = random_system(rng, inputs, entries)
    values = rng.normal(size=inputs)
    z = evaluate(system, values)
    F, products = backward(system, z)
    runs = [perturbation(system, z, i) for i in range(len(z))]
    forward = np.array([value for value, _ in runs])
    return {
        "inputs": inputs,
        "z": len(z),
        "backward_products": products,
        "perturbation_products": sum(count for _, count in runs[:inputs]),
        "perturbation_products_all_z": sum(count for _, count in runs),
        "gap_jax": float(np.abs(F - by_jax(system, values)).max() / np.abs(F).max()),
        "gap_perturbation": float(np.abs(F - forward).max() / np.abs(F).max()),
    }
