"""Files and folders: what a user's words for one mean, and writing one whole or not at all."""

import contextlib
import hashlib
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snr_jax.core.errors import UserError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|(gs|s3|hdfs|https?|file):/", re.IGNORECASE)
_PATTERN = "[*?\\"  # what Orbax, which looks for names in a folder, reads as a pattern of them


def user_path(text: str) -> str:
    """The path that a user means: ~ is their home, which no shell expands after a =.

    Raises UserError for the address of a bucket or a server.
    """
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is the address of a bucket or a server; expected a path, since files alone "
            "are read and written. Copy it to a disk, or mount it as a folder (gcsfuse, "
            "mountpoint-s3, hdfs-fuse), and give its path there"
        )
    return os.path.expanduser(text)


def whole_path(path: str | os.PathLike) -> Path:
    """The path from the root, without "..", for which nothing that Orbax writes can be read."""
    return Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path).absolute()


def refuse_pattern(path: str | os.PathLike) -> None:
    """Raises UserError for a folder in which a checkpoint would be written and never found again.

    Orbax reads the whole path as a pattern of names, and a \\ as a /.
    """
    whole = os.path.abspath(path)
    odd = next((letter for letter in whole if letter in _PATTERN), None)
    try:
        whole.encode()
    except UnicodeEncodeError:
        odd, whole = "a byte that is no UTF-8", whole.encode(errors="replace").decode()
    if odd:
        raise UserError(
            f"{whole} holds {odd}, for which nothing that is saved there could be read again: the "
            "library that writes it takes that for a pattern of names. Choose a path without "
            f"{' '.join(_PATTERN)}"
        )


def without_nan(value: Any) -> Any:
    """The value with None for what is no finite number, as the score of a class without pixels.

    JSON knows no other. Tables and lists are gone through.
    """
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_existing(path: str | os.PathLike) -> None:
    """Raises UserError where something would be written over; an empty folder is nothing."""
    if os.path.isdir(path) and not os.listdir(path):
        return
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; expected a new name, or remove it first")


def free_path(stem: str | os.PathLike) -> Path:
    """STEM-N with the first N, from 1 on, that nothing is called."""
    paths = (Path(f"{os.fspath(stem)}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


def make_room(path: Path) -> Path:
    """Renames a file or folder to PATH.other-N, with the first N that is free; its new path."""
    return path.rename(free_path(f"{path}.other"))


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def closed_folder(path: str | os.PathLike) -> Path | None:
    """The folder on the way to a path, or it itself, that may not be both read and entered.

    One of r-- alone tells its names and none of its files.
    """
    path = Path(path).absolute()
    ways = ((folder, os.X_OK) for folder in reversed(path.parents))
    found = (folder for folder, right in (*ways, (path, os.R_OK | os.X_OK))
             if os.path.isdir(folder) and not os.access(folder, right))
    return next(found, None)


@contextmanager
def written_whole(path: str | os.PathLike, mark: str = "") -> Iterator[Path]:
    """Yields the name, in the same folder, under which a file or folder is to be written.

    At the end it is renamed to `path`, after an error it is removed; folders above are made. A kill
    leaves it. mark: its ending; with one of its own the next start removes what a kill left, and
    without one (PROCESS.tmp) several processes do not meet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{mark or f'{os.getpid()}.tmp'}")
    _remove(unfinished)
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:  # a full disk does not say of which file
        if error.errno:
            error.filename = error.filename or os.fspath(path)
        raise
    finally:
        _remove(unfinished)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    with written_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
