"""The kill table of devices and processes: a row a line, (name, file, old, new, test)."""

M, P, O, B, C = (
    f"test_{name}.py::test_"
    for name in ("mesh", "processes", "over_devices", "batches", "checkpoint")
)
TRAIN, MESH, PROCESSES, LEAVES = (
    f"rnn_jax/{name}.py" for name in ("train", "_mesh", "processes", "_leaves")
)
OVER, BATCHES, TABLE, CHECKPOINT = (
    f"rnn_jax/{name}.py"
    for name in ("over_devices", "tasks/batches", "tasks/table_file", "checkpoint")
)
HARNESS = "experiments/harness"
HALF, PAIR = (
    M + "each_device_computes_half_of_every_product[elman]",
    P + "two_processes_are_one_but_for_the_order_of_sums",
)
KNOWN, OTHERS = P + "what_one_process_knows_all_know", P + "any_number_saves_and_any_other_restores"
COMMAND, LAID = (
    P + "two_processes_from_the_command_line",
    O + "outputs_and_gradients_are_those_of_unroll[elman]",
)
HOST, LINES = (
    B + "batches_from_the_host_are_those_of_the_device[37-8]",
    "test_table_file.py::test_what_is_no_table_says_which_line",
)

# fmt: off
ROWS = [
    # one process, two devices
    ("the batch is not split", TRAIN, "batch = _mesh.constrain(batch, _mesh.split(batch, here, batch_axes))", "pass", HALF),
    ("the layout does not stay", TRAIN, "state = _mesh.constrain(state, _mesh.shardings(state, here))", "pass", M + "the_layout_stays_and_nothing_compiles_anew[units]"),
    ("init forgets the mesh", TRAIN, "    mesh = _mesh.of(mesh)\n    state = jax.tree.map(_own, state)", "    mesh = None\n    state = jax.tree.map(_own, state)", M + "a_state_is_split_from_the_start"),
    ("batch_axes forgotten", TRAIN, "return Run(steps_per_call, compiled, batch_at is None, mesh, batch_axes)", "return Run(steps_per_call, compiled, batch_at is None, mesh)", M + "batches_from_the_host_are_split"),
    ("units along the inputs", MESH, "_over(leaf, mesh, units, leaf.ndim - 1, nets)", "_over(leaf, mesh, units, leaf.ndim - 2, nets)", M + "where_each_leaf_lies"),
    ("the nets are split, not their batch", MESH, "_over(leaf, mesh, rows, nets, nets)", "_over(leaf, mesh, rows, 0, 0)", M + "where_each_leaf_lies"),
    ("uneven parts are taken", MESH, "if axis >= len(shape) or shape[axis] * parts % mesh.shape[rows]:", "if axis >= len(shape):", M + "what_cannot_be_split_is_refused"),
    ("None in batch_axes is split", MESH, "if axis is None or not shape:", "axis = axis or 0\n        if not shape:", M + "a_leaf_that_all_devices_need_whole"),
    ("a mesh in the type stays", MESH, "    return jax.device_put(leaf, NamedSharding(divided_by_xla(old.mesh), old.spec))", "    return leaf", M + "however_the_mesh_is_given[rows there-AxisType.Explicit]"),
    ("the ambient mesh is not seen", MESH, "            mesh = jax.sharding.get_mesh()\n", "            return None\n", M + "however_the_mesh_is_given[ambient-AxisType.Explicit]"),
    # several processes
    ("a part is taken for a whole", TRAIN, "parts=jax.process_count()", "parts=1", PAIR),
    ("the others do not hear of a signal", TRAIN, "self._stop.received = self._stop.received or signal.Signals(found)", "pass", P + "a_signal_or_a_deadline_of_one_stops_all_at_the_same_step"),
    ("a late signal is known to one", TRAIN, "        asked.settle()\n", "", P + "a_signal_or_a_deadline_of_one_stops_all_at_the_same_step"),
    ("only if all are asked to stop", PROCESSES, "jax.jit(jnp.max, out", "jax.jit(jnp.min, out", KNOWN),
    ("an error elsewhere is no error", PROCESSES, "    raise kind(f\"process {process}: {found['error']}\")", "    return None", KNOWN),
    ("every error is Elsewhere", PROCESSES, 'kind = _KINDS.get(found["kind"], Elsewhere)', "kind = Elsewhere", KNOWN),
    ("together gives the first", PROCESSES, "return found[0]", 'return first(lambda: found[0])', KNOWN),
    ("the second process is the source", PROCESSES, "source = jax.process_index() == 0", "source = jax.process_index() == 1", KNOWN),
    ("a part of a split array is saved", LEAVES, "array = processes.whole(", "array = np.asarray(", OTHERS),
    ("every process writes", CHECKPOINT, "self._know(processes.first(lambda: self._add(about, arrays)))", "self._know(self._add(about, arrays))", OTHERS),
    ("make room, whatever it was", CHECKPOINT, 'if full else "."', 'if why else "."', C + "advice_about_the_disk_is_for_a_full_disk"),
    # time over devices
    ("the state goes back in time", OVER, "(d, d + 1) for d in range(N - 1)", "(d + 1, d) for d in range(N - 1)", LAID),
    ("the first device waits for a state", OVER, "jnp.where(device == 0, a, b)", "jnp.where(device == 1, a, b)", LAID),
    ("outputs of the first turns", OVER, "a, device, M, axis=0", "a, 0, M, axis=0", LAID),
    ("the state of the first device", OVER, "a[-1].reshape(B", "a[0].reshape(B", LAID),
    ("resets left out", OVER, "mask=mask, reset=reset, segment", "mask=mask, segment", LAID),
    ("the mask left out", OVER, "mask=mask, reset=reset, segment", "reset=reset, segment", LAID),
    # data larger than memory
    ("each part is the first", BATCHES, "return slice(i * size // n, (i + 1) * size // n)", "return slice(0, size // n)", HOST),
    ("each process reads the whole batch", BATCHES, "np.uint32(step)))[self._mine]", "np.uint32(step)))", HOST),
    ("a position of other data", BATCHES, 'or step < 0 or state != {"step": step} | self._sizes:', "or step < 0:", HOST),
    ("streams of another part", "rnn_jax/tasks/text_file.py", "range(B)[part_of(B, part)]", "range(B)[part_of(B, (0, part[1]))]", "test_text_file.py::test_each_process_reads_its_part"),
    ("lines counted from each piece", TABLE, "enumerate(lines, start=first)", "enumerate(lines, start=1)", LINES),
    ("the header counts as no line", TABLE, "first, lines = 2, lines[1:]", "first, lines = 1, lines[1:]", LINES),
    ("a gap is 0", TABLE, 'else float("nan")', "else 0.0", "test_table_file.py::test_gaps_are_nan"),
    # the command line
    ("a signal to another is not seen", f"{HARNESS}/training.py", "stopped = train.step_of(state) < steps and not stale()", "stopped = stop()", COMMAND),
    ("every process writes rows", f"{HARNESS}/run_folder.py", '    if jax.process_index():\n        return\n    with (folder', "    with (folder", COMMAND),
    ("every process prints", f"{HARNESS}/devices.py", "            if jax.process_index():\n", "            if False:\n", COMMAND),
    ("the port is not tried", f"{HARNESS}/devices.py", "_check_free(options)\n    #", "pass\n    #", P + "a_port_in_use"),
    ("nobody gives up", f"{HARNESS}/devices.py", "given_up.start()", "pass", P + "who_cannot_meet_says_so[nobody comes]"),
    ("other data are taken", f"{HARNESS}/training.py", "if different or theirs != data_of_first:", "if different:", P + "bad_input_of_one_ends_both_in_one_line"),
    ("each goes by its own clock", f"{HARNESS}/learning.py", "processes.first(lambda: int((seconds - spent - to_come) / an_update))", "int((seconds - spent - to_come) / an_update)", P + "clocks_may_be_apart"),
]
