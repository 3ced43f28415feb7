"""Which recurrent nets learn to remember, for how long, and with which remedy?

    python -m experiments.memory_tasks                          # success against length
    python -m experiments.memory_tasks --table temporal_order   # clipping, and the regulariser
    python -m experiments.memory_tasks --table lstm_1997        # the first LSTM, as published

Every curve is over several seeds, all of which, with all remedies that are mere numbers, train in
one compiled call. Data are drawn inside of it; a net that has learned stays as it is.
"""
