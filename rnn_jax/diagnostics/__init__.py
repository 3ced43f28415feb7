"""Diagnostics: where gradients go over time, how a step stretches the state, what estimates miss.

They work for any cell and any state. The state counts as one real vector of its n floating point
numbers, leaf after leaf (complex ones as pairs); integers and PRNG keys have no derivative. Step t
takes h_{t-1} to h_t, and h_{-1} is the state before the first step. All functions but
`noise_scale` are for one sequence: `jax.vmap` adds a batch, seeds or draws of params, and `jax.jit`
makes them fast.

    gradient_flow         dL/dh_t for each t, and the part of it that comes from the loss at t
    influence             how much of the loss at t + lag reaches h_t
    gradients_by_lag      the gradient of the params, split by lag
    memory_horizon        the lag that holds 95 % of what the two above measure
    jacobians             dh_t/dh_{t-1}
    singular_values       of the products dh_T/dh_{t-1}, as logarithms, without multiplying them
    lyapunov_exponents    how fast small differences of the state grow
    gate_saturation       how often each gate is shut or open
    compare               a gradient algorithm against another: bias, variance, angle, length
    compare_by_lag        the same, split by lag: where in time an algorithm is off
    noise_scale           of gradients of single sequences: variance over squared mean
    pascanu_regularizer   a term for the loss that keeps gradients from vanishing or exploding
"""

from rnn_jax.diagnostics.compare import (
    Agreement,
    Comparison,
    ComparisonByLag,
    compare,
    compare_by_lag,
)
from rnn_jax.diagnostics.flow import GradientFlow, gradient_flow
from rnn_jax.diagnostics.gates import GateSaturation, gate_saturation
from rnn_jax.diagnostics.jacobians import jacobians
from rnn_jax.diagnostics.lag import Influence, gradients_by_lag, influence, memory_horizon
from rnn_jax.diagnostics.lyapunov import Lyapunov, lyapunov_exponents
from rnn_jax.diagnostics.noise_scale import NoiseScale, noise_scale
from rnn_jax.diagnostics.pascanu import pascanu_regularizer
from rnn_jax.diagnostics.singular_values import singular_values

__all__ = [
    "Agreement",
    "Comparison",
    "ComparisonByLag",
    "GateSaturation",
    "GradientFlow",
    "Influence",
    "Lyapunov",
    "NoiseScale",
    "compare",
    "compare_by_lag",
    "gate_saturation",
    "gradient_flow",
    "gradients_by_lag",
    "influence",
    "jacobians",
    "lyapunov_exponents",
    "memory_horizon",
    "noise_scale",
    "pascanu_regularizer",
    "singular_values",
]
