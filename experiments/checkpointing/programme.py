"""How many forward steps the gradient takes when memory is short: the best possible, by
dynamic programming.

Memory is counted in slots, of which a hidden state fills one and the internal state of a step, all
that its backward pass needs, fills `alpha`. The hidden state before the first step is held in one
of the m slots. With t steps to go back through, run y steps, keep what is there, go back through
the later ones with what is left, free it, and go back through the earlier ones::

    C(t, m) = min over y of y + C(t - y, m - 1) + C(y, m)              a hidden state is kept
    C(t, m) = min over y of y + C(t - y, m - alpha) + C(y - 1, m)      an internal state is kept

The first line alone is BPTT-HSM of Gruslys et al. (2016). Both are our account of their mixed
schedule: an internal state saves the step that would make it again. Without either, every step
back is run from the start: C(t, 1) = t (t + 1) / 2.
"""

import numpy as np


def forward_steps(T: int, slots: int, alpha: int | None = None) -> np.ndarray:
    """C(t, m) for all t <= T and m <= slots; column 0 is infinite.

    Args:
      T: number of steps.
      slots: hidden states that fit into memory.
      alpha: slots of an internal state; None keeps hidden states alone.

    Returns:
      float, [T + 1, slots + 1].

    Example:
      >>> C = forward_steps(4, 4)
      >>> print(C[4, 1:])
      [10.  8.  7.  7.]
      >>> print(forward_steps(4, 8, alpha=2)[4, 1:])
      [10.  8.  6.  6.  5.  5.  4.  4.]
    """
    C = np.full((T + 1, slots + 1), np.inf)
    C[0, 1:] = 0
    for t in range(1, T + 1):
        C[t, 1:] = t * (t + 1) / 2
        if t > 1:
            y = np.arange(1, t)
            kept = y[:, None] + C[t - y, 1:slots] + C[y, 2:]
            C[t, 2:] = np.minimum(C[t, 2:], kept.min(axis=0))
        if alpha is not None and slots > alpha:
            y = np.arange(1, t + 1)
            kept = y[:, None] + C[t - y, 1 : slots + 1 - alpha] + C[y - 1, alpha + 1 :]
            C[t, alpha + 1 :] = np.minimum(C[t, alpha + 1 :], kept.min(axis=0))
    return C


def of_segments(T: int, segment: int, alpha: float) -> tuple[float, float]:
    """Slots and forward steps of segments: the states between them, and the steps of one."""
    return -(-T // segment) + alpha * segment, 2 * T
