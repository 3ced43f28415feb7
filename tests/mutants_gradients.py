"""Mistakes in the gradient algorithms, for the kill table: ``(subject, path, rows)``."""


def law(test: str) -> str:
    return f"test_algorithms.py::test_{test}"


def unbiased(test: str) -> str:
    return f"test_unbiased.py::test_{test}"


def sparse(test: str) -> str:
    return f"test_sparse.py::test_{test}"


def checked(test: str) -> str:
    return f"test_check_gradients.py::test_{test}"


def converged(test: str) -> str:
    return f"test_converged.py::test_{test}"


def mean(case: str) -> str:
    return unbiased(f"the_mean_of_all_draws_is_the_gradient[{case}-]")


VECTOR = [
    (
        "a complex gradient not conjugated",
        "a.conj() if jnp.iscomplexobj(a) else a",
        "a",
        law("diagonal_and_complex_cells[lru-rtrl]"),
    ),
]
RESTART = [
    (
        "a reset takes the old state",
        "return kept if is_key else jnp.where(restart, new, kept)",
        "return kept",
        law("padding_batches_and_resets[rtrl]"),
    ),
]
OUTPUT = [
    (
        "a jitted step is not looked into",
        "with jax.disable_jit():",
        "with jax.disable_jit(False):",
        "test_diagnostics.py::test_flow_sees_through_jit_and_says_where_it_cannot",
    ),
    (
        "the new state counted twice",
        "own = [v for v in made if isinstance(v, Var) and v not in jaxpr.invars]",
        "own = []",
        sparse("snap_1_is_backpropagation_through_the_diagonal"),
    ),
]
ONLINE = [
    (
        "the same key at every step",
        "key, now, again = jax.random.split(needed(carry.key, self.name), 3)",
        "key, now, again = (needed(carry.key, self.name),) * 3",
        law("noise_is_fresh_at_every_step[uoro]"),
    ),
    (
        "masked steps move the trace",
        "new = select(mask, new, old)",
        "new = select(mask, new, old._replace(trace=trace))",
        law("masked_steps_change_nothing[rtrl]"),
    ),
    (
        "masked steps have a gradient",
        "loss, grads, y = guarded((loss, grads, y), mask)",
        "loss, y = guarded((loss, y), mask)",
        law("masked_steps_change_nothing[rtrl]"),
    ),
    (
        "a reset leaves the trace",
        "select(reset, trace, carry.trace)",
        "carry.trace",
        law("a_reset_forgets_the_past[rtrl]"),
    ),
]
RTRL = [
    (
        "no immediate influence",
        "return D @ M + I, r + c @ M",
        "return D @ M, r + c @ M",
        law("rtrl_is_exact[elman]"),
    ),
    (
        "the past with the wrong sign",
        "return D @ M + I, r + c @ M",
        "return D @ M + I, r - c @ M",
        law("rtrl_is_exact[elman]"),
    ),
    (
        "the trace of a step too late",
        "return D @ M + I, r + c @ M",
        "return D @ M + I, r + c @ (D @ M + I)",
        law("rtrl_is_exact[elman]"),
    ),
    (
        "a learned start has no influence",
        "return origin.jacobian()",
        "return 0 * origin.jacobian()",
        law("rtrl_is_exact[user]"),
    ),
]
SPARSE = [
    (
        "a complex number is two units",
        "parts.append(start + (np.arange(2 * size) ^ 1))",
        "parts.append(start + np.arange(2 * size))",
        sparse("snap_1_is_exact_on_a_diagonal[lru]"),
    ),
    (
        "no immediate influence",
        "return M + jnp.where(self.has_I, I, jnp.zeros_like(I))",
        "return M",
        sparse("snap_is_exact_once_all_is_reached[elman]"),
    ),
    (
        "feedback for nothing",
        "if feedback is not None:",
        "if False:",
        sparse("feedback[rflo]"),
    ),
    (
        "a stale trace",
        "influence.times(q, new)",
        "influence.times(q, M)",
        sparse("snap_is_exact_once_all_is_reached[elman]"),
    ),
    (
        "masks from the data",
        "params, state, x = random_like(like, i)",
        "params, state, x = step.params, step.state, step.x",
        sparse("masks_do_not_depend_on_the_data"),
    ),
    (
        "one probe, with units that are off",
        "PROBES = 32",
        "PROBES = 1",
        sparse("masks_do_not_depend_on_the_data"),
    ),
    (
        "few tokens seen",
        "max(PROBES, *sizes) if tokens",
        "PROBES if tokens",
        sparse("every_token_is_seen"),
    ),
    (
        "one dropout mask for all probes",
        "return jax.random.split(key, a.shape)",
        "return jax.random.split(jax.random.key(0), a.shape)",
        sparse("noise_of_a_mask_is_not_structure"),
    ),
    (
        "a learned start is left out of the mask",
        "mask = found.I | found.start",
        "mask = found.I",
        sparse("snap_is_exact_once_all_is_reached[user]"),
    ),
    (
        "a step too far",
        "if steps is None else steps - 1",
        "if steps is None else steps",
        sparse("snap_1_is_backpropagation_through_the_diagonal"),
    ),
    (
        "rows that share a column in one pass",
        "conflict = wide @ wide.T > 0",
        "conflict = wide @ wide.T > 1",
        sparse("colors"),
    ),
]
SNAP = [
    (
        "the past with the wrong sign",
        "influence.moved(influence.state_jacobian(step), M)",
        "-influence.moved(influence.state_jacobian(step), M)",
        sparse("snap_is_exact_once_all_is_reached[elman]"),
    ),
    (
        "dense cells pass for diagonal ones",
        "if seen > max(2, n // 2):",
        "if seen > n:",
        law("units_that_see_each_other_are_refused"),
    ),
]
UORO = [
    (
        "no immediate influence",
        "theta / past + b / now",
        "theta / past",
        mean("uoro--elman"),
    ),
    (
        "factors that do not cancel",
        "theta / past + b / now",
        "theta / past + b * now",
        mean("uoro--elman"),
    ),
    (
        "the past does not move",
        "a = step.push(jnp.zeros_like(theta), s)[0]",
        "a = s",
        mean("uoro--elman"),
    ),
    (
        "wrong sign of the immediate influence",
        "b = step.pull(nu, 0.0)[0]",
        "b = -step.pull(nu, 0.0)[0]",
        mean("uoro--elman"),
    ),
    (
        "a learned start forgotten",
        "jnp.any(theta != 0), nu,",
        "jnp.any(theta != 0), 0 * nu,",
        mean("uoro--start"),
    ),
]
KRONECKER = [
    (
        "kf_rtrl: no immediate influence",
        "(A * past + u * now)[None]",
        "(A * past)[None]",
        mean("kf_rtrl--elman"),
    ),
    (
        "ok: no immediate influence",
        "jnp.concatenate([old.A, u[None]])",
        "jnp.concatenate([old.A, 0 * u[None]])",
        mean("ok--elman"),
    ),
    (
        "ok: the term of a step with the wrong sign",
        "jnp.concatenate([old.A, u[None]])",
        "jnp.concatenate([old.A, -u[None]])",
        mean("ok--elman"),
    ),
    (
        "no sign",
        "c * balance(u, Z.ravel())",
        "balance(u, Z.ravel())",
        mean("kf_rtrl--lstm"),
    ),
    (
        "the past does not move",
        'Factors(f.A, jnp.einsum("ij,rjk->rik", D, f.B))',
        "f",
        mean("kf_rtrl--elman"),
    ),
    (
        "the other params keep no past",
        "D @ old.exact + exact",
        "exact",
        mean("kf_rtrl--elman"),
    ),
    (
        "the tail is not averaged",
        "jnp.maximum(1 - share, zero)",
        "jnp.maximum(share, zero)",
        unbiased("the_reduction_is_unbiased_and_of_least_variance[2]"),
    ),
    (
        "too many terms in the tail",
        "start = jnp.argmax(left.astype(s.dtype) * s[:-1] <= tails[:-1])",
        "start = jnp.argmax(left >= 0)",
        unbiased("the_reduction_is_unbiased_and_of_least_variance[3]"),
    ),
]
FORWARD = [
    (
        "another direction at each step",
        "return (v, s), slopes",
        "return (draw(key, v.shape, v.dtype), s), slopes",
        mean("forward_gradient--elman"),
    ),
    (
        "the past is forgotten",
        "jax.vmap(step.push)(v, s)",
        "jax.vmap(step.push)(v, 0 * s)",
        mean("forward_gradient--elman"),
    ),
    (
        "the wrong direction",
        "slopes.astype(v.dtype) @ v / K",
        "slopes.astype(v.dtype) @ v / -K",
        mean("forward_gradient--elman"),
    ),
]
PRODUCTS = [
    (
        "the output of a layer stops where it is no state",
        "stop=set(found.outputs[:size]))",
        "stop=set(found.outputs[size:]))",
        sparse("which_products_are_recurrent[stack]"),
    ),
    (
        "the input of the next layer held for recurrent",
        "stop=set(found.outputs[:size])",
        "stop=set()",
        sparse("the_gradient_of_1997_is_cut_by_hand[2]"),
    ),
]
LOCAL = [
    (
        "lstm_1997: no recurrent product is cut",
        'held = _recurrent(first, found, "lstm_1997")',
        "held: list[int] = []",
        sparse("the_gradient_of_1997_is_cut_by_hand[1]"),
    ),
    (
        "e_prop: the past with the wrong sign",
        "influence.add(step, influence.moved(D, M))",
        "influence.add(step, -influence.moved(D, M))",
        sparse("e_prop_is_the_gradient_of_1997[gru]"),
    ),
    (
        "e_prop: no immediate influence",
        "return influence.add(step, influence.moved(D, M))",
        "return influence.moved(D, M)",
        sparse("e_prop_is_the_gradient_of_1997[gru]"),
    ),
    (
        "rflo: the leak with the wrong sign",
        "leak * M",
        "-leak * M",
        sparse("rflo_is_e_prop_on_leaky_units"),
    ),
    (
        "a product that no param feels",
        "constant[k] = x",
        "constant[k] = jax.lax.stop_gradient(x)",
        sparse("e_prop_is_the_gradient_of_1997[gru]"),
    ),
    (
        "nothing is cut",
        "constant[k] if k in held else x",
        "x",
        sparse("the_gradient_of_1997_is_cut_by_hand[1]"),
    ),
    (
        "the trace does not leak",
        "influence.add(step, leak * M)",
        "influence.add(step, M)",
        sparse("rflo_is_e_prop_on_leaky_units"),
    ),
]
TRUNCATION = [
    (
        "artbp: the same key at every step",
        "cut = jax.random.bernoulli(key, c)",
        "cut = jax.random.bernoulli(keys[0], c)",
        unbiased("artbp_over_all_cuts[lstm]"),
    ),
    (
        "what gets through is not enlarged",
        "jnp.zeros_like(c), 1 / (1 - c))",
        "jnp.zeros_like(c), jnp.ones_like(c))",
        unbiased("artbp_over_all_cuts[lstm]"),
    ),
    (
        "nothing is cut",
        "return primals[0], tangents[0] * primals[1]",
        "return primals[0], tangents[0]",
        unbiased("artbp_over_all_cuts[lstm]"),
    ),
    (
        "a start is cut off",
        "first = jnp.arange(len(weights)) == 0",
        "first = jnp.arange(len(weights)) < 0",
        unbiased("artbp_over_all_cuts[start]"),
    ),
    (
        "roulette with the weights of one term",
        "weight = 1 / (at_least[i] if roulette else q[i])",
        "weight = 1 / q[i]",
        unbiased("telescope_over_all_horizons[True]"),
    ),
    (
        "a horizon too short",
        "bit_length() + (T > 1)",
        "bit_length()",
        unbiased("telescope_over_all_horizons[False]"),
    ),
]
DEER = [
    (
        "the adjoint runs with D, not with its transpose",
        "J.transpose(0, 2, 1)[::-1]",
        "J[::-1]",
        law("deer_is_exact[elman]"),
    ),
    (
        "Newton's approximate Jacobian in the gradient",
        "lam, solved = _adjoint(J, c)",
        "D = jnp.diagonal(J, axis1=1, axis2=2)\n"
        "        J = J if jacobian == 'full' else jax.vmap(jnp.diag)(D)\n"
        "        lam, solved = _adjoint(J, c)",
        sparse("newton_finds_the_states_and_its_jacobian_stays_out_of_the_gradient[diagonal]"),
    ),
    (
        "a learned start has no gradient",
        "grads += jax.vjp(problem.start, problem.theta)[1](lam[0])[0]",
        "pass",
        law("diagonal_and_complex_cells[eye_lstm-deer]"),
    ),
    (
        "a guess returned for the gradient",
        "or_nan(found.converged & solved, result)",
        "result",
        sparse("newton_is_exact_for_the_first_steps_even_where_it_is_lost"),
    ),
    (
        "states cut at 1e8",
        "moved = jnp.where(known, new, moved)",
        "moved = jnp.clip(moved, -1e8, 1e8)",
        converged("states_of_any_size[full]"),
    ),
    (
        "what is not finite is a solution",
        "(iterations >= T) & jnp.isfinite(h).all()",
        "iterations >= T",
        converged("what_overflows_is_not_called_a_solution"),
    ),
    (
        "the way back is not checked",
        "found.converged & solved",
        "found.converged",
        converged("no_gradient_where_the_way_back_overflows"),
    ),
]
IMPLICIT = [
    (
        "the system with the wrong sign",
        "dtype=step.h.dtype) - step.jacobians()[1]",
        "dtype=step.h.dtype) + step.jacobians()[1]",
        sparse("implicit_is_backpropagation_through_a_long_rest"),
    ),
    (
        "the system not transposed",
        "_slope(step).T, c",
        "_slope(step), c",
        sparse("implicit_is_backpropagation_through_a_long_rest"),
    ),
    (
        "what did not settle is returned",
        "or_nan(settled.all(), result)",
        "result",
        sparse("what_does_not_settle_is_nan"),
    ),
    (
        "a net that creeps has arrived",
        "arrived = step.at(step.h + ahead(step))",
        "arrived = step",
        converged("a_net_that_creeps_has_not_arrived[0.999]"),
    ),
    (
        "not said where it did not settle",
        "return step, (iterations, settled & close)",
        "return step, (iterations, close)",
        converged("a_net_that_does_not_settle_says_so"),
    ),
]
CHECK = [
    (
        "all is right",
        "errors = (values.max(0) - values.min(0)) / scale",
        "errors = 0 * scale",
        checked("a_planted_error_is_found[jvp]"),
    ),
]


def flow(test: str) -> str:
    return f"test_gradient_flow.py::test_{test}"


def clipping(test: str) -> str:
    return f"test_clipping.py::test_{test}"


def chaos(test: str) -> str:
    return f"test_chaos.py::test_{test}"


GRADIENT_FLOW = [
    (
        "forget gates of the wrong steps",
        "f[:0:-1]",
        "f[-2::-1]",
        flow("forget_gates_are_all_there_is_where_gates_see_no_state"),
    ),
    (
        "no output gate",
        "o * (1 - jnp.tanh(state.c) ** 2)",
        "1 - jnp.tanh(state.c) ** 2",
        flow("forget_gates_are_all_there_is_where_gates_see_no_state"),
    ),
    (
        "a step too many",
        "** (1 / (curves.shape[-1] - 1))",
        "** (1 / curves.shape[-1])",
        flow("growth_rates_survive_a_gradient_of_zero"),
    ),
]
CLIPPING = [
    (
        "starts at h_0 = 0.5",
        "start = jax.nn.sigmoid(jnp.full(1, X_0, w.dtype))",
        "start = jnp.full(1, X_0, w.dtype)",
        clipping("the_error_surface_is_the_published_formula[5.0--2.6]"),
    ),
]
CHAOS = [
    (
        "mean slope",
        "* weights @ slopes**2)",
        "* weights @ slopes)",
        chaos("mean_field_equals_a_large_random_network[1.5-0.0]"),
    ),
    (
        "noise forgotten",
        "nodes) ** 2 + noise",
        "nodes) ** 2",
        chaos("mean_field_equals_a_large_random_network[2.0-1.0]"),
    ),
    (
        "gain of the wrong size",
        "size**-0.5",
        "1 / size",
        chaos("the_gain_is_the_deviation_of_w"),
    ),
    (
        "slope forward in time",
        "return -(t @ logs)",
        "return (t @ logs)",
        chaos("below_the_transition_the_exponent_is_the_spectral_radius_of_w"),
    ),
]


def tasks(test: str) -> str:
    return f"test_memory_tasks.py::test_{test}"


TASKS = [
    (
        "adding: both marks in one half",
        "second = jax.random.randint(k_second, (), T // 2, T)",
        "second = jax.random.randint(k_second, (), 0, T)",
        tasks("adding"),
    ),
    (
        "adding of 1997: one step marked twice",
        "second = second + (second >= first).astype(int)",
        "second = second",
        tasks("adding_1997"),
    ),
    (
        "copying: delimiter a step late",
        ".at[delay + n - 1].set(blank + 1)",
        ".at[delay + n].set(blank + 1)",
        tasks("copying"),
    ),
    (
        "temporal order: order does not count",
        "symbols[0] + 2 * symbols[1]",
        "symbols[0] + symbols[1]",
        tasks("temporal_order"),
    ),
    (
        "parity: of the bits before",
        "odd = jnp.cumsum(bits.astype(jnp.int32)) % 2",
        "odd = (jnp.cumsum(bits.astype(jnp.int32)) - bits.astype(jnp.int32)) % 2",
        tasks("parity"),
    ),
    (
        "a^n b^n: the last a is scored",
        "xs == 2)",
        "(xs == 2) | (targets == 2))",
        tasks("anbn"),
    ),
]
REMEDIES = [
    (
        "the slope varies with all weights",
        "at = jax.lax.stop_gradient(a)",
        "at = a",
        "test_temporal_order.py::test_the_regulariser_is_its_formula",
    ),
    (
        "the first step counts",
        "batch.mask[:, 1:].sum(",
        "batch.mask.sum(",
        "test_temporal_order.py::test_the_regulariser_is_its_formula",
    ),
]
SEARCH = [
    (
        "what is solved goes on learning",
        "jnp.where(active, n, o)",
        "n",
        "test_search.py::test_a_search_ends_with_the_last_success_and_keeps_what_is_solved",
    ),
]
TABLE_1997 = [
    (
        "a wrong one among the new ones",
        "(found.max(axis=1) < problem.right) & ",
        "",
        "test_lstm_1997.py::test_two_sequences_are_judged_by_new_ones",
    ),
    (
        "success without the mean error",
        " & (recent(errors) < problem.mean)",
        "",
        "test_lstm_1997.py::test_success_of_1997_is_2000_right_ones_in_a_row_with_a_small_mean",
    ),
]


def ordered(test: str) -> str:
    return f"test_ordered_derivatives.py::test_{test}"


ORDERED = [
    (
        "contributions overwritten",
        "F[i] += F[j] * slope",
        "F[i] = F[j] * slope",
        ordered("a_list_by_hand"),
    ),
    (
        "slope of tanh",
        "(1 - np.tanh(a) ** 2,)",
        "(1 - np.tanh(a),)",
        ordered("slopes_are_the_derivatives[tanh]"),
    ),
    (
        "lag two taken one step back",
        "W2[m:, i] @ F_net[t + 2, m:]",
        "W2[m:, i] @ F_net[t + 1, m:]",
        ordered("the_net_with_lags_swept_by_hand_is_bptt"),
    ),
]
PLANT = [
    (
        "one step reads what it predicts",
        "predict(data.y[:, :-1], data.u)",
        "predict(data.y[:, 1:], data.u)",
        "test_plant.py::test_one_step_reads_the_measured_output_and_simulation_its_own",
    ),
    (
        "the state of the rule is not kept",
        "moves, state = update(g, state)",
        "moves, _ = update(g, state)",
        "test_plant.py::test_training_is_gradient_descent_of_each_run_on_its_own",
    ),
]
MARKET = [
    (
        "implicit slope upside down",
        "y / linear(jnp.ones_like(y))",
        "y * linear(jnp.ones_like(y))",
        "test_market.py::test_the_implicit_gradient_is_a_finite_difference",
    ),
    (
        "capacity with the wrong sign",
        "+ p.capacity * q_before",
        "- p.capacity * q_before",
        "test_market.py::test_the_price_clears_the_market",
    ),
]
PROGRAMME = [
    (
        "a kept state takes no slot",
        "C[t - y, 1 : slots + 1 - fills]",
        "C[t - y, fills + 1 :]",
        "test_checkpointing.py::test_no_schedule_is_better_than_the_programme[None]",
    ),
]


def measured(test: str) -> str:
    return f"test_gradient_algorithms.py::test_{test}"


BALANCING = [
    (
        "the signs of the two groups swapped",
        "PLUS, MINUS = 10, 13",
        "PLUS, MINUS = 13, 10",
        measured("influence_is_the_sum_of_powers"),
    ),
    (
        "one seed that converges is enough",
        "(last < 1e-3 * first).all()",
        "(last < 1e-3 * first).any()",
        measured("curves_and_verdicts"),
    ),
]
EXACTNESS = [
    (
        "the error of one draw for that of the mean",
        "error[drawn] / std[drawn] * len(draws) ** 0.5",
        "error[drawn] / std[drawn]",
        measured("scores_notice_a_bias_and_pass_noise"),
    ),
    (
        "anything is called exact",
        'entry["error"] < EXACT:\n        return 1',
        'entry["error"] < 1:\n        return 1',
        measured("a_wrong_algorithm_is_not_called_exact"),
    ),
]


def diagnosed(test: str) -> str:
    return f"test_diagnostics.py::test_{test}"


DIAGNOSTICS = {
    "flow": [
        (
            "the output does not see the nudge",
            "y = output(unravel(ravel(new) + by_output, new))",
            "y = output(new)",
            diagnosed("flow_and_jacobians_are_the_backward_recursion[lstm]"),
        ),
    ],
    "lag": [
        (
            "a masked step counts",
            "return (jnp.where(valid, earlier, rows), grads)",
            "return (earlier, grads)",
            diagnosed("masked_steps_are_no_steps"),
        ),
        (
            "the learned initial state has no gradient",
            "learned=state is None",
            "learned=False",
            diagnosed("gradients_by_lag_add_up_to_the_truncated_ones[user-k2s1]"),
        ),
    ],
    "singular_values": [
        (
            "the ratio of lengths for its square",
            "(g * r**2)[:, None]",
            "(g * r)[:, None]",
            diagnosed("singular_values_of_short_products[4]"),
        ),
        (
            "rows stay exchanged",
            "    a, b = _exchange(swap, longer, shorter)",
            "    a, b = longer, shorter",
            diagnosed("singular_values_of_short_products[4]"),
        ),
    ],
    "lyapunov": [
        (
            "the warm-up counts",
            "(jnp.arange(T) >= warmup)",
            "(jnp.arange(T) >= 0)",
            diagnosed("exponents_of_a_linear_net_are_its_eigenvalues[None]"),
        ),
    ],
    "compare": [
        (
            "the spread for the standard error",
            "values.std(ddof=1) / K**0.5",
            "values.std(ddof=1)",
            diagnosed("compare_finds_a_known_bias_and_variance"),
        ),
        (
            "lags count masked steps",
            "number[t] - number <= k",
            "t - steps <= k",
            diagnosed("an_exact_algorithm_is_so_at_every_lag"),
        ),
        (
            "all windows begin with the first state",
            "lambda a: a[jnp.argmax(inside)], before",
            "lambda a: a[0], before",
            diagnosed("lags_of_a_gradient_that_is_cut_by_hand"),
        ),
        (
            "a lag holds the shorter ones",
            "jnp.diff(a, axis=0, prepend=jnp.zeros_like(a[:1]))",
            "a",
            diagnosed("lags_that_truncation_leaves_out"),
        ),
    ],
    "gates": [
        ("masked steps count as shut", "(flags & valid)", "flags", diagnosed("gates_of_a_loop")),
    ],
    "noise_scale": [
        (
            "the noise of the mean is signal",
            "jnp.sum(mean**2) - noise / B",
            "jnp.sum(mean**2)",
            diagnosed("noise_scale_of_known_gradients"),
        ),
    ],
    "pascanu": [
        (
            "its gradient goes through states and lam",
            "fixed, state, xs, targets = _constant((params, state, xs, targets))",
            "fixed = params",
            diagnosed("regularizer_is_the_formula"),
        ),
        (
            "steps without a gradient count",
            "(length > 0)",
            "(length >= 0)",
            diagnosed("regularizer_counts_steps_with_a_gradient"),
        ),
    ],
    "_norm": [
        (
            "squares underflow",
            "scale = jnp.where(peak > 0, peak, jnp.ones_like(peak))",
            "scale = jnp.ones_like(peak)",
            diagnosed("flow_of_a_scalar_is_a_power_however_small[float32]"),
        ),
    ],
}

LABORATORY = [
    ("gradients: a reset", "rnn_jax/unroll.py", RESTART),
    *(
        (f"diagnostics: {name}", f"rnn_jax/diagnostics/{name}.py", rows)
        for name, rows in DIAGNOSTICS.items()
    ),
    ("gradient algorithms", "experiments/gradient_algorithms/balancing.py", BALANCING),
    ("gradient algorithms", "experiments/gradient_algorithms/exactness.py", EXACTNESS),
    ("ordered derivatives", "experiments/ordered_derivatives.py", ORDERED),
    ("plant", "experiments/plant.py", PLANT),
    ("market", "experiments/market.py", MARKET),
    ("checkpointing", "experiments/checkpointing.py", PROGRAMME),
    ("memory tasks", "rnn_jax/tasks/memory.py", TASKS),
    ("memory tasks", "experiments/temporal_order.py", REMEDIES),
    ("memory tasks", "experiments/harness/search.py", SEARCH),
    ("memory tasks", "experiments/lstm_1997.py", TABLE_1997),
    ("gradient_flow", "experiments/gradient_flow.py", GRADIENT_FLOW),
    ("clipping", "experiments/clipping.py", CLIPPING),
    ("chaos", "experiments/chaos.py", CHAOS),
]
REGISTERED = [
    (
        "online and offline exchanged in the table",
        '"yes" if e.online else "no"',
        '"no" if e.online else "yes"',
        law("the_register"),
    ),
]
SHARED = [
    (
        "a target taken twice",
        "if jnp.shape(a)[:1] != (steps,):",
        "if False:",
        law("a_target_for_each_step[4-truncated_bptt]"),
    ),
    (
        "a loss of each output",
        "if jnp.shape(value) != ():",
        "if False:",
        law("a_loss_is_a_scalar[rtrl]"),
    ),
    (
        "a running sum in half precision",
        "jnp.zeros_like(a, wide(a.dtype) if is_float(a) else None)",
        "jnp.zeros_like(a)",
        "test_small_dtypes.py::test_gradients_of_many_steps_in_half_precision",
    ),
    (
        "NaN made where all is well",
        "@jax.jit  # NaN made outside of it would stop `jax_debug_nans` where all is well",
        "",
        converged("all_is_well_under_debug_nans[implicit]"),
    ),
]
ALGORITHMS = [
    ("register", "register", REGISTERED),
    ("shared", "_types", SHARED),
    ("vectors", "_vector", VECTOR),
    ("outputs", "_output", OUTPUT),
    ("online", "_online", ONLINE),
    ("rtrl", "rtrl", RTRL),
    ("sparse", "_sparse", SPARSE),
    ("snap", "snap", SNAP),
    ("uoro", "uoro", UORO),
    ("kronecker", "kronecker", KRONECKER),
    ("forward", "forward_gradient", FORWARD),
    ("products", "_products", PRODUCTS),
    ("local", "local", LOCAL),
    ("random truncation", "random_truncation", TRUNCATION),
    ("deer", "deer", DEER),
    ("implicit", "implicit", IMPLICIT),
    ("check", "check", CHECK),
]
