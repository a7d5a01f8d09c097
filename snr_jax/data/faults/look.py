"""A quick look at a split before work begins: the headers of all its files, a few labels whole."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import ID_TABLES, IGNORE, UNKNOWN, to_train_id
from snr_jax.data import decode
from snr_jax.data.faults import inspection
from snr_jax.data.samples import Labels, Sample

NUM_THREADS = 16  # they wait for the disk
NUM_DECODED = 16  # labels whose pixels are looked at
MOST_FAULTS = 20  # after so many the rest is not looked at
NUM_NAMED = 20
# The modes in which Pillow opens a label of that kind.
LABEL_MODES = {"indices": ("1", "L", "P"), "synthia": ("I;16", "RGB")}
# What stands at a whole file's end, in its last bytes.
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
TAIL_BYTES = 4096
_LABEL_IDS = to_train_id(ID_TABLES["label_ids"])


class _Glance(NamedTuple):
    faults: list[str]
    difference: str | None  # of the sizes, where they differ by little


def look(
    samples: Sequence[Sample],
    labels: Labels,
    *,
    with_labels: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Warnings about the split; `progress(done, total)` is called after each sample.

    Raises UserError, naming files, for those that are missing, cut short or no images, for images
    and labels of different shapes, and for labels that cannot be meant (`label_fault`).
    """
    if not with_labels:
        samples = [Sample(sample.id, sample.image, None) for sample in samples]

    def glance(sample: Sample) -> _Glance:
        return _glance(sample, labels)

    faults: list[str] = []
    differences: list[str] = []
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for done, found in enumerate(pool.map(glance, samples), 1):
                faults += found.faults
                differences += [found.difference] if found.difference else []
                progress(done, len(samples))
                if len(faults) >= MOST_FAULTS:
                    break
        spread = np.linspace(0, len(samples) - 1, NUM_DECODED).astype(int)
        chosen = [samples[i] for i in dict.fromkeys(spread.tolist()) if not faults]
        findings = list(pool.map(lambda sample: inspection.inspect(sample, labels), chosen))
    finally:  # also after Ctrl-C, which must not wait for the rest
        pool.shutdown(cancel_futures=True)
    faults += [fault for finding in findings for fault in finding.faults]
    if faults:
        count = f"{len(faults)} faults, the first: " if len(faults) > 1 else ""
        raise UserError(
            f"{labels.domain}: {count}{'; '.join(faults[:3])}. Replace the files, or leave their "
            "ids out of the split; python -m snr_jax.doctor lists every fault"
        )
    pixels = [finding.pixels for finding in findings if finding.pixels is not None]
    if pixels and (fault := label_fault(np.sum(pixels, 0), labels)):
        raise UserError(f"{labels.domain}: {fault}")
    return [_differ(labels.domain, differences)] if differences else []


def _glance(sample: Sample, labels: Labels) -> _Glance:
    size = _size(sample.image, decode.IMAGE_FORMATS, None)
    label_size = _size(sample.label, ("PNG",), LABEL_MODES[labels.kind]) if sample.label else size
    if size is None or label_size is None or not decode.alike(size, label_size):
        found = inspection.inspect(sample, labels)  # decides
        if found.faults or found.label_size is None:
            return _Glance(found.faults, None)
        size, label_size = found.size, found.label_size
    if size == label_size:
        return _Glance([], None)
    return _Glance([], inspection.difference(sample, size, label_size))


def _size(path: str, formats: Sequence[str], modes: Sequence[str] | None) -> tuple | None:
    """Height and width by the header of a file that looks whole, else None."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=formats) as image:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            whole = ENDS.get(image.format, b"") in file.read()
            return image.size[::-1] if whole and image.mode in (modes or image.mode) else None
    except Exception:  # whatever the parser meets in a broken file
        return None


def _differ(domain: str, differences: Sequence[str]) -> str:
    more = ", ..." if len(differences) > NUM_NAMED else ""
    return (
        f"{domain}: {len(differences)} labels differ from their images in size, by little: "
        f"{', '.join(differences[:NUM_NAMED])}{more}. Each is resized by itself"
    )


def label_fault(pixels: np.ndarray, labels: Labels) -> str | None:
    """Why labels cannot be meant, if so. pixels: int64 [256], their number by the files' own ids.

    No pixel of theirs has a class; or they are trainIds where label ids are needed: the highest is
    the one of vegetation to bicycle, and most pixels mean nothing as label ids. In labels of that
    kind vegetation, sky, people and cars are above 18.
    """
    present = np.flatnonzero(pixels)
    highest = present[present < IGNORE].max(initial=0)
    of_no_class = pixels[:IGNORE][_LABEL_IDS[:IGNORE] >= UNKNOWN].sum()
    is_train_ids = 8 <= highest <= 18 and of_no_class > pixels[:IGNORE].sum() / 2
    if labels.ids == "label_ids" and is_train_ids:
        return (
            "the labels look like trainIds (0 to 18), where label ids (7 to 33) are needed. "
            f"Expected: {labels.layout}"
        )
    if not pixels[labels.lookup < UNKNOWN].any():
        return (
            f"every pixel of the labels that were looked at is ignored (ids "
            f"{', '.join(map(str, present[:8]))}). Are they those of a test set, or of another "
            f"data set? Expected: {labels.layout}"
        )
    return None


def shared(splits: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Warnings where a split of training has images of one of validation ("..._val")."""
    images = {name: {sample.image for sample in samples} for name, samples in splits.items()}
    validation = [name for name in splits if name.endswith("_val")]
    return [
        f"{name} and {other} share {len(both)} images, {min(both)} the first: the network is "
        f"scored on what it was trained on"
        for name in splits if name not in validation
        for other in validation if (both := images[name] & images[other])
    ]
