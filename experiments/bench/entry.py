"""What is timed: a program for one case, in any library that runs on JAX."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.case import Case, Params, Problem

ADAM = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


class Entry(NamedTuple):
    """A program that is ready to run."""

    run: Callable[[], Any]  # once; it returns when the result is there
    results: dict[str, np.ndarray]  # outputs and gradients in our layout, by name
    compile_seconds: float | None = None
    bytes: int | None = None  # of temporary arrays and outputs


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


def build_layers(
    make: Callable[[Case, int], Layer], problem: Problem, time_major: bool = False
) -> Entry:
    """The entry of a library that has one layer at a time, ``make(case, D)``."""
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

    def outputs(ys: Any) -> dict[str, np.ndarray]:
        return {"outputs": lay(np.asarray(ys)) * problem.mask}

    forward = jax.jit(model.run)
    if problem.case.work == "forward":
        program = Program(forward, weights, xs, lengths)
        return Entry(program.run, outputs(program.run()), program.seconds, program.bytes)
    results = outputs(forward(weights, xs, lengths))
    data = xs, lengths, target, mask
    if problem.case.work == "gradient":
        program = Program(jax.jit(jax.value_and_grad(loss)), weights, *data)
        _, gradient = program.run()
    else:
        program = Training(loss, weights, *data)
        gradient = program.first()
    results |= named(to_ours(jax.device_put(gradient, first))[0])
    return Entry(program.run, results, program.seconds, program.bytes)


def named(gradient: Params) -> dict[str, np.ndarray]:
    """The arrays of a gradient in our layout, by their path."""
    paths, _ = jax.tree_util.tree_flatten_with_path(gradient)
    return {f"gradient{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in paths}


class Program:
    """A compiled function with its arguments, and what it costs to compile and to hold."""

    def __init__(self, function: Any, *arguments: Any):
        start = time.perf_counter()
        self.program = function.lower(*arguments).compile()
        self.seconds = time.perf_counter() - start
        self.arguments = arguments
        memory = self.program.memory_analysis()
        self.bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes

    def run(self) -> Any:
        return jax.block_until_ready(self.program(*self.arguments))


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

    def run(self) -> Any:
        carry, value = super().run()
        self.arguments = carry, *self.arguments[1:]
        return value

    def first(self) -> Any:
        """The gradient of the first step, from its average that Adam keeps."""
        self.run()
        average = self.arguments[0][1][0].mu
        return jax.tree.map(lambda a: a / (1 - ADAM["b1"]), average)
