"""What is computed: a case, and the same weights, inputs and loss for every library."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnn_jax

Work = Literal["forward", "gradient", "training"]
CellName = Literal["elman", "lstm", "gru", "gru_reset_after"]
O = 16  # outputs of the readout in training
GATES = {"elman": 1, "lstm": 4, "gru": 3, "gru_reset_after": 3}


class Case(NamedTuple):
    """One row of the table."""

    work: Work
    cell: CellName
    layers: int
    B: int
    T: int
    D: int
    H: int
    bidirectional: bool = False
    lengths: bool = False

    @property
    def name(self) -> str:
        """All but the sizes."""
        extras = [f"{self.layers} layers"] if self.layers > 1 else []
        extras += ["two directions"] if self.bidirectional else []
        extras += ["lengths"] if self.lengths else []
        return ", ".join([self.work, self.cell, *extras])

    @property
    def size(self) -> str:
        return f"{self.B}, {self.T}, {self.D}, {self.H}"

    @property
    def training(self) -> bool:
        return self.work == "training"

    @property
    def outputs(self) -> int:
        """Width of the outputs of the recurrent layers."""
        return self.H * (2 if self.bidirectional else 1)

    @property
    def inputs(self) -> list[int]:
        """Width of the inputs of each layer."""
        return [self.D] + [self.outputs] * (self.layers - 1)


class Params(NamedTuple):
    """All weights, in our layout."""

    layers: tuple[tuple[Any, ...], ...]  # [layer][direction]
    readout: tuple[jax.Array, jax.Array] | None  # [H, O], [O]; only training has one


class Problem(NamedTuple):
    """The numbers of a case."""

    case: Case
    params: Params
    xs: np.ndarray  # [B, T, D]
    lengths: np.ndarray | None  # [B]
    mask: np.ndarray  # [B, T, 1], 0 after the end of a sequence
    target: np.ndarray  # [B, T, O] in training, otherwise the weight of each output [B, T, H]

    def loss(self, ys: Any, target: Any, mask: Any) -> Any:
        """The loss in any library: operators and a mean are all that it takes."""
        return ((ys - target) ** 2 * mask).mean() if self.case.training else (ys * target).mean()


def make(case: Case, seed: int = 0) -> Problem:
    """Random weights, inputs and targets; with lengths, from one step to all of them."""
    rng = np.random.default_rng(seed)
    shape = case.B, case.T
    first = 1 if case.lengths else case.T
    ends = rng.integers(first, case.T + 1, case.B).astype(np.int32)
    valid = np.arange(case.T) < ends[:, None]
    mask = valid[..., None].astype(np.float32)
    width = O if case.training else case.outputs
    target = rng.normal(size=(*shape, width)).astype(np.float32)
    return Problem(
        case=case,
        params=_params(case, rng),
        xs=rng.normal(size=(*shape, case.D)).astype(np.float32),
        lengths=ends if case.lengths else None,
        mask=mask,
        target=target if case.training else target * mask,
    )


def _params(case: Case, rng: np.random.Generator) -> Params:
    def random(scale: float, *shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(scale=scale, size=shape), jnp.float32)

    def cell(D: int) -> Any:  # about the size that an initializer gives; no bias is zero
        shapes = jax.eval_shape(rnn_jax.ALL_CELLS[case.cell](D, case.H).init, jax.random.key(0))
        return jax.tree.map(lambda a: random(0.5 * case.H**-0.5, *a.shape), shapes)

    directions = range(2 if case.bidirectional else 1)
    return Params(
        layers=tuple(tuple(cell(D) for _ in directions) for D in case.inputs),
        readout=(random(0.1, case.outputs, O), random(0.1, O)) if case.training else None,
    )


def flops(problem: Problem) -> float:
    """Of the matrix products that cannot be avoided: 2 for each weight, step and use.

    Forward each weight is used once. The gradient of the weights is as much again; so is that of
    what a weight was multiplied with, but for the inputs of the first layer nobody wants it.
    """
    case = problem.case
    steps = case.B * case.T if problem.lengths is None else int(problem.lengths.sum())
    rows = [D + case.H for D in case.inputs]
    wide = GATES[case.cell] * case.outputs
    forward, backward = sum(rows) * wide, (2 * sum(rows) - case.D) * wide
    readout = case.outputs * O if case.training else 0
    uses = forward + readout if case.work == "forward" else forward + backward + 3 * readout
    return 2.0 * steps * uses
