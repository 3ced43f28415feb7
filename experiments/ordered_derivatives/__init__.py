"""Ordered derivatives: what backpropagation through time does for systems of any kind.

    python -m experiments.ordered_derivatives

After Werbos, Backpropagation through time: what it does and how to do it, 1990. Six parts:

1. a list of elementary functions, swept backward, against `jax.grad` and against perturbation;
2. his net with lags one and two, its derivatives swept by hand, against `rnn_jax.gradients.bptt`;
3. identification of a plant, one step ahead and along the simulated path;
4. his adaptive learning rate against fixed ones, on the same plant;
5. sensitivity of a market to all that goes into it: one sweep against one run for each input;
6. simultaneous equations inside the loop over time, and their adjoint.

The market is an invention of ours; he studied one for natural gas.
"""
