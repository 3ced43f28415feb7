"""The gradient algorithms measured: exactness, bias, variance, cost, streams, sweeps of seeds.

    python -m experiments.gradient_algorithms
    python -m experiments.gradient_algorithms --parts balancing variance

1. balancing: a parameter whose near influence has the wrong sign (Tallec, Ollivier. Unbiased
   online recurrent optimization. 2018): which algorithms converge;
2. exactness: every algorithm on every cell, against backpropagation through time;
3. variance: the noise of one draw of the unbiased ones, and what it costs;
4. stream: a million steps of online learning in constant memory;
5. sweep: 64 seeds in one compiled call;
6. cost: time and memory of each algorithm;
7. bias: truncation against its length.

Each is a file: what is measured, what is said and what is drawn of it.
"""
