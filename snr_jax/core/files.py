"""Files and folders that are written whole or not at all: under another name, then renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
