"""PyTorch: weights [gates * H, D], two biases, layers and directions inside the layer.

cuDNN has the same layout. Of the two biases of a GRU, those of r and z add up to ours; those of n
stay apart, because the reset gate acts on the recurrent one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax
from peers import D, H, Peer, T, randomize

LIBRARY = "torch"
B = 5
LENGTHS = np.array([T, 2, T - 1, 1, 4])  # PyTorch has no length 0


def elman_params(w: Any, suffix: str) -> Any:
    w_x, w_h, b_x, b_h = _weights(w, suffix)
    return rnn_jax.ElmanParams(w_x, w_h, b_x + b_h)


def lstm_params(w: Any, suffix: str) -> Any:
    w_x, w_h, b_x, b_h = _weights(w, suffix)
    return rnn_jax.LSTMParams(w_x, w_h, b_x + b_h, w_c=None)


def gru_params(w: Any, suffix: str) -> Any:
    w_x, w_h, b_x, b_h = _weights(w, suffix)
    b_rz, b_n = jnp.split(b_h, [2 * H])
    return rnn_jax.GRUParams(w_x, w_h, b_x.at[: 2 * H].add(b_rz), b_n)


def _weights(w: Any, suffix: str) -> list[Any]:
    w_x, w_h = w[f"weight_ih_{suffix}"].T, w[f"weight_hh_{suffix}"].T
    return [w_x, w_h, w[f"bias_ih_{suffix}"], w[f"bias_hh_{suffix}"]]


RNNS = {
    "RNN tanh": (rnn_jax.elman, elman_params),
    "RNN relu": (partial(rnn_jax.elman, activation=jax.nn.relu), elman_params),
    "LSTM": (rnn_jax.lstm, lstm_params),
    "GRU": (rnn_jax.gru_reset_after, gru_params),
}


def deep(rng: np.random.Generator, name: str, layers: int, padded: bool = False) -> Peer:
    make, params = RNNS[name]
    cell = rnn_jax.stack([make(H if layer else D, H) for layer in range(layers)])

    def to_params(w: Any) -> Any:
        return tuple(params(w, f"l{layer}") for layer in range(layers))

    run = partial(rnn_jax.unroll, cell)
    return _peer(rng, name, run, to_params, layers, padded, num_layers=layers)


def two_directions(rng: np.random.Generator, name: str, padded: bool = False) -> Peer:
    make, params = RNNS[name]

    def to_params(w: Any) -> Any:
        return params(w, "l0"), params(w, "l0_reverse")

    run = partial(rnn_jax.bidirectional, make(D, H), make(D, H))
    return _peer(rng, name, run, to_params, 2, padded, bidirectional=True)


def _peer(
    rng: np.random.Generator,
    name: str,
    run: Callable,
    to_params: Callable,
    states: int,
    padded: bool,
    **options: Any,
) -> Peer:
    import torch

    kind, *nonlinearity = name.split()
    if nonlinearity:
        options["nonlinearity"] = nonlinearity[0]
    module = getattr(torch.nn, kind)(D, H, batch_first=True, dtype=torch.float64, **options)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    vector = np.zeros((B, H))
    state = rnn_jax.LSTMState(vector, vector) if kind == "LSTM" else vector
    return Peer(
        weights=randomize(rng, weights),
        state=randomize(rng, (state,) * states),
        xs=rng.normal(size=(B, T, D)),
        to_params=to_params,
        ours=_padded(run) if padded else jax.vmap(run, in_axes=(None, 0, 0)),
        theirs=partial(_vjp, module, padded),
    )


def _padded(run: Callable) -> Callable:
    def masked(params: Any, state: Any, xs: Any, mask: Any) -> Any:
        return run(params, state, jnp.where(mask[:, None], xs, jnp.nan), mask=mask)

    mask = rnn_jax.length_mask(LENGTHS, T)
    return lambda *arguments: jax.vmap(masked, in_axes=(None, 0, 0, 0))(*arguments, mask)


def _vjp(module: Any, padded: bool, weights: Any, state: Any, xs: Any, cotangents: Any) -> Any:
    import torch

    module.load_state_dict(jax.tree.map(torch.tensor, weights))
    state, xs = jax.tree.map(partial(torch.tensor, requires_grad=True), (state, xs))
    outputs = _forward(module, padded, state, xs)
    inputs, tree = jax.tree.flatten((dict(module.named_parameters()), state, xs))
    random = map(torch.tensor, jax.tree.leaves(cotangents))
    gradients = torch.autograd.grad(jax.tree.leaves(outputs), inputs, tuple(random))
    return jax.tree.map(lambda a: a.detach(), outputs), jax.tree.unflatten(tree, gradients)


def _forward(module: Any, padded: bool, state: Any, xs: Any) -> Any:
    import torch
    from torch.nn.utils import rnn

    memory = isinstance(state[0], rnn_jax.LSTMState)
    if memory:
        initial: Any = tuple(torch.stack(leaf) for leaf in zip(*state, strict=True))
    else:
        initial = torch.stack(state)
    if padded:
        lengths = torch.tensor(LENGTHS)
        xs = rnn.pack_padded_sequence(xs, lengths, batch_first=True, enforce_sorted=False)
    ys, final = module(xs, initial)
    if padded:
        ys, _ = rnn.pad_packed_sequence(ys, batch_first=True, total_length=T)
    if memory:
        return tuple(map(rnn_jax.LSTMState, *final)), ys
    return tuple(final), ys


LAYERS: dict[str, Callable[[np.random.Generator], Peer]] = {
    f"{name}, 1 layer": partial(deep, name=name, layers=1) for name in RNNS
}
for name in ("RNN tanh", "LSTM", "GRU"):
    LAYERS |= {
        f"{name}, 3 layers": partial(deep, name=name, layers=3),
        f"{name}, 2 directions": partial(two_directions, name=name),
    }
LAYERS |= {
    "LSTM, 3 layers, lengths": partial(deep, name="LSTM", layers=3, padded=True),
    "GRU, 2 directions, lengths": partial(two_directions, name="GRU", padded=True),
}
