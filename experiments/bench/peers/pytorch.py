"""PyTorch: its recurrent layers, all layers and directions in one, eager as it is used."""

import os
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.case import Case, O, Params, Problem
from experiments.bench.entry import ADAM, Entry, Peer
from rnn_jax import interop

LAYERS = {"elman": "RNN", "lstm": "LSTM", "gru_reset_after": "GRU"}


def convert(case: Case, params: Params) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for layer, directions in enumerate(params.layers):
        for p, suffix in zip(directions, ("", "_reverse"), strict=False):
            arrays = interop.dump("torch", LAYERS[case.cell], p)
            for name, other in (("bias_ih", "bias_hh"), ("bias_hh", "bias_ih")):
                arrays.setdefault(name, jnp.zeros_like(arrays[other]))
            weights |= {f"0.{name}_l{layer}{suffix}": a for name, a in arrays.items()}
    if params.readout is not None:
        weights |= {"1.weight": params.readout[0].T, "1.bias": params.readout[1]}
    return weights


def build(problem: Problem, device: str = "cpu") -> Entry:
    torch: Any = import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = problem.case
    weights, to_ours = jax.vjp(partial(convert, case), problem.params)
    net = _net(torch, case)
    net.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in weights.items()})
    net.to(device)

    def put(array: np.ndarray) -> Any:  # time first is its own layout
        return torch.tensor(array.swapaxes(0, 1).copy(), device=device)

    xs, target, mask = put(problem.xs), put(problem.target), put(problem.mask)
    lengths = None if problem.lengths is None else torch.tensor(problem.lengths)
    rnn = torch.nn.utils.rnn

    def forward() -> Any:
        if lengths is None:
            ys, _ = net[0](xs)
        else:
            ys, _ = net[0](rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False))
            ys, _ = rnn.pad_packed_sequence(ys, total_length=case.T)
        return net[1](ys)

    def synchronize() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def evaluate() -> Any:
        with torch.no_grad():
            ys = forward()
        synchronize()
        return ys

    adam = torch.optim.Adam(
        net.parameters(), ADAM["learning_rate"], (ADAM["b1"], ADAM["b2"]), ADAM["eps"]
    )

    def gradient() -> Any:
        net.zero_grad()
        loss = problem.loss(forward(), target, mask)
        loss.backward()
        if case.training:
            adam.step()
        synchronize()
        return loss

    results = {"outputs": evaluate().cpu().numpy().swapaxes(0, 1) * problem.mask}
    if case.work == "forward":
        return Entry(evaluate, results)
    gradient()
    theirs = {name: jnp.asarray(w.grad.cpu().numpy()) for name, w in net.named_parameters()}
    return Entry(gradient, results | {"gradient": to_ours(theirs)[0]})


def _net(torch: Any, case: Case) -> Any:
    make = getattr(torch.nn, LAYERS[case.cell])
    rnn = make(case.D, case.H, case.layers, bidirectional=case.bidirectional)
    readout = torch.nn.Linear(case.outputs, O) if case.training else torch.nn.Identity()
    return torch.nn.ModuleList([rnn, readout])


PEER = Peer("PyTorch", "torch", lambda case: case.cell in LAYERS, build)
