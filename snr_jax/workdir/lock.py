"""One process writes into a run's folder at a time."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from snr_jax.core.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
WORKDIR_SECONDS = 20.0  # a network file system may show a new file so late
TOKEN_BYTES = 16


@contextlib.contextmanager
def locked(
    workdir: str | os.PathLike, token: str = ""
) -> Iterator[None]:
    """Holds WORKDIR/.lock, which is created with its folders. The lock dies with its process.

    The file tells who holds it, and the token. Raises UserError where another process holds it.
    The lock is POSIX's, which NFS carries to other machines; where the file system has none, the
    run goes on with a warning.
    """
    Path(workdir).mkdir(parents=True, exist_ok=True)
    path = Path(workdir) / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{workdir} is in use by a run {_holder(path)}. Wait for it, stop it, or "
                    "choose another --workdir"
                ) from None
            logger.warning("%s cannot be locked (%s); start no second run there", path,
                           error.strerror)
        holder = {"host": socket.gethostname(), "pid": os.getpid(),
                  "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "token": token}
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
        os.fsync(file.fileno())  # for other machines
        yield


def read(workdir: str | os.PathLike) -> dict[str, str | int]:
    """Reads what the holder of the lock wrote: host, pid, since, token; {} if nothing whole.

    Not for the holder itself: closing any handle of the file would give up its lock.
    """
    try:
        holder = json.loads((Path(workdir) / LOCK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _holder(path: Path) -> str:
    holder = read(path.parent)
    if not holder:
        return "that is just starting"
    return f"on {holder.get('host')}, process {holder.get('pid')}, since {holder.get('since')}"


# ---------------------------------------------------------------- one folder for all processes

@contextmanager
def locked_workdir(workdir: str) -> Iterator[None]:
    """Has process 0 hold the lock, and all processes see that it is the same folder.

    Raises UserError where the folder is in use, and in all processes where one does not see it.
    """
    first = jax.process_index() == 0
    token = secrets.token_bytes(TOKEN_BYTES) if first else bytes(TOKEN_BYTES)
    with locked(workdir, token.hex()) if first else nullcontext():
        if jax.process_count() > 1:
            _agree(workdir, token)
        yield


def _agree(workdir: str, token: bytes) -> None:
    shared = multihost_utils.broadcast_one_to_all(np.frombuffer(token, np.uint8))
    seen = jax.process_index() == 0 or _wait_for(workdir, shared.tobytes().hex())
    hosts = multihost_utils.process_allgather(np.array([seen]))
    blind = np.flatnonzero(~hosts.reshape(-1)).tolist()
    if blind:
        raise UserError(
            f"not all processes see the same folder: process {', '.join(map(str, blind))} does not "
            f"find the lock of process 0 in {os.path.abspath(workdir)}. All processes of a run "
            "need the same --workdir, on a file system that all share"
        )


def _wait_for(workdir: str, token: str) -> bool:
    end = time.monotonic() + WORKDIR_SECONDS
    while read(workdir).get("token") != token:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
