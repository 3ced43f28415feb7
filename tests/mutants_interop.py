"""The kill table of `rnn_jax.interop`: a row a line, (name, file, old, new, test)."""

T, K, O, F, D = (
    f"test_interop_{name}.py::test_" for name in ("torch", "keras", "onnx", "flax", "deploy")
)
P = "test_peers.py::test_same_outputs_states_and_gradients"
FORMATS, NET, TORCH = "_formats", "_net", "pytorch"
LSTM, GRU = "equals_pytorch[LSTM-1-forward-bias-whole]", "equals_pytorch[GRU-1-forward-bias-whole]"

# fmt: off
ROWS = [
    # gates swapped, one in each row of the table
    ("torch LSTM: f and g", FORMATS, '("torch", "LSTM"): _torch("lstm", "ifgo")', '("torch", "LSTM"): _torch("lstm", "igfo")', T + LSTM),
    ("torch GRU: r and z", FORMATS, '("torch", "GRU"): _torch("gru_reset_after", "rzn")', '("torch", "GRU"): _torch("gru_reset_after", "zrn")', T + GRU),
    ("keras LSTM: g and o", FORMATS, '_keras("lstm", "ifgo", Leaf("b_x", "GH"))', '_keras("lstm", "ifog", Leaf("b_x", "GH"))', K + "equals_keras[LSTM]"),
    ("keras GRU: z and r", FORMATS, '_keras("gru", "zrn", Leaf("b_x", "GH"))', '_keras("gru", "rzn", Leaf("b_x", "GH"))', K + "equals_keras[GRU reset before]"),
    ("keras GRU reset_after: z and r", FORMATS, '_keras("gru_reset_after", "zrn"', '_keras("gru_reset_after", "rzn"', K + "equals_keras[GRU reset after]"),
    ("linen LSTMCell: i and f", FORMATS, '("linen", "LSTMCell"): _dense("lstm", "ifgo", "i{gate}", "h{gate}", b_h="ifgo")', '("linen", "LSTMCell"): _dense("lstm", "figo", "i{gate}", "h{gate}", b_h="if")', P + "[peers.linen-LSTMCell]"),
    ("linen GRUCell: no bias inside the reset", FORMATS, '"h{gate}", "rzn", "n")', '"h{gate}", "rzn", "z")', P + "[peers.linen-GRUCell]"),
    ("nnx OptimizedLSTMCell: f and o", FORMATS, '("nnx", "OptimizedLSTMCell"): _dense("lstm", "ifgo"', '("nnx", "OptimizedLSTMCell"): _dense("lstm", "iogf"', P + "[peers.nnx-OptimizedLSTMCell]"),
    ("nnx GRUCell: r and z", FORMATS, '("nnx", "GRUCell"): _dense("gru_reset_after", "rzn"', '("nnx", "GRUCell"): _dense("gru_reset_after", "zrn"', P + "[peers.nnx-GRUCell]"),
    ("haiku LSTM: in our order", FORMATS, '        "igfo",\n', '        "ifgo",\n', P + "[peers.haiku-LSTM]"),
    ("haiku LSTM: the 1 of f forgotten", FORMATS, 'added={"f": 1.0}', 'added={"f": 0.0}', P + "[peers.haiku-LSTM]"),
    ("haiku GRU: z not turned over", FORMATS, 'negated="z"', 'negated=""', P + "[peers.haiku-GRU]"),
    ("equinox LSTMCell: f and g", FORMATS, '_equinox("lstm", "ifgo")', '_equinox("lstm", "igfo")', P + "[peers.equinox-LSTMCell]"),
    ("equinox GRUCell: b_n for r", FORMATS, 'bias_n=Leaf("b_h", "H", "n")', 'bias_n=Leaf("b_h", "H", "r")', P + "[peers.equinox-GRUCell]"),
    ("onnx LSTM: in our order", FORMATS, '_onnx("lstm", "iofg")', '_onnx("lstm", "ifgo")', O + "equals_onnxruntime[LSTM forward B]"),
    ("onnx GRU: z and r", FORMATS, '("onnx", "GRU"): _onnx("gru", "zrn")', '("onnx", "GRU"): _onnx("gru", "rzn")', O + "equals_onnxruntime[GRU forward B]"),
    ("onnx GRU, reset after: z and r", FORMATS, '_onnx("gru_reset_after", "zrn")', '_onnx("gru_reset_after", "rzn")', O + "equals_onnxruntime[GRU after forward]"),
    ("onnx: peepholes in our order", FORMATS, 'peepholes="iof"', 'peepholes="ifo"', O + "equals_onnxruntime[LSTM peepholes forward]"),
    # the reader and the writer
    ("load: the second bias dropped", FORMATS, "b = b_x if b_h is None else b_h if b_x is None else b_x + b_h", "b = b_x if b_h is None else b_h if b_x is None else b_x", T + LSTM),
    ("load: the second bias of r and z dropped", FORMATS, "GRUParams(w_x, w_h, b_x.at[:rz].add(b_h[:rz]), n)", "GRUParams(w_x, w_h, b_x, n)", T + GRU),
    ("load: a projection as it lies", FORMATS, 'or leaf.part == "w_p":', 'or leaf.part == "w":', T + "projections[forward-1]"),
    ("dump: what f has more is not taken off", FORMATS, 'parts["b_x"][gate] = parts["b_x"][gate] - value', "pass", P + "[peers.haiku-LSTM]"),
    ("dump: peepholes lost without a word", FORMATS, 'if "w_c" in parts and "w_c" not in places:', "if False:", T + "what_has_no_place[peepholes]"),
    ("dump: a bias lost", FORMATS, "ours[other][gate] = ours[other][gate] + value", "pass", P + "[peers.linen-LSTMCell]"),
    ("load: what is left over is left", FORMATS, "    if left:\n", "    if False:\n", T + "what_has_no_place[left over in one layer]"),
    ("load: doubles cut", FORMATS, "if jax.dtypes.canonicalize_dtype(dtype) != dtype:", "if False:", T + "precision_is_kept_or_said"),
    ("identify: the first name that may be", NET, "if distance(got, expected) < tolerance(x.dtype):", "if True:", T + "identify[RNN]"),
    ("nets that differ are the same", NET, "return distance(got, expected) < tolerance(got[1].dtype)", "return True", T + "what_has_no_place[a residual]"),
    # PyTorch
    ("from_torch: layers backward first", TORCH, "((False, True) if both else (False,))", "((True, False) if both else (False,))", T + "equals_pytorch[GRU-1-both-bias-whole]"),
    ("from_torch: relu for tanh", TORCH, 'activation=ACTIVATIONS[activation]), params', 'activation=ACTIVATIONS["relu"]), params', T + "equals_pytorch[RNN tanh-1-forward-bias-whole]"),
    ("to_torch: the backward layer over the other", TORCH, 'weights[f"{leaf}_l{k}{suffix}"] = a', 'weights[f"{leaf}_l{k}"] = a', T + "equals_pytorch[LSTM-1-both-bias-whole]"),
    ("to_torch: gru for gru_reset_after", TORCH, "            if layer is None:\n", '            layer = layer or "GRU"\n            if layer is None:\n', T + "what_has_no_place[gru]"),
    ("from_safetensors: without the prefix", TORCH, "return from_torch(_untouched(path, load_file), prefix", 'return from_torch(_untouched(path, load_file), ""', T + "part_of_a_model"),
    ("to_safetensors: without the prefix", TORCH, "_state_dict(cells, params, prefix).items()}\n    save_file", '_state_dict(cells, params, "").items()}\n    save_file', T + "safetensors[float32]"),
    ("from_cudnn: biases between matrices", TORCH, "    for suffix, _ in names:\n", "    for suffix, _ in names[::-1]:\n", T + "the_vector_of_cudnn[2-forward]"),
    ("to_cudnn: biases first", TORCH, "for a in matrices + biases", "for a in biases + matrices", T + "the_vector_of_cudnn[1-forward]"),
    # Keras
    ("from_keras: halves exchanged", "keras", "(layer.weights[:size], layer.weights[size:])", "(layer.weights[size:], layer.weights[:size])", K + "equals_keras[Bidirectional]"),
    ("from_keras: stacked cells in the order of the file", "keras", 'named[c["config"]["name"]] for c in cell["config"]["cells"]', 'g for _, g in sorted(named.items())', K + "equals_keras[stacked cells]"),
    ("from_keras: every GRU resets after", "keras", 'if layer == "GRU" and config.get("reset_after", True):', 'if layer == "GRU":', K + "equals_keras[bias-free]"),
    ("from_keras: other gates taken", "keras", 'if (activation, gates) != ("tanh", "sigmoid"):', "if False:", K + "what_our_cells_do_not_do[gates]"),
    ("to_keras: the backward layer runs forward", "keras", '"go_backwards": backward,', '"go_backwards": False,', K + "equals_keras[Bidirectional]"),
    # ONNX
    ("from_onnx: reverse forgotten", "onnx", 'return Imported(tuple(cells), tuple(params), "reverse" in ways)', "return Imported(tuple(cells), tuple(params), False)", O + "equals_onnxruntime[LSTM reverse B]"),
    ("from_onnx: linear_before_reset ignored", "onnx", 'after = kind == "GRU" and options.get("linear_before_reset", 0)', "after = 0", O + "equals_onnxruntime[GRU after forward]"),
    ("from_onnx: activations of the other direction", "onnx", "functions = functions[k * each : (k + 1) * each]", "functions = functions[:each]", O + "equals_onnxruntime[RNN of two kinds]"),
    ("from_onnx: clipping ignored", "onnx", "return jnp.clip(a, -clip, clip) if clip else a", "return a", O + "equals_onnxruntime[GRU forward clipped]"),
    ("from_onnx: gates not coupled", "onnx", "(1 - i if coupled else f) * c", "f * c", O + "equals_onnxruntime[LSTM coupled]"),
    ("from_onnx: an initial state lost", "onnx", "if name in constants and np.any(constants[name] != 0):", "if False:", O + "weights_are_constants_and_states_are_given"),
    ("to_onnx: lengths ignored", "onnx", 'inputs = [x, stacked("W"), stacked("R"), stacked("B"), sizes]', 'inputs = [x, stacked("W"), stacked("R"), stacked("B"), ""]', O + "a_net_runs_in_onnxruntime[lstm-lengths]"),
    ("to_onnx: linear_before_reset left out", "onnx", 'options["linear_before_reset"] = 1', "pass", O + "a_net_runs_in_onnxruntime[gru_reset_after-whole]"),
    ("to_onnx: padding of the readout kept", "onnx", "valid = graph.add(\"Less\", [index, ends])", "valid = graph.add(\"Less\", [index, graph.constant(np.array([99], np.int32))])", O + "a_net_runs_in_onnxruntime[readout-lengths]"),
    ("to_onnx: half precision cut without a word", NET, "if is_float(a) and a.dtype != jnp.float32:", "if False:", O + "what_has_no_place[half precision]"),
    # Flax
    ("as_linen_module: masks ignored", "flax", "return run_net(net, params, state, xs, mask=mask, reset=reset, **options)", "return run_net(net, params, state, xs, reset=reset, **options)", F + "modules_give_the_bits_of_unroll[lstm-1]"),
    ("as_linen_cell: the carry of one", "flax", "return _initial(self.cell, zeros, input_shape[:-1])", "return _initial(self.cell, zeros, ())", F + "cells_inside_their_loops"),
    ("as_nnx_module: both or none", "flax", "if (rngs is None) == (params is None):", "if False:", F + "what_a_module_wants"),
    ("as_nnx_cell: the carry of one", "flax", "return _initial(self.cell, values(self), input_shape[:-1])", "return _initial(self.cell, values(self), ())", F + "cells_inside_their_loops"),
    ("wrap_linen: what a step needs is not tried", "flax", "    cell = Cell(init, lambda params: carry(), lambda params, x: x, step)\n    _try(cell, shape)\n    return cell\n\n\ndef _try", "    cell = Cell(init, lambda params: carry(), lambda params, x: x, step)\n    return cell\n\n\ndef _try", F + "cells_that_cannot_be_wrapped"),
    ("wrap_nnx: noise that repeats", "flax", "if not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):", "if False:", F + "cells_that_cannot_be_wrapped"),
    ("wrap_haiku: state and output exchanged", "flax", "(y, state), _ = stepped.apply(params, {}, None, x, state)", "(state, y), _ = stepped.apply(params, {}, None, x, state)", F + "a_cell_of_another_library_is_a_cell[haiku LSTM]"),
    ("wrap_equinox: c for h", "flax", "return new, jax.tree.leaves(new)[0]", "return new, jax.tree.leaves(new)[-1]", F + "equinox_puts_out_h"),
    ("factories make another cell each time", "../_remember", "return cached(*args, **options)", "return factory(*args, **options)", F + "equal_modules_compile_once"),
    # deployment
    ("export: lengths ignored", "deploy", "mask = None if n is None else length_mask(n, x.shape[0])", "mask = None", D + "a_file_runs_in_a_process_without_us[lstm-lengths]"),
    ("register: params cannot be written", "deploy", 'name.endswith(("Params", "State"))', 'name.endswith("State")', D + "our_own_types_are_written_and_read"),
]
# fmt: on
