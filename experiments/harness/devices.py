"""The devices and the processes that a command runs on, from its options."""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.harness import command
from experiments.harness.command import BadInput, Failed
from rnn_jax import processes

AUTO = "auto"  # the coordinator that SLURM, Kubernetes, a TPU pod or JAX_COORDINATOR_ADDRESS gives


def check(options: Any) -> None:
    """Raises BadInput for options that make no sense, before JAX starts."""
    command.at_least(options, devices=1, join_seconds=1, processes=1, process=0)
    where, n, i = options.coordinator, options.processes, options.process
    if where is None:
        for name in ("processes", "process"):
            expected = "--coordinator beside it, which all processes can reach"
            command.require(options, name, getattr(options, name) is None, expected)
        return
    if options.find_lr:
        raise BadInput("--find-lr: got --coordinator beside it; it runs in one process")
    if where == AUTO and n is None and i is None:
        return
    host, _, port = where.rpartition(":")
    expected = "HOST:PORT of process 0, or auto"
    command.require(
        options, "coordinator", where == AUTO or (bool(host) and port.isdigit()), expected
    )
    for name in ("processes", "process"):
        if getattr(options, name) is None:
            raise BadInput(
                f"--coordinator {where}: got no {command.flag(name)}, expected --processes, how "
                "many there are, and --process, which of them this one is, from 0"
            )
    command.require(options, "process", i < n, f"less than --processes, which is {n}")


@contextlib.contextmanager
def started(options: Any) -> Iterator[None]:
    """JAX with the devices and processes of the options, until the end of the command.

    Process 0 alone prints. A process that fails ends at once, so that the others do not wait.
    """
    _want_devices(options.devices)
    if options.coordinator is None:
        yield
        return
    _join(options)
    code = 0
    try:
        with contextlib.ExitStack() as stack:
            if jax.process_index():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(processes.noticing())
            _same_count(options)
            yield
    except BaseException as error:
        code = _explained(error)
    if code:  # without the goodbye that waits for the others, one of which may be gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    jax.distributed.shutdown()


def mesh(options: Any) -> Mesh | None:
    """The devices that share a batch; None for one device.

    Raises:
      BadInput: there are not as many, or the batch cannot be split evenly.
    """
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, by_process.values()))
    if options.devices > fewest:
        kind = jax.default_backend()
        raise BadInput(f"--devices: got {options.devices}, but there are {fewest} ({kind})")
    chosen = [d for each in by_process.values() for d in each[: options.devices]]
    if len(chosen) == 1:
        return None
    expected = f"a multiple of {len(chosen)}, as it is split over so many devices"
    command.require(options, "batch", options.batch % len(chosen) == 0, expected)
    return Mesh(np.asarray(chosen), ("batch",))


def _want_devices(n: int) -> None:
    """CPU devices; there are as many others as the machine has."""
    if n > 1:
        with contextlib.suppress(RuntimeError):  # JAX has started: `mesh` counts what there is
            jax.config.update("jax_num_cpu_devices", n)


def _join(options: Any) -> None:
    where = None if options.coordinator == AUTO else options.coordinator
    what = f"--coordinator {options.coordinator}"
    if options.process == 0 and where is not None:
        _check_free(options)
    # JAX would abort the process, with a stack trace in the place of a message.
    given_up = threading.Timer(options.join_seconds, _give_up, [what, options])
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(
            where,
            options.processes,
            options.process,
            initialization_timeout=options.join_seconds + 30,
            shutdown_timeout_seconds=options.join_seconds,
        )
    except ValueError as error:
        raise BadInput(
            f"{what}: neither SLURM, Kubernetes nor JAX_COORDINATOR_ADDRESS says where the "
            f"processes meet ({command.one_line(error)}); give HOST:PORT, --processes and --process"
        ) from error
    except RuntimeError as error:
        raise Failed(f"{what}: cannot be used ({command.one_line(error)[:200]})") from error
    finally:
        given_up.cancel()


def _check_free(options: Any) -> None:
    """Raises BadInput for a port that is in use, where JAX would crash."""
    port = int(options.coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"--coordinator {options.coordinator}: process 0 cannot listen there ({error}); name "
            "another port in each process"
        ) from error


def _same_count(options: Any) -> None:
    """JAX goes by what process 0 was told."""
    told = processes.each(lambda: options.processes)
    if any(n != told[0] for n in told):
        process, n = next((i, n) for i, n in enumerate(told) if n != told[0])
        raise BadInput(f"--processes: process {process} got {n}, process 0 got {told[0]}")


def _give_up(what: str, options: Any) -> None:
    """Ends the process while it waits for the others."""
    others = "the other processes have not come"
    if options.process is not None:
        missing = f"not all {options.processes} processes have come"
        others = missing if options.process == 0 else f"process 0 does not answer, or {missing}"
    print(
        f"error: {what}: {others} within {options.join_seconds} s (--join-seconds). Each must be "
        "started with the same --coordinator and --processes, and reach it by the network",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _explained(error: BaseException) -> int:
    """Prints what ended one of several processes; its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, processes.Lost):
        text = f"{error}. Go on with --resume RUN beside the same options"
    elif isinstance(error, (BadInput, Failed, OSError, processes.Elsewhere)):
        text = str(error)
    else:
        traceback.print_exception(error)
        return 1
    if jax.process_index() == 0 or isinstance(error, processes.Lost):
        print(f"error: {text}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, BadInput) else 1
