"""A lecture's worked example, checked to the digit: a linear recurrent network learns to count.

The input is 1, the wanted outputs are 2 and then 3, all one-hot, as row vectors::

    h_t = h_{t-1} W + x_t U,   y_t = h_t V,   h_0 = 0,   x_2 = 0
    loss = sum_t |y_t - target_t|^2                       (no factor 1/2)

The published outputs and dV are right; the published dW and dU are not the gradient. The rule
that gives them is inferred here: it reproduces every published figure but for the rounding of the
weights. This program shows it beside `jax.grad` and finite differences, in float64, and trains
the network with both.

    python -m experiments.counting
"""

import math
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import rnn_jax
from experiments.harness import command, plots
from experiments.harness.study import Options, Progress, Study

Params = rnn_jax.ReadoutParams
Rule = Callable[[Params], Params]  # the direction that gradient descent subtracts

D, H, O = 3, 2, 3
CELL = rnn_jax.elman(D, H, activation=jax.nn.identity, bias=False)
MODEL = rnn_jax.readout(CELL, O, bias=False)
XS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
TARGETS = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

START = {
    "U": [[-0.1565, 0.9190], [0.8315, 0.3115], [0.5844, -0.9286]],
    "V": [[0.6983, 0.3575, 0.4863], [0.8680, 0.5155, -0.2155]],
    "W": [[0.3110, 0.4121], [-0.6576, -0.9363]],
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "forward": {  # the minus signs of y2, lost in print, are put back
        "y1": [0.6884, 0.4178, -0.2742],
        "h2": [-0.6530, -0.9250],
        "y2": [-1.2588, -0.7102, -0.1182],
    },
    "gradient": {
        "V": [[1.4286, 1.1098, 1.5461], [3.5940, 0.2438, 1.5646]],
        "W": [[0.3203, -0.7019], [-1.8805, 4.1222]],
        "U": [[0.2785, 0.7130], [0.0, 0.0], [0.0, 0.0]],
    },
    "trained": {
        "V": [[0.0007, -0.9555, -0.4747], [-0.0001, 0.3239, -0.4533]],
        "W": [[0.2870, 0.4962], [-0.4082, -1.5386]],
        "U": [[-0.7724, 0.8089], [0.8315, 0.3115], [0.5844, -0.9286]],
    },
}
PUBLISHED_ITERATIONS = 56
HALF_DIGIT = 0.5e-4  # every figure is printed with four decimals
NAMES = {
    "published": "published",
    "computed": "computed",
    "lecture": "lecture's rule",
    "jax_grad": "jax.grad",
    "finite_differences": "finite differences",
}
EXPLANATION = (
    "The lecture's rule takes one product over all steps for each weight matrix, "
    "dU = X^T.E.V^T and dW = H_prev^T.E.V^T.W^T with E = 2 (Y - targets), where "
    "backpropagation through time sums over every step at which a weight acted, each with the "
    "whole error that reaches this step, from its own output and back from the later ones. "
    "It leaves out of dU the error of y2 that returns through W to the first step, and it puts "
    "into dW an error that is carried through W once too often; dV, where nothing recurs, is right."
)


@dataclass(frozen=True)
class Config(Options):
    """A lecture's worked example, checked to the digit: a linear recurrent network learns to count.

    Prints the published figures beside the lecture's rule, `jax.grad` and finite differences,
    trains with both rules, and writes numbers.json and rmse.png. Nothing is random and all of it
    takes seconds: --seed and --quick change nothing.
    """

    learning_rate: float = 0.1
    """Step size of gradient descent; the lecture's is 0.1."""
    tolerance: float = 1e-4
    """Stop when the RMSE changes by less than this from one update to the next."""
    max_updates: int = 1000
    """Stop after so many updates in any case."""

    def check(self) -> None:
        super().check()
        command.above_zero(self, "learning_rate", "tolerance")
        command.at_least(self, max_updates=1)


def start() -> Params:
    """The published initial weights."""
    u, w, v = (jnp.asarray(START[name]) for name in "UWV")
    return Params(cell=rnn_jax.ElmanParams(w_x=u, w_h=w, b=None), w_y=v, b_y=None)


def named(params: Params) -> dict[str, Any]:
    """The weights, or a gradient, under the lecture's letters."""
    return {"V": params.w_y, "W": params.cell.w_h, "U": params.cell.w_x}


@jax.jit
def forward(params: Params) -> dict[str, jax.Array]:
    """The figures of the forward pass that the lecture prints."""
    _, hs = rnn_jax.unroll(CELL, params.cell, None, XS)
    _, ys = rnn_jax.unroll(MODEL, params, None, XS)
    return {"y1": ys[0], "h2": hs[1], "y2": ys[1]}


def loss(params: Params) -> jax.Array:
    """The squared error of both steps."""
    _, ys = rnn_jax.unroll(MODEL, params, None, XS)
    return jnp.sum((ys - TARGETS) ** 2)


@jax.jit
def rmse(params: Params) -> jax.Array:
    """The root of the mean over the steps of the squared norm of the error."""
    return jnp.sqrt(loss(params) / len(XS))


@jax.jit
def lecture_rule(params: Params) -> Params:
    """What the lecture subtracts: one product over all steps for each matrix."""
    _, hs = rnn_jax.unroll(CELL, params.cell, None, XS)
    _, ys = rnn_jax.unroll(MODEL, params, None, XS)
    errors = 2 * (ys - TARGETS)
    before = jnp.concatenate([jnp.zeros((1, H), hs.dtype), hs[:-1]])
    assert params.w_y is not None
    at_hidden = errors @ params.w_y.T
    cell = params.cell._replace(
        w_x=XS.T @ at_hidden, w_h=before.T @ (at_hidden @ params.cell.w_h.T)
    )
    return params._replace(cell=cell, w_y=hs.T @ errors)


true_gradient: Rule = jax.jit(jax.grad(loss))


@jax.jit
def finite_differences(params: Params, step: float = 1e-2) -> Params:
    """Central differences; exact but for rounding, for the loss is quadratic in any one weight."""
    flat, restore = ravel_pytree(params)
    moves = step * jnp.eye(flat.size)
    ahead, behind = (jax.vmap(lambda m, s=s: loss(restore(flat + s * m)))(moves) for s in (1, -1))
    return restore((ahead - behind) / (2 * step))


@partial(jax.jit, static_argnums=0)
def allowed(f: Callable[[Params], Any], params: Params) -> Any:
    """How far a figure may be from its printed value when all were rounded to four decimals."""
    flat, restore = ravel_pytree(params)
    jacobians = jax.jacfwd(lambda weights: f(restore(weights)))(flat)
    return jax.tree.map(lambda j: HALF_DIGIT * (1 + jnp.sum(jnp.abs(j), -1)), jacobians)


@partial(jax.jit, static_argnums=0)
def descend(rule: Rule, learning_rate: float, params: Params) -> Params:
    """One update of gradient descent, with the rule in the place of the gradient."""
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, rule(params))


def train(config: Config, rule: Rule, params: Params) -> tuple[Params, list[float]]:
    """The trained weights, and the RMSE before and after each update."""
    curve = [float(rmse(params))]
    for count in range(1, config.max_updates + 1):
        params = descend(rule, config.learning_rate, params)
        curve.append(float(rmse(params)))
        if not math.isfinite(curve[-1]):
            raise command.Failed(
                f"the RMSE is {curve[-1]} after {count} updates: the training diverged. Try a "
                f"learning rate below {config.learning_rate}."
            )
        if abs(curve[-1] - curve[-2]) < config.tolerance:
            break
    return params, curve


def beside(
    section: str, f: Callable[[Params], Any], params: Params, **computed: dict[str, Any]
) -> dict[str, Any]:
    """Published and computed figures together; `f` computes what the lecture printed."""
    table: dict[str, Any] = {}
    tolerance = allowed(f, params)
    for name, figures in PUBLISHED[section].items():
        table[name] = {"published": {"value": figures}}
        for source, values in computed.items():
            gap = np.abs(np.asarray(values[name]) - np.asarray(figures))
            table[name][source] = {
                "value": np.asarray(values[name]).tolist(),
                "difference": float(gap.max()),
                "agrees": bool(np.all(gap <= tolerance[name])),
            }
    return table


def cosine(a: Any, b: Any) -> float:
    """The cosine of the angle between two arrays or pytrees."""
    a, b = ravel_pytree(a)[0], ravel_pytree(b)[0]
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def at_start(params: Params) -> dict[str, Any]:
    """The forward pass and the four gradients at the published weights."""

    def by_rule(params: Params) -> dict[str, Any]:
        return named(lecture_rule(params))

    rule, true = by_rule(params), named(true_gradient(params))
    numeric = named(finite_differences(params))
    return {
        "forward": beside("forward", forward, params, computed=forward(params)),
        "gradient": beside(
            "gradient", by_rule, params, lecture=rule, jax_grad=true, finite_differences=numeric
        ),
        "cosine": {name: cosine(rule[name], true[name]) for name in "VWU"},
    }


def after_training(config: Config, params: Params) -> dict[str, Any]:
    """The RMSE and the final weights of both trainings."""
    by_rule, rule_curve = train(config, lecture_rule, params)
    by_grad, grad_curve = train(config, true_gradient, params)
    updates = len(rule_curve) - 1

    def trained(params: Params) -> Any:
        update = partial(descend, lecture_rule, config.learning_rate)
        return named(jax.lax.fori_loop(0, updates, lambda _, p: update(p), params))

    weights = {"lecture": named(by_rule), "jax_grad": named(by_grad)}
    return {
        "trained": beside("trained", trained, params, **weights),
        "updates": {"lecture": updates, "jax_grad": len(grad_curve) - 1},
        "rmse": {"lecture": rule_curve, "jax_grad": grad_curve},
    }


def measure(config: Config, say: Progress) -> dict[str, Any]:
    """All the numbers."""
    params = start()
    say.expect(2)
    say("gradients")
    found = at_start(params)
    say("training")
    return {"explanation": EXPLANATION, **found, **after_training(config, params)}


def table(section: dict[str, Any]) -> str:
    """A section with the sources one under the other, so that digits can be compared."""
    lines = []
    for name, rows in section.items():
        for source, row in rows.items():
            matrix = np.atleast_2d(row["value"])
            numbers = " |".join("".join(f"{x:8.4f}" for x in line) for line in matrix)
            verdict = {True: "agrees", False: "differs"}.get(row.get("agrees"), "")
            label = name if source == "published" else ""
            lines.append(f"{label:<3}{NAMES[source]:<18}{numbers:<50} {verdict}".rstrip())
    return "\n".join(lines)


def summary(report: dict[str, Any], config: Config) -> str:
    """What a person reads at the end."""
    updates, cosines = report["updates"], report["cosine"]
    gap = max(
        np.abs(np.subtract(rows["jax_grad"]["value"], rows["finite_differences"]["value"])).max()
        for rows in report["gradient"].values()
    )
    angles = ", ".join(f"d{name} {cosines[name]:.2f}" for name in "VWU")
    return f"""\
"agrees": the rounding of the printed weights to four decimals explains the difference.

Forward pass at the published weights
{table(report["forward"])}

Gradients of the squared error there (dV, dW, dU; rows separated by |)
{table(report["gradient"])}
jax.grad and finite differences (float64) are at most {gap:.0e} apart.
Cosine between the lecture's rule and the gradient: {angles}.

Training, learning rate {config.learning_rate:g}, until the RMSE changes by less than \
{config.tolerance:g} (at most {config.max_updates} updates)
  published       {PUBLISHED_ITERATIONS} iterations
  lecture's rule  {updates["lecture"]} updates ({updates["lecture"] + 1} evaluations of the RMSE), \
final RMSE {report["rmse"]["lecture"][-1]:.2g}
  jax.grad        {updates["jax_grad"]} updates ({updates["jax_grad"] + 1} evaluations), \
final RMSE {report["rmse"]["jax_grad"][-1]:.2g}
Final weights (the published ones are those of the lecture's rule)
{table(report["trained"])}

{textwrap.fill(EXPLANATION, 88)}"""


def draw(report: dict[str, Any], config: Config) -> Figure:
    """The RMSE of both trainings over the updates."""
    figure, axes = plots.panels(size=(7, 4.5))
    for source, color, style in (("lecture", "C1", "--"), ("jax_grad", "C0", "-")):
        curve = report["rmse"][source]
        label = f"{NAMES[source]}: stops after {len(curve) - 1} updates"
        axes.semilogy(curve, style, color=color, label=label, marker="o", markevery=[-1])
    axes.set(title="A linear recurrent network learns to count: 1, then 2, 3")
    axes.set(xlabel="updates of the weights", ylabel="RMSE over the two steps")
    axes.legend(loc="upper right")  # "best" is slow, and warns when it is
    return figure


STUDY = Study(
    "counting", Config, Config(quick=True), measure, summary, {"rmse.png": draw}, x64=True
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
