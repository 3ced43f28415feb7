"""How fast the recurrent layers are, beside those of other libraries on the same machine.

    python -m experiments.bench                         # the gradient of an LSTM, six sizes
    python -m experiments.bench --work forward gradient training --cells lstm gru
    python -m experiments.bench --all
    python -m experiments.bench.scaling                 # time against T, B and H; compile time

Every entry has the same weights, inputs and loss. Its outputs and gradients are compared with ours
before anything is timed; then all entries run in turn, round after round, and each round gives one
ratio: the time of the peer over the time of ours. Above 1, ours is faster.
"""
