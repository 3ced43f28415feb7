"""rnn_jax as a user calls it: `vmap` of `unroll`; also without the fast path; on two devices."""

from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rnn_jax
from experiments.bench.case import Case, O, Params, Problem
from experiments.bench.entry import Entry, Model, Peer, build, read_out

PLAIN_SCAN = rnn_jax.Plan(project="before", defer=False)


def model(case: Case, **options: Any) -> Model:
    """One cell over one sequence, mapped over the batch; `options` are those of `unroll`."""
    cells = [rnn_jax.ALL_CELLS[case.cell](D, case.H) for D in case.inputs]

    def two_directions(weights: Params, xs: Any, mask: Any) -> Any:
        for cell, params in zip(cells, weights.layers, strict=True):
            _, xs = rnn_jax.bidirectional(cell, cell, params, None, xs, mask=mask, **options)
        return read_out(weights.readout, xs)

    net = rnn_jax.stack(cells) if case.layers > 1 else cells[0]
    net = rnn_jax.readout(net, O) if case.training else net

    def one_direction(params: Any, xs: Any, mask: Any) -> Any:
        return rnn_jax.unroll(net, params, None, xs, mask=mask, **options)[1]

    def convert(params: Params) -> Any:
        if case.bidirectional:
            return params
        layers = tuple(p for (p,) in params.layers)
        cell = layers if case.layers > 1 else layers[0]
        return rnn_jax.ReadoutParams(cell, *params.readout) if params.readout else cell

    apply = two_directions if case.bidirectional else one_direction

    def run(params: Any, xs: Any, lengths: Any) -> Any:
        mask = None if lengths is None else rnn_jax.length_mask(lengths, case.T)
        return jax.vmap(apply, in_axes=(None, 0, None if mask is None else 0))(params, xs, mask)

    return Model(convert, run)


def _entry(problem: Problem, **options: Any) -> Entry:
    return build(model(problem.case, **options), problem)


def _two_devices(problem: Problem) -> Entry:
    mesh = jax.make_mesh((2,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:2])
    weights, data = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ((), ("batch",)))
    return build(model(problem.case), problem, weights, data)


def _plan(name: str, **options: Any) -> Peer:
    return Peer(name, None, lambda case: True, partial(_entry, **options))


OURS = _plan("ours")
PLAIN = _plan("ours, plain scan", plan=PLAIN_SCAN)
TWO_DEVICES = Peer(
    "ours, 2 devices",
    None,
    lambda case: len(jax.devices()) > 1 and case.B % 2 == 0,
    _two_devices,
)
PLANS = (
    _plan("inside", plan=rnn_jax.Plan(project="inside")),
    _plan("before", plan=rnn_jax.Plan(project="before")),
    _plan("inside, not deferred", plan=rnn_jax.Plan(project="inside", defer=False)),
    _plan("before, not deferred", plan=PLAIN_SCAN),
    _plan("2 steps a turn", plan=rnn_jax.Plan(steps=2)),
    _plan("4 steps a turn", plan=rnn_jax.Plan(steps=4)),
)
