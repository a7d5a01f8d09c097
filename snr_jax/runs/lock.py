"""One process writes into a run's folder at a time."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from snr_jax.core.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(
    workdir: str | os.PathLike, token: str = "", log: Callable[[str], None] = print
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
            log(f"WARNING: {path} cannot be locked ({error.strerror}); start no second run there")
        holder = {"host": socket.gethostname(), "pid": os.getpid(),
                  "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "token": token}
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
        os.fsync(file.fileno())  # for other machines
        yield


def read(workdir: str | os.PathLike) -> dict[str, str | int]:
    """What the process that took the lock wrote: host, pid, since, token; {} if nothing whole.

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
