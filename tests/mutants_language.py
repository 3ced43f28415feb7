"""The kill table of language: a row a line, (name, file, old, new, test)."""

G, N, L, C, W, E, B, T = (
    f"test_{name}.py::test_"
    for name in (
        "generate",
        "noise",
        "losses",
        "combine",
        "words",
        "encoder_decoder",
        "batches",
        "train_kinds",
    )
)
GENERATE, NOISE, LOSSES, COMBINE, ENCDEC, TRAIN, TEXT = (
    f"rnn_jax/{name}.py"
    for name in ("generate", "noise", "losses", "combine", "encoder_decoder", "train", "tasks/text")
)
WORDS, NGRAMS, BATCHES = (f"rnn_jax/tasks/{name}.py" for name in ("words", "ngrams", "batches"))
WIDE, ENDED, RISING = (
    G + "a_wide_beam_is_exhaustive_search[0.7]",
    G + "what_has_ended_keeps_its_score_and_its_place",
    G + "only_allowed_tokens_are_written",
)
PENALTIES, BOOK = (
    L + "penalties_are_means_over_units_and_valid_steps[True]",
    W + "kneser_ney_is_that_of_the_paper[3]",
)
A = "test_language_applications.py::test_"
PARTS = E + "it_is_what_one_would_write_with_the_parts[additive-True]"
BUCKETS = B + "buckets_pad_every_sequence_to_the_longest_of_its_bucket[3]"
DROP = N + "drop_drops_or_scales_and_shares_one_decision_along_axes"
CONNECT = N + "drop_connect_drops_recurrent_weights_alone[lstm]"
SCHEDULED = N + "scheduled_sampling_mixes_true_tokens_with_drawn_ones"

# fmt: off
ROWS = [
    # beams, scores, constraints
    ("the penalty forgets the 5", GENERATE, "(5.0 + sizes.astype(sums.dtype)) / 6.0", "sizes.astype(sums.dtype)", WIDE),
    ("ranked without the penalty", GENERATE, "scored(ways, longer[:, None]).ravel()", "ways.ravel()", WIDE.replace("0.7", "2.0")),
    ("the ended go on", GENERATE, "jnp.where(ended[:, None], stays, chances)", "chances", ENDED),
    ("the ended are there V times", GENERATE, "stays = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf)", "stays = jnp.zeros(V)", ENDED),
    ("the ended grow longer", GENERATE, "longer = sizes + (~ended).astype(jnp.int32)", "longer = sizes + 1", WIDE),
    ("the state of another text", GENERATE, "of_parent = lambda leaf: leaf[parent]", "of_parent = lambda leaf: leaf", WIDE),
    ("the beam starts K times", GENERATE, "sums = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf).astype(kept)", "sums = jnp.zeros(K, kept)", WIDE),
    ("a beam reads no stop", GENERATE, "over = over | jnp.isin(chosen, ends) | (chosen < 0)", "over = over | (chosen < 0)", ENDED),
    ("scores of logits", GENERATE, "chances = jax.nn.log_softmax(logits)\n            if allowed", "chances = logits\n            if allowed", G + "beams_are_scored_as_texts_are"),
    ("a score reads the token itself", GENERATE, "jnp.concatenate([token[None], tokens[:-1]])", "tokens", G + "score_is_the_sum_over_the_steps[gru]"),
    ("a score goes on after the end", GENERATE, "mask = jnp.cumsum(tokens < 0) == 0", "mask = tokens >= 0", G + "score_is_the_sum_over_the_steps[gru]"),
    ("the state before the token decides", GENERATE, "            may = allowed(new)\n            logits", "            may = allowed(old)\n            logits", RISING + "[greedy]"),
    ("nothing allowed is token 0", GENERATE, "            ended = ended | ~may.any()\n", "", RISING + "[greedy]"),
    ("beams are not constrained", GENERATE, "return new, _only(may, chances), ~may.any()", "return new, chances, ~may.any()", RISING + "[beam]"),
    ("a stream does not end", GENERATE, "        if allowed is not None and int(token) < 0:\n            return\n", "", RISING + "[stream]"),
    # noise
    ("dropped entries are not scaled", NOISE, "jnp.where(kept, x / keep, jnp.zeros_like(x))", "jnp.where(kept, x, jnp.zeros_like(x))", DROP),
    ("drop shares nothing", NOISE, "tuple(1 if axis in axes else size for", "tuple(size for", DROP),
    ("drop keeps with the rate", NOISE, "kept = jax.random.bernoulli(key, keep, shape)", "kept = jax.random.bernoulli(key, rate, shape)", DROP),
    ("tokens are kept with the rate", NOISE, "dropped = jax.random.bernoulli(key, rate, tokens.shape)", "dropped = jax.random.bernoulli(key, 1 - rate, tokens.shape)", N + "tokens_are_dropped_to_the_unknown_one"),
    ("inputs are dropped too", NOISE, '!= "w_h"', 'not in ("w_h", "w_x")', CONNECT),
    ("every layer drops the same", NOISE, "return drop(leaf, rate, jax.random.fold_in(key, found))", "return drop(leaf, rate, key)", CONNECT),
    ("only true tokens are read", NOISE, "own = jax.random.bernoulli(coin, old.rate) & (old.drawn >= 0)", "own = jnp.array(False)", SCHEDULED),
    ("drawn before anything was", NOISE, " & (old.drawn >= 0)", "", SCHEDULED),
    ("the rate of the state is not used", NOISE, "jax.random.bernoulli(coin, old.rate)", "jax.random.bernoulli(coin, jnp.float32(rate))", SCHEDULED),
    ("redrawn to the same", NOISE, "leaves[n] = jax.random.split(jax.random.fold_in(key, n), leaf.shape)", "pass", N + "redrawn_noise_leaves_the_rest_of_the_state"),
    # penalties, tied weights
    ("activation_penalty: a sum over units", LOSSES, "squared_error(ys, jnp.zeros_like(ys), mask) / jnp.asarray(ys.shape[-1], ys.dtype)", "squared_error(ys, jnp.zeros_like(ys), mask)", PENALTIES),
    ("slowness_penalty: one valid step is enough", LOSSES, "mask[..., 1:] & mask[..., :-1]", "mask[..., 1:]", PENALTIES),
    ("slowness_penalty: two steps apart", LOSSES, "ys[..., 1:, :], ys[..., :-1, :], both", "ys[..., 1:, :], ys[..., 1:, :], both", PENALTIES),
    ("the table is not transposed back", COMBINE, "params.cell.table.T if tied else params.w_y", "jnp.roll(params.cell.table.T, 1) if tied else params.w_y", C + "a_tied_readout_reads_and_writes_with_one_table[False-True]"),
    ("tied to anything", COMBINE, "if table != (size, H):", "if False:", C + "what_cannot_be_tied_is_refused[cell2]"),
    # encoder and decoder
    ("the last output for both ends", ENCDEC, "over_time.both_ends if isinstance(encoder, TwoWay) else over_time.last", "over_time.last", PARTS),
    ("the mask of the source is lost", ENCDEC, "outputs, mask, state)", "outputs, None, state)", E + "more_padding_changes_nothing[additive]"),
    ("the decoder reads the target itself", ENCDEC, "jnp.concatenate([jnp.full_like(target[:1], net.begin), target[:-1]])", "target", PARTS),
    ("no squashing of the start", ENCDEC, "jnp.tanh(ends(outputs, mask) @ params.w_start + params.b_start)", "ends(outputs, mask) @ params.w_start + params.b_start", PARTS),
    ("the decoder's noise is always the same", ENCDEC, "redraw(state, keys[1])", "state", E + "noise_is_drawn_from_the_key_and_leaves_the_params_alone[None]"),
    ("always teacher forcing", ENCDEC, "SampledState(start, coins, jnp.asarray(rate, jnp.float32), jnp.int32(-1))", "SampledState(start, coins, jnp.float32(0.0), jnp.int32(-1))", E + "sampling_at_rate_0_is_teacher_forcing_and_at_1_it_is_writing"),
    # words and n-grams
    ("the cut is one too high", WORDS, "if count >= cut", "if count > cut", W + "the_vocabulary_has_the_frequent_words_in_order"),
    ("case counts all the same", WORDS, "cased = (word.lower() for word in words) if self.lower else words", "cased = words", W + "without_case"),
    ("line ends are words of no text", WORDS, r"|[^\w\s]|\n", r"|[^\w\s]", W + "what_is_cut_is_joined_again[\\n\\n]"),
    ("lower orders count occurrences", NGRAMS, "np.unique(at[k], return_index=True)[1]", "np.arange(len(at[k]))", BOOK),
    ("one discount for all", NGRAMS, "np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])", "np.array([0, y, y, y])", BOOK),
    ("what is taken off is lost", NGRAMS, "(kept + order.passed_on[h] * p)", "kept", W + "probabilities_sum_to_one_after_any_history[2]"),
    ("an unseen history is the first", NGRAMS, "known = history >= 0", "known = history >= -1", BOOK),
    # buckets
    ("the longest is cut off", BATCHES, "cost = np.concatenate([[0.0], ways.min(axis=0)])", "cost = np.concatenate([[0.0], ways.max(axis=0)])", B + "buckets_are_those_that_waste_least"),
    ("a bucket reads the same batch", BATCHES, "nth = epoch * int(self._batches[b]) + int((turns[:place] == b).sum())", "nth = 0", BUCKETS),
    ("padding of the longest of all", BATCHES, "np.searchsorted(np.sort(borders), lengths)", "np.zeros_like(lengths)", B + "buckets_are_those_that_waste_least"),
    ("one order for all seeds", BATCHES, "np.random.default_rng([self._seed, epoch])", "np.random.default_rng([0, epoch])", B + "a_position_among_buckets_is_found_again"),
    ("batches of one shape alone count", TRAIN, "parts.append((jax.tree.map(stack, *filled), len(given)))", "parts = [(jax.tree.map(stack, *filled), len(given))]", T + "batches_of_several_shapes_come_in_their_order"),
    # applications
    ("word_lm knows words of the end", "experiments/word_lm.py", "WordVocabulary.of(\n        words,", "WordVocabulary.of(\n        words + rest,", A + "word_lm_learns_from_the_first_lines_and_is_judged_by_the_last"),
    ("a fold knows all words", "experiments/sentiment.py", "known = np.array([[w in own for w in vocabulary.words] for own in learn_from])", "known = np.array([[True for w in vocabulary.words] for own in learn_from])", A + "a_fold_of_sentiment_knows_the_words_of_its_own_training_part_alone"),
    ("the same date in both", "experiments/translation.py", "found.setdefault(iso.get(source, source[:10]), []).append(source)", "found.setdefault(source, []).append(source)", A + "no_date_of_the_test_was_learned_from[both]"),
    ("after is and", "experiments/instructions.py", "else [*y, *x])", "else [*x, *y])", A + "scan_is_the_grammar_of_the_paper"),
    ("left is right", "experiments/instructions.py", 'side = 1 if action == "LEFT" else -1', 'side = -1 if action == "LEFT" else 1', A + "the_way_that_one_walks"),
    ("the first b is to be known", "experiments/counting_languages.py", "inside & (t[:-1] > n)", "inside & (t[:-1] >= n)", A + "words_of_the_counting_languages"),
    ("words are parted at spaces", "experiments/tagging.py", 'line.rstrip("\\r").split("\\t") if "\\t" in line else line.split()', "line.split()", A + "tags_of_tabs_spaces_and_odd_lines"),
    ("compose offers the unlikeliest", "experiments/harness/compose.py", "np.argsort(-chances)", "np.argsort(chances)", "test_compose.py::test_what_is_offered_is_what_the_net_predicts"),
    ("an I- begins nothing", "rnn_jax/tasks/entities.py", "if own is not None and kind is None:", "if own is not None and kind is None and tag[:2] != 'I-':", "test_entities.py::test_all_short_sentences"),
    # held-out text
    ("surprise of what is read", TEXT, "jnp.take_along_axis(logits, targets[..., None], axis=-1)", "jnp.take_along_axis(logits, inputs[..., None], axis=-1)", "test_char_lm.py::test_validation_carries_the_state_and_scores_each_character_once"),
]
