"""The output of a step as a function of the state that the step makes.

A cell says ``state, y = step(params, state, z)``; what y owes to the new state (all, in most cells)
it does not say. The operations of the step do: those that make y are run again on the new state.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun, jaxprs_in_params

from rnn_jax._types import Params, State

OfState = Callable[[State], Any]  # new state -> y


def separate(step: Any, params: Params, old: State, z: Any) -> tuple[State, OfState]:
    """The state after a step, and y as the cell computes it from such a state.

    What y owes to `params`, `old` and `z` by another way than the new state stays as it is.
    """
    traced, (states, outputs) = _trace(step, params, old, z)
    inputs = jax.tree.leaves((params, old, z))
    jaxpr = traced.jaxpr
    made = jaxpr.outvars[: len(jax.tree.leaves(states))]
    own = [v for v in made if isinstance(v, Var) and v not in jaxpr.invars]
    fresh = {v: Var(v.aval) for v in own}

    def swap(atoms: Any) -> list[Any]:
        return [fresh.get(a, a) if isinstance(a, Var) else a for a in atoms]

    ys = swap(jaxpr.outvars[len(made) :])
    again = jaxpr.replace(
        invars=[*jaxpr.invars, *fresh.values()],
        outvars=ys,
        eqns=_making(ys, [e.replace(invars=swap(e.invars)) for e in jaxpr.eqns], fresh),
    )

    run = jaxpr_as_fun(ClosedJaxpr(again, traced.consts))

    def output(new: State) -> Any:
        leaves = zip(made, jax.tree.leaves(new), strict=True)
        value = {v: leaf for v, leaf in leaves if isinstance(v, Var)}
        ys = run(*inputs, *(value[v] for v in fresh))
        return jax.tree.unflatten(jax.tree.structure(outputs), ys)

    return step(params, old, z)[0], output


def _trace(step: Any, *args: Any) -> Any:
    try:
        with jax.disable_jit():  # sees what is inside of a jitted step
            return jax.make_jaxpr(step, return_shape=True)(*args)
    except jax.errors.JAXTypeError:  # a cond or a while, which need jit
        return jax.make_jaxpr(step, return_shape=True)(*args)


def _making(ys: list[Any], eqns: list[Any], fresh: dict[Any, Any]) -> list[Any]:
    """The operations that `ys` need; refuses one that hides how they come from the state."""
    needed, kept = {y for y in ys if isinstance(y, Var)}, []
    for eqn in reversed(eqns):
        if needed.isdisjoint(eqn.outvars):
            continue
        if list(jaxprs_in_params(eqn.params)) and not fresh.keys().isdisjoint(eqn.outvars):
            raise ValueError(
                f"cell: its step makes the new state and the output inside one "
                f"{eqn.primitive.name}, so that it cannot be seen what the output owes to the "
                "state. Make the output from the state outside of it."
            )
        kept.append(eqn)
        needed.update(a for a in eqn.invars if isinstance(a, Var))
    return kept[::-1]
