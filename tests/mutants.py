"""The kill table: mistakes that somebody could make, and the tests that must notice each of them.

A row is ``(what is wrong, old text, new text, tests)``. The old text occurs exactly once in its
file; the tests are as few and as fast as do it.
"""

import os
from typing import NamedTuple

import mutants_devices
import mutants_interop
import mutants_language
from mutants_gradients import ALGORITHMS, LABORATORY

Row = tuple[str, str, str, str | tuple[str, ...]]


class Mutant(NamedTuple):
    """One mistake."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]  # node ids, relative to tests/


def table(subject: str, path: str, rows: list[Row]) -> list[Mutant]:
    return [
        Mutant(f"{subject}: {name}", path, old, new, (tests,) if isinstance(tests, str) else tests)
        for name, old, new, tests in rows
    ]


def sequence(test: str) -> str:
    return f"test_sequence.py::test_{test}"


def loop(case: str) -> str:
    return f"test_cells.py::test_equals_numpy_loop[{case}]"


def slope(case: str) -> str:
    return f"test_cells.py::test_derivatives_of_a_step_equal_finite_differences[{case}]"


def cells(test: str) -> str:
    return f"test_cells.py::test_{test}"


def law(test: str) -> str:
    return f"test_laws.py::test_{test}"


def gradients(test: str) -> str:
    return f"test_gradients.py::test_{test}"


def combine(test: str) -> str:
    return f"test_combine.py::test_{test}"


def noise(test: str) -> str:
    return f"test_noise.py::test_{test}"


def over_time(test: str) -> str:
    return f"test_over_time.py::test_{test}"


def losses(test: str) -> str:
    return f"test_losses.py::test_{test}"


def generate(test: str) -> str:
    return f"test_generate.py::test_{test}"


def batches(test: str) -> str:
    return f"test_batches.py::test_{test}"


def text_file(test: str) -> str:
    return f"test_text_file.py::test_{test}"


def text(test: str) -> str:
    return f"test_text.py::test_{test}"


def train(test: str) -> str:
    return f"test_train.py::test_{test}"


def kinds(test: str) -> str:
    return f"test_train_kinds.py::test_{test}"


def checkpoint(test: str) -> str:
    return f"test_checkpoint.py::test_{test}"


def counting(test: str) -> str:
    return f"test_counting.py::test_{test}"


def char_lm(test: str) -> str:
    return f"test_char_lm.py::test_{test}"


def harness(test: str) -> str:
    return f"test_harness.py::test_{test}"


BIAS_DROPPED = ("return z if params.b is None else z + params.b", "return z")

ELMAN: list[Row] = [
    ("recurrence dropped", "activation(z + h @ params.w_h)", "activation(z)", loop("elman")),
    ("w_h transposed", "z + h @ params.w_h", "z + params.w_h @ h", loop("elman")),
    ("bias dropped", *BIAS_DROPPED, loop("elman")),
    ("always tanh", "activation(z +", "jnp.tanh(z +", loop("elman relu")),
    (
        "state never replaced",
        "h = activation(z + h @ params.w_h)\n        return h, h",
        "y = activation(z + h @ params.w_h)\n        return h, y",
        loop("elman"),
    ),
    (
        "gradient cut at the recurrence",
        "z + h @ params.w_h",
        "z + jax.lax.stop_gradient(h) @ params.w_h",
        slope("elman"),
    ),
]

LSTM: list[Row] = [
    ("gates i and f swapped", "i, f, g, o = jnp.split(z", "f, i, g, o = jnp.split(z", loop("lstm")),
    ("gates g and o swapped", "i, f, g, o = jnp.split(z", "i, f, o, g = jnp.split(z", loop("lstm")),
    ("recurrence dropped", "jnp.split(z + h @ params.w_h, 4)", "jnp.split(z, 4)", loop("lstm")),
    ("never forgets", "c = sigmoid(f) * c +", "c = c +", loop("lstm")),
    (
        "output without tanh",
        "sigmoid(o) * tanh(c)",
        "sigmoid(o) * c",
        loop("lstm"),
    ),
    (
        "h and c exchanged in the state",
        "LSTMState(h=h, c=c), h",
        "LSTMState(h=c, c=h), h",
        loop("lstm"),
    ),
    ("bias dropped", *BIAS_DROPPED, loop("lstm")),
    (
        "peephole of o sees the old memory",
        """\
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        if params.w_c is not None:
            o = o + params.w_c[2] * c
""",
        """\
        if params.w_c is not None:
            o = o + params.w_c[2] * c
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
""",
        loop("lstm peepholes"),
    ),
    (
        "peepholes of i and f exchanged",
        "i + params.w_c[0] * c, f + params.w_c[1] * c",
        "i + params.w_c[1] * c, f + params.w_c[0] * c",
        loop("lstm peepholes"),
    ),
    (
        "gradient cut at the memory",
        "sigmoid(f) * c",
        "sigmoid(f) * jax.lax.stop_gradient(c)",
        slope("lstm"),
    ),
    (
        "recurrent weights drawn with the key of the others",
        "per_gate(w_h_init, 4)(k_h,",
        "per_gate(w_h_init, 4)(k_x,",
        cells("every_block_is_drawn_on_its_own[lstm]"),
    ),
]

CANDIDATE = "        n = tanh(a_n + (r * h) @ params.w_h[:, 2 * H :])\n"
CANDIDATE_AFTER = "        n = tanh(a_n + r * (u_n if params.b_n is None else u_n + params.b_n))\n"
UPDATE = "        h = mix(z, h, n)\n"
FLIPPED = "        h = mix(z, n, h)\n"

GRU: list[Row] = [
    ("z and 1 - z exchanged", CANDIDATE + UPDATE, CANDIDATE + FLIPPED, loop("gru")),
    (
        "gates r and z swapped",
        "r, z = map(sigmoid, jnp.split(a_rz + h @",
        "z, r = map(sigmoid, jnp.split(a_rz + h @",
        loop("gru"),
    ),
    (
        "reset after the product",
        "(r * h) @ params.w_h[:, 2 * H :]",
        "r * (h @ params.w_h[:, 2 * H :])",
        loop("gru"),
    ),
    ("reset dropped", "(r * h) @ ", "h @ ", loop("gru")),
    (
        "gates without recurrence",
        "jnp.split(a_rz + h @ params.w_h[:, : 2 * H], 2)",
        "jnp.split(a_rz, 2)",
        loop("gru"),
    ),
    (
        "bias dropped",
        "return (a_rz, a_n) if params.b is None else",
        "return (a_rz, a_n) if True else",
        loop("gru"),
    ),
]
GRU_RESET_AFTER: list[Row] = [
    (
        "z and 1 - z exchanged",
        CANDIDATE_AFTER + UPDATE,
        CANDIDATE_AFTER + FLIPPED,
        loop("gru_reset_after"),
    ),
    (
        "gates r and z swapped",
        "r, z = map(sigmoid, jnp.split(a_rz + u_rz",
        "z, r = map(sigmoid, jnp.split(a_rz + u_rz",
        loop("gru_reset_after"),
    ),
    (
        "b_n outside the reset",
        "r * (u_n if params.b_n is None else u_n + params.b_n)",
        "(r * u_n if params.b_n is None else r * u_n + params.b_n)",
        loop("gru_reset_after"),
    ),
    (
        "b_n dropped",
        "(u_n if params.b_n is None else u_n + params.b_n)",
        "u_n",
        loop("gru_reset_after"),
    ),
]

LAYER_NORM: list[Row] = [
    (
        "normalised in half precision",
        "dtype, a = a.dtype, a.astype(wide(a.dtype))",
        "dtype, a = a.dtype, a.astype(a.dtype)",
        "test_small_dtypes.py::test_layer_norm_in_half_precision_has_finite_gradients",
    ),
    ("not centred", "a - a.mean(axis=-1, keepdims=True)", "a", loop("layer_norm_elman")),
    (
        "not divided by the deviation",
        "return (centred * scale).astype(dtype)",
        "return centred.astype(dtype)",
        loop("layer_norm_elman"),
    ),
    (
        "norm in the place of the deviation",
        "(centred**2).mean(",
        "(centred**2).sum(",
        loop("layer_norm_elman"),
    ),
    (
        "elman: gain dropped",
        "params.gain * normalize(z +",
        "normalize(z +",
        loop("layer_norm_elman"),
    ),
    (
        "elman: recurrence not normalised",
        "normalize(z + h @ params.w_h)",
        "(normalize(z) + h @ params.w_h)",
        loop("layer_norm_elman"),
    ),
    (
        "lstm: gain_h dropped",
        "z + params.gain_h * normalize(h @ params.w_h), 4",
        "z + normalize(h @ params.w_h), 4",
        loop("layer_norm_lstm"),
    ),
    (
        "lstm: gates normalised apart",
        "params.gain_h * normalize(h @ params.w_h), 4",
        "params.gain_h * normalize((h @ params.w_h).reshape(4, H)).reshape(4 * H), 4",
        loop("layer_norm_lstm"),
    ),
    (
        "lstm: memory at the output not normalised",
        "params.gain_c * normalize(c)",
        "params.gain_c * c",
        loop("layer_norm_lstm"),
    ),
    ("lstm: b_c dropped", "normalize(c) + params.b_c", "normalize(c)", loop("layer_norm_lstm")),
    (
        "gru: gates normalised together",
        "jnp.concatenate([normalize(a[: 2 * H]), normalize(a[2 * H :])])",
        "normalize(a)",
        loop("layer_norm_gru"),
    ),
    (
        "gru: b_n outside the reset",
        "r * (u_n + params.b_n)",
        "r * u_n + params.b_n",
        loop("layer_norm_gru"),
    ),
    ("gru: z and 1 - z exchanged", UPDATE, FLIPPED, loop("layer_norm_gru")),
]

INITIALIZERS: list[Row] = [
    (
        "gates drawn jointly",
        """\
        return jnp.concatenate(
            [initializer(k, block, dtype) for k in jax.random.split(key, gates)], axis=-1
        )
""",
        "        return initializer(key, shape, dtype)\n",
        cells("each_recurrent_block_is_orthogonal[float32-lstm]"),
    ),
    (
        "one key for all gates",
        "for k in jax.random.split(key, gates)",
        "for k in [key] * gates",
        cells("every_block_is_drawn_on_its_own[lstm]"),
    ),
    (
        "forget bias in the slot of g",
        ".at[1].set(value)",
        ".at[2].set(value)",
        cells("forget_bias_is_that_of_f[float32]"),
    ),
    (
        "chrono with the signs of i and f exchanged",
        "jnp.concatenate([-f, f,",
        "jnp.concatenate([f, -f,",
        cells("chrono_spreads_the_lags_evenly[float32]"),
    ),
    (
        "chrono drawn in half precision",
        "wide(dtype), 1.0, max_lag",
        "dtype, 1.0, max_lag",
        cells("chrono_spreads_the_lags_evenly[bfloat16]"),
    ),
    (
        "orthogonal in half precision",
        "draw(key, shape, wide(dtype))",
        "draw(key, shape, dtype)",
        cells("each_recurrent_block_is_orthogonal[bfloat16-lstm]"),
    ),
    (
        "orthogonal not scaled",
        "jax.nn.initializers.orthogonal(scale)",
        "jax.nn.initializers.orthogonal()",
        cells("orthogonal_has_the_singular_values_of_its_scale[shape0-float32]"),
    ),
    (
        "identity not scaled",
        "return scale * jnp.eye(",
        "return jnp.eye(",
        cells("identity_of_every_gate"),
    ),
]

STEP = """\
        state = old if restart is None else restarted(restart, initial, old)
        new, y = _checks.stepped(cell.step(params, state, z), state)
"""
LATE_RESET = """\
        new, y = cell.step(params, old, z)
        new = new if restart is None else restarted(restart, initial, new)
"""

UNROLL: list[Row] = [
    (
        "lengths wrap around",
        "if length.dtype.itemsize < 4:",
        "if False:",
        "test_small_dtypes.py::test_lengths_of_any_integer_type",
    ),
    (
        "masked input not guarded",
        "    xs = _sequence.padded(xs, mask)\n",
        "",
        law("padding_never_matters[forward-elman]"),
    ),
    (
        "masked output not zero",
        "jax.tree.map(lambda a: jnp.where(valid, a, jnp.zeros_like(a)), y),",
        "y,",
        law("nothing_valid_returns_the_initial_state[forward-elman]"),
    ),
    (
        "state not carried through masked steps",
        "jax.tree.map(lambda n, o: jnp.where(valid, n, o), new, old),",
        "new,",
        law("nothing_valid_returns_the_initial_state[forward-elman]"),
    ),
    (
        "reset acts under the mask",
        "jnp.where(valid, n, o), new, old)",
        "jnp.where(valid, n, o), new, state)",
        law("a_reset_in_padding_is_ignored[elman]"),
    ),
    (
        "reset ignored",
        "state = old if restart is None else restarted(restart, initial, old)",
        "state = old",
        law("nan_does_not_get_past_a_reset[elman]"),
    ),
    ("reset after its step", STEP, LATE_RESET, law("reset_starts_anew[forward-elman]")),
    (
        "reset by multiplication",
        "jnp.where(restart, new, kept)",
        "new + (kept - new) * (~restart).astype(kept.dtype)",
        law("nan_does_not_get_past_a_reset[elman]"),
    ),
    (
        "reset to zeros",
        "jnp.where(restart, new, kept)",
        "jnp.where(restart, jnp.zeros_like(new), kept)",
        law("reset_starts_anew[forward-user]"),
    ),
    (
        "key reset with the state",
        "return kept if is_key else jnp.where(restart, new, kept)",
        "return jnp.where(restart, new, kept)",
        law("noise_goes_on_through_a_reset[dropout]"),
    ),
    (
        "reverse ignored",
        "_run(loop, state, inputs, reverse)\n\n    segment",
        "_run(loop, state, inputs, False)\n\n    segment",
        law("reverse_twice_is_the_identity[elman]"),
    ),
    (
        "reversed in the order of running",
        "_run(loop, state, inputs, reverse)\n\n    segment",
        "_run(loop, state, jax.tree.map(lambda a: a[::-1] if reverse else a, inputs), False)\n\n"
        "    segment",
        law("reverse_twice_is_the_identity[elman]"),
    ),
    (
        "given state ignored",
        "return run(loop.state, loop.inputs)",
        "return run(loop.initial, loop.inputs)",
        law("split_is_the_whole[elman]"),
    ),
    (
        "reset to the given state",
        "    xs = _sequence.padded(xs, mask)",
        "    initial = state\n    xs = _sequence.padded(xs, mask)",
        law("nan_does_not_get_past_a_reset[elman]"),
    ),
    (
        "inputs one step late",
        "return run(loop.state, loop.inputs)",
        "return run(loop.state, jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), loop.inputs))",
        law("scan_is_the_loop[elman]"),
    ),
    (
        "gradient cut between the steps",
        "cell.step(params, state, z)",
        "cell.step(params, jax.lax.stop_gradient(state), z)",
        law("an_output_does_not_see_the_future[elman]"),
    ),
    (
        "mask of a length one step too long",
        "< length[..., None]",
        "<= length[..., None]",
        combine("bidirectional_starts_at_the_last_valid_step"),
    ),
]

AFFINE = "return activation(y if params.b_y is None else y + params.b_y)"

COMBINE: list[Row] = [
    (
        "stack: upper layers keep their first state",
        "states.append(new)",
        "states.append(state[layer])",
        combine("stack_feeds_each_layer_to_the_next"),
    ),
    (
        "stack: every layer reads the first one",
        "new, y = cells[layer].step(",
        "new, _ = cells[layer].step(",
        combine("stack_feeds_each_layer_to_the_next"),
    ),
    (
        "stack: layers share a key",
        "keys = jax.random.split(key, len(cells))",
        "keys = [key] * len(cells)",
        combine("stack_layers_are_drawn_apart"),
    ),
    (
        "readout: activation dropped",
        AFFINE,
        AFFINE.replace("activation(", "("),
        combine("readout_is_an_affine_map_and_an_activation"),
    ),
    (
        "readout: bias dropped",
        AFFINE,
        "return activation(y)",
        combine("readout_is_an_affine_map_and_an_activation"),
    ),
    (
        "readout: initializer ignored",
        "w_y=w_init(k_y,",
        "w_y=initializers.glorot_uniform()(k_y,",
        combine("what_readout_and_embed_draw"),
    ),
    (
        "embed: table of zeros",
        "jax.random.normal(k_table, shape,",
        "jnp.zeros(shape,",
        combine("what_readout_and_embed_draw"),
    ),
    (
        "embed: row of the token before",
        "params.table[token]",
        "params.table[token - 1]",
        combine("embed_and_one_hot_look_up_rows"),
    ),
    (
        "one_hot: one too far",
        "jax.nn.one_hot(token, V,",
        "jax.nn.one_hot(token + 1, V,",
        combine("embed_and_one_hot_look_up_rows"),
    ),
    (
        "residual: subtracts",
        "return state, x + y",
        "return state, x - y",
        combine("residual_adds_the_input"),
    ),
    (
        "residual: skip dropped",
        "return state, x + y",
        "return state, y",
        combine("residual_adds_the_input"),
    ),
    (
        "stack of nets: upper layers start afresh",
        "None if state is None else state[layer]",
        "None",
        over_time("a_net_of_two_ways_is_its_layers_by_hand"),
    ),
    (
        "two_way: cells share a key",
        "backward.init(k_backward)",
        "backward.init(k_forward)",
        over_time("layers_of_two_ways_are_drawn_apart"),
    ),
    (
        "readout of a net: padding is not zero",
        "ys if mask is None else jnp.where(mask[:, None], ys, jnp.zeros_like(ys))",
        "ys",
        over_time("a_net_of_two_ways_is_its_layers_by_hand"),
    ),
    (
        "bidirectional: both forward",
        "reset=ends, reverse=True",
        "reset=ends",
        combine("bidirectional_reads_both_ways"),
    ),
    (
        "bidirectional: halves exchanged",
        "jnp.concatenate([ys, backward_ys]",
        "jnp.concatenate([backward_ys, ys]",
        combine("bidirectional_reads_both_ways"),
    ),
    (
        "bidirectional: backward cell without mask",
        "backward, params[1], second, xs, mask=mask,",
        "backward, params[1], second, xs,",
        combine("bidirectional_starts_at_the_last_valid_step"),
    ),
    (
        "bidirectional: backward reset not moved",
        "reset=ends, reverse=True",
        "reset=reset, reverse=True",
        combine("bidirectional_keeps_packed_sequences_apart"),
    ),
    (
        "bidirectional: backward reset on padding",
        'valid = _checks.time_flags("mask", mask, len(reset))',
        "valid = jnp.ones_like(reset)",
        combine("bidirectional_keeps_packed_sequences_apart"),
    ),
    (
        "bidirectional: forward state ignored",
        "forward, params[0], first, xs,",
        "forward, params[0], None, xs,",
        combine("bidirectional_continues_from_states"),
    ),
    (
        "bidirectional: backward state ignored",
        "backward, params[1], second, xs,",
        "backward, params[1], None, xs,",
        combine("bidirectional_continues_from_states"),
    ),
]

FRESH = "following, now = (old.key, old.key) if variational else jax.random.split(old.key)"

OVER_TIME: list[Row] = [
    (
        "last: the last step, padded or not",
        "jnp.max(jnp.where(mask, jnp.arange(len(ys)), 0), initial=0)",
        "len(ys) - 1",
        over_time("only_valid_steps_count"),
    ),
    (
        "both_ends: last valid step of both",
        "last(ys[::-1, ..., size:], mask[::-1])",
        "last(ys[..., size:], mask)",
        over_time("only_valid_steps_count"),
    ),
    (
        "mean_over_time: over padding too",
        "jnp.maximum(mask.sum(), 1)",
        "jnp.maximum(mask.size, 1)",
        over_time("only_valid_steps_count"),
    ),
    (
        "mean_over_time: adds up in half precision",
        ".astype(wide(ys.dtype))",
        "",
        over_time("the_mean_of_half_precision_does_not_overflow"),
    ),
    (
        "max_over_time: padding counts as zero",
        "jnp.full_like(ys, -jnp.inf)",
        "jnp.zeros_like(ys)",
        over_time("only_valid_steps_count"),
    ),
]

NOISE: list[Row] = [
    (
        "with_key: all noise from one key",
        "jax.random.fold_in(key, n)",
        "key",
        noise("with_key_gives_each_update_and_each_sequence_its_own_mask"),
    ),
    (
        "with_key: key ignored",
        "leaves[n] = jax.random.split",
        "_ = jax.random.split",
        noise("with_key_gives_each_update_and_each_sequence_its_own_mask"),
    ),
    ("dropout: not scaled", "leaf / keep", "leaf", noise("dropout_drops_or_scales")),
    (
        "dropout: drops what it should keep",
        "bernoulli(k, keep,",
        "bernoulli(k, 1 - keep,",
        noise("dropout_drops_or_scales"),
    ),
    (
        "dropout: key never advances",
        FRESH,
        "following, now = old.key, old.key",
        noise("dropout_drops_or_scales"),
    ),
    (
        "dropout: variational draws anew",
        FRESH,
        "following, now = jax.random.split(old.key)",
        noise("variational_dropout_keeps_one_mask_for_the_sequence"),
    ),
    (
        "zoneout: kept and new exchanged",
        "kept, new)\n",
        "new, kept)\n",
        noise("zoneout_keeps_units"),
    ),
    (
        "zoneout: output before zoneout",
        "return mixed, after",
        "return mixed, y",
        noise("zoneout_keeps_units"),
    ),
    (
        "zoneout: h and c share a mask",
        "list(jax.random.split(now, len(leaves)))",
        "[now] * len(leaves)",
        noise("zoneout_keeps_units"),
    ),
    (
        "zoneout: counters zoned out too",
        "mix(rate, new, *args) if jnp.issubdtype(new.dtype, jnp.inexact) else new",
        "mix(rate, new, *args)",
        noise("zoneout_leaves_counters_alone"),
    ),
    (
        "zoneout: key never advances",
        "NoisyState(state, following), y",
        "NoisyState(state, old.key), y",
        law("noise_goes_on_through_a_reset[zoneout]"),
    ),
    (
        "zoneout_mean: rate exchanged",
        "rate * kept + (1 - rate) * new",
        "rate * new + (1 - rate) * kept",
        noise("zoneout_mean_is_the_expectation"),
    ),
]

LOSSES: list[Row] = [
    (
        "summed in half precision",
        "predictions = predictions.astype(wide(dtype))",
        "predictions = predictions.astype(dtype)",
        "test_small_dtypes.py::test_losses_of_many_steps_in_half_precision",
    ),
    (
        "divided by all entries",
        "jnp.maximum(mask.sum(), 1)",
        "jnp.array(mask.size)",
        losses("mean_over_valid_entries[squared_error]"),
    ),
    (
        "padding counted",
        "jnp.where(mask, loss(predictions, targets), jnp.zeros((), predictions.dtype))",
        "loss(predictions, targets)",
        losses("mean_over_valid_entries[cross_entropy]"),
    ),
    (
        "predictions not guarded",
        "jnp.where(mask[..., None], predictions, jnp.zeros_like(predictions))",
        "predictions",
        losses("padding_reaches_nothing[cross_entropy]"),
    ),
    (
        "targets not guarded",
        "jnp.where(target_mask, targets, jnp.zeros_like(targets))",
        "targets",
        losses("padding_reaches_nothing[squared_error]"),
    ),
    (
        "nothing valid is 0 / 0",
        "jnp.maximum(mask.sum(), 1)",
        "mask.sum()",
        losses("nothing_valid_is_zero[squared_error]"),
    ),
    (
        "a label out of range without a gradient",
        "losses * jnp.where(wrong, nan, jnp.ones_like(losses))",
        "jnp.where(wrong, nan, losses)",
        losses("labels_out_of_range[cross_entropy-int32-200]"),
    ),
    (
        "a negative label counted from the end",
        "labels != inside",
        "labels > inside",
        losses("labels_out_of_range[cross_entropy-int32--1]"),
    ),
    (
        "labels compared in their own small dtype",
        "if labels.dtype.itemsize < 4:",
        "if False:",
        losses("small_integers_name_many_classes"),
    ),
    (
        "a masked label refused",
        "wrong = wrong & jnp.expand_dims(valid, axes)",
        "pass",
        losses("padding_reaches_nothing[cross_entropy]"),
    ),
    (
        "a probability above 1",
        "return _nan_where(~((labels >= 0) & (labels <= 1)).all(axis=-1), each)",
        "return _nan_where(~(labels >= 0).all(axis=-1), each)",
        losses("labels_out_of_range[binary_cross_entropy-float32-1.5]"),
    ),
]

FED_BACK = """\
        token = choose(logits, x).astype(jnp.int32)
        return (state, token), token
"""

GENERATE: list[Row] = [
    (
        "one key for the whole stream",
        "key, now = jax.random.split(key)",
        "now = jax.random.split(key)[1]",
        generate("a_stream_draws_anew_at_each_token"),
    ),
    (
        "a stream that is always greedy",
        "_compiled(cell, temperature == 0, top_k, top_p, allowed)",
        "_compiled(cell, True, top_k, top_p, allowed)",
        generate("a_stream_draws_anew_at_each_token"),
    ),
    (
        "temperature inverted",
        "logits / jnp.asarray(temperature",
        "logits * jnp.asarray(temperature",
        generate("frequencies_are_those_of_the_softmax[0.5]"),
    ),
    (
        "filtered before the temperature",
        "filter_logits(scaled, top_k=top_k, top_p=top_p)",
        "filter_logits(logits, top_k=top_k, top_p=top_p) / jnp.asarray(temperature, logits.dtype)",
        generate("top_p_counts_the_probabilities_at_the_temperature"),
    ),
    (
        "prompt read again and again",
        FED_BACK,
        FED_BACK.replace("token = choose", "new = choose").replace("), token\n", "), new\n"),
        generate("greedy_is_the_argmax_of_each_step_fed_back[elman]"),
    ),
    (
        "state left behind",
        "state, logits = _checks.stepped(result, state)",
        "_, logits = _checks.stepped(result, state)",
        generate("greedy_is_the_argmax_of_each_step_fed_back[elman]"),
    ),
    (
        "given state ignored",
        "given = _sequence.initial(cell, params) if state is None else",
        "given = _sequence.initial(cell, params) if True else",
        generate("the_state_matters"),
    ),
    ("top-k keeps one too many", "rank < _checks", "rank <= _checks", generate("filter_edges")),
    (
        "top-p keeps one too few",
        "take_along_axis(before < top_p",
        "take_along_axis(before + ordered < top_p",
        generate("filter_against_numpy"),
    ),
    (
        "top-p may forbid all",
        "axis=-1) | (rank == 0)",
        "axis=-1)",
        generate("filter_edges"),
    ),
    (
        "half precision not widened",
        "if jnp.finfo(logits.dtype).bits < 32:",
        "if False:",
        generate("half_precision_draws_from_all_that_top_p_allows"),
    ),
    (
        "stop: text goes on",
        "jnp.where(ended, -1, token)",
        "token",
        generate("nothing_follows_a_stop_token"),
    ),
    (
        "stop: state goes on",
        "jnp.where(ended, o, n)",
        "n",
        generate("nothing_follows_a_stop_token"),
    ),
    (
        "stop: only the first of several",
        "jnp.array(stop, jnp.int32)",
        "jnp.array(stop[:1], jnp.int32)",
        generate("nothing_follows_a_stop_token"),
    ),
    (
        "stop: a stream goes on",
        "if ends and int(token) in ends:",
        "if False:",
        generate("greedy_and_streams_stop"),
    ),
    (
        "one key for all steps",
        "keys = jax.random.split(key, _length(length))",
        "keys = jnp.broadcast_to(key, (_length(length),))",
        generate("later_tokens_have_fresh_noise_and_the_new_context"),
    ),
    (
        "one token too many",
        "jax.random.split(key, _length(length))",
        "jax.random.split(key, _length(length) + 1)",
        generate("exactly_length_tokens_and_steps[6]"),
    ),
]

TEXT: list[Row] = [
    (
        "the context is scored",
        "scored = (t + 1 >= C)",
        "scored = (t + 2 >= C)",
        char_lm("validation_carries_the_state_and_scores_each_character_once[4-20-3]"),
    ),
    (
        "target is the input",
        "window_tokens[:-1], window_tokens[1:]",
        "window_tokens[:-1], window_tokens[:-1]",
        text("streams_read_on_for_ever_and_drop_nothing[7-7-1]"),
    ),
    (
        "target two ahead",
        "window_tokens[:-1], window_tokens[1:]",
        "window_tokens[:-1], tokens[(at[1:] + starts[None, :] + 1) % L]",
        text("streams_read_on_for_ever_and_drop_nothing[7-7-1]"),
    ),
    (
        "windows leave out a token",
        "laps(step, W, L)",
        "laps(step, W + 1, L)",
        text("streams_read_on_for_ever_and_drop_nothing[9-1-2]"),
    ),
    (
        "every lap starts over",
        "position = laps(step, W, L)[1]",
        "position = jnp.uint32(step) % (L // W) * W",
        text("streams_read_on_for_ever_and_drop_nothing[9-1-2]"),
    ),
    (
        "all streams at one place",
        "np.arange(B) * L // B",
        "np.arange(B) * 0",
        text("streams_read_on_for_ever_and_drop_nothing[7-7-1]"),
    ),
    (
        "position overflows",
        "position = laps(step, W, L)[1]",
        "position = jnp.uint32(step) * W % L",
        text("streams_do_not_overflow"),
    ),
    (
        "unknown characters pass",
        "np.flatnonzero(known[tokens] != points)",
        "np.flatnonzero(known[tokens] < 0)",
        text("unknown_characters_and_tokens"),
    ),
]

TRAIN_KINDS: list[Row] = [
    (
        "a net's rows cut off instead of its columns",
        "rows[..., :steps]",
        "rows[:steps]",
        kinds("nets_side_by_side_are_those_trained_alone"),
    ),
    (
        "all nets read all data",
        "in_axes=(0, data_axes, None)",
        "in_axes=(0, None, None)",
        kinds("each_net_reads_its_own_data"),
    ),
    (
        "one bad net ends all",
        "if in_row.min() >= limit",
        "if in_row.max() >= limit",
        kinds("one_net_that_diverges_stops_no_other"),
    ),
    (
        "the first batch of a stack again and again",
        "lambda batches: batches[i], data",
        "lambda batches: batches[0], data",
        kinds("an_iterator_trains_as_data_on_the_device_do"),
    ),
    (
        "a batch too many taken",
        "itertools.islice(data, chunk)",
        "itertools.islice(data, run.steps_per_call)",
        kinds("an_iterator_trains_as_data_on_the_device_do"),
    ),
    (
        "the end of the iterator counts as full",
        "parts.append((jax.tree.map(stack, *filled), len(given)))",
        "parts.append((jax.tree.map(stack, *filled), length))",
        kinds("training_ends_where_the_iterator_does"),
    ),
    (
        "padding counts as steps",
        "jnp.sum(mask, dtype=jnp.int32)",
        "jnp.int32(B * T)",
        kinds("an_exact_algorithm_trains_as_the_loss_does[bptt]"),
    ),
    (
        "resets not handed on",
        'zip(("mask", "reset"), flags, strict=False)',
        'zip(("mask",), flags, strict=False)',
        kinds("an_exact_algorithm_trains_as_the_loss_does[rtrl]"),
    ),
    (
        "one key for all sequences",
        "keys = jax.random.split(key, B)",
        "keys = jnp.stack([key] * B)",
        kinds("an_algorithm_that_draws_gets_a_key_for_each_sequence_and_update"),
    ),
]

BATCHES: list[Row] = [
    (
        "the position is the next but one",
        'return {"step": self._step} | self._sizes',
        'return {"step": self._step + 1} | self._sizes',
        text_file("a_position_goes_through_json_and_continues"),
    ),
    (
        "padded on the left",
        "padded[: len(row)] = row",
        "padded[T - len(row) :] = row",
        batches("pad"),
    ),
    (
        "every epoch in one order",
        "_shuffle(key, epoch + later, at, n)",
        "_shuffle(key, jnp.zeros_like(at), at, n)",
        batches("each_epoch_has_every_example_once[1001-130]"),
    ),
    (
        "a batch is of one epoch",
        "_shuffle(key, epoch + later, at, n)",
        "_shuffle(key, epoch + 0 * later, at, n)",
        batches("each_epoch_has_every_example_once[10-4]"),
    ),
    (
        "one swaps, the other does not",
        "jnp.maximum(at, partner)",
        "at",
        batches("each_epoch_has_every_example_once[10-4]"),
    ),
    (
        "shuffled too little",
        "_ROUNDS = 24",
        "_ROUNDS = 3",
        batches("every_order_is_equally_likely[5]"),
    ),
    (
        "position overflows",
        "epoch, place = laps(step, B, n)",
        "epoch, place = jnp.divmod(jnp.asarray(step).astype(jnp.uint32) * B, n)",
        batches("after_long_training_too[10-4]"),
    ),
    (
        "laps of whole rounds forgotten",
        "return whole * size + lap, place",
        "return lap, place",
        batches("laps_are_exact"),
    ),
    (
        "all examples for every fold",
        "return at if rows is None else rows.indices[at]",
        "return at",
        batches("nets_side_by_side_read_their_own_folds"),
    ),
    (
        "one order for all folds",
        "jax.random.split(key, len(rows.size))",
        "jnp.stack([key] * len(rows.size))",
        batches("nets_side_by_side_read_their_own_folds"),
    ),
    (
        "what repeats counts",
        "return place < self.size[..., None]",
        "return place <= self.size[..., None]",
        batches("folds_of_a_number_and_leave_one_out"),
    ),
    (
        "not stratified",
        "order = order[np.argsort(kinds[order]",
        "order = order[np.argsort(0 * kinds[order]",
        batches("folds_are_stratified"),
    ),
    (
        "not shuffled before the split",
        "order = rng.permutation(len(kinds))",
        "order = np.arange(len(kinds))",
        batches("folds_of_a_number_and_leave_one_out"),
    ),
    (
        "groups torn apart",
        "_deal(kinds, k, rng) if members is None else",
        "_deal(kinds, k, rng) if kinds is not None else",
        batches("groups_stay_together"),
    ),
    (
        "groups shared out by size alone",
        "np.lexsort((parts.sum(1), crowded))",
        "np.lexsort((crowded, parts.sum(1)))",
        batches("groups_are_shared_out_evenly"),
    ),
]

TEXT_FILE: list[Row] = [
    (
        "a character cut in two is lost",
        "text = decoder.decode(raw, final=not raw)",
        'text = raw.decode(errors="ignore")',
        text_file("the_tokens_are_those_of_the_text_in_memory"),
    ),
    (
        "a line end cut in two is two",
        "line_ends.decode(text, final=not raw)",
        "line_ends.decode(text, final=True)",
        text_file("the_tokens_are_those_of_the_text_in_memory"),
    ),
    (
        "every piece may have a mark",
        'text, mark = text.removeprefix(mark), ""',
        "text = text.removeprefix(mark)",
        text_file("the_tokens_are_those_of_the_text_in_memory"),
    ),
    (
        "place of a bad byte within its piece",
        "raise not_utf8(path, error, before)",
        "raise not_utf8(path, error)",
        text_file("what_is_not_utf8_says_the_same_as_in_memory"),
    ),
    (
        "one byte for 257 characters",
        "<= np.iinfo(d).max + 1)",
        "<= np.iinfo(d).max + 2)",
        text_file("a_token_is_as_small_as_the_vocabulary_allows[257-uint16]"),
    ),
    (
        "unknown characters pass",
        "if not raw.translate(None, ascii_known):",
        "if raw:",
        text_file("what_goes_wrong_leaves_no_file"),
    ),
    (
        "another text passes",
        "if (position, digest.hexdigest()) != (scanned.length, scanned.sha256):",
        "if position != scanned.length:",
        text_file("what_goes_wrong_leaves_no_file"),
    ),
    (
        "no circle",
        "self.tokens.read_into(row[before_the_end:], 0)",
        "row[before_the_end:] = 0",
        text_file("streams_equal_those_in_memory[5-23-4-5]"),
    ),
    (
        "targets are the inputs",
        "return windows[:-1], windows[1:]",
        "return windows[:-1], windows[:-1]",
        text_file("streams_equal_those_in_memory[5-23-4-5]"),
    ),
    (
        "a part starts where the file does",
        "self._offset + (self._start + start) * self.dtype.itemsize",
        "self._offset + start * self.dtype.itemsize",
        text_file("parts"),
    ),
    (
        "the whole text in memory",
        "raw = file.read(_PIECE)",
        "raw = file.read()",
        text_file("progress_comes_to_its_end"),
    ),
]

TRAIN: list[Row] = [
    (
        "key does not advance",
        "jax.random.fold_in(old.key, old.step)",
        "old.key",
        train("noise_depends_on_the_key_and_the_step"),
    ),
    (
        "batch of the next step",
        "batch_at(data, state.step)",
        "batch_at(data, state.step + 1)",
        train("updates_are_those_of_optax[sgd]"),
    ),
    (
        "carry not handed on",
        "params, opt_state, carry, old.key",
        "params, opt_state, old.carry, old.key",
        train("updates_are_those_of_optax[sgd]"),
    ),
    (
        "bad update applied",
        "lambda new, before: jnp.where(good, new, before)",
        "lambda new, before: new",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "norm of the gradient not looked at",
        "jnp.isfinite(value) & jnp.isfinite(norm)",
        "jnp.isfinite(value)",
        train("a_bad_update_is_skipped_and_leaves_no_trace[4]"),
    ),
    (
        "new carry not looked at",
        "_stays_finite((params, carry), (old.params, old.carry))",
        "_stays_finite(params, old.params)",
        train("a_bad_update_is_skipped_and_leaves_no_trace[5]"),
    ),
    (
        "carry of a bad step kept",
        "params, opt_state, carry = jax.tree.map(",
        "params, opt_state, _ = jax.tree.map(",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "optimizer sees a bad step",
        "params, opt_state, carry = jax.tree.map(",
        "params, _, carry = jax.tree.map(",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "bad batch tried again",
        "old.step + 1, params,",
        "old.step + 1 - bad, params,",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "skipped updates not counted",
        "old.skipped + bad, in_row",
        "old.skipped, in_row",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "a row of skipped updates never ends",
        "(old.skipped_in_row + 1) * bad",
        "old.skipped_in_row + bad",
        train("a_bad_update_is_skipped_and_leaves_no_trace[1]"),
    ),
    (
        "short chunk runs full",
        "np.int32(steps)",
        "np.int32(self.steps_per_call)",
        train("stopping_and_going_on_changes_no_bit"),
    ),
    (
        "chunk runs past a hook",
        "min(run.steps_per_call, steps - step, *(k - step % k for k, _ in every))",
        "min(run.steps_per_call, steps - step)",
        train("hooks_see_the_state_of_their_step_after_its_metrics"),
    ),
]

CHECKPOINT: list[Row] = [
    (
        "best is the highest loss",
        "return min(known,",
        "return max(known,",
        checkpoint("keeps_the_best_and_the_last"),
    ),
    (
        "best deleted",
        "keep = (self.best, self.last)",
        "keep = (self.last, self.last)",
        checkpoint("keeps_the_best_and_the_last"),
    ),
    (
        "last deleted",
        "keep = (self.best, self.last)",
        "keep = (self.best or self.last, None)",
        checkpoint("keeps_the_best_and_the_last"),
    ),
    (
        "NaN is a loss",
        "if loss is None or not math.isfinite(loss) else",
        "if loss is None else",
        checkpoint("keeps_the_best_and_the_last"),
    ),
    (
        "checksums not checked",
        "        _check_files(path)\n",
        "",
        checkpoint("a_damaged_file_is_an_error_and_never_a_state[one bit]"),
    ),
    (
        "written in its place",
        'f"{name}{_SAVING}"',
        'f"{name}"',
        checkpoint("a_save_that_dies_at_any_moment_does_no_harm"),
    ),
    (
        "deleted in its place",
        "saved.path.with_suffix(_DELETED)",
        "saved.path",
        checkpoint("a_save_that_dies_at_any_moment_does_no_harm"),
    ),
    (
        "nets side by side may be at different steps",
        "if len(distinct) != 1 or distinct[0] < 0:",
        "if distinct[0] < 0:",
        checkpoint("what_has_no_step_says_what_it_got"),
    ),
    (
        "position forgotten",
        '"position": position, "arrays"',
        '"position": None, "arrays"',
        checkpoint("a_position_belongs_to_its_checkpoint"),
    ),
    (
        "position changed by JSON",
        "if copy != value:",
        "if value is Ellipsis:",
        checkpoint("a_position_that_json_would_change_is_refused"),
    ),
    (
        "folder given to orbax as it is",
        'if re.fullmatch(r"[\\w/',
        'if folder or re.fullmatch(r"[\\w/',
        checkpoint("a_folder_of_any_name[brackets]"),
    ),
    (
        "blind to what others saved",
        "        self._look()\n        number = (",
        "        number = (",
        checkpoint("objects_of_one_process_see_what_the_others_save"),
    ),
]
LEAVES: list[Row] = [
    (
        "structure not checked",
        "if _as_array(got) != _as_array(expected):",
        "if got == expected == 'nothing':",
        checkpoint("another_structure_names_the_path"),
    ),
    (
        "None is a structure",
        "if not any(_within(where, part) for part in nones)",
        "if where",
        checkpoint("what_is_none_is_not_read"),
    ),
    (
        "None hides what begins alike",
        'where.startswith((part + ".", part + "["))',
        "where.startswith(part)",
        checkpoint("a_part_that_only_begins_alike_is_still_compared"),
    ),
    (
        "NumPy arrays become arrays of JAX",
        "if isinstance(like, np.ndarray | np.generic):",
        "if isinstance(like, np.generic):",
        checkpoint("numbers_come_back_as_what_like_has"),
    ),
    (
        "rounded in silence",
        "if put.dtype != array.dtype:",
        "if put.shape != array.shape:",
        checkpoint("numbers_come_back_as_what_like_has"),
    ),
    (
        "any leaf is stored",
        "and _is_numeric(leaf.dtype):",
        "and leaf.dtype:",
        checkpoint("leaves_that_are_no_arrays_are_refused_with_their_path"),
    ),
]
LOCK: list[Row] = [
    (
        "no lock",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        checkpoint("the_lock_goes_with_the_last_object_of_the_process"),
    ),
    (
        "the process shuts itself out",
        "if mine is not None:",
        "if mine is True:",
        checkpoint("the_lock_goes_with_the_last_object_of_the_process"),
    ),
    (
        "no locks, no checkpoints",
        "if error.errno in (errno.EAGAIN, errno.EACCES):",
        "if error.errno:",
        checkpoint("without_locks_it_goes_on"),
    ),
    (
        "the child keeps the lock",
        "        lock.close()\n    _HELD.clear()",
        "        pass\n    _HELD.clear()",
        checkpoint("a_forked_child_neither_saves_nor_keeps_the_lock"),
    ),
]

GRADIENTS: list[Row] = [
    (
        "losses of padding counted",
        "return jnp.where(mask, losses, jnp.zeros_like(losses)).sum()",
        "return losses.sum()",
        gradients("padding_reaches_nothing[gru-bptt]"),
    ),
]
BPTT: list[Row] = [
    (
        "mask not given to the net",
        "cell, params, state, xs, mask=mask, reset=reset, segment",
        "cell, params, state, xs, reset=reset, segment",
        gradients("padding_reaches_nothing[gru-bptt]"),
    ),
    (
        "given state ignored",
        "cell, params, state, xs, mask=mask, reset=reset, segment",
        "cell, params, None, xs, mask=mask, reset=reset, segment",
        gradients("the_state_goes_on[bptt]"),
    ),
]
TRUNCATED: list[Row] = [
    (
        "windows one step late",
        "starts = jnp.arange(k1, T + k1, k1, dtype=jnp.int32) - k2",
        "starts = jnp.arange(k1, T + k1, k1, dtype=jnp.int32) - k2 + 1",
        gradients("each_loss_reaches_back_as_far_as_it_should[2-3]"),
    ),
    (
        "resets ignored",
        "unroll(cell, params, old, window_xs, mask=now, reset=again)",
        "unroll(cell, params, old, window_xs, mask=now)",
        "test_algorithms.py::test_padding_batches_and_resets[chunks]",
    ),
    (
        "all losses of a window counted",
        "now & last)",
        "now)",
        gradients("each_loss_reaches_back_as_far_as_it_should[2-3]"),
    ),
    (
        "steps outside of the sequence run",
        "valid[at] & (t >= 0) & (t < T)",
        "valid[at]",
        gradients("each_loss_reaches_back_as_far_as_it_should[2-3]"),
    ),
    (
        "a learned initial state has no gradient",
        "jnp.where(start <= 0, a, b)",
        "b",
        gradients("exact_ones_agree_with_the_loop[k2 > T-user]"),
    ),
    (
        "the state is not carried to the next window",
        "return (following, added(sums, (value, grad)))",
        "return (old, added(sums, (value, grad)))",
        gradients("each_loss_reaches_back_as_far_as_it_should[2-3]"),
    ),
]
COUNTING: list[Row] = [
    (
        "half the loss",
        "jnp.sum((ys - TARGETS) ** 2)",
        "0.5 * jnp.sum((ys - TARGETS) ** 2)",
        counting("the_true_gradient_to_the_digit"),
    ),
    (
        "lecture's rule without W in dW",
        "before.T @ (at_hidden @ params.cell.w_h.T)",
        "before.T @ at_hidden",
        counting("published_digits[gradient-W-lecture-4]"),
    ),
]

CHAR_LM: list[Row] = [
    (
        "state dropped between the windows",
        "carry, logits = unroll(table, params, carry, inputs,",
        "_, logits = unroll(table, params, carry, inputs,",
        char_lm("the_loss_of_an_update_and_the_carried_state[0]"),
    ),
    (
        "validated with what was learned from",
        "tokens[N - C : N + config.validation_size]",
        "tokens[: C + L - N]",
        char_lm("what_is_validated_with_was_not_learned_from"),
    ),
    (
        "tokens of the gradient algorithms not turned around",
        "jax.tree.map(jnp.transpose, (*batch, None, restarts(key)))",
        "jax.tree.map(lambda a: a.reshape(B, W), (*batch, None, restarts(key)))",
        char_lm("the_gradient_of_bptt_is_that_of_the_window"),
    ),
]

LEARNING: list[Row] = [
    (
        "gradient not clipped",
        "optax.clip_by_global_norm(config.clip), ",
        "",
        harness("large_gradients_are_scaled_down"),
    ),
    (
        "no warm-up",
        "jnp.where(step < warmup, rising, after)",
        "after",
        harness("schedules_warm_up_and_end[linear-0]"),
    ),
    (
        "the length is ignored",
        "leaf._replace(steps=jnp.full(leaf.steps.shape, steps, jnp.int32))",
        "leaf",
        harness("the_schedule_stretches_over_all_steps"),
    ),
    (
        "measured on the state itself",
        "copy, done = jax.tree.map(jnp.copy, state), train.step_of(state)",
        "copy, done = state, train.step_of(state)",
        harness("measuring_the_speed_changes_nothing"),
    ),
    (
        "the worst net is the best",
        "np.argmin([scores[",
        "np.argmax([scores[",
        harness("seeds_side_by_side_are_those_of_one_call_and_differ"),
    ),
    (
        "one seed for all nets",
        "jax.random.split(key, nets)",
        "jnp.stack([key] * nets)",
        harness("seeds_side_by_side_are_those_of_one_call_and_differ"),
    ),
]
TRAINING: list[Row] = [
    (
        "params of the other run not taken",
        "return state._replace(params=params)",
        "return state",
        harness("a_run_begins_where_another_ended"),
    ),
    (
        "a score too patient",
        "waited >= config.patience * every",
        "waited > config.patience * every",
        harness("patience_ends_a_run_that_does_not_get_better"),
    ),
    (
        "no curve of a stopped run",
        "    _save(session, state)\n    _draw(session, rows)\n",
        "    _save(session, state)\n",
        harness("stopped_and_resumed_is_as_never_stopped[1-2]"),
    ),
    (
        "nothing saved at a signal",
        "    _save(session, state)\n    _draw(session, rows)\n",
        "    _draw(session, rows)\n",
        harness("a_signal_between_two_scores_loses_nothing"),
    ),
    (
        "other data taken on",
        "if _identity(config, data) != saved.sha256:",
        "if False:",
        harness("another_file_is_refused_and_a_moved_one_found"),
    ),
]
RUN_FOLDER: list[Row] = [
    (
        "an unknown option is swallowed",
        "    if unknown:",
        "    values = {k: v for k, v in values.items() if k in hints}\n    if False:",
        harness("a_run_folder_of_last_week_goes_on_working"),
    ),
    (
        "the order of the data does not count",
        "found.update(np.ascontiguousarray(leaf).tobytes())",
        "found.update(np.sort(np.ravel(leaf)).tobytes())",
        harness("the_order_of_the_data_counts"),
    ),
]


def deferred(test: str) -> str:
    return f"test_deferred.py::test_{test}"


def product(test: str) -> str:
    return f"test_product.py::test_{test}"


DEFERRED: list[Row] = [
    (
        "a bias without influence",
        "moves[c] = site.apply(d, moves.get(c, nothing[c]))",
        "moves[c] = moves.get(c, nothing[c])",
        deferred("what_is_deferred[bias elsewhere]"),
    ),
    (
        "only the last influence",
        "moves[c] = moves[c] + move if c in moves else move",
        "moves[c] = move",
        deferred("what_is_deferred[twice in a sum]"),
    ),
    (
        "inputs without influence",
        '("x", i): tangents[loop.first_x + i] for i in loop.inputs',
        '("x", i): jnp.zeros_like(tangents[loop.first_x + i]) for i in loop.inputs',
        deferred("values_and_gradients[elman]"),
    ),
    (
        "other params without influence",
        "push([tangents[i] for i in moving], moves)",
        "push([jnp.zeros_like(tangents[i]) for i in moving], moves)",
        deferred("values_and_gradients[layer_norm_elman]"),
    ),
    (
        "what a cell closes over is not differentiated",
        "loop.first_x) if is_float(leaves[i]) and i not in deferred]",
        "loop.first_carry) if is_float(leaves[i]) and i not in deferred]",
        deferred("a_traced_value_in_a_cell"),
    ),
    (
        "operands of the first site",
        "move = times(operands[site.operand])",
        "move = times(next(iter(operands.values())))",
        deferred("what_is_deferred[h and more]"),
    ),
    (
        "weight of the first site",
        "site, (w, *w_t) = self.sites[k], made[k]",
        "site, (w, *w_t) = self.sites[k], made[0]",
        deferred("what_is_deferred[tied]"),
    ),
    (
        "one array for all cotangents",
        'own: Channel = ("p", k)\n',
        'own: Channel = ("p", 0)\n',
        deferred("what_is_deferred[tied]"),
    ),
    (
        "what is turned after a product shares a cotangent",
        "            if site.finish is None:\n",
        "            if True:\n",
        deferred("what_is_deferred[turned in a sum]"),
    ),
    (
        "perturbed at the first site",
        'p.get(("p", k)))',
        'p.get(("p", 0)))',
        deferred("values_and_gradients[elman]"),
    ),
    (
        "perturbation without a tangent",
        "tangents[0] + tangents[1]",
        "tangents[0]",
        deferred("values_and_gradients[elman]"),
    ),
    (
        "nothing deferred",
        "return _run(loop, *leaves) if program.sites else loop.run(leaves, {})[0]",
        "return loop.run(leaves, {})[0]",
        deferred("the_gradient_is_not_summed_in_the_loop"),
    ),
    (
        "an operand that is turned taken for the state",
        'elif value in old and order is None and site.kind == "product"',
        'elif value in old and site.kind == "product"',
        deferred("a_state_that_is_a_matrix"),
    ),
    (
        "kept operands one step late in reverse",
        "before, after = (0, 1) if reverse else (1, 0)",
        "before, after = 1, 0",
        deferred("without_masks[reverse-lstm]"),
    ),
    (
        "first operand forgotten",
        "return moved + jax.lax.pad(start, zero, [(*sides, 0), *rest])",
        "return moved",
        deferred("without_masks[forward-lstm]"),
    ),
    (
        "first operand at the wrong end in reverse",
        "sides = (steps - 1, 0) if reverse else (0, steps - 1)",
        "sides = 0, steps - 1",
        deferred("without_masks[reverse-lstm]"),
    ),
]


def jaxprs(test: str) -> str:
    return f"test_jaxprs.py::test_{test}"


JAXPRS: list[Row] = [
    (
        "gradient of the whole instead of the part",
        "return part.view(leaves).transpose(*of_w, *free_w).reshape(width, math.prod(tail))",
        "return part.view(leaves).reshape(width, math.prod(tail))",
        deferred("what_is_deferred[left of @]"),
    ),
    (
        "w @ a matrix not turned",
        "if turned else y\n",
        "if False else y\n",
        deferred("what_is_deferred[einsum from the left]"),
    ),
    (
        "subtracted bias added",
        "return -part.view(leaves) if minus else part.view(leaves)",
        "return part.view(leaves)",
        deferred("what_is_deferred[bias subtracted]"),
    ),
    (
        "b - x taken for x - b",
        "if minus and side == 0:",
        "if False:",
        deferred("which_bias_is_not_deferred[taken from]"),
    ),
    (
        "rows of a matrix deferred as vectors",
        "or not vectors or _typed(x) != _typed(out)",
        "or _typed(x) != _typed(out)",
        deferred("what_is_not_deferred[row added]"),
    ),
    (
        "as many rows as the table has",
        "and math.prod(index.shape) < table.shape[0]",
        "and True",
        deferred("what_is_not_deferred[rows by a traced index]"),
    ),
    (
        "a row that is not there has a gradient",
        "slope=lambda dw, i: rows(dw, i, 0),",
        "slope=lambda dw, i: rows(dw, i, 1),",
        deferred("what_is_deferred[no such row]"),
    ),
    (
        "the gradient of a token that is not there lost",
        'return w.at[i].get(mode="clip", wrap_negative_indices=False)',
        'return w.at[i].get(mode="fill", fill_value=0)',
        sequence("the_row_that_is_read_has_the_gradient"),
    ),
    (
        "a cast weight deferred",
        """if eqn.params["new_dtype"] != self.avals[ins[0]].dtype:""",
        "if False:",
        deferred("what_is_not_deferred[cast]"),
    ),
    (
        "an own derivative written out",
        '    "checkpoint": "jaxpr",\n',
        '    "checkpoint": "jaxpr",\n    "custom_jvp_call": "call_jaxpr",\n',
        deferred("what_is_not_deferred[an own derivative]"),
    ),
    (
        "custom_vjp linearized",
        '"while", "custom_vjp_call", "custom_vjp_call_jaxpr"}',
        '"while"}',
        deferred("cells_for_the_plain_scan[custom_vjp]"),
    ),
    (
        "cond linearized",
        'NOT_LINEARIZED = {"cond", ',
        "NOT_LINEARIZED = {",
        deferred("cells_for_the_plain_scan[cond]"),
    ),
    (
        "a weight that is put out deferred",
        'self._fail(self.parts[i], "it is part of the state or of the output")',
        "pass",
        jaxprs("a_weight_that_comes_out_is_no_weight"),
    ),
    (
        "rows of the first term for all terms",
        "return _cut(part.view(leaves), i, j, axis)",
        "return _cut(part.view(leaves), 0, j - i, axis)",
        deferred("what_is_deferred[h and more]"),
    ),
    (
        "parts of unequal wholes have one cotangent",
        "return kind.shape, str(kind.dtype), *parts",
        "return tuple(parts)",
        deferred("what_is_deferred[parts of unequal sums]"),
    ),
    (
        "parts in another order have one cotangent",
        "parts = [(op.options, *map(self.end, op.outs)) for op in readers]",
        "parts = [op.options for op in readers]",
        deferred("what_is_deferred[in parts that differ]"),
    ),
    (
        "what is read twice has the cotangent of one sum",
        "if len(readers) == 1 and first.name in SUMS",
        "if readers[-1].name in SUMS and (first := readers[-1])",
        deferred("what_is_deferred[read twice]"),
    ),
    (
        "values that one trace alone knows",
        "values |= dict(zip(self._closed_over, closed_over, strict=True))",
        "pass",
        deferred("a_traced_value_in_a_cell"),
    ),
]


def segments(test: str) -> str:
    return f"test_segments.py::test_{test}"


SEGMENTS: list[Row] = [
    (
        "last steps forgotten",
        "    if left and not reverse:\n        state, end = jax.checkpoint(run)(state, short)\n",
        "    if left and not reverse:\n        _, end = jax.checkpoint(run)(state, short)\n",
        segments("segments_change_no_number[forward-lstm]"),
    ),
    (
        "last steps last in reverse",
        "    if left and reverse:\n",
        "    if False:\n",
        segments("segments_change_no_number[reverse-lstm]"),
    ),
    (
        "nothing run again",
        "again = jax.checkpoint(run, prevent_cse=False)",
        "again = run",
        "test_segments.py::test_memory_grows_with_the_root_of_the_length",
    ),
    (
        "states between segments not counted",
        "c = sum(_bytes(leaf) for leaf in jax.tree.leaves(state))",
        "c = 0",
        "test_segments.py::test_the_budget_is_kept_by_the_longest_segments_that_fit",
    ),
]
PRODUCT: list[Row] = [
    (
        "x without a tangent",
        "if type(dx) is not ad.Zero:",
        "if type(dx) is not ad.Zero and type(dw) is ad.Zero:",
        product("equals_what_it_stands_for[vector @ w]"),
    ),
    (
        "w without a tangent",
        "if type(dw) is not ad.Zero:",
        "if type(dw) is not ad.Zero and type(dx) is ad.Zero:",
        product("equals_what_it_stands_for[vector @ w]"),
    ),
    (
        "x before the product with w.T",
        "product_p.bind(ct, w_t, w, precision",
        "product_p.bind(-ct, w_t, w, precision",
        product("equals_what_it_stands_for[matrix @ w]"),
    ),
    (
        "w.T not transposed with w",
        "product_p.bind(y, ct.T, ct, precision",
        "product_p.bind(y, ct.T, jnp.zeros_like(ct), precision",
        product("derivatives_equal_finite_differences[outer of matrices]"),
    ),
    (
        "axis of the batch said to be in front",
        "return out, out.ndim + place",
        "return out, 0",
        product("vmap[(0, None)-matrix @ w]"),
    ),
    (
        "axis of the batch in front",
        "primitive.bind(jnp.moveaxis(args[0], dims[0], place), *args[1:], **options)\n"
        "        return out, out.ndim + place",
        "primitive.bind(jnp.moveaxis(args[0], dims[0], 0), *args[1:], **options)\n"
        "        return out, 0",
        product("an_axis_of_vmap_goes_behind_time"),
    ),
    (
        "one w for all examples",
        "if place is None or any(d is not None for d in dims[1:]):",
        "if place is None or dims[0] is None:",
        product("nested_vmap[seeds-matrix @ w]"),
    ),
    (
        "bias without a tangent",
        "dx = shifted_p.bind(ad.instantiate_zeros(dx), db)",
        "dx = ad.instantiate_zeros(dx)",
        product("equals_what_it_stands_for[matrix + b]"),
    ),
]

ATTENTION: list[Row] = [
    (
        "the whole memory is looked at",
        "jax.nn.softmax(scores, where=memory.mask)",
        "jax.nn.softmax(scores)",
        "test_attention.py::test_the_equations[dot]",
    ),
    (
        "an empty memory filled with -inf",
        "jax.nn.softmax(scores, where=memory.mask)",
        "jax.nn.softmax(jnp.where(memory.mask, scores, -jnp.inf))",
        "test_attention.py::test_a_memory_without_a_valid_place[general]",
    ),
    (
        "padding of the memory not cleaned",
        "values = jnp.where(mask[:, None], values, jnp.zeros_like(values))",
        "values = values + 0",
        "test_attention.py::test_what_stands_in_padding_changes_no_bit[dot]",
    ),
    (
        "context of the keys",
        "weights @ memory.values",
        "weights @ memory.keys[:, : memory.values.shape[1]]",
        "test_attention.py::test_the_equations[additive]",
    ),
    (
        "context behind the output",
        "jnp.concatenate([context, h])",
        "jnp.concatenate([h, context])",
        "test_attention.py::test_the_equations[general]",
    ),
    (
        "the output is not fed back",
        "y if input_feeding else state.output, weights)",
        "state.output, weights)",
        "test_attention.py::test_the_equations[general]",
    ),
    (
        "the first layer looks",
        'state[0] if hasattr(state, "_fields") else state[-1]',
        "state[0]",
        "test_attention.py::test_a_decoder_that_writes",
    ),
    (
        "the given state is forgotten",
        "inside = empty.cell if state is None else state",
        "inside = empty.cell",
        "test_attention.py::test_a_decoder_that_writes",
    ),
]

SEQUENCE: list[Row] = [
    (
        "padding is zero",
        "jax.lax.stop_gradient(harmless(a[source], some))",
        "jnp.zeros_like(a)",
        sequence("padding_is_not_read_where_the_cell_is_singular[bptt-behind-0.0]"),
    ),
    (
        "padding in front is what stands there",
        "jnp.argmax(mask).astype(jnp.int32), before)",
        "0, before)",
        sequence("padding_is_not_read_where_the_cell_is_singular[bptt-before-nan]"),
    ),
    (
        "infinite padding without a valid step",
        "jnp.where(valid | jnp.isfinite(a), a, jnp.full_like(a, 0.5))",
        "a",
        sequence("a_sequence_without_a_valid_step_has_no_gradient"),
    ),
    (
        "plain numbers stay plain",
        "state = jax.tree.map(jnp.asarray, cell.init_state(params))",
        "state = cell.init_state(params)",
        sequence("a_state_of_plain_numbers[int]"),
    ),
    (
        "init always traced",
        "    except Exception:  # whatever",
        "    except ZeroDivisionError:  # whatever",
        sequence("a_cell_whose_init_cannot_be_traced_runs[None]"),
    ),
]
CRF: list[Row] = [
    (
        "transitions turned over",
        "paths = a[:, None] + chain.transitions",
        "paths = a[:, None] + chain.transitions.T",
        "test_crf.py::test_enumeration[all]",
    ),
    (
        "no start score",
        "join(paths, axis=0), chain.start)",
        "join(paths, axis=0), 0 * chain.start)",
        "test_crf.py::test_enumeration[all]",
    ),
    (
        "no stop score of a tagging",
        "jnp.where(begun, chain.stop[last], 0)",
        "jnp.where(begun, 0 * chain.stop[last], 0)",
        "test_crf.py::test_enumeration[padded]",
    ),
    (
        "the first step is always a start",
        "return (jnp.where(valid, new, a), begun | valid), origin",
        "return (jnp.where(valid, new, a), begun | True), origin",
        "test_crf.py::test_enumeration[holes]",
    ),
    (
        "a masked step is the tag before",
        "carry = jnp.where(valid, tag, before), begun | valid",
        "carry = tag, begun | valid",
        "test_crf.py::test_enumeration[holes]",
    ),
    (
        "path through a masked step",
        "jnp.where(valid & begun, jnp.argmax(paths",
        "jnp.where(begun, jnp.argmax(paths",
        "test_crf.py::test_enumeration[holes]",
    ),
    (
        "sums in half precision",
        "dtype = wide(jnp.promote_types",
        "dtype = (lambda d: d)(jnp.promote_types",
        "test_crf.py::test_dtypes[float16]",
    ),
    (
        "forbidden by an infinite score",
        "FORBIDDEN = -1e4",
        "FORBIDDEN = -jnp.inf",
        "test_crf.py::test_what_is_forbidden_has_no_probability_and_no_gradient[0]",
    ),
    (
        "inside of another kind allowed",
        'a != "O" and a[2:] == b[2:]',
        'a != "O"',
        "test_crf.py::test_bio",
    ),
]

MUTANTS = [
    *(
        Mutant(
            f"interop: {name}", os.path.normpath(f"rnn_jax/interop/{file}.py"), old, new, (test,)
        )
        for name, file, old, new, test in mutants_interop.ROWS
    ),
    *(Mutant(f"devices: {name}", *row, (test,)) for name, *row, test in mutants_devices.ROWS),
    *(Mutant(f"language: {name}", *row, (test,)) for name, *row, test in mutants_language.ROWS),
    *table("elman", "rnn_jax/cells/elman.py", ELMAN),
    *table("lstm", "rnn_jax/cells/lstm.py", LSTM),
    *table("gru", "rnn_jax/cells/gru.py", GRU),
    *table("gru_reset_after", "rnn_jax/cells/gru.py", GRU_RESET_AFTER),
    *table("layer norm", "rnn_jax/cells/layer_norm.py", LAYER_NORM),
    *table("initializers", "rnn_jax/initializers.py", INITIALIZERS),
    *table("unroll", "rnn_jax/unroll.py", UNROLL),
    *table("combine", "rnn_jax/combine.py", COMBINE),
    *table("over_time", "rnn_jax/over_time.py", OVER_TIME),
    *table("noise", "rnn_jax/noise.py", NOISE),
    *table("attention", "rnn_jax/attention.py", ATTENTION),
    *table("sequence", "rnn_jax/_sequence.py", SEQUENCE),
    *table("crf", "rnn_jax/crf.py", CRF),
    *table("losses", "rnn_jax/losses.py", LOSSES),
    *table("generate", "rnn_jax/generate.py", GENERATE),
    *table("text", "rnn_jax/tasks/text.py", TEXT),
    *table("batches", "rnn_jax/tasks/batches.py", BATCHES),
    *table("text file", "rnn_jax/tasks/text_file.py", TEXT_FILE),
    *table("train", "rnn_jax/train.py", TRAIN),
    *table("train kinds", "rnn_jax/train.py", TRAIN_KINDS),
    *table("checkpoint", "rnn_jax/checkpoint.py", CHECKPOINT),
    *table("leaves", "rnn_jax/_leaves.py", LEAVES),
    *table("lock", "rnn_jax/_lock.py", LOCK),
    *table("gradients", "rnn_jax/gradients/_types.py", GRADIENTS),
    *table("gradients: bptt", "rnn_jax/gradients/bptt.py", BPTT),
    *table("gradients: truncated", "rnn_jax/gradients/truncated.py", TRUNCATED),
    *(
        mutant
        for subject, module, rows in ALGORITHMS
        for mutant in table(f"gradients: {subject}", f"rnn_jax/gradients/{module}.py", rows)
    ),
    *(mutant for entry in LABORATORY for mutant in table(*entry)),
    *table("counting", "experiments/counting.py", COUNTING),
    *table("char_lm", "experiments/char_lm.py", CHAR_LM),
    *table("learning", "experiments/harness/learning.py", LEARNING),
    *table("training", "experiments/harness/training.py", TRAINING),
    *table("run folder", "experiments/harness/run_folder.py", RUN_FOLDER),
    *table("deferred", "rnn_jax/_deferred.py", DEFERRED),
    *table("jaxprs", "rnn_jax/_jaxprs.py", JAXPRS),
    *table("product", "rnn_jax/_product.py", PRODUCT),
    *table("segments", "rnn_jax/_segments.py", SEGMENTS),
]
