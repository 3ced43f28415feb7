"""RTRL with a sparse influence: left out where it is far (SnAp), or nowhere (element-wise)."""

from rnn_jax import _checks
from rnn_jax._types import Array, Cell
from rnn_jax.gradients import _sparse
from rnn_jax.gradients._online import Online, Rule
from rnn_jax.gradients._step import Step
from rnn_jax.gradients._types import StepLoss


def snap(cell: Cell, loss: StepLoss, n: int) -> Online:
    """RTRL that keeps the influence of a parameter on what it can reach within `n` steps.

    M_t = mask_n * (D_t M_{t-1} + I_t),  dL_t/dtheta = dl_t/dh_t M_t + dl_t/dtheta

    ``mask_1`` is where I_t can be nonzero: in a simple recurrent net, a weight and the unit that
    it feeds, in an LSTM its h and c. ``mask_n`` adds what D reaches in n - 1 steps more. The masks
    follow from the cell, never from the data. Biased, exact once the mask is full (a dense net:
    n = 2), or where no number of the state sees another, a complex one being one number (a diagonal
    recurrence). To have a sparse recurrent net profit, write the zeros into its cell:
    ``h @ (params.w_h * pattern)``.

    Memory K P with at most K entries a parameter (1, 2, ... for n = 1; all of the state, as RTRL,
    in a `gru`, whose reset gate reaches all units at once: `gru_reset_after` keeps it sparse).
    Time n_h backward passes and K^2 P a step, n_h being the size of the state.

    Args:
      cell: any `Cell`.
      loss: ``(y, target) -> scalar`` of one step.
      n: steps, at least 1.

    Returns:
      `Online`: called as `bptt`, or one step at a time with `init` and `update`.

    Raises:
      ValueError: n is not positive; otherwise as `unroll`.

    Example:
      Two units that feed each other, the loss after two steps: n = 1 leaves out what the weight
      to one unit does to the other.

      >>> import jax, jax.numpy as jnp
      >>> import rnn_jax
      >>> cell = rnn_jax.elman(1, 2, activation=jax.nn.identity, bias=False)
      >>> w_h = jnp.array([[0.5, 1.0], [1.0, 0.5]])
      >>> params = rnn_jax.ElmanParams(w_x=jnp.ones((1, 2)), w_h=w_h, b=None)
      >>> xs, last = jnp.array([[1.0], [0.0]]), jnp.array([0.0, 1.0])
      >>> for n in (1, 2):
      ...     value_and_grad = snap(cell, lambda y, w: w * y[0], n=n)
      ...     print(n, value_and_grad(params, None, xs, last)[1].w_x)
      1 [[0.5 0. ]]
      2 [[0.5 1. ]]

    References:
      Menick, Elsen, Evci, Osindero, Simonyan, Graves. Practical real time recurrent learning with
      a sparse approximation. 2021.
    """
    steps = _checks.positive_int("n", n)

    def rule(step: Step) -> Rule:
        found = _sparse.pattern(step)
        return _rtrl(_sparse.Influence(found, _sparse.reach(found, steps)))

    return Online("snap", cell, loss, rule, draws=False)


def elementwise_rtrl(cell: Cell, loss: StepLoss) -> Online:
    """The exact gradient at every step for diagonal recurrences, in the memory of the params.

    Where a unit sees no other unit's past, a parameter reaches the units that it feeds and no
    more, for ever: `rtrl` with those entries alone, K P numbers, and one backward pass a step for
    each of the few rows of a unit.

    Args:
      cell: a `Cell` in which every number of the state sees a few at most, such as
        ``h' = a * h + x @ w``, a linear recurrent unit with complex a, an LSTM without w_h.
      loss: ``(y, target) -> scalar`` of one step.

    Returns:
      `Online`: called as `bptt`, or one step at a time with `init` and `update`.

    Raises:
      ValueError: the units of the cell see each other, as in any dense recurrent layer and in
        stacks of layers (where the first reaches all of the second); use `rtrl` or `snap`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import rnn_jax
      >>> decay = rnn_jax.Cell(
      ...     init=lambda key: jnp.array([0.5, 0.25, 0.75]),
      ...     init_state=lambda a: jnp.zeros_like(a),
      ...     project=lambda a, x: x,
      ...     step=lambda a, h, x: (a * h + x, a * h + x),
      ... )
      >>> params = decay.init(jax.random.key(0))
      >>> value_and_grad = elementwise_rtrl(decay, lambda y, w: w * y.sum())
      >>> xs, last = jnp.ones((3, 3)), jnp.array([0.0, 0.0, 1.0])  # h_3 = a^2 + a + 1
      >>> print(value_and_grad(params, None, xs, last)[1])
      [2.  1.5 2.5]

    References:
      Mozer. A focused backpropagation algorithm for temporal pattern recognition. 1989.
      Zucchet, Meier, Schug, Mujika, Sacramento. Online learning of long-range dependencies. 2023.
    """

    def rule(step: Step) -> Rule:
        found = _sparse.pattern(step)
        influence = _sparse.Influence(found, _sparse.reach(found, None))
        n, seen = step.h.size, _sparse.unit_reach(found)
        if seen > max(2, n // 2):
            raise ValueError(
                f"cell: a unit reaches {seen} of the {n} numbers of the state, expected a "
                "recurrence in which every unit sees only itself. For the exact gradient of this "
                "cell use rtrl or bptt, for a sparse approximation snap."
            )
        return _rtrl(influence)

    return Online("elementwise_rtrl", cell, loss, rule, draws=False)


def _rtrl(influence: _sparse.Influence) -> Rule:
    def following(step: Step, M: Array) -> Array:
        return influence.add(step, influence.moved(influence.state_jacobian(step), M))

    return _sparse.rule(influence, following)
