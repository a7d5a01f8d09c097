"""Toy domains: procedural streets in several styles, in the true layouts of the data sets.

Content (scenes.py) depends on (seed, index) alone, style on a literal table (styles.py); so the
same street can be had in every style, with the same labels. Needs numpy and Pillow only.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.files import written_whole
from snr_jax.toy import layouts
from snr_jax.toy.content import check
from snr_jax.toy.layouts import LAYOUTS, Job
from snr_jax.toy.styles import draw_pair, get_style

DRAWING = 1  # raise it when the same arguments draw other pixels
MARKER = "toy.json"  # in the root of every toy data set: the arguments that made it


def _save_gray(ids: np.ndarray, path: Path, **_) -> None:
    Image.fromarray(ids).save(path, bits=8)


def _save_palette(ids: np.ndarray, path: Path, *, colors: np.ndarray, **_) -> None:
    image = Image.fromarray(ids, "P")
    image.putpalette(colors.tobytes())
    image.save(path, bits=8)


def _save_colors(ids: np.ndarray, path: Path, *, colors: np.ndarray, **_) -> None:
    Image.fromarray(colors[ids]).save(path)


def _save_synthia(ids: np.ndarray, path: Path, *, rng: np.random.Generator, **_) -> None:
    """Classes, instances of the full range (new ones every 16 columns), and nothing."""
    strips = np.arange(ids.shape[1]) // 16
    numbers = rng.integers(0, 2**16, (256, strips[-1] + 1), np.uint16)
    instances = numbers[ids, strips]
    path.write_bytes(layouts.png_16(np.stack([ids, instances, np.zeros_like(instances)], -1)))


# Layout.form → how label files are written
LABEL_FORMS = {
    "gray": _save_gray, "palette": _save_palette, "colors": _save_colors, "synthia": _save_synthia,
}  # fmt: skip


def _write_pair(
    job: Job, *, root: Path, layout: str, seed: int, height: int, width: int, style: str,
    content: str,
) -> None:
    style = "source" if job.day else style
    image, label_ids = draw_pair(seed, job.index, height, width, style, content)
    options = {"quality": 95} if job.image.endswith(".jpg") else {"compress_level": 3}
    Image.fromarray(image).save(root / job.image, **options)
    if job.label:
        row = LAYOUTS[layout]
        LABEL_FORMS[row.form](
            layouts.file_ids(row.ids)[label_ids], root / job.label,
            colors=layouts.palette(row.ids), rng=np.random.default_rng((seed, job.index, 2)),
        )


def write(
    layout: str,
    directory: str | Path,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    height: int,
    width: int,
    style: str = "source",
    content: str = "none",
    workers: int = 1,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Draws a data set in a layout (a key of LAYOUTS), whole or not at all.

    num_train, num_val: images in each part. workers: processes that draw. Returns False, and draws
    nothing, where the same arguments were drawn before. Raises UserError where the directory holds
    anything else; `replace` overwrites another toy set.
    """
    directory = Path(directory)
    check(content)
    draw = {"seed": seed, "height": height, "width": width, "style": style}
    made = {"layout": LAYOUTS[layout].folder, "num_train": num_train, "num_val": num_val}
    record = {**made, **draw, "drawing": DRAWING, "look": get_style(draw["style"])._asdict()}
    if content != "none":  # none is not recorded: data of before there were others stay
        record["content"] = content
    record = json.loads(json.dumps(record))
    jobs, lists = layouts.jobs(LAYOUTS[layout], num_train, num_val)
    if _is_there(directory, record, replace):
        return False
    with written_whole(directory, mark="partial") as root:
        for name in {os.path.dirname(path) for x in jobs for path in (x.image, x.label) if path}:
            (root / name).mkdir(parents=True, exist_ok=True)
        _write_pairs(
            partial(_write_pair, root=root, layout=layout, content=content, **draw),
            jobs, workers, progress,
        )
        for name, lines in lists.items():
            (root / name).write_text("".join(f"{line}\n" for line in lines))
        (root / MARKER).write_text(json.dumps(record, indent=1) + "\n")
        if directory.exists():
            shutil.rmtree(directory)
    return True


def _write_pairs(
    write_pair: Callable[[Job], None], jobs: Sequence[Job], workers: int,
    progress: Callable[[int, int], None],
) -> None:
    if workers <= 1:
        for done, job in enumerate(jobs, 1):
            write_pair(job)
            progress(done, len(jobs))
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    try:
        # Ctrl-C reaches every process of the terminal, SIGTERM of `timeout` those of the group; the
        # first process alone answers them.
        asked = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
        try:
            written = pool.map(write_pair, jobs, chunksize=8)  # starts the workers
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for done, _ in enumerate(written, 1):
            progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Prepares a worker: it waits for work for ever if the first process is killed."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_there(directory: Path, record: dict, replace: bool) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    marker = directory / MARKER
    if not marker.is_file():
        raise UserError(
            f"{directory} exists and is no toy data set (it has no {MARKER}); it is left alone. "
            "Choose another --out, or move it away"
        )
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        found = None
    found = found if isinstance(found, dict) else {}  # a damaged one is of another set
    if found == record:
        return True
    if not replace:
        different = [k for k in record | found if found.get(k) != record.get(k)]
        raise UserError(
            f"{directory} holds another toy data set (different: {', '.join(different)}). "
            "Choose another --out, or draw it anew with --replace"
        )
    return False
