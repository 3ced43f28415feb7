"""Memory against time of the gradient: segments of a long sequence run forward twice.

    python -m experiments.checkpointing

"For sequences of length 1000, our algorithm saves 95% of memory usage while using only one third
more time per iteration than the standard BPTT": Gruslys, Munos, Danihelka, Lanctot, Graves.
Memory-efficient backpropagation through time. 2016. This program measures what
`unroll(segment=...)` and `unroll(budget=...)` need, beside the plain scan and beside the default,
and counts forward steps: those of the best schedules by dynamic programming, those of segments.

Memory is XLA's `temp_size_in_bytes`: the weights, the inputs and the gradient itself do not count.
Times are medians of interleaved rounds, and each ratio is of two times of the same round.
"""
