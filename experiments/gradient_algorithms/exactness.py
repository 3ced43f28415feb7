"""Every algorithm on every cell, against backpropagation through time in float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from experiments.gradient_algorithms.config import Config
from experiments.gradient_algorithms.nets import cosine, flat, loss, relative
from experiments.harness.command import BadInput
from rnn_jax import gradients

D, H, T = 2, 3, 6
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EXACT = 1e-9  # `implicit` stops when it has settled to 2e-12
HELD = 2000  # steps in which a net settles, for the gradient of an equilibrium

# So short that a sequence of six steps tells them from the exact gradient.
OPTIONS: dict[str, dict[str, Any]] = {
    "truncated_bptt": {"k1": 2, "k2": 3},
    "ok": {"rank": 1},
    "artbp": {"length": 3.0},
}


def diagonal() -> rnn_jax.Cell:
    """h' = tanh(a * h + x @ w): no unit sees another, and there is no recurrent matrix."""

    def step(params: Any, h: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(params["a"] * h + z)
        return h, h

    return rnn_jax.Cell(
        init=lambda key: {"a": jnp.full(H, 0.5), "w": jnp.ones((D, H))},
        init_state=lambda params: jnp.zeros_like(params["a"]),
        project=lambda params, x: x @ params["w"],
        step=step,
    )


def cells() -> dict[str, rnn_jax.Cell]:
    """The columns."""
    found = {name: make(D, H) for name, make in rnn_jax.ALL_CELLS.items()}
    found["stack"] = rnn_jax.stack([rnn_jax.gru_reset_after(D, 2), rnn_jax.elman(2, H)])
    found["readout"] = rnn_jax.readout(rnn_jax.lstm(D, 2), H)
    found["diagonal"] = diagonal()
    return found


def problem(cell: rnn_jax.Cell, seed: int) -> Any:
    """Params in which nothing is zero, inputs and targets."""
    k_params, k_noise, k_x, k_y = jax.random.split(jax.random.key(seed), 4)
    params = cell.init(k_params)
    theta, restore = jax.flatten_util.ravel_pytree(params)
    params = restore(theta + 0.2 * jax.random.normal(k_noise, theta.shape))
    return params, jax.random.normal(k_x, (T, D)), jax.random.normal(k_y, (T, H))


def truths(cell: rnn_jax.Cell, params: Any, xs: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """The gradient by `bptt`; and with each input held until the net settles."""
    counts = jnp.tile(jnp.arange(HELD) == HELD - 1, T).astype(xs.dtype)
    held = jnp.repeat(xs, HELD, axis=0), (jnp.repeat(targets, HELD, axis=0), counts)
    last = gradients.bptt(cell, lambda y, target: loss(y, target[0]) * target[1])

    @jax.jit
    def both(params: Any) -> tuple[jax.Array, jax.Array]:
        whole = gradients.bptt(cell, loss)(params, None, xs, targets)
        return flat(whole[1]), flat(last(params, None, *held)[1])

    return both(params)


def measure(name: str, cell: rnn_jax.Cell, given: Any, exact: jax.Array, keys: Any) -> Any:
    """One entry of the matrix; "why" where the algorithm refuses the cell."""
    entry, (params, xs, targets) = gradients.REGISTER[name], given
    run = entry.algorithm(cell, loss, **{**entry.options, **OPTIONS.get(name, {})})

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def estimates(params: Any) -> jax.Array:
        one = functools.partial(run, params, None, xs, targets)
        if entry.kind == "unbiased":
            return jax.vmap(lambda key: flat(one(key=key)[1]))(keys)
        return flat(one()[1])[None]

    try:
        got = estimates(params)
    except (TypeError, ValueError) as error:
        return {"kind": entry.kind, "why": str(error)}
    if np.isnan(got).all():
        why = "NaN, which is what it returns: this net does not settle under these inputs"
        return {"kind": entry.kind, "why": why}
    mean = got.mean(0)
    found = {
        "kind": entry.kind,
        "error": float(relative(mean, exact)),
        "cosine": float(cosine(mean, exact)),
    }
    return found | (scores(np.asarray(got), np.asarray(exact)) if len(got) > 1 else {})


def scores(draws: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How many standard errors the mean [P] of draws [N, P] is from the exact gradient.

    Params whose gradient is the same in all draws have no standard error: they have to agree.
    """
    error, std = draws.mean(0) - exact, draws.std(0, ddof=1)
    drawn = std > 1e-9 * np.linalg.norm(exact)
    z = error[drawn] / std[drawn] * len(draws) ** 0.5
    spread = float(np.linalg.norm(std) / np.linalg.norm(exact))
    return {
        "largest z": float(np.abs(z).max(initial=0)),
        "rms z": float(np.sqrt((z**2).mean())) if z.size else 0.0,
        "not drawn": float(np.abs(error[~drawn]).max(initial=0) / np.linalg.norm(exact)),
        "relative std": spread,
        "expected error": spread / len(draws) ** 0.5,
    }


def chosen(config: Config) -> dict[str, rnn_jax.Cell]:
    """The columns that were asked for."""
    columns = cells()
    if unknown := sorted(set(config.cells) - set(columns)):
        raise BadInput(f"cells: got {', '.join(unknown)}, expected some of {', '.join(columns)}")
    return {name: cell for name, cell in columns.items() if name in (config.cells or columns)}


def study(config: Config, tick: Callable[[str], None]) -> dict[str, Any]:
    """``{algorithm: {cell: entry}}``."""
    found: dict[str, Any] = {name: {} for name in gradients.REGISTER if config.takes(name)}
    keys = jax.random.split(jax.random.key(config.seed + 1), config.draws)
    for column, cell in chosen(config).items():
        tick(f"bptt, {column}")
        given = problem(cell, config.seed)
        exact, settled = truths(cell, *given)
        for name in found:
            tick(f"{name}, {column}")
            truth = settled if name == "implicit" else exact
            found[name][column] = measure(name, cell, given, truth, keys)
    return found


def holds(entry: dict[str, Any]) -> bool:
    """Whether the entry is what the register promises of it."""
    if "why" in entry:
        return True
    if entry["kind"] == "exact":
        return entry["error"] < EXACT
    if entry["kind"] == "unbiased":
        return entry["largest z"] < 5 and entry["not drawn"] < 1e-10
    return True


def text(entry: dict[str, Any]) -> str:
    """What stands in the table."""
    if "why" in entry:
        return "-"
    if entry["kind"] == "unbiased":
        return f"z {entry['largest z']:.1f}"
    if entry["error"] < EXACT:
        return f"{entry['error']:.0e}" if entry["error"] else "0"
    return f"{entry['error']:.2f} ({entry['cosine']:.2f})"
