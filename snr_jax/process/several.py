"""A run of several processes: how they find each other, and how one leaves."""

import ctypes
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import jax

from snr_jax.core.errors import Stopped, UserError

SILENCE_SECONDS = 60  # a process that gives no sign for so long counts as gone
# The exit codes with which all processes end at one step.
TOGETHER = (0, *(128 + asked for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
# In JAX's errors.
COLLECTIVE = ("Gloo", "NCCL", "oordination", "Barrier", "Connection closed by peer")
GONE = (
    "error: another process of this run has ended or cannot be reached (its own messages say why, "
    "or the lines above). Start the same command again in every process to go on from the last "
    "checkpoint"
)
ABSENT = (
    "error: not all processes of this run appeared in time. Start as many as --num_processes, "
    "each with its own --process_id and the same --coordinator, reachable from all"
)

_at_abort: list[object] = []  # handlers that C holds by their address alone

Address = tuple[str, int]


def check(coordinator: str | None, number: int | None, index: int | None) -> Address | None:
    """Returns host and port of --coordinator, None without it.

    Raises UserError for flags of --coordinator, --num_processes, --process_id that are missing
    or cannot be meant.
    """
    example = "--coordinator HOST:PORT --num_processes 2 --process_id 0"
    if coordinator is None:
        given = {"num_processes": number, "process_id": index}
        for name, value in given.items():
            if value is not None:
                raise UserError(f"--{name} without --coordinator; expected {example}")
        return None
    if number is None or index is None:
        missing = "num_processes" if number is None else "process_id"
        raise UserError(f"--coordinator without --{missing}; expected {example}")
    if not 0 <= index < number:
        raise UserError(
            f"--process_id is {index} of --num_processes {number}; expected 0 to {number - 1}"
        )
    host, _, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is {coordinator!r}; expected {example}")
    _resolve((host, int(port)))
    return host, int(port)


def _resolve(address: Address) -> list[tuple]:
    try:
        return socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--coordinator: the host {address[0]!r} is not found ({error}). Give the name or the "
            "IP address of the machine of process 0"
        ) from None


@contextmanager
def joined(
    address: Address | None, number: int | None, index: int | None, timeout: int
) -> Iterator[None]:
    """Makes this process one of the run's, within the block.

    address: None, with `number` and `index`, where JAX finds all three in the environment, as of
    SLURM, Open MPI or Kubernetes. timeout: seconds to wait for the others. Raises UserError where
    JAX cannot begin, `Stopped` where a collective operation has lost another process.
    """
    name, bind, flags = None, None, "--distributed"
    if address:
        host, port = address
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bind = _bind_address(address, name) if index == 0 else None
        flags = f"--coordinator {name}"
    say_at_abort(ABSENT)
    try:
        jax.distributed.initialize(
            name, number, index, coordinator_bind_address=bind, initialization_timeout=timeout,
            heartbeat_timeout_seconds=SILENCE_SECONDS, shutdown_timeout_seconds=SILENCE_SECONDS,
        )
    except Exception as error:
        if not address and "should be defined" in str(error):
            raise UserError(
                "--distributed: the environment names no other processes. Start it by srun of "
                "SLURM or mpirun of Open MPI, or give each process --coordinator HOST:PORT, "
                "--num_processes and --process_id"
            ) from error
        raise UserError(f"{flags}: {error}") from error
    say_at_abort(GONE)
    jax.config.update("jax_logging_level", "ERROR")  # no warning of C++ that SIGTERM was caught
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise_if_lost(error)
        raise


def say_at_abort(line: str) -> None:
    """Sets the last line of stderr of a process that JAX aborts: it has lost another one.

    It does so in a thread of C++, where Python's own handlers of signals never run.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os.write(2, f"{line}\n".encode()))
    _at_abort.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def raise_if_lost(error: BaseException) -> None:
    """Raises `Stopped` if a collective operation has failed because another process is gone.

    Orbax runs such operations around its reads and writes, where their errors look like the disk's.
    """
    text = f"{error} {root_of(error)}"
    if jax.distributed.is_initialized() and any(word in text for word in COLLECTIVE):
        raise Stopped(GONE, exit_code=1) from error


def root_of(error: BaseException) -> BaseException:
    """Returns the first error of a chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def end(code: int) -> NoReturn:
    """Ends the process; after an error at once, since a thread of a failed save may wait on.

    Of several processes that end at one step each waits for the others: JAX's farewell.
    """
    if code and not jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def leave(code: int) -> int:
    """Returns the exit code of a process; after an error of one of several it ends here.

    JAX's farewell would wait for the others, and they for this one.
    """
    if jax.distributed.is_initialized() and code not in TOGETHER:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # it holds JAX's service: the others tell their errors first
            time.sleep(2)
        os._exit(code)
    return code


def _bind_address(address: Address, name: str) -> str:
    """Returns where process 0 listens: on that address alone, since JAX asks nobody who they are.

    A machine's own name often stands for a loopback address on that machine; then on all.
    """
    host, port = address
    found = _resolve(address)
    local = all(ipaddress.ip_address(info[4][0].split("%")[0]).is_loopback for info in found)
    literal = host == "localhost" or host.replace(".", "").isdecimal() or ":" in host
    if local and not literal:
        return f"[::]:{port}"
    family, kind, _, _, where = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise UserError(
                f"--coordinator {name}: process 0 cannot listen there ({error.strerror}). Give an "
                "address of its machine and a free port"
            ) from None
    return name
