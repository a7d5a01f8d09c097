"""Toy domains: procedural streets in several styles, in the layouts of GTA5 and Cityscapes.

Content (scenes.py) depends on (seed, index) alone, style on a literal table here; so the
same street can be had in every style, with the same labels. Needs numpy and Pillow only.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.toy.styles import draw_pair, get_style

DRAWING = 1  # raise it when the same arguments draw other pixels
MARKER = "toy.json"  # in the root of every toy data set: the arguments that made it
CITIES = {"train": ("toyburg", "pixelstadt", "rasterheim"), "val": ("bitmuende", "vectorbach")}
# First scene index of each split: far enough apart that no street is in two of them.
FIRST_INDEX = {"source train": 0, "source val": 10**6, "target train": 2 * 10**6,
               "target val": 3 * 10**6}  # fmt: skip


def _gta5_label(label_ids: np.ndarray) -> Image.Image:
    """The palette image that GTA5 stores: the indices are label ids, the colours official."""
    colors = np.zeros((256, 3), np.uint8)
    for c in labels.CLASSES:
        colors[c.label_id] = c.color
    image = Image.fromarray(label_ids, "P")
    image.putpalette(colors.tobytes())
    return image


def _write_pair(
    job: tuple[int, Path, Path], *, seed: int, height: int, width: int, style: str,
    as_label: Callable[[np.ndarray], Image.Image],
) -> None:
    index, image_path, label_path = job
    image, label_ids = draw_pair(seed, index, height, width, style)
    Image.fromarray(image).save(image_path, compress_level=3)
    as_label(label_ids).save(label_path, bits=8)


def write_gta5(directory: str | Path, *, num_train: int, num_val: int, seed: int, height: int,
               width: int, style: str = "source", **how) -> bool:  # fmt: skip
    """Writes images/, labels/, train.txt, val.txt as GTA5 has them; see `_write` for the rest."""
    names = [f"{number:05d}" for number in range(1, num_train + num_val + 1)]
    first = FIRST_INDEX["source train"], FIRST_INDEX["source val"] - num_train
    jobs = [(first[i >= num_train] + i, f"images/{name}.png", f"labels/{name}.png")
            for i, name in enumerate(names)]  # fmt: skip
    lists = {"train.txt": names[:num_train], "val.txt": names[num_train:]}
    made = {"layout": "GTA5", "num_train": num_train, "num_val": num_val}
    draw = {"seed": seed, "height": height, "width": width, "style": style}
    return _write(Path(directory), jobs, lists, made, draw, as_label=_gta5_label, **how)


def write_cityscapes(directory: str | Path, *, style: str, num_train: int, num_val: int, seed: int,
                     height: int, width: int, **how) -> bool:  # fmt: skip
    """Writes leftImg8bit/ and gtFine/ as Cityscapes has them; see `_write` for the rest."""
    jobs = []
    for split, number in (("train", num_train), ("val", num_val)):
        for i in range(number):
            city = CITIES[split][i % len(CITIES[split])]
            stem = f"{split}/{city}/{city}_{i // len(CITIES[split]):06d}_000019"
            jobs.append((FIRST_INDEX[f"target {split}"] + i, f"leftImg8bit/{stem}_leftImg8bit.png",
                         f"gtFine/{stem}_gtFine_labelIds.png"))  # fmt: skip
    made = {"layout": "Cityscapes", "num_train": num_train, "num_val": num_val}
    draw = {"seed": seed, "height": height, "width": width, "style": style}
    return _write(Path(directory), jobs, {}, made, draw, as_label=Image.fromarray, **how)


def _write(
    directory: Path,
    jobs: list[tuple[int, str, str]],
    lists: dict[str, list[str]],
    made: dict,
    draw: dict,
    *,
    as_label: Callable[[np.ndarray], Image.Image],
    workers: int = 1,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Draws all jobs, by `workers` processes, beside `directory` and renames at the end.

    Returns False, and draws nothing, where the same arguments were drawn before. Raises
    UserError where the directory holds anything else; `replace` overwrites another toy set.
    """
    record = {**made, **draw, "drawing": DRAWING, "look": get_style(draw["style"])._asdict()}
    record = json.loads(json.dumps(record))
    if _is_there(directory, record, replace):
        return False
    partial_directory = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    for name in {os.path.dirname(path) for job in jobs for path in job[1:]}:
        (partial_directory / name).mkdir(parents=True, exist_ok=True)
    placed = [(i, partial_directory / image, partial_directory / label) for i, image, label in jobs]
    write_pair = partial(_write_pair, **draw, as_label=as_label)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(write_pair, placed, chunksize=8), 1):
                progress(done, len(placed))
    else:
        for done, job in enumerate(placed, 1):
            write_pair(job)
            progress(done, len(placed))
    for name, lines in lists.items():
        (partial_directory / name).write_text("".join(f"{line}\n" for line in lines))
    (partial_directory / MARKER).write_text(json.dumps(record, indent=1) + "\n")
    if directory.exists():
        shutil.rmtree(directory)
    partial_directory.rename(directory)
    return True


def _is_there(directory: Path, record: dict, replace: bool) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    marker = directory / MARKER
    if not marker.is_file():
        raise UserError(
            f"{directory} exists and is no toy data set (it has no {MARKER}); it is left alone. "
            "Choose another --out, or move it away"
        )
    found = json.loads(marker.read_text())
    if found == record:
        return True
    if not replace:
        different = [k for k in record if found.get(k) != record[k]]
        raise UserError(
            f"{directory} holds another toy data set (different: {', '.join(different)}). "
            "Choose another --out, or draw it anew with --replace"
        )
    return False
