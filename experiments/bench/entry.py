"""What is timed: a program for one case, in any library that runs on JAX."""

from collections.abc import Callable, Container
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.case import Case, Params, Problem
from experiments.harness.measure import Program

ADAM = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


class Entry(NamedTuple):
    """A program that is ready to run."""

    run: Callable[[], Any]  # once
    results: dict[str, Any]  # outputs, and the gradient as Params
    compile_seconds: float | None = None
    bytes: int | None = None  # of temporary arrays and outputs


def compiled(program: Program, results: dict[str, Any]) -> Entry:
    return Entry(program, results, program.seconds, program.bytes)


class Peer(NamedTuple):
    """A library, and how it is asked."""

    name: str
    library: str | None  # the module that must be importable
    can: Callable[[Case], bool]
    build: Callable[[Problem], Entry]


class Model(NamedTuple):
    """The recurrent layers of a library for one case, and the readout if there is one."""

    convert: Callable[[Params], Any]  # to its own weights; its pullback brings gradients to ours
    run: Callable[[Any, Any, Any], Any]  # (weights, xs, lengths) -> ys
    time_major: bool = False  # the layout that is native to it: [T, B, D] instead of [B, T, D]


class Layer(NamedTuple):
    """One layer of a library in one direction."""

    convert: Callable[[Any], Any]  # (params of our cell) -> its own weights
    run: Callable[..., Any]  # (weights, xs, lengths, reverse) -> ys, in the order of xs


def layered(
    name: str,
    library: str | None,
    make: Callable[[Case, int], Layer],
    cells: Container[str],
    *,
    lengths: bool = True,
    time_major: bool = False,
) -> Peer:
    """A library that has one layer at a time, ``make(case, D)``, of these cells."""

    def can(case: Case) -> bool:
        return case.cell in cells and (lengths or not case.lengths)

    return Peer(name, library, can, partial(_build_layers, make, time_major))


def _build_layers(make: Callable[[Case, int], Layer], time_major: bool, problem: Problem) -> Entry:
    layers = [make(problem.case, D) for D in problem.case.inputs]

    def convert(params: Params) -> Any:
        pairs = zip(layers, params.layers, strict=True)
        return [[layer.convert(p) for p in directions] for layer, directions in pairs], (
            params.readout
        )

    def run(weights: Any, xs: Any, lengths: Any) -> Any:
        for layer, directions in zip(layers, weights[0], strict=True):
            ys = [layer.run(w, xs, lengths, reverse) for reverse, w in enumerate(directions)]
            xs = ys[0] if len(ys) == 1 else jnp.concatenate(ys, axis=-1)
        return read_out(weights[1], xs)

    return build(Model(convert, run, time_major), problem)


def read_out(readout: Any, ys: Any) -> Any:
    return ys if readout is None else ys @ readout[0] + readout[1]


def build(model: Model, problem: Problem, place: Any = None, place_data: Any = None) -> Entry:
    """Compiles the work and runs it once; weights and data lie on the first device, or in place."""
    first = jax.devices()[0]
    place, place_data = place or first, place_data or first

    def lay(array: Any) -> Any:
        return array.swapaxes(0, 1) if model.time_major else array

    weights, to_ours = jax.vjp(model.convert, problem.params)
    weights = jax.device_put(weights, place)
    xs, target, mask = jax.device_put(
        tuple(map(lay, (problem.xs, problem.target, problem.mask))), place_data
    )
    lengths = jax.device_put(problem.lengths, place_data)

    def loss(weights: Any, xs: Any, lengths: Any, target: Any, mask: Any) -> Any:
        return problem.loss(model.run(weights, xs, lengths), target, mask)

    def outputs(ys: Any) -> dict[str, Any]:
        return {"outputs": lay(np.asarray(ys)) * problem.mask}

    forward = jax.jit(model.run)
    if problem.case.work == "forward":
        program = Program(forward, weights, xs, lengths)
        return compiled(program, outputs(program()))
    results = outputs(forward(weights, xs, lengths))
    data = xs, lengths, target, mask
    if problem.case.work == "gradient":
        program = Program(jax.jit(jax.value_and_grad(loss)), weights, *data)
        _, gradient = program()
    else:
        program = Training(loss, weights, *data)
        gradient = program.first()
    (results["gradient"],) = to_ours(jax.device_put(gradient, first))
    return compiled(program, results)


class Training(Program):
    """A step of Adam after the other; the old weights give their memory to the new ones."""

    def __init__(self, loss: Callable, weights: Any, *data: Any):
        adam = optax.adam(**ADAM)

        def step(carry: tuple[Any, Any], *data: Any) -> Any:
            weights, state = carry
            value, gradient = jax.value_and_grad(loss)(weights, *data)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(weights, updates), state), value

        carry = jax.tree.map(jnp.copy, (weights, adam.init(weights)))
        super().__init__(jax.jit(step, donate_argnums=0), carry, *data)

    def __call__(self) -> Any:
        carry, value = super().__call__()
        self.arguments = carry, *self.arguments[1:]
        return value

    def first(self) -> Any:
        """The gradient of the first step, from its average that Adam keeps."""
        self()
        average = self.arguments[0][1][0].mu
        return jax.tree.map(lambda a: a / (1 - ADAM["b1"]), average)
